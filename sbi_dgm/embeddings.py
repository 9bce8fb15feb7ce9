"""From observables to the context vector of an estimator: scale each, then embed them together.

`"auto"` takes up to 16 numbers as they are (`Flatten`) and learns a summary of more (`MLP`): a bottleneck that all
layers of a flow share fits less of the noise. Any `torch.nn.Module` serves as well: it gets the scaled observable
(B, *shape), or a dict of them where there are several, and returns (B, C).
"""

import copy
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from sbi_dgm import options
from sbi_dgm.errors import ExternalError, OptionError
from sbi_dgm.networks import ResidualMLP
from sbi_dgm.options import Options
from sbi_dgm.parameters import Observable

Observables = Mapping[str, Observable]


class Embedding(Options):
    """The options of an embedding: frozen defaults, and `build`."""

    def build(self, observables: Observables, dimension: int) -> nn.Module:
        """A module from scaled observables by name, each (B, *shape), to (B, C), for D = `dimension` parameters."""
        raise NotImplementedError


class Flatten(Embedding):
    """All observables side by side, as one vector; nothing is learned."""

    def build(self, observables: Observables, dimension: int) -> nn.Module:
        return _Flatten()


class _Flatten(nn.Module):
    def forward(self, x: Mapping[str, Tensor]) -> Tensor:
        return torch.cat([values.flatten(1) if values.ndim > 1 else values[:, None] for values in x.values()], dim=1)


class MLP(Embedding):
    """A learned summary of the flattened observables by a residual network.

    Attributes:
        features: length of the summary; None is twice the number of parameters, but at least 8.
        hidden: width of the network.
        blocks: its number of residual blocks.

    """

    features: int | None = Field(default=None, ge=1)
    hidden: int = Field(default=128, ge=1)
    blocks: int = Field(default=2, ge=0)

    def build(self, observables: Observables, dimension: int) -> nn.Module:
        features = self.features or max(8, 2 * dimension)
        return nn.Sequential(
            _Flatten(), ResidualMLP(_size(observables), features, hidden=self.hidden, blocks=self.blocks)
        )


class Auto(Embedding):
    """`Flatten` for up to `limit` numbers, `MLP` for more."""

    limit: int = Field(default=16, ge=0)

    def build(self, observables: Observables, dimension: int) -> nn.Module:
        chosen = Flatten() if _size(observables) <= self.limit else MLP()
        return chosen.build(observables, dimension)


def _size(observables: Observables) -> int:
    return sum(o.size for o in observables.values())


class External(nn.Module):
    """A user's module behind the contract of embeddings."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Mapping[str, Tensor]) -> Tensor:
        return self.module(x if len(x) > 1 else next(iter(x.values())))

    def fingerprint(self) -> str:
        """A short hash of the class's name and the shapes of its weights."""
        shapes = [(name, tuple(value.shape)) for name, value in self.module.state_dict().items()]
        return hashlib.sha256(f"{type(self.module).__qualname__} {shapes}".encode()).hexdigest()[:16]


class Summary(nn.Module):
    """Scalers, then an embedding: observables by name, each (B, *shape) -> context (B, C)."""

    def __init__(self, scalers: Mapping[str, nn.Module], embedding: nn.Module) -> None:
        super().__init__()
        self.names = tuple(scalers)
        self.scalers = nn.ModuleList(scalers.values())
        self.embedding = embedding

    def forward(self, x: Mapping[str, Tensor]) -> Tensor:
        pairs = zip(self.names, self.scalers, strict=True)
        return self.embedding({name: scaler(x[name]) for name, scaler in pairs})

    @property
    def plain(self) -> bool:
        """Whether the context is the scaled observables as they are."""
        return isinstance(self.embedding, _Flatten)

    def features(self, observables: Observables) -> int:
        """C, found by embedding two rows of zeros."""
        device = next(self.buffers()).device
        with torch.no_grad():
            context = self({name: torch.zeros(2, *observables[name].shape, device=device) for name in self.names})
        if context.ndim != 2 or len(context) != 2:
            raise OptionError(f"the embedding gave {tuple(context.shape)} for 2 rows: it must give (2, C).")
        return context.shape[1]


EMBEDDINGS: options.Table = {
    "auto": ("sbi_dgm.embeddings", "Auto"),
    "flatten": ("sbi_dgm.embeddings", "Flatten"),
    "mlp": ("sbi_dgm.embeddings", "MLP"),
}


def describe(embedding: "Embedding | nn.Module") -> dict[str, Any]:
    """An embedding as JSON; a user's module only by its fingerprint."""
    if isinstance(embedding, nn.Module):
        return {"name": "external", "fingerprint": External(embedding).fingerprint()}
    return options.describe(EMBEDDINGS, embedding)


def restore(description: Mapping[str, Any], external: nn.Module | None = None) -> "Embedding | nn.Module":
    """The inverse of `describe`; a user's module must be passed."""
    if description["name"] != "external":
        return options.restore("embedding", EMBEDDINGS, description)
    if external is None:
        raise ExternalError("the embedding is a module of your own that no file can hold: pass it as embedding=...")
    if External(external).fingerprint() != description["fingerprint"]:
        raise ExternalError("the embedding passed is not the one of the file: its class or its weights' shapes differ.")
    return external


def build(embedding: "Embedding | nn.Module", observables: Observables, dimension: int) -> nn.Module:
    """The module of an embedding's options, or a copy of the user's module, which stays as it was."""
    if isinstance(embedding, nn.Module):
        return External(copy.deepcopy(embedding))
    return embedding.build(observables, dimension)
