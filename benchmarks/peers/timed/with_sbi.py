"""sbi's side: `NPE.train`, `DirectPosterior`, `run_sbc`, `simulate_for_sbi`, as its guides call them."""

import time
from typing import Any

import numpy as np
import torch
from sbi.diagnostics import run_sbc
from sbi.inference import NPE, simulate_for_sbi
from sbi.neural_nets import posterior_nn
from sbi.utils import BoxUniform
from torch.optim.optimizer import register_optimizer_step_post_hook

from timed.problem import BATCH, BINS, DIMENSION, HIDDEN, HIGH, LOW, TRAIN, TRANSFORMS, Problem, slcp
from timed.side import Stamps, pairs, sizes

FEW = 20  # pairs whose density is normalised: each costs 10,000 draws
TOGETHER = 10  # of them at a time: 100,000 draws, which is also sbi's own limit for `sample_batched`
STOPS_AFTER = 20  # epochs, sbi's default


class FixedRows(NPE):
    """sbi's NPE, which validates on the last rows in place of random ones."""

    def get_dataloaders(self, starting_round: int, size: int, fraction: float, _: bool, **options: Any) -> Any:
        """The indices that sbi would draw are given."""
        rows = torch.arange(len(self.get_simulations()[0]))
        self.train_indices, self.val_indices = rows[:TRAIN], rows[TRAIN:]
        return super().get_dataloaders(starting_round, size, fraction, True, **options)


class Sbi:
    """NPE with `posterior_nn("nsf")`.

    Args:
        problem: the rows.

    """

    differs = (
        "splines on |z| <= 3, the identity outside; the context enters each residual block too, by a gate; ReLU; Adam"
        " at 5e-4, the end after 20 epochs without gain; draws outside the prior rejected, densities normalised by"
        f" 10,000 draws an observation (of pairs only {FEW} are done)"
    )
    packages = ("sbi", "torch", "nflows")

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.prior = BoxUniform(torch.full((DIMENSION,), LOW), torch.full((DIMENSION,), HIGH))
        self.theta, self.x = (torch.as_tensor(a).float() for a in problem.test)
        self.posterior: Any = None

    def _trained(self, epochs: int | None) -> FixedRows:
        network = posterior_nn("nsf", hidden_features=HIDDEN, num_transforms=TRANSFORMS, num_bins=BINS)
        trainer = FixedRows(self.prior, density_estimator=network, show_progress_bars=False)
        trainer.append_simulations(*(torch.as_tensor(a).float() for a in self.problem.before_test()))
        limit = {} if epochs is None else {"max_num_epochs": epochs - 1}  # sbi trains for one more than it is told
        trainer.train(training_batch_size=BATCH, stop_after_epochs=STOPS_AFTER, **limit)
        self.posterior = trainer.build_posterior()
        return trainer

    def steps(self, epochs: int) -> dict[str, float]:
        """A step ends with the optimiser's; an epoch's seconds are those that sbi keeps, after the first."""
        stamps = Stamps(TRAIN // BATCH)
        hook = register_optimizer_step_post_hook(lambda *_: stamps.step(time.perf_counter()))
        trainer = self._trained(epochs + 1)
        hook.remove()
        return stamps.seconds() | {"epoch": float(np.mean(trainer.summary["epoch_durations_sec"][1:]))}

    def train(self, epochs: int | None) -> list[tuple[float, float]]:
        """sbi's losses are of theta, but count what leaks out of the prior."""
        started = time.perf_counter()
        summary = self._trained(epochs).summary
        lasted = np.cumsum(summary["epoch_durations_sec"])
        before = time.perf_counter() - started - lasted[-1]
        return [(float(before + s), loss) for s, loss in zip(lasted, summary["validation_loss"], strict=True)]

    def network(self) -> dict[str, int]:
        """Of all of it."""
        return sizes([p.shape for p in self.posterior.posterior_estimator.parameters()])

    def sample(self, observations: int, draws: int) -> None:
        """`sample` for one observation, `sample_batched` for more."""
        options = {"show_progress_bars": False}
        if observations == 1:
            self.posterior.sample((draws,), x=self.x[:1], **options)
        else:
            self.posterior.sample_batched((draws,), x=self.x[:observations], **options)

    def log_prob(self, observations: int, each: int) -> int:
        """`log_prob` for one observation, `log_prob_batched` for more; both estimate the leak anew."""
        if observations == 1:
            return self.posterior.log_prob(self.theta[:each], x=self.x[:1]).numel()
        theta, x = pairs(self.theta[: min(observations, FEW)], self.x, min(observations, FEW), each)  # type: ignore[arg-type]
        parts = zip(theta.split(TOGETHER), x.split(TOGETHER), strict=True)  # type: ignore[attr-defined]
        return sum(self.posterior.log_prob_batched(t.transpose(0, 1), x=c).numel() for t, c in parts)

    def sbc(self, observations: int, draws: int) -> None:
        """`run_sbc`: ranks of the marginals."""
        theta, x = self.theta[:observations], self.x[:observations]
        run_sbc(theta, x, self.posterior, num_posterior_samples=draws, show_progress_bar=False)

    def simulate(self, rows: int) -> None:
        """`simulate_for_sbi`, 1,000 rows at a time."""
        rng = np.random.default_rng(0)

        def simulator(theta: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(slcp(theta.double().numpy(), rng)).float()

        simulate_for_sbi(simulator, self.prior, rows, simulation_batch_size=1000, show_progress_bar=False)


def made(problem: Problem, **_: Any) -> Sbi:
    """The side."""
    return Sbi(problem)
