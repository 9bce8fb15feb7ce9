r"""Training: the one loop, from simulations to a posterior.

The schedule, chosen by trials on three tasks: warm up; stay at a constant rate while the exponential moving
average (EMA) of the weights,

.. math::  \bar w \leftarrow \bar w + (1 - \beta_t) (w - \bar w), \qquad \beta_t = \min(\beta, (1 + t) / (10 + t)),

improves on the validation rows; when it stalls, go back to the best point and let the rate fall linearly to
zero over half as many steps again; return the best averaged weights. Validation sees the same rows with the
same noise every time.

Every random number is a function of the seed and the step, so that a run resumed from its checkpoint ends with
the weights of an uninterrupted one (to the bit on the CPU).
"""

import copy
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import nn
from tqdm import tqdm

from sbi_dgm import artifact, checkpoints, embeddings, options
from sbi_dgm.data.batches import Rows, Shuffled
from sbi_dgm.data.scaling import standardise
from sbi_dgm.data.simulations import Simulations
from sbi_dgm.data.splits import Split, SplitRule
from sbi_dgm.distributions import EDGE, Normal
from sbi_dgm.errors import DataError, FileError, OptionError, TrainingError, unknown
from sbi_dgm.estimators.base import FAMILIES, Conditional, Family, family
from sbi_dgm.files import write_json, write_text
from sbi_dgm.options import Options
from sbi_dgm.parameters import Parameter
from sbi_dgm.posterior import Model, Posterior
from sbi_dgm.priors import Prior
from sbi_dgm.seeds import lending, torch_generator

ORDER, NOISE, VALIDATION, DROPOUT = 1, 2, 3, 4  # streams of random numbers, beside 0 for initial weights
CHECKPOINT_SECONDS = 15.0


class Training(Options):
    """How long and how fast to train.

    Attributes:
        batch_size: rows of a step.
        learning_rate: of Adam, at its plateau.
        warmup: steps of linear warm-up.
        round: steps between validations; None is an epoch, but at least 25 and at most 500 steps.
        patience: rounds without improvement before the rate falls.
        decay: length of the fall, in units of the steps to the best point.
        ema: beta, the memory of the averaged weights.
        clip: largest norm of a gradient.
        max_rounds: the rate falls after so many rounds at the latest.

    """

    batch_size: int = Field(default=256, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    warmup: int = Field(default=100, ge=1)
    round: int | None = Field(default=None, ge=1)
    patience: int = Field(default=20, ge=1)
    decay: float = Field(default=0.5, ge=0)
    ema: float = Field(default=0.998, ge=0, lt=1)
    clip: float = Field(default=5.0, gt=0)
    max_rounds: int = Field(default=2000, ge=1)


@dataclass
class Progress:
    """Where a run stands: plain numbers, kept in its checkpoint."""

    step: int = 0
    phase: Literal["plateau", "decay", "done"] = "plateau"
    best_loss: float = math.inf
    best_step: int = 0
    decay_from: int = 0
    decay_to: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)

    def rate(self, training: Training) -> float:
        """The learning rate of the coming step."""
        share = min(1.0, (self.step + 1) / training.warmup)
        if self.phase == "decay":
            share = min(share, (self.decay_to - self.step) / (self.decay_to - self.decay_from))
        return training.learning_rate * share


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
    data.require_rows()
    rule, how = split or SplitRule(), training or Training()
    target = artifact.device_named(device)
    model = _model(data, estimator, embedding, parameters, rule)
    config = _config(data, model, how, rule, seed)
    folder = None if out is None else _claim(Path(out), config, resume, overwrite)
    parts = data.split(rule)
    train, held_out = (_rows(data, model, part, target) for part in (parts.train, parts.validation))
    scalers = {name: standardise(name, data.columns[f"x/{name}"], parts.train) for name in model.observables}
    network = artifact.network(model, scalers, _embedding(embedding), seed).to(target)
    run = Run(network, Shuffled(train, how.batch_size, seed, ORDER), held_out, how, seed, folder)
    run.train(progress)
    record = config | _result(run, parts, train, held_out)
    posterior = Posterior(model, run.averaged, record)
    if folder is not None:
        artifact.save(posterior, folder / "posterior.safetensors", overwrite=True)
    return posterior


class Run:
    """A network on its way: what changes while it trains, and the loop that changes it."""

    def __init__(
        self,
        network: Conditional,
        batches: Shuffled,
        held_out: Rows,
        training: Training,
        seed: int,
        folder: Path | None,
    ) -> None:
        self.network, self.averaged = network, copy.deepcopy(network).requires_grad_(False)
        self.batches, self.held_out, self.training, self.seed, self.folder = batches, held_out, training, seed, folder
        self.optimiser = torch.optim.Adam(network.parameters(), lr=training.learning_rate, fused=True)
        self.at = Progress()
        self.best: dict[str, checkpoints.Tensors] = {}
        self.round = training.round or min(max(batches.per_epoch, 25), 500)
        if folder is not None and (folder / "checkpoint").exists():
            self._resume(folder / "checkpoint")

    def train(self, progress: bool) -> None:
        """Train to the end; afterwards `averaged` holds the best averaged weights."""
        saved, started = time.monotonic(), time.monotonic() - self.at.seconds
        with tqdm(desc="training", unit="step", initial=self.at.step, disable=not progress) as bar:
            while self.at.phase != "done":
                loss = self._round(bar)
                validation = self.validate()
                self.at.seconds = time.monotonic() - started
                self._note(loss, validation)
                self._decide(validation)
                bar.set_postfix(validation=f"{validation:.3f}", best=f"{self.at.best_loss:.3f}", phase=self.at.phase)
                if self.folder is not None and (
                    self.at.phase == "done" or time.monotonic() - saved > CHECKPOINT_SECONDS
                ):
                    self.save(self.folder)
                    saved = time.monotonic()
        self.averaged.load_state_dict(self.best["averaged"])

    def _round(self, bar: "tqdm[Any]") -> float:
        """One round of steps; the mean training loss."""
        last = self.at.step + self.round
        if self.at.phase == "decay":
            last = min(last, self.at.decay_to)
        total, first = torch.zeros((), device=self.held_out.z.device), self.at.step
        self.network.train()
        while self.at.step < last:
            total += self._step()
            bar.update()
        mean = float(total) / (last - first)
        if not math.isfinite(mean):
            raise TrainingError(
                f"the training loss is {mean} between steps {first} and {last}: lower training.learning_rate "
                f"(now {self.training.learning_rate:g}), or look for outliers in x."
            )
        return mean

    def _step(self) -> torch.Tensor:
        batch = self.batches[self.at.step]
        device = batch.z.device
        generator = torch_generator(self.seed, NOISE, self.at.step, device=device)
        with lending(self.seed, DROPOUT, self.at.step, device=device):
            losses = self.network(batch.z, batch.x, progress=self._share(), generator=generator)
        loss = (batch.weight * losses).mean()
        self.optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.training.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = self.at.rate(self.training)
        self.optimiser.step()
        self.at.step += 1
        self._average()
        return loss.detach()

    def _share(self) -> float:
        """Progress for annealing: halfway through one patience, full when the rate falls."""
        return 1.0 if self.at.phase == "decay" else min(1.0, self.at.step / (self.training.patience * self.round))

    @torch.no_grad()
    def _average(self) -> None:
        memory = min(self.training.ema, (1 + self.at.step) / (10 + self.at.step))
        averaged: list[torch.Tensor] = list(self.averaged.parameters())
        torch._foreach_lerp_(averaged, list(self.network.parameters()), 1 - memory)  # pyright: ignore

    @torch.no_grad()
    def validate(self) -> float:
        """The weighted mean loss of the averaged weights on the validation rows."""
        self.averaged.eval()
        generator = torch_generator(self.seed, VALIDATION, device=self.held_out.z.device)
        total = torch.zeros((), device=self.held_out.z.device, dtype=torch.float64)
        for first in range(0, len(self.held_out), 4096):
            batch = self.held_out[slice(first, first + 4096)]
            total += (batch.weight * self.averaged(batch.z, batch.x, generator=generator)).sum()
        return float(total) / len(self.held_out)

    def _note(self, loss: float, validation: float) -> None:
        rate = float(self.optimiser.param_groups[0]["lr"])
        row = {
            "step": self.at.step,
            "phase": self.at.phase,
            "loss": loss,
            "validation": validation,
            "learning_rate": rate,
        }
        self.at.history.append(row | {"seconds": round(self.at.seconds, 2)})
        if self.folder is not None:
            write_text(self.folder / "history.csv", pd.DataFrame(self.at.history).to_csv(index=False))

    def _decide(self, validation: float) -> None:
        """Remember the best point; let the rate fall when the loss stalls; end when it has fallen."""
        if validation < self.at.best_loss:
            self.at.best_loss, self.at.best_step = validation, self.at.step
            self.best = {name: checkpoints.clone(group) for name, group in self._tensors().items()}
        if not self.best:
            raise TrainingError(f"the validation loss is {validation} from the start: look for outliers in x.")
        stalled = self.at.step - self.at.best_step >= self.training.patience * self.round
        if self.at.phase == "plateau" and (stalled or self.at.step >= self.training.max_rounds * self.round):
            self._load(self.best)
            self.at.step = self.at.decay_from = self.at.best_step
            self.at.decay_to = self.at.step + math.ceil(self.training.decay * self.at.step)
            self.at.phase = "decay"
        if self.at.phase == "decay" and self.at.step >= self.at.decay_to:
            self.at.phase = "done"

    def _tensors(self) -> dict[str, checkpoints.Tensors]:
        return {
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": checkpoints.optimiser_state(self.optimiser),
        }

    def _load(self, groups: Mapping[str, checkpoints.Tensors]) -> None:
        self.network.load_state_dict(groups["network"])
        self.averaged.load_state_dict(groups["averaged"])
        checkpoints.restore_optimiser(self.optimiser, groups["optimiser"])

    def save(self, folder: Path) -> None:
        """Write the checkpoint."""
        groups = self._tensors() | {f"best.{name}": group for name, group in self.best.items()}
        checkpoints.save(folder / "checkpoint", groups, vars(self.at))

    def _resume(self, path: Path) -> None:
        groups, note = checkpoints.load(path, self.held_out.z.device)
        self._load(groups)
        self.best = {name.removeprefix("best."): group for name, group in groups.items() if name.startswith("best.")}
        self.at = Progress(**note)


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


def _claim(folder: Path, config: dict[str, Any], resume: bool, overwrite: bool) -> Path:
    """The run folder, made or found fit to go on in."""
    checkpoint, note = folder / "checkpoint", folder / "config.json"
    if overwrite:
        for path in (checkpoint, note, folder / "history.csv", folder / "posterior.safetensors"):
            path.unlink(missing_ok=True)
    if (folder / "posterior.safetensors").exists():
        raise FileError(f"{folder} holds a finished run: pass overwrite=True (--overwrite), or name another folder.")
    if note.exists() and not resume:
        raise FileError(
            f"{folder} holds an unfinished run: resume=True (--resume) goes on, overwrite=True starts again."
        )
    if note.exists():
        _require_same(folder, config)
    write_json(note, config)
    return folder


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
