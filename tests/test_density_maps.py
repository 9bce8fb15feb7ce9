"""Density maps against their power: brute-force covariances and integrals, cosmic variance, exact posteriors."""

from itertools import pairwise

import numpy as np
import pytest
from judging import accuses
from scipy import stats
from scipy.integrate import quad

from sbi_dgm.errors import DataError, PriorError
from simulators.cosmology import density_maps
from simulators.cosmology.density_maps import NOISE, REDSHIFTS, SIDE, THICKNESS, DensityMaps, LognormalMaps
from simulators.cosmology.linear_power import Universes, linear_power
from simulators.cosmology.slices import Slice

TRUTH = DensityMaps.fiducial[None]
UNIVERSE = Universes(*TRUTH.T)
MAPS = 200


def rng(seed=0):
    return np.random.default_rng(seed)


def small(pixels, problem=DensityMaps):
    made = problem()
    made.slice = Slice(pixels, SIDE, THICKNESS)
    return made


class TooPowerful(DensityMaps):
    """Fields whose power is five per cent too high."""

    def signal(self, theta):
        return 1.05 * super().signal(theta)


class Noiseless(DensityMaps):
    """Fields without their noise."""

    def __call__(self, theta, rng):
        return self.slice.filtered(self.signal(theta)[..., self.slice.quadrant], rng)


class OwnPairs(DensityMaps):
    """A likelihood that counts a mode that is its own negative as a pair."""

    def _log_likelihood(self, theta, squares):
        total, more = self.signal(theta) + NOISE**2, np.zeros(len(self.slice.modes))
        more[[0, -1]] = 1, 1
        return super()._log_likelihood(theta, squares) - 0.5 * (more * np.log(2 * np.pi * total)).sum((1, 2))


class WithoutNoise(DensityMaps):
    """A likelihood that believes in half of the noise."""

    def _log_likelihood(self, theta, squares):
        total = self.signal(theta) + NOISE**2 / 4
        return -0.5 * (squares / total + self.slice.modes * np.log(2 * np.pi * total)).sum((1, 2))


class Unlogged(LognormalMaps):
    """Lognormal fields made of a Gaussian one with the correlations that they should have themselves."""

    def __call__(self, theta, rng):
        eigenvalues = self.signal(theta)[..., self.slice.quadrant]
        variance = (self.slice.modes * self.signal(theta)).sum(-1) / self.slice.pixels**2
        field = np.expm1(self.slice.filtered(eigenvalues, rng) - variance[..., None, None] / 2)
        return field + NOISE * rng.standard_normal(field.shape)


# The power of a slice


def check_projection(problem):
    """Eigenvalues against a quadrature of the projection, for wavenumbers from 0 to the largest: to 1e-3."""
    ours = problem.signal(TRUTH)[0]
    for place, k in ((0, 0.0), (1, problem.slice.wavenumbers[1]), (100, problem.slice.wavenumbers[100]), (-1, 0.55536)):

        def integrand(line, k=k):
            window = np.sinc(line * THICKNESS / 2 / np.pi) ** 2
            return window * linear_power(np.array([np.hypot(k, line)]), 0.0, UNIVERSE)[0, 0] / np.pi

        edges = 2 * np.pi / THICKNESS * np.arange(60)
        power = sum(quad(integrand, a or 1e-6, b)[0] for a, b in pairwise(edges))
        assert abs(ours[0, place] / (64**2 / SIDE**2 * power) - 1) < 1e-3


def test_the_power_of_a_slice_is_the_projected_one():
    check_projection(DensityMaps())


def test_power_of_a_slice_five_per_cent_too_high_is_noticed():
    accuses(check_projection, TooPowerful())


def test_between_its_nodes_the_polynomial_in_omega_m_is_the_power():
    problem = DensityMaps()
    for theta in problem.prior.sample(5, seed=0):
        direct = problem.slice.eigenvalues(Universes(theta[:1], theta[1:2]))[0] * theta[1] ** 2
        np.testing.assert_allclose(problem.signal(theta[None])[0, 0], direct, rtol=1e-6)


def test_universes_outside_the_prior_are_refused():
    with pytest.raises(PriorError, match=r"omega_m = 0.1 is outside its prior \[0.15, 0.5\]"):
        DensityMaps()(np.array([[0.1, 0.8, -1.0]]), rng())


# Fields


def check_spectrum(problem, expected=None):
    """Sums of squares over 20 bands of modes of many maps are chi^2 about their eigenvalues."""
    x = problem(np.repeat(TRUTH, MAPS, 0), rng())
    total = DensityMaps().signal(TRUTH)[0] + NOISE**2
    squares = np.mean([problem.slice.pooled(one) for one in x], axis=0) / total
    bands = np.array_split(np.arange(len(problem.slice.modes)), 20)
    for one in squares:
        got = np.array([one[band].sum() for band in bands])
        degrees = np.array([problem.slice.modes[band].sum() for band in bands])
        z = (got - degrees) / np.sqrt(2 * degrees / MAPS)
        assert stats.chi2(len(bands)).sf((z**2).sum()) > 1e-4


def test_gaussian_maps_have_their_power_within_cosmic_variance():
    check_spectrum(DensityMaps())


@pytest.mark.parametrize("wrong", [TooPowerful, Noiseless])
def test_maps_of_a_wrong_power_are_noticed(wrong):
    accuses(check_spectrum, wrong())


def check_bands(problem):
    """Means over 20 bands of modes against the input, with standard errors from the scatter among maps."""
    x = problem(np.repeat(TRUTH, MAPS, 0), rng())
    total = DensityMaps().signal(TRUTH)[0] + NOISE**2
    squares = np.array([problem.slice.pooled(one) for one in x]) / total
    bands = np.array_split(np.arange(len(problem.slice.modes)), 20)
    shares = np.stack([squares[..., band].sum(-1) / problem.slice.modes[band].sum() for band in bands], -1)
    z = (shares.mean(0) - 1) / (shares.std(0) / np.sqrt(MAPS))
    assert np.abs(z).max() < 4.5


def test_lognormal_maps_have_the_power_of_gaussian_ones():
    check_bands(LognormalMaps())


def test_the_exponential_of_a_gaussian_field_without_the_logarithm_is_noticed():
    accuses(check_bands, Unlogged())


def test_the_variance_of_a_pixel_is_the_mean_of_the_eigenvalues():
    x = DensityMaps()(np.repeat(TRUTH, 2 * MAPS, 0), rng(1))
    lattice = x[:, :, ::16, ::16].astype(float)  # nearly independent pixels
    expected = (DensityMaps().slice.modes * (DensityMaps().signal(TRUTH)[0] + NOISE**2)).sum(-1) / 64**2
    ratio = lattice.var((0, 2, 3)) / expected
    assert (np.abs(ratio - 1) < 4 * np.sqrt(2 * 1.3 / (lattice.size / 2))).all()


def test_the_logarithm_of_a_lognormal_map_is_gaussian(monkeypatch):
    monkeypatch.setattr(density_maps, "NOISE", 0.0)
    problem = LognormalMaps()
    x = problem(np.repeat(TRUTH, 50, 0), rng()).astype(float)
    assert x.min() > -1
    gaussian, variance = problem.slice.lognormal(problem.signal(TRUTH)[..., problem.slice.quadrant])
    g = np.log1p(x) + variance[0][:, None, None] / 2
    modes = np.fft.rfft2(g, norm="ortho")[..., 1:32, 1:32]
    half = np.sqrt(gaussian[0, :, 1:32, 1:32] / 2)
    for part in (modes.real / half, modes.imag / half):
        for one in (0, 1):
            assert stats.kstest(part[:, one].ravel(), "norm").pvalue > 1e-4
    assert stats.skew(x[:, 0].ravel()) > 1


def test_a_power_that_no_lognormal_field_has_is_refused():
    problem = LognormalMaps()
    eigenvalues = problem.signal(TRUTH)[..., problem.slice.quadrant]
    eigenvalues[..., 20:, :] = 0
    with pytest.raises(DataError, match=r"row 0, slice 0: .* eigenvalue -.* below 0"):
        problem.slice.lognormal(eigenvalues)


def test_every_universe_of_the_prior_has_lognormal_maps():
    problem = LognormalMaps()
    theta = np.array(np.meshgrid([0.15, 0.2, 0.3, 0.5], [0.6, 1.0], [-1.6, -0.4])).reshape(3, -1).T
    eigenvalues = problem.signal(theta)[..., problem.slice.quadrant]
    gaussian, _ = problem.slice.lognormal(eigenvalues)
    assert (gaussian / eigenvalues).min() > 0.4


# Likelihood and posterior


def check_likelihood(problem):
    """ln p of 8 x 8 maps against the normal of the pixels' covariance, summed over wavevectors in plain loops."""
    x, theta = problem(TRUTH, rng())[0].astype(float), DensityMaps().prior.sample(3, seed=0)
    signal = small(8).signal(theta)
    pixel = np.stack(np.meshgrid(np.arange(8), np.arange(8), indexing="ij"), -1).reshape(-1, 2)
    away = pixel[:, None] - pixel
    place = {round(k, 9): i for i, k in enumerate(problem.slice.wavenumbers)}
    expected = np.zeros(len(theta))
    for row in range(len(theta)):
        for one in range(len(REDSHIFTS)):
            covariance = NOISE**2 * np.eye(64)
            for i in range(-4, 4):
                for j in range(-4, 4):
                    eigenvalue = signal[row, one, place[round(2 * np.pi / SIDE * np.hypot(i, j), 9)]]
                    covariance += eigenvalue / 64 * np.cos(2 * np.pi / 8 * (away @ [i, j]))
            expected[row] += stats.multivariate_normal(np.zeros(64), covariance).logpdf(x[one].ravel())
    np.testing.assert_allclose(problem.log_likelihood(theta, x), expected, rtol=1e-9)


def test_the_likelihood_is_the_normal_density_of_all_pixels():
    check_likelihood(small(8))


@pytest.mark.parametrize("wrong", [OwnPairs, WithoutNoise])
def test_a_wrong_likelihood_of_maps_is_noticed(wrong):
    accuses(check_likelihood, small(8, wrong))


def check_score(problem):
    """The mean of the score over maps of one theta is 0 within 4 standard errors."""
    step = np.diag([1e-3, 1e-3, 1e-2])
    x = DensityMaps()(np.repeat(TRUTH, MAPS, 0), rng())
    squares = [problem.slice.pooled(one) for one in x]
    up, down = (np.array([problem._log_likelihood(TRUTH + sign * step, s) for s in squares]) for sign in (1, -1))
    score = (up - down) / (2 * np.diag(step))
    assert (np.abs(score.mean(0)) < 4 * score.std(0) / np.sqrt(MAPS)).all()


def test_the_score_at_the_truth_vanishes_on_average():
    check_score(DensityMaps())


def test_the_score_of_half_of_the_noise_is_noticed():
    accuses(check_score, WithoutNoise())


@pytest.fixture(scope="module")
def observed():
    """Maps of one universe, and 2,000 draws of their posterior."""
    x = DensityMaps()(TRUTH, rng(3))[0]
    return x, DensityMaps().reference_posterior(x, 2000, rng())


@pytest.fixture(scope="module")
def on_grid(observed):
    """Mean, standard deviation and kurtosis by a grid of the likelihood, in cells of half a standard deviation."""
    problem, (x, draws) = DensityMaps(), observed
    axes = [c + w * np.linspace(-6, 6, 25) for c, w in zip(draws.mean(0), (0.02, 0.012, 0.12), strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    grid = grid[problem.prior.coordinates.inside(grid).all(1)]
    log_weight = problem.log_likelihood(grid, x)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    mean = weight @ grid
    sd = np.sqrt(weight @ (grid - mean) ** 2)
    return mean, sd, weight @ ((grid - mean) / sd) ** 4


def check_posterior(draws, mean, sd, kurtosis):
    """Moments of the draws within 4.5 standard errors."""
    assert (np.abs(draws.mean(0) - mean) < 4.5 * sd / np.sqrt(len(draws))).all()
    assert (np.abs(draws.std(0) / sd - 1) < 4.5 * np.sqrt((kurtosis - 1) / 4 / len(draws))).all()


def test_the_posterior_of_maps_is_that_of_a_grid(observed, on_grid):
    check_posterior(observed[1], *on_grid)


def test_a_posterior_of_maps_a_tenth_too_narrow_is_noticed(observed, on_grid):
    draws = observed[1]
    accuses(check_posterior, draws.mean(0) + 0.9 * (draws - draws.mean(0)), *on_grid)


def test_two_redshifts_tell_w0(observed):
    """Near the fiducial point the posterior is far narrower than the prior, and around the truth."""
    draws = observed[1]
    assert (draws.std(0) / DensityMaps().prior.sample(10_000, seed=0).std(0) < [0.3, 0.2, 0.5]).all()
    assert (np.abs(draws.mean(0) - TRUTH[0]) < 4 * draws.std(0)).all()


def check_ranks(problem):
    """Where the truth lies among 30,000 draws of the prior weighted by the likelihood is uniform, over 100 truths."""
    truths, theta = problem.prior.sample(100, seed=0), problem.prior.sample(30_000, seed=1)
    x = small(8)(truths, rng())
    total = problem.signal(theta) + NOISE**2
    inverse = (1 / total).reshape(len(theta), -1)
    log_det = (problem.slice.modes * np.log(total)).sum((1, 2))
    ranks = []
    for truth, one in zip(truths, x, strict=True):
        log_weight = -0.5 * (inverse @ problem.slice.pooled(one).ravel() + log_det)
        weight = np.exp(log_weight - log_weight.max())
        ranks.append(weight @ (theta < truth) / weight.sum())
    assert min(stats.kstest(column, "uniform").pvalue for column in np.array(ranks).T) > 1e-4


def test_the_truths_lie_anywhere_in_their_posteriors():
    check_ranks(small(8))


def test_posteriors_of_a_signal_a_third_too_strong_are_noticed():
    class TooStrong(DensityMaps):
        def signal(self, theta):
            return super().signal(theta) * 1.35

    accuses(check_ranks, small(8, TooStrong))


@pytest.mark.slow
def test_the_truths_have_uniform_ranks_among_reference_draws():
    """Ranks of 100 truths among 99 draws each; draws half as wide are noticed."""
    problem = DensityMaps()
    truths = problem.prior.sample(100, seed=0)
    x = problem(truths, rng())
    draws = np.array([problem.reference_posterior(one, 99, rng(i)) for i, one in enumerate(x)])
    check_uniform(truths, draws)
    accuses(check_uniform, truths, draws.mean(1, keepdims=True) + 0.5 * (draws - draws.mean(1, keepdims=True)))


def check_uniform(truths, draws):
    ranks = ((draws < truths[:, None]).sum(1) + rng(7).random(truths.shape)) / 100
    for column in ranks.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-4
        assert 1e-4 < stats.chi2(len(column)).sf((stats.norm.ppf(column) ** 2).sum()) < 1 - 1e-4
