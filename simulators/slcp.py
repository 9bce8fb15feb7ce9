r"""Simple likelihood, complex posterior: four points of a 2-D normal whose covariance hides four symmetric modes.

Papamakarios, Sterratt and Murray 2019 (arXiv:1805.07226), as fixed by sbibm (Lueckmann et al. 2021,
arXiv:2101.04653): theta ~ U(-3, 3)^5, x four draws of N(m, S), flattened, with

.. math::
    m = (\theta_1, \theta_2), \quad s_1 = \theta_3^2, \quad s_2 = \theta_4^2, \quad \rho = \tanh \theta_5, \quad
    S = \begin{pmatrix} s_1^2 & \rho s_1 s_2 \\ \rho s_1 s_2 & s_2^2 \end{pmatrix} + 10^{-6} I .
"""

import numpy as np
from scipy.special import log_ndtr, ndtri_exp

from sbi_dgm.distributions import Uniform
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

        But for the prior's box, m given S is N(mean of x, S / 4), and S given x has the likelihood
        |S|^{-3/2} exp(-tr(S^{-1} A) / 2), with A the points' scatter. So (|theta_3|, |theta_4|, theta_5) is drawn
        from a grid of it times the chance that m_1 and that m_2 lie in the box, and moved within the cell; then m_1,
        then m_2 within the box. Weights correct for the cell and for m_2's dependence on m_1; signs are free.
        """
        mean, scatter = _moments(x)
        low, high, cells = np.array([0, 0, -3.0]), np.full(3, 3.0), np.array([240, 240, 160])
        width = (high - low) / cells
        axes = [a + w * (np.arange(c) + 0.5) for a, w, c in zip(low, width, cells, strict=True)]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        on_grid = _log_proposal(grid, mean, scatter)
        p = np.exp(on_grid - on_grid.max())
        cell = rng.choice(len(p), 40 * n, p=p / p.sum())
        shape = grid[cell] + width * rng.uniform(-0.5, 0.5, (len(cell), 3))
        a, b, c = _factor(shape)
        m1, _ = _within_box(mean[0], a / 2, rng)
        m2, chance = _within_box(mean[1] + b / a * (m1 - mean[0]), c / 2, rng)
        at_shape = _log_proposal(shape, mean, scatter) - _log_chance(mean[1], np.hypot(b, c) / 2)
        log_weight = at_shape + chance - on_grid[cell]
        weight = np.exp(log_weight - log_weight.max())
        signs = rng.choice([-1.0, 1.0], (len(cell), 2))
        theta = np.concatenate([np.stack([m1, m2], 1), signs * shape[:, :2], shape[:, 2:]], axis=1)
        return theta[rng.choice(len(theta), n, replace=False, p=weight / weight.sum())]


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    points = x.reshape(POINTS, 2)
    return points.mean(0), (points - points.mean(0)).T @ (points - points.mean(0))


def _log_proposal(shape: np.ndarray, mean: np.ndarray, scatter: np.ndarray) -> np.ndarray:
    """ln of the likelihood of S (..., 3), m integrated out, times the chances that m_1 and m_2 lie in the box."""
    a, b, c = _factor(shape)
    first, second, third = 1 / a, -b / (a * c), 1 / c  # L^-1 = ((first, 0), (second, third))
    trace = (first**2 + second**2) * scatter[0, 0] + 2 * second * third * scatter[0, 1] + third**2 * scatter[1, 1]
    in_box = _log_chance(mean[0], a / 2) + _log_chance(mean[1], np.hypot(b, c) / 2)
    return -0.5 * trace - (POINTS - 1) * (np.log(a) + np.log(c)) + in_box


def _log_chance(mean: np.ndarray | float, sd: np.ndarray) -> np.ndarray:
    """ln of the probability of [-3, 3] under N(mean, sd^2); by symmetry in the lower tail, where it is exact."""
    near, far = log_ndtr((3 - np.abs(mean)) / sd), log_ndtr((-3 - np.abs(mean)) / sd)
    return near + np.log1p(-np.exp(far - near))


def _within_box(mean: np.ndarray | float, sd: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws of N(mean, sd^2) in [-3, 3], and ln of its probability."""
    near, chance = (3 - np.abs(mean)) / sd, _log_chance(mean, sd)
    log_u = np.logaddexp(log_ndtr((-3 - np.abs(mean)) / sd), chance + np.log(rng.random(len(sd))))
    return np.where(mean < 0, -1, 1) * (np.abs(mean) + sd * np.minimum(ndtri_exp(log_u), near)), chance


def _factor(shape: np.ndarray) -> list[np.ndarray]:
    """S = L L^T with L = ((a, 0), (b, c)), each (...), for (theta_3, theta_4, theta_5)."""
    return [part[..., 0] for part in _cholesky(np.concatenate([np.zeros((*shape.shape[:-1], 2)), shape], axis=-1))]


def _cholesky(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """S = L L^T with L = ((a, 0), (b, c)), each (..., 1)."""
    s1, s2, rho = theta[..., 2:3] ** 2, theta[..., 3:4] ** 2, np.tanh(theta[..., 4:5])
    a = np.sqrt(s1**2 + JITTER)
    b = rho * s1 * s2 / a
    return a, b, np.sqrt(s2**2 + JITTER - b**2)
