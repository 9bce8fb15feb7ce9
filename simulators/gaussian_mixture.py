r"""A wide and a narrow normal around one mean.

Sisson, Fan and Tanaka 2007 (doi:10.1073/pnas.0607208104), in two dimensions as fixed by sbibm (Lueckmann et al. 2021,
arXiv:2101.04653): theta ~ U(-10, 10)^2, and with s = (1, 0.1)

.. math::
    x \,|\, \theta \sim \tfrac12 N(\theta, s_1^2 I) + \tfrac12 N(\theta, s_2^2 I) .

The posterior is the same mixture around x, cut to the box:

.. math::
    p(\theta | x) = \sum_k w_k \prod_i \frac{N(\theta_i; x_i, s_k^2)}{Z_{ki}}, \qquad
    Z_{ki} = \int_{-10}^{10} N(t; x_i, s_k^2)\, dt, \qquad w_k \propto Z_{k1} Z_{k2} .
"""

import numpy as np
from scipy.special import logsumexp

from sbi_dgm.distributions import Uniform
from sbi_dgm.parameters import Observable, Parameter
from sbi_dgm.priors import Prior
from simulators.published import Published
from simulators.truncated import check_reach, log_mass, within

SD, EDGE = np.array([1.0, 0.1]), 10.0


class GaussianMixture(Published):
    """The task "gaussian_mixture"."""

    name = "gaussian_mixture"
    version = "1"

    def __init__(self) -> None:
        self.prior = Prior([Parameter(f"theta_{i}", Uniform(-EDGE, EDGE), rf"\theta_{i}") for i in (1, 2)])
        self.observables = {"x": Observable((2,))}

    def __call__(self, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return theta + rng.choice(SD, (len(theta), 1)) * rng.standard_normal(theta.shape)

    def log_likelihood(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """ln p(x | theta): (..., 2), (2,) -> (...)."""
        squared = ((x - theta) ** 2).sum(-1)
        return np.logaddexp(*(-0.5 * squared / s**2 - np.log(4 * np.pi * s**2) for s in SD))

    def posterior_log_prob(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """ln p(theta | x): (..., 2), (2,) -> (...); -inf outside the box."""
        inside = (np.abs(theta) <= EDGE).all(-1)
        return np.where(inside, self.log_likelihood(theta, x) - logsumexp(_log_shares(x) - np.log(2)), -np.inf)

    def reference_posterior(self, x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        """n exact draws (n, 2) for any x within a million narrow standard deviations of the box."""
        x = check_reach(x, SD.min(), EDGE)
        log_share = _log_shares(x)
        sd = rng.choice(SD, (n, 1), p=np.exp(log_share - logsumexp(log_share)))
        return within(x, sd, -EDGE, EDGE, rng)


def _log_shares(x: np.ndarray) -> np.ndarray:
    """ln of the mass in the box of either component around x (2,), each (2,) -> (2,)."""
    return log_mass(x, SD[:, None], -EDGE, EDGE).sum(-1)
