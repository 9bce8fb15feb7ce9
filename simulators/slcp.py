r"""Simple likelihood, complex posterior: four points of a 2-D normal whose covariance hides four symmetric modes.

Papamakarios, Sterratt and Murray 2019 (arXiv:1805.07226), as fixed by sbibm (Lueckmann et al. 2021,
arXiv:2101.04653): theta ~ U(-3, 3)^5, x four draws of N(m, S), flattened, with

.. math::
    m = (\theta_1, \theta_2), \quad s_1 = \theta_3^2, \quad s_2 = \theta_4^2, \quad \rho = \tanh \theta_5, \quad
    S = \begin{pmatrix} s_1^2 & \rho s_1 s_2 \\ \rho s_1 s_2 & s_2^2 \end{pmatrix} + 10^{-6} I .
"""

import numpy as np

from sbi_dgm.distributions import Uniform
from sbi_dgm.errors import ObservationError
from sbi_dgm.parameters import Observable, Parameter
from sbi_dgm.priors import Prior

POINTS, JITTER = 4, 1e-6


class SLCP:
    """The task "slcp"."""

    name = "slcp"
    version = "1"

    def __init__(self) -> None:
        self.prior = Prior([Parameter(f"theta_{i}", Uniform(-3, 3), rf"\theta_{i}") for i in range(1, 6)])
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
        """Draws (n, 5), exact in the limit of many proposals (40 for each draw), for any x.

        Without the box of the prior, m given S is N(mean of x, S / 4), and S given x has the likelihood
        |S|^{-3/2} exp(-tr(S^{-1} A) / 2), with A the points' scatter. So (|theta_3|, |theta_4|, theta_5) is drawn
        from a grid of it, moved within the cell, corrected for that by its weight, and given signs; m outside the box is lost.
        """
        points = x.reshape(POINTS, 2)
        scatter = (points - points.mean(0)).T @ (points - points.mean(0))
        cells = np.array([240, 240, 160])
        low, width = np.array([0, 0, -3.0]), np.array([3, 3, 6]) / cells
        axes = [a + w * (np.arange(c) + 0.5) for a, w, c in zip(low, width, cells, strict=True)]
        centre = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        on_grid = _log_marginal(centre, scatter)
        p = np.exp(on_grid - on_grid.max())
        cell = rng.choice(len(p), 40 * n, p=p / p.sum())
        shape = centre[cell] + width * rng.uniform(-0.5, 0.5, (len(cell), 3))
        log_weight = _log_marginal(shape, scatter) - on_grid[cell]
        shape[:, :2] *= rng.choice([-1.0, 1.0], (len(cell), 2))
        a, b, c = _cholesky(np.concatenate([np.zeros((len(cell), 2)), shape], axis=1))
        first, second = rng.standard_normal((2, len(cell), 1)) / np.sqrt(POINTS)
        theta = np.concatenate([points.mean(0) + np.concatenate([a * first, b * first + c * second], 1), shape], axis=1)
        weight = np.where((np.abs(theta) <= 3).all(1), np.exp(log_weight - log_weight.max()), 0.0)
        if np.count_nonzero(weight) < n:
            raise ObservationError(f"x = {x} is (nearly) impossible under the prior: its mean lies outside the box.")
        return theta[rng.choice(len(theta), n, replace=False, p=weight / weight.sum())]


def _log_marginal(shape: np.ndarray, scatter: np.ndarray) -> np.ndarray:
    """ln of the likelihood of S (..., 3), with m integrated out of it."""
    a, b, c = (part[:, 0] for part in _cholesky(np.concatenate([np.zeros((len(shape), 2)), shape], axis=1)))
    first, second = 1 / a, -b / (a * c)  # rows of L^-1: (first, 0), (second, 1 / c)
    trace = first**2 * scatter[0, 0] + second**2 * scatter[0, 0] + 2 * second / c * scatter[0, 1] + scatter[1, 1] / c**2
    return -0.5 * trace - (POINTS - 1) * (np.log(a) + np.log(c))


def _cholesky(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """S = L L^T with L = ((a, 0), (b, c)), each (..., 1)."""
    s1, s2, rho = theta[..., 2:3] ** 2, theta[..., 3:4] ** 2, np.tanh(theta[..., 4:5])
    a = np.sqrt(s1**2 + JITTER)
    b = rho * s1 * s2 / a
    return a, b, np.sqrt(s2**2 + JITTER - b**2)
