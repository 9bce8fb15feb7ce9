"""The dynamical tasks of sbibm and its spiking neuron: equations, likelihoods and reference posteriors."""

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import solve_ivp
from scipy.special import expit

from sbi_dgm import importance, mixtures
from sbi_dgm.distributions import LogNormal
from sbi_dgm.errors import ObservationError
from sbi_dgm.importance import posterior_draws
from sbi_dgm.parameters import Parameter
from sbi_dgm.priors import MultivariateNormal, Prior
from simulators import lotka_volterra, sir
from simulators.bernoulli_glm import BernoulliGLM, BernoulliGLMRaw, design_matrix, prior_covariance
from simulators.dynamics import runge_kutta, trajectories
from simulators.lotka_volterra import LotkaVolterra, log_populations
from simulators.sir import SIR, infected


def rng(seed=0):
    return np.random.default_rng(seed)


# Runge-Kutta


def wave(t):
    return np.array([np.cos(t), np.sin(t)])


def rotation(y):
    return np.stack([-y[1], y[0]])


def error_at_ten(steps, scheme=runge_kutta):
    return np.abs(scheme(rotation, wave(0.0), 5.0, steps, 3)[-1] - wave(10.0)).max()


def heun(f, y, interval, steps, saves):
    h, saved = interval / steps, [y]
    for _ in range(saves - 1):
        for _ in range(steps):
            y = y + h / 2 * (f(y) + f(y + h * f(y)))
        saved.append(y)
    return np.stack(saved)


def check_order(scheme):
    assert np.log2(error_at_ten(50, scheme) / error_at_ten(100, scheme)) == pytest.approx(4, abs=0.1)


def test_the_method_is_of_order_four():
    check_order(runge_kutta)
    assert error_at_ten(1000) < 1e-9


def test_a_method_of_order_two_is_noticed():
    with pytest.raises(AssertionError):
        check_order(heun)


def test_rows_are_solved_with_steps_for_their_own_rate():
    rate = np.array([0.1, 1.0, 30.0, 5.0, 400.0])
    y = trajectories(
        lambda theta: lambda y: -theta * y, rate[:, None], np.ones(1), interval=0.5, saves=3, steps=1, rate=rate
    )
    exact = np.exp(-rate[:, None] * [0, 0.5, 1.0])
    np.testing.assert_allclose(y[..., 0], exact, rtol=1e-3, atol=0)


def solved(field, theta, start, times):
    def one(row):
        f = field(row[:, None])
        solution = solve_ivp(
            lambda t, y: f(y[:, None])[:, 0], (0, times[-1]), start, "DOP853", times, rtol=1e-11, atol=1e-11
        )
        return solution.y

    return np.array([one(row) for row in theta])


def sir_field(theta):
    """The equations as written, in shares of the population."""
    beta, gamma = theta
    return lambda y: np.stack([-beta * y[0] * y[1], beta * y[0] * y[1] - gamma * y[1]])


def lotka_volterra_field(theta):
    """The equations as written, in logarithms so that scipy's tolerance is relative."""
    alpha, beta, gamma, delta = theta
    return lambda y: np.stack([alpha - beta * np.exp(y[1]), -gamma + delta * np.exp(y[0])])


def check_sir(share):
    theta = SIR().prior.sample(60, seed=0)
    exact = solved(sir_field, theta, [1 - 1e-6, 1e-6], 17.0 * np.arange(10))[:, 1]
    np.testing.assert_allclose(share(theta), exact, rtol=0, atol=1e-6)


def check_lotka_volterra(populations):
    theta = LotkaVolterra().prior.sample(60, seed=0)
    theta = np.concatenate(
        [theta, LotkaVolterra().prior.coordinates.inverse(np.array([[3.0, -3, 3, 3], [-3, 3, -3, 3]]))]
    )
    exact = solved(lotka_volterra_field, theta, np.log([30.0, 1.0]), 2.1 * np.arange(10)).reshape(-1, 20)
    np.testing.assert_allclose(populations(theta), np.clip(exact, np.log(1e-10), np.log(1e4)), rtol=0, atol=1e-5)


def test_the_epidemic_is_scipys():
    check_sir(infected)


def test_an_epidemic_half_a_day_late_is_noticed(monkeypatch):
    monkeypatch.setattr(sir, "INTERVAL", 16.95)
    with pytest.raises(AssertionError):
        check_sir(infected)


def test_the_populations_are_scipys():
    check_lotka_volterra(log_populations)


def test_populations_with_rough_steps_are_noticed():
    with pytest.raises(AssertionError):
        check_lotka_volterra(lambda theta: log_populations(theta, steps=21))


def test_far_parameters_overflow_nowhere():
    with np.errstate(all="raise", under="ignore"):
        for task in (SIR(), LotkaVolterra()):
            corner = np.array(np.meshgrid(*[[-4.0, 4.0]] * len(task.prior))).reshape(len(task.prior), -1).T
            assert np.isfinite(task(task.prior.coordinates.inverse(corner), rng())).all()


def test_the_fastest_rate_bounds_the_trajectory():
    theta = LotkaVolterra().prior.sample(50, seed=1)
    y = trajectories(
        lotka_volterra._field, theta, np.log(lotka_volterra.START), interval=0.1, saves=200, steps=20, rate=np.ones(50)
    )
    reached = np.maximum(theta[:, 1] * np.exp(y[..., 1]).max(1), theta[:, 3] * np.exp(y[..., 0]).max(1))
    bound = lotka_volterra._fastest(theta)
    assert (reached <= bound * (1 + 1e-6)).all()
    assert np.median(bound / reached) < 1.5


# Likelihoods


def test_the_epidemics_likelihood_is_scipys_binomial():
    task = SIR()
    theta = task.prior.sample(20, seed=0)
    x = task(theta, rng())
    for row, seen in zip(theta, x, strict=True):
        expected = stats.binom(1000, infected(row[None])[0]).logpmf(seen).sum()
        assert task.log_likelihood(row, seen) == pytest.approx(expected, rel=1e-9)


def check_binomial(task, row=(0.5, 0.12), rounds=20_000):
    """Counts on the day of the most uncertain number against the likelihood: Pearson's chi2."""
    x = task(np.tile(row, (rounds, 1)), rng())
    day = int(np.argmax(x.var(0)))
    share = solved(sir_field, np.array([row]), [1 - 1e-6, 1e-6], 17.0 * np.arange(10))[0, 1, day]
    expected = rounds * stats.binom(1000, share).pmf(np.arange(1001))
    counts = np.bincount(x[:, day].astype(int), minlength=1001)
    many = expected > 5
    chi2 = ((counts - expected)[many] ** 2 / expected[many]).sum()
    assert stats.chi2(many.sum() - 1).sf(chi2) > 1e-4


def test_the_epidemic_simulates_its_likelihood():
    check_binomial(SIR())


def test_tests_of_990_people_are_noticed(monkeypatch):
    monkeypatch.setattr(sir, "TESTED", 990)
    with pytest.raises(AssertionError):
        check_binomial(SIR())


@pytest.mark.parametrize("x", [np.full(10, 0.5), np.full(10, 1001.0), np.full(10, -1.0)])
def test_impossible_counts_have_no_likelihood(x):
    assert SIR().log_likelihood(np.array([0.4, 0.125]), x) == -np.inf


def test_populations_below_zero_have_no_likelihood():
    assert LotkaVolterra().log_likelihood(np.array([0.7, 0.1, 0.8, 0.1]), np.zeros(20)) == -np.inf


def test_the_populations_likelihood_is_scipys_lognormal():
    task = LotkaVolterra()
    theta = task.prior.sample(20, seed=0)
    x = task(theta, rng())
    for row, seen in zip(theta, x, strict=True):
        expected = stats.lognorm(0.1, scale=np.exp(log_populations(row[None])[0])).logpdf(seen).sum()
        assert task.log_likelihood(row, seen) == pytest.approx(expected, rel=1e-9)


def check_lognormal(task, rounds=10_000):
    """Moments of ln x: 20 means and variances within 4.5 standard errors, without correlation."""
    row = np.array([[0.7, 0.08, 0.9, 0.05]])
    residual = (np.log(task(np.tile(row, (rounds, 1)), rng())) - log_populations(row)) / 0.1
    assert (np.abs(residual.mean(0)) < 4.5 / np.sqrt(rounds)).all()
    assert (np.abs(residual.var(0) - 1) < 4.5 * np.sqrt(2 / rounds)).all()
    assert np.abs(np.corrcoef(residual.T) - np.eye(20)).max() < 5 / np.sqrt(rounds)


def test_the_populations_are_seen_with_their_noise():
    check_lognormal(LotkaVolterra())


def test_noise_five_per_cent_too_large_is_noticed(monkeypatch):
    monkeypatch.setattr(lotka_volterra, "NOISE", 0.105)
    with pytest.raises(AssertionError):
        check_lognormal(LotkaVolterra())


# The neuron


def filtered(theta, stimulus, first=0):
    """The neuron's drive, bin after bin: offset + sum of filter_k times the stimulus k bins ago."""
    drive = []
    for t in range(len(stimulus)):
        past = sum(theta[1 + k] * stimulus[t - k - first] for k in range(9) if t - k - first >= 0)
        drive.append(theta[0] + past)
    return np.array(drive)


def stimulus():
    return np.random.RandomState(42).randn(100)


def check_design(first):
    theta = rng().standard_normal(10)
    np.testing.assert_allclose(
        design_matrix(stimulus()) @ theta, filtered(theta, stimulus(), first), rtol=0, atol=1e-12
    )


def test_the_design_matrix_is_the_filter_bin_after_bin():
    check_design(0)
    with pytest.raises(AssertionError):
        check_design(1)


def test_the_neurons_prior_is_smooth_as_defined():
    covariance = prior_covariance()
    f = np.zeros((9, 9))
    for i in range(9):
        f[i, i] = 1 + np.sqrt(i / 9)
        if i > 0:
            f[i, i - 1] = -2
        if i > 1:
            f[i, i - 2] = 1
    np.testing.assert_allclose(np.linalg.inv(covariance[1:, 1:]), f.T @ f, rtol=0, atol=1e-9)
    assert covariance[0].tolist() == [2.0, *[0.0] * 9]


def test_the_neurons_likelihood_is_a_product_of_bernoullis_and_its_statistics_suffice():
    raw, task = BernoulliGLMRaw(), BernoulliGLM()
    theta = raw.prior.sample(10, seed=0)
    spikes = raw(theta, rng())
    x = task(theta, rng())
    np.testing.assert_allclose(x, [[y.sum(), *[y[k:] @ stimulus()[: 100 - k] for k in range(9)]] for y in spikes])
    for row, y, statistics in zip(theta, spikes, x, strict=True):
        p = expit(filtered(row, stimulus()))
        expected = np.log(np.where(y == 1, p, 1 - p)).sum()
        assert raw.log_likelihood(row, y) == pytest.approx(expected, rel=1e-9)
        assert task.log_likelihood(row, statistics) == pytest.approx(expected, rel=1e-9)


def test_spikes_are_as_frequent_as_their_probability():
    theta, rounds = BernoulliGLMRaw().prior.sample(1, seed=3)[0], 20_000
    spikes = BernoulliGLMRaw()(np.tile(theta, (rounds, 1)), rng())
    p = expit(filtered(theta, stimulus()))
    assert (np.abs(spikes.mean(0) - p) < 4.5 * np.sqrt(p * (1 - p) / rounds) + 1e-9).all()


def test_published_spikes_have_the_published_statistics():
    x = BernoulliGLMRaw().observations @ BernoulliGLMRaw().design
    np.testing.assert_allclose(x, BernoulliGLM().observations, rtol=0, atol=2e-5)


# Reference posteriors


@pytest.fixture
def small(monkeypatch):
    """Fewer particles and proposals: as exact for few draws, and quicker."""
    for name, value in {"PARTICLES": 500, "PILOT": 1500, "PILOTS": 1, "FEWEST": 1500}.items():
        monkeypatch.setattr(importance, name, value)
    monkeypatch.setattr(mixtures, "COMPONENTS", (1, 4))


def check_calibration(task, xs, thetas, draws=50):
    """Ranks of the true parameters among posterior draws are uniform (Talts et al. 2018): chi2 in five bins each."""
    ranks = []
    for i, (theta, x) in enumerate(zip(thetas, xs, strict=True)):
        ranks.append((task.reference_posterior(x, draws - 1, rng(i)) < theta).sum(0))
    counts = np.stack([np.bincount(r * 5 // draws, minlength=5) for r in np.array(ranks).T])
    chi2 = ((counts - len(xs) / 5) ** 2 / (len(xs) / 5)).sum(1)
    assert (stats.chi2(4).sf(chi2) > 1e-3 / counts.shape[0]).all()


def drawn(task, rows, seed=5, keep=lambda x: np.ones(len(x), bool)):
    theta = task.prior.sample(40 * rows, seed)
    x = task(theta, rng(seed))
    kept = np.flatnonzero(keep(x))[:rows]
    return x[kept], theta[kept]


def never_took_off(x):
    return x.sum(1) < 3


class OtherPrior:
    """Draws of the posterior under another prior."""

    def reference_posterior(self, x, n, rng):
        return posterior_draws(self.log_likelihood, self.other, x, n, rng)[0]


class SlowSIR(OtherPrior, SIR):
    other = Prior([Parameter("beta", LogNormal(np.log(0.1), 0.5)), Parameter("gamma", LogNormal(np.log(0.125), 0.2))])


class StiffGLM(OtherPrior, BernoulliGLM):
    other = MultivariateNormal([f"t{i}" for i in range(10)], np.zeros(10), 0.04 * prior_covariance())


class LateGLM(BernoulliGLMRaw):
    """A posterior that takes the stimulus for one bin later than it came."""

    def __init__(self):
        super().__init__()
        self.design = design_matrix(np.concatenate([[0], stimulus()[:-1]]))


class LateSIR(SIR):
    """A posterior that takes people for tested two days later than they were."""

    def log_likelihood(self, theta, x, steps=sir.STEPS):
        return super().log_likelihood(theta * (17 + 2 / 9) / 17, x, steps)


@pytest.mark.usefixtures("small")
def test_the_neurons_posterior_is_calibrated():
    check_calibration(BernoulliGLMRaw(), *drawn(BernoulliGLMRaw(), 40))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("wrong", "right"), [(StiffGLM(), BernoulliGLM()), (LateGLM(), BernoulliGLMRaw())])
def test_a_wrong_posterior_of_the_neuron_is_noticed(wrong, right):
    with pytest.raises(AssertionError):
        check_calibration(wrong, *drawn(right, 40))


@pytest.mark.usefixtures("small")
def test_the_epidemics_posterior_is_calibrated_where_it_never_took_off():
    check_calibration(SIR(), *drawn(SIR(), 25, keep=never_took_off))


@pytest.mark.usefixtures("small")
def test_an_epidemics_posterior_under_another_prior_is_noticed():
    with pytest.raises(AssertionError):
        check_calibration(SlowSIR(), *drawn(SIR(), 25, keep=never_took_off))


@pytest.mark.slow
@pytest.mark.parametrize("task", [BernoulliGLM(), SIR(), LotkaVolterra()], ids=lambda task: task.name)
def test_posteriors_are_calibrated_over_the_whole_prior(task):
    check_calibration(task, *drawn(task, 100))


@pytest.mark.slow
def test_an_epidemics_posterior_two_days_late_is_noticed():
    with pytest.raises(AssertionError):
        check_calibration(LateSIR(), *drawn(SIR(), 60))


@pytest.mark.parametrize(("task", "x"), [(SIR(), np.full(10, 0.5)), (LotkaVolterra(), -np.ones(20))])
def test_an_impossible_observation_is_refused(task, x):
    with pytest.raises(ObservationError, match="impossible under the prior"):
        task.reference_posterior(x, 10, rng())
