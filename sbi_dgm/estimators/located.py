r"""A learned location and scale in front of any family: z = mu(c) + L(c) u, with u ~ p(u | c) of that family.

.. math::
    \ln p(z | c) = \ln p(u | c) - \sum_i \ln L_{ii}(c), \qquad u = L(c)^{-1} (z - \mu(c))

with L = D (I + B), D diagonal and positive, B strictly lower triangular: where D is small, so is all of its row, and
L^{-1} does not grow from coordinate to coordinate while both are learned.

Where posteriors are a hundred times narrower than the prior, a family sees u of order one for every observation, so its
resolution is spent on shape. Where the family's loss is a likelihood, the two are trained together on it, shifted by
the log-determinant (which is exact). Any other loss would gain by shrinking u; there mu and L are those of the Gaussian
N(mu, L L^T) of maximum likelihood, and the family learns the u that they leave.
"""

from typing import Any

import torch
from pydantic import Field
from torch import Generator, Tensor

from sbi_dgm import gaussian
from sbi_dgm.estimators.base import Density, Estimator, Family, Space
from sbi_dgm.estimators.flow import Flow
from sbi_dgm.estimators.moved import Moved
from sbi_dgm.networks import ResidualMLP

LIKELIHOODS = ("exact", "bound")  # densities of families whose loss is -ln p, or a bound above it


class Located(Family):
    """Options of a location and scale in front of `of`.

    Attributes:
        of: options of the family behind.
        hidden: width of the network for mu and L.
        blocks: its number of residual blocks.
        dropout: fraction of its hidden units that a training step leaves out.

    Example:
        >>> Located(Flow(transforms=3)).of.transforms
        3

    """

    of: Family = Field(default_factory=Flow)
    hidden: int = Field(default=64, ge=1)
    blocks: int = Field(default=2, ge=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)

    def __init__(self, of: Family | None = None, **options: Any) -> None:
        super().__init__(**({} if of is None else {"of": of}), **options)

    def using(self, **values: Any) -> "Located":
        """These options with others of use, which are those of the family behind."""
        return Located(self.of.using(**values), hidden=self.hidden, blocks=self.blocks, dropout=self.dropout)

    def build(self, space: Space, context_dim: int) -> "LocatedEstimator":
        size = space.size
        shape = {"hidden": self.hidden, "blocks": self.blocks, "dropout": self.dropout}
        network = ResidualMLP(context_dim, size + size * (size + 1) // 2, **shape, zero=True)
        return LocatedEstimator(space, network, self.of.build(space, context_dim))


class LocatedEstimator(Moved):
    """z = mu(c) + L(c) u, with the u of `behind`."""

    def __init__(self, space: Space, network: ResidualMLP, behind: Estimator) -> None:
        super().__init__()
        self.space, self.network, self.behind = space, network, behind
        self.density: Density = behind.density

    @property
    def source(self) -> Estimator:
        return self.behind

    def _locate(self, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The mean mu (B, D), L (B, D, D) and ln det L (B,)."""
        size = self.space.size
        mean, log_diagonal, below = self.network(context).split([size, size, size * (size - 1) // 2], dim=-1)
        log_diagonal = gaussian.bounded(log_diagonal)
        scale = torch.eye(size, dtype=mean.dtype, device=mean.device).repeat(len(mean), 1, 1)
        row, column = torch.tril_indices(size, size, offset=-1)
        scale[..., row, column] = below
        return mean, log_diagonal.exp().unsqueeze(-1) * scale, log_diagonal.sum(-1)

    def back(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        mean, scale, log_det = self._locate(context)
        stack = z if z.ndim > 2 else z.unsqueeze(1)
        u = torch.linalg.solve_triangular(scale, (stack - mean.unsqueeze(1)).mT, upper=False).mT
        return (u, log_det.unsqueeze(-1)) if z.ndim > 2 else (u.squeeze(1), log_det)

    def there(self, u: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        mean, scale, log_det = self._locate(context)
        return mean.unsqueeze(1) + u @ scale.mT, log_det.unsqueeze(-1)

    def forward(
        self, z: Tensor, context: Tensor, *, progress: float = 1.0, generator: Generator | None = None
    ) -> Tensor:
        if self.density in LIKELIHOODS:
            return super().forward(z, context, progress=progress, generator=generator)
        u, log_det = self.back(z, context)
        rest = self.behind(u.detach(), context, progress=progress, generator=generator)
        return log_det - gaussian.log_prob(u) + rest
