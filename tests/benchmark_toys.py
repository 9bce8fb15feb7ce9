"""Tasks and methods of a benchmark whose scores are known: the exact posterior, one too narrow, and some that fail."""

import os
import time

import numpy as np
from scipy import stats

from sbi_dgm.distributions import Normal
from sbi_dgm.parameters import Observable, Parameter
from sbi_dgm.priors import Prior


class Line:
    """theta ~ N(0, 1), x = theta + N(0, 1): the posterior is N(x / 2, 1 / 2)."""

    name = "line"
    version = "1"

    def __init__(self) -> None:
        self.prior = Prior([Parameter("theta", Normal(0, 1))])
        self.observables = {"x": Observable((1,))}

    def __call__(self, theta, rng):
        return theta + rng.normal(size=theta.shape)

    def reference_posterior(self, x, n, rng):
        return x / 2 + 0.5**0.5 * rng.normal(size=(n, 1))

    def posterior_log_prob(self, theta, x):
        return stats.norm(x[0] / 2, 0.5**0.5).logpdf(theta[..., 0])


class Pair(Line):
    """The same with x in two observables, each half of the information."""

    name = "pair"

    def __init__(self) -> None:
        super().__init__()
        self.observables = {"left": Observable(()), "right": Observable((1,))}

    def __call__(self, theta, rng):
        left, right = (theta + 2**0.5 * rng.normal(size=theta.shape) for _ in range(2))
        return {"left": left[:, 0], "right": right}

    def reference_posterior(self, x, n, rng):
        return super().reference_posterior((x["left"] + x["right"]) / 2, n, rng)

    def posterior_log_prob(self, theta, x):
        return super().posterior_log_prob(theta, (x["left"] + x["right"]) / 2)


class Broken(Line):
    """A task whose reference gives too few draws."""

    name = "broken"

    def reference_posterior(self, x, n, rng):
        return super().reference_posterior(x, n - 1, rng)


class Scaled:
    """Draws of the exact posterior, its width multiplied, its mean shifted by some standard deviations."""

    def __init__(self, task, width: float, shift: float = 0.0) -> None:
        self.task, self.width, self.shift = task, width, shift

    def _mean(self, x):
        return ((x["left"] + x["right"]) / 2 if isinstance(x, dict) else x) / 2

    def sample(self, n, x, seed):
        mean = self._mean(x)
        away = self.task.reference_posterior(x, n, np.random.default_rng(1000 + seed)) - mean
        return mean + self.width * away + self.shift * 0.5**0.5

    def log_prob(self, theta, x):
        scale = 0.5**0.5
        return stats.norm(self._mean(x)[0] + self.shift * scale, self.width * scale).logpdf(theta[..., 0])


def exact(theta, x, *, task):
    """A method that knows the answer."""
    return Scaled(task, 1.0)


def narrow(theta, x, *, task):
    """One that is half as wide."""
    return Scaled(task, 0.5)


def shifted(theta, x, *, task):
    """One that is a standard deviation off."""
    return Scaled(task, 1.0, 1.0)


def slow(theta, x, *, task):
    """The exact posterior after half a second."""
    time.sleep(0.5)
    return exact(theta, x, task=task)


def crashes(theta, x):
    """A method with a mistake."""
    raise ValueError(f"no posterior from {len(theta)} simulations")


def dies(theta, x):
    """A method that takes its process along."""
    os._exit(7)


class Silent:
    """A posterior that only draws."""

    def sample(self, n, x):
        return x / 2 + 0.5**0.5 * np.random.default_rng(0).normal(size=(n, 1))


def silent(theta, x):
    """A method without a density."""
    return Silent()
