"""Benchmarks: tasks with exact posteriors, methods, scores; cell by cell, on any executor."""
