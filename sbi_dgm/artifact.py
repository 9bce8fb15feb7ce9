"""A posterior as one file: safetensors, weights as tensors and everything else as JSON in its header.

Loading runs nothing from the file: names come from tables, priors of scipy from its list of continuous
distributions, and what no file can hold (a prior or an embedding that is code) is stored as a fingerprint
and must be passed again. A sha256 over header and weights finds any changed byte.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from sbi_dgm import embeddings, options, priors
from sbi_dgm.data.scaling import Standardise
from sbi_dgm.errors import FileError, OptionError
from sbi_dgm.estimators.base import FAMILIES, Conditional, Space
from sbi_dgm.files import atomic, refuse_existing, require_file
from sbi_dgm.parameters import Observable
from sbi_dgm.posterior import Model, Posterior
from sbi_dgm.priors import Prior
from sbi_dgm.seeds import lending

FORMAT = "sbi_dgm/posterior"
VERSION = 1


def device_named(name: str) -> torch.device:
    """The device called "cpu", "cuda", "cuda:1", "mps" or "auto" (CUDA where there is one, else the CPU)."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise OptionError(f"device {name!r} is not to be had here ({str(error).splitlines()[0]}): use 'cpu'.") from None
    return device


def network(model: Model, scalers: Mapping[str, nn.Module], embedding: Any, seed: int) -> Conditional:
    """An untrained network for `model`, with initial weights from `seed`."""
    with lending(seed):
        summary = embeddings.Summary(scalers, embeddings.build(embedding, model.observables, len(model.reference)))
        family = options.restore("estimator", FAMILIES, model.estimator)
        space = Space((len(model.reference),))
        return Conditional(summary, family.build(space, summary.features(model.observables)))


def save(posterior: Posterior, path: str | Path, *, overwrite: bool = False) -> None:
    """Write `posterior` to one `.safetensors` file, atomically."""
    refuse_existing(path, overwrite)
    model = posterior.model
    header = {
        "format": FORMAT,
        "format_version": VERSION,
        "reference": model.reference.describe(),
        "informed": model.informed,
        "observables": {name: o.describe() for name, o in model.observables.items()},
        "dtypes": dict(model.dtypes),
        "estimator": model.estimator,
        "embedding": model.embedding,
        "record": posterior.record,
    }
    tensors = {name: value.contiguous().cpu() for name, value in posterior.network.state_dict().items()}
    text = json.dumps(header)
    with atomic(path) as temporary:
        save_file(tensors, temporary, {"sbi_dgm": text, "sha256": _digest(text, tensors)})


def load(
    path: str | Path, *, prior: Prior | None = None, embedding: nn.Module | None = None, device: str = "cpu"
) -> Posterior:
    """Read a posterior; its draws are those of the one that was saved, to the bit.

    Args:
        prior: needed only where the prior is a function.
        embedding: needed only where the embedding is a module of yours; its weights come from the file.
        device: "cpu", "cuda", ..., or "auto".

    Raises:
        FileError: missing, foreign, newer or corrupted.
        ExternalError: an object is needed that the file cannot hold.

    """
    header, tensors = _read(require_file(path))
    observables = {name: Observable.restore(o) for name, o in header["observables"].items()}
    reference = priors.restore(header["reference"], prior)
    model = Model(
        reference, header["informed"], observables, header["dtypes"], header["estimator"], header["embedding"]
    )
    scalers = {
        name: Standardise(tuple(tensors[f"summary.scalers.{i}.mean"].shape)).to(
            tensors[f"summary.scalers.{i}.mean"].dtype
        )
        for i, name in enumerate(observables)
    }
    conditional = network(model, scalers, embeddings.restore(model.embedding, embedding), seed=0)
    conditional.load_state_dict(tensors)
    return Posterior(model, conditional, header["record"]).to(device_named(device))


def read_header(path: str | Path) -> dict[str, Any]:
    """All that a posterior's file says beside its weights."""
    return _read(require_file(path))[0]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError(f"{path} is no readable safetensors file: {error}.") from None
    if "sbi_dgm" not in metadata:
        raise FileError(f"{path} is a safetensors file but no posterior of sbi_dgm.")
    if metadata.get("sha256") != _digest(metadata["sbi_dgm"], tensors):
        raise FileError(f"{path} is corrupted: its sha256 differs. Restore it from a copy.")
    header = json.loads(metadata["sbi_dgm"])
    if header.get("format") != FORMAT:
        raise FileError(f"{path} holds {header.get('format')!r}, not {FORMAT!r}.")
    if header["format_version"] > VERSION:
        raise FileError(
            f"{path} has format version {header['format_version']}; this sbi_dgm reads up to {VERSION}: update it."
        )
    return header, tensors


def _digest(text: str, tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()
