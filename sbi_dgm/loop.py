r"""The training loop, read from top to bottom.

The schedule, chosen by trials on three tasks: warm up; stay at a constant rate while the exponential moving
average (EMA) of the weights,

.. math::  \bar w \leftarrow \bar w + (1 - \beta_t) (w - \bar w), \qquad \beta_t = \min(\beta, (1 + t) / (10 + t)),

improves on the validation rows; when it stalls, go back to the best point and let the rate fall linearly to
zero over half as many steps again; return the best averaged weights. Validation sees the same rows with the
same noise every time.

Every random number is a function of the seed and of the epoch or step that it is for, so that a run resumed from its
checkpoint, which is that of a round, ends with the weights of an uninterrupted one (to the bit on the CPU).
"""

import copy
import csv
import io
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from pydantic import Field

from sbi_dgm import checkpoints
from sbi_dgm.data.batches import Batches, Rows
from sbi_dgm.errors import TimeLimitError, TrainingError
from sbi_dgm.estimators.base import Conditional, Estimator
from sbi_dgm.files import write_text
from sbi_dgm.optimiser import AdamW, flattened
from sbi_dgm.options import Options
from sbi_dgm.progress import Bar
from sbi_dgm.seeds import lending, torch_generator

ORDER, NOISE, VALIDATION, DROPOUT = 1, 2, 3, 4  # streams of random numbers, beside 0 for initial weights
CHECKPOINT_SECONDS = 15.0
HEAVY = 2**16  # numbers of x in a step, from which on it takes fewer rows
Log = Callable[[Mapping[str, Any]], None]


class Training(Options):
    """How long and how fast to train.

    Attributes:
        batch_size: rows of a step; None is a sixteenth of the training rows, but at least 32 and at most 512, where x
            has more than 128 numbers at most 65,536 of them, but 128 rows: there the cost of a step is that of its
            rows, and more steps go further.
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
        compile: fuse the operations of a step by `torch.compile`, which needs a C++ compiler and half a minute first
            (`docs/speed.md`: what it brings, and from how many steps on).

    """

    batch_size: int | None = Field(default=None, ge=1)
    learning_rate: float = Field(default=2e-3, gt=0, allow_inf_nan=False)
    warmup: int = Field(default=100, ge=1)
    round: int | None = Field(default=None, ge=1)
    patience: int = Field(default=20, ge=1)
    decay: float = Field(default=0.5, ge=0, allow_inf_nan=False)
    ema: float = Field(default=0.998, ge=0, lt=1)
    clip: float = Field(default=5.0, gt=0)
    weight_decay: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    max_rounds: int = Field(default=2000, ge=1)
    compile: bool = False

    def batch(self, rows: int, numbers: int = 1) -> int:
        """Rows of a step, with `rows` of so many `numbers` of x to train on.

        >>> Training().batch(4000), Training().batch(20_000), Training().batch(20_000, numbers=4096)
        (250, 512, 128)
        """
        most = min(max(HEAVY // numbers, 128), 512)
        return self.batch_size or min(max(rows // 16, 32), most)


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
        self.losses = torch.compile(network) if training.compile else network
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

    def train(self, progress: bool, *, limit: float = math.inf, log: Log | None = None) -> None:
        """Train to the end; afterwards `averaged` holds the best averaged weights.

        Args:
            progress: show one line with rate, losses and time left.
            limit: seconds for this call.
            log: gets each row of the history as it comes.

        Raises:
            TimeLimitError: the next round might exceed the limit; a checkpoint was written.

        """
        began = saved = time.monotonic()
        earlier, longest = self.at.seconds, 0.0
        with Bar(desc="training", unit="step", initial=self.at.step, disable=not progress) as bar:
            while self.at.phase != "done":
                start = time.monotonic()
                if start - began + longest > limit:
                    self._stop(limit)
                step, loss = self.at.step, self._round(bar)
                steps, validation = self.at.step - step, self.validate()
                now = time.monotonic()
                self.at.seconds, longest = earlier + now - began, max(longest, now - start)
                self._note(loss, validation, log)
                self._decide(validation)
                bar.set_postfix_str(self._status(loss, validation, (now - start) / steps))
                if self.folder is not None and (self.at.phase == "done" or now - saved > CHECKPOINT_SECONDS):
                    self.save(self.folder)
                    saved = now
        self.averaged.load_state_dict(self.best["averaged"])
        self.averaged = copy.deepcopy(self.averaged)  # views no more: sums depend, to the bit, on how memory is aligned
        concern = self.averaged.estimator.concern(self._figures())
        if concern:
            warnings.warn(concern, stacklevel=2)

    def _stop(self, limit: float) -> NoReturn:
        if self.folder is not None and self.at.step:
            self.save(self.folder)
        raise TimeLimitError(
            f"stopped after {Bar.format_interval(limit)} at step {self.at.step}, best validation loss "
            f"{self.at.best_loss:.3f}: resume=True (--resume) goes on."
        )

    def _status(self, loss: float, validation: float, each: float) -> str:
        """The status line, for steps that take `each` seconds."""
        left = Bar.format_interval(each * self._left())
        return (
            f"loss {loss:.3f}, validation {validation:.3f}, best {self.at.best_loss:.3f}, {self.at.phase}, "
            f"{'at least ' if self.at.phase == 'plateau' else ''}{left} left"
        )

    def _left(self) -> int:
        """Steps to the end, if nothing improves any more."""
        if self.at.phase != "plateau":
            return max(0, self.at.decay_to - self.at.step)
        stall = self.at.best_step + self.training.patience * self.round - self.at.step
        return stall + math.ceil(self.training.decay * self.at.best_step)

    def _round(self, bar: "Bar") -> float:
        """One round of steps; the mean training loss."""
        last = self.at.step + self.round
        if self.at.phase == "decay":
            last = min(last, self.at.decay_to)
        device, first = self.held_out.z.device, self.at.step
        total, generator = torch.zeros((), device=device), torch_generator(self.seed, NOISE, first, device=device)
        self.network.train()
        with lending(self.seed, DROPOUT, first, device=device):
            while self.at.step < last:
                total += self._step(generator)
                bar.update()
        mean = float(total) / (last - first)
        if not math.isfinite(mean):
            raise TrainingError(
                f"the training loss is {mean} between steps {first} and {last}: lower training.learning_rate "
                f"(now {self.training.learning_rate:g}), or look for outliers in x."
            )
        return mean

    def _step(self, generator: torch.Generator) -> torch.Tensor:
        batch = self.batches[self.at.step]
        losses = self.losses(batch.z, batch.x, progress=self._share(), generator=generator)
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

    def _note(self, loss: float, validation: float, log: Log | None) -> None:
        row = {
            "step": self.at.step,
            "phase": self.at.phase,
            "loss": loss,
            "validation": validation,
            "learning_rate": self.optimiser.rate,
            "seconds": round(self.at.seconds, 2),
        } | self._figures()
        self.at.history.append(row)
        if self.folder is not None:
            write_text(self.folder / "history.csv", _csv(self.at.history))
        if log is not None:
            log(row)

    @torch.no_grad()
    def _figures(self) -> dict[str, float]:
        """What the averaged estimator says of the validation rows, of so many as a network takes at once."""
        estimator = self.averaged.estimator
        if type(estimator).monitor is Estimator.monitor:
            return {}
        rows = next(iter(self.held_out.pieces()))
        return estimator.eval().monitor(rows.z, self.averaged.summary(rows.x))

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


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
