r"""Flow matching: a velocity field between noise and data, learned from straight questions.

A path z_t = alpha(t) z + sigma(t) epsilon joins a data point z at t = 0 to noise at t = 1. The field that carries all
of p_t(. | c) along is the mean velocity of the paths through a place, and so the minimum of

.. math::  E_{t, z, \epsilon} \, | v(z_t, t, c) - (\alpha'(t) z + \sigma'(t) \epsilon) |^2 / D

(Lipman et al. 2022, arXiv:2210.02747, theorem 2; Liu et al. 2022, arXiv:2209.03003). For posteriors: Wildberger et al.
2023, arXiv:2305.17161, with times of density p(t) ~ (1 - t)^power, which favours the data's end, where posteriors take
shape (their section 3.3, time reversed, by the exponent that their code has; the text has 1 / (1 + power)). Pairs
(z, epsilon) are independent: to pair the rows of a batch by optimal transport would bind the noise to the context, and
the field would no longer carry the conditional.

The path is "rectified", alpha = 1 - t and sigma = t, or variance-preserving (`sbi_dgm.schedules`). The equation
dz/dt = v is that of diffusion in other variables, and few steps go further in those: z_t and v together hold the
denoiser, by which `sample` goes.
"""

import math
from typing import Literal

from pydantic import Field
from torch import Generator, Tensor

from sbi_dgm.estimators.base import Space
from sbi_dgm.estimators.denoising import Denoising, DenoisingFamily
from sbi_dgm.networks import SteeredMLP
from sbi_dgm.schedules import SCHEDULES, Schedule


class FlowMatching(DenoisingFamily):
    """Options of flow matching, beside those of `DenoisingFamily`.

    Attributes:
        path: between noise and data.
        power: of the density of training times, (1 - t)^power; 0 is uniform.

    Example:
        >>> import torch
        >>> matching = FlowMatching(steps=5).build(Space((3,)), context_dim=4)
        >>> matching.sample(2, torch.zeros(5, 4)).shape
        torch.Size([5, 2, 3])

    """

    path: Literal["rectified", "vp_cosine"] = "rectified"
    power: float = Field(default=1.0, ge=0)

    def build(self, space: Space, context_dim: int) -> "FlowMatchingEstimator":
        return FlowMatchingEstimator(space, self.network(space, context_dim), self)


class FlowMatchingEstimator(Denoising):
    """The velocity, and what follows from it."""

    options: FlowMatching
    data, noise, variance = 0.0, 1.0, 1.0

    def __init__(self, space: Space, network: SteeredMLP, options: FlowMatching) -> None:
        super().__init__(space, network, options)
        self.path: Schedule = SCHEDULES[options.path](low=options.low, high=options.high)

    def field(self, y: Tensor, s: Tensor, steering: Tensor) -> Tensor:
        """The velocity v at time s; the network sees ln nu on a scale from `low` to 1 / `low`."""
        alpha, sigma, low = self.path.alpha(s), self.path.sigma(s), self.options.low
        nu = (sigma / alpha.clamp(min=low)).clamp(low, 1 / low)
        unit = y / (alpha.square() + sigma.square()).sqrt()[..., None]
        return self.network(unit, 0.5 * (1 - nu.log() / math.log(low)), steering)

    def denoise(self, y: Tensor, nu: Tensor, steering: Tensor) -> Tensor:
        """The solution x of z_t = alpha x + sigma epsilon and v = alpha' x + sigma' epsilon, for z_t = alpha y."""
        t = self.path.time(nu)
        alpha, sigma, rates = self.path.alpha(t), self.path.sigma(t), self.path.rates(t)
        z = alpha[..., None] * y
        x = rates[1][..., None] * z - sigma[..., None] * self.field(z, t, steering)
        return x / (alpha * rates[1] - sigma * rates[0])[..., None]

    def spread(self, s: Tensor) -> Tensor:
        return self.path.sigma(s)

    def forward(
        self, z: Tensor, context: Tensor, *, progress: float = 1.0, generator: Generator | None = None
    ) -> Tensor:
        z, u, epsilon = self.asked(z, generator)
        t = 1 - u ** (1 / (1 + self.options.power))
        (alpha, sigma), rates = (self.path.alpha(t), self.path.sigma(t)), self.path.rates(t)
        y = alpha[..., None] * z + sigma[..., None] * epsilon
        velocity = rates[0][..., None] * z + rates[1][..., None] * epsilon
        error = velocity - self.field(y, t, self.network.steer(context)[:, None])
        return error.square().mean((-1, -2))
