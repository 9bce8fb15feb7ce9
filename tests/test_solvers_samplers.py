"""Samplers with denoisers in closed form: mixtures of normals, whose noisy densities and flows are known exactly."""

import math
from itertools import pairwise
from unittest import mock

import numpy as np
import pytest
import torch
from judging import accuses, close
from scipy.stats import kstest, norm

from sbi_dgm import gaussian
from sbi_dgm.errors import SolverError
from sbi_dgm.schedules import SCHEDULES, SubVP, VPLinear, levels
from sbi_dgm.solvers import EULER, RK4, SAMPLERS, probability_flow, steps

EVERY = [pytest.param(sampler, id=name) for name, sampler in SAMPLERS.items()]
LOW, HIGH = 0.01, 20.0
RANDOM = [pytest.param(SAMPLERS[name], id=name) for name in ("ancestral", "sde")]


class Mixture:
    """sum_k w_k N(m_k, s_k^2) in one dimension, and what noise makes of it."""

    def __init__(self, weights, means, widths):
        self.weights, self.means, self.widths = (torch.tensor(a, dtype=torch.float64) for a in (weights, means, widths))

    def denoise(self, y, nu):
        """E[data | y]: of each component m + s^2 / (s^2 + nu^2) (y - m), averaged by responsibility."""
        variance, off = self.widths**2 + nu**2, y - self.means.to(y)
        share = torch.softmax(self.weights.log() - 0.5 * off**2 / variance - 0.5 * variance.log(), -1)
        return (share * (self.means + self.widths**2 / variance * off)).sum(-1, keepdim=True).to(y)

    def cdf(self, y, nu):
        z = (np.asarray(y)[..., None] - self.means.numpy()) / (self.widths**2 + nu**2).sqrt().numpy()
        return norm.cdf(z) @ self.weights.numpy()

    def moments(self, nu):
        mean = (self.weights * self.means).sum()
        return mean, (self.weights * (self.widths**2 + nu**2 + (self.means - mean) ** 2)).sum()

    def draw(self, n, nu, seed):
        generator = torch.Generator().manual_seed(seed)
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        normal = torch.randn(n, generator=generator, dtype=torch.float64)
        return (self.means[k] + (self.widths[k] ** 2 + nu**2).sqrt() * normal)[:, None]


NORMAL = Mixture([1.0], [0.7], [0.3])
POINT = Mixture([1.0], [0.7], [0.0])
MODES = Mixture([0.3, 0.5, 0.2], [-1.5, 0.5, 2.0], [0.1, 0.3, 0.5])


def draws_follow(sampler, mixture, n=10_000, count=300):
    """From noise of HIGH to LOW: mean and variance within 4 standard errors, Kolmogorov and Smirnov's p > 6e-5."""
    y = mixture.draw(n, HIGH, seed=2)
    draws = sampler(mixture.denoise, y, levels(LOW, HIGH, count), torch.Generator().manual_seed(3))[:, 0]
    mean, variance = mixture.moments(LOW)
    squares = (draws - mean).square()
    assert abs(draws.mean() - mean) < 4 * (variance / n).sqrt(), f"mean {draws.mean()}, not {mean}"
    assert abs(squares.mean() - variance) < 4 * squares.std() / math.sqrt(n), f"{squares.mean()}, not {variance}"
    assert kstest(draws.numpy(), lambda a: mixture.cdf(a, LOW)).pvalue > 6e-5


@pytest.mark.parametrize("mixture", [pytest.param(NORMAL, id="normal"), pytest.param(MODES, id="mixture")])
@pytest.mark.parametrize("sampler", EVERY)
def test_draws_follow_the_mixture(sampler, mixture):
    draws_follow(sampler, mixture)


@pytest.mark.parametrize(("factor", "mixture"), [(1 / 7, NORMAL), (7, MODES)], ids=["a seventh", "seven times"])
@pytest.mark.parametrize("sampler", RANDOM)
def test_noise_seven_times_off_is_noticed(sampler, factor, mixture):
    right = gaussian.noise
    with mock.patch.object(gaussian, "noise", lambda *how: factor * right(*how)):
        accuses(draws_follow, sampler, mixture)


@pytest.mark.parametrize("sampler", EVERY)
def test_a_denoiser_of_another_noise_is_noticed(sampler):
    def confused(x, *rest):
        return sampler(lambda y, nu: x(y, 1.1 * nu), *rest)

    accuses(draws_follow, confused, NORMAL)


def flow_keeps_quantiles_to_order(sampler, order, mixture, n=100):
    """The exact flow keeps F_nu(y). What a sampler changes of it falls by 2^order with twice the levels, within 0.2."""
    start = torch.tensor([0.03, 0.15, 0.4, 0.6, 0.8, 0.95], dtype=torch.float64)
    mean, variance = mixture.moments(HIGH)
    y = (mean + variance.sqrt() * torch.special.ndtri(start))[:, None]
    before, errors = mixture.cdf(y[:, 0], HIGH), []
    for count in (n, 2 * n):
        end = sampler(mixture.denoise, y, levels(LOW, HIGH, count), None)
        errors.append(np.abs(mixture.cdf(end[:, 0], LOW) - before).max())
    measured = math.log2(errors[0] / errors[1])
    assert abs(measured - order) < 0.2, f"order {measured:.2f}, errors {errors}"


def flow_ends_where_it_should_to_order(sampler, order, n=100):
    """The exact flow of N(m, s^2) scales y - m by sqrt((s^2 + nu^2) / (s^2 + nu_0^2))."""
    y, width = torch.tensor([[-30.0], [1.0], [15.0]], dtype=torch.float64), 0.3
    exact = 0.7 + (y - 0.7) * math.sqrt((width**2 + LOW**2) / (width**2 + HIGH**2))
    errors = [(sampler(NORMAL.denoise, y, levels(LOW, HIGH, k), None) - exact).abs().max() for k in (n, 2 * n)]
    measured = float(torch.log2(errors[0] / errors[1]))
    assert abs(measured - order) < 0.2, f"order {measured:.2f}, errors {errors}"


ORDERS = {"euler": 1, "heun": 2, "dpm": 2}


@pytest.mark.parametrize(("name", "order"), ORDERS.items())
def test_samplers_of_the_flow_have_their_orders(name, order):
    flow_ends_where_it_should_to_order(SAMPLERS[name], order)
    flow_keeps_quantiles_to_order(SAMPLERS[name], order, MODES)


def extrapolated(correction):
    """DPM-Solver++(2M) with another correction by (h, h before)."""

    def sampler(x, y, levels, _):
        before, span = None, torch.ones(())
        for nu, following in pairwise(levels):
            data, h = x(y, nu), torch.log(nu / following)
            ahead = data if before is None else data + correction(h, span) * (data - before)
            y, before, span = following / nu * y + (1 - following / nu) * ahead, data, h
        return y

    return sampler


BLUNDERS = (lambda h, span: -0.5 * h / span, lambda h, span: 0.4 * h / span)


@pytest.mark.parametrize("twin", [SAMPLERS["euler"], *map(extrapolated, BLUNDERS)])
def test_a_sampler_of_order_one_is_noticed(twin):
    accuses(flow_ends_where_it_should_to_order, twin, 2)
    accuses(flow_keeps_quantiles_to_order, twin, 2, MODES)


def extrapolation_is_to_the_middle(sampler):
    """Where x = ln nu, steps after the first go straight to its value in their middle, however long they are."""
    grid = torch.tensor([9.0, 7.0, 1.0, 0.8, 0.01], dtype=torch.float64)
    y = torch.tensor([[5.0]], dtype=torch.float64)
    end, exact = sampler(lambda a, nu: nu.log() + 0 * a, y, grid, None), y
    for i, (nu, following) in enumerate(pairwise(grid)):
        ahead = nu.log() if i == 0 else 0.5 * (nu.log() + following.log())
        exact = ahead + following / nu * (exact - ahead)
    close(end, exact)


def test_dpm_extrapolates_to_the_middle_of_uneven_steps():
    extrapolation_is_to_the_middle(SAMPLERS["dpm"])
    for blunder in (*BLUNDERS, lambda h, span: 0.5 * span / h, lambda h, span: 0.5):
        accuses(extrapolation_is_to_the_middle, extrapolated(blunder))


def test_a_flow_that_counts_the_noise_twice_is_noticed():
    def twin(x, y, levels, _):
        return steps(EULER, lambda a, nu: 2 * (a - x(a, nu)) / nu, y, levels)

    accuses(flow_ends_where_it_should_to_order, twin, 1)


def exact_moments(sampler, mixture, grid, factor=1.0):
    """Mean and variance of draws where the denoiser is linear: each noise enters by itself, in a row of its own.

    `factor` multiplies the noise, for wrong twins.
    """
    mean, variance = mixture.moments(grid[0])
    rows = torch.full((len(grid) + 1, 1), float(mean), dtype=torch.float64)
    rows[0] += variance.sqrt()
    noises = list(factor * torch.eye(len(rows), dtype=torch.float64)[1:-1, :, None])
    with mock.patch.object(gaussian, "noise", side_effect=noises):
        end = sampler(mixture.denoise, rows, grid, None)
    return float(end[-1]), float((end[:-1] - end[-1]).square().sum())


COARSE = torch.tensor([20.0, 3.0, 1.0, 0.2, 0.01], dtype=torch.float64)


def bridge_to_a_point_is_exact(sampler, factor=1.0):
    """Where the data is one point, y is N(m, nu^2) at every level, however few there are."""
    for grid in (COARSE, COARSE[[0, -1]], levels(LOW, HIGH, 50)):
        mean, variance = exact_moments(sampler, POINT, grid, factor)
        assert abs(mean - 0.7) < 1e-12
        assert abs(variance / LOW**2 - 1) < 1e-9


def variance_is_that_of_the_bridge(sampler, factor=1.0):
    """V' = (r + (1 - r) k)^2 V + nu'^2 (1 - r), with r = (nu' / nu)^2 and k = s^2 / (s^2 + nu^2)."""
    for grid in (COARSE, levels(LOW, HIGH, 30)):
        variance = 0.3**2 + float(grid[0]) ** 2
        for nu, following in pairwise(grid.tolist()):
            r, k = (following / nu) ** 2, 0.3**2 / (0.3**2 + nu**2)
            variance = (r + (1 - r) * k) ** 2 * variance + following**2 * (1 - r)
        assert abs(exact_moments(sampler, NORMAL, grid, factor)[1] / variance - 1) < 1e-12


@pytest.mark.parametrize("law", [bridge_to_a_point_is_exact, variance_is_that_of_the_bridge])
def test_ancestral_draws_are_the_gaussian_bridge(law):
    law(SAMPLERS["ancestral"])
    accuses(law, SAMPLERS["ancestral"], 1.001)
    accuses(law, SAMPLERS["sde"])


def variance_converges(sampler, factor=1.0):
    """To s^2 + nu^2, at order 1 within 0.2, and to 2.5 % with 400 levels."""
    exact = float(NORMAL.moments(LOW)[1])
    errors = [abs(exact_moments(sampler, NORMAL, levels(LOW, HIGH, k), factor)[1] / exact - 1) for k in (100, 200, 400)]
    assert all(abs(math.log2(coarse / fine) - 1) < 0.2 for coarse, fine in pairwise(errors)), f"{errors}"
    assert errors[-1] < 0.025, f"{errors}"


@pytest.mark.parametrize("sampler", RANDOM)
def test_variance_converges(sampler):
    variance_converges(sampler)
    accuses(variance_converges, sampler, 1.01)
    accuses(variance_converges, sampler, 0.99)


def flow_of_the_schedule(schedule, y, grid, sign=1.0):
    """The same flow in z = alpha y over t: dz/dt = alpha'/alpha z + (sigma' - alpha' sigma / alpha) epsilon(z)."""

    def f(z, t):
        (alpha, sigma), (alpha_rate, sigma_rate) = (schedule.alpha(t), schedule.sigma(t)), schedule.rates(t)
        epsilon = (z - alpha * MODES.denoise(z / alpha, sigma / alpha)) / sigma
        return alpha_rate / alpha * z + sign * (sigma_rate - alpha_rate * sigma / alpha) * epsilon

    t = schedule.time(grid)
    return steps(RK4, f, schedule.alpha(t[0]) * y, t) / schedule.alpha(t[-1])


def schedule_is_the_same_process(schedule, sign=1.0):
    """End points agree within 1e-6."""
    grid = levels(LOW, HIGH, 150)
    y = torch.linspace(-40, 40, 9, dtype=torch.float64)[:, None]
    end = probability_flow(RK4)(MODES.denoise, y, grid, None)
    close(flow_of_the_schedule(schedule, y, grid, sign), end, 0, 1e-6)


class RatesOfAnother(SubVP):
    def rates(self, t):
        return VPLinear.rates(self, t)


class ForgetsTheSignal(VPLinear):
    def rates(self, t):
        return torch.zeros_like(t), super().rates(t)[1]


@pytest.mark.parametrize("kind", [pytest.param(kind, id=name) for name, kind in SCHEDULES.items()])
def test_every_schedule_is_the_same_process(kind):
    schedule_is_the_same_process(kind())


def test_another_process_is_noticed():
    accuses(schedule_is_the_same_process, RatesOfAnother())
    accuses(schedule_is_the_same_process, ForgetsTheSignal())
    with pytest.raises((AssertionError, SolverError)):
        schedule_is_the_same_process(VPLinear(), -1.0)


@pytest.mark.parametrize(
    ("name", "place"), [(n, "step 0 .time 8" if n == "heun" else "step 1 .time 4") for n in SAMPLERS]
)
def test_a_denoiser_that_is_not_finite_ends_the_draws(name, place):
    def x(y, nu):
        return torch.where((y > 0) & (nu < 5), math.nan, y)

    y = torch.tensor([[[90.0], [-90.0], [-80.0]], [[-70.0], [80.0], [-90.0]]])
    with pytest.raises(SolverError, match=f"2 of 6 solutions are not finite at {place}"):
        SAMPLERS[name](x, y, torch.tensor([8.0, 4.0, 2.0]), torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sampler", EVERY)
def test_draws_keep_shape_and_dtype(sampler, dtype):
    for shape in ((2, 3, 4), (0, 3, 4), (2, 0, 4), (5, 1)):
        end = sampler(lambda y, nu: 0 * y, torch.ones(shape, dtype=dtype), levels(LOW, HIGH, 3).to(dtype), None)
        assert (end.shape, end.dtype) == (shape, dtype)
