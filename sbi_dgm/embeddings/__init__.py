"""Summaries of observables: one kind of observable a file."""
