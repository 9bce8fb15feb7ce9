"""Muon pairs against the formulas of the electroweak theory, with weights and without."""

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import dblquad, quad

from sbi_dgm.errors import DataError
from sbi_dgm.simulator import Simulator, find
from simulators.collider import Chain
from simulators.collider.dimuon import EDGE, ENERGIES, LUMINOSITIES, Dimuon, resolution
from simulators.collider.dimuon_weighted import DimuonWeighted, ratio
from simulators.collider.electroweak import PER_TEV2, PICOBARN, Z_MASS, Z_WIDTH, strengths, total

ROWS = 1000
THETA = np.array([[0.231, 0.0, 1.0], [0.19, 0.9, 1.1], [0.27, -0.9, 0.9]])


def rng(seed=0):
    return np.random.default_rng(seed)


# The cross section


def test_photons_alone_give_the_cross_section_of_qed():
    energy, alpha = np.array([5.0, 10.0]), 1 / 137.036
    found = total() * sum(strengths(energy, 0.231, 0.0, alpha))
    qed = 4 * np.pi * alpha**2 / (3 * energy**2) * PICOBARN
    np.testing.assert_allclose(qed * energy**2, 86.85e3, rtol=1e-4)
    np.testing.assert_allclose(found, qed, rtol=2e-3)  # at 10 GeV, a Z's share
    np.testing.assert_allclose(total() * sum(strengths(0.1, 0.231, 0.0, alpha)) * 0.01, 86.85e3, rtol=1e-4)


def test_the_pole_has_the_asymmetry_and_the_cross_section_of_partial_widths():
    """3/4 A_e A_mu and 12 pi Gamma_e Gamma_mu / (M_Z Gamma_Z)^2, and the photon's share, which does not interfere."""
    sin2, alpha = 0.231, 1 / 128
    left, right = sin2 - 0.5, sin2
    a = (left**2 - right**2) / (left**2 + right**2)
    width = 4 * np.pi * alpha / (sin2 * (1 - sin2)) * Z_MASS * (left**2 + right**2) / (24 * np.pi)
    assert width == pytest.approx(0.08398, abs=2e-4)  # GeV, as measured
    z = 12 * np.pi * width**2 / (Z_MASS * Z_WIDTH) ** 2 * PICOBARN
    photon = 4 * np.pi * alpha**2 / (3 * Z_MASS**2) * PICOBARN
    forward, backward = strengths(Z_MASS, sin2, 0.0)
    assert total() * (forward + backward) == pytest.approx(z + photon, rel=1e-12)
    assert 0.75 * (forward - backward) / (forward + backward) == pytest.approx(
        0.75 * a**2 * z / (z + photon), rel=1e-12
    )


def test_a_contact_alone_is_forward_and_grows_as_s():
    forward, backward = strengths(np.array([3e4, 6e4]), 0.231, 1e4)
    np.testing.assert_allclose(forward[1] / forward[0], 4, rtol=1e-3)
    np.testing.assert_allclose(
        forward, PICOBARN * np.array([9e8, 36e8]) / (128 * np.pi) * (1e4 * PER_TEV2) ** 2, rtol=1e-3
    )
    assert (backward < 1e-3 * forward).all()


# The events


def without_interference(energy, sin2, contact):
    """F and B of photon, Z and contact, each by itself."""
    left, right = sin2 - 0.5, sin2
    photon = 4 * np.pi / 128 / energy**2
    z = 4 * np.pi / 128 / (sin2 * (1 - sin2)) / np.abs(energy**2 - Z_MASS**2 + 1j * Z_MASS * Z_WIDTH)
    equal = 2 * photon**2 + z**2 * (left**4 + right**4) + (PER_TEV2 * contact) ** 2
    opposite = 2 * photon**2 + 2 * (z * left * right) ** 2
    return PICOBARN * energy**2 / (128 * np.pi) * np.array([equal, opposite])


def check_rates(formula, theta):
    """Events at each energy and their asymmetry inside the acceptance; 4 standard errors."""
    x = Dimuon()(np.tile(theta, (ROWS, 1)), rng())
    there, high = x[..., 2] == 1, x[..., 1] > 150  # the energies do not overlap
    for i, energy in enumerate(ENERGIES):
        forward, backward = formula(energy, theta[0], theta[1])
        expected = theta[2] * LUMINOSITIES[i] * (forward + backward) * (2 * EDGE + 2 * EDGE**3 / 3)
        chosen = there & (high == (i == 1))
        count = chosen.sum(1)
        assert abs(count.mean() - expected) < 4 * np.sqrt(expected / ROWS)
        assert abs(count.var() / expected - 1) < 4 * np.sqrt(2 / ROWS)
        asymmetry = 2 * EDGE**2 * (forward - backward) / ((forward + backward) * (2 * EDGE + 2 * EDGE**3 / 3))
        found = np.sign(x[..., 0][chosen])
        assert abs(found.mean() - asymmetry) < 4 / np.sqrt(len(found))


@pytest.mark.parametrize("theta", THETA)
def test_rates_and_asymmetries_are_those_of_the_amplitudes(theta):
    check_rates(strengths, theta)


def test_rates_without_interference_are_noticed():
    with pytest.raises(AssertionError):
        check_rates(without_interference, THETA[0])


@pytest.mark.parametrize("name", ["dimuon:Dimuon", "dimuon_weighted:DimuonWeighted"])
def test_the_contract_and_the_chain_are_kept(name):
    problem = find(f"simulators.collider.{name}")
    assert isinstance(problem, Simulator)
    assert isinstance(problem, Chain)
    theta = problem.prior.sample(20, seed=0)
    (observable,) = problem.observables
    stages, again = problem.stages(theta, rng()), problem(theta, rng())
    assert list(stages)[:2] == ["parton", "detector"]
    assert list(stages)[-1] == observable
    x = again[observable] if isinstance(again, dict) else again
    assert (x == stages[observable]).all()
    assert x.shape == (20, *problem.observables[observable].shape)


def test_the_detector_turns_no_muon_and_smears_momenta():
    stages = Dimuon().stages(np.tile(THETA[0], (200, 1)), rng())
    there = stages["parton"][..., 2] == 1
    (cosine, energy), momenta = stages["parton"][there].T[:2], stages["detector"][there]
    sizes = np.linalg.norm(momenta[:, :6].reshape(-1, 2, 3), axis=2)
    np.testing.assert_allclose(momenta[:, 2] / sizes[:, 0], cosine, atol=1e-12)
    np.testing.assert_allclose(momenta[:, 5] / sizes[:, 1], -cosine, atol=1e-12)
    pull = np.log(2 * sizes / energy[:, None]) / resolution(energy, cosine)[:, None]
    assert stats.kstest(pull.ravel(), stats.norm.cdf).pvalue > 1e-4
    assert abs(np.corrcoef(pull.T)[0, 1]) < 4 / np.sqrt(len(pull))
    seen = stages["events"]
    assert (seen[..., 2].sum(1) == (there & (np.abs(stages["parton"][..., 0]) < EDGE)).sum(1)).all()


def test_more_events_than_there_is_room_for_are_refused():
    problem = Dimuon()
    problem.room = 100
    with pytest.raises(DataError, match="room for 100"):
        problem(THETA, rng())


# Likelihood and posterior


def test_the_likelihood_integrates_to_poissons_chance_of_one_event():
    problem, empty = Dimuon(), np.zeros((Dimuon().room, 3))
    theta = THETA[1]
    none = problem.log_likelihood(theta, empty)

    def one(mass, cosine):
        x = empty.copy()
        x[3] = cosine, mass, 1
        return np.exp(problem.log_likelihood(theta, x) - none)

    masses = [dblquad(one, -EDGE, EDGE, low, high, epsrel=1e-5)[0] for low, high in ((60, 130), (140, 430))]
    assert sum(masses) == pytest.approx(-none, rel=1e-4)
    empty[0] = 0.96, 88.0, 1
    assert problem.log_likelihood(THETA, empty).tolist() == [-np.inf] * 3


class Blind(Dimuon):
    """A likelihood that takes forward for backward."""

    def log_likelihood(self, theta, x):
        return super().log_likelihood(theta, x * [-1, 1, 1])


class Certain(Dimuon):
    """A likelihood that believes in more luminosity than there is."""

    def log_likelihood(self, theta, x):
        return super().log_likelihood(theta * [1, 1, 1.05], x)


def check_score(problem, theta):
    """d ln p / d theta has mean zero over the x of theta, and the spread that its curvature says (Fisher)."""
    x = Dimuon()(np.tile(theta, (400, 1)), rng(1))
    step = np.diag([1e-3, 1e-2, 1e-3])
    at = np.concatenate([[theta], theta + step, theta - step])
    value = np.array([problem.log_likelihood(at, one) for one in x])
    score = (value[:, 1:4] - value[:, 4:]) / (2 * step.diagonal())
    equality = score**2 + (value[:, 1:4] + value[:, 4:] - 2 * value[:, :1]) / step.diagonal() ** 2
    for law in (score, equality):
        assert (np.abs(law.mean(0)) < 4 * law.std(0) / np.sqrt(len(x))).all()


@pytest.mark.parametrize("theta", THETA)
def test_the_score_has_mean_zero_and_the_curvatures_spread(theta):
    check_score(Dimuon(), theta)


@pytest.mark.parametrize("wrong", [Blind(), Certain()])
def test_a_wrong_likelihoods_score_is_noticed(wrong):
    with pytest.raises(AssertionError):
        check_score(wrong, THETA[0])


def test_the_posterior_is_the_weighted_prior():
    """Means and sds; 4 standard errors from the effective size."""
    problem, n = Dimuon(), 2000
    x = problem(THETA[:1], rng())[0].astype(np.float32)
    theta = problem.prior.draw(20_000, rng(1))
    log_weight = problem.log_likelihood(theta, x)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    size = 1 / (1 / n + (weight**2).sum())
    draws = problem.reference_posterior(rng().permutation(x), n, rng(2))
    mean = weight @ theta
    sd = np.sqrt(weight @ (theta - mean) ** 2)
    assert size > 500
    assert (np.abs(draws.mean(0) - mean) < 4 * sd / np.sqrt(size)).all()
    assert (np.abs(draws.std(0) / sd - 1) < 4 / np.sqrt(2 * size)).all()
    assert (sd[:2] < [0.017, 0.3]).all()  # of 0.029 and 0.577 under the prior


# Weighted events


def moments(x):
    """Functions of one event (n, 2) that tell densities apart."""
    return np.stack([x[:, 0], x[:, 0] ** 2, np.sign(x[:, 0]), x[:, 0] * (x[:, 1] > 150), x[:, 1] / 100], axis=1)


def check_weights(weigh, theta):
    """Weighted means against the means of the same density drawn without weights, and against one."""
    many = np.tile(theta, (100_000, 1))
    out = DimuonWeighted()(many, rng())
    events, weight = out["event"], weigh(out["event_weight"])
    energy, u = rng(1).choice(ENERGIES, len(many)), rng(2).uniform(-EDGE, EDGE, (20, len(many)))
    forward, backward = strengths(energy, *theta)
    density = forward * (1 + u) ** 2 + backward * (1 - u) ** 2
    first = (rng(3).random(u.shape) * 4 * np.maximum(forward, backward) < density).argmax(0)  # rejection
    plain = u[first, np.arange(len(many))]
    mass = energy * np.exp(resolution(energy, plain) / np.sqrt(2) * rng(4).standard_normal(len(many)))
    wanted, found = moments(np.stack([plain, mass], 1)), weight[:, None] * moments(events)
    error = np.sqrt((wanted.var(0) + found.var(0)) / len(many))
    assert (np.abs(found.mean(0) - wanted.mean(0)) < 4 * error).all()
    assert abs(weight.mean() - 1) < 4 * weight.std() / np.sqrt(len(many))


@pytest.mark.parametrize("theta", THETA[:, :2])
def test_weighted_events_have_the_moments_of_events_without(theta):
    check_weights(lambda weight: weight, theta)


@pytest.mark.parametrize("wrong", [np.abs, np.ones_like], ids=["absolute", "none"])
def test_events_without_their_signs_are_noticed(wrong):
    with pytest.raises(AssertionError):
        check_weights(wrong, THETA[0, :2])


def test_weights_are_never_too_small_for_the_ratio_and_a_quarter_is_negative():
    problem = DimuonWeighted()
    theta = problem.prior.sample(20_000, seed=0)
    r = ratio(rng().choice(ENERGIES, len(theta)), rng(1).uniform(-1, 1, len(theta)), theta)
    assert 0 < r.min() < r.max() <= 2
    weight = problem(theta, rng())["event_weight"]
    assert set(weight) == {-2.0, 2.0}
    assert abs((weight < 0).mean() - 0.25) < 4 * np.sqrt(0.1875 / len(theta))


def test_the_likelihood_of_one_event_integrates_to_one():
    problem, theta = DimuonWeighted(), THETA[1, :2]

    def at(cosine):
        return np.trapezoid([np.exp(u + problem.log_likelihood(theta, [cosine, np.exp(u)])) for u in grid], grid)

    grid = np.linspace(4.2, 6, 300)
    assert quad(at, -EDGE, EDGE, epsrel=1e-4)[0] == pytest.approx(1, abs=1e-5)
    assert problem.log_likelihood(theta, [0.97, 88.0]) == -np.inf
