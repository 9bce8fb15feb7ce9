"""Simulation files: format, splits, scaling, batches, observations."""
