"""One short training of every family: what it has learned, in nats."""

import math

import laws
import torch
from torch import Tensor

from sbi_dgm.estimators.base import Estimator


class Curved:
    """A 2-D banana whose place, bend and width depend on one number c ~ N(0, 1)."""

    @staticmethod
    def draw(n: int, seed: int) -> tuple[Tensor, Tensor]:
        noise = torch.randn(n, 3, generator=laws.generator(seed))
        c, first = noise[:, 0], 0.5 * noise[:, 0] + 0.6 * noise[:, 1]
        return torch.stack([first, 0.7 * (first.square() - 1) + 0.4 * (0.3 * c).exp() * noise[:, 2]], 1), c[:, None]

    @staticmethod
    def log_prob(z: Tensor, context: Tensor) -> Tensor:
        c, width = context[:, 0], 0.4 * (0.3 * context[:, 0]).exp()
        u = torch.stack([(z[:, 0] - 0.5 * c) / 0.6, (z[:, 1] - 0.7 * (z[:, 0].square() - 1)) / width], 1)
        return -0.5 * u.square().sum(1) - math.log(2 * math.pi * 0.6) - width.log()


def train(estimator: Estimator) -> Estimator:
    """Fresh draws of `Curved` at every step, the rate falling to zero; noisy losses get more steps, and larger ones."""
    steps, rate = (600, 2e-2) if laws.solves(estimator) else (300, 5e-3)
    optimiser = torch.optim.Adam(estimator.parameters(), lr=rate)
    fall = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    for step in range(steps):
        optimiser.zero_grad()
        estimator(*Curved.draw(256, 1000 + step), generator=laws.generator(step)).mean().backward()
        torch.nn.utils.clip_grad_norm_(estimator.parameters(), 5.0)
        optimiser.step()
        fall.step()
    return estimator.eval()


@torch.no_grad()
def has_learned(estimator: Estimator, bound: float) -> None:
    """KL(truth, q) <= bound nats on fresh draws, not below zero by more than 4 standard errors (no q beats the truth),
    and 0.3 nats or more worse where contexts are shuffled."""
    n = 1000 if laws.solves(estimator) else 4000
    z, context = Curved.draw(n, 1)
    excess = Curved.log_prob(z, context) - estimator.log_prob(z, context)
    divergence, error = float(excess.mean()), 4 * float(excess.std()) / math.sqrt(n)
    assert -error <= divergence <= bound, f"KL {divergence:.4f} +- {error:.4f} nats"
    shuffled = Curved.log_prob(z, context) - estimator.log_prob(z, context.roll(1, dims=0))
    assert float(shuffled.mean()) - divergence > 0.3, "the context is hardly used"
