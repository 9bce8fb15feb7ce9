"""Weinberg's muons and the queue with one server, against what is known of them."""

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

from sbi_dgm.simulator import Simulator, find
from simulators.mg1 import MG1, gaps
from simulators.weinberg import Weinberg, asymmetry

N = 100_000
NEAR_THE_LIMIT = np.array([49.0, 1.2])


def rng(seed=0):
    return np.random.default_rng(seed)


class WithoutSign(Weinberg):
    """Muons that know no asymmetry."""

    def __call__(self, theta, rng):
        return rng.permuted(super().__call__(theta, rng) * rng.choice([-1.0, 1.0], (len(theta), 20)), axis=1)


class HalfTheEvents(Weinberg):
    """A posterior of the first ten muons."""

    def reference_posterior(self, x, n, rng):
        return super().reference_posterior(x[:10], n, rng)


@pytest.mark.parametrize("name", ["weinberg", "mg1"])
def test_every_problem_is_found_by_name_and_keeps_the_contract(name):
    problem = find(name)
    assert isinstance(problem, Simulator)
    theta = problem.prior.sample(4, seed=0)
    x = problem(theta, rng())
    (observable,) = problem.observables.values()
    assert x.shape == (4, *observable.shape)
    assert problem(theta, rng()).tolist() == x.tolist() != problem(theta, rng(1)).tolist()


# weinberg: moments of p(c) are E[c] = a / 4 and E[c^2] = 2 / 5, its integral one


def check_muons(problem, theta):
    """First moment, second moment and every decile of the cosines."""
    x = problem(np.tile(theta, (N // 20, 1)), rng()).ravel()
    a = float(asymmetry(theta))
    assert abs(x.mean() - a / 4) < 4 * x.std() / N**0.5
    assert abs((x**2).mean() - 0.4) < 4 * (x**2).std() / N**0.5

    def below(c):
        return 0.375 * (c + c**3 / 3 + a * c**2 / 2 + 4 / 3 - a / 2)

    assert stats.kstest(x, below).pvalue > 1e-4


@pytest.mark.parametrize("theta", [NEAR_THE_LIMIT, np.array([41.0, 0.6]), np.array([45.0, 1.0])])
def test_muons_follow_their_density(theta):
    check_muons(Weinberg(), theta)


def test_muons_without_asymmetry_are_noticed():
    with pytest.raises(AssertionError):
        check_muons(WithoutSign(), NEAR_THE_LIMIT)


def test_the_likelihood_of_one_muon_integrates_to_one():
    problem = Weinberg()
    rest = np.zeros(19)

    def density(c):
        return np.exp(problem.log_likelihood(NEAR_THE_LIMIT, np.append(rest, c)) - 19 * np.log(0.375))

    assert quad(density, -1, 1)[0] == pytest.approx(1, abs=1e-9)


def test_no_point_of_the_prior_has_a_negative_density():
    assert np.abs(asymmetry(Weinberg().prior.sample(N, seed=0))).max() < 2


def check_muon_posterior(problem, x):
    """The asymmetry, and each parameter, of exact draws against the prior weighted by the likelihood on a grid."""
    e, g = np.meshgrid(np.linspace(40, 50, 2001)[1::2], np.linspace(0.5, 1.2, 801)[1::2], indexing="ij")
    grid = np.stack([e, g], axis=-1)
    weight = np.exp(Weinberg().log_likelihood(grid, x))
    weight /= weight.sum()
    draws = problem.reference_posterior(x, 20_000, rng(1))
    for of in (asymmetry, lambda theta: theta[..., 0], lambda theta: theta[..., 1]):
        mean = (weight * of(grid)).sum()
        sd = np.sqrt((weight * (of(grid) - mean) ** 2).sum())
        assert abs(of(draws).mean() - mean) < 4 * sd / len(draws) ** 0.5


def test_the_muon_posterior_is_the_weighted_prior():
    check_muon_posterior(Weinberg(), Weinberg()(NEAR_THE_LIMIT[None], rng(2))[0])


def test_a_posterior_of_half_the_muons_is_noticed():
    with pytest.raises(AssertionError):
        check_muon_posterior(HalfTheEvents(), Weinberg()(NEAR_THE_LIMIT[None], rng(2))[0])


# mg1


def one_by_one(service, arrival):
    """Lindley's recursion in other words: a person leaves after service, which begins when the server is free."""
    free, left = 0.0, []
    for s, a in zip(service, arrival, strict=True):
        free = max(free, a) + s
        left.append(free)
    return np.diff([0.0, *left])


def test_departures_are_those_of_a_queue_played_through():
    generator = rng()
    service, arrival = generator.uniform(0, 2, (5, 30)), generator.exponential(1, (5, 30)).cumsum(1)
    expected = [one_by_one(s, a) for s, a in zip(service, arrival, strict=True)]
    np.testing.assert_allclose(gaps(service, arrival), expected, atol=1e-12)


def test_a_busy_server_leaves_gaps_of_service_alone_and_an_idle_one_those_of_arrivals():
    queue = MG1()
    busy = queue(np.tile([4.0, 2.0, 1 / 3], (2000, 1)), rng())
    assert (busy[:, 0] >= 4).all()
    assert busy[:, 2].mean() == pytest.approx(5, abs=0.05)  # the median service, of people who always wait
    idle = queue(np.tile([0.0, 1e-6, 0.1], (2000, 1)), rng())
    median = 10 * (1 / np.arange(26, 51)).sum(), 10 * (1 / np.arange(25, 51)).sum()  # order statistics 25 and 26 of 50
    assert idle[:, 2].mean() == pytest.approx(np.mean(median), rel=0.02)
