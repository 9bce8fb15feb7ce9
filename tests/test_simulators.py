"""The problems that come along, against what is known of them: densities, draws and posteriors."""

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

from sbi_dgm.distributions import Uniform
from sbi_dgm.errors import ObservationError, OptionError
from sbi_dgm.priors import Prior
from sbi_dgm.simulator import Simulator, available, find, unbatched
from simulators.cosmology.background import HUBBLE_DISTANCE, distance_modulus
from simulators.cosmology.supernovae import Supernovae
from simulators.gaussian_linear import GaussianLinear
from simulators.two_moons import TwoMoons

PUBLISHED = Path(__file__).parents[2] / "shared" / "data" / "sbibm_reference.h5"
N = 10_000
THETA = np.array([0.3, -1.0, 0.02])


def rng(seed=0):
    return np.random.default_rng(seed)


def published(task, dataset):
    if not PUBLISHED.is_file():
        pytest.skip("the published reference draws are not here")
    with h5py.File(PUBLISHED) as file:
        return file[task][dataset][:]


# What a plug-in is


@pytest.mark.parametrize("name", ["gaussian_linear", "supernovae", "two_moons"])
def test_every_simulator_is_found_by_name_and_keeps_the_contract(name):
    simulator = find(name)
    assert isinstance(simulator, Simulator)
    assert simulator.name == name
    theta = simulator.prior.sample(4, seed=0)
    x = simulator(theta, rng())
    (observable,) = simulator.observables.values()
    assert x.shape == (4, *observable.shape)
    assert simulator(theta, rng()).tolist() == x.tolist()
    assert simulator(theta, rng(1)).tolist() != x.tolist()
    assert all(
        value.shape == simulator.observables[key].shape for key, value in getattr(simulator, "observed", {}).items()
    )


def test_an_unknown_simulator_suggests_the_nearest():
    with pytest.raises(OptionError, match="unknown simulator 'supernova': did you mean 'supernovae'"):
        find("supernova")
    assert {"gaussian_linear", "supernovae", "two_moons"} <= set(available())


def test_unbatched_lifts_arrays_and_dicts_row_after_row():
    theta = np.arange(6.0).reshape(3, 2)
    lifted = unbatched(lambda row, rng: {"sum": row.sum(), "twice": 2 * row})(theta, rng())
    assert lifted["sum"].tolist() == [1.0, 5.0, 9.0]
    assert lifted["twice"].tolist() == (2 * theta).tolist()
    noisy = unbatched(lambda row, rng: row + rng.normal(size=2))
    assert noisy(theta, rng()).tolist() == (theta + rng().normal(size=(3, 2))).tolist()


# gaussian_linear


class TooNarrow(GaussianLinear):
    """A posterior whose standard deviation is five per cent too small."""

    def posterior_log_prob(self, theta, x):
        half = 0.95**2 * 0.05
        return stats.norm(x / 2, half**0.5).logpdf(theta).sum(-1)

    def reference_posterior(self, x, n, rng):
        return x / 2 + 0.95 * (super().reference_posterior(x, n, rng) - x / 2)


def check_bayes_theorem(problem):
    """ln p(x | theta) + ln p(theta) - ln p(theta | x) is the evidence ln N(x; 0, 0.2 I), whatever theta."""
    theta, x = problem.prior.sample(100, seed=0), np.linspace(-1, 1, 10)
    log_evidence = (
        problem.log_likelihood(theta, x) + problem.prior.log_prob(theta) - problem.posterior_log_prob(theta, x)
    )
    np.testing.assert_allclose(log_evidence, stats.norm(0, 0.2**0.5).logpdf(x).sum(), rtol=0, atol=1e-10)


def check_gaussian_draws(problem):
    """Moments of draws for one x: 4 standard errors of ten means, and of the variance of all."""
    x = np.linspace(-1, 1, 10)
    away = problem.reference_posterior(x, N, rng()) - x / 2
    assert (np.abs(away.mean(0)) < 4 * np.sqrt(0.05 / N)).all()
    assert abs(away.var() / 0.05 - 1) < 4 * np.sqrt(2 / (10 * N))
    correlation = np.corrcoef(away.T) - np.eye(10)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(N)  # 45 pairs


@pytest.mark.parametrize("check", [check_bayes_theorem, check_gaussian_draws])
def test_gaussian_linear_has_its_posterior(check):
    check(GaussianLinear())


@pytest.mark.parametrize("check", [check_bayes_theorem, check_gaussian_draws])
def test_a_gaussian_posterior_five_per_cent_too_narrow_is_noticed(check):
    with pytest.raises(AssertionError):
        check(TooNarrow())


def test_gaussian_linear_simulates_its_likelihood():
    problem, theta = GaussianLinear(), np.linspace(-1, 1, 10)
    x = problem(np.tile(theta, (N, 1)), rng())
    noise = stats.norm(theta, 0.1**0.5)
    np.testing.assert_allclose(problem.log_likelihood(theta, x[0]), noise.logpdf(x[0]).sum(), rtol=1e-12)
    assert min(stats.kstest(x[:, i], noise.dist(theta[i], 0.1**0.5).cdf).pvalue for i in range(10)) > 1e-4


@pytest.mark.parametrize("row", range(5))
def test_gaussian_linear_agrees_with_the_published_draws(row):
    known = published("gaussian_linear", "reference_posterior")[row]
    ours = GaussianLinear().reference_posterior(published("gaussian_linear", "observations")[row], N, rng(row))
    assert min(stats.ks_2samp(a, b).pvalue for a, b in zip(ours.T, known.T, strict=True)) > 1e-4


# two_moons


class WithoutRadius(TwoMoons):
    """A likelihood that forgets the 1 / r of polar coordinates."""

    def log_likelihood(self, theta, x):
        p = x - np.array([-np.abs(theta.sum(-1)), theta[..., 1] - theta[..., 0]]).T / np.sqrt(2) - [0.25, 0]
        return super().log_likelihood(theta, x) + np.log(np.hypot(p[..., 0], p[..., 1]) / 0.1)


class OneMoon(TwoMoons):
    """Draws of one of the two crescents only."""

    def reference_posterior(self, x, n, rng):
        theta = super().reference_posterior(x, n, rng)
        return np.where(theta.sum(-1, keepdims=True) > 0, theta, -theta[:, ::-1])


class Shifted(TwoMoons):
    """The posterior of an x that is half a crescent's width to the right."""

    def reference_posterior(self, x, n, rng):
        return super().reference_posterior(x + np.array([0.005, 0]), n, rng)


def check_moons_likelihood(problem):
    """E[1_A(x) / p(x | theta)] over draws of x is the area of A: here two half rings; 4 standard errors."""
    theta = np.array([0.4, -0.1])
    x = problem(np.tile(theta, (100_000, 1)), rng())
    density = np.exp(problem.log_likelihood(np.tile(theta, (len(x), 1)), x))
    radius = np.hypot(x[:, 0] - 0.25 + 0.3 / np.sqrt(2), x[:, 1] + 0.5 / np.sqrt(2))
    for low, high in [(0.085, 0.095), (0.105, 0.115)]:
        share = ((low < radius) & (radius < high)) / density
        assert abs(share.mean() - np.pi / 2 * (high**2 - low**2)) < 4 * share.std() / np.sqrt(len(x))


def check_moons_posterior(problem, x):
    """Pearson's chi2 of draws on 100 x 100 cells of the box against the likelihood on 16 x 16 points in each."""
    axis = (np.arange(1600) + 0.5) / 800 - 1
    theta = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    mass = np.exp(problem.log_likelihood(theta, x)).reshape(100, 16, 100, 16).sum((1, 3))
    counts, *_ = np.histogram2d(*problem.reference_posterior(x, N, rng()).T, bins=100, range=[(-1, 1), (-1, 1)])
    expected = N * mass / mass.sum()
    many = expected > 5
    observed, known = np.append(counts[many], N - counts[many].sum()), np.append(expected[many], expected[~many].sum())
    chi2 = ((observed - known) ** 2 / known).sum()
    assert stats.chi2(many.sum()).sf(chi2) > 1e-4


INSIDE, AT_THE_EDGE = np.array([0.0, 0.0]), np.array([-1.05, 0.1])


def test_two_moons_simulates_its_likelihood():
    check_moons_likelihood(TwoMoons())


def test_a_likelihood_without_its_jacobian_is_noticed():
    with pytest.raises(AssertionError):
        check_moons_likelihood(WithoutRadius())


def test_the_moons_likelihood_integrates_to_one_over_x():
    theta = np.array([0.4, -0.1])
    step = 1 / 4000
    start = np.array([0.25 - 0.3 / np.sqrt(2), -0.5 / np.sqrt(2)])  # the flat side of the crescent
    grid = np.stack(np.meshgrid(np.arange(600), np.arange(-600, 600), indexing="ij"), axis=-1)
    x = start + (grid + 0.5) * step
    shift = x - x[300, 600]  # the likelihood takes one x: move theta's place instead
    moved = theta - np.stack([-shift[..., 0] - shift[..., 1], -shift[..., 0] + shift[..., 1]], axis=-1) / np.sqrt(2)
    assert (moved.sum(-1) > 0).all()
    density = np.exp(TwoMoons().log_likelihood(moved, x[300, 600]))
    assert density.sum() * step**2 == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("x", [INSIDE, AT_THE_EDGE], ids=["inside", "cut"])
def test_two_moons_has_its_posterior(x):
    check_moons_posterior(TwoMoons(), x)


@pytest.mark.parametrize("wrong", [OneMoon(), Shifted()], ids=["one moon", "shifted"])
def test_a_wrong_moons_posterior_is_noticed(wrong):
    with pytest.raises(AssertionError):
        check_moons_posterior(wrong, INSIDE)


@pytest.mark.parametrize("row", range(5))
def test_two_moons_agrees_with_the_published_draws(row):
    known = published("two_moons", "reference_posterior")[row]
    ours = TwoMoons().reference_posterior(published("two_moons", "observations")[row], N, rng(row))
    turn = np.array([[1, 0], [0, 1], [1, 1], [1, -1]])
    assert min(stats.ks_2samp(ours @ t, known @ t).pvalue for t in turn) > 1e-4


def test_an_impossible_observation_is_refused():
    with pytest.raises(ObservationError, match="impossible under the prior"):
        TwoMoons().reference_posterior(np.array([5.0, 0.0]), 10, rng())


# supernovae


class ShiftedPower(Supernovae):
    """Draws of w0 shifted by half a posterior standard deviation."""

    def reference_posterior(self, x, n, rng, cells=150):
        return super().reference_posterior(x, n, rng, cells) + np.array([0, 0.1, 0])


class WithoutTruncation(Supernovae):
    """A posterior that forgets the prior's bounds on M."""

    def reference_posterior(self, x, n, rng, cells=150):
        wide = Supernovae()
        *first, last = wide.prior.parameters
        wide.prior = Prior([*first, replace(last, prior=Uniform(-3.0, 3.0))])
        return wide.reference_posterior(x, n, rng, cells)


def exact_modulus(redshift, omega_m, w0):
    def integrand(z):
        return (omega_m * (1 + z) ** 3 + (1 - omega_m) * (1 + z) ** (3 * (1 + w0))) ** -0.5

    return [
        5 * np.log10((1 + z) * HUBBLE_DISTANCE * quad(integrand, 0, z, epsabs=0, epsrel=1e-12)[0]) + 25
        for z in redshift
    ]


def check_distance(modulus):
    redshift = Supernovae().redshift
    omega_m, w0 = np.array([0.05, 0.3, 0.6, 0.1]), np.array([-0.3, -1.0, -2.0, -1.7])
    expected = [exact_modulus(redshift, *pair) for pair in zip(omega_m, w0, strict=True)]
    np.testing.assert_allclose(modulus(redshift, omega_m, w0), expected, rtol=0, atol=1e-9)


def check_supernova_noise(simulate):
    """Sample covariance of N draws against the compilation's: 496 entries within 4.5 standard errors each."""
    problem = Supernovae()
    c = problem.covariance
    residual = (
        simulate(np.tile(THETA, (N, 1)), rng()) - distance_modulus(problem.redshift, THETA[:1], THETA[1:2]) - THETA[2]
    )
    assert (np.abs(residual.mean(0)) < 4.5 * np.sqrt(np.diag(c) / N)).all()
    error = np.sqrt((np.outer(np.diag(c), np.diag(c)) + c**2) / N)
    assert (np.abs(residual.T @ residual / N - c) < 4.5 * error).all()


def check_supernova_posterior(problem, x, proposals=150_000):
    """Means and sds against the prior's draws weighted by the likelihood; 4 standard errors from the effective size."""
    theta = Supernovae().prior.sample(proposals, seed=0)
    log_weight = Supernovae().log_likelihood(theta, x)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    effective = 1 / (weight**2).sum()
    assert effective > 200
    mean = weight @ theta
    sd = np.sqrt(weight @ (theta - mean) ** 2)
    kurtosis = weight @ ((theta - mean) / sd) ** 4
    draws = problem.reference_posterior(x, N, rng(1), cells=150)
    assert (np.abs(draws.mean(0) - mean) < 4 * sd * np.sqrt(1 / effective + 1 / N)).all()
    assert (np.abs(draws.std(0) / sd - 1) < 4 * np.sqrt((kurtosis - 1) / 4 * (1 / effective + 1 / N))).all()


def observed(shift=0.0):
    return Supernovae().observed["mu"] + shift


def test_the_distance_modulus_is_the_integral():
    check_distance(distance_modulus)


def test_a_distance_with_w0_off_by_a_thousandth_is_noticed():
    with pytest.raises(AssertionError):
        check_distance(lambda z, omega_m, w0: distance_modulus(z, omega_m, w0 + 1e-3))


def test_the_distance_modulus_of_einstein_and_de_sitter():
    redshift = np.array([0.01, 0.1, 0.5, 1.0, 1.3])
    distance = 2 * HUBBLE_DISTANCE * (1 + redshift) * (1 - 1 / np.sqrt(1 + redshift))
    expected = 5 * np.log10(distance) + 25
    np.testing.assert_allclose(distance_modulus(redshift, np.ones(1), -np.ones(1))[0], expected, rtol=0, atol=1e-10)


def test_the_noise_has_the_compilations_covariance():
    check_supernova_noise(Supernovae())


def test_noise_by_the_transposed_factor_is_noticed():
    problem = Supernovae()
    factor = np.linalg.cholesky(problem.covariance)

    def wrong(theta, rng):
        model = distance_modulus(problem.redshift, theta[:, 0], theta[:, 1]) + theta[:, 2:]
        return model + rng.standard_normal(model.shape) @ factor

    with pytest.raises(AssertionError):
        check_supernova_noise(wrong)


def test_the_supernova_likelihood_is_scipys_normal():
    problem = Supernovae()
    theta = problem.prior.sample(5, seed=0)
    means = distance_modulus(problem.redshift, theta[:, 0], theta[:, 1]) + theta[:, 2:]
    expected = [stats.multivariate_normal(mean, problem.covariance).logpdf(observed()) for mean in means]
    np.testing.assert_allclose(problem.log_likelihood(theta, observed()), expected, rtol=1e-9)


def check_fits_the_data(problem):
    """The best of a grid has chi2 within the central 99.9 % for 31 data and 3 parameters."""
    theta = np.stack(
        np.meshgrid(np.linspace(0.1, 0.5, 17), np.linspace(-1.5, -0.5, 21), np.linspace(-0.1, 0.1, 41)), -1
    )
    best = problem.log_likelihood(theta.reshape(-1, 3), observed()).max()
    chi2 = -2 * best - np.linalg.slogdet(2 * np.pi * problem.covariance)[1]
    assert stats.chi2(28).ppf(0.0005) < chi2 < stats.chi2(28).ppf(0.9995)


def test_the_data_and_their_covariance_fit_together():
    check_fits_the_data(Supernovae())


def test_a_covariance_three_rows_off_is_noticed():
    problem = Supernovae()
    table = np.loadtxt(files("simulators") / "data" / "jla_covariance.txt")
    np.testing.assert_array_equal(problem.covariance, table[3:, 3:])
    problem.covariance = table[:-3, :-3]
    with pytest.raises(AssertionError):
        check_fits_the_data(problem)


@pytest.mark.parametrize("shift", [0.0, 0.3], ids=["observed", "M at its edge"])
def test_the_supernova_posterior_is_the_weighted_prior(shift):
    check_supernova_posterior(Supernovae(), observed(shift))


@pytest.mark.parametrize(("wrong", "shift"), [(ShiftedPower(), 0.0), (WithoutTruncation(), 0.3)])
def test_a_wrong_supernova_posterior_is_noticed(wrong, shift):
    with pytest.raises(AssertionError):
        check_supernova_posterior(wrong, observed(shift))


@pytest.mark.parametrize("shift", [0.0, 0.3, 1.0, -1.0])
def test_supernova_draws_stay_inside_the_prior_for_any_x(shift):
    problem = Supernovae()
    problem.prior.check(problem.reference_posterior(observed(shift), 2000, rng(), cells=60))
