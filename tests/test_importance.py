"""Importance resampling against posteriors that are known: moments, masses of modes, evidence; and what it refuses."""

import numpy as np
import pytest
from scipy import stats

from sbi_dgm import importance
from sbi_dgm.distributions import LogNormal, Normal, Uniform
from sbi_dgm.errors import ObservationError
from sbi_dgm.importance import posterior_draws
from sbi_dgm.mixtures import fit_mixture
from sbi_dgm.parameters import Parameter
from sbi_dgm.priors import MultivariateNormal, Prior
from sbi_dgm.resampling import distinct, effective_size, systematic

N = 2000
X = np.zeros(1)


def rng(seed=0):
    return np.random.default_rng(seed)


def independent(dimension, distribution=None):
    return Prior([Parameter(f"t{i}", distribution or Normal(0, 1)) for i in range(dimension)])


class Gaussian:
    """A likelihood N(m; theta, C) under a prior N(mu, S): posterior and evidence are normal."""

    def __init__(self, dimension, width, prior=None):
        self.prior = prior or independent(dimension)
        mixing = rng(7).standard_normal((dimension, dimension))
        self.noise = width**2 * (mixing @ mixing.T / dimension + 0.2 * np.eye(dimension))
        self.centre = np.linspace(-0.7, 0.9, dimension)
        mean, spread = getattr(self.prior, "mean", 0), getattr(self.prior, "covariance", np.eye(dimension))
        self.covariance = np.linalg.inv(np.linalg.inv(self.noise) + np.linalg.inv(spread))
        self.mean = self.covariance @ (
            np.linalg.solve(self.noise, self.centre) + np.linalg.solve(spread, mean + 0 * self.centre)
        )
        self.log_evidence = stats.multivariate_normal(mean + 0 * self.centre, self.noise + spread).logpdf(self.centre)

    def log_likelihood(self, theta, x):
        return stats.multivariate_normal(self.centre, self.noise).logpdf(theta)


class Flat:
    """A likelihood that is 0.5 everywhere: the posterior is the prior."""

    prior = independent(3)
    mean, covariance, log_evidence = np.zeros(3), np.eye(3), np.log(0.5)

    def log_likelihood(self, theta, x):
        return np.full(len(theta), np.log(0.5))


class Cut:
    """A triangle cut out of U(0, 1)^2: theta_1 + theta_2 < 1/2."""

    prior = independent(2, Uniform(0, 1))
    mean, log_evidence = np.full(2, 1 / 6), np.log(1 / 8)
    covariance = np.array([[1 / 18, -1 / 36], [-1 / 36, 1 / 18]]) / 4

    def log_likelihood(self, theta, x):
        return np.where(theta.sum(-1) < 0.5, 0.0, -np.inf)


class Ring:
    """A ring of radius 1.5 and width 0.03 under N(0, I): no mixture of few normals."""

    prior = independent(2)

    def log_likelihood(self, theta, x):
        return stats.norm(1.5, 0.03).logpdf(np.hypot(*theta.T))

    def __init__(self):
        r = np.linspace(1.2, 1.8, 20_001)
        mass = r * np.exp(-(r**2) / 2) * stats.norm(1.5, 0.03).pdf(r)
        self.log_evidence = np.log(mass.sum() * (r[1] - r[0]))
        self.mean, self.covariance = np.zeros(2), np.eye(2) * (mass @ r**2) / mass.sum() / 2


CORRELATED = MultivariateNormal(["a", "b", "c"], [1.0, -2.0, 0.5], [[2.0, 0.9, 0.0], [0.9, 1.0, 0.3], [0.0, 0.3, 0.5]])
TARGETS = {
    "correlated": Gaussian(3, 0.5, CORRELATED),
    "one per cent": Gaussian(4, 0.01),
    "ten dimensions": Gaussian(10, 0.3),
    "the prior": Flat(),
    "cut": Cut(),
    "ring": Ring(),
}


def check(target, seed=0):
    """Mean, covariance and evidence; 4.5 standard errors of at most 10 + 55 + 1 numbers."""
    draws, record = posterior_draws(target.log_likelihood, target.prior, X, N, rng(seed))
    assert len(np.unique(draws, axis=0)) == len(draws) == N
    assert record.effective > 0.25 * record.proposals
    assert abs(record.log_evidence - target.log_evidence) < 4.5 * record.log_evidence_error + 1e-12
    away = (draws - target.mean) @ np.linalg.inv(np.linalg.cholesky(target.covariance)).T
    share = np.sqrt(1 / N + 1 / record.effective)
    assert (np.abs(away.mean(0)) < 4.5 * away.std(0) * share).all()
    products = away[:, :, None] * away[:, None]
    assert (np.abs(products.mean(0) - np.eye(away.shape[1])) < 4.5 * products.std(0) * share).all()


@pytest.mark.parametrize("name", TARGETS)
def test_moments_and_evidence_are_those_of_the_posterior(name):
    check(TARGETS[name])


@pytest.mark.parametrize("name", ["correlated", "one per cent", "cut"])
def test_forgotten_weights_are_noticed(name, monkeypatch):
    monkeypatch.setattr(importance, "distinct", lambda log_weight, n, rng: rng.choice(len(log_weight), n, False))
    with pytest.raises(AssertionError):
        check(TARGETS[name])


def test_weights_without_the_prior_are_noticed(monkeypatch):
    monkeypatch.setattr(importance, "standard_normal_log_prob", lambda z: np.zeros(len(z)))
    with pytest.raises(AssertionError):
        check(TARGETS["correlated"])


# Modes


class Modes:
    """Two bumps, the first with four fifths of the posterior's mass."""

    prior = independent(2, LogNormal(0.0, 1.0))
    mass = 0.8

    def __init__(self, width):
        self.width = width

    def log_likelihood(self, theta, x):
        z = np.log(theta)
        bumps = [stats.norm(centre, self.width).logpdf(z).sum(-1) for centre in (-1.0, 1.0)]
        return np.logaddexp(np.log(self.mass) + bumps[0], np.log(1 - self.mass) + bumps[1])


def check_modes(width, seed=0):
    """Share of draws in the larger mode, and width of both; 4 standard errors. The prior is equal at both."""
    target = Modes(width)
    draws, record = posterior_draws(target.log_likelihood, target.prior, X, N, rng(seed))
    z = np.log(draws)
    larger = z[:, 0] < 0
    error = np.sqrt(target.mass * (1 - target.mass) * (1 / N + 1 / record.effective))
    assert abs(larger.mean() - target.mass) < 4 * error
    for part in (z[larger], z[~larger]):
        assert np.abs(part.std(0) * np.sqrt(1 + width**-2) - 1).max() < 4 / np.sqrt(2 * len(part))


@pytest.mark.parametrize("width", [0.003, 0.15])
def test_two_modes_have_their_masses(width):
    check_modes(width)


def one_mode(log_likelihood, dimension, x, rng):
    return -1 + 0.1 * rng.standard_normal((1000, dimension))


def test_a_mode_that_tempering_lost_is_found_by_the_priors_share(monkeypatch):
    monkeypatch.setattr(importance, "_temper", one_mode)
    check_modes(0.15)


def test_a_lost_mode_is_noticed_where_the_prior_has_no_share(monkeypatch):
    monkeypatch.setattr(importance, "_temper", one_mode)
    monkeypatch.setattr(importance, "SHARE_OF_PRIOR", 1e-5)
    with pytest.raises(AssertionError):
        check_modes(0.15)


# Parts


def check_shares(select):
    """How often each row is drawn, against n w_i / sum w: chi2 of 20,000 rounds; systematic draws vary less."""
    weight = np.array([4.0, 3.0, 2.0, 1.0, 1.0, 1.0])
    counts, generator, rounds = np.zeros(6), rng(), 5000
    for _ in range(rounds):
        rows = select(np.log(weight), 3, generator)
        assert len(set(rows)) == 3
        counts[rows] += 1
    expected = 3 * weight / weight.sum()
    assert (np.abs(counts / rounds - expected) < 4 * np.sqrt(expected * (1 - expected) / rounds) + 1e-12).all()


def test_rows_are_drawn_once_with_their_own_probability():
    check_shares(distinct)


def test_drawing_one_after_another_is_noticed():
    def one_by_one(log_weight, n, rng):
        weight = np.exp(log_weight)
        return rng.choice(len(weight), n, replace=False, p=weight / weight.sum())

    with pytest.raises(AssertionError):
        check_shares(one_by_one)


def test_a_weight_above_its_share_is_drawn_once_and_the_rest_in_proportion():
    log_weight = np.log([100.0, 1.0, 1.0, 2.0])
    rows = np.array([distinct(log_weight, 2, rng(seed)) for seed in range(2000)])
    assert (np.sort(rows, axis=1)[:, 0] == 0).all()
    assert abs((rows == 3).sum() / 2000 - 0.5) < 4 * 0.5 / np.sqrt(2000)


def test_systematic_draws_come_as_often_as_a_neighbouring_integer():
    weight = rng().random(50)
    counts = np.bincount(systematic(weight, 200, rng()), minlength=50)
    assert (np.abs(counts - 200 * weight / weight.sum()) < 1).all()


def test_the_effective_size_of_equal_and_of_single_weights():
    assert effective_size(np.full(10, 0.3)) == pytest.approx(10)
    assert effective_size(np.array([1.0, 0, 0])) == 1


def check_density(mixture, widen=1.0):
    """E[p(z) / q(z)] over draws of the mixture q is one for any normal p within; 4.5 standard errors."""
    z = mixture.sample(20_000, rng(1))
    ratio = np.exp(stats.multivariate_normal([0.2, -0.1], np.eye(2)).logpdf(z) - mixture.log_prob(z)) / widen
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / np.sqrt(len(z))


def test_a_mixtures_density_is_that_of_its_draws():
    points = np.concatenate([rng().normal(0, 1, (2000, 2)), rng(1).normal(3, 0.5, (1000, 2))])
    mixture = fit_mixture(points, np.zeros(len(points)), rng(2))
    assert mixture.share.sum() == pytest.approx(1)
    check_density(mixture)
    with pytest.raises(AssertionError):
        check_density(mixture, widen=1.05)


def test_a_fitted_mixture_follows_the_weights():
    points = rng().normal(0, 2, (20_000, 1))
    log_weight = stats.norm(1, 0.5).logpdf(points[:, 0]) - stats.norm(0, 2).logpdf(points[:, 0])
    draws = fit_mixture(points, log_weight, rng(1)).sample(20_000, rng(2))
    assert np.median(draws) == pytest.approx(1, abs=0.03)
    assert np.subtract(*np.quantile(draws, [0.75, 0.25])) == pytest.approx(2 * 0.6745 * 0.5, rel=0.08)


# Seeds and refusals


def test_equal_seeds_give_equal_draws():
    target = Modes(0.1)
    first, second, other = (posterior_draws(target.log_likelihood, target.prior, X, 50, rng(s))[0] for s in (0, 0, 1))
    assert first.tolist() == second.tolist() != other.tolist()


def test_a_rough_likelihood_leads_there_and_leaves_no_trace():
    target = TARGETS["correlated"]
    draws, record = posterior_draws(
        target.log_likelihood, target.prior, X, N, rng(), rough=lambda t, x: target.log_likelihood(t + 0.1, x) + 3
    )
    assert abs(record.log_evidence - target.log_evidence) < 4.5 * record.log_evidence_error
    assert (np.abs(draws.mean(0) - target.mean) < 4.5 * draws.std(0) / np.sqrt(N)).all()


def test_too_few_effective_proposals_are_refused_with_numbers_and_remedy():
    target = TARGETS["correlated"]
    sentence = r"x = \[0.\]: \d+ of 4000 proposals are effective, a share of 0.999 is needed.*Lower `least`"
    with pytest.raises(ObservationError, match=sentence):
        posterior_draws(target.log_likelihood, target.prior, X, 100, rng(), least=0.999)


@pytest.mark.parametrize(
    ("x", "log_likelihood", "sentence"),
    [
        (np.array([np.nan]), Flat().log_likelihood, "not finite"),
        (X, lambda theta, x: np.full(len(theta), -np.inf), "impossible under the prior"),
        (X, lambda theta, x: np.where(theta[:, 0] > 0, np.nan, 0.0), "is nan at theta"),
    ],
)
def test_what_has_no_posterior_is_refused(x, log_likelihood, sentence):
    with pytest.raises(ObservationError, match=sentence):
        posterior_draws(log_likelihood, independent(3), x, 10, rng())


def test_a_posterior_beyond_the_priors_tail_is_refused_and_one_within_is_right():
    def log_likelihood(centre):
        return lambda theta, x: stats.norm(centre, 0.05).logpdf(theta[:, 0])

    draws, _ = posterior_draws(log_likelihood(7.0), independent(1), X, N, rng())
    assert abs(draws.mean() - 7.0 / (1 + 0.05**2)) < 4 * 0.05 / np.sqrt(N)
    with pytest.raises(ObservationError, match=r"% of its posterior lie 8\.1 sd and more from the middle of the prior"):
        posterior_draws(log_likelihood(9.0), independent(1), X, N, rng())
