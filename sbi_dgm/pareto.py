r"""How heavy the tail of importance weights is: the shape k of a generalised Pareto distribution.

Weights w of a proposal have moments of order below 1 / k, where k is the shape of their upper tail,

.. math::  p(w > u + y \,|\, w > u) \approx (1 + k y / \sigma)^{-1/k} .

Averages converge at the usual rate where the variance exists, k < 0.5; they are of use, more slowly, up to

.. math::  k < \min(1 - 1 / \log_{10} S, 0.7)

with S weights (Vehtari, Simpson, Gelman, Yao and Gabry 2024, "Pareto smoothed importance sampling", JMLR 25:72,
arXiv:1507.02646). The tail is the largest min(S / 5, 3 sqrt(S)) weights, the estimate that of Zhang and Stephens 2009
(Technometrics 51, 316): the mean over a quasi-posterior of b = -k / sigma, drawn to 0.5 by ten more weights.
"""

import math

import numpy as np

from sbi_dgm.univariate import Array

FEWEST = 5  # weights of a tail
CERTAIN, EXTRA, CENTRE = 3, 10, 0.5  # of Zhang and Stephens's prior of b; and weights that say k = 0.5


def shape(log_weight: Array) -> float:
    """The shape k of weights by their logarithms (S,): -inf where the largest are alike, NaN where they are too few.

    >>> uniform = np.random.default_rng(0).uniform(size=100_000)
    >>> [bool(abs(shape(-k * np.log(uniform)) - k) < 0.15) for k in (0.3, 0.9)]  # of weights u^-k
    [True, True]

    """
    count = int(np.ceil(min(len(log_weight) / 5, 3 * np.sqrt(len(log_weight)))))
    if count < FEWEST:
        return float("nan")
    tail = np.sort(log_weight)[-count - 1 :]
    if tail[-1] == -np.inf:
        return float("nan")
    excess = np.exp(tail[1:] - tail[-1]) - np.exp(tail[0] - tail[-1])
    if excess[0] <= 0 and excess[-1] <= 1e-9:
        return float("-inf")
    return (len(excess) * _shape(excess) + EXTRA * CENTRE) / (len(excess) + EXTRA)


def _shape(excess: Array) -> float:
    """The shape k of ascending excesses over a threshold."""
    n = len(excess)
    grid = 30 + int(np.sqrt(n))
    quartile = excess[max(0, int(n / 4 + 0.5) - 1)]
    b = (1 - np.sqrt(grid / (np.arange(1, grid + 1) - 0.5))) / (CERTAIN * max(quartile, 1e-300)) + 1 / excess[-1]
    k = np.log1p(-b[:, None] * excess).mean(1)
    profile = n * (np.log(-b / k) - k - 1)
    weight = np.exp(profile - np.logaddexp.reduce(profile))
    return float(np.log1p(-(b @ weight) * excess).mean())


def bound(count: int) -> float:
    """The largest k with which S weights are of use.

    >>> round(bound(1000), 3), bound(100_000)
    (0.667, 0.7)
    """
    return min(1 - 1 / math.log10(max(count, 11)), 0.7)


def meaning(k: float, count: int) -> str:
    """What k says of averages over `count` weights, in plain words."""
    if np.isnan(k):
        return "too few weights to tell"
    if k <= CENTRE:
        return "good: the weights have a finite variance"
    if k <= bound(count):
        return "usable: the weights' variance may be infinite, averages converge slowly"
    if k < 1:
        return "unreliable: a few weights rule, the proposal misses a part of the posterior"
    return "useless: the weights have no mean, the proposal misses the posterior or a mode of it"
