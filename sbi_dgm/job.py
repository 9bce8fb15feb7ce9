"""One training run from checked arguments: read, prepare, train, keep."""

import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from shutil import rmtree
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from sbi_dgm import companion, options
from sbi_dgm.data.batches import Noise, named
from sbi_dgm.data.exchanged import Exchanged
from sbi_dgm.data.reading import Reading
from sbi_dgm.data.simulations import Simulations
from sbi_dgm.data.source import Source
from sbi_dgm.data.splits import Split, SplitRule
from sbi_dgm.embeddings import base as embeddings
from sbi_dgm.embeddings.base import Embedding
from sbi_dgm.errors import FileError, OptionError, TrainingError, unknown
from sbi_dgm.estimators.base import FAMILIES, Conditional, Family
from sbi_dgm.files import held, read_json, write_json
from sbi_dgm.gating import gate_of
from sbi_dgm.loop import Run, Training
from sbi_dgm.model import Model, device_named, network
from sbi_dgm.posterior import Posterior
from sbi_dgm.preparation import prepare, read
from sbi_dgm.progress import Bar
from sbi_dgm.tensorboard import curves
from sbi_dgm.trust import Gate
from sbi_dgm.weights import row_weights

RESULTS = ("posterior.safetensors", "likelihood.safetensors")


@dataclass(frozen=True)
class Job:
    """A run that is asked for; the fields are the arguments of `fit`, and `beside`: runs that share the memory.

    Where `learn` is "likelihood", the data have their roles exchanged.
    """

    data: Simulations
    estimator: Family
    embedding: Embedding | nn.Module
    parameters: Sequence[str] | None
    training: Training
    split: SplitRule
    reading: Reading
    noise: Noise | None
    rate: bool
    device: str
    seed: int
    folder: Path | None
    resume: bool
    overwrite: bool
    limit: float = math.inf
    tensorboard: bool = False
    progress: bool = True
    beside: int = 1
    learn: str = "posterior"

    @property
    def result(self) -> Path | None:
        """Where what is learned will be."""
        return None if self.folder is None else self.folder / f"{self.learn}.safetensors"


def train(job: Job) -> Posterior:
    """Do it, or go on with it."""
    with nullcontext() if job.folder is None else held(job.folder):
        return _train(job)


def _train(job: Job) -> Posterior:
    data, folder, target = job.data, job.folder, device_named(job.device)
    parts = data.split(job.split)
    model = _model(job, parts.train)
    source = Source(data, model.reference, theta=job.noise is not None)
    size = source.bytes(len(parts.train) + len(parts.validation))
    reading = _as_before(folder, job.resume and not job.overwrite, job.reading).resolved(job.beside * size, target)
    config = _config(job, model, reading)
    if folder is not None and not job.overwrite:
        _refuse_other_run(folder, config, job.resume)
    source.weight = _mean_one(row_weights(source, reading, rate=job.rate, seed=job.seed, device=target), parts)
    ready = prepare(source, parts, reading, job.training, seed=job.seed, device=target, noise=job.noise)
    model = model._replace(dtypes={name: dtype.str for name, dtype in ready.dtypes.items()})
    untrained = network(model, ready.scalers, job.embedding, job.seed).to(target)
    cast("embeddings.Summary", untrained.summary).gather(ready.shown())
    if folder is not None:
        _claim(folder, config, job.overwrite)
    if job.progress:
        for line in _lines(data, model, reading, size):
            Bar.write(line, file=sys.stderr)
    run = Run(untrained, ready.batches, ready.held_out, job.training, job.seed, folder)
    with curves(run.at.step, folder) if job.tensorboard and folder is not None else nullcontext() as log:
        run.train(job.progress, limit=job.limit, log=log)
    record = config | _result(run, data, parts, source, len(ready.held_out)) | {"tilted": tilted(job)}
    gate = None
    if isinstance(data, Exchanged):
        record["roles"] = data.roles.describe()
    else:
        gate = gate_of(run.averaged, model.observables, ready.batches, ready.held_out)
    posterior = Posterior(model, run.averaged, record, gate)
    if job.result is not None:
        posterior.save(job.result, overwrite=True)
    return posterior


def _lines(data: Simulations, model: Model, reading: Reading, size: int) -> Iterator[str]:
    """What is said when a training begins."""
    yield f"reading: {reading.mode}, {size / 2**20:.0f} MiB of training and validation rows"
    yield f"embedding: {embeddings.said(model.embedding)}"
    failed = len(data) - int(data.valid.sum())
    if failed:
        yield f"rows: {failed} of {len(data)} are left out: failed, or x is not finite"


def gate_for(job: Job, network: Conditional) -> Gate | None:
    """The gate of a network that was trained earlier, such as that of all members; None for a likelihood."""
    data, target = job.data, torch.device("cpu")
    if isinstance(data, Exchanged):
        return None
    parts = data.split(job.split)
    source = Source(
        data, data.reference(list(job.parameters or data.names), parts.train)[0], theta=job.noise is not None
    )
    size = source.bytes(len(parts.train) + len(parts.validation))
    reading = _as_before(job.folder, True, job.reading).resolved(size, target)
    batches, held_out, _ = read(source, parts, reading, job.training, seed=job.seed, device=target, noise=job.noise)
    known = embeddings.observed(embeddings.chosen(job.embedding, data.observables), data.observables)
    return gate_of(network, known, batches, held_out)


def finished(job: Job) -> bool:
    """Whether its folder holds the very run, trained to the end."""
    if job.folder is None or job.result is None or job.overwrite or not job.result.exists():
        return False
    config = _config(job, _model(job, job.data.split(job.split).train), job.reading)
    _require_same(job.folder, {key: value for key, value in config.items() if key != "reading"})
    return True


def _model(job: Job, train: np.ndarray) -> Model:
    data, names = job.data, list(job.parameters or job.data.names)
    for name in names:
        if name not in data.names:
            raise OptionError(unknown("parameter", name, data.names))
    reference, informed = data.reference(names, train)
    embedding = embeddings.chosen(job.embedding, data.observables)
    described = options.describe(FAMILIES, job.estimator), embeddings.describe(embedding)
    return Model(reference, informed, embeddings.observed(embedding, data.observables), data.dtypes, *described)


def _config(job: Job, model: Model, reading: Reading) -> dict[str, Any]:
    """What decides a run; a resumed run must have the same."""
    data = job.data.source if isinstance(job.data, Exchanged) else job.data
    return {
        "learn": job.learn,
        "data": {
            "path": str(data.path or "memory"),
            "layout": _layout(data),
            "rows": len(data),
            "fingerprint": data.fingerprint(),
            "glimpse": data.glimpse(),
        },
        "parameters": list(model.reference.names),
        "estimator": model.estimator,
        "embedding": model.embedding,
        "training": job.training.model_dump(),
        "split": job.split.model_dump(),
        "seed": job.seed,
        "versions": {name: version(name) for name in ("sbi_dgm", "torch", "nflows", "numpy")},
        "reading": reading.model_dump(),
        "noise": named(job.noise),
        "rate": job.rate,
    }


def _layout(data: Simulations) -> dict[str, Any] | None:
    return None if data.layout is None else data.layout.model_dump(mode="json")


def _refuse_other_run(folder: Path, config: dict[str, Any], resume: bool) -> None:
    if any((folder / name).exists() for name in RESULTS):
        raise FileError(f"{folder} holds a finished run: pass overwrite=True (--overwrite), or name another folder.")
    if not (folder / "config.json").exists():
        return
    if not resume:
        raise FileError(f"{folder} holds an unfinished run: --resume (resume=True) goes on, --overwrite starts again.")
    _require_same(folder, config)


def _claim(folder: Path, config: dict[str, Any], overwrite: bool) -> None:
    """Make the run folder, empty where `overwrite` says so; all input has been checked by now."""
    if overwrite:
        for name in (*RESULTS, "checkpoint", "history.csv", "config.json"):
            (folder / name).unlink(missing_ok=True)
        forget_others(folder)
    for left in folder.glob(".*.part"):
        left.unlink()
    write_json(folder / "config.json", config)


def forget_others(folder: Path) -> None:
    """Remove what was learned with a run that is now overwritten: its members, each at once, and its likelihood."""
    if (folder / companion.FOLDER / "config.json").exists():
        rmtree(folder / companion.FOLDER)
    for member in [place.parent for place in folder.glob("members/[!.]*/config.json")]:
        member.rename(member.with_name(f".{member.name}.part"))
    for left in folder.glob("members/.*.part"):
        rmtree(left)


def _require_same(folder: Path, config: dict[str, Any]) -> None:
    found = read_json(folder / "config.json")
    for key, value in config.items():
        if key != "data" and found.get(key) != value:
            raise TrainingError(f"{folder} was started with {key} = {found.get(key)}, not {value}: resume as it was.")
    if any(found["data"].get(key) != config["data"][key] for key in ("fingerprint", "glimpse")):
        raise TrainingError(f"{folder} was started on other simulations ({found['data']['path']}): resume with those.")


def _as_before(folder: Path | None, resume: bool, reading: Reading) -> Reading:
    """A resumed run reads as it did, whatever is free today."""
    if not resume or folder is None or reading.mode != "auto" or not (folder / "config.json").exists():
        return reading
    return Reading(**read_json(folder / "config.json")["reading"])


def _mean_one(weight: np.ndarray | None, parts: Split) -> np.ndarray | None:
    """Weights with mean one over the training rows, and over the validation rows."""
    if weight is None:
        return None
    weight = weight.astype(np.float64)
    for part in (parts.train, parts.validation):
        weight[part] /= weight[part].mean()
    return weight


def tilted(job: Job) -> bool:
    """Whether the cross section of event weights counts as part of the prior."""
    return job.rate and not isinstance(job.data, Exchanged)


def _result(run: Run, data: Simulations, parts: Split, source: Source, validated: int) -> dict[str, Any]:
    return {
        "best_validation_loss": run.at.best_loss,
        "best_step": run.at.best_step,
        "steps": run.at.step,
        "seconds": round(run.at.seconds, 1),
        "rows": {name: len(part) for name, part in vars(parts).items()} | {"validated": validated},
        "rows_at_prior_edge": source.at_edge(parts.train) + source.at_edge(parts.validation),
        "agreement": data.agreement().describe(),
    }
