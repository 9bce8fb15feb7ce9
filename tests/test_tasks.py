"""The ten tasks of sbibm: what a task is, the published data, and each likelihood against its own simulator."""

from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy import stats
from scipy.linalg import solve_triangular
from scipy.special import logsumexp, ndtri, xlogy

from sbi_dgm.errors import ObservationError
from sbi_dgm.simulator import Simulator, find
from simulators import slcp_distractors, truncated
from simulators.two_moons import TwoMoons

PUBLISHED = Path(__file__).parents[2] / "shared" / "data" / "sbibm_reference.h5"
TASKS = {  # task: its data in the published file; how near parameters are that x barely tells apart; trials
    "gaussian_linear": ("gaussian_linear/observations", 0.2, 200),
    "gaussian_linear_uniform": ("gaussian_linear_uniform/observations", 0.1, 200),
    "gaussian_mixture": ("gaussian_mixture/observations", 0.2, 200),
    "two_moons": ("two_moons/observations", 0.01, 200),
    "slcp": ("slcp/observations", 0.1, 200),
    "slcp_distractors": ("slcp/observations_distractors", 0.1, 200),
    "bernoulli_glm": ("bernoulli_glm/observations", 0.2, 200),
    "bernoulli_glm_raw": ("bernoulli_glm/observations_raw", 0.2, 200),
    "sir": ("sir/observations", 0.01, 120),
    "lotka_volterra": ("lotka_volterra/observations", 0.002, 120),
}
IN_A_BOX = ["gaussian_linear_uniform", "gaussian_mixture", "slcp", "two_moons"]
every_task = pytest.mark.parametrize("name", TASKS)


def rng(seed=0):
    return np.random.default_rng(seed)


# What a task is


@every_task
def test_every_task_is_found_by_name_and_keeps_the_contract(name):
    task = find(name)
    assert isinstance(task, Simulator)
    assert (task.name, task.version) == (name, "1")
    theta = task.prior.sample(4, seed=0)
    (observable,) = task.observables.values()
    x = task(theta, rng())
    assert x.shape == (4, *observable.shape)
    assert x.tolist() == task(theta, rng()).tolist() != task(theta, rng(1)).tolist()
    assert np.isfinite(task.log_likelihood(theta, x[0])[0])
    assert task.log_likelihood(theta[None], x[0]).shape == (1, 4)


@every_task
def test_published_data_are_ten_possible_observations(name):
    task = find(name)
    assert task.observations.shape == (10, *task.observables["x"].shape)
    assert task.true_parameters.shape == (10, len(task.prior))
    assert np.isfinite(task.prior.log_prob(task.true_parameters)).all()
    own = [task.log_likelihood(*pair) for pair in zip(task.true_parameters, task.observations, strict=True)]
    assert np.isfinite(own).all()
    with pytest.raises(ValueError, match="read-only"):
        task.observations[0] = 0


@every_task
def test_published_data_are_those_of_sbibm(name):
    if not PUBLISHED.is_file():
        pytest.skip("the published data are not here")
    place, task = TASKS[name][0], find(name)
    with h5py.File(PUBLISHED) as file:
        np.testing.assert_array_equal(task.observations, file[place][:])
        np.testing.assert_array_equal(task.true_parameters, file[place.split("/")[0]]["true_parameters"][:])


# The published observations are draws of the simulator at their parameters


def summary(name, x):
    return slcp_distractors.split(x)[0] if name == "slcp_distractors" else x


def strangeness(x, draws):
    """Mean square of the normal scores of x (K, X) among draws (M, X); tied numbers share a rank."""
    draws = np.sort(draws, axis=0)
    below = [np.searchsorted(d, v, "left") + np.searchsorted(d, v, "right") for d, v in zip(draws.T, x.T, strict=True)]
    return (ndtri((np.array(below) + 1) / (2 * len(draws) + 2)) ** 2).mean(0)


def check_observations(name, theta, m=1000):
    """Ten observations together are as strange as 99.6 in 100 sets of ten draws at their parameters."""
    task, observed, usual = find(name), 0.0, np.zeros(m)
    for parameters, x in zip(theta, summary(name, task.observations), strict=True):
        draws = summary(name, task(np.tile(parameters, (m, 1)), rng(1)))
        observed = observed + strangeness(x[None], draws)[0]
        usual = usual + rng(2).permutation(strangeness(draws, draws))
    assert 0.002 < (usual < observed).mean() < 0.998


@every_task
def test_published_observations_are_draws_at_their_parameters(name):
    check_observations(name, find(name).true_parameters)


@every_task
def test_observations_at_each_others_parameters_are_noticed(name):
    with pytest.raises(AssertionError):
        check_observations(name, np.roll(find(name).true_parameters, 1, axis=0))


# Each likelihood against its simulator


@cache
def drawn(name):
    """Which of sixteen parameters drew x, and the log-likelihood of all sixteen: (trials,), (trials, 16)."""
    task, (_, scale, trials) = find(name), TASKS[name]
    centre = task.true_parameters[0]
    theta = centre + scale * rng(1).normal(size=(16, len(centre)))
    who = rng(2).integers(16, size=trials)
    return who, np.array([task.log_likelihood(theta, x) for x in task(theta[who], rng(3))])


def check_who_drew(name, power):
    """By Bayes, E[-ln p(who | x)] is the entropy of p: 4 standard errors."""
    who, log_p = drawn(name)
    log_p = power * log_p - logsumexp(power * log_p, axis=1, keepdims=True)
    entropy = -xlogy(np.exp(log_p), np.exp(log_p)).sum(1)
    excess = -log_p[np.arange(len(who)), who] - entropy
    assert abs(excess.mean()) < 4 * excess.std() / np.sqrt(len(who))
    return entropy.mean()


@every_task
def test_likelihoods_know_who_drew_x(name):
    assert 0.1 < check_who_drew(name, 1) < 2.67  # neither certain nor ignorant: ln 16 is 2.77


@every_task
def test_a_likelihood_with_half_the_noise_is_noticed(name):
    with pytest.raises(AssertionError):
        check_who_drew(name, 4)


def test_gaussian_likelihoods_are_scipys():
    task = find("gaussian_linear_uniform")
    theta, x = task.prior.sample(5, seed=0), task.observations[0]
    known = stats.norm(theta, 0.1**0.5).logpdf(x).sum(-1)
    np.testing.assert_allclose(task.log_likelihood(theta, x), known, rtol=1e-12)


def test_the_slcp_likelihood_is_scipys():
    task = find("slcp")
    for theta, x in zip(task.true_parameters, task.observations, strict=True):
        s1, s2, rho = theta[2] ** 2, theta[3] ** 2, np.tanh(theta[4])
        covariance = np.array([[s1**2, rho * s1 * s2], [rho * s1 * s2, s2**2]]) + 1e-6 * np.eye(2)
        known = stats.multivariate_normal(theta[:2], covariance).logpdf(x.reshape(4, 2)).sum()
        assert task.log_likelihood(theta, x) == pytest.approx(known, rel=1e-9)


def check_mixture_likelihood(scale):
    """The integral over x, which only enters as x - theta, so over theta; and the variance (1 + 0.01) / 2."""
    axis = (np.arange(1000) - 499.5) / 62.5
    theta = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    mass = np.exp(find("gaussian_mixture").log_likelihood(theta / scale, np.zeros(2))) / scale**2 / 62.5**2
    assert mass.sum() == pytest.approx(1, abs=1e-6)
    x = find("gaussian_mixture")(np.zeros((100_000, 2)), rng())
    variance, fourth = (mass[..., None] * theta**2).sum((0, 1)), (mass[..., None] * theta**4).sum((0, 1))
    assert (np.abs(x.var(0) - variance) < 4 * np.sqrt((fourth - variance**2) / len(x))).all()


def test_the_mixture_likelihood_is_its_draws_density():
    check_mixture_likelihood(1.0)
    with pytest.raises(AssertionError):
        check_mixture_likelihood(1.03)


# The noise of slcp_distractors


def noise_log_prob(noise, factors, size=16):
    """ln of the density of the first numbers of noise (N, 92); more, and rounded data no longer resolve L^-1."""
    mean = slcp_distractors.fixed()[0]
    parts = []
    for m, factor in zip(mean[:, :size], factors[:, :size, :size], strict=True):
        z = solve_triangular(factor, (noise[:, :size] - m).T, lower=True)
        parts.append(-np.log(np.abs(np.diag(factor))).sum() - (1 + size / 2) * np.log1p((z**2).sum(0) / 2))
    return logsumexp(parts, axis=0)


def check_distractors(factors):
    """The published noise is as likely as draws: the mean of ten, within 4 standard errors."""
    draws = noise_log_prob(slcp_distractors.distractors(4000, rng()), slcp_distractors.fixed()[1])
    ten = noise_log_prob(slcp_distractors.split(find("slcp_distractors").observations)[1], factors)
    assert abs(ten.mean() - draws.mean()) < 4 * draws.std() / np.sqrt(10)


def strictly_lower():
    """The factors with exp(n) alone on the diagonal."""
    stream = np.random.RandomState(42)
    stream.normal(size=(20, 92))
    return np.array(
        [3 * (np.tril(stream.normal(size=(92, 92)), -1) + np.diag(np.exp(stream.normal(size=92)))) for _ in range(20)]
    )


def test_the_published_noise_is_of_the_mixture():
    check_distractors(slcp_distractors.fixed()[1])


def test_noise_without_the_triangles_own_diagonal_is_noticed():
    with pytest.raises(AssertionError):
        check_distractors(strictly_lower())


def check_student(draw, freedom):
    """L^-1 (e - m) of the nearest component: its first number is Student's; Kolmogorov and Smirnov."""
    mean, factor, _ = slcp_distractors.fixed()
    component = rng().integers(20, size=20_000)  # as the stream begins
    first = (draw(20_000, rng())[:, 0] - mean[component, 0]) / np.abs(factor[component, 0, 0])
    assert stats.kstest(first, stats.t(freedom).cdf).pvalue > 1e-4


def test_distractors_are_students_with_two_degrees_of_freedom():
    check_student(slcp_distractors.distractors, 2)
    with pytest.raises(AssertionError):
        check_student(slcp_distractors.distractors, 3)


def test_distractors_hide_the_published_signal_exactly():
    hidden, _ = slcp_distractors.split(find("slcp_distractors").observations)
    np.testing.assert_array_equal(hidden, find("slcp").observations)
    theta = find("slcp").prior.sample(3, seed=0)
    likelihood = find("slcp_distractors").log_likelihood(theta, find("slcp_distractors").observations[0])
    assert likelihood.tolist() == find("slcp").log_likelihood(theta, hidden[0]).tolist()


# Posterior densities and impossible observations


def test_the_uniform_posterior_is_scipys_truncated_normal():
    task = find("gaussian_linear_uniform")
    sd, theta = 0.1**0.5, task.prior.sample(5, seed=0)
    for x in [*task.observations, np.full(10, 3.0)]:
        known = stats.truncnorm((-1 - x) / sd, (1 - x) / sd, x, sd).logpdf(theta).sum(-1)
        np.testing.assert_allclose(task.posterior_log_prob(theta, x), known, rtol=1e-9)
    assert task.posterior_log_prob(np.full(10, 1.01), x) == -np.inf


def check_density(log_prob, x, edge, cells=2000):
    """The integral over the box is one."""
    axis = (np.arange(cells) + 0.5) / cells * 2 - 1
    theta = edge * np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    assert np.exp(log_prob(theta, x)).mean() * 4 * edge**2 == pytest.approx(1, abs=3e-3)


WHERE_THE_BOX_CUTS = [("gaussian_mixture", [-9.8, 10.2], 10, 1), ("two_moons", [-1.05, 0.1], 1, 2)]


@pytest.mark.parametrize(("name", "x", "edge", "uncut"), WHERE_THE_BOX_CUTS)
def test_posterior_densities_integrate_to_one(name, x, edge, uncut):
    task, x = find(name), np.array(x)
    check_density(task.posterior_log_prob, x, edge)
    check_density(task.posterior_log_prob, task.observations[0], edge)
    assert task.posterior_log_prob(1.01 * edge * np.ones(2), x) == -np.inf
    with pytest.raises(AssertionError):  # as if the box cut nothing
        check_density(lambda theta, x: task.log_likelihood(theta, x) - np.log(uncut), x, edge)


@pytest.mark.parametrize("name", IN_A_BOX)
@pytest.mark.parametrize("value", [1e9, np.nan, -np.inf], ids=["far", "nan", "infinite"])
def test_impossible_observations_are_refused(name, value):
    task = find(name)
    x = np.zeros_like(task.observations[0])
    x[1] = value
    with pytest.raises(ObservationError, match=r"impossible under the prior|not finite"):
        task.reference_posterior(x, 10, rng())


# Truncated normals


def check_far_draws(draw, sds):
    """Far outside, the way from the edge is exponential with rate `sds` / sd, but for terms of 1 / sds^2."""
    way = (1 - draw(1 + sds * 0.3, 0.3, -1.0, np.ones(20_000), rng())) * sds / 0.3
    assert way.min() >= 0
    assert stats.kstest(way, "expon").pvalue > 1e-4


def test_few_draws_of_a_rare_observation_are_found():
    """A simulated x at the corner of the box, which 7 crescents in 10,000 reach."""
    x = np.array([-0.49103505, -0.78762662])
    task = find("two_moons")
    draws = task.reference_posterior(x, 200, np.random.default_rng(0))
    assert np.isfinite(task.log_likelihood(draws, x)).all()
    assert (np.abs(draws) <= 1).all()
    assert len(draws) == 200


@pytest.mark.parametrize("sds", [1e3, 1e5, 1e6])
def test_truncated_normals_keep_their_digits_far_outside(sds):
    check_far_draws(truncated.within, sds)
    with pytest.raises(AssertionError):  # clipped, as draws by rejection that gives up
        check_far_draws(lambda mean, sd, low, high, rng: high - 0 * rng.normal(size=len(high)), sds)


@pytest.mark.parametrize("mean", [-4.0, -0.3, 0.0, 0.9, 4.0])
def test_truncated_normals_are_scipys(mean):
    known = stats.truncnorm((-1 - mean) / 0.5, (1 - mean) / 0.5, mean, 0.5)
    draws = truncated.within(mean, 0.5, -1.0, np.ones(20_000), rng())
    assert stats.kstest(draws, known.cdf).pvalue > 1e-4
    assert stats.kstest(draws, stats.norm(mean, 0.5).cdf).pvalue < 1e-4
    mass = stats.norm(mean, 0.5).cdf(1) - stats.norm(mean, 0.5).cdf(-1)
    assert np.exp(truncated.log_mass(mean, 0.5, -1, 1)) == pytest.approx(mass, rel=1e-9)


def test_the_crescents_share_is_a_share_of_draws():
    x = np.array([-1.07724796, 0.1213495])
    away = (x - TwoMoons()(np.zeros((1_000_000, 2)), rng())) * np.sqrt(2)
    inside = (away[:, 0] <= 0) & (np.abs(away).sum(1) <= 2)
    theta = TwoMoons().reference_posterior(x, 1, rng())
    share = np.exp(TwoMoons().log_likelihood(theta, x) - TwoMoons().posterior_log_prob(theta, x)) / 2
    assert abs(share - inside.mean()) < 4 * inside.std() / 1000
