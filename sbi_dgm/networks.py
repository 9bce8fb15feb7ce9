"""Small networks that families and embeddings share: (..., inputs) -> (..., outputs)."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional


class ResidualMLP(nn.Module):
    """Residual multilayer perceptron: h_0 = W x + b, h_{k+1} = h_k + B_k a(A_k a(h_k)), y = V a(h_K).

    Pre-activation residual blocks (He et al. 2016, arXiv:1603.05027) without normalisation layers, so that
    rows never see each other. The last layer can start at zero (`zero=True`): the map built on it then
    starts as the identity.

    Args:
        inputs: number of input features; 0 is allowed and gives a learned constant.
        outputs: number of output features.
        hidden: width of the residual stream.
        blocks: number of residual blocks.
        dropout: fraction of a block's inner units that training leaves out (Srivastava et al. 2014).
        zero: start with an output of exactly zero.

    Shapes: (..., inputs) -> (..., outputs).

    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        hidden: int = 64,
        blocks: int = 2,
        dropout: float = 0.0,
        zero: bool = False,
    ) -> None:
        super().__init__()
        self.first = _linear(inputs, hidden)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Dropout(dropout), nn.Linear(hidden, hidden)
            )
            for _ in range(blocks)
        )
        last = _zeroed(hidden, outputs) if zero else nn.Linear(hidden, outputs)
        self.last = nn.Sequential(nn.SiLU(), last)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for block in self.blocks:
            h = h + block(h)
        return self.last(h)


class Constant(nn.Module):
    """A learned vector, for maps with nothing to look at: (..., 0) -> (..., outputs)."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.value = nn.Parameter(0.1 * torch.randn(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.value.expand(*x.shape[:-1], -1)


def _linear(inputs: int, outputs: int) -> nn.Module:
    return nn.Linear(inputs, outputs) if inputs else Constant(outputs)


def _zeroed(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that starts as zero."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class SteeredMLP(nn.Module):
    """Residual MLP of z whose blocks are steered by a time and a context.

    h_0 = W z + V c, and each block is h + B a(A a(h) + E e) with e = a(E_s(s) + E_c(c)): the shift of FiLM (Perez et
    al. 2018, arXiv:1709.07871), without its scale, which cost more than it gave (`docs/diffusion.md`). That z meets c
    in the first layer matters: posteriors are mostly functions of their differences. The output starts at zero.

    Steering is broadcast, so that many z of one context and time share its cost; `steer` does the context's part.

    Args:
        features: D, of z.
        context: C; 0 is allowed.
        hidden: width H of the residual stream.
        blocks: number of residual blocks.
        frequencies: of the cosines cos(pi k s), k < frequencies, that describe the time s in [0, 1].
        dropout: fraction of a block's inner units that training leaves out.

    """

    def __init__(
        self,
        features: int,
        context: int,
        *,
        hidden: int = 128,
        blocks: int = 4,
        frequencies: int = 16,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.first = nn.Linear(features, hidden)
        self.time = nn.Linear(frequencies, hidden)
        self.beside = _linear(context, hidden)
        self.context = ResidualMLP(context, hidden, hidden=hidden, blocks=1, dropout=dropout)
        self.blocks = nn.ModuleList(_Steered(hidden, dropout) for _ in range(blocks))
        self.last = nn.Sequential(nn.SiLU(), _zeroed(hidden, features))

    def steer(self, context: Tensor) -> Tensor:
        """What the network needs of a context: (..., C) -> (..., 2 H)."""
        return torch.cat([self.beside(context), self.context(context)], dim=-1)

    def forward(self, z: Tensor, s: Tensor, steering: Tensor) -> Tensor:
        """The output (..., D) for z (..., D), s (...) and steering (..., 2 H), each broadcast."""
        beside, context = steering.chunk(2, dim=-1)
        e = self._told(s, context)
        h = self.first(z) + beside
        for block in self.blocks:
            h = block(h, e)
        return self.last(h)

    def pushed(self, z: Tensor, s: Tensor, steering: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
        """The output f (..., D), and (df/dz) e for directions e of `along` (P, ..., D), without dropout.

        Derivatives go forward beside the values, so that both have gradients at the price of 1 + P evaluations.
        """
        beside, context = steering.chunk(2, dim=-1)
        e = self._told(s, context)
        h, tangent = self.first(z) + beside, functional.linear(along, self.first.weight)
        for block in cast("Sequence[_Steered]", self.blocks):
            h, tangent = block.pushed(h, e, tangent)
        value, slope = _silu(h)
        last = cast("nn.Linear", self.last[1])
        return last(value), functional.linear(slope * tangent, last.weight)

    def _told(self, s: Tensor, context: Tensor) -> Tensor:
        """What blocks hear of time and context."""
        waves = torch.cos(math.pi * s[..., None] * torch.arange(self.time.in_features, device=s.device))
        return functional.silu(self.time(waves.to(context.dtype)) + context)


class _Steered(nn.Module):
    """One block of `SteeredMLP`."""

    def __init__(self, hidden: int, dropout: float) -> None:
        super().__init__()
        self.inner, self.steering, self.outer = (nn.Linear(hidden, hidden) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        inner = functional.silu(self.inner(functional.silu(h)) + self.steering(e))
        return h + self.outer(self.dropout(inner))

    def pushed(self, h: Tensor, e: Tensor, tangent: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = _silu(h)
        inner, bend = _silu(self.inner(value) + self.steering(e))
        push = bend * functional.linear(slope * tangent, self.inner.weight)
        return h + self.outer(inner), tangent + functional.linear(push, self.outer.weight)


def _silu(x: Tensor) -> tuple[Tensor, Tensor]:
    """SiLU and its derivative."""
    share = torch.sigmoid(x)
    value = x * share
    return value, share + value * (1 - share)
