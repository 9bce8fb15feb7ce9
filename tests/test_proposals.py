"""Refinement where the prior ends: densities without bound at an edge, and posteriors beyond the prior's tail."""

import numpy as np
import pytest
from scipy.special import betaln
from scipy.stats import beta, norm

from sbi_dgm import proposals
from sbi_dgm.distributions import Beta, Normal
from sbi_dgm.parameters import Parameter
from sbi_dgm.priors import Prior
from sbi_dgm.refinement import Refined


class InCoordinates:
    """A proposal that is N(mean, sd) in the prior's coordinates."""

    names = ["a"]  # noqa: RUF012

    def __init__(self, prior, mean, sd):
        self.prior, self.mean, self.sd = prior, mean, sd

    def require_prior(self, purpose):
        return self.prior

    def proposals(self, n, x, seed):
        z = self.mean + self.sd * np.random.default_rng(seed).standard_normal((n, 1))
        theta = self.prior.coordinates.inverse(z)
        return theta, self.proposal_density(theta, x, 0)

    def proposal_density(self, theta, x, seed):
        z, log_det = self.prior.coordinates.forward(theta)
        return norm.logpdf(z[:, 0], self.mean, self.sd) + log_det

    def observations(self, x):
        return [x], True

    def trust(self, x):
        return None


def conflict(centre, seed):
    """A normal prior, and a likelihood N(centre; theta, 0.05) far in its tail: the z-score of ln Z, and the sd's."""
    prior, sd = Prior([Parameter("a", Normal(0, 1))]), 0.05
    proposal = InCoordinates(prior, centre / (1 + sd**2), 2.5 * sd)
    found = Refined(proposal, lambda theta, x: norm.logpdf(theta[:, 0], centre, sd), effective=10_000, cap=2**17)
    weights = found.weigh(np.zeros(1), seed=seed)
    share = np.exp(weights.log_weight - np.logaddexp.reduce(weights.log_weight))
    mean = share @ weights.theta[:, 0]
    spread = np.sqrt(share @ (weights.theta[:, 0] - mean) ** 2)
    exact = norm.logpdf(centre, 0, np.sqrt(1 + sd**2))
    return (weights.log_evidence - exact) / weights.log_evidence_error, spread * np.sqrt(1 + sd**2) / sd


@pytest.mark.parametrize("centre", [7.0, 8.3, 9.0])
def test_a_posterior_beyond_the_priors_tail_has_its_width_and_evidence(centre):
    scores, widths = np.transpose([conflict(centre, seed) for seed in range(5)])
    assert np.abs(scores).max() < 4
    assert widths == pytest.approx(1.0, abs=0.04)


def test_a_mixture_that_counts_draws_it_throws_away_is_noticed(monkeypatch):
    monkeypatch.setattr(proposals, "_reached", lambda mixture, z: mixture.log_prob(z))
    score, width = conflict(9.0, 0)
    assert score < -20
    assert width > 1.05


@pytest.mark.parametrize("seed", range(8))
def test_an_edge_at_which_the_prior_has_no_bound_spoils_no_weights(seed):
    """Jeffreys' prior and 20 successes of 20: theta rounds to 1 now and then, where ln p is inf."""
    prior, exact = Prior([Parameter("a", Beta(0.5, 0.5))]), beta(20.5, 0.5)
    z = norm.ppf(prior.parameters[0].prior.cdf(exact.rvs(20_000, random_state=0)).clip(1e-300, 1 - 1e-16))
    proposal = InCoordinates(prior, z.mean(), 3 * z.std())
    found = Refined(proposal, lambda theta, x: 20 * np.log(theta[:, 0]), effective=5000, cap=2**17)
    weights = found.weigh(np.zeros(1), seed=seed)
    expected = betaln(20.5, 0.5) - betaln(0.5, 0.5)
    assert abs(weights.log_evidence - expected) < 4 * weights.log_evidence_error
