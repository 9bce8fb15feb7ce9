"""Showers against the equations that their means, their momenta and their first splitting obey."""

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

from sbi_dgm.errors import DataError
from sbi_dgm.simulator import Simulator, find
from simulators.collider import Chain, jets
from simulators.collider.jets import RADIUS, Jets, Particles, Seen, about_axis, calorimeter
from simulators.collider.shower import exponent, final, shower, virtualities

ROWS = 2000
HARD = np.array([0.5, 0.5])  # alpha_s and Q_0 of jets with many particles


def rng(seed=0):
    return np.random.default_rng(seed)


def alike(rows, q=1000.0, coupling=0.4, cutoff=0.5, seed=0):
    """Generations of equal jets."""
    one = np.ones(rows)
    return shower(2000.0 * one, q * one, coupling * one, cutoff * one, rng(seed))


def half_of_p(z):
    return z / (1 - z) + (1 - z) / z + z * (1 - z)


class Quarks(Jets):
    """Jets with the colour factor of quarks."""

    colour = 4 / 3


def test_the_contract_and_the_chain_are_kept():
    problem = find("simulators.collider.jets:Jets")
    assert isinstance(problem, Simulator)
    assert isinstance(problem, Chain)
    theta = problem.prior.sample(20, seed=0)
    x, stages = problem(theta, rng()), problem.stages(theta, rng())
    assert list(stages) == ["parton", "shower", "detector", "particles"]
    assert x.shape == (20, *problem.observables["particles"].shape)
    assert (x == stages["particles"]).all()
    assert (x == problem(theta, rng())).all()
    assert not x[x[..., -1] == 0].any()
    assert (x[..., -1] == stages["detector"][..., -1]).all()
    assert (x[..., -1].sum(1) <= stages["shower"][..., -1].sum(1)).all()


# How often and how gluons split


def check_exponent(g):
    """Against the double integral of P_gg over ln q and z, for some y."""
    for y in (0.3, 2.0, 8.0):

        def rate(u):
            return np.tanh(u / 2) * quad(half_of_p, 1 / (1 + np.exp(u)), 1 / (1 + np.exp(-u)), epsabs=1e-10)[0]

        assert g(y) == pytest.approx(quad(rate, 0, y)[0], rel=1e-7)


def test_the_exponent_is_the_integral_of_the_splitting_function():
    check_exponent(exponent)


def test_an_exponent_without_hard_splittings_is_noticed():
    with pytest.raises(AssertionError):
        check_exponent(lambda y: exponent(y) + 11 / 6 * (y - 2 * np.tanh(y / 2)))


@pytest.mark.parametrize(("q", "coupling"), [(5.0, 0.7), (40.0, 0.2), (1000.0, 0.1)])
def test_gluons_that_do_not_split_are_as_many_as_sudakov_says(q, coupling):
    share = 1 - alike(20_000, q, coupling)[0].splits.mean()
    expected = np.exp(-coupling * exponent(np.arccosh(q / 2 - 1)))
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / 20_000)


def test_the_first_splitting_has_its_angle_and_shares():
    """The uniform numbers that make q and z, got back by their distributions' own formulas."""
    first = alike(20_000)[0]
    y, top = np.arccosh(first.q / 2 - 1), np.arccosh(499.0)
    kept = np.exp(-0.4 * (exponent(top) - exponent(y)))  # uniform above the share that does not split
    never = np.exp(-0.4 * exponent(top))
    assert stats.kstest((kept - never) / (1 - never), "uniform").pvalue > 1e-4
    low, z = 1 / (1 + np.exp(y)), first.z

    def below(z):
        return 2 * np.log(z) - 2 * z + z**2 / 2 - z**3 / 3

    assert stats.kstest((below(z) - below(low)) / (below(1 - low) - below(low)), "uniform").pvalue > 1e-4


def test_every_splitting_is_above_the_cutoff_and_inside_the_angle_of_the_one_before():
    generations, cutoff = alike(500), 0.5
    assert len(generations) > 10
    reach = np.full(500, 1000.0)
    for g in generations:
        assert (g.kt >= cutoff * (1 - 1e-9)).all()
        np.testing.assert_allclose(g.kt, cutoff * g.z * (1 - g.z) * g.q, rtol=1e-12)
        assert (g.q < reach[g.splits]).all()
        reach = np.concatenate([g.z * g.q, (1 - g.z) * g.q])


# Multiplicity


def mean_multiplicity(coupling, top, *, coherent=True):
    r"""N on a grid of l = ln(E theta / Q_0), by Heun's rule from N = 1 at l = ln 4.

    dN/dl = abar int dz P(z) [N(l + ln z) + N(l + ln(1 - z)) - N(l)] / 2 C_A over z (1 - z) > e^-l. Not `coherent`:
    daughters radiate within the jet's angle, not within the splitting's.
    """
    scale, step = np.linspace(np.log(4), top, 800, retstep=True)
    nodes, weights = np.polynomial.legendre.leggauss(60)
    n = np.ones_like(scale)

    def slope(i):
        y = np.arccosh(np.exp(scale[i]) / 2 - 1)
        z = 1 / (1 + np.exp(-y * nodes))
        at = (scale[i] if coherent else top) + np.log(z)
        known = np.interp(at, scale[: i + 1], n[: i + 1])
        return coupling * y * weights @ (z * (1 - z) * half_of_p(z) * (known + known[::-1] - n[i]))

    for i in range(len(scale) - 1):
        first = slope(i)
        n[i + 1] = n[i] + step * first
        n[i + 1] = n[i] + step * (first + slope(i + 1)) / 2
    return scale, n


def check_multiplicity(problem, theta, **equation):
    stages = problem.stages(np.tile(theta, (ROWS, 1)), rng(3))
    scale, n = mean_multiplicity(3 * theta[0] / np.pi, np.log(1000 * RADIUS / theta[1]), **equation)
    away = stages["shower"][..., -1].sum(1) - np.interp(np.log(stages["parton"][:, 0] * RADIUS / theta[1]), scale, n)
    assert abs(away.mean()) < 4 * away.std() / np.sqrt(ROWS)


@pytest.mark.parametrize("theta", [HARD, np.array([0.8, 0.1]), np.array([0.1, 4.0]), np.array([0.4, 2.0])])
def test_the_mean_multiplicity_obeys_its_evolution_equation(theta):
    check_multiplicity(Jets(), theta)


def test_the_colour_of_quarks_is_noticed():
    with pytest.raises(AssertionError):
        check_multiplicity(Quarks(), HARD)


def test_an_equation_without_coherence_is_noticed():
    with pytest.raises(AssertionError):
        check_multiplicity(Jets(), HARD, coherent=False)


# Momenta


def check_conservation(m2):
    """Final gluons add up to p+, p_T = 0 and p- = m^2 / p+ of the first."""
    generations = alike(500)
    jet, plus, x, y = final(generations, rng())
    sums = [np.bincount(jet, a) for a in (plus, x, y, (x**2 + y**2) / plus)]
    np.testing.assert_allclose(sums[0], 2000, rtol=1e-9)
    np.testing.assert_allclose(sums[1:3], 0, atol=2000 * 1e-9)
    np.testing.assert_allclose(sums[3], m2(generations) / 2000, rtol=1e-9)


def test_four_momentum_is_conserved():
    check_conservation(virtualities)


def test_virtualities_without_transverse_momenta_are_noticed():
    def wrong(generations):
        return virtualities([g._replace(kt=0.9 * g.kt) for g in generations])

    with pytest.raises(AssertionError):
        check_conservation(wrong)


def test_particles_are_massless_and_carry_the_jets_momentum_in_its_direction():
    stages = Jets().stages(np.tile(HARD, (200, 1)), rng())
    (pt, eta, phi), particles = stages["parton"].T, stages["shower"]
    energy, momentum = particles[..., 0], particles[..., 1:4]
    np.testing.assert_allclose(np.linalg.norm(momentum, axis=-1), energy, rtol=1e-9)
    total, (x, y, z) = energy.sum(1), momentum.sum(1).T
    forward = np.cos(phi) * x + np.sin(phi) * y
    np.testing.assert_allclose(np.cosh(eta) * total - np.sinh(eta) * z + forward, 2 * pt, rtol=1e-9)
    np.testing.assert_allclose(np.cos(phi) * y - np.sin(phi) * x, 0, atol=1e-6)
    np.testing.assert_allclose(np.cosh(eta) * z - np.sinh(eta) * total, 0, atol=1e-6)


# The detector and what it leaves


def test_the_calorimeter_smears_energies_and_directions():
    n, energy = 20_000, 50.0
    one = np.ones(n)
    x, z = energy / np.cosh(1) * one, energy * np.tanh(1) * one
    seen = calorimeter(Particles(np.arange(n), energy * one, 0 * x, x, z), rng())
    found = seen.pt * np.cosh(seen.eta)
    assert stats.kstest(found, stats.norm(energy, np.sqrt(0.09 * energy + 0.0009 * energy**2)).cdf).pvalue > 1e-4
    assert stats.kstest(seen.eta, stats.norm(1, 0.01).cdf).pvalue > 1e-4
    assert stats.kstest(seen.phi, stats.norm(np.pi / 2, 0.01).cdf).pvalue > 1e-4
    soft = calorimeter(Particles(np.arange(n), 0.5 * one, 0.5 * one, 0 * one, 0 * one), rng())
    assert soft.pt.min() > 0.5
    assert abs(len(soft.pt) / n - 0.5) < 4 / np.sqrt(4 * n)


def test_x_knows_no_direction():
    stages = Jets().stages(np.tile(HARD, (500, 1)), rng())
    x, detector = stages["particles"], stages["detector"]
    pt, there = detector[..., 0], x[..., -1] == 1
    np.testing.assert_allclose(np.exp(x[..., 0][there]), pt[there], rtol=1e-12)
    assert np.abs((pt * np.sin(x[..., 2])).sum(1) / pt.sum(1)).max() < 1e-9
    assert np.abs(stages["parton"][:, 2]).max() > 3.1
    seen = Seen(np.repeat(np.arange(500), there.sum(1)), *detector[there].T[:3])
    turned = seen._replace(eta=seen.eta + 0.7, phi=seen.phi - 2.0)
    np.testing.assert_allclose(about_axis(turned), x[there].T[:3], rtol=0, atol=1e-9)


def test_alpha_s_and_the_cutoff_can_be_seen():
    """A line through the number of particles and their mean ln p_T tells most of both parameters."""
    problem = Jets()
    theta = problem.prior.sample(ROWS, seed=0)
    x = problem(theta, rng())
    count = x[..., -1].sum(1)
    assert count.min() == 1
    assert count.max() > 150
    design = np.stack([np.ones(ROWS), np.log(count), x[..., 0].sum(1) / count, np.abs(x[..., 1]).sum(1) / count], 1)
    for wanted in (theta[:, 0], np.log(theta[:, 1])):
        left = wanted - design @ np.linalg.lstsq(design, wanted, rcond=None)[0]
        assert left.var() / wanted.var() < 0.6


def test_more_particles_than_there_is_room_for_are_refused(monkeypatch):
    monkeypatch.setattr(jets, "ROOM", 40)
    with pytest.raises(DataError, match="room for 40"):
        Jets()(np.tile([0.8, 0.1], (5, 1)), rng())
