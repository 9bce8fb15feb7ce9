"""Small networks that every family shares."""

import math

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
        """Z (..., D), s (...) and steering (..., 2 H), each broadcast -> (..., D)."""
        waves = torch.cos(math.pi * s[..., None] * torch.arange(self.time.in_features, device=s.device))
        beside, context = steering.chunk(2, dim=-1)
        e = functional.silu(self.time(waves.to(z.dtype)) + context)
        h = self.first(z) + beside
        for block in self.blocks:
            h = block(h, e)
        return self.last(h)


class _Steered(nn.Module):
    """One block of `SteeredMLP`."""

    def __init__(self, hidden: int, dropout: float) -> None:
        super().__init__()
        self.inner, self.steering, self.outer = (nn.Linear(hidden, hidden) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        inner = functional.silu(self.inner(functional.silu(h)) + self.steering(e))
        return h + self.outer(self.dropout(inner))


class MaskedMLP(nn.Module):
    """Residual MLP whose i-th group of outputs sees the context and the inputs before i, and no other.

    MADE (Germain et al. 2015, arXiv:1502.03509): input i has degree i + 1, the context degree 0, hidden unit
    j degree j mod D, and a weight lives where the degree does not fall (at the output: where it rises). Degree
    0 among the hidden units lets the first group depend on the context.

    Args:
        features: D, number of inputs.
        context: number of context features C, which every output sees.
        outputs: numbers per input.

    Shapes: z (..., D) and context (..., C) -> (..., D, outputs).

    """

    def __init__(
        self,
        features: int,
        context: int,
        outputs: int,
        *,
        hidden: int = 64,
        blocks: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.features = features
        order = torch.arange(features) + 1
        units = torch.arange(max(hidden, features)) % features  # every degree needs a unit
        inner = (units[:, None] >= units).float()
        self.first = _Masked(torch.cat([(units[:, None] >= order).float(), torch.ones(len(units), context)], dim=1))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.SiLU(), _Masked(inner), nn.SiLU(), nn.Dropout(dropout), _Masked(inner))
            for _ in range(blocks)
        )
        last = _Masked((order.repeat_interleave(outputs)[:, None] > units).float())
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.last = nn.Sequential(nn.SiLU(), last)

    def forward(self, z: Tensor, context: Tensor) -> Tensor:
        h = self.first(torch.cat([z, context], dim=-1))
        for block in self.blocks:
            h = h + block(h)
        return self.last(h).unflatten(-1, (self.features, -1))


class _Masked(nn.Linear):
    """A linear layer whose weights exist only where the mask (outputs, inputs) is one."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight * self.mask, self.bias)
