r"""Gaussian with linear mean: theta ~ N(0, 0.1 I), x | theta ~ N(theta, 0.1 I), ten dimensions.

The task "gaussian_linear" of sbibm (Lueckmann et al. 2021, arXiv:2101.04653). Prior and noise have equal
variance, so the posterior is N(x / 2, 0.05 I), exactly.
"""

import numpy as np

from sbi_dgm.distributions import Normal
from sbi_dgm.parameters import Observable, Parameter
from sbi_dgm.priors import Prior
from simulators.published import Published

DIMENSION, VARIANCE = 10, 0.1


class GaussianLinear(Published):
    """The task "gaussian_linear"."""

    name = "gaussian_linear"
    version = "1"

    def __init__(self) -> None:
        prior = Normal(0.0, VARIANCE**0.5)
        self.prior = Prior([Parameter(f"theta_{i}", prior, rf"\theta_{{{i}}}") for i in range(1, DIMENSION + 1)])
        self.observables = {"x": Observable((DIMENSION,))}

    def __call__(self, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return theta + rng.normal(0, VARIANCE**0.5, theta.shape)

    def log_likelihood(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """ln p(x | theta): (..., 10), (10,) -> (...)."""
        return -0.5 * (((x - theta) ** 2).sum(-1) / VARIANCE + DIMENSION * np.log(2 * np.pi * VARIANCE))

    def posterior_log_prob(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """ln p(theta | x): (..., 10), (10,) -> (...)."""
        half = VARIANCE / 2
        return -0.5 * (((theta - x / 2) ** 2).sum(-1) / half + DIMENSION * np.log(2 * np.pi * half))

    def reference_posterior(self, x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        """n exact draws (n, 10) for any x."""
        return np.asarray(x) / 2 + rng.normal(0, (VARIANCE / 2) ** 0.5, (n, DIMENSION))
