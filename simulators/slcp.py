r"""Simple likelihood, complex posterior: four points of a 2-D normal whose covariance hides four symmetric modes.

Papamakarios, Sterratt and Murray 2019 (arXiv:1805.07226), as fixed by sbibm (Lueckmann et al. 2021,
arXiv:2101.04653): theta ~ U(-3, 3)^5, x four draws of N(m, S), flattened, with

.. math::
    m = (\theta_1, \theta_2), \quad s_1 = \theta_3^2, \quad s_2 = \theta_4^2, \quad \rho = \tanh \theta_5, \quad
    S = \begin{pmatrix} s_1^2 & \rho s_1 s_2 \\ \rho s_1 s_2 & s_2^2 \end{pmatrix} + 10^{-6} I .
"""

from collections.abc import Sequence

import numpy as np

from sbi_dgm.distributions import Uniform
from sbi_dgm.errors import ObservationError
from sbi_dgm.parameters import Observable, Parameter
from sbi_dgm.priors import Prior
from simulators.published import Published
from simulators.truncated import log_mass, within

POINTS, JITTER, EDGE = 4, 1e-6, 3.0
COARSE, ZOOMS, FINE = (60, 60, 40), 6, (160, 160, 100)  # cells of the reference's grids
LEAST, ROUNDS = 10, 20  # effective proposals for each draw; times that 40 for each are tried


class SLCP(Published):
    """The task "slcp"."""

    name = "slcp"
    version = "1"

    def __init__(self) -> None:
        self.prior = Prior([Parameter(f"theta_{i}", Uniform(-EDGE, EDGE), rf"\theta_{i}") for i in range(1, 6)])
        self.observables = {"x": Observable((2 * POINTS,))}

    def __call__(self, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        a, b, c = _cholesky(theta)
        first, second = np.moveaxis(rng.standard_normal((len(theta), POINTS, 2)), -1, 0)
        x = np.stack([theta[:, :1] + a * first, theta[:, 1:2] + b * first + c * second], axis=-1)
        return x.reshape(len(theta), 2 * POINTS)

    def log_likelihood(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """ln p(x | theta): (..., 5), (8,) -> (...)."""
        a, b, c = _cholesky(theta)
        first = (x[0::2] - theta[..., :1]) / a
        second = (x[1::2] - theta[..., 1:2] - b * first) / c
        normal = -0.5 * (first**2 + second**2) - np.log(2 * np.pi) - np.log(a) - np.log(c)
        return normal.sum(-1)

    def reference_posterior(self, x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draws (n, 5), exact in the limit of many proposals (40 for each draw, or enough to count as 10), for any x.

        But for the prior's box, m given S is N(mean of x, S / 4), and S given x has the likelihood
        |S|^{-3/2} exp(-tr(S^{-1} A) / 2), with A the points' scatter. So (|theta_3|, |theta_4|, theta_5) is drawn
        from a grid of it times the chance that m_1 and that m_2 lie in the box, and moved within the cell; then m_1,
        then m_2 within the box. Weights correct for the cell and for m_2's dependence on m_1; signs are free. The
        dimension whose mean is farther out counts as the first: given that it lies in the box, so does the other.
        """
        x = np.asarray(x, dtype=np.float64)
        if not np.isfinite(x).all():
            raise ObservationError(f"x = {x} is no observation: {(~np.isfinite(x)).sum()} numbers are not finite.")
        order = np.argsort(-np.abs(_moments(x)[0]))
        mean, scatter = _moments(x.reshape(POINTS, 2)[:, order])
        grid, found, effective = _grid(mean, scatter), [], 0.0
        for _ in range(ROUNDS):
            found.append(_proposals(grid, mean, scatter, 40 * n, rng))
            theta, log_weight = map(np.concatenate, zip(*found, strict=True))
            weight = np.exp(log_weight - log_weight.max())
            effective = weight.sum() ** 2 / (weight**2).sum()
            if effective >= LEAST * n:
                chosen = theta[rng.choice(len(theta), n, replace=False, p=weight / weight.sum())]
                return chosen[:, [*order, *(2 + order), 4]]
        raise ObservationError(
            f"x = {x} is (nearly) impossible under the prior: {40 * ROUNDS * n} proposals count as {effective:.3g},"
            f" and {n} draws need {LEAST * n}."
        )


Grid = tuple[np.ndarray, np.ndarray, np.ndarray]  # its lowest corner and the width of its cells (3,), their logarithms


def _grid(mean: np.ndarray, scatter: np.ndarray) -> Grid:
    """All cells of a coarser grid that weigh more than e^-40 of the heaviest, and those beside them, divided anew."""
    low, high = np.array([0, 0, -EDGE]), np.full(3, EDGE)
    for _ in range(ZOOMS):
        width, on_grid = _weighed(low, high, COARSE, mean, scatter)
        kept = np.argwhere(on_grid > on_grid.max() - 40)
        low, high = np.maximum(low + width * (kept.min(0) - 1), low), np.minimum(low + width * (kept.max(0) + 2), high)
    return low, *_weighed(low, high, FINE, mean, scatter)


def _weighed(
    low: np.ndarray, high: np.ndarray, cells: tuple[int, int, int], mean: np.ndarray, scatter: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The width of a grid's cells, and the logarithms of their weights."""
    width = (high - low) / cells
    axes = [start + w * (np.arange(c) + 0.5) for start, w, c in zip(low, width, cells, strict=True)]
    return width, _log_proposal(np.ix_(*axes), mean, scatter)


def _proposals(
    grid: Grid, mean: np.ndarray, scatter: np.ndarray, n: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draws (n, 5) near the posterior, and the logarithms of their weights."""
    low, width, on_grid = grid
    p = np.exp(on_grid - on_grid.max()).ravel()
    cell = rng.choice(len(p), n, p=p / p.sum())
    shape = low + width * (np.stack(np.unravel_index(cell, on_grid.shape), axis=1) + rng.random((n, 3)))
    a, b, c = _factor(*shape.T)
    m1 = within(mean[0], a / 2, -EDGE, EDGE, rng)
    given = mean[1] + b / a * (m1 - mean[0])
    m2 = within(given, c / 2, -EDGE, EDGE, rng)
    at_shape = _log_proposal(shape.T, mean, scatter) - log_mass(mean[1], np.hypot(b, c) / 2, -EDGE, EDGE)
    signed = rng.choice([-1.0, 1.0], (n, 2)) * shape[:, :2]
    theta = np.concatenate([np.stack([m1, m2], 1), signed, shape[:, 2:]], axis=1)
    return theta, at_shape + log_mass(given, c / 2, -EDGE, EDGE) - on_grid.ravel()[cell]


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    points = x.reshape(POINTS, 2)
    return points.mean(0), (points - points.mean(0)).T @ (points - points.mean(0))


def _log_proposal(shape: Sequence[np.ndarray] | np.ndarray, mean: np.ndarray, scatter: np.ndarray) -> np.ndarray:
    """ln of the likelihood of S, m integrated out, times the chances that m_1 and m_2 lie in the box.

    Args:
        shape: theta_3, theta_4, theta_5; arrays that broadcast.
        mean: of the points.
        scatter: of the points around their mean.

    """
    a, b, c = _factor(*shape)
    first, second, third = 1 / a, -b / (a * c), 1 / c  # L^-1 = ((first, 0), (second, third))
    trace = (first**2 + second**2) * scatter[0, 0] + 2 * second * third * scatter[0, 1] + third**2 * scatter[1, 1]
    sds = a / 2, np.sqrt(shape[1] ** 4 + JITTER) / 2  # of m_1 and m_2 given S
    in_box = sum(log_mass(m, sd, -EDGE, EDGE) for m, sd in zip(mean, sds, strict=True))
    return -0.5 * trace - (POINTS - 1) * (np.log(a) + np.log(c)) + in_box


def _cholesky(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """S = L L^T with L = ((a, 0), (b, c)), each (..., 1)."""
    return _factor(theta[..., 2:3], theta[..., 3:4], theta[..., 4:5])


def _factor(third: np.ndarray, fourth: np.ndarray, fifth: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same a, b, c for theta_3, theta_4, theta_5, arrays that broadcast."""
    s1, s2 = third**2, fourth**2
    a = np.sqrt(s1**2 + JITTER)
    b = np.tanh(fifth) * s1 * s2 / a
    return a, b, np.sqrt(s2**2 + JITTER - b**2)
