"""Families of conditional densities, one a file, behind the contract in `base`."""
