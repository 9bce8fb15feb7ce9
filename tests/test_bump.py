"""The resonance on its background, against what is known of it: densities, counts, and a posterior on a grid."""

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad
from scipy.special import voigt_profile

from sbi_dgm.errors import DataError
from sbi_dgm.simulator import Simulator, find
from simulators.collider import Chain
from simulators.collider.bump import HIGH, LOW, RESOLUTION, SLOPE, Bump, acceptance

ROWS = 400
CORNERS = np.array([[115.0, 6.0, 0.5], [145.0, 0.5, 0.1], [125.0, 2.0, 0.25]])
AXIS = np.linspace(LOW, HIGH, 6001)


def rng(seed=0):
    return np.random.default_rng(seed)


class TwiceAsWide(Bump):
    """A likelihood that takes the full width for the half."""

    def intensity(self, theta, mass):
        return super().intensity(theta * [1, 2, 1], mass)


class TooNarrow(Bump):
    """A posterior three times too narrow."""

    def reference_posterior(self, x, n, rng):
        draws = super().reference_posterior(x, n, rng)
        return draws.mean(0) + (draws - draws.mean(0)) / 3


def test_the_contract_and_the_chain_are_kept():
    problem = find("simulators.collider.bump:Bump")
    assert isinstance(problem, Simulator)
    assert isinstance(problem, Chain)
    theta = problem.prior.sample(5, seed=0)
    x, stages = problem(theta, rng()), problem.stages(theta, rng())
    assert list(stages) == ["parton", "detector", "events"]
    assert x.shape == (5, *problem.observables["events"].shape)
    assert (x == stages["events"]).all()
    assert (x == problem(theta, rng())).all()
    assert set(x[..., 1].ravel()) == {0, 1}
    assert not x[x[..., 1] == 0].any()
    seen = x[x[..., 1] == 1, 0]
    assert LOW <= seen.min() <= seen.max() <= HIGH


def test_the_order_of_events_and_of_padding_means_nothing():
    problem, theta = Bump(), CORNERS
    x = problem(theta[2:], rng())[0]
    mixed = problem.log_likelihood(theta, rng().permutation(x))
    np.testing.assert_allclose(mixed, problem.log_likelihood(theta, x), rtol=1e-12)
    one = problem.log_likelihood(theta[0], x)
    assert one.shape == ()
    assert one == pytest.approx(problem.log_likelihood(theta, x)[0], rel=1e-12)


# The density


def voigt_share(mass, width):
    return quad(lambda y: voigt_profile(y - mass, RESOLUTION, width / 2), LOW, HIGH, points=[mass], epsabs=1e-12)[0]


def check_acceptance(share):
    for mass, width, _ in CORNERS:
        assert share(np.array([mass]), np.array([width]))[0] == pytest.approx(voigt_share(mass, width), abs=1e-10)


def test_the_signals_share_is_the_integral_over_the_window():
    check_acceptance(acceptance)


def test_a_share_without_resolution_is_noticed():
    with pytest.raises(AssertionError):
        check_acceptance(
            lambda mass, width: np.array([np.diff(stats.cauchy(mass[0], width[0] / 2).cdf([LOW, HIGH]))[0]])
        )


@pytest.mark.parametrize("theta", CORNERS)
def test_the_intensity_integrates_to_the_expected_number(theta):
    problem = Bump()
    found = quad(lambda y: problem.intensity(theta[None], np.array([y]))[0, 0], LOW, HIGH, points=[theta[0]])
    assert found[0] == pytest.approx(problem.background / (1 - theta[2]), rel=1e-9)


def test_the_likelihood_of_no_event_and_of_one_are_poissons():
    problem, (theta, *_) = Bump(), CORNERS
    nothing, one = np.zeros((2, problem.room, 2))
    one[7] = 130.0, 1
    assert problem.log_likelihood(theta, nothing) == pytest.approx(-360)
    background = np.exp(-130 / SLOPE) / SLOPE / (np.exp(-LOW / SLOPE) - np.exp(-HIGH / SLOPE))
    signal = voigt_profile(15, RESOLUTION, 3) / voigt_share(115, 6)
    assert problem.log_likelihood(theta, one) == pytest.approx(-360 + np.log(180 * (background + signal)))
    one[7, 0] = 160.1
    assert problem.log_likelihood(CORNERS, one).tolist() == [-np.inf] * 3


def check_masses(problem, theta):
    """Masses against the likelihood's own density, and their number against its mean and Poisson's variance."""
    x = Bump()(np.tile(theta, (ROWS, 1)), rng())
    density = problem.intensity(theta[None], AXIS)[0]
    below = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    seen = x[x[..., 1] == 1, 0]
    assert stats.kstest(seen, lambda y: np.interp(y, AXIS, below / below[-1])).pvalue > 1e-4
    count, mean = x[..., 1].sum(1), problem.background / (1 - theta[2])
    assert abs(count.mean() - mean) < 4 * np.sqrt(mean / ROWS)
    assert abs(count.var() / mean - 1) < 4 * np.sqrt(2 / ROWS)


@pytest.mark.parametrize("theta", CORNERS)
def test_events_follow_their_density(theta):
    check_masses(Bump(), theta)


def test_a_width_taken_for_its_half_is_noticed():
    with pytest.raises(AssertionError):
        check_masses(TwiceAsWide(), CORNERS[0])


def check_score(problem, theta):
    """d ln p / d theta has mean zero over the x of theta, and the spread that its curvature says (Fisher)."""
    x = Bump()(np.tile(theta, (ROWS, 1)), rng(1))
    step = np.diag([0.02, 0.02, 0.002])
    at = np.concatenate([[theta], theta + step, theta - step])
    value = np.array([problem.log_likelihood(at, one) for one in x])
    score = (value[:, 1:4] - value[:, 4:]) / (2 * step.diagonal())
    curvature = (value[:, 1:4] + value[:, 4:] - 2 * value[:, :1]) / step.diagonal() ** 2
    error = score.std(0) / np.sqrt(ROWS)
    assert (np.abs(score.mean(0)) < 4 * error).all()
    assert (np.abs((score**2 + curvature).mean(0)) < 4 * (score**2 + curvature).std(0) / np.sqrt(ROWS)).all()


def test_the_score_has_mean_zero_and_the_curvatures_spread():
    check_score(Bump(), CORNERS[2])


@pytest.mark.parametrize("wrong", [TwiceAsWide(), Bump(background=150.0)], ids=["width", "background"])
def test_a_wrong_likelihoods_score_is_noticed(wrong):
    with pytest.raises(AssertionError):
        check_score(wrong, CORNERS[2])


# The chain


def test_masses_are_born_by_breit_and_wigner_and_smeared():
    theta = CORNERS[0]
    stages = Bump().stages(np.tile(theta, (ROWS, 1)), rng())
    there = stages["parton"][..., 2] == 1
    assert (there == (stages["detector"][..., 1] == 1)).all()
    (mass, signal), seen = stages["parton"][there].T[:2], stages["detector"][there, 0]
    assert stats.kstest(mass[signal == 1], stats.cauchy(theta[0], theta[1] / 2).cdf).pvalue > 1e-4
    assert stats.kstest(seen - mass, stats.norm(0, RESOLUTION).cdf).pvalue > 1e-4
    inside = (seen >= LOW) & (seen <= HIGH)
    share = signal[inside].mean()
    assert abs(share - theta[2]) < 4 * np.sqrt(theta[2] * (1 - theta[2]) / inside.sum())


def test_more_events_than_there_is_room_for_are_refused():
    problem = Bump()
    problem.room = 300
    with pytest.raises(DataError, match=r"row \d has 3\d\d members and room for 300"):
        problem(np.tile(CORNERS[0], (5, 1)), rng())


# The posterior


def on_grid(x, theta):
    """Points (m, Gamma, f) around theta and their posterior, the signal's integral by the trapezoid rule."""
    half = np.array([4.0, 10.0, 0.3])
    edges = np.clip([theta - half, theta + half], [115, 0.5, 0.1], [145, 6, 0.5])
    axes = [
        low + (high - low) * (np.arange(cells) + 0.5) / cells
        for low, high, cells in zip(*edges, (64, 32, 40), strict=True)
    ]
    mass, width = (a.ravel()[:, None] for a in np.meshgrid(*axes[:2], indexing="ij"))
    coarse = AXIS[::25]
    share = np.trapezoid(voigt_profile(coarse - mass, RESOLUTION, width / 2), coarse)
    seen = x[x[:, 1] == 1, 0]
    signal = voigt_profile(seen - mass, RESOLUTION, width / 2) / share[:, None]
    background = np.exp(-(seen - LOW) / SLOPE) / SLOPE / (1 - np.exp(-(HIGH - LOW) / SLOPE))
    ratio = axes[2] / (1 - axes[2])
    log_p = np.stack([np.log(r * signal + background).sum(1) - 180 * (1 + r) for r in ratio], -1)
    weight = np.exp(log_p - log_p.max())
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    return grid, weight.ravel() / weight.sum()


def check_posterior(problem):
    """Mean, sd and every tenth of draws of each parameter against a grid; 4 standard errors of the draws."""
    theta, n = CORNERS[2], 2000
    x = Bump()(theta[None], rng())[0].astype(np.float32)
    grid, weight = on_grid(x.astype(float), theta)
    draws = problem.reference_posterior(rng().permutation(x), n, rng(1))
    for axis, draw in zip(grid.T, draws.T, strict=True):
        mean = weight @ axis
        sd = np.sqrt(weight @ (axis - mean) ** 2)
        assert abs(draw.mean() - mean) < 4 * sd / np.sqrt(n)
        kurtosis = weight @ ((axis - mean) / sd) ** 4
        assert abs(draw.std() / sd - 1) < 4 * np.sqrt((kurtosis - 1) / (4 * n))


def test_the_posterior_is_that_of_a_grid():
    check_posterior(Bump())


def test_a_narrow_posterior_is_noticed():
    with pytest.raises(AssertionError):
        check_posterior(TooNarrow())


def check_ranks(problem, rows=100, n=99):
    """Ranks of prior draws among those of their posteriors, and how far they are from the middle, are uniform."""
    theta = problem.prior.sample(rows, seed=5)
    x = Bump()(theta, rng(6))
    draws = np.stack([problem.reference_posterior(one, n, rng(i)) for i, one in enumerate(x)])
    rank = ((draws < theta[:, None]).sum(1) + rng(7).random(theta.shape)) / (n + 1)
    for one in rank.T:
        assert min(stats.kstest(one, "uniform").pvalue, stats.kstest(np.abs(2 * one - 1), "uniform").pvalue) > 1e-4


@pytest.mark.slow
def test_ranks_are_uniform():
    check_ranks(Bump())


@pytest.mark.slow
def test_ranks_of_a_narrow_posterior_are_noticed():
    with pytest.raises(AssertionError):
        check_ranks(TooNarrow())
