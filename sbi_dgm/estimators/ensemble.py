r"""Several networks of one posterior as one: deep ensembles (Lakshminarayanan et al. 2017, arXiv:1612.01474).

.. math::
    q(z | x) = \frac{1}{K} \sum_{k=1}^K q_k(z | x)

Where members agree, the mixture is each of them; where data leave them room to differ, it is as wide as their
differences, which a single network hides. By Jensen's inequality its mean -ln q is at most the mean of theirs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Generator, Tensor, nn

from sbi_dgm.embeddings.base import Observables, Summary
from sbi_dgm.estimators.base import Conditional, Estimator

Draw = Callable[..., tuple[Tensor, Tensor]]


class SideBySide(nn.Module):
    """The members' summaries as one: observables by name -> context (B, C_1 + ... + C_K)."""

    def __init__(self, parts: Sequence[Summary]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([part(x) for part in self.parts], dim=-1)


class Mixture(Estimator):
    """The mixture of estimators, each of which sees its own part of the context.

    Args:
        parts: the members' estimators.
        sizes: context features of each.

    """

    def __init__(self, parts: Sequence[Estimator], sizes: Sequence[int]) -> None:
        super().__init__()
        self.space, self.density, self.sizes = parts[0].space, parts[0].density, list(sizes)
        self.parts = nn.ModuleList(parts)

    def _pairs(self, context: Tensor) -> list[tuple[Estimator, Tensor]]:
        parts = cast("Sequence[Estimator]", self.parts)
        return list(zip(parts, context.split(self.sizes, dim=-1), strict=True))

    def forward(
        self, z: Tensor, context: Tensor, *, progress: float = 1.0, generator: Generator | None = None
    ) -> Tensor:
        """The mean of the members' losses."""
        losses = [part(z, own, progress=progress, generator=generator) for part, own in self._pairs(context)]
        return torch.stack(losses).mean(0)

    def log_prob(self, z: Tensor, context: Tensor, generator: Generator | None = None) -> Tensor:
        return _mixed(torch.stack([part.log_prob(z, own, generator) for part, own in self._pairs(context)]))

    def log_prob_and_error(
        self, z: Tensor, context: Tensor, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Errors of members count by their share of the density."""
        both = [part.log_prob_and_error(z, own, generator) for part, own in self._pairs(context)]
        log_prob, error = (torch.stack(each) for each in zip(*both, strict=True))
        return _mixed(log_prob), (torch.softmax(log_prob, dim=0) * error).sum(0)

    def sample(self, n: int, context: Tensor, generator: Generator | None = None) -> Tensor:
        return self._drawn(n, context, generator, lambda part, *of: (part.sample(*of), of[1].new_empty(0)))[0]

    def sample_and_log_prob(self, n: int, context: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draws and their ln p. Where densities are bounds, what a member says of its own draw stands for its part."""
        if self.density != "bound":
            z = self.sample(n, context, generator)
            return z, self.log_prob(z, context, generator)
        z, said, member = self._drawn(n, context, generator, lambda part, *of: part.sample_and_log_prob(*of))
        each = torch.stack([part.log_prob(z, own, generator) for part, own in self._pairs(context)])
        own = member == torch.arange(len(each), device=member.device)[:, None, None]
        return z, _mixed(torch.where(own, said, each))

    def _drawn(self, n: int, context: Tensor, generator: Generator | None, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
        """Draws, what their member says of each, and which member that is: (B, n, D), (B, n) and (B, n)."""
        pairs = self._pairs(context)
        member = torch.randint(len(pairs), (len(context), n), generator=generator, device=context.device)
        z, said = context.new_empty(len(context), n, self.space.size), context.new_zeros(len(context), n)
        for k, (part, own) in enumerate(pairs):
            counts = (member == k).sum(1, keepdim=True)
            most = int(counts.max()) if counts.numel() else 0
            draws, log_prob = draw(part, most, own, generator)
            first = torch.arange(most, device=counts.device) < counts
            z[member == k] = draws[first]
            if log_prob.numel():
                said[member == k] = log_prob[first]
        return z, said, member


def _mixed(log_prob: Tensor) -> Tensor:
    return torch.logsumexp(log_prob, dim=0) - math.log(len(log_prob))


def assembled(members: Sequence[Conditional], observables: Observables) -> Conditional:
    """One network of several, or the only one as it is."""
    if len(members) == 1:
        return members[0]
    summaries = [cast("Summary", member.summary) for member in members]
    sizes = [summary.features(observables) for summary in summaries]
    return Conditional(SideBySide(summaries), Mixture([member.estimator for member in members], sizes))


def apart(network: Conditional) -> list[Conditional]:
    """The inverse of `assembled`."""
    if not isinstance(network.estimator, Mixture):
        return [network]
    pairs = zip(cast("SideBySide", network.summary).parts, network.estimator.parts, strict=True)
    return [Conditional(summary, cast("Estimator", estimator)) for summary, estimator in pairs]
