"""Simulators that come along: one problem a file, each with a known answer."""
