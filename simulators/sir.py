r"""An epidemic among a million: susceptible, infected, recovered; a thousand people tested on ten days.

Kermack and McKendrick 1927, as fixed by sbibm (Lueckmann et al. 2021, arXiv:2101.04653): ln beta ~ N(ln 0.4, 0.5^2),
ln gamma ~ N(ln 0.125, 0.2^2), N = 10^6, (S, I, R) = (N - 1, 1, 0) at time 0, and on the days 0, 17, ..., 153,

.. math::
    \dot S = -\beta S I / N, \quad \dot I = \beta S I / N - \gamma I, \quad \dot R = \gamma I, \qquad
    x \sim \mathrm{Binomial}(1000, I / N) .

R follows from the others. All rates of ln S and ln I are below beta + gamma.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
from scipy.special import gammaln, xlog1py, xlogy

from sbi_dgm.distributions import LogNormal
from sbi_dgm.importance import posterior_draws
from sbi_dgm.parameters import Observable, Parameter
from sbi_dgm.priors import Prior
from simulators.dynamics import trajectories
from simulators.published import Published

POPULATION, TESTED, INTERVAL, TIMES = 1e6, 1000, 17.0, 10
STEPS, ROUGH_STEPS = 68, 17  # of 0.25 and of 1 day between two times


class SIR(Published):
    """The task "sir"."""

    name = "sir"
    version = "1"

    def __init__(self) -> None:
        priors = {"beta": LogNormal(np.log(0.4), 0.5), "gamma": LogNormal(np.log(0.125), 0.2)}
        self.prior = Prior([Parameter(name, prior, rf"\{name}", "1/day") for name, prior in priors.items()])
        self.observables = {"x": Observable((TIMES,))}

    def __call__(self, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return rng.binomial(TESTED, infected(theta)).astype(float)

    def log_likelihood(self, theta: np.ndarray, x: np.ndarray, steps: int = STEPS) -> np.ndarray:
        """ln p(x | theta): (..., 2), (10,) -> (...); -inf where a number of x is none of 0, ..., 1000."""
        theta, x = np.asarray(theta, float), np.asarray(x, float)
        if not ((x >= 0) & (x <= TESTED) & (x == np.round(x))).all():
            return np.full(theta.shape[:-1], -np.inf)
        share = infected(theta.reshape(-1, 2), steps)
        ways = gammaln(TESTED + 1) - gammaln(x + 1) - gammaln(TESTED - x + 1)
        return (ways + xlogy(x, share) + xlog1py(TESTED - x, -share)).sum(-1).reshape(theta.shape[:-1])

    def reference_posterior(self, x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draws (n, 2) for any x, by importance resampling; long steps lead there, short ones make the weights."""
        rough = partial(self.log_likelihood, steps=ROUGH_STEPS)
        return posterior_draws(self.log_likelihood, self.prior, x, n, rng, rough=rough)[0]


def infected(theta: np.ndarray, steps: int = STEPS) -> np.ndarray:
    """I / N (B, 10) on the ten days for theta (B, 2), beta and gamma per day.

    Args:
        theta: beta and gamma.
        steps: the fewest steps between two times; 68 give errors below 1e-6 under the prior.

    """
    y = trajectories(
        _field,
        theta,
        np.log([1 - 1 / POPULATION, 1 / POPULATION]),
        interval=INTERVAL,
        saves=TIMES,
        steps=steps,
        rate=theta.sum(-1),
        reach=0.25 * STEPS / steps,
    )
    return np.exp(np.minimum(y[..., 1], 0))


def _field(theta: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """d(ln S/N, ln I/N)/dt = (-beta I / N, -gamma + beta S / N), (2, b), for theta (2, b)."""
    beta, gamma = theta
    own, others = np.stack([0 * gamma, -gamma]), np.stack([-beta, beta])
    return lambda y: own + others * np.exp(y[::-1])
