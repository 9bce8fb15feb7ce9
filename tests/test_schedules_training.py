"""Where training on a noise schedule goes: quantiles of its times, SciPy's truncated normal, weights, extremes."""

import numpy as np
import pytest
import torch
from judging import accuses, between, close
from scipy.stats import kstest, truncnorm

from sbi_dgm.schedules import EDM, SCHEDULES, VE, Rectified, SubVP, VPCosine, VPLinear

EVERY = [pytest.param(kind, id=name) for name, kind in SCHEDULES.items()]


def times_are_quantiles(schedule, dtype=torch.float64):
    """Not falling with u, noise from low to high (or that at t = 1), all of it in [0, 1]."""
    t = schedule.times(torch.linspace(0, 1, 1001, dtype=dtype))
    nu, rounding = schedule.noise(t), 10 ** (-3 if dtype == torch.float32 else -9)
    assert (t.dtype, t.shape) == (dtype, (1001,))
    assert (t.diff() >= 0).all()
    assert t.min() >= 0
    assert t.max() <= 1
    assert nu.min() >= schedule.low * (1 - rounding)
    assert nu.max() <= schedule.high * (1 + rounding)


class BeyondHigh(Rectified):
    """Times up to t = 1, where only noise is left."""

    def times(self, u):
        return u


class Falling(VPLinear):
    def times(self, u):
        return super().times(1 - u)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ends", [(1e-3, 80.0), (1e-5, 1e3)])
@pytest.mark.parametrize("kind", EVERY)
def test_times_are_quantiles(kind, ends, dtype):
    times_are_quantiles(kind(*ends), dtype)


@pytest.mark.parametrize("twin", [BeyondHigh(), Falling()])
def test_times_that_are_no_quantiles_are_noticed(twin):
    accuses(times_are_quantiles, twin)


@pytest.mark.parametrize("kind", [VPLinear, VPCosine, SubVP, VE, Rectified])
def test_times_are_uniform_from_low_to_high(kind):
    t = kind(1e-3, 80.0).times(torch.linspace(0, 1, 101, dtype=torch.float64))
    close(t.diff().diff(), 0)
    close(kind(1e-3, 80.0).noise(t[[0, -1]]), [1e-3, 80.0], 1e-9)


def log_noise_is_truncated_normal(schedule, n=20_000):
    """Quantiles at n even places: a Kolmogorov-Smirnov distance of 0.5 / n, and of 1e-6 from clamped tails."""
    u = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    ends = (np.log([schedule.low, schedule.high]) - schedule.mean) / schedule.spread
    law = truncnorm(*ends, loc=schedule.mean, scale=schedule.spread)
    assert kstest(schedule.noise(schedule.times(u)).log().numpy(), law.cdf).statistic < 0.5 / n + 3e-6


class Clamped(EDM):
    """The normal's tails pile up at the ends."""

    def times(self, u):
        normal = torch.special.ndtri(u)
        return self.time((self.mean + self.spread * normal).exp().clamp(self.low, self.high))


class SlightlyWider(EDM):
    def times(self, u):
        return EDM(self.low, self.high, spread=1.01 * self.spread).times(u)


ENDS_OF_EDM = [(1e-3, 80.0), (0.1, 1.1), (1e-5, 1e3)]


@pytest.mark.parametrize("ends", ENDS_OF_EDM)
def test_log_noise_of_edm_is_truncated_normal(ends):
    log_noise_is_truncated_normal(EDM(*ends))


@pytest.mark.parametrize("twin", [Clamped(0.1, 1.1), *(SlightlyWider(*ends) for ends in ENDS_OF_EDM)])
def test_another_law_of_log_noise_is_noticed(twin):
    accuses(log_noise_is_truncated_normal, twin)


def weight_is_that_of_the_noise(schedule):
    """w |z - x|^2 = |epsilon - (y - x) / nu|^2 with y = z + nu epsilon."""
    z, x, epsilon = torch.randn(3, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    nu = between(schedule.low, schedule.high, 100)
    close(schedule.weight(nu) * (z - x).square(), (epsilon - (z + nu * epsilon - x) / nu).square(), 1e-6)


@pytest.mark.parametrize("kind", [VPLinear, VPCosine, SubVP, VE])
def test_errors_of_the_data_are_weighted_to_be_those_of_the_noise(kind):
    weight_is_that_of_the_noise(kind())


def error_at_the_start_weighs_one(schedule):
    """EDM's network F learns (z - c_skip y) / c_out with c_skip = 1 / (1 + nu^2): w c_out^2 = 1 (their table 1)."""
    nu = between(schedule.low, schedule.high)
    close(schedule.weight(nu) * nu.square() / (1 + nu.square()), 1)


def test_the_weight_of_edm_undoes_its_output_scale():
    error_at_the_start_weighs_one(EDM())
    accuses(weight_is_that_of_the_noise, EDM())
    accuses(error_at_the_start_weighs_one, VE())


def all_is_finite(schedule, dtype):
    nu = between(schedule.low, schedule.high).to(dtype)
    t = schedule.time(nu)
    trained = schedule.times(torch.linspace(0, 1, 1001, dtype=dtype))
    results = [schedule.weight(nu), schedule.weight(schedule.noise(trained))]
    for place in (t, trained):
        results += [place, schedule.alpha(place), schedule.sigma(place), schedule.noise(place), *schedule.rates(place)]
    for result in results:
        assert result.dtype == dtype
        assert result.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", EVERY)
def test_extreme_noise_is_finite(kind, dtype):
    all_is_finite(kind(1e-5, 1e3), dtype)


@pytest.mark.parametrize("kind", EVERY)
def test_extreme_noise_is_itself_within_3e_4_in_float32(kind):
    schedule, nu = kind(1e-5, 1e3), between(1e-5, 1e3).float()
    close(schedule.noise(schedule.time(nu)), nu, 3e-4, 0)


class NaiveDifference(VPLinear):
    """sigma^2 = 1 - e^{-B} without expm1 is zero, and its rate infinite, where the noise is fine."""

    def sigma(self, t):
        return torch.sqrt(1 - torch.exp(-self.integral(t)))


def test_cancellation_at_fine_noise_is_noticed():
    accuses(all_is_finite, NaiveDifference(1e-5, 1e3), torch.float32)
