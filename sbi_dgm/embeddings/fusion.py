"""Several observables, each by a summary of its own, and the rule that chooses them all by their shapes.

Parts stand side by side; where they are more than a few numbers, a residual network makes one summary of them: a
bottleneck that all layers of a flow share fits less of the noise.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from sbi_dgm.embeddings.base import Embedding, Learned, Observables, blanks, build, maskable, outputs, raw
from sbi_dgm.embeddings.convolutions import CNN, Series
from sbi_dgm.embeddings.sets import DeepSets
from sbi_dgm.embeddings.vectors import MLP, Flatten
from sbi_dgm.errors import OptionError, unknown
from sbi_dgm.networks import ResidualMLP
from sbi_dgm.parameters import Observable, total_size

FEW = 16  # numbers that are taken as they are
SHORTEST, LONGEST = 16, 32  # axes of a field, and the longer one of several series


class Fusion(Learned):
    """Summaries of several observables as one.

    Attributes:
        parts: an embedding for each observable by name; what `Auto` chooses for the others.
        hidden: width of the network that makes one summary of them.
        blocks: its number of residual blocks.
        absent: the share of its rows from which each training step takes each observable away, so that any may be
            absent at an observation.

    """

    parts: Mapping[str, Any] = Field(default_factory=dict)
    hidden: int = Field(default=128, ge=1)
    blocks: int = Field(default=1, ge=0)
    absent: float = Field(default=0.0, ge=0, lt=1)

    def chosen(self, observables: Observables) -> "Fusion":
        for name, part in self.parts.items():
            if name not in observables:
                raise OptionError(unknown("observable", name, observables))
            if not isinstance(part, Embedding):
                raise OptionError(f"the part for {name!r} is {part!r}: give the options of an embedding, as CNN().")
        parts = {name: self.parts.get(name, Auto()).chosen({name: o}) for name, o in observables.items()}
        others = {key: getattr(self, key) for key in type(self).model_fields if key != "parts"}
        return Fusion(parts=parts, **others)

    def observed(self, observables: Observables) -> Observables:
        if not self.absent:
            return observables
        return {name: replace(observable, optional=True) for name, observable in observables.items()}

    def masks(self) -> bool:
        return True

    def require_made(self) -> None:
        for part in self.parts.values():
            part.require_made()

    def build(self, observables: Observables, dimension: int) -> nn.Module:
        observables = self.observed(observables)
        parts = {name: self._part(name, observables[name], dimension) for name in self.parts}
        numbers = sum(outputs(part, blanks({name: observables[name]})) for name, part in parts.items())
        if numbers <= FEW:
            return _Fusion(parts, nn.Identity())
        return _Fusion(parts, ResidualMLP(numbers, self.length(dimension), hidden=self.hidden, blocks=self.blocks))

    def _part(self, name: str, observable: Observable, dimension: int) -> nn.Module:
        if observable.optional:
            return maskable(name, self.parts[name], observable, dimension, self.absent)
        return build(self.parts[name], {name: observable}, dimension)


class _Fusion(nn.Module):
    def __init__(self, parts: Mapping[str, nn.Module], last: nn.Module) -> None:
        super().__init__()
        self.names, self.parts, self.last = tuple(parts), nn.ModuleList(parts.values()), last
        self.raw = frozenset[str]().union(*(raw(part) for part in parts.values()))

    def forward(self, x: Mapping[str, Tensor]) -> Tensor:
        pairs = zip(self.names, self.parts, strict=True)
        return self.last(torch.cat([part({name: x[name]}) for name, part in pairs], dim=1))


class Auto(Embedding):
    """What suits the shapes of observables: up to `limit` numbers of vectors as they are, summaries of all else.

    A set gets `DeepSets`, a field `CNN`, several series beside each other `Series`, a longer vector `MLP`; several
    observables that are not all vectors, or of which some may be absent, get `Fusion`. What a shape means is in `form`;
    an observable's `kind` says it outright.

    Attributes:
        limit: numbers that are taken as they are.
        absent: as of `Fusion`.

    """

    limit: int = Field(default=FEW, ge=0)
    absent: float = Field(default=0.0, ge=0, lt=1)

    def chosen(self, observables: Observables) -> Embedding:
        forms = {name: form(observable) for name, observable in observables.items()}
        if self.absent or (len(forms) > 1 and any(observable.optional for observable in observables.values())):
            return Fusion(absent=self.absent).chosen(observables)
        if set(forms.values()) == {"vector"}:
            return Flatten() if total_size(observables) <= self.limit else MLP()
        if len(forms) == 1:
            return SUMMARIES[next(iter(forms.values()))]()
        return Fusion().chosen(observables)

    def build(self, observables: Observables, dimension: int) -> nn.Module:
        return self.chosen(observables).build(observables, dimension)


SUMMARIES: dict[str, type[Embedding]] = {"set": DeepSets, "series": Series, "field": CNN}


def form(observable: Observable) -> str:
    """What an observable is taken for: "vector", "series", "field" or "set".

    Where its kind is "array", by its shape: fields have two axes of at least 16, before or after their channels;
    several series two axes, one of at least 32 and one below 16; all else is a vector.

    >>> [form(Observable(shape)) for shape in [(100,), (64, 64), (3, 64, 64), (2, 200), (8, 8)]]
    ['vector', 'field', 'field', 'series', 'vector']
    """
    if observable.kind != "array":
        return observable.kind
    shape = observable.shape
    if (
        len(shape) in (2, 3)
        and sorted(shape)[-2] >= SHORTEST
        and (len(shape) == 2 or min(shape) in (shape[0], shape[2]))
    ):
        return "field"
    return "series" if len(shape) == 2 and max(shape) >= LONGEST else "vector"
