r"""Two moons: a 2-D posterior of two crescents, each ten times longer than wide.

Greenberg, Nonnenmacher and Macke 2019 (arXiv:1905.07488), as fixed by sbibm (Lueckmann et al. 2021,
arXiv:2101.04653): theta ~ U(-1, 1)^2, a ~ U(-pi/2, pi/2), r ~ N(0.1, 0.01^2), and

.. math::
    x = (r \cos a + 0.25,\ r \sin a) + \big(-|\theta_1 + \theta_2|,\ -\theta_1 + \theta_2\big) / \sqrt 2 .
"""

import numpy as np
from scipy.special import ndtr

from sbi_dgm.distributions import Uniform
from sbi_dgm.errors import ObservationError
from sbi_dgm.parameters import Observable, Parameter
from sbi_dgm.priors import Prior
from simulators.published import Published

RADIUS, SPREAD, SHIFT = 0.1, 0.01, 0.25
ANGLES = 20_000  # midpoints of the evidence's integral over the half circle


class TwoMoons(Published):
    """The task "two_moons"."""

    name = "two_moons"
    version = "1"

    def __init__(self) -> None:
        self.prior = Prior([Parameter(f"theta_{i}", Uniform(-1, 1), rf"\theta_{i}") for i in (1, 2)])
        self.observables = {"x": Observable((2,))}

    def __call__(self, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return _crescent(len(theta), rng) + _place(theta)

    def log_likelihood(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """ln p(x | theta): (..., 2), (2,) -> (...); the density of a point at radius r is N(r) / (pi r)."""
        p = x - _place(theta) - [SHIFT, 0]
        r = np.hypot(p[..., 0], p[..., 1])
        with np.errstate(divide="ignore"):
            radial = -0.5 * ((r - RADIUS) / SPREAD) ** 2 - np.log(SPREAD * np.sqrt(2 * np.pi)) - np.log(np.pi * r)
        return np.where(p[..., 0] > 0, radial, -np.inf)

    def posterior_log_prob(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """ln p(theta | x): (..., 2), (2,) -> (...); -inf outside the box."""
        inside = (np.abs(theta) <= 1).all(-1)
        if (share := _share(x)) < 1e-3:
            raise ObservationError(f"x = {x} is (nearly) impossible under the prior: {share:.1e} of crescents fit.")
        return np.where(inside, self.log_likelihood(theta, x) - np.log(2 * share), -np.inf)

    def reference_posterior(self, x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        """Exact draws (n, 2) for any x: the crescent turned back, either sign of theta_1 + theta_2, cut to the box."""
        kept, count, size = [], 0, max(n, 10_000)
        for _ in range(1000):
            q = (x - _crescent(size, rng)) * np.sqrt(2)  # (-|theta_1 + theta_2|, -theta_1 + theta_2)
            total = -q[:, 0] * rng.choice([-1.0, 1.0], size)
            theta = np.stack([total - q[:, 1], total + q[:, 1]], axis=1) / 2
            kept.append(theta[(q[:, 0] <= 0) & (np.abs(theta) <= 1).all(1)])
            count += len(kept[-1])
            if count >= n:
                return np.concatenate(kept)[:n]
        raise ObservationError(
            f"x = {x} is (nearly) impossible under the prior: {count} of {1000 * size} proposals hold."
        )


def _crescent(n: int, rng: np.random.Generator) -> np.ndarray:
    angle, radius = rng.uniform(-np.pi / 2, np.pi / 2, n), rng.normal(RADIUS, SPREAD, n)
    return np.stack([radius * np.cos(angle) + SHIFT, radius * np.sin(angle)], axis=1)


def _share(x: np.ndarray) -> float:
    r"""The share of crescents that leave a theta in the box: half the integral of p(x | theta) over it.

    x - p = (a, b) needs a <= 0 and |a| + |b| <= \sqrt 2, which for each angle is an interval of the radius.
    """
    angle = (np.arange(ANGLES) + 0.5) / ANGLES * np.pi - np.pi / 2
    cos, sin = np.cos(angle), np.sin(angle)
    first, second = x[0] - SHIFT, x[1]
    bound = np.array([[-first], [np.sqrt(2) + first - second], [np.sqrt(2) + first + second]])
    slope = np.stack([-cos, cos - sin, cos + sin])  # slope * r <= bound
    at = (bound / slope - RADIUS) / SPREAD
    high = np.where(slope > 0, at, np.inf).min(0)
    low = np.where(slope < 0, at, -np.inf).max(0)
    return float(np.maximum(ndtr(high) - ndtr(low), 0).mean())


def _place(theta: np.ndarray) -> np.ndarray:
    first, second = theta[..., 0], theta[..., 1]
    return np.stack([-np.abs(first + second), second - first], axis=-1) / np.sqrt(2)
