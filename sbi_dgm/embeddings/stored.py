"""Embeddings that are made before training, by more than options: their numbers travel with the weights.

The options know the numbers by their digest, so that a run is resumed with the same ones, and carry them, unseen, to
`build`. What a posterior's file restores has none: they come with its weights.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pydantic import PrivateAttr
from torch import Tensor, nn

from sbi_dgm import sealed
from sbi_dgm.data.scaling import Standardise, Statistics
from sbi_dgm.embeddings.base import Embedding, Gathering, Observables
from sbi_dgm.errors import OptionError
from sbi_dgm.parameters import Observable

State = Mapping[str, Tensor]


class Stored(Embedding):
    """Options of an embedding that has been made.

    Attributes:
        digest: of its numbers.

    """

    digest: str = ""
    _state: dict[str, Tensor] | None = PrivateAttr(default=None)
    _made_for: str = PrivateAttr(default="")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.model_dump() == other.model_dump()  # type: ignore[attr-defined]

    def __hash__(self) -> int:
        return hash(self.digest)

    def keep(self, state: State, observables: Observables) -> Any:
        """These options with the numbers, for such observables."""
        self._state = {name: values.detach().cpu().clone() for name, values in state.items()}
        self._made_for = _words(observables)
        return self

    def require_made(self) -> None:
        if self._state is None:
            raise OptionError(
                f"{type(self).__name__} is made in Python before training and cannot be named alone: pass what "
                "sbi_dgm.moped(...) or sbi_dgm.pretrained(...) returned (docs/embeddings.md)."
            )

    def build(self, observables: Observables, dimension: int) -> nn.Module:
        given = _words(self.fed(observables))
        if self._state is not None and given != self._made_for:
            raise OptionError(f"the embedding was made for {self._made_for}, and is given {given}.")
        module = self.blank(observables)
        module.load_state_dict(module.state_dict() | (self._state or {}))
        return module

    def fed(self, observables: Observables) -> Observables:
        """Observables as they come to the module."""
        return observables

    def blank(self, observables: Observables) -> nn.Module:
        """The module before its numbers."""
        raise NotImplementedError


def _words(observables: Observables) -> str:
    said = [f"{name} {o.shape}{' (may be absent)' if o.optional else ''}" for name, o in observables.items()]
    return ", ".join(said)


def digest(state: State) -> str:
    """Sixteen hexadecimal digits that tell numbers by name from others.

    >>> import torch
    >>> digest({"a": torch.zeros(2)}) == digest({"a": torch.zeros(2)}), digest({"a": torch.zeros(3)}) == ""
    (True, False)
    """
    return sealed.digest("", state)[:16]


class Scaled(Gathering):
    """Summaries as observables are scaled, by training rows: (B, C) -> (B, C), float32."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.standard = Standardise((features,)).double()

    def forward(self, x: Tensor) -> Tensor:
        self.gather(x)
        return self.standard(x)

    def settle(self, seen: list[Tensor]) -> None:
        x: Any = torch.cat(seen).double().cpu().numpy()
        statistics = Statistics("summary", Observable(x.shape[1:]), len(x))
        statistics.add(np.arange(len(x)), x)
        self.standard.load_state_dict(statistics.scaler(x.dtype).state_dict())
