r"""Gaussian with linear mean in a box: theta ~ U(-1, 1)^10, x | theta ~ N(theta, 0.1 I).

The task "gaussian_linear_uniform" of sbibm (Lueckmann et al. 2021, arXiv:2101.04653). The posterior is N(x, 0.1 I) cut
to the box, dimension by dimension:

.. math::
    p(\theta | x) = \prod_{i=1}^{10} \frac{N(\theta_i; x_i, 0.1)}{\int_{-1}^1 N(t; x_i, 0.1)\, dt},
    \qquad |\theta_i| \le 1 .
"""

import numpy as np

from sbi_dgm.distributions import Uniform
from sbi_dgm.parameters import Observable, Parameter
from sbi_dgm.priors import Prior
from simulators.published import Published
from simulators.truncated import check_reach, log_mass, within

DIMENSION, VARIANCE, EDGE = 10, 0.1, 1.0
SD = VARIANCE**0.5


class GaussianLinearUniform(Published):
    """The task "gaussian_linear_uniform"."""

    name = "gaussian_linear_uniform"
    version = "1"

    def __init__(self) -> None:
        box = Uniform(-EDGE, EDGE)
        self.prior = Prior([Parameter(f"theta_{i}", box, rf"\theta_{{{i}}}") for i in range(1, DIMENSION + 1)])
        self.observables = {"x": Observable((DIMENSION,))}

    def __call__(self, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return theta + rng.normal(0, SD, theta.shape)

    def log_likelihood(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """ln p(x | theta): (..., 10), (10,) -> (...)."""
        return -0.5 * (((x - theta) ** 2).sum(-1) / VARIANCE + DIMENSION * np.log(2 * np.pi * VARIANCE))

    def posterior_log_prob(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """ln p(theta | x): (..., 10), (10,) -> (...); -inf outside the box."""
        inside = (np.abs(theta) <= EDGE).all(-1)
        return np.where(inside, self.log_likelihood(theta, x) - log_mass(x, SD, -EDGE, EDGE).sum(), -np.inf)

    def reference_posterior(self, x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        """n exact draws (n, 10) for any x within a million standard deviations of the box."""
        return within(np.tile(check_reach(x, SD, EDGE), (n, 1)), SD, -EDGE, EDGE, rng)
