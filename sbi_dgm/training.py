"""From simulations to a posterior: `fit` checks and prepares, `loop` trains."""

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sbi_dgm import embeddings, options
from sbi_dgm.data.batches import Rows, Shuffled
from sbi_dgm.data.scaling import standardise
from sbi_dgm.data.simulations import Simulations
from sbi_dgm.data.splits import Split, SplitRule
from sbi_dgm.distributions import EDGE, Normal
from sbi_dgm.errors import DataError, FileError, OptionError, TrainingError, unknown
from sbi_dgm.estimators.base import FAMILIES, Family, family
from sbi_dgm.files import write_json
from sbi_dgm.loop import ORDER, Run, Training
from sbi_dgm.model import Model, device_named, network
from sbi_dgm.parameters import Parameter
from sbi_dgm.posterior import Posterior
from sbi_dgm.priors import Prior


def fit(  # noqa: PLR0913  (the one door of the library: every argument has a meaning of its own)
    data: Simulations,
    estimator: str | Family = "flow",
    embedding: "str | embeddings.Embedding | nn.Module" = "auto",
    parameters: Sequence[str] | None = None,
    *,
    training: Training | None = None,
    split: SplitRule | None = None,
    device: str = "auto",
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
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
        device: "auto", "cpu", "cuda", ...
        seed: of initial weights, order and noise.
        out: run folder for config.json, history.csv, the checkpoint and posterior.safetensors.
        resume: go on from the checkpoint in `out`, if there is one.
        overwrite: start again in `out`, whatever is there.
        progress: show a progress bar.

    Raises:
        DataError, PriorError: simulations that cannot be learned from.
        FileError: `out` holds a run already.
        TrainingError: a loss that is not finite; a checkpoint of another run.

    Example::

        posterior = sbi_dgm.fit(data, out="runs/sn")
        posterior = sbi_dgm.fit(data, Located(Flow(transforms=3)), training=Training(batch_size=512))

    """
    data.require_rows(parameters)
    rule, how = split or SplitRule(), training or Training()
    target = device_named(device)
    model = _model(data, estimator, embedding, parameters, rule)
    config = _config(data, model, how, rule, seed)
    folder = None if out is None else Path(out)
    if folder is not None and not overwrite:
        _refuse_other_run(folder, config, resume)
    parts = data.split(rule)
    train, held_out = (_rows(data, model, part, target) for part in (parts.train, parts.validation))
    scalers = {name: standardise(name, data.columns[f"x/{name}"], parts.train) for name in model.observables}
    untrained = network(model, scalers, _embedding(embedding), seed).to(target)
    if folder is not None:
        _claim(folder, config, overwrite)
    run = Run(untrained, Shuffled(train, how.batch(len(train)), seed, ORDER), held_out, how, seed, folder)
    run.train(progress)
    record = config | _result(run, parts, train, held_out)
    posterior = Posterior(model, run.averaged, record)
    if folder is not None:
        posterior.save(folder / "posterior.safetensors", overwrite=True)
    return posterior


def _embedding(embedding: "str | embeddings.Embedding | nn.Module") -> "embeddings.Embedding | nn.Module":
    return options.make("embedding", embeddings.EMBEDDINGS, embedding) if isinstance(embedding, str) else embedding


def _model(
    data: Simulations,
    estimator: str | Family,
    embedding: "str | embeddings.Embedding | nn.Module",
    parameters: Sequence[str] | None,
    rule: SplitRule,
) -> Model:
    names = list(parameters or data.names)
    for name in names:
        if name not in data.names:
            raise OptionError(unknown("parameter", name, data.names))
    prior = None if data.prior is None else data.prior.marginal(names)
    reference = prior or _stand_in(data, names, rule)
    chosen = family(estimator) if isinstance(estimator, str) else estimator
    dtypes = {name: data.columns[f"x/{name}"].dtype.str for name in data.observables}
    description = options.describe(FAMILIES, chosen)
    return Model(
        reference, prior is not None, data.observables, dtypes, description, embeddings.describe(_embedding(embedding))
    )


def _stand_in(data: Simulations, names: list[str], rule: SplitRule) -> Prior:
    """Without a prior: normals with the mean and standard deviation of the training rows."""
    theta = data.theta[data.split(rule).train]
    moments = zip(theta.mean(0).tolist(), theta.std(0).tolist(), data.parameters, strict=True)
    by_name = {p.name: Parameter(p.name, Normal(mean, sd), p.label, p.unit) for mean, sd, p in moments}
    return Prior([by_name[name] for name in names])


def _config(data: Simulations, model: Model, training: Training, rule: SplitRule, seed: int) -> dict[str, Any]:
    """What decides a run; a resumed run must have the same."""
    return {
        "data": {"path": str(data.path or "memory"), "rows": len(data), "fingerprint": data.fingerprint()},
        "parameters": list(model.reference.names),
        "estimator": model.estimator,
        "embedding": model.embedding,
        "training": training.model_dump(),
        "split": rule.model_dump(),
        "seed": seed,
        "versions": {name: version(name) for name in ("sbi_dgm", "torch", "nflows", "numpy")},
    }


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


def _rows(data: Simulations, model: Model, rows: np.ndarray, device: torch.device) -> Rows:
    if not len(rows):
        raise DataError("no rows are left to train or to validate on: change the split.")
    columns = [data.names.index(name) for name in model.reference.names]
    z = model.reference.standardise(data.theta[rows][:, columns], data.columns["theta"].dtype)
    x = {name: torch.as_tensor(values, device=device) for name, values in data.x(rows).items()}
    weight = None if data.weight is None else torch.as_tensor(data.weight[rows], dtype=torch.float32, device=device)
    return Rows(torch.as_tensor(z, dtype=torch.float32, device=device), x, weight)


def _result(run: Run, parts: Split, train: Rows, held_out: Rows) -> dict[str, Any]:
    at_edge = sum(int((rows.z.abs() >= EDGE - 1e-3).any(1).sum()) for rows in (train, held_out))
    return {
        "best_validation_loss": run.at.best_loss,
        "best_step": run.at.best_step,
        "steps": run.at.step,
        "seconds": round(run.at.seconds, 1),
        "rows": {name: len(part) for name, part in vars(parts).items()},
        "rows_at_prior_edge": at_edge,
    }
