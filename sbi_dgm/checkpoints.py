"""The state of a training run in one file: tensors and JSON, no pickle, written atomically.

A sha256 over both finds any changed byte; files written before there was one are read without it.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sbi_dgm.files import atomic, understood

UNREADABLE = "{path} is no readable checkpoint ({why}): start again with overwrite=True (--overwrite)."
Tensors = dict[str, torch.Tensor]


def clone(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Independent copies."""
    return {name: value.detach().clone() for name, value in tensors.items()}


def save(path: str | Path, groups: Mapping[str, Tensors], note: Mapping[str, Any]) -> None:
    """Write groups of tensors and a note of plain numbers."""
    flat = {
        f"{group}/{name}": t.detach().cpu().contiguous() for group, part in groups.items() for name, t in part.items()
    }
    text = json.dumps(note)
    with atomic(path) as temporary:
        save_file(flat, temporary, {"note": text, "sha256": digest(text, flat)})


def load(path: str | Path, device: torch.device) -> tuple[dict[str, Tensors], dict[str, Any]]:
    """The inverse of `save`.

    Raises:
        FileError: missing, foreign or changed.

    """
    groups: dict[str, Tensors] = {}
    with understood(path, UNREADABLE):
        flat, text = _read(path)
        for name, values in flat.items():
            group, rest = name.split("/", 1)
            groups.setdefault(group, {})[rest] = values.to(device)
        return groups, {**json.loads(text)}


def _read(path: str | Path) -> tuple[Tensors, str]:
    """Tensors on the CPU and the note, as they were written."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    found = digest(metadata["note"], flat)
    if metadata.get("sha256", found) != found:
        raise ValueError("its sha256 differs")
    return flat, metadata["note"]


def digest(text: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """Sha256 over a text and tensors, which are on the CPU."""
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        found.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        found.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
