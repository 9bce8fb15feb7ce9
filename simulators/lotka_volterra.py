r"""Lotka-Volterra: prey u and predators v, seen ten times with noise; a posterior 1 % as wide as its prior.

Lotka 1920, as fixed by sbibm (Lueckmann et al. 2021, arXiv:2101.04653): ln alpha, ln gamma ~ N(-0.125, 0.5^2),
ln beta, ln delta ~ N(-3, 0.5^2), and with u(0) = 30, v(0) = 1, at the times 0, 2.1, ..., 18.9,

.. math::
    \dot u = \alpha u - \beta u v, \quad \dot v = -\gamma v + \delta u v, \quad
    \ln x \sim N\big(\ln \mathrm{clip}(u, 10^{-10}, 10^4), 0.1^2\big) \text{, and so for } v ,

x being ten numbers of prey, then ten of predators. Along a trajectory H = (delta u - gamma ln u) + (beta v -
alpha ln v) is constant. Each bracket is measured from its least value, at u = gamma / delta and v = alpha / beta;
so beta v / alpha = y is at most the larger root of y - 1 - ln y = (H - min H) / alpha =: e, which lies below
1 + sqrt(2 e) + e (Chatzigeorgiou 2013, arXiv:1601.04895), and delta u / gamma likewise: bounds on the rates.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from sbi_dgm.distributions import LogNormal
from sbi_dgm.importance import posterior_draws
from sbi_dgm.parameters import Observable, Parameter
from sbi_dgm.priors import Prior
from sbi_dgm.univariate import LOG_ROOT_2PI
from simulators.dynamics import trajectories
from simulators.published import Published

START, INTERVAL, TIMES, NOISE = np.array([30.0, 1.0]), 2.1, 10, 0.1
LOG_CLIP = np.log([1e-10, 1e4])
STEPS, ROUGH_STEPS = 105, 21  # of 0.02 and of 0.1 between two times


class LotkaVolterra(Published):
    """The task "lotka_volterra"."""

    name = "lotka_volterra"
    version = "1"

    def __init__(self) -> None:
        quick, slow = LogNormal(-0.125, 0.5), LogNormal(-3.0, 0.5)
        priors = {"alpha": quick, "beta": slow, "gamma": quick, "delta": slow}
        self.prior = Prior([Parameter(name, prior, rf"\{name}") for name, prior in priors.items()])
        self.observables = {"x": Observable((2 * TIMES,))}

    def __call__(self, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        mean = log_populations(theta)
        return np.exp(mean + NOISE * rng.standard_normal(mean.shape))

    def log_likelihood(self, theta: np.ndarray, x: np.ndarray, steps: int = STEPS) -> np.ndarray:
        """ln p(x | theta): (..., 4), (20,) -> (...); -inf where a number of x is not positive."""
        theta, x = np.asarray(theta, float), np.asarray(x, float)
        if not (x > 0).all():
            return np.full(theta.shape[:-1], -np.inf)
        residual = (np.log(x) - log_populations(theta.reshape(-1, 4), steps)) / NOISE
        constant = np.log(x).sum() + len(x) * (LOG_ROOT_2PI + np.log(NOISE))
        return (-0.5 * (residual**2).sum(-1) - constant).reshape(theta.shape[:-1])

    def reference_posterior(self, x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draws (n, 4) for any x, by importance resampling; long steps lead there, short ones make the weights."""
        rough = partial(self.log_likelihood, steps=ROUGH_STEPS)
        return posterior_draws(self.log_likelihood, self.prior, x, n, rng, rough=rough)[0]


def log_populations(theta: np.ndarray, steps: int = STEPS) -> np.ndarray:
    """Logarithms (B, 20) of the clipped populations, ten of prey, then ten of predators, for theta (B, 4).

    Args:
        theta: alpha, beta, gamma, delta.
        steps: the fewest steps between two times. 105 give errors below 1e-5 under the prior; fewer are quicker,
            and their errors grow as the fourth power of the step.

    """
    y = trajectories(
        _field,
        theta,
        np.log(START),
        interval=INTERVAL,
        saves=TIMES,
        steps=steps,
        rate=_fastest(theta),
        reach=0.1 * STEPS / steps,
    )
    return np.clip(np.moveaxis(y, 1, 2).reshape(len(theta), 2 * TIMES), *LOG_CLIP)


def _field(theta: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """d(ln u, ln v)/dt = (alpha - beta v, -gamma + delta u), (2, b), for theta (4, b)."""
    alpha, beta, gamma, delta = theta
    own, others = np.stack([alpha, -gamma]), np.stack([-beta, delta])
    return lambda y: own + others * np.exp(y[::-1])


def _fastest(theta: np.ndarray) -> np.ndarray:
    """A bound (B,) on beta v and delta u along each trajectory."""
    alpha, beta, gamma, delta = theta.T
    prey, predators = delta * START[0] / gamma, beta * START[1] / alpha
    excess = gamma * (prey - 1 - np.log(prey)) + alpha * (predators - 1 - np.log(predators))
    return np.max([rate + np.sqrt(2 * rate * excess) + excess for rate in (alpha, gamma)], axis=0)
