r"""Simultaneous bands of an empirical distribution function, and the p-value of leaving them.

Of R numbers u ~ U(0, 1) let N_k be how many lie below t_k = k / K, k = 1, ..., K - 1. Each N_k is binomial, and all of
them are the counts of a Poisson process that had R events in the end,

.. math::  N_{k+1} - N_k \sim \mathrm{Poisson}(R / K) \quad \text{given} \quad N_K = R,

so that the probability of staying within given bounds at all points takes K convolutions (Moscovich and Nadler 2017,
arXiv:1503.04363). A band whose points all have the same level gamma, the largest for which that probability is
the one asked for, sees deviations in the tails as well as in the middle (Saeilynoja, Buerkner and Vehtari 2022,
arXiv:2103.10522, where gamma is found by the same recursion).
"""

import numpy as np
import scipy
from numpy.typing import NDArray

from sbi_dgm.univariate import Array

Counts = NDArray[np.intp]
POINTS = 100  # K
TOLERANCE = 1e-4  # relative, of gamma
SMALLEST = 1e-100  # gamma below which nothing is told apart


def counts(u: Array, points: int = POINTS) -> Counts:
    """N_k (K - 1,) of numbers u (R,).

    >>> counts(np.array([0.1, 0.3, 0.9]), 4).tolist()
    [1, 2, 2]
    """
    return np.searchsorted(np.sort(u), _times(points), side="right")


def band(rows: int, level: float, points: int = POINTS) -> tuple[Counts, Counts]:
    """Lowest and highest N_k (K - 1,) of a band that all of `rows` uniform numbers' counts keep with 1 - `level`.

    The probability of leaving is `level` or, as counts are whole, a little less.
    """
    low, high = level / points, min(1.0, 2 * level)  # by Bonferroni, and because any one point may be left
    while high - low > TOLERANCE * low:
        gamma = np.sqrt(low * high)
        low, high = (gamma, high) if leaving(*_pointwise(rows, gamma, points), rows) <= level else (low, gamma)
    return _pointwise(rows, low, points)


def p_value(u: Array, points: int = POINTS) -> float:
    """Of u (R,) being uniform: how probably the narrowest band that they keep is left.

    >>> bool(p_value(np.linspace(0, 1, 200) ** 2) < 1e-6 < 0.5 < p_value((np.arange(200) + 0.5) / 200))
    True
    """
    rows, t = len(u), _times(points)
    found = counts(u, points)
    below, above = scipy.stats.binom.cdf(found, rows, t), scipy.stats.binom.sf(found - 1, rows, t)
    gamma = np.clip(2 * np.minimum(below, above).min(), SMALLEST, 1.0)
    return leaving(*_pointwise(rows, gamma * (1 + 1e-9), points), rows)


def _times(points: int) -> Array:
    return np.arange(1, points) / points


def _pointwise(rows: int, gamma: float, points: int) -> tuple[Counts, Counts]:
    """Lowest and highest counts n whose tails P(N <= n) and P(N >= n) are at least gamma / 2."""
    t = _times(points)
    low, high = scipy.stats.binom.ppf(gamma / 2, rows, t), scipy.stats.binom.isf(gamma / 2, rows, t)
    return np.maximum(low, 0).astype(np.intp), np.minimum(high, rows).astype(np.intp)


def leaving(low: Counts, high: Counts, rows: int) -> float:
    """The probability that N_k of `rows` uniform numbers is outside [low_k, high_k] (K - 1,) for some k."""
    step, start, inside = _poisson(rows / (len(low) + 1)), 0, np.ones(1)
    for first, last in zip(low, high, strict=True):
        start, inside = first, np.convolve(inside, step)[first - start : last - start + 1]
        if not len(inside):
            return 1.0
    end = np.convolve(inside, step)
    found = end[rows - start] if rows - start < len(end) else 0.0
    return max(0.0, 1 - float(found / scipy.stats.poisson.pmf(rows, rows)))


def _poisson(mean: float) -> Array:
    """Probabilities of 0, 1, 2, ... up to where what is left, below 1e-30, does not count."""
    return scipy.stats.poisson.pmf(np.arange(int(mean + 12 * mean**0.5 + 60)), mean)
