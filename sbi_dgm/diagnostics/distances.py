r"""Distances between draws p of the exact posterior and draws q of the judged one, and numbers like them.

All take and return NumPy arrays; `reference` are draws of p and `draws` are draws of q, both (S, D), for one
observation. Those in units of the reference divide each parameter by the standard deviation of its reference draws.
"""

from collections.abc import Iterator

import numpy as np

from sbi_dgm.diagnostics.c2st import comparable, standardised
from sbi_dgm.errors import DataError
from sbi_dgm.univariate import Array

BLOCK = 500  # rows of a matrix of distances that are in memory at once
BINS = 4096


def mmd(reference: Array, draws: Array) -> float:
    r"""Squared maximum mean discrepancy, the unbiased estimate (Gretton et al. 2012, JMLR 13, eq. 3); it may be < 0.

    .. math::
        \frac{1}{S (S - 1)} \sum_{i \ne j} \big[k(p_i, p_j) + k(q_i, q_j)\big] - \frac{2}{S^2} \sum_{ij} k(p_i, q_j),
        \qquad k(a, b) = \exp\Big(-\frac{|a - b|^2}{2 s^2}\Big),

    with s the median distance between two reference draws, and parameters as they are: sbibm's (Lueckmann et al. 2021,
    arXiv:2101.04653). The time is that of 3 S^2 kernels, the memory that of 1,000 S numbers.
    """
    reference, draws = comparable(reference, draws)
    count, centre = len(reference), reference.mean(0)
    if count < 2:
        raise DataError("one draw in each set: the unbiased estimate needs two.")
    p, q = reference - centre, draws - centre
    scale = -0.5 / _median_square(p)
    inner, outer = (sum(float(np.exp(scale * d).sum()) for d in _squares(a, a)) - count for a in (p, q))
    between = sum(float(np.exp(scale * d).sum()) for d in _squares(p, q))
    return (inner + outer) / (count * (count - 1)) - 2 * between / count**2


def _squares(a: Array, b: Array) -> Iterator[Array]:
    """Squared distances between the rows of a and of b, a block of a's rows at a time."""
    for i in range(0, len(a), BLOCK):
        part = a[i : i + BLOCK]
        squares = (part**2).sum(1)[:, None] + (b**2).sum(1) - 2 * part @ b.T
        if a is b:
            squares[np.arange(len(part)), i + np.arange(len(part))] = 0
        yield np.maximum(squares, 0, out=squares)


def _median_square(a: Array) -> float:
    """The median squared distance between two rows, to 1e-10 of the largest: three histograms, each of one bin."""
    low, high = 0.0, float(4 * (a**2).sum(1).max())
    if high == 0:
        raise DataError("all draws of the reference are equal: they set no scale.")
    target = len(a) + len(a) * (len(a) - 1) / 2  # each pair counts twice, and the diagonal comes first
    for _ in range(3):
        edges = np.linspace(low, high, BINS + 1)
        edges[0], below, counts = low, 0, np.zeros(BINS)
        for squares in _squares(a, a):
            below += np.count_nonzero(squares < low)
            counts += np.histogram(squares, edges)[0]
        k = min(int(np.searchsorted(below + np.cumsum(counts), target)), BINS - 1)
        low, high = float(edges[k]), float(edges[k + 1])
    return (low + high) / 2


def sliced_wasserstein(reference: Array, draws: Array, *, rng: np.random.Generator, projections: int = 100) -> float:
    r"""Mean Wasserstein distance of order 1 between projections, in units of the reference (Bonneel et al. 2015).

    .. math::
        \Big\langle \frac{1}{S} \sum_i \big|(w^T p)_{(i)} - (w^T q)_{(i)}\big| \Big\rangle_w,

    averaged over directions w uniform on the unit sphere, with (i) the i-th smallest. Two sets of the same
    normal distribution have some 1.8 / sqrt(S).

    Args:
        reference: (S, D).
        draws: (S, D), as many.
        rng: of the directions.
        projections: their number.

    """
    p, q = np.split(standardised(reference, draws), 2)
    w = rng.normal(size=(p.shape[1], projections))
    w /= np.linalg.norm(w, axis=0)
    return float(np.abs(np.sort(p @ w, axis=0) - np.sort(q @ w, axis=0)).mean())


def mean_error(reference: Array, draws: Array) -> float:
    """Root mean square, over parameters, of the error of the mean in units of the reference: (S, D), (S, D).

    sbibm's `posterior_mean_error` averages signed errors, which may cancel; this one does not.

    >>> round(mean_error(np.array([[-1.0, 0.0], [1.0, 2.0]]), np.array([[0.0, -1.0], [2.0, 1.0]])), 6)
    1.0
    """
    _, q = np.split(standardised(reference, draws), 2)
    return float(np.sqrt((q.mean(0) ** 2).mean()))


def variance_ratio(reference: Array, draws: Array) -> Array:
    """Variance of the draws over that of the reference, for each parameter: (S, D), (S, D) -> (D,).

    >>> variance_ratio(np.array([[-1.0], [1.0]]), np.array([[4.0], [8.0]])).tolist()
    [4.0]
    """
    _, q = np.split(standardised(reference, draws), 2)
    return q.var(0)


def kl_divergence(log_p: Array, log_q: Array) -> tuple[float, float]:
    """KL(p || q), the mean of ln p - ln q over draws of p, and its standard error; infinite where q excludes a draw.

    Args:
        log_p: ln p at draws of p (S,), normalised.
        log_q: ln q at the same draws (S,).

    >>> kl_divergence(np.array([-1.0, -1.0]), np.array([-1.5, -2.5]))
    (1.0, 0.5)
    """
    log_p, log_q = np.asarray(log_p, float), np.asarray(log_q, float)
    if log_p.shape != log_q.shape or log_p.ndim != 1 or len(log_p) < 2:
        raise DataError(f"two densities at the same two or more draws are needed; got {log_p.shape} and {log_q.shape}.")
    if not np.isfinite(log_p).all() or np.isnan(log_q).any() or (log_q == np.inf).any():
        raise DataError("ln p is not finite at a draw of p, or ln q is no density there.")
    if (log_q == -np.inf).any():
        return np.inf, np.inf
    difference = log_p - log_q
    return float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference)))


def predictive_distance(simulated: Array, observed: Array) -> float:
    """Median Euclidean distance of simulations at draws of the posterior (S, ...) from the observation (...): sbibm's.

    >>> predictive_distance(np.array([[3.0, 4.0], [0.0, 1.0], [0.0, 2.0]]), np.zeros(2))
    2.0
    """
    simulated, observed = np.asarray(simulated, float), np.asarray(observed, float)
    if simulated.shape[1:] != observed.shape or simulated.size == 0:
        raise DataError(f"simulations of shape (S, *{observed.shape}) are needed; got {simulated.shape}.")
    if not (np.isfinite(simulated).all() and np.isfinite(observed).all()):
        raise DataError("simulations or an observation that are not finite have no distance.")
    gap = (simulated - observed).reshape(len(simulated), -1)
    return float(np.median(np.linalg.norm(gap, axis=1)))


def effective_draws(draws: Array) -> tuple[int, float]:
    """How many of the draws (S, D) are distinct, and how many equal draws they are worth.

    The second is Kish's effective size (1965), (sum c)^2 / sum c^2 for multiplicities c: S where all are distinct.

    >>> effective_draws(np.array([[1.0], [1.0], [1.0], [2.0]]))
    (2, 1.6)
    """
    _, counts = np.unique(np.asarray(draws), axis=0, return_counts=True)
    return len(counts), float(counts.sum() ** 2 / (counts**2).sum())
