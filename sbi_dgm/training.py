"""From simulations to a posterior: `fit` checks and prepares, `loop` trains."""

import json
import math
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from tqdm import tqdm

from sbi_dgm import embeddings, options
from sbi_dgm.data.batches import Noise, named
from sbi_dgm.data.reading import Reading
from sbi_dgm.data.simulations import Simulations
from sbi_dgm.data.source import Source
from sbi_dgm.data.splits import Split, SplitRule
from sbi_dgm.errors import FileError, OptionError, TrainingError, unknown
from sbi_dgm.estimators.base import FAMILIES, Family, family
from sbi_dgm.files import write_json
from sbi_dgm.loop import Run, Training
from sbi_dgm.model import Model, device_named, network
from sbi_dgm.posterior import Posterior
from sbi_dgm.preparation import prepare
from sbi_dgm.tensorboard import curves
from sbi_dgm.weights import row_weights


def fit(  # noqa: PLR0913  (the one door of the library: every argument has a meaning of its own)
    data: Simulations,
    estimator: str | Family = "flow",
    embedding: "str | embeddings.Embedding | nn.Module" = "auto",
    parameters: Sequence[str] | None = None,
    *,
    training: Training | None = None,
    split: SplitRule | None = None,
    reading: Reading | None = None,
    noise: Noise | None = None,
    rate: bool = False,
    device: str = "auto",
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    max_time: float | None = None,
    tensorboard: bool = False,
    progress: bool = True,
) -> Posterior:
    """Train a posterior on simulations.

    Args:
        data: the simulations.
        estimator: a family's name, or its options, such as `Flow(transforms=8)`.
        embedding: "auto", "mlp", their options, or a module of your own.
        parameters: names to infer; the others are marginalised.
        training: batch size, rates and patience.
        split: fractions of validation and test rows.
        reading: from memory or as a stream; chosen by what is free.
        noise: a model of noise, (x, theta, generator) -> x, applied on the device to each batch: fresh at every step,
            the same in every validation. x is a tensor (B, ...), or a dict of them; theta (B, P) all parameters.
        rate: event weights keep their cross section, which then counts as part of the prior.
        device: "auto", "cpu", "cuda", ...
        seed: of initial weights, order and noise.
        out: run folder for config.json, history.csv, the checkpoint and posterior.safetensors.
        resume: go on from the checkpoint in `out`, if there is one.
        overwrite: start again in `out`, whatever is there.
        max_time: seconds after which this call ends by itself, with a checkpoint in `out`.
        tensorboard: write curves to `out/tensorboard`, for TensorBoard.
        progress: show a progress bar.

    Raises:
        DataError, PriorError: simulations that cannot be learned from.
        FileError: `out` holds a run already.
        TrainingError: a loss that is not finite; a checkpoint of another run.
        TimeLimitError: `max_time` has passed; `resume=True` goes on.

    Example::

        posterior = sbi_dgm.fit(data, out="runs/sn")
        posterior = sbi_dgm.fit(data, Located(Flow(transforms=3)), training=Training(batch_size=512))

    """
    data.require_rows(parameters)
    rule, how = split or SplitRule(), training or Training()
    target, parts = device_named(device), data.split(rule)
    folder = None if out is None else Path(out)
    _require_folder(folder, max_time=max_time is not None, tensorboard=tensorboard)
    model = _model(data, estimator, embedding, parameters, parts.train)
    source = Source(data, model.reference, theta=noise is not None)
    size = source.bytes(len(parts.train) + len(parts.validation))
    reading = _as_before(folder, resume and not overwrite, reading or Reading()).resolved(size, target)
    config = _config(data, model, how, rule, seed) | {
        "reading": reading.model_dump(),
        "noise": named(noise),
        "rate": rate,
    }
    if folder is not None and not overwrite:
        _refuse_other_run(folder, config, resume)
    source.weight = _mean_one(row_weights(source, reading, rate=rate, seed=seed, device=target), parts)
    ready = prepare(source, parts, reading, how, seed=seed, device=target, noise=noise)
    model = model._replace(dtypes={name: dtype.str for name, dtype in ready.dtypes.items()})
    untrained = network(model, ready.scalers, _embedding(embedding), seed).to(target)
    if folder is not None:
        _claim(folder, config, overwrite)
    if progress:
        tqdm.write(f"reading: {reading.mode}, {size / 2**20:.0f} MiB of training and validation rows", file=sys.stderr)
    run = Run(untrained, ready.batches, ready.held_out, how, seed, folder)
    log = curves(run.at.step, folder) if tensorboard and folder is not None else None
    run.train(progress, limit=math.inf if max_time is None else max_time, log=log)
    record = config | _result(run, data, parts, source, len(ready.held_out))
    posterior = Posterior(model, run.averaged, record)
    if folder is not None:
        posterior.save(folder / "posterior.safetensors", overwrite=True)
    return posterior


def _require_folder(folder: Path | None, **asked: bool) -> None:
    for name, wanted in asked.items():
        if wanted and folder is None:
            raise OptionError(f"{name} needs a run folder: pass out=...")


def _embedding(embedding: "str | embeddings.Embedding | nn.Module") -> "embeddings.Embedding | nn.Module":
    return options.make("embedding", embeddings.EMBEDDINGS, embedding) if isinstance(embedding, str) else embedding


def _model(
    data: Simulations,
    estimator: str | Family,
    embedding: "str | embeddings.Embedding | nn.Module",
    parameters: Sequence[str] | None,
    train: np.ndarray,
) -> Model:
    names = list(parameters or data.names)
    for name in names:
        if name not in data.names:
            raise OptionError(unknown("parameter", name, data.names))
    reference, informed = data.reference(names, train)
    chosen = family(estimator) if isinstance(estimator, str) else estimator
    dtypes = {name: data.columns[f"x/{name}"].dtype.str for name in data.observables}
    description = options.describe(FAMILIES, chosen)
    described = embeddings.describe(_embedding(embedding))
    return Model(reference, informed, data.observables, dtypes, description, described)


def _config(data: Simulations, model: Model, training: Training, rule: SplitRule, seed: int) -> dict[str, Any]:
    """What decides a run; a resumed run must have the same."""
    return {
        "data": {
            "path": str(data.path or "memory"),
            "layout": _layout(data),
            "rows": len(data),
            "fingerprint": data.fingerprint(),
        },
        "parameters": list(model.reference.names),
        "estimator": model.estimator,
        "embedding": model.embedding,
        "training": training.model_dump(),
        "split": rule.model_dump(),
        "seed": seed,
        "versions": {name: version(name) for name in ("sbi_dgm", "torch", "nflows", "numpy")},
    }


def _layout(data: Simulations) -> dict[str, Any] | None:
    return None if data.layout is None else data.layout.model_dump(mode="json")


def _refuse_other_run(folder: Path, config: dict[str, Any], resume: bool) -> None:
    if (folder / "posterior.safetensors").exists():
        raise FileError(f"{folder} holds a finished run: pass overwrite=True (--overwrite), or name another folder.")
    if not (folder / "config.json").exists():
        return
    if not resume:
        raise FileError(f"{folder} holds an unfinished run: --resume (resume=True) goes on, --overwrite starts again.")
    _require_same(folder, config)


def _claim(folder: Path, config: dict[str, Any], overwrite: bool) -> None:
    """Make the run folder, empty where `overwrite` says so; all input has been checked by now."""
    if overwrite:
        for name in ("posterior.safetensors", "checkpoint", "history.csv", "config.json"):
            (folder / name).unlink(missing_ok=True)
    write_json(folder / "config.json", config)


def _require_same(folder: Path, config: dict[str, Any]) -> None:
    found = json.loads((folder / "config.json").read_text())
    for key, value in config.items():
        if key != "data" and found.get(key) != value:
            raise TrainingError(f"{folder} was started with {key} = {found.get(key)}, not {value}: resume as it was.")
    if found["data"]["fingerprint"] != config["data"]["fingerprint"]:
        raise TrainingError(f"{folder} was started on other simulations ({found['data']['path']}): resume with those.")


def _as_before(folder: Path | None, resume: bool, reading: Reading) -> Reading:
    """A resumed run reads as it did, whatever is free today."""
    if not resume or folder is None or reading.mode != "auto" or not (folder / "config.json").exists():
        return reading
    return Reading(**json.loads((folder / "config.json").read_text()).get("reading", {}))


def _mean_one(weight: np.ndarray | None, parts: Split) -> np.ndarray | None:
    """Weights with mean one over the training rows, and over the validation rows."""
    if weight is None:
        return None
    weight = weight.astype(np.float64)
    for part in (parts.train, parts.validation):
        weight[part] /= weight[part].mean()
    return weight


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
