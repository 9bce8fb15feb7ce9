"""Tensors and a text in one safetensors file, under a sha256 over both: no pickle, written atomically."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sbi_dgm.files import atomic

Tensors = dict[str, torch.Tensor]


def write(path: str | Path, key: str, text: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors by name, the text under `key` in the file's header, and their digest under "sha256"."""
    local = {name: values.detach().cpu().contiguous() for name, values in tensors.items()}
    with atomic(path) as temporary:
        save_file(local, temporary, {key: text, "sha256": digest(text, local)})


def read(path: str | Path) -> tuple[dict[str, str], Tensors]:
    """The header's texts by key, the digest among them, which is not compared, and the tensors on the CPU."""
    with safe_open(path, "pt") as file:
        return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def digest(text: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """Sha256 over a text and tensors.

    >>> digest("a", {"w": torch.zeros(2)}) == digest("a", {"w": torch.zeros(3)})
    False
    """
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        values = tensors[name].detach().cpu().reshape(-1).view(torch.uint8)
        found.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        found.update(values.numpy().data)
    return found.hexdigest()
