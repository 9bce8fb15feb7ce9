"""The summary of one run as the embedding of another: frozen, or as a start.

It is scalers and embedding of the first run together, so that x comes to it as it came there, whatever the rows of the
second are. What it gives is scaled by the second's training rows. The first run may be of any family; `contrastive`
trains a summary and nothing else.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import torch
from pydantic import Field
from torch import Tensor, nn

from sbi_dgm.data.scaling import blank
from sbi_dgm.embeddings import base
from sbi_dgm.embeddings.base import Gathering, Observables, Summary
from sbi_dgm.embeddings.stored import Scaled, Stored, digest
from sbi_dgm.errors import OptionError
from sbi_dgm.kinds import shown


class Pretrained(Stored):
    """A summary that has been trained, made by `sbi_dgm.pretrained`.

    Attributes:
        embedding: the options of the embedding.
        dimension: how many parameters it was trained for.
        frozen: whether it stays as it is.
        optional: names of the observables that may be absent.

    """

    embedding: Any = None
    dimension: int = Field(default=1, ge=1)
    frozen: bool = True
    optional: tuple[str, ...] = ()

    def masks(self) -> bool:
        return bool(self.optional)

    def observed(self, observables: Observables) -> Observables:
        return observables if self.frozen else self.embedding.observed(observables)

    def fed(self, observables: Observables) -> Observables:
        return {name: replace(o, optional=name in self.optional) for name, o in observables.items()}

    def blank(self, observables: Observables) -> nn.Module:
        observables = self.fed(observables)
        scalers = {name: blank(observable) for name, observable in observables.items()}
        summary = Summary(scalers, base.build(self.embedding, observables, self.dimension))
        return _Pretrained(summary, summary.features(observables), self.frozen)


def pretrained(posterior: Any, *, frozen: bool = True) -> Pretrained:
    """Make an embedding for `fit` of the summary that a run has learned.

    Args:
        posterior: what `fit` returned, or `load`.
        frozen: keep its weights as they are; else they are where training starts.

    Raises:
        OptionError: no posterior, an ensemble, or an embedding that is a module of your own.

    Example::

        first = sbi_dgm.fit(data, "contrastive", "cnn")
        posterior = sbi_dgm.fit(data, "flow", sbi_dgm.pretrained(first))

    """
    model: Any = getattr(posterior, "model", None)
    if not (hasattr(model, "embedding") and hasattr(posterior, "network")):
        raise OptionError(f"posterior = {shown(posterior)}: give what fit(...) or load(...) returned.")
    if model.members > 1:
        raise OptionError(f"an ensemble has {model.members} summaries: train one network, and use its own.")
    if model.embedding["name"] == "external":
        raise OptionError("the embedding is a module of your own: pass it, with the weights that it should start from.")
    state = {f"summary.{name}": values for name, values in posterior.network.summary.state_dict().items()}
    made = Pretrained(
        digest=digest(state),
        embedding=base.restore(model.embedding),
        dimension=len(model.reference),
        frozen=frozen,
        optional=tuple(name for name, observable in model.observables.items() if observable.optional),
    )
    return made.keep(state, model.observables)


class _Pretrained(nn.Module):
    """Observables as they are, by name -> (B, C), scaled."""

    def __init__(self, summary: Summary, features: int, frozen: bool) -> None:
        super().__init__()
        self.raw, self.frozen, self.summary, self.scale = frozenset(summary.names), frozen, summary, Scaled(features)
        self.summary.requires_grad_(not frozen)
        for part in summary.modules():
            if isinstance(part, Gathering):
                part.settled = True

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.summary.train(mode and not self.frozen)
        return self

    def forward(self, x: Mapping[str, Tensor]) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            context = self.summary(x)
        return self.scale(context)
