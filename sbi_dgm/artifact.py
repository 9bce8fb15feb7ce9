"""An artefact is one file: safetensors, weights as tensors and everything else as JSON in its header.

Reading runs nothing from the file. A sha256 over header and weights finds any changed byte.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sbi_dgm.checkpoints import digest
from sbi_dgm.errors import FileError
from sbi_dgm.files import atomic, require_file, understood

FORMAT = "sbi_dgm/posterior"
VERSION = 6
OLDEST = 5  # without a gate; 1 to 4, before the first release, had other weights


def write(path: str | Path, header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a header of plain values and tensors by name, atomically."""
    text = json.dumps({"format": FORMAT, "format_version": VERSION, **header})
    local = {name: value.contiguous().cpu() for name, value in tensors.items()}
    with atomic(path) as temporary:
        save_file(local, temporary, {"sbi_dgm": text, "sha256": digest(text, local)})


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read header and tensors.

    Raises:
        FileError: missing, foreign, newer or corrupted.
    """
    path = require_file(path)
    with understood(path, "{path} is no readable safetensors file: {why}."), safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if "sbi_dgm" not in metadata:
        raise FileError(f"{path} is a safetensors file but no posterior of sbi_dgm.")
    if metadata.get("sha256") != digest(metadata["sbi_dgm"], tensors):
        raise FileError(f"{path} is corrupted: its sha256 differs. Restore it from a copy.")
    with understood(path):
        header = {**json.loads(metadata["sbi_dgm"])}
        _check_version(path, header)
    return header, tensors


def _check_version(path: Path, header: Mapping[str, Any]) -> None:
    if header.get("format") != FORMAT:
        raise FileError(f"{path} holds {header.get('format')!r}, not {FORMAT!r}.")
    if not OLDEST <= header["format_version"] <= VERSION:
        remedy = "update it" if header["format_version"] > VERSION else "train again"
        raise FileError(
            f"{path} has format version {header['format_version']}; this sbi_dgm reads {OLDEST} to {VERSION}: {remedy}."
        )
