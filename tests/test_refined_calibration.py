"""Calibration of refined posteriors: made right by the true likelihood, accused where the likelihood is wrong."""

import numpy as np
import pytest
from judging import accuses
from scipy.stats import norm

from sbi_dgm import Parameter, Prior, Simulations, calibrate
from sbi_dgm.distributions import Normal
from sbi_dgm.refinement import Refined

PRIOR = Prior([Parameter("a", Normal(0.0, 1.0)), Parameter("b", Normal(0.0, 1.0))])
ROWS, NOISE = 200, 0.5
WIDTH = NOISE / np.sqrt(1 + NOISE**2)


class Wrong:
    """Half an sd off, and a third too wide."""

    names, density = ("a", "b"), "exact"

    def require_prior(self, purpose):
        return PRIOR

    def proposals(self, n, x, seed):
        theta = centre(x) + WIDTH * (0.5 + 1.3 * np.random.default_rng(seed).standard_normal((n, 2)))
        return theta, self.proposal_density(theta, x, 0)

    def proposal_density(self, theta, x, seed):
        return norm.logpdf(theta, centre(x) + 0.5 * WIDTH, 1.3 * WIDTH).sum(-1)

    def observations(self, x):
        return list(x["x"]), False

    def trust(self, x):
        return None


def centre(x):
    return x * WIDTH**2 / NOISE**2


def likelihood(theta, x):
    return norm.logpdf(x, theta, NOISE).sum(-1)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(3)
    theta = rng.standard_normal((ROWS, 2))
    return Simulations.from_arrays(theta, theta + NOISE * rng.standard_normal((ROWS, 2)), prior=PRIOR)


def check(data, function):
    """Calibrated, and the mean ln q of the truths is that of the exact posterior."""
    refined = Refined(Wrong(), function, effective=1000)
    report = calibrate(refined, data, draws=100, max_rows=ROWS, progress=False)
    theta, x = data.columns["theta"][:], data.columns["x/x"][:]
    exact = norm.logpdf(theta, centre(x), WIDTH).sum(-1).mean()
    assert report.calibrated, report.verdict
    assert abs(report.log_prob["mean"] - exact) < 5 / np.sqrt(1000 * ROWS)


def test_a_wrong_posterior_with_the_true_likelihood_is_calibrated(data):
    check(data, likelihood)


def test_a_wrong_likelihood_is_accused(data):
    accuses(check, data, lambda theta, x: 1.6 * likelihood(theta, x))


def test_the_posterior_alone_is_accused(data):
    """With a power of 0 it is itself, however it is weighed."""
    refined = Refined(Wrong(), likelihood, effective=1000, power=0.0)
    report = calibrate(refined, data, draws=100, max_rows=ROWS, progress=False)
    assert "biased" in report.verdict
