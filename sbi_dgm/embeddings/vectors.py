"""Summaries of vectors, and of anything that is laid out as one."""

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from sbi_dgm.embeddings.base import Embedding, Learned, Observables
from sbi_dgm.networks import ResidualMLP
from sbi_dgm.parameters import total_size


class Flatten(Embedding):
    """All observables side by side, as one vector; nothing is learned."""

    def build(self, observables: Observables, dimension: int) -> nn.Module:
        return _Flatten()


class _Flatten(nn.Module):
    plain = True

    def forward(self, x: Mapping[str, Tensor]) -> Tensor:
        return side_by_side(x)


def side_by_side(x: Mapping[str, Tensor]) -> Tensor:
    """All numbers of observables `(B, *shape)` by name, in their order: (B, L)."""
    return torch.cat([values.flatten(1) if values.ndim > 1 else values[:, None] for values in x.values()], dim=1)


class MLP(Learned):
    """A learned summary of all observables, side by side as one vector, by a residual network.

    Attributes:
        hidden: width of the network.
        blocks: its number of residual blocks.

    """

    hidden: int = Field(default=128, ge=1)
    blocks: int = Field(default=2, ge=0)

    def build(self, observables: Observables, dimension: int) -> nn.Module:
        size = total_size(observables)
        network = ResidualMLP(size, self.length(dimension), hidden=self.hidden, blocks=self.blocks)
        return nn.Sequential(_Flatten(), network)
