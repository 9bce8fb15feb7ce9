r"""Draws by a denoiser: what diffusion and flow matching share beside their equation (`continuous`).

Draws without a density need fewer evaluations than the equation: a field that was learned from noisy data has a
denoiser x(y, nu, c) = E[z | y = z + nu epsilon, c], and `sbi_dgm.solvers.SAMPLERS` go by that. They start at a noise
`high`, where y is normal about x(0, high, c) of variance 1 + high^2 but for a share of 1 / high^2, and end at `low`.
"""

import math
from abc import abstractmethod
from typing import Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from sbi_dgm import gaussian
from sbi_dgm.estimators.base import Space
from sbi_dgm.estimators.continuous import Continuous, ContinuousFamily
from sbi_dgm.networks import SteeredMLP
from sbi_dgm.schedules import levels
from sbi_dgm.solvers import SAMPLERS

REPEATS = 8  # noise draws of a row in validation


def even(shape: tuple[int, ...], like: Tensor, generator: Generator | None) -> Tensor:
    """Numbers in [0, 1), each uniform, evenly spaced as a whole (Kingma et al. 2021, appendix I.1)."""
    count = math.prod(shape)
    start = torch.rand((), generator=generator, dtype=like.dtype, device=like.device)
    line = torch.arange(count, dtype=like.dtype, device=like.device) / max(count, 1)
    return ((start + line) % 1).reshape(shape)


class DenoisingFamily(ContinuousFamily):
    """Options that diffusion and flow matching share, beside those of `ContinuousFamily`.

    Attributes:
        low: noise, in units of the signal, at which samplers end.
        high: and at which they start.
        dropout: fraction of the network's hidden units that a training step leaves out.
        repeats: noise draws of each row in a training step; they share the embedding.
        sampler: how `sample` goes from noise to data; "dpm" is the quickest, "ancestral" and "sde" are stochastic.
        steps: its number of steps; "heun" evaluates the network twice in each, the others once.

    """

    USE = frozenset({"sampler", "steps", "tolerance", "probes"})

    low: float = Field(default=1e-3, gt=0, lt=1)
    high: float = Field(default=30.0, gt=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    repeats: int = Field(default=1, ge=1)
    sampler: Literal["dpm", "heun", "euler", "ancestral", "sde"] = "dpm"
    steps: int = Field(default=24, ge=1)

    def network(self, space: Space, context_dim: int) -> SteeredMLP:
        """The untrained network."""
        return SteeredMLP(space.size, context_dim, hidden=self.hidden, blocks=self.blocks, dropout=self.dropout)


class Denoising(Continuous):
    """Base of families that draw by a denoiser."""

    options: DenoisingFamily

    @abstractmethod
    def denoise(self, y: Tensor, nu: Tensor, steering: Tensor) -> Tensor:
        """E[z | y = z + nu epsilon, c]: y (..., D), nu (...), steering (..., 2 H) -> (..., D)."""

    def asked(self, z: Tensor, generator: Generator | None) -> tuple[Tensor, Tensor, Tensor]:
        """What a loss asks of: z repeated (B, R, D), even numbers in [0, 1) for its times (B, R), noise (B, R, D)."""
        z = z[:, None].expand(-1, self.options.repeats if self.training else REPEATS, -1)
        return z, even(z.shape[:2], z, generator), gaussian.noise(z.shape, z, generator)

    def levels(self) -> Tensor:
        """The noise that `sample` visits, falling, in float64."""
        return levels(self.options.low, self.options.high, self.options.steps)

    def sample(self, n: int, context: Tensor, generator: Generator | None = None) -> Tensor:
        steering, nu = self.network.steer(context)[:, None], self.levels().to(context)
        normal = gaussian.noise((len(context), n, self.space.size), context, generator)
        mean = self.denoise(torch.zeros_like(normal[:, :1]), nu[0], steering)
        sampler = SAMPLERS[self.options.sampler]
        start = mean + (1 + nu[0].square()).sqrt() * normal
        return sampler(lambda y, level: self.denoise(y, level, steering), start, nu, generator)
