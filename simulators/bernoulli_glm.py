r"""A neuron that spikes by a linear filter of white noise: a generalised linear model with a Bernoulli likelihood.

The tasks "bernoulli_glm" and "bernoulli_glm_raw" of sbibm (Lueckmann et al. 2021, arXiv:2101.04653), after
Pillow et al. 2008 and Goncalves et al. 2020: an offset b and a filter f of nine lags, a stimulus I of a hundred
standard normal numbers, fixed for ever, and spikes

.. math::
    y_t \sim \mathrm{Bernoulli}\big(\sigma(b + \textstyle\sum_{k=0}^{8} f_k I_{t-k})\big), \quad
    b \sim N(0, 2), \quad f \sim N\big(0, (F^T F)^{-1}\big), \quad
    F = D^2 + \mathrm{diag}\sqrt{i / 9}, \; i = 0, \dots, 8 ,

with D the first difference: a prior for smooth filters. With rows X_t = (1, I_t, ..., I_{t-8}), zero before the
start, ln p(y | theta) = y^T X theta - sum_t ln(1 + exp (X theta)_t). So X^T y, the number of spikes and their
triggered sums, is sufficient, and both tasks have the same posterior, with a concave logarithm.
"""

import numpy as np
from scipy.special import expit

from sbi_dgm.importance import posterior_draws
from sbi_dgm.parameters import Observable, Parameter
from sbi_dgm.priors import MultivariateNormal
from simulators.published import Published

LAGS, BINS, STIMULUS_SEED = 9, 100, 42


class BernoulliGLMRaw(Published):
    """The task "bernoulli_glm_raw": x is the train of spikes y."""

    name = "bernoulli_glm_raw"
    version = "1"
    size = BINS

    def __init__(self) -> None:
        filters = [Parameter(f"filter_{i}", label=f"f_{i}") for i in range(1, LAGS + 1)]
        parameters = [Parameter("offset", label="b"), *filters]
        self.prior = MultivariateNormal(parameters, np.zeros(LAGS + 1), prior_covariance())
        self.observables = {"x": Observable((self.size,))}
        self.design = design_matrix(np.random.RandomState(STIMULUS_SEED).randn(BINS))

    def __call__(self, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self._spikes(theta, rng)

    def log_likelihood(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """ln p(x | theta): (..., 10), (100,) -> (...)."""
        return self._log_likelihood(theta, self._statistics(x))

    def reference_posterior(self, x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draws (n, 10) for any x, by importance resampling."""
        return posterior_draws(self.log_likelihood, self.prior, x, n, rng)[0]

    def _spikes(self, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return (rng.random((len(theta), BINS)) < expit(theta @ self.design.T)).astype(float)

    def _statistics(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(x, float) @ self.design

    def _log_likelihood(self, theta: np.ndarray, statistics: np.ndarray) -> np.ndarray:
        return theta @ statistics - np.logaddexp(0, theta @ self.design.T).sum(-1)


class BernoulliGLM(BernoulliGLMRaw):
    """The task "bernoulli_glm": x is X^T y, the number of spikes and nine spike-triggered sums of the stimulus."""

    name = "bernoulli_glm"
    size = LAGS + 1

    def __call__(self, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self._statistics(self._spikes(theta, rng))

    def log_likelihood(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """ln p(x | theta) but for the logarithm of the number of spike trains with this x: (..., 10), (10,) -> (...).

        That number does not depend on theta; for the x of a spike train it is almost surely one.
        """
        return self._log_likelihood(theta, np.asarray(x, float))


def design_matrix(stimulus: np.ndarray) -> np.ndarray:
    """X (T, 10): ones, then the stimulus (T,) shifted by 0, ..., 8 bins, with zeros before its start."""
    shifted = [np.concatenate([np.zeros(lag), stimulus[: len(stimulus) - lag]]) for lag in range(LAGS)]
    return np.stack([np.ones(len(stimulus)), *shifted], axis=1)


def prior_covariance() -> np.ndarray:
    """The covariance (10, 10) of offset and filter."""
    difference = np.eye(LAGS) - np.eye(LAGS, k=-1)
    smooth = difference @ difference + np.diag(np.sqrt(np.arange(LAGS) / LAGS))
    covariance = np.zeros((LAGS + 1, LAGS + 1))
    covariance[0, 0], covariance[1:, 1:] = 2.0, np.linalg.inv(smooth.T @ smooth)
    return (covariance + covariance.T) / 2
