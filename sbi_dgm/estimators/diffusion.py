r"""Diffusion: noise is added to z until nothing is left of it, and a network learns to take it away.

With noise nu times the signal (`sbi_dgm.schedules`), y = z + nu epsilon, and the best estimate of z in the mean
square is the denoiser x(y, nu, c) = E[z | y, c]. It holds the score of all noisy densities (Tweedie; Vincent 2011),

.. math::  \nabla_y \ln p_\nu(y | c) = (x(y, \nu, c) - y) / \nu^2 ,

and so the probability-flow equation, which carries each p_nu into the next (Song et al. 2021, arXiv:2011.13456,
eq. 13; Karras et al. 2022, arXiv:2206.00364, eq. 1):

.. math::  \frac{dy}{d \ln \nu} = y - x(y, \nu, c) .

The loss is denoising,

.. math::  w(\nu) \, |z - x(z + \nu \epsilon, \nu, c)|^2 / D ,

its times and weight by the schedule; times of a batch are spread evenly (Kingma et al. 2021, arXiv:2107.00630,
appendix I.1). What the network computes is a choice of units for the error of x, `PARAMETRISATIONS`.

On a grid of T times this is DDPM (Ho et al. 2020, arXiv:2006.11239), with the sampler "ancestral" for its draws and
`elbo` for its bound on ln p.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from sbi_dgm import gaussian
from sbi_dgm.errors import OptionError
from sbi_dgm.estimators.base import Space
from sbi_dgm.estimators.denoising import Denoising, DenoisingFamily
from sbi_dgm.networks import SteeredMLP
from sbi_dgm.schedules import SCHEDULES, Schedule

Coefficients = tuple[Tensor, Tensor]


def noise(alpha: Tensor, sigma: Tensor, _: Coefficients) -> Coefficients:
    """F = epsilon: x = (z_t - sigma F) / alpha (Ho et al. 2020)."""
    return 1 / alpha, -sigma / alpha


def data(alpha: Tensor, _: Tensor, __: Coefficients) -> Coefficients:
    """F = x."""
    return torch.zeros_like(alpha), torch.ones_like(alpha)


def score(alpha: Tensor, sigma: Tensor, _: Coefficients) -> Coefficients:
    """F = sqrt(alpha^2 + sigma^2) times the score of z_t: x = (z_t + sigma^2 score) / alpha (Song et al. 2021)."""
    return 1 / alpha, sigma.square() / (alpha * (alpha.square() + sigma.square()).sqrt())


def velocity(alpha: Tensor, sigma: Tensor, rates: Coefficients) -> Coefficients:
    """F = alpha' x + sigma' epsilon, solved together with z_t = alpha x + sigma epsilon (Salimans and Ho 2022)."""
    determinant = alpha * rates[1] - sigma * rates[0]
    return rates[1] / determinant, -sigma / determinant


def edm(alpha: Tensor, sigma: Tensor, _: Coefficients) -> Coefficients:
    """Target and input of F of variance one, for data of variance one (Karras et al. 2022, table 1)."""
    total = alpha.square() + sigma.square()
    return alpha / total, sigma / total.sqrt()


PARAMETRISATIONS: dict[str, Callable[[Tensor, Tensor, Coefficients], Coefficients]] = {
    "noise": noise,
    "data": data,
    "score": score,
    "velocity": velocity,
    "edm": edm,
}


class Diffusion(DenoisingFamily):
    """Options of a diffusion model, beside those of `DenoisingFamily`.

    Attributes:
        schedule: the forward process.
        parametrisation: what the network predicts.
        grid: number T of times of discrete diffusion; None is continuous time.

    Example:
        >>> diffusion = Diffusion(steps=5).build(Space((3,)), context_dim=4)
        >>> diffusion.sample(2, torch.zeros(5, 4)).shape
        torch.Size([5, 2, 3])

    """

    schedule: Literal["vp_linear", "vp_cosine", "sub_vp", "ve", "edm"] = "edm"
    parametrisation: Literal["noise", "data", "score", "velocity", "edm"] = "edm"
    grid: int | None = Field(default=None, ge=2)

    def build(self, space: Space, context_dim: int) -> "DiffusionEstimator":
        most = float(SCHEDULES[self.schedule](low=self.low, high=self.high).noise(torch.ones((), dtype=torch.float64)))
        if self.high > most * (1 + 1e-9):
            raise OptionError(f"high = {self.high:g}: the schedule {self.schedule!r} ends at a noise of {most:.4g}.")
        return DiffusionEstimator(space, self.network(space, context_dim), self)


class DiffusionEstimator(Denoising):
    """The denoiser, and what follows from it; y = z + nu epsilon throughout."""

    options: Diffusion

    def __init__(self, space: Space, network: SteeredMLP, options: Diffusion) -> None:
        super().__init__(space, network, options)
        self.schedule: Schedule = SCHEDULES[options.schedule](low=options.low, high=options.high)
        self.data, self.noise = math.log(options.low), math.log(options.high)
        self.variance = 1 + options.high**2

    def denoise(self, y: Tensor, nu: Tensor, steering: Tensor) -> Tensor:
        t = self.schedule.time(nu)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        skip, out = PARAMETRISATIONS[self.options.parametrisation](alpha, sigma, self.schedule.rates(t))
        unit = y / (1 + nu.square()).sqrt()[..., None]
        place = (nu.log() - self.data) / (self.noise - self.data)
        return (skip * alpha)[..., None] * y + out[..., None] * self.network(unit, place, steering)

    def centre(self, steering: Tensor) -> Tensor:
        return self.denoise(steering.new_zeros(self.space.size), steering.new_tensor(self.options.high), steering)

    def field(self, y: Tensor, s: Tensor, steering: Tensor) -> Tensor:
        return y - self.denoise(y, s.exp(), steering)

    def spread(self, s: Tensor) -> Tensor:
        return s.exp()

    def forward(
        self, z: Tensor, context: Tensor, *, progress: float = 1.0, generator: Generator | None = None
    ) -> Tensor:
        z, u, epsilon = self.asked(z, generator)
        nu = self.schedule.noise(self._times(u))
        error = z - self.denoise(z + nu[..., None] * epsilon, nu, self.network.steer(context)[:, None])
        return (self.schedule.weight(nu) * error.square().mean(-1)).mean(-1)

    def _times(self, u: Tensor) -> Tensor:
        if self.options.grid is None:
            return self.schedule.times(u)
        line = self._grid().to(u)
        return line[(u * len(line)).long().clamp(max=len(line) - 1)]

    def _grid(self) -> Tensor:
        """Times of discrete diffusion, falling (T,)."""
        noise = torch.tensor([self.options.high, self.options.low], dtype=torch.float64)
        first, last = self.schedule.time(noise).clamp(max=1)
        return first + (last - first) * torch.linspace(0, 1, self.options.grid or 2, dtype=torch.float64)

    def levels(self) -> Tensor:
        return super().levels() if self.options.grid is None else self.schedule.noise(self._grid())

    def elbo(self, z: Tensor, context: Tensor, generator: Generator | None = None) -> Tensor:
        r"""A bound below ln p(z | c) of the process on `levels`, by one draw of each of its terms: (B, D) -> (B,).

        .. math::
            -\mathrm{KL}[q(y_0 | z) \,\|\, N(m, (1 + \nu_0^2) I)]
            - \tfrac12 \sum_i (\nu_{i+1}^{-2} - \nu_i^{-2}) |z - x(y_i, \nu_i)|^2 + \ln p(z | y_n)

        Ho et al. 2020, eq. 5, with the Gaussian bridge of `ancestral` (Kingma et al. 2021, eq. 13-14), and
        p(z | y_n) = N(x, nu^2 / (1 + nu^2)). It is as near as levels are close: for a known target of two numbers and a
        grid of 1000, 0.2 nats below ln p with "edm", but 85 with "vp_linear", whose last level, `low` = 0.001, comes
        after 0.0095 (0.7 with low=0.01).
        """
        levels, steering = self.levels().to(z), self.network.steer(context)
        top, away = levels[0].square(), z - self.centre(steering)
        bound = -0.5 * ((top + away.square()) / (1 + top) - 1 + torch.log1p(1 / top)).sum(-1)
        ends = torch.cat([levels[1:], levels[-1:]])
        for nu, following in zip(levels, ends, strict=True):
            y = z + nu * gaussian.noise(z.shape, z, generator)
            error = (z - self.denoise(y, nu, steering)).square().sum(-1)
            bound = bound - 0.5 * (following**-2 - nu**-2) * error
        variance = levels[-1].square() / (1 + levels[-1].square())
        return bound - 0.5 * (error / variance + z.shape[-1] * torch.log(2 * math.pi * variance))
