r"""Observables that may be absent, such as those of a detector that was off: a learned token stands in for the summary.

Where an observable is there its summary goes through untouched, behind it a 1; where it is not, a token and a 0:

.. math::  c = m \, (s(x), 1) + (1 - m) \, (\tau, 0) , \qquad m \in \{0, 1\} .

Absent is what is not a number throughout; none of that reaches a network. With a rate r > 0 a training step also takes
the observable away from a share r of its rows, each by itself, so that a network learns

.. math::  p(\theta | x_A) \quad \text{for all subsets } A \text{ of the observables}

from complete simulations: what is taken away does not depend on theta or x, so that the loss of the rows that keep A
is that of the posterior given x_A (masking as in Gloeckler et al. 2024, arXiv:2404.09636). Where simulations lack
observables of themselves, that they do may tell something of theta, and the posterior learns that too.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Absent(nn.Module):
    """A summary of one observable that may be absent: by name, `(B, *shape)` -> (B, C + 1).

    Args:
        name: of the observable.
        part: its summary, `(B, *shape)` by name -> (B, C); it sees the rows alone in which it is there.
        features: C.
        rate: r.

    """

    def __init__(self, name: str, part: nn.Module, features: int, rate: float = 0.0) -> None:
        super().__init__()
        self.name, self.part, self.rate = name, part, rate
        self.raw = getattr(part, "raw", frozenset())
        self.token = nn.Parameter(0.1 * torch.randn(features))

    def forward(self, x: Mapping[str, Tensor]) -> Tensor:
        values = x[self.name]
        there = ~values.reshape(len(values), -1)[:, 0].isnan()
        if self.training and self.rate:
            there = there & (torch.rand(len(there), device=there.device) >= self.rate)
        context = self.token.expand(len(there), -1)
        (rows,) = there.nonzero(as_tuple=True)
        if len(rows):
            context = context.index_put((rows,), self.part({self.name: values[rows]}).to(context.dtype))
        return torch.cat([context, there[:, None].to(context.dtype)], dim=1)
