"""Weights of importance sampling: what they are worth, and draws in proportion to them.

The effective size is (sum w)^2 / sum w^2 (Kong 1992). n draws take row i as often as one of n w_i / sum w's two
neighbouring integers, by systematic sampling in random order (Madow 1949, doi:10.1214/aoms/1177729988); drawing one
after another without replacement, in contrast, is biased towards small weights.
"""

import numpy as np

from sbi_dgm.univariate import Array


def effective_size(weight: Array) -> float:
    """(sum w)^2 / sum w^2, the number of equal weights that are as good.

    >>> effective_size(np.array([1.0, 1.0, 0.0]))
    2.0
    """
    return float(weight.sum() ** 2 / (weight**2).sum())


def relative(log_weight: Array) -> Array:
    """Weights, the largest of which is one."""
    return np.exp(log_weight - max(log_weight.max(), -1e300))


def largest_power(log_weight: Array, most: float, effective: float) -> float:
    """The largest power, at most `most`, of finite weights that leaves the effective size, by bisection."""
    if effective_size(relative(most * log_weight)) >= effective:
        return most
    low, high = 0.0, most
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if effective_size(relative(middle * log_weight)) >= effective else (low, middle)
    return high


def distinct(log_weight: Array, n: int, rng: np.random.Generator) -> np.ndarray:
    """n different rows of N weights, row i with probability n w_i / sum w, or 1 where that is more."""
    chance = n * np.exp(log_weight - np.logaddexp.reduce(log_weight))
    while (chance > 1 + 1e-9).any():
        sure = chance >= 1
        chance = np.where(sure, 1.0, chance * (n - sure.sum()) / chance[~sure].sum())
    return rng.permutation(systematic(chance, n, rng))


def systematic(weight: Array, n: int, rng: np.random.Generator) -> np.ndarray:
    """n rows of N weights in random order, row i as often as one of n w_i / sum w's two neighbouring integers."""
    order = rng.permutation(len(weight))
    edges = np.cumsum(weight[order])
    return order[np.searchsorted(edges, edges[-1] * (np.arange(n) + rng.random()) / n, side="right")]
