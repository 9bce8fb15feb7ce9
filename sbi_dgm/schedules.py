r"""Noise schedules: how a forward process turns data into noise.

At time t in [0, 1], 0 being data and 1 noise,

.. math::  z_t = \alpha(t)\, z_0 + \sigma(t)\, \epsilon, \qquad \epsilon \sim N(0, I).

The ratio of noise to signal, nu = sigma / alpha, rises with t, and the signal-to-noise ratio 1 / nu^2 falls (Kingma
et al. 2021, arXiv:2107.00630). Divided by alpha, z_t / alpha = z_0 + nu epsilon is the same process for all
schedules: they differ in where training spends its effort (`times`) and in how it counts (`weight`) (Karras et al.
2022, arXiv:2206.00364); beside that only in what a network that predicts the velocity is asked for, and in where the
times of a grid lie.

Training and solvers keep to noise ratios in [low, high]: below, noise is finer than any posterior; above, nothing is
left of the data.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """Base of all schedules; t is a tensor of any shape.

    Attributes:
        low: the noise ratio at which solvers stop.
        high: the one at which they start.

    """

    low: float = 1e-3
    high: float = 30.0

    def alpha(self, t: Tensor) -> Tensor:
        """Of the signal, falling from 1."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """Of the noise, rising from 0 (or `low`)."""
        raise NotImplementedError

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The derivatives (d alpha / dt, d sigma / dt)."""
        raise NotImplementedError

    def time(self, noise: Tensor) -> Tensor:
        """The inverse of `noise`: t where sigma / alpha is `noise`."""
        raise NotImplementedError

    def noise(self, t: Tensor) -> Tensor:
        """The ratio nu = sigma / alpha."""
        return self.sigma(t) / self.alpha(t)

    def times(self, u: Tensor) -> Tensor:
        """Times of training, as quantiles at u in [0, 1]: uniform between the ends."""
        first, last = self.time(u.new_tensor([self.low, self.high])).clamp(max=1)
        return first + (last - first) * u

    def weight(self, noise: Tensor) -> Tensor:
        """Weight of the squared error of the data: 1 / nu^2 makes it that of the noise (Ho et al. 2020, eq. 14)."""
        return noise**-2


@dataclass(frozen=True)
class VPLinear(Schedule):
    r"""Variance-preserving, beta(t) linear: alpha = e^{-B/2}, sigma^2 = 1 - e^{-B} with B(t) the integral of beta.

    Ho, Jain and Abbeel 2020 (arXiv:2006.11239) in continuous time, Song et al. 2021 (arXiv:2011.13456, eq. 32-33).
    """

    first: float = 0.1
    last: float = 20.0

    def integral(self, t: Tensor) -> Tensor:
        """B(t)."""
        return t * (self.first + 0.5 * (self.last - self.first) * t)

    def beta(self, t: Tensor) -> Tensor:
        """B'(t)."""
        return self.first + (self.last - self.first) * t

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self.integral(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self.integral(t)))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self.alpha(t)
        return -0.5 * self.beta(t) * alpha, 0.5 * self.beta(t) * alpha.square() / self.sigma(t)

    def time(self, noise: Tensor) -> Tensor:
        return self._time(torch.log1p(noise.square()))

    def _time(self, integral: Tensor) -> Tensor:
        root = torch.sqrt(self.first**2 + 2 * (self.last - self.first) * integral)
        return 2 * integral / (self.first + root)


@dataclass(frozen=True)
class SubVP(VPLinear):
    """The same alpha with less noise, sigma = 1 - e^{-B} (Song et al. 2021, eq. 29)."""

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self.integral(t))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return super().rates(t)[0], self.beta(t) * torch.exp(-self.integral(t))

    def time(self, noise: Tensor) -> Tensor:
        return self._time(2 * torch.asinh(0.5 * noise))


@dataclass(frozen=True)
class VPCosine(Schedule):
    """Variance-preserving along a quarter circle: alpha = cos(pi t / 2), sigma = sin(pi t / 2).

    Nichol and Dhariwal 2021 (arXiv:2102.09672, without their offset); for flow matching, Albergo and Vanden-Eijnden
    2023 (arXiv:2209.15571).
    """

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(0.5 * math.pi * t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * t)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -0.5 * math.pi * self.sigma(t), 0.5 * math.pi * self.alpha(t)

    def time(self, noise: Tensor) -> Tensor:
        return torch.atan(noise) * (2 / math.pi)


@dataclass(frozen=True)
class VE(Schedule):
    """Variance-exploding: sigma = low (high / low)^t (Song et al. 2021, eq. 31)."""

    def sigma(self, t: Tensor) -> Tensor:
        return self.low * torch.exp(t * math.log(self.high / self.low))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), math.log(self.high / self.low) * self.sigma(t)

    def time(self, noise: Tensor) -> Tensor:
        return torch.log(noise / self.low) / math.log(self.high / self.low)


@dataclass(frozen=True)
class EDM(Schedule):
    """Variance-exploding along sigma^(1/rho) linear in t; ln nu of training is normal.

    Karras et al. 2022 (arXiv:2206.00364): equation 5 for sigma, table 1 for the weight 1 + 1 / nu^2 and the
    lognormal noise. Theirs is ln nu ~ N(-1.2, 1.2^2) for images; posteriors are sharper, so that ours goes lower,
    ln nu ~ N(-2.5, 1.8^2).

    Attributes:
        rho: how much of the grid lies at low noise.
        mean, spread: of ln nu in training.

    """

    rho: float = 7.0
    mean: float = -2.5
    spread: float = 1.8

    @property
    def _line(self) -> tuple[float, float]:
        """Of sigma^(1/rho): where it starts, and its slope."""
        first = self.low ** (1 / self.rho)
        return first, self.high ** (1 / self.rho) - first

    def sigma(self, t: Tensor) -> Tensor:
        first, slope = self._line
        return (first + slope * t) ** self.rho

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), self.rho * self._line[1] * self.sigma(t) ** (1 - 1 / self.rho)

    def time(self, noise: Tensor) -> Tensor:
        first, slope = self._line
        return (noise ** (1 / self.rho) - first) / slope

    def times(self, u: Tensor) -> Tensor:
        ends = (u.new_tensor([self.low, self.high]).log() - self.mean) / self.spread
        low, high = torch.special.ndtr(ends)
        normal = torch.special.ndtri(low + (high - low) * u)
        return self.time((self.mean + self.spread * normal).exp()).clamp(0, 1)

    def weight(self, noise: Tensor) -> Tensor:
        return 1 + noise**-2


@dataclass(frozen=True)
class Rectified(Schedule):
    """The straight line alpha = 1 - t, sigma = t (Liu et al. 2022, arXiv:2209.03003; Lipman et al. 2022)."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t), torch.ones_like(t)

    def time(self, noise: Tensor) -> Tensor:
        return noise / (1 + noise)


SCHEDULES: dict[str, type[Schedule]] = {
    "vp_linear": VPLinear,
    "vp_cosine": VPCosine,
    "sub_vp": SubVP,
    "ve": VE,
    "edm": EDM,
    "rectified": Rectified,
}


def levels(low: float, high: float, steps: int) -> Tensor:
    """Noise ratios (steps + 1,) from `high` down to `low`, evenly spaced in ln nu.

    >>> levels(0.01, 1.0, 2).numpy().round(3)
    array([1.  , 0.1 , 0.01])
    """
    return torch.linspace(math.log(high), math.log(low), steps + 1, dtype=torch.float64).exp()
