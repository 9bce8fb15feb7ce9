r"""The training loop, read from top to bottom.

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
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from pydantic import Field
from tqdm import tqdm

from sbi_dgm import checkpoints
from sbi_dgm.data.batches import Batches, Rows
from sbi_dgm.errors import TrainingError
from sbi_dgm.estimators.base import Conditional
from sbi_dgm.files import write_text
from sbi_dgm.optimiser import AdamW, flattened
from sbi_dgm.options import Options
from sbi_dgm.seeds import lending, torch_generator

ORDER, NOISE, VALIDATION, DROPOUT = 1, 2, 3, 4  # streams of random numbers, beside 0 for initial weights
CHECKPOINT_SECONDS = 15.0


class Training(Options):
    """How long and how fast to train.

    Attributes:
        batch_size: rows of a step; None is a sixteenth of the training rows, but at least 32 and at most 512.
        learning_rate: at its plateau.
        warmup: steps of linear warm-up.
        round: steps between validations; None is an epoch, but at least 25 and at most 500 steps.
        patience: rounds without improvement before the rate falls.
        decay: length of the fall, in units of the steps to the best point.
        ema: beta, the memory of the averaged weights.
        clip: largest norm of a gradient.
        weight_decay: of the embedding alone, where it keeps the noise of long observations out; an estimator of
            sharp posteriors would lose by it. Decoupled from the gradient (Loshchilov and Hutter 2019,
            arXiv:1711.05101).
        max_rounds: the rate falls after so many rounds at the latest.

    """

    batch_size: int | None = Field(default=None, ge=1)
    learning_rate: float = Field(default=2e-3, gt=0)
    warmup: int = Field(default=100, ge=1)
    round: int | None = Field(default=None, ge=1)
    patience: int = Field(default=20, ge=1)
    decay: float = Field(default=0.5, ge=0)
    ema: float = Field(default=0.998, ge=0, lt=1)
    clip: float = Field(default=5.0, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    max_rounds: int = Field(default=2000, ge=1)

    def batch(self, rows: int) -> int:
        """Rows of a step, with `rows` to train on."""
        return self.batch_size or min(max(rows // 16, 32), 512)


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


class Run:
    """A network on its way: what changes while it trains, and the loop that changes it."""

    def __init__(
        self,
        network: Conditional,
        batches: Batches,
        held_out: Rows,
        training: Training,
        seed: int,
        folder: Path | None,
    ) -> None:
        self.network, self.averaged = network, copy.deepcopy(network).requires_grad_(False)
        self.batches, self.held_out, self.training, self.seed, self.folder = batches, held_out, training, seed, folder
        decayed, free = (
            [p for p in part.parameters() if p.requires_grad] for part in (network.summary, network.estimator)
        )
        self.optimiser = AdamW(decayed, free, decay=training.weight_decay, clip=training.clip)
        pairs = zip(network.parameters(), self.averaged.parameters(), strict=True)
        self.weights = flattened(kept for learned, kept in pairs if learned.requires_grad)
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
        self.averaged = copy.deepcopy(self.averaged)  # views no more: sums depend, to the bit, on how memory is aligned

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
        self.optimiser.clear()
        loss.backward()
        self.optimiser.step(self.at.rate(self.training))
        self.at.step += 1
        self._average()
        return loss.detach()

    def _share(self) -> float:
        """Progress for annealing: full after one patience, or when the rate falls."""
        return 1.0 if self.at.phase == "decay" else min(1.0, self.at.step / (self.training.patience * self.round))

    @torch.no_grad()
    def _average(self) -> None:
        memory = min(self.training.ema, (1 + self.at.step) / (10 + self.at.step))
        self.weights.lerp_(self.optimiser.weights, 1 - memory)

    @torch.no_grad()
    def validate(self) -> float:
        """The weighted mean loss of the averaged weights on the validation rows."""
        for kept, current in zip(self.averaged.buffers(), self.network.buffers(), strict=True):
            kept.copy_(current)  # statistics of batch normalisation, which are averages already
        self.averaged.eval()
        generator = torch_generator(self.seed, VALIDATION, device=self.held_out.z.device)
        total = torch.zeros((), device=self.held_out.z.device, dtype=torch.float64)
        for batch in self.held_out.pieces():
            total += (batch.weight * self.averaged(batch.z, batch.x, generator=generator)).sum()
        return float(total / self.held_out.weight.double().sum())

    def _note(self, loss: float, validation: float) -> None:
        row = {
            "step": self.at.step,
            "phase": self.at.phase,
            "loss": loss,
            "validation": validation,
            "learning_rate": self.optimiser.rate,
        }
        self.at.history.append(row | {"seconds": round(self.at.seconds, 2)})
        if self.folder is not None:
            write_text(self.folder / "history.csv", pd.DataFrame(self.at.history).to_csv(index=False))

    def _decide(self, validation: float) -> None:
        """Remember the best point; let the rate fall when the loss stalls; end when it has fallen."""
        if not math.isfinite(validation):
            raise TrainingError(f"the validation loss is {validation} at step {self.at.step}: look for outliers in x.")
        if validation < self.at.best_loss:
            self.at.best_loss, self.at.best_step = validation, self.at.step
            self.best = {name: checkpoints.clone(group) for name, group in self._tensors().items()}
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
            "optimiser": self.optimiser.state(),
        }

    def _load(self, groups: Mapping[str, checkpoints.Tensors]) -> None:
        self.network.load_state_dict(groups["network"])
        self.averaged.load_state_dict(groups["averaged"])
        self.optimiser.restore(groups["optimiser"])

    def save(self, folder: Path) -> None:
        """Write the checkpoint."""
        groups = self._tensors() | {f"best.{name}": group for name, group in self.best.items()}
        checkpoints.save(folder / "checkpoint", groups, vars(self.at))

    def _resume(self, path: Path) -> None:
        groups, note = checkpoints.load(path, self.held_out.z.device)
        self._load(groups)
        self.best = {name.removeprefix("best."): group for name, group in groups.items() if name.startswith("best.")}
        self.at = Progress(**note)
