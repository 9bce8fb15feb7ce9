r"""A learned location and scale in front of any family: z = mu(c) + L(c) u, with u ~ p(u | c) of that family.

.. math::
    \ln p(z | c) = \ln p(u | c) - \sum_i \ln L_{ii}(c), \qquad u = L(c)^{-1} (z - \mu(c))

with L lower triangular, its diagonal positive. Where posteriors are a hundred times narrower than the prior,
a family sees u of order one for every observation, so its resolution is spent on shape. The two are trained
together on the family's own loss, shifted by the log-determinant (which is exact).
"""

from typing import Any

import torch
from pydantic import Field
from torch import Generator, Tensor

from sbi_dgm.estimators.base import Density, Estimator, Family, Space
from sbi_dgm.estimators.flow import Flow
from sbi_dgm.networks import ResidualMLP


class Located(Family):
    """Options of a location and scale in front of `of`.

    Attributes:
        of: options of the family behind.
        hidden: width of the network for mu and L.
        blocks: its number of residual blocks.

    Example:
        >>> Located(Flow(transforms=3)).of.transforms
        3

    """

    of: Family = Field(default_factory=Flow)
    hidden: int = Field(default=64, ge=1)
    blocks: int = Field(default=2, ge=0)

    def __init__(self, of: Family | None = None, **options: Any) -> None:
        super().__init__(**({} if of is None else {"of": of}), **options)

    def build(self, space: Space, context_dim: int) -> "LocatedEstimator":
        size = space.size
        network = ResidualMLP(
            context_dim, size + size * (size + 1) // 2, hidden=self.hidden, blocks=self.blocks, zero=True
        )
        return LocatedEstimator(space, network, self.of.build(space, context_dim))


class LocatedEstimator(Estimator):
    """u = L(c)^{-1} (z - mu(c)) before `behind`."""

    def __init__(self, space: Space, network: ResidualMLP, behind: Estimator) -> None:
        super().__init__()
        self.space = space
        self.network = network
        self.behind = behind
        self.density: Density = behind.density

    def _locate(self, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mu (B, D), L (B, D, D) and ln det L (B,)."""
        size = self.space.size
        mean, log_diagonal, below = self.network(context).split([size, size, size * (size - 1) // 2], dim=-1)
        log_diagonal = 7 * torch.tanh(log_diagonal / 7)
        scale = torch.diag_embed(log_diagonal.exp())
        row, column = torch.tril_indices(size, size, offset=-1)
        scale[..., row, column] = below
        return mean, scale, log_diagonal.sum(-1)

    @staticmethod
    def _whiten(z: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
        """U for z (B, S, D)."""
        return torch.linalg.solve_triangular(scale, (z - mean.unsqueeze(1)).mT, upper=False).mT

    def forward(
        self, z: Tensor, context: Tensor, *, progress: float = 1.0, generator: Generator | None = None
    ) -> Tensor:
        mean, scale, log_det = self._locate(context)
        u = self._whiten(z.unsqueeze(1), mean, scale).squeeze(1)
        return self.behind(u, context, progress=progress, generator=generator) + log_det

    def log_prob(self, z: Tensor, context: Tensor, generator: Generator | None = None) -> Tensor:
        mean, scale, log_det = self._locate(context)
        if z.ndim == 2:
            u = self._whiten(z.unsqueeze(1), mean, scale).squeeze(1)
            return self.behind.log_prob(u, context, generator) - log_det
        return self.behind.log_prob(self._whiten(z, mean, scale), context, generator) - log_det.unsqueeze(-1)

    def sample(self, n: int, context: Tensor, generator: Generator | None = None) -> Tensor:
        mean, scale, _ = self._locate(context)
        return mean.unsqueeze(1) + self.behind.sample(n, context, generator) @ scale.mT

    def sample_and_log_prob(self, n: int, context: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        mean, scale, log_det = self._locate(context)
        u, log_prob = self.behind.sample_and_log_prob(n, context, generator)
        return mean.unsqueeze(1) + u @ scale.mT, log_prob - log_det.unsqueeze(-1)
