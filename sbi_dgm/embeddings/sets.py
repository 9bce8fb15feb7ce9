r"""Summaries of sets, whose members have no order: deep sets (Zaheer et al. 2017, arXiv:1703.06114).

.. math::
    c = \rho\Big(\sqrt n, \; \frac{1}{\max(n, 1)} \sum_{i=1}^n w(s_i), \;
    \frac{1}{\max(n, 1)} \sum_{i=1}^n \phi(w(s_i))\Big)

over the n members that are there: every function of a set that does not depend on order has this form, and of members
that are independent given theta, sum_i ln p(s_i | theta) is one. The root of n has about the same spread whatever the
mean of a Poisson number; it comes in units of its spread in training. w(s) holds a member's numbers and

.. math::  \sin(\tfrac{\pi}{4} k s), \; \cos(\tfrac{\pi}{4} k s), \qquad k = 1 \ldots K

of each, whose means are their empirical characteristic functions. phi sees them too, because what tells may be sharper
than a network learns from s alone (Tancik et al. 2020, arXiv:2006.10739). Empty places take no part and cost nothing.
"""

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from sbi_dgm.embeddings.base import Gathering, Learned
from sbi_dgm.errors import OptionError
from sbi_dgm.networks import ResidualMLP
from sbi_dgm.parameters import Observable


class DeepSets(Learned):
    """A summary of a set of members (M, F), the last of whose numbers says which are there.

    Attributes:
        hidden: width of rho.
        blocks: its residual blocks.
        members: width of phi, and how many numbers it gives.
        frequencies: K, of the sines and cosines of each number.

    """

    hidden: int = Field(default=128, ge=1)
    blocks: int = Field(default=2, ge=0)
    members: int = Field(default=32, ge=1)
    frequencies: int = Field(default=16, ge=0)

    def network(self, name: str, observable: Observable, dimension: int) -> nn.Module:
        return _DeepSets(require_set(name, observable), self.length(dimension), self)


def require_set(name: str, observable: Observable) -> int:
    """F, the numbers of each member; `OptionError` where the observable is no set."""
    if observable.kind != "set":
        raise OptionError(
            f"observable {name!r} is an {observable.kind} of shape {observable.shape}, no set: declare it with "
            "kind='set', its members' last number 1 where they are there and 0 where not."
        )
    return observable.shape[-1] - 1


class _DeepSets(nn.Module):
    def __init__(self, numbers: int, features: int, how: DeepSets) -> None:
        super().__init__()
        self.waves, self.count = Waves(how.frequencies), Count()
        seen = self.waves.outputs(numbers)
        self.inner = ResidualMLP(seen, how.members, hidden=how.members, blocks=1)
        self.outer = ResidualMLP(1 + seen + how.members, features, hidden=how.hidden, blocks=how.blocks)

    def forward(self, x: Tensor) -> Tensor:
        there = x[..., -1] > 0
        rows, n = there.nonzero()[:, 0], there.sum(1)
        waves = self.waves(x[..., :-1][there])
        members = torch.cat([waves, self.inner(waves)], dim=1)
        total = members.new_zeros(len(x), members.shape[1]).index_add(0, rows, members)
        return self.outer(torch.cat([self.count(n), total / n.clamp(min=1)[:, None]], dim=1))


class Waves(nn.Module):
    """Numbers with their sines and cosines: (..., F) -> (..., F (1 + 2 K))."""

    scale: Tensor

    def __init__(self, frequencies: int) -> None:
        super().__init__()
        self.register_buffer("scale", math.pi / 4 * torch.arange(1, frequencies + 1), persistent=False)

    def outputs(self, numbers: int) -> int:
        """How many numbers come of F."""
        return numbers * (1 + 2 * len(self.scale))

    def forward(self, s: Tensor) -> Tensor:
        angle = (s[..., None] * self.scale).flatten(-2)
        return torch.cat([s, angle.sin(), angle.cos()], dim=-1)


class Count(Gathering):
    """The root of how many members there are, in units of its spread in training: (B,) -> (B, 1)."""

    mean: Tensor
    sd: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("sd", torch.ones(()))

    def forward(self, n: Tensor) -> Tensor:
        root = n.float().sqrt()
        self.gather(root)
        return ((root - self.mean) / self.sd)[:, None]

    def settle(self, seen: list[Tensor]) -> None:
        root = torch.cat(seen).double()
        self.mean.fill_(root.mean())
        self.sd.fill_(root.std(correction=0) if root.std(correction=0) > 1e-6 else 1.0)
