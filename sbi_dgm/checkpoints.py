"""The state of a training run in one file: tensors and JSON, no pickle, written atomically.

A sha256 over both finds any changed byte.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sbi_dgm import sealed
from sbi_dgm.files import understood
from sbi_dgm.sealed import Tensors

UNREADABLE = "{path} is no readable checkpoint ({why}): start again with overwrite=True (--overwrite)."


def clone(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Independent copies."""
    return {name: value.detach().clone() for name, value in tensors.items()}


def save(path: str | Path, groups: Mapping[str, Tensors], note: Mapping[str, Any]) -> None:
    """Write groups of tensors and a note of plain numbers."""
    flat = {f"{group}/{name}": values for group, part in groups.items() for name, values in part.items()}
    sealed.write(path, "note", json.dumps(note), flat)


def load(path: str | Path, device: torch.device) -> tuple[dict[str, Tensors], dict[str, Any]]:
    """The inverse of `save`.

    Raises:
        FileError: missing, foreign or changed.

    """
    groups: dict[str, Tensors] = {}
    with understood(path, UNREADABLE):
        texts, flat = sealed.read(path)
        if texts.get("sha256") != sealed.digest(texts["note"], flat):
            raise ValueError("its sha256 differs")
        for name, values in flat.items():
            group, rest = name.split("/", 1)
            groups.setdefault(group, {})[rest] = values.to(device)
        return groups, {**json.loads(texts["note"])}
