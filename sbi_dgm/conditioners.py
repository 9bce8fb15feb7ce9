"""Networks of flows: what a layer says of each coordinate, given others and a context. Rows stand last throughout."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional


class Columns(nn.Module):
    """A linear layer y = W x + b for rows that stand last: x (inputs, N) -> y (outputs, N). No inputs are allowed."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__()
        reach = 1 / math.sqrt(max(1, inputs))
        self.weight = nn.Parameter(torch.empty(outputs, inputs).uniform_(-reach, reach))
        self.bias = nn.Parameter(torch.empty(outputs, 1).uniform_(-reach, reach)) if bias else None

    def live(self) -> Tensor:
        """The weights that exist."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.live() @ x if self.bias is None else torch.addmm(self.bias, self.live(), x)


class Masked(Columns):
    """One whose weights exist only where the mask (outputs, inputs) is true."""

    mask: Tensor

    def __init__(self, mask: Tensor, *, bias: bool = True) -> None:
        super().__init__(mask.shape[1], mask.shape[0], bias=bias)
        self.register_buffer("mask", mask.to(self.weight.dtype), persistent=False)

    def live(self) -> Tensor:
        return self.weight * self.mask


class Conditioner(nn.Module):
    """Residual MLP of inputs z and a context, whose rows stand last, as `sbi_dgm.splines` takes them.

    h_0 = W z + V c + b, h_{k+1} = h_k + B_k a(A_k a(h_k)), y = U a(h_K): z (inputs, N) and context (B, C) -> (groups,
    outputs, N). N is a multiple of B: as many rows behind each other for every context, so that V c is computed once.
    The output starts at zero.

    Args:
        first: W, without a bias.
        inner: A_1, B_1, A_2, B_2, ...
        last: U, which is set to zero.
        context: C; 0 is allowed.
        groups: into which the outputs fall.
        dropout: fraction of a block's inner units that training leaves out.

    """

    def __init__(
        self,
        first: Columns,
        inner: Sequence[Columns],
        last: Columns,
        context: int,
        groups: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.first, self.last, self.groups = first, last, groups
        self.beside = Columns(context, len(first.weight))
        self.blocks = nn.ModuleList(_Block(a, b, dropout) for a, b in zip(inner[::2], inner[1::2], strict=True))
        reach = 1 / math.sqrt(max(1, first.weight.shape[1] + context))  # as for one layer that sees both
        for weight in (first.weight, *self.beside.parameters()):
            nn.init.uniform_(weight, -reach, reach)
        for weight in last.parameters():
            nn.init.zeros_(weight)

    def forward(self, z: Tensor, context: Tensor) -> Tensor:
        h = torch.addmm(self.steer(context, z.shape[1]), self.first.live(), z)
        for block in self.blocks:
            h = block(h)
        return self.last(functional.silu(h)).unflatten(0, (self.groups, -1))

    def steer(self, context: Tensor, n: int) -> Tensor:
        """What the contexts (B, C) say to their rows: V c + b, (H, n)."""
        steering = self.beside(context.T)
        return steering if n == len(context) else steering.repeat_interleave(n // len(context), dim=1)


class _Block(nn.Module):
    """One residual block, rows last."""

    inner: Columns
    outer: Columns

    def __init__(self, inner: Columns, outer: Columns, dropout: float) -> None:
        super().__init__()
        self.inner, self.outer, self.dropout = inner, outer, nn.Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.outer(self.dropout(functional.silu(self.inner(functional.silu(h)))))


class JointMLP(Conditioner):
    """A conditioner whose every output sees every input.

    >>> JointMLP(2, 3, groups=4, outputs=5)(torch.ones(2, 6), torch.ones(6, 3)).shape
    torch.Size([4, 5, 6])
    """

    def __init__(
        self,
        inputs: int,
        context: int,
        groups: int,
        outputs: int,
        *,
        hidden: int = 64,
        blocks: int = 2,
        dropout: float = 0.0,
    ) -> None:
        first, inner = Columns(inputs, hidden, bias=False), [Columns(hidden, hidden) for _ in range(2 * blocks)]
        super().__init__(first, inner, Columns(hidden, groups * outputs), context, groups, dropout)


class MaskedMLP(Conditioner):
    """A conditioner whose i-th group of outputs sees the context and the inputs before i, and no other.

    MADE (Germain et al. 2015, arXiv:1502.03509): input i has degree i + 1, the context degree 0, hidden units have
    degrees 0 to D - 1, as many of each, and a weight lives where the degree does not fall (at the output: where it
    rises). Degree 0 among the hidden units lets the first group depend on the context.

    Args:
        features: D, number of inputs and of groups.
        context: number of context features C.
        outputs: numbers per input.

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
        order = torch.arange(features) + 1
        units = (torch.arange(max(hidden, features)) % features).sort().values  # every degree needs a unit
        rises = units[:, None] >= units
        inner = [Masked(rises) for _ in range(2 * blocks)]
        first = Masked(units[:, None] >= order, bias=False)
        last = Masked(order.repeat_interleave(outputs)[:, None] > units)
        super().__init__(first, inner, last, context, features, dropout)
        self.ends = torch.bincount(units).cumsum(0).tolist()

    @torch.no_grad()
    def solve(self, n: int, context: Tensor, solve: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Inputs z (D, n) that follow from their own outputs: `solve` makes z_i (n,) of i and group i (outputs, n).

        A unit of degree m sees z_{<m+1} and units up to m, so that units of rising degree are computed once each: all
        inputs cost one pass, not D. Without dropout and gradients.
        """
        steering = self.steer(context, n)
        last, bias = (part.unflatten(0, (self.groups, -1)) for part in self.last.parameters())
        z, blocks = context.new_empty(self.groups, n), cast("Sequence[_Block]", self.blocks)
        active = [torch.empty_like(steering) for _ in range(1 + 2 * len(self.blocks))]
        for m, (start, end) in enumerate(pairwise([0, *self.ends])):
            h = torch.addmm(steering[start:end], self.first.weight[start:end, :m], z[:m])
            active[0][start:end] = functional.silu(h)
            for block, seen, inner, outer in zip(blocks, active[:-1:2], active[1::2], active[2::2], strict=True):
                inner[start:end] = functional.silu(_part(block.inner, start, end, seen))
                h = h + _part(block.outer, start, end, inner)
                outer[start:end] = functional.silu(h)
            z[m] = solve(m, torch.addmm(bias[m], last[m, :, :end], active[-1][:end]))
        return z


def _part(layer: Columns, start: int, end: int, seen: Tensor) -> Tensor:
    """Outputs `start` to `end` of a layer that see no input from `end` on."""
    weight, bias = layer.parameters()
    return torch.addmm(bias[start:end], weight[start:end, :end], seen[:end])
