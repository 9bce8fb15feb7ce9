"""sbi_dgm's side: `fit`, `Posterior.sample`, `Posterior.log_prob`, `calibrate`, `simulate`, as a user calls them."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sbi_dgm import Flow, Parameter, Posterior, Prior, Simulations, Training, Uniform, calibrate, fit, simulate
from timed.problem import BATCH, BINS, BLOCKS, DIMENSION, HIDDEN, HIGH, LOW, TRAIN, TRANSFORMS, Problem
from timed.side import pairs, sizes

FOREVER, EPOCH = 10**6, TRAIN // BATCH  # rounds; steps


class Ours:
    """One layout of the flow.

    Args:
        problem: the rows.
        layout: "coupling" or "autoregressive".
        compiled: whether steps are fused by `torch.compile`, whose time counts in whole trainings, not in steps.

    """

    packages = ("sbi_dgm", "torch", "nflows")

    def __init__(self, problem: Problem, layout: str, compiled: bool = False) -> None:
        self.problem, self.layout, self.compiled = problem, layout, compiled
        parts = (problem.train, problem.validation, problem.test)
        theta, x = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        prior = Prior([Parameter(f"theta_{i}", Uniform(LOW, HIGH)) for i in range(1, DIMENSION + 1)])
        split = np.repeat(np.arange(3), [len(part[0]) for part in parts])
        self.data = Simulations.from_arrays(theta, x, prior=prior, split=split)
        self.posterior: Posterior | None = None

    @property
    def differs(self) -> str:
        """What is not as in sbi."""
        masks = "autoregressive by masked weights, the library's default layout; " if "auto" in self.layout else ""
        fused = "steps compiled; " if self.compiled else ""
        return (
            f"{masks}{fused}theta in the prior's normal coordinates; splines on |z| <= 5 with learned slopes outside;"
            " SiLU; AdamW at 2e-3, averaged weights, the rate falls when they stall"
        )

    def steps(self, epochs: int) -> dict[str, float]:
        """A round is an epoch first, then as many; both end with a validation."""
        short, long = self._round(EPOCH, epochs + 1), self._round(epochs * EPOCH, 2)
        return {"step": max(0.0, (long - short) / ((epochs - 1) * EPOCH)), "epoch": short}

    def _round(self, steps: int, rounds: int) -> float:
        """Seconds of a round after the first."""
        training = Training(batch_size=BATCH, round=steps, max_rounds=rounds, patience=FOREVER, decay=0.0)
        seconds = self._fitted(training)[1]["seconds"].to_numpy()
        return float(seconds[-1] - seconds[0]) / (len(seconds) - 1)

    def _fitted(self, training: Training) -> tuple[Posterior, pd.DataFrame]:
        flow = Flow(layout=self.layout, transforms=TRANSFORMS, hidden=HIDDEN, blocks=BLOCKS, bins=BINS)  # type: ignore[arg-type]
        training = training.model_copy(update={"compile": self.compiled})
        self.posterior = fit(self.data, flow, training=training, out="run", overwrite=True, progress=False)
        return self.posterior, pd.read_csv(Path("run") / "history.csv")

    def train(self, epochs: int | None) -> list[tuple[float, float]]:
        """`fit` to its end; what it needs beside the loop counts as before it."""
        started = time.perf_counter()
        posterior, history = self._fitted(Training(batch_size=BATCH, max_rounds=epochs or 2000))
        before = time.perf_counter() - started - float(history["seconds"].iloc[-1])
        final = -posterior.log_prob(*self.problem.validation).mean()
        shift = final - posterior.record["best_validation_loss"]  # the mean of ln |dz/dtheta|, with its sign
        return [(before + s, loss + shift) for s, loss in zip(history["seconds"], history["validation"], strict=True)]

    @property
    def trained(self) -> Posterior:
        """The posterior of the last training."""
        if self.posterior is None:
            raise RuntimeError("train first.")
        return self.posterior

    def network(self) -> dict[str, int]:
        """Of the flow alone."""
        return sizes([p.shape for p in self.trained.network.estimator.parameters()])

    def sample(self, observations: int, draws: int) -> None:
        """One call."""
        x = self.problem.test[1]
        self.trained.sample(draws, x[0] if observations == 1 else x[:observations], seed=1)

    def log_prob(self, observations: int, each: int) -> int:
        """One call."""
        theta, x = pairs(*self.problem.test, observations, each)
        return int(np.size(self.trained.log_prob(theta, x)))

    def sbc(self, observations: int, draws: int) -> None:
        """`calibrate`, which judges highest-density regions too, for which it evaluates ln q of every draw."""
        calibrate(self.trained, self.data, draws=draws, max_rows=observations, progress=False)

    def simulate(self, rows: int) -> None:
        """`simulate`: a campaign, which writes a checksummed file."""
        simulate("slcp", rows, out="drawn.h5", overwrite=True, progress=False)


def made(problem: Problem, layout: str = "coupling", compiled: bool = False, **_: Any) -> Ours:
    """The side of one layout."""
    return Ours(problem, layout, compiled)
