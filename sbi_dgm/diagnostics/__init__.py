"""Tests of a posterior that need nothing of it but draws and densities."""
