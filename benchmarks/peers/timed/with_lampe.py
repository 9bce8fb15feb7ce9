"""lampe's side: `NPE`, `NPELoss`, `GDStep`, `JointDataset`, put together as in its tutorials, with zuko's flows."""

import time
from copy import deepcopy
from itertools import islice
from math import inf
from typing import Any

import numpy as np
import torch
from lampe.data import JointDataset, JointLoader
from lampe.diagnostics import expected_coverage_mc
from lampe.inference import NPE, NPELoss
from lampe.utils import GDStep
from torch import Tensor
from zuko.distributions import BoxUniform
from zuko.flows import NSF

from timed.problem import BATCH, BINS, BLOCKS, DIMENSION, HIDDEN, HIGH, LOW, TRAIN, TRANSFORMS, Problem, slcp
from timed.side import PIECE, Stamps, pairs, sizes

RATE, CLIP, PATIENCE = 1e-3, 1.0, 20  # of lampe's tutorial, but for the patience, which is sbi's
FEW, PROPOSED = 20, 10_000  # pairs whose density is normalised, by so many draws each
ROUNDS = 1000  # of drawing again what fell outside the prior


class Lampe:
    """NPE with zuko's neural spline flow in two passes, which is coupling.

    Args:
        problem: the rows.

    """

    differs = (
        "coupling by masked networks that give the splines of all parameters; no mixing between transforms but their"
        " order; splines on |z| <= 5, the identity outside; ReLU; AdamW at 1e-3, the end after 20 epochs without gain"
        " (a loop of the tutorials' parts); draws outside the prior drawn again, densities normalised by 10,000 draws"
        f" an observation (of pairs only {FEW} are done), since lampe does neither; its only calibration test is"
        " that of regions"
    )
    packages = ("lampe", "zuko", "torch")

    def __init__(self, problem: Problem) -> None:
        parts = (problem.train, problem.validation, problem.test)
        rows = [tuple(torch.as_tensor(a).float() for a in part) for part in parts]
        self.shift, self.scale = zip(*((a.mean(0), a.std(0)) for a in rows[0]), strict=True)
        self.train_rows, self.held_out, self.test = (self._standard(*part) for part in rows)
        self.estimator: Any = None

    def _standard(self, *pair: Tensor) -> tuple[Tensor, ...]:
        return tuple((a - m) / s for a, m, s in zip(pair, self.shift, self.scale, strict=True))

    def _loop(self, epochs: int | None, stamps: Stamps) -> list[tuple[float, float]]:
        started, shape = time.perf_counter(), {"hidden_features": [HIDDEN] * BLOCKS, "residual": True, "passes": 2}
        estimator = NPE(DIMENSION, 8, build=NSF, transforms=TRANSFORMS, bins=BINS, **shape)
        loss, step = NPELoss(estimator), GDStep(torch.optim.AdamW(estimator.parameters(), lr=RATE), clip=CLIP)
        data = JointDataset(*self.train_rows, batch_size=BATCH, shuffle=True)
        trace, best, stalled, weights = [], inf, 0, estimator.state_dict()
        in_theta = float(self.scale[0].log().sum())
        while stalled < PATIENCE and len(trace) < (epochs or inf):
            for theta, x in data:
                step(loss(theta, x))
                stamps.step(time.perf_counter())
            with torch.no_grad():
                now = float(loss(*self.held_out)) + in_theta
            trace.append((time.perf_counter() - started, now))
            stalled += 1
            if now < best:
                best, stalled, weights = now, 0, deepcopy(estimator.state_dict())
        estimator.load_state_dict(weights)
        self.estimator = estimator.eval()
        return trace

    def steps(self, epochs: int) -> dict[str, float]:
        """Timed in the loop."""
        stamps = Stamps(TRAIN // BATCH)
        self._loop(epochs + 1, stamps)
        return stamps.seconds()

    def train(self, epochs: int | None) -> list[tuple[float, float]]:
        """Until 20 epochs brought nothing better."""
        return self._loop(epochs, Stamps(TRAIN // BATCH))

    def network(self) -> dict[str, int]:
        """Of all of it; masked weights count, since they are multiplied."""
        return sizes([p.shape for p in self.estimator.parameters()])

    @torch.no_grad()
    def _drawn(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A draw at each x (N, L), and whether it lies inside the prior."""
        z = torch.cat([self.estimator.flow(piece).sample() for piece in x.split(PIECE)])
        theta = self.shift[0] + self.scale[0] * z
        return theta, ((theta >= LOW) & (theta <= HIGH)).all(-1)

    def sample(self, observations: int, draws: int) -> None:
        """All at once, then again those that fell outside."""
        x = self.test[1][:observations].repeat_interleave(draws, 0)
        theta, pending = torch.empty(len(x), DIMENSION), torch.arange(len(x))
        for _ in range(ROUNDS):
            found, inside = self._drawn(x[pending])
            theta[pending[inside]], pending = found[inside], pending[~inside]
            if not len(pending):
                return
        raise RuntimeError(f"{len(pending)} of {len(x)} draws lie outside the prior after {ROUNDS} rounds.")

    @torch.no_grad()
    def log_prob(self, observations: int, each: int) -> int:
        """`NPE`, and the share of draws inside the prior."""
        count = 1 if observations == 1 else min(observations, FEW)
        theta, x = pairs(*self.test, count, each)  # type: ignore[arg-type]
        log_q = self.estimator(theta, x[:, None])  # type: ignore[index]
        inside = [self._drawn(row.expand(PROPOSED, -1))[1].double().mean() for row in x]  # type: ignore[attr-defined]
        return (log_q - self.scale[0].log().sum() - torch.stack(inside)[:, None].log()).numel()

    def sbc(self, observations: int, draws: int) -> None:
        """`expected_coverage_mc`: the ranks of ln q, whose draws are not held against the prior."""
        rows = zip(*(a[:observations] for a in self.test), strict=True)
        expected_coverage_mc(self.estimator.flow, rows, n=draws)

    def simulate(self, rows: int) -> None:
        """`JointLoader`, 1,000 rows at a time."""
        rng, prior = np.random.default_rng(0), BoxUniform(torch.full((DIMENSION,), LOW), torch.full((DIMENSION,), HIGH))
        loader = JointLoader(prior, lambda theta: slcp(theta, rng), batch_size=1000, vectorized=True, numpy=True)
        for _ in islice(loader, -(-rows // 1000)):
            pass


def made(problem: Problem, **_: Any) -> Lampe:
    """The side."""
    return Lampe(problem)
