r"""A queue with one server: when people leave, but not when they come.

Blum and Francois 2010 (doi:10.1007/s11222-009-9116-0), as fixed by Papamakarios and Murray 2016 (arXiv:1605.06376):
person i comes a time w_i ~ Exp(rate) after the one before, is served for s_i ~ U(low, low + range), and leaves

.. math::
    d_i - d_{i-1} = s_i + \max(0, a_i - d_{i-1}), \qquad a_i = \sum_{j \le i} w_j,

after the one before, with d_0 = 0. Seen are five evenly spaced quantiles of the 50 differences: the least, the
quartiles and the greatest. low and range ~ U(0, 10), rate ~ U(0, 1/3). Their likelihood has no closed form.
"""

import numpy as np

from sbi_dgm.distributions import Uniform
from sbi_dgm.parameters import Observable, Parameter
from sbi_dgm.priors import Prior

PEOPLE, QUANTILES = 50, np.linspace(0, 1, 5)


class MG1:
    """The problem "mg1"."""

    name = "mg1"
    version = "1"

    def __init__(self) -> None:
        self.prior = Prior(
            [
                Parameter("low", Uniform(0, 10)),
                Parameter("range", Uniform(0, 10)),
                Parameter("rate", Uniform(0, 1 / 3), r"\lambda"),
            ]
        )
        self.observables = {"gaps": Observable((len(QUANTILES),))}

    def __call__(self, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        low, width, rate = theta.T[:, :, None]
        service = low + width * rng.random((len(theta), PEOPLE))
        arrival = (rng.standard_exponential((len(theta), PEOPLE)) / np.maximum(rate, 1e-12)).cumsum(1)
        return np.quantile(gaps(service, arrival), QUANTILES, axis=1).T


def gaps(service: np.ndarray, arrival: np.ndarray) -> np.ndarray:
    """Times between departures: of services and arrivals (B, people) -> (B, people)."""
    found, left = np.empty_like(service), np.zeros(len(service))
    for i in range(service.shape[1]):
        found[:, i] = service[:, i] + np.maximum(0, arrival[:, i] - left)
        left = left + found[:, i]
    return found
