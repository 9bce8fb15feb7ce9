"""Neural posterior estimation by lampe 0.9 (https://lampe.readthedocs.io) with zuko's flows, as a method.

    sbi-dgm benchmark --tasks two_moons --estimators flow,lampe_npe:npe --budgets 1000 -o results

run in this folder. lampe gives the parts of a training; they are put together as in its tutorials.
"""

from copy import deepcopy
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
import torch
from lampe.data import JointDataset
from lampe.inference import NPE, NPELoss
from lampe.utils import GDStep
from torch import Tensor
from torch_side import flat, one, seeded
from zuko.flows import NSF

from sbi_dgm import Prior

BATCH, RATE, CLIP, NETWORK = 256, 1e-3, 1.0, {"transforms": 3, "hidden_features": [64] * 3}  # lampe's tutorial on NPE
HELD_OUT, PATIENCE = 0.1, 20  # sbi's: the tutorial draws fresh simulations, and trains for a fixed time
PROPOSED, ROUNDS = 10_000, 1000  # draws at a time, and times, until draws outside the prior are given up


def npe(theta: np.ndarray, x: Any, *, prior: Prior, seed: int) -> "LampePosterior":
    """lampe's `NPE` with a neural spline flow of zuko.

    Three autoregressive transforms of 8 bins by networks of three layers of 64; AdamW with rate 1e-3 on batches of
    256, gradients clipped at norm 1; theta and x standardised, as zuko asks for splines; a tenth of the rows held out,
    and the best weights on them kept where 20 epochs brought nothing better.
    """
    rows, seen = torch.as_tensor(theta).float(), flat(x)
    scales = Scale.of(rows), Scale.of(seen)
    rows, seen = scales[0].standard(rows), scales[1].standard(seen)
    with seeded(seed):
        held, kept = torch.randperm(len(rows)).tensor_split([max(1, round(HELD_OUT * len(rows)))])
        data = JointDataset(rows[kept], seen[kept], batch_size=BATCH, shuffle=True)
        return LampePosterior(_trained(data, (rows[held], seen[held])), scales, prior)


def _trained(data: JointDataset, held: tuple[Tensor, Tensor]) -> NPE:
    estimator = NPE(data.theta.shape[1], data.x.shape[1], build=NSF, **NETWORK)
    loss, step = NPELoss(estimator), GDStep(torch.optim.AdamW(estimator.parameters(), lr=RATE), clip=CLIP)
    best, stalled, weights = inf, 0, deepcopy(estimator.state_dict())
    while stalled < PATIENCE:
        for theta, x in data:
            step(loss(theta, x))
        with torch.no_grad():
            now = float(loss(*held))
        stalled += 1
        if now < best:
            best, stalled, weights = now, 0, deepcopy(estimator.state_dict())
    estimator.load_state_dict(weights)
    return estimator.eval()


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation (D,) of training rows; 1 where nothing varies."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> "Scale":
        """That of rows (N, D)."""
        deviation = rows.std(0)
        return cls(rows.mean(0), torch.where(deviation > 0, deviation, 1.0))

    def standard(self, rows: Tensor) -> Tensor:
        """(..., D) -> (..., D) of mean 0 and deviation 1."""
        return (rows - self.mean) / self.deviation


class LampePosterior:
    """A flow cut to the prior's support and normalised there.

    Args:
        estimator: lampe's `NPE`, trained on standardised rows.
        scales: of theta and of x.
        prior: draws outside are rejected.

    """

    def __init__(self, estimator: NPE, scales: tuple[Scale, Scale], prior: Prior) -> None:
        self.estimator, self.theta, self.x, self.prior = estimator, *scales, prior

    @torch.no_grad()
    def sample(self, n: int, x: Any, seed: int = 0) -> np.ndarray:
        """Draws (n, D) inside the prior."""
        kept: list[np.ndarray] = []
        with seeded(seed):
            for _ in range(ROUNDS):
                kept.append(self._inside(self._flow(x), PROPOSED))
                if sum(map(len, kept)) >= n:
                    return np.concatenate(kept)[:n]
        raise RuntimeError(f"{ROUNDS * PROPOSED} draws of the flow left only {sum(map(len, kept))} inside the prior.")

    @torch.no_grad()
    def log_prob(self, theta: np.ndarray, x: Any) -> np.ndarray:
        """ln q of theta (S, D), (S,), normalised within the prior by the share of draws that lie there."""
        flow = self._flow(x)
        with seeded(0):
            share = len(self._inside(flow, PROPOSED)) / PROPOSED
        log_q = flow.log_prob(self.theta.standard(torch.as_tensor(theta).float())) - self.theta.deviation.log().sum()
        return np.where(np.isfinite(self.prior.log_prob(theta)), log_q.double().numpy() - np.log(share), -np.inf)

    def _flow(self, x: Any) -> Any:
        return self.estimator.flow(self.x.standard(one(x))[0])

    def _inside(self, flow: Any, n: int) -> np.ndarray:
        draws = (self.theta.mean + self.theta.deviation * flow.sample((n,))).double().numpy()
        return draws[np.isfinite(self.prior.log_prob(draws))]
