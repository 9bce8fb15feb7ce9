"""Expansion, growth, the linear power spectrum and band powers, against integrals, other codes and known limits."""

from itertools import pairwise

import numpy as np
import pytest
from judging import accuses
from scipy import stats
from scipy.integrate import quad, solve_ivp

from simulators.cosmology.background import HUBBLE_DISTANCE, comoving_distance, distance_modulus, growth
from simulators.cosmology.linear_power import Universes, linear_power, shape, transfer
from simulators.cosmology.power_spectrum import DENSITY, MODES, WAVENUMBERS, PowerSpectrum

Z = np.array([0.0, 0.3, 1.0, 3.0, 10.0])
PAIRS = [(0.3, -1.0), (0.1, -2.0), (0.5, -0.34), (0.2, -1 / 3), (0.05, -0.4), (0.6, -1.3)]
THETAS = [  # omega_m, sigma_8, w0, h, n_s, omega_b
    (0.3, 0.8, -1.0, 0.67, 0.96, 0.049),
    (0.15, 0.6, -1.5, 0.6, 0.9, 0.049),
    (0.5, 1.0, -0.5, 0.8, 1.05, 0.03),
    (0.1, 0.9, -0.7, 0.5, 0.96, 0.049),
]
CAMB_ACCURACY = 0.075  # of P, at these theta


def rng(seed=0):
    return np.random.default_rng(seed)


def universes(*numbers):
    return Universes(*np.array(numbers, float)[:, None])


# Expansion and growth


def grown(omega_m, w0):
    """D(z) / D(0) by the equation of growth, from the growing mode of early times on."""

    def slope(log_a, y):
        matter, dark = omega_m * np.exp(-3 * log_a), (1 - omega_m) * np.exp(-3 * (1 + w0) * log_a)
        share = matter / (matter + dark)
        return [y[1], 1.5 * share * y[0] - (2 - 1.5 * (share + (1 + w0) * (1 - share))) * y[1]]

    a = solve_ivp(slope, [np.log(1e-6), 0], [1e-6, 1e-6], rtol=1e-10, atol=1e-14, dense_output=True).sol
    return a(-np.log1p(Z))[0] / a(0)[0]


def check_growth(function):
    for omega_m, w0 in PAIRS:
        ours = function(Z, np.array([omega_m]), np.array([w0]))[0]
        np.testing.assert_allclose(ours, grown(omega_m, w0), rtol=1e-8)


def test_growth_solves_its_equation():
    check_growth(growth)


@pytest.mark.parametrize("power", [0.45, 0.55], ids=["slow", "fast"])
def test_growth_by_a_power_of_the_matter_share_is_noticed(power):
    """D ~ exp(int Omega_m(a)^0.55 dln a) is good to 1e-3 and not exact; as its own law it must be told apart."""

    def rough(z, omega_m, w0):
        def rate(log_a):
            matter = omega_m * np.exp(-3 * log_a)
            return (matter / (matter + (1 - omega_m) * np.exp(-3 * (1 + w0) * log_a)))[0] ** power

        return np.exp([[-quad(rate, -np.log1p(one), 0)[0] for one in z]])

    accuses(check_growth, rough)


def test_growth_without_dark_energy_is_the_scale_factor():
    np.testing.assert_allclose(growth(Z, np.ones(1), -np.ones(1))[0], 1 / (1 + Z), rtol=1e-12)


def test_rows_of_growth_and_distance_are_their_own():
    omega_m, w0 = np.array(PAIRS).T
    for function in (growth, comoving_distance):
        rows = [function(Z, omega_m[i : i + 1], w0[i : i + 1])[0] for i in range(len(PAIRS))]
        np.testing.assert_allclose(function(Z, omega_m, w0), rows, rtol=1e-12)


def test_distances_agree_with_astropy():
    cosmology = pytest.importorskip("astropy.cosmology")
    redshift = np.array([0.01, 0.3, 1.0, 2.3])
    for omega_m, w0 in PAIRS:
        theirs = cosmology.FlatwCDM(H0=70, Om0=omega_m, w0=w0)
        ours = comoving_distance(redshift, np.array([omega_m]), np.array([w0]))[0] * HUBBLE_DISTANCE
        np.testing.assert_allclose(ours, theirs.comoving_distance(redshift).value, rtol=1e-6)
        modulus = distance_modulus(redshift, np.array([omega_m]), np.array([w0]))[0]
        np.testing.assert_allclose(modulus, theirs.distmod(redshift).value, rtol=0, atol=1e-5)


# The linear power spectrum


def sphere(k, radius=8.0):
    return 3 * (np.sin(k * radius) - k * radius * np.cos(k * radius)) / (k * radius) ** 3


def check_sigma_8(power):
    """The integral over each octave, adaptively, to 1e-4."""
    for theta in THETAS:

        def integrand(log_k, theta=theta):
            k = np.exp(log_k)
            return k**3 * power(np.array([k]), 0.0, universes(*theta))[0, 0] / (2 * np.pi**2) * sphere(k) ** 2

        edges = np.log(np.geomspace(1e-4, 30, 19))
        variance = sum(quad(integrand, a, b, epsrel=1e-6)[0] for a, b in pairwise(edges))
        assert abs(variance**0.5 / theta[1] - 1) < 1e-4


def test_sigma_8_integrates_back():
    check_sigma_8(linear_power)


def test_a_power_a_thousandth_too_high_is_noticed():
    accuses(check_sigma_8, lambda k, z, u: 1.001 * linear_power(k, z, u))


def test_on_large_scales_the_power_is_primordial():
    k = np.geomspace(1e-6, 1e-5, 5)
    for theta in THETAS:
        power = linear_power(k, 0.0, universes(*theta))[0]
        np.testing.assert_allclose(power / power[0], (k / k[0]) ** theta[4], rtol=1e-3)
    assert abs(transfer(np.array([1e-7]), np.array(0.14), np.array(0.02))[0] - 1) < 1e-4


def test_on_small_scales_cold_matter_falls_as_it_should():
    """T ~ ln k / k^2 far inside equality; baryons have then lost their part: what is left is alpha_c of cold matter."""
    k = np.array([50.0, 100.0])
    ours = transfer(k, np.array(0.14), np.array(0.02))
    q = k / (13.41 * 7.46e-2 * 0.14 / (2.7255 / 2.7) ** 2)
    slope = np.log(np.e + 1.8 * q) / q**2
    np.testing.assert_allclose((ours / slope)[1] / (ours / slope)[0], 1, atol=0.03)


def test_the_wiggles_have_the_sound_horizon():
    """Peaks of the ratio to a spectrum almost without baryons are 2 pi / s apart, s = 150 Mpc (Eisenstein and Hu)."""
    k = np.linspace(0.03, 0.3, 2000)
    ratio = transfer(k, np.array(0.147), np.array(0.0246)) / transfer(k, np.array(0.147), np.array(1e-5))
    smooth = np.polyval(np.polyfit(np.log(k), ratio, 6), np.log(k))
    wiggle = np.fft.rfft((ratio / smooth - 1) * np.hanning(len(k)), 2**16)
    s = np.abs(wiggle).argmax() / 2**16 * len(k) / (k[-1] - k[0]) * 2 * np.pi
    assert abs(s / 150 - 1) < 0.05


def test_growth_scales_the_power_and_rows_are_their_own():
    k, all_of_them = np.geomspace(0.01, 1, 7), Universes(*np.array(THETAS).T)
    decline = growth(np.array([1.2]), all_of_them.omega_m, all_of_them.w0)
    together = linear_power(k, 1.2, all_of_them)
    np.testing.assert_allclose(together, linear_power(k, 0.0, all_of_them) * decline**2, rtol=1e-12)
    np.testing.assert_allclose(together, [linear_power(k, 1.2, universes(*t))[0] for t in THETAS], rtol=1e-12)
    expected = shape(k, all_of_them) * all_of_them.sigma_8[:, None] ** 2
    np.testing.assert_allclose(linear_power(k, 0.0, all_of_them), expected, rtol=1e-12)


@pytest.mark.parametrize("theta", [THETAS[0], (0.15, 1.0, -0.5, *THETAS[0][3:]), (0.45, 0.8, -1.5, *THETAS[0][3:])])
def test_power_and_growth_agree_with_camb(theta):
    camb = pytest.importorskip("camb")
    omega_m, sigma_8, w0, h, n_s, omega_b = theta
    p = camb.CAMBparams()
    densities = {"ombh2": omega_b * h**2, "omch2": (omega_m - omega_b) * h**2}
    p.set_cosmology(H0=100 * h, mnu=0, num_massive_neutrinos=0, TCMB=2.7255, **densities)
    p.set_dark_energy(w=w0, dark_energy_model="ppf")
    p.InitPower.set_params(ns=n_s, As=2e-9)
    p.set_matter_power(redshifts=[1.0, 0.0], kmax=10)
    p.NonLinear = camb.model.NonLinear_none
    results = camb.get_results(p)
    theirs = results.get_matter_power_interpolator(nonlinear=False, hubble_units=True, k_hunit=True)
    k = np.geomspace(5e-3, 2, 100)
    today, before = (theirs.P(z, k) * (sigma_8 / results.get_sigma8_0()) ** 2 for z in (0.0, 1.0))
    np.testing.assert_allclose(linear_power(k, 0.0, universes(*theta))[0], today, rtol=CAMB_ACCURACY)
    ours = growth(np.array([1.0]), np.array([omega_m]), np.array([w0]))[0, 0]
    np.testing.assert_allclose(np.sqrt(before / today).mean(), ours, rtol=1e-3)


# power_spectrum


class TooManyModes(PowerSpectrum):
    """A likelihood that counts a mode and its complex conjugate as two."""

    def log_likelihood(self, theta, x):
        return stats.gamma(2 * MODES, scale=self.mean(theta) / (2 * MODES)).logpdf(x).sum(-1)


class WithoutShotNoise(PowerSpectrum):
    """Band powers of matter alone."""

    def __call__(self, theta, rng):
        return super().__call__(theta, rng) - 1 / DENSITY


TRUTH = PowerSpectrum.fiducial[None]


def check_bands(problem):
    """Each band's powers are those of a mean of squared moduli of complex normal numbers: Kolmogorov and Smirnov."""
    x, n = problem(np.repeat(TRUTH, 500, 0), rng()), 500
    power = linear_power(WAVENUMBERS, 0.5, Universes(TRUTH[:, 0], TRUTH[:, 2], h=TRUTH[:, 1]))[0] + 1 / DENSITY
    for band in (0, 1, 5, 23):
        size = (n, int(MODES[band]))
        modes = rng(band + 1).normal(size=size) + 1j * rng(band + 2).normal(size=size)
        expected = power[band] / 2 * (np.abs(modes) ** 2).mean(1)
        assert stats.ks_2samp(x[:, band], expected).pvalue > 1e-4


def test_band_powers_are_means_of_squared_modes():
    check_bands(PowerSpectrum())


def test_forgotten_shot_noise_is_noticed():
    accuses(check_bands, WithoutShotNoise())


def test_the_likelihood_of_band_powers_is_scipys_gamma():
    problem = PowerSpectrum()
    theta = problem.prior.sample(5, seed=0)
    x = problem(TRUTH, rng())[0]
    expected = stats.gamma(MODES, scale=problem.mean(theta) / MODES).logpdf(x).sum(-1)
    np.testing.assert_allclose(problem.log_likelihood(theta, x), expected, rtol=1e-10)
    assert problem.log_likelihood(theta, x * np.where(np.arange(24) == 3, 0, 1)).tolist() == [-np.inf] * 5


@pytest.fixture(scope="module")
def truths():
    """100 truths and their x, 20,000 other draws and their mean x: of a part of the prior some posteriors wide."""
    low, width = TRUTH - [0.05, 0.15, 0.03], np.array([0.1, 0.3, 0.06])
    truths, theta = (low + width * rng(i).random((n, 3)) for i, n in ((0, 100), (1, 20_000)))
    return truths, PowerSpectrum()(truths, rng(2)), theta, PowerSpectrum().mean(theta)


def check_ranks(problem, truths):
    """Where the truths lie among draws weighted by the likelihood is uniform, as a whole and in its spread."""
    truths, xs, theta, mean = truths
    problem.mean = lambda _: mean
    ranks = []
    for truth, x in zip(truths, xs, strict=True):
        log_weight = problem.log_likelihood(theta, x)
        weight = np.exp(log_weight - log_weight.max())
        ranks.append(weight @ (theta < truth) / weight.sum())
    for column in np.array(ranks).T:
        assert stats.kstest(column, "uniform").pvalue > 1e-4
        assert 1e-4 < stats.chi2(100).sf((stats.norm.ppf(column) ** 2).sum()) < 1 - 1e-4


def test_the_truths_lie_anywhere_in_their_posteriors(truths):
    check_ranks(PowerSpectrum(), truths)


def test_posteriors_of_twice_the_modes_are_noticed(truths):
    accuses(check_ranks, TooManyModes(), truths)


def test_the_posterior_of_band_powers_is_that_of_a_grid():
    """Moments within 4.5 standard errors; draws a fifth too narrow are noticed."""
    problem, n = PowerSpectrum(), 1000
    x = problem(TRUTH, rng(1))[0]
    draws = problem.reference_posterior(x, n, rng())
    widths = draws.std(0)
    axes = [c + w * np.linspace(-5, 5, 31) for c, w in zip(draws.mean(0), widths, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    grid = grid[problem.prior.coordinates.inside(grid).all(1)]
    log_weight = problem.log_likelihood(grid, x)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    mean = weight @ grid
    sd = np.sqrt(weight @ (grid - mean) ** 2)
    error = np.sqrt((weight @ ((grid - mean) / sd) ** 4 - 1) / 4 / n)
    assert (np.abs(draws.mean(0) - mean) < 4.5 * sd / np.sqrt(n)).all()
    assert (np.abs(widths / sd - 1) < 4.5 * error).all()
    assert (np.abs(0.8 * widths / sd - 1) > 4.5 * error).any()
    assert (sd / problem.prior.sample(10_000, seed=0).std(0) < [0.3, 0.6, 0.15]).all()
