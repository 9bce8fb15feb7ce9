"""The contract of embeddings: from observables to the context vector of an estimator, scaled first, then summarised.

Any `torch.nn.Module` serves as well: it gets the scaled observable `(B, *shape)`, or a dict of them where there are
several, and returns (B, C).
"""

import copy
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from sbi_dgm import options
from sbi_dgm.embeddings.absent import Absent
from sbi_dgm.errors import ExternalError, OptionError
from sbi_dgm.options import Options
from sbi_dgm.parameters import Observable

Observables = Mapping[str, Observable]


class Embedding(Options):
    """The options of an embedding: frozen defaults, and `build`."""

    def chosen(self, observables: Observables) -> "Embedding":
        """What these options come to for observables; only a rule, such as `Auto`, comes to something else."""
        return self

    def observed(self, observables: Observables) -> Observables:
        """Observables as observations may come: optional where training has been without them."""
        return observables

    def masks(self) -> bool:
        """Whether its module copes with observables that are absent; for others the function `build` sees to it."""
        return False

    def require_made(self) -> None:
        """`OptionError` where something has to be made before training, such as a compression, and is not."""

    def build(self, observables: Observables, dimension: int) -> nn.Module:
        """A module from scaled observables by name, each `(B, *shape)`, to (B, C), for D = `dimension` parameters.

        Those that its attribute `raw` names, where it has one, it gets as they are.
        """
        raise NotImplementedError


class Learned(Embedding):
    """The options of a learned summary of one observable.

    Attributes:
        features: length of the summary; None is twice the number of parameters, but at least 8.

    """

    features: int | None = Field(default=None, ge=1)

    def length(self, dimension: int) -> int:
        """C, for D = `dimension` parameters."""
        return self.features or max(8, 2 * dimension)

    def build(self, observables: Observables, dimension: int) -> nn.Module:
        if len(observables) != 1:
            raise OptionError(
                f"{type(self).__name__} summarises one observable, and there are {sorted(observables)}: "
                "give each its own by the embedding 'fusion'."
            )
        ((name, observable),) = observables.items()
        return Only(name, self.network(name, observable, dimension))

    def network(self, name: str, observable: Observable, dimension: int) -> nn.Module:
        """A module from the scaled observable `(B, *shape)` to (B, C); `OptionError` where the shape does not fit."""
        raise NotImplementedError


class Gathering(nn.Module):
    """A part of an embedding with numbers that come from training rows, such as a mean: it calls `gather` in `forward`.

    `Summary.gather` shows it all training rows, then has it `settle`; what has settled stays.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] | None = None
        self.settled = False

    def gather(self, x: Tensor) -> None:
        """Note what is seen, while training rows are shown."""
        if self.seen is not None:
            self.seen.append(x)

    def settle(self, seen: list[Tensor]) -> None:
        """Set the numbers by all that was seen, batch after batch."""
        raise NotImplementedError


class Only(nn.Module):
    """The summary of one observable among those by name."""

    def __init__(self, name: str, network: nn.Module) -> None:
        super().__init__()
        self.name, self.network = name, network

    def forward(self, x: Mapping[str, Tensor]) -> Tensor:
        return self.network(x[self.name])


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
    """Scalers, then an embedding: observables by name, each `(B, *shape)` -> context (B, C)."""

    def __init__(self, scalers: Mapping[str, nn.Module], embedding: nn.Module) -> None:
        super().__init__()
        self.names, self.raw = tuple(scalers), raw(embedding)
        self.scalers = nn.ModuleList(scalers.values())
        self.embedding = embedding

    def forward(self, x: Mapping[str, Tensor]) -> Tensor:
        pairs = zip(self.names, self.scalers, strict=True)
        return self.embedding({name: x[name] if name in self.raw else scaler(x[name]) for name, scaler in pairs})

    @torch.no_grad()
    def gather(self, rows: Iterable[Mapping[str, Tensor]]) -> None:
        """Let parts take their numbers from training rows, given as batches of observables."""
        parts = [part for part in self.modules() if isinstance(part, Gathering) and not part.settled]
        if not parts:
            return
        learning = self.training
        self.eval()
        for part in parts:
            part.seen = []
        for x in rows:
            self(x)
        for part in parts:
            part.settle(part.seen or [])
            part.seen, part.settled = None, True
        self.train(learning)

    @property
    def plain(self) -> bool:
        """Whether the context is the scaled observables as they are."""
        return getattr(self.embedding, "plain", False)

    @torch.no_grad()
    def features(self, observables: Observables) -> int:
        """C, found by embedding two rows of ones."""
        return outputs(self, blanks(observables, next(self.buffers()).device))


def raw(module: nn.Module) -> frozenset[str]:
    """The observables that a module takes as they are, not scaled."""
    return getattr(module, "raw", frozenset())


def blanks(observables: Observables, device: torch.device | None = None) -> dict[str, Tensor]:
    """Two rows of ones."""
    return {name: torch.ones(2, *observable.shape, device=device) for name, observable in observables.items()}


@torch.no_grad()
def outputs(module: nn.Module, x: Mapping[str, Tensor]) -> int:
    """C of a module from observables by name to (B, C), found by two rows of them."""
    learning = module.training
    context = module.eval()(x)
    module.train(learning)
    if context.ndim != 2 or len(context) != 2:
        raise OptionError(f"the embedding gave {tuple(context.shape)} for 2 rows: it must give (2, C).")
    return context.shape[1]


EMBEDDINGS: options.Table = {
    "auto": ("sbi_dgm.embeddings.fusion", "Auto"),
    "flatten": ("sbi_dgm.embeddings.vectors", "Flatten"),
    "mlp": ("sbi_dgm.embeddings.vectors", "MLP"),
    "pca": ("sbi_dgm.embeddings.compression", "PCA"),
    "moped": ("sbi_dgm.embeddings.moped", "Moped"),
    "pretrained": ("sbi_dgm.embeddings.pretrained", "Pretrained"),
    "series": ("sbi_dgm.embeddings.convolutions", "Series"),
    "transformer": ("sbi_dgm.embeddings.transformer", "Transformer"),
    "cnn": ("sbi_dgm.embeddings.convolutions", "CNN"),
    "deep_sets": ("sbi_dgm.embeddings.sets", "DeepSets"),
    "set_transformer": ("sbi_dgm.embeddings.transformer", "SetTransformer"),
    "fusion": ("sbi_dgm.embeddings.fusion", "Fusion"),
}


def describe(embedding: "Embedding | nn.Module") -> dict[str, Any]:
    """An embedding as JSON; a user's module only by its fingerprint."""
    if isinstance(embedding, nn.Module):
        return {"name": "external", "fingerprint": External(embedding).fingerprint()}
    return options.describe(EMBEDDINGS, embedding)


def said(description: Mapping[str, Any]) -> str:
    """A described embedding in words: its name, and those of its parts.

    >>> said({"name": "fusion", "options": {"parts": {"map": {"name": "cnn"}, "flux": {"name": "mlp"}}}})
    'fusion (map by cnn, flux by mlp)'
    """
    parts = description.get("options", {}).get("parts") or {}
    words = ", ".join(f"{name} by {said(part)}" for name, part in parts.items())
    return f"{description['name']} ({words})" if words else description["name"]


def restore(description: Mapping[str, Any], external: nn.Module | None = None) -> "Embedding | nn.Module":
    """The inverse of `describe`; a user's module must be passed."""
    if description["name"] != "external":
        return options.restore("embedding", EMBEDDINGS, description)
    if external is None:
        raise ExternalError("the embedding is a module of your own that no file can hold: pass it as embedding=...")
    if External(external).fingerprint() != description["fingerprint"]:
        raise ExternalError("the embedding passed is not the one of the file: its class or its weights' shapes differ.")
    return external


def chosen(embedding: "Embedding | nn.Module", observables: Observables) -> "Embedding | nn.Module":
    """What an embedding that is to be trained comes to for observables."""
    if isinstance(embedding, nn.Module):
        return embedding
    found = embedding.chosen(observables)
    found.require_made()
    return found


def observed(embedding: "Embedding | nn.Module", observables: Observables) -> Observables:
    """Observables as observations may come, of what `chosen` gave."""
    return observables if isinstance(embedding, nn.Module) else embedding.observed(observables)


def build(embedding: "Embedding | nn.Module", observables: Observables, dimension: int) -> nn.Module:
    """The module of an embedding's options, or a copy of the user's module, which stays as it was."""
    if isinstance(embedding, Embedding):
        embedding = embedding.chosen(observables)
        if embedding.masks():
            return embedding.build(observables, dimension)
    optional = [name for name, observable in observables.items() if observable.optional]
    if optional and len(observables) > 1:
        raise OptionError(
            f"observable {optional[0]!r} may be absent, and {type(embedding).__name__} takes all observables together: "
            "give each its own summary by the embedding 'fusion'."
        )
    if optional:
        return maskable(optional[0], embedding, observables[optional[0]], dimension)
    return (
        External(copy.deepcopy(embedding))
        if isinstance(embedding, nn.Module)
        else embedding.build(observables, dimension)
    )


def maskable(
    name: str, embedding: "Embedding | nn.Module", observable: Observable, dimension: int, rate: float = 0.0
) -> Absent:
    """The module of one observable that may be absent, or that training takes away at this rate."""
    there = {name: replace(observable, optional=False)}
    made = build(embedding, there, dimension)
    return Absent(name, made, outputs(made, blanks(there)), rate)
