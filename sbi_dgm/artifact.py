"""An artefact is one file: safetensors, weights as tensors and everything else as JSON in its header.

Reading runs nothing from the file. A sha256 over header and weights finds any changed byte.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sbi_dgm import sealed
from sbi_dgm.errors import FileError
from sbi_dgm.files import require_file, understood
from sbi_dgm.sealed import digest

KEY = "sbi_dgm"
FORMAT = "sbi_dgm/posterior"
VERSION = 7  # the first of a release; earlier ones are not read


def write(path: str | Path, header: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a header of plain values and tensors by name, atomically."""
    sealed.write(path, KEY, json.dumps({"format": FORMAT, "format_version": VERSION, **header}), tensors)


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Read header and tensors.

    Raises:
        FileError: missing, foreign, newer or corrupted.
    """
    path = require_file(path)
    with understood(path, "{path} is no readable safetensors file: {why}."):
        texts, tensors = sealed.read(path)
    if KEY not in texts:
        raise FileError(f"{path} is a safetensors file but no posterior of sbi_dgm.")
    if texts.get("sha256") != digest(texts[KEY], tensors):
        raise FileError(f"{path} is corrupted: its sha256 differs. Restore it from a copy.")
    with understood(path):
        header = {**json.loads(texts[KEY])}
        _check_version(path, header)
    return header, tensors


def _check_version(path: Path, header: Mapping[str, Any]) -> None:
    if header.get("format") != FORMAT:
        raise FileError(f"{path} holds {header.get('format')!r}, not {FORMAT!r}.")
    if (found := header["format_version"]) != VERSION:
        remedy = "update it" if found > VERSION else "train again"
        raise FileError(f"{path} has format version {found}; this sbi_dgm reads {VERSION}: {remedy}.")
