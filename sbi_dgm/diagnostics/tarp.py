r"""Tests of accuracy with random points: how far theta* and the draws of q(theta | x) are from a reference point r.

If q is the posterior, the rank of d(theta*, r) among the draws' distances is uniform for any r that may depend on x,
though not on theta* (Lemos et al. 2023, arXiv:2302.03026). Two kinds of points see different things:

- r anywhere in the box of all draws, whatever x is (`anywhere`): sees wrong widths and places, little of wrong
  correlations, and nothing of a q that disregards x, as the prior does (section 3 there);
- r a prediction of theta from x (`predictions`), learned by kernel ridge regression from the truths of other rows:
  a q that knows less than x tells has its draws farther from r than the truth is.

A row's prediction rests on rows of earlier blocks alone. Given these, its rank is uniform; so ranks of one block after
the other are independent and uniform, as if r had been fixed beforehand, and the test is exact.
"""

from itertools import pairwise

import numpy as np
import scipy

from sbi_dgm.univariate import Array

FIRST = 8  # the part of the rows, one in so many, that teaches the second block; each block doubles what is known
NOISE = 0.1  # variance that a prediction leaves to theta, in units of the prior's: the ridge
TINY = 1e-12


def distances(theta: Array, reference: Array, scale: Array) -> Array:
    """|(theta - r) / scale|: (R, D) or (R, S, D), r (R, D) -> (R,) or (R, S)."""
    shift = reference if theta.ndim == reference.ndim else reference[:, None]
    return np.sqrt((((theta - shift) / scale) ** 2).sum(-1))


def anywhere(draws: Array, rng: np.random.Generator) -> Array:
    """One point (R, D) for each row, uniform in the box of all draws (R, S, D)."""
    low, high = draws.min((0, 1)), draws.max((0, 1))
    return rng.uniform(low, high, (len(draws), draws.shape[-1]))


def blocks(rows: int) -> list[int]:
    """Where each block of rows begins, and the end.

    >>> blocks(100)
    [0, 12, 25, 50, 100]
    """
    return [0] + [rows >> k for k in range(FIRST.bit_length() - 1, -1, -1)]


def predictions(features: Array, theta: Array) -> tuple[Array, np.ndarray]:
    """Theta predicted from features of x, for all rows but those of the first block.

    The mean of a Gaussian process with the kernel k(x, x') = x.x' / C + exp(-|x - x'|^2 / 2 h^2), where h is the
    median distance.

    Args:
        features: (R, C), of x, of order one; rows in an order that says nothing of them.
        theta: (R, D).

    Returns:
        predictions (R', D), and the numbers (R',) of their rows.

    """
    edges, found = blocks(len(theta)), []
    kernel = _kernel(features)
    for first, last in pairwise(edges[1:]):
        known, mean = kernel[:first, :first], theta[:first].mean(0)
        spread = theta[:first].std(0) + TINY
        weights = scipy.linalg.solve(known + NOISE * np.eye(first), (theta[:first] - mean) / spread, assume_a="pos")
        found.append(mean + spread * (kernel[first:last, :first] @ weights))
    return np.concatenate(found), np.arange(edges[1], edges[-1])


def _kernel(features: Array) -> Array:
    square = scipy.spatial.distance.squareform(scipy.spatial.distance.pdist(features, "sqeuclidean"))
    return features @ features.T / features.shape[1] + np.exp(-0.5 * square / (np.median(square) + TINY))


def features(x: Array) -> Array:
    """Numbers of x (R, C) made comparable: (x - median) / median modulus of that, and the arcsinh of it.

    A column that is the same in half of the rows is scaled by its sd, and left out where it never varies; where none
    does, a column of zeros tells nothing.
    """
    x = x[:, np.ptp(x, axis=0) > 0].astype(np.float64)
    if not x.shape[1]:
        return np.zeros((len(x), 1))
    centred = x - np.median(x, axis=0)
    width = np.median(np.abs(centred), axis=0)
    return np.arcsinh(centred / np.where(width > 0, width, centred.std(0)))
