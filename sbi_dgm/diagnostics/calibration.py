r"""Calibration of a posterior, from held-out pairs (theta*, x) and draws of q(theta | x).

If q is the posterior, theta* and its draws are exchangeable, so that the rank of theta* among S draws is uniform
on {0, ..., S}: for each parameter (simulation-based calibration: Talts et al. 2018, arXiv:1804.06788), and for
ln q itself, whose rank is the credibility of the smallest highest-density region that holds theta* (Hermans et
al. 2022, arXiv:2110.06581). Ranks are made continuous by u = (rank + V) / (S + 1), V ~ U(0, 1), ties shared at random.
"""

from typing import NamedTuple

import numpy as np
import scipy

from sbi_dgm.diagnostics import ecdf
from sbi_dgm.univariate import Array

BINS = 20


class Uniformity(NamedTuple):
    """A test of ranks u (R,) against U(0, 1).

    Attributes:
        p_value: of no deviation, after correction for the tests made.
        shape: "calibrated", or what is wrong: place or width where their tests see it, else the shape.

    """

    p_value: float
    shape: str


def ranks(truth: Array, draws: Array, rng: np.random.Generator) -> Array:
    """Continuous ranks of the truth among its draws: (R, D), (R, S, D) -> (R, D) in (0, 1).

    >>> truth, draws = np.zeros((1, 1)), np.array([[[-1.0], [1.0], [2.0]]])
    >>> bool(0.25 <= ranks(truth, draws, np.random.default_rng(0))[0, 0] <= 0.5)
    True
    """
    below = (draws < truth[:, None]).sum(1)
    equal = (draws == truth[:, None]).sum(1)
    return (below + (equal + 1) * rng.uniform(size=truth.shape)) / (draws.shape[1] + 1)


def uniformity(u: Array, high: str, low: str, outer: str, inner: str, level: float) -> Uniformity:
    """Test u (R,) for location, width and shape, and name the deviation.

    With the normal scores v = Phi^{-1}(u) of uniform u, sqrt(R) mean(v) is a standard normal and the sum of v^2 follows
    chi^2 with R degrees of freedom: the best tests of a shift and of a width where posteriors are normal (Cook, Gelman
    and Rubin 2006, doi:10.1198/106186006X136976, who test the sum of squares). What leaves the narrowest simultaneous
    band of the distribution function (`sbi_dgm.diagnostics.ecdf`) is of another shape. The smallest p-value, times
    the number of tests, counts.

    Args:
        high, low, outer, inner: words for ranks that are too high, too low, too far out, too central; what has none
            ("") is left to the test of shape.
        level: below which the p-value is a deviation.

    """
    tails = [(tail, word) for tail, word in zip(_tails(u), (high, low, outer, inner), strict=True) if word]
    tests, (tail, word) = 1 + len(tails) / 2, min(tails)
    named, shape = 2 * tail, ecdf.p_value(u)
    if tests * named >= level and shape < named:
        word = "of the wrong shape"
    p_value = min(1.0, tests * min(named, shape))
    return Uniformity(p_value, word if p_value < level else "calibrated")


def _tails(u: Array) -> tuple[float, float, float, float]:
    """Probabilities that uniform ranks are as high, as low, as far out, as central as these."""
    scores = scipy.special.ndtri(u)
    place, square = scores.sum() / len(u) ** 0.5, (scores**2).sum()
    below, within = scipy.special.ndtr(place), scipy.special.chdtr(len(u), square)
    return float(scipy.special.ndtr(-place)), float(below), float(scipy.special.chdtrc(len(u), square)), float(within)


def calibration_error(u: Array) -> float:
    """Mean absolute difference between the distribution function of ranks u (R,) and that of U(0, 1).

    The integral of |F(t) - t| over t, which is also the Wasserstein distance of the ranks from U(0, 1). It is 1/4 at
    most if the ranks are symmetric about 1/2, and 1/2 at most. The R ranks of a calibrated posterior, being finitely
    many, have sqrt(2 pi / R) / 8 = 0.313 / sqrt(R) on average (the mean of a Brownian bridge's modulus).

    >>> calibration_error(np.array([0.5]))
    0.25
    """
    low, high = np.arange(len(u)) / len(u), np.arange(1, len(u) + 1) / len(u)
    above, below = np.sort(u) - low, high - np.sort(u)
    return float((above * np.abs(above) + below * np.abs(below)).sum() / 2)


def bin_band(rows: int, level: float = 0.99) -> tuple[float, float]:
    """Counts between which each of `BINS` bins of `rows` uniform ranks lies with probability `level`."""
    low, high = scipy.stats.binom.interval(level, rows, 1 / BINS)
    return float(low), float(high)


def coverage_band(nominal: Array, rows: int, level: float = 0.99) -> tuple[Array, Array]:
    """Pointwise range (K,), (K,) of empirical coverage for `rows` rows of a calibrated posterior."""
    low, high = scipy.stats.binom.interval(level, rows, nominal)
    return low / rows, high / rows
