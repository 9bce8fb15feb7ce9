"""Noise schedules against their published formulas, autograd and products of small steps."""

import pytest
import torch
from judging import accuses, between, close

from sbi_dgm.schedules import EDM, SCHEDULES, VE, Rectified, Schedule, SubVP, VPCosine, VPLinear, levels

EVERY = [pytest.param(kind, id=name) for name, kind in SCHEDULES.items()]
INSIDE = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
ENDS = torch.tensor([0.0, 1.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("schedule", "alpha", "sigma"),
    [  # B(1) = 10.05: e^-5.025, sqrt(1 - e^-10.05), 1 - e^-10.05
        (VPLinear(), (1, 0.006571586494929619), (0, 0.9999784068923287)),
        (VPCosine(), (1, 0), (0, 1)),
        (SubVP(), (1, 0.006571586494929619), (0, 0.9999568142509231)),
        (VE(1e-3, 80.0), (1, 1), (1e-3, 80)),
        (EDM(1e-3, 80.0), (1, 1), (1e-3, 80)),
        (Rectified(), (1, 0), (0, 1)),
    ],
    ids=SCHEDULES,
)
def test_alpha_and_sigma_at_the_ends(schedule, alpha, sigma):
    close(schedule.alpha(ENDS), alpha)
    close(schedule.sigma(ENDS), sigma)


def rates_are_derivatives(schedule):
    """Within 1e-10 of autograd's."""
    t = INSIDE.clone().requires_grad_()
    alpha = schedule.alpha(t) + 0 * t  # constants too are functions of t
    for value, rate in zip((alpha, schedule.sigma(t)), schedule.rates(t), strict=True):
        (slope,) = torch.autograd.grad(value.sum(), t)
        close(rate, slope, 1e-10, 1e-10)


class RatesOfAnother(SubVP):
    """Sub-VP with the rates of VP, which share those of alpha."""

    def rates(self, t):
        return VPLinear.rates(self, t)


class ForgetsTheChainRule(VPCosine):
    def rates(self, t):
        return -self.sigma(t), self.alpha(t)


@pytest.mark.parametrize("kind", EVERY)
def test_rates_are_derivatives(kind):
    rates_are_derivatives(kind())


@pytest.mark.parametrize("twin", [RatesOfAnother(), ForgetsTheChainRule()])
def test_rates_of_something_else_are_noticed(twin):
    accuses(rates_are_derivatives, twin)


def time_inverts_noise(schedule):
    """Both ways: nu within 1e-9 of itself, and t to 1e-9, ends included."""
    nu = between(schedule.low, schedule.high)
    t = schedule.time(nu)
    close(schedule.noise(t), nu, 1e-9, 0)
    close(schedule.time(schedule.noise(t)), t, 1e-9, 1e-9)


class TimeOfAnother(SubVP):
    def time(self, noise):
        return VPLinear.time(self, noise)


class TimeOfSigma(Rectified):
    """Takes the noise ratio for sigma."""

    def time(self, noise):
        return noise


@pytest.mark.parametrize("ends", [(1e-3, 80.0), (1e-5, 1e3), (0.1, 1.1)])
@pytest.mark.parametrize("kind", EVERY)
def test_time_inverts_noise(kind, ends):
    time_inverts_noise(kind(*ends))


@pytest.mark.parametrize("twin", [TimeOfAnother(), TimeOfSigma()])
def test_a_time_of_something_else_is_noticed(twin):
    accuses(time_inverts_noise, twin)


def signal_to_noise_falls(schedule):
    """Strictly, from the data's end to the noise's; and alpha never rises, sigma never falls."""
    assert (schedule.noise(INSIDE).square().reciprocal().diff() < 0).all()
    assert (schedule.alpha(INSIDE).diff() <= 0).all()
    assert (schedule.sigma(INSIDE).diff() >= 0).all()


class Turned(VPCosine):
    """Time runs from noise to data."""

    def alpha(self, t):
        return super().alpha(1 - t)

    def sigma(self, t):
        return super().sigma(1 - t)


class Still(VE):
    """The noise stops rising half-way."""

    def sigma(self, t):
        return super().sigma(t.clamp(max=0.5))


@pytest.mark.parametrize("kind", EVERY)
def test_signal_to_noise_falls(kind):
    signal_to_noise_falls(kind())


@pytest.mark.parametrize("twin", [Turned(), Still()])
def test_a_signal_to_noise_that_does_not_fall_is_noticed(twin):
    accuses(signal_to_noise_falls, twin)


def variance_is_preserved(schedule):
    close(schedule.alpha(INSIDE).square() + schedule.sigma(INSIDE).square(), 1)


def variance_is_that_of_ddpm(schedule, n=100_000):
    """sigma^2 = 1 - prod(1 - beta_i) of n steps beta_i = beta(i / n) / n, as in Ho et al.; their 1000 in the limit."""
    beta = (0.1 + 19.9 * torch.arange(1, n + 1, dtype=torch.float64) / n) / n
    alpha_bar, t = (1 - beta).cumprod(0)[:: n // 100], torch.arange(1, n + 1, n // 100, dtype=torch.float64) / n
    close(schedule.sigma(t).square(), 1 - alpha_bar, 2e-3, 0)
    close(schedule.alpha(t).square(), alpha_bar, 5e-3, 0)


class RootOfAlphaBar(VPLinear):
    """The variance 1 - sqrt(alpha_bar)."""

    def sigma(self, t):
        return torch.sqrt(1 - self.alpha(t))


@pytest.mark.parametrize("kind", [VPLinear, VPCosine])
def test_variance_preserving_schedules_preserve_variance(kind):
    variance_is_preserved(kind())


def test_vp_linear_is_the_limit_of_ddpm():
    variance_is_that_of_ddpm(VPLinear())


@pytest.mark.parametrize("law", [variance_is_preserved, variance_is_that_of_ddpm])
@pytest.mark.parametrize("twin", [RootOfAlphaBar(), SubVP(), VE()])
def test_another_variance_is_noticed(law, twin):
    accuses(law, twin)


def variance_is_below_one(schedule):
    """Between the ends it is 1 - alpha^2 + alpha^4, which is below one."""
    total, signal = schedule.alpha(INSIDE).square() + schedule.sigma(INSIDE).square(), VPLinear().alpha(INSIDE).square()
    close(total, 1 - signal + signal.square())
    assert (total < 1).all()


def test_sub_vp_has_the_signal_of_vp_and_less_variance():
    close(SubVP().alpha(INSIDE), VPLinear().alpha(INSIDE), 0, 0)
    variance_is_below_one(SubVP())
    accuses(variance_is_below_one, VPLinear())


def noise_is_geometric(schedule):
    """Equal steps of t multiply sigma by the same number."""
    close(schedule.sigma(INSIDE).log().diff().diff(), 0)


def test_ve_is_geometric():
    noise_is_geometric(VE())
    close(VE(0.01, 100.0).sigma(torch.tensor(0.5)), 1.0, 1e-6)
    accuses(noise_is_geometric, EDM())


def the_path_is_straight(schedule):
    z, epsilon = 2.0, -3.0
    close((schedule.alpha(INSIDE) * z + schedule.sigma(INSIDE) * epsilon).diff().diff(), 0)


def test_rectified_paths_are_straight():
    the_path_is_straight(Rectified())
    accuses(the_path_is_straight, VPCosine())


def is_equation_5(grid, low, high, rho):
    """Karras et al. 2022: (high^(1/rho) + i / (N - 1) (low^(1/rho) - high^(1/rho)))^rho, i = 0 ... N - 1."""
    n = len(grid)
    expected = [(high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho for i in range(n)]
    close(grid, expected)


@pytest.mark.parametrize(("low", "high", "rho"), [(0.002, 80.0, 7.0), (1e-5, 1e3, 7.0), (0.1, 2.0, 3.0)])
def test_edm_at_even_times_is_equation_5(low, high, rho):
    grid = EDM(low, high, rho).sigma(torch.linspace(1, 0, 18, dtype=torch.float64))
    is_equation_5(grid, low, high, rho)
    accuses(is_equation_5, grid.flip(0), low, high, rho)
    accuses(is_equation_5, grid, low, high, rho + 0.1)
    accuses(is_equation_5, grid[:-1], low, high, rho)


def ratios_are_equal(grid):
    close(grid[1:] / grid[:-1], (grid[1] / grid[0]).expand(len(grid) - 1))


def test_levels_fall_by_equal_ratios():
    ratios_are_equal(levels(1e-3, 10.0, 24))
    accuses(ratios_are_equal, torch.linspace(10.0, 1e-3, 25, dtype=torch.float64))


def test_levels_go_from_high_to_low_in_so_many_steps():
    grid = levels(1e-3, 80.0, 12)
    assert (len(grid), grid.dtype) == (13, torch.float64)
    assert (grid.diff() < 0).all()
    close(grid[[0, -1]], [80.0, 1e-3])


def test_a_schedule_must_say_what_it_is():
    for method in ("sigma", "rates", "time"):
        with pytest.raises(NotImplementedError):
            getattr(Schedule(), method)(INSIDE)
