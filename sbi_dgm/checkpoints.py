"""The state of a training run in one file: tensors and JSON, no pickle, written atomically."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sbi_dgm.errors import FileError
from sbi_dgm.files import atomic

Tensors = dict[str, torch.Tensor]


def clone(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Independent copies."""
    return {name: value.detach().clone() for name, value in tensors.items()}


def save(path: str | Path, groups: Mapping[str, Tensors], note: Mapping[str, Any]) -> None:
    """Write groups of tensors and a note of plain numbers."""
    flat = {
        f"{group}/{name}": t.detach().cpu().contiguous() for group, part in groups.items() for name, t in part.items()
    }
    with atomic(path) as temporary:
        save_file(flat, temporary, {"note": json.dumps(note)})


def load(path: str | Path, device: torch.device) -> tuple[dict[str, Tensors], dict[str, Any]]:
    """The inverse of `save`."""
    groups: dict[str, Tensors] = {}
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            for name in file.keys():  # noqa: SIM118
                group, rest = name.split("/", 1)
                groups.setdefault(group, {})[rest] = file.get_tensor(name)
            return groups, json.loads(file.metadata()["note"])
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise FileError(
            f"{path} is no readable checkpoint ({error}): start again with overwrite=True (--overwrite)."
        ) from None
