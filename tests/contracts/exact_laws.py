"""Laws of equations whose field is known in closed form: draws, densities, losses and bounds against the truth.

Tolerances are four standard errors, beside an allowance for steps of finite length where a law names one.
"""

import math
from collections.abc import Callable

import laws
import torch
from scipy.stats import ks_2samp
from targets import Target, numerical_truth
from torch import Tensor

from sbi_dgm.estimators.base import Estimator
from sbi_dgm.estimators.continuous import Continuous

Draw = Callable[[int, Tensor, torch.Generator], Tensor]


@torch.no_grad()
def draws_follow(draw: Draw, target: Target, c: Tensor, n: int, allowance: float = 0.0) -> None:
    """Mean, covariance, projections and ln p of draws are those of the truth; widths within a share `allowance` more.

    Mean and covariance are judged in units in which the truth's are 0 and 1, with draws of all contexts together.
    """
    z, truth = draw(n, c, laws.generator(31)), target.sample(n, c, laws.generator(32))
    mean, covariance = target.moments(c)
    u = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), (z - mean[:, None]).mT, upper=False).mT
    u = u.flatten(0, 1)
    _within("mean", u, 0.0, allowance)
    products = (u[:, :, None] * u[:, None]).flatten(1)
    _within("covariance", products, torch.eye(target.size).flatten().to(u), 2 * allowance)
    for direction in laws.normal(4, target.size, seed=33):
        p_value = min(
            float(ks_2samp(a.numpy(), b.numpy()).pvalue) for a, b in zip(z @ direction, truth @ direction, strict=True)
        )
        assert p_value > 1e-4, f"a projection: p = {p_value}"
    said, expected = target.log_prob(z, c), target.log_prob(truth, c).mean(1, keepdim=True)
    _within("ln p", (said - expected).flatten()[:, None] / math.sqrt(2), 0.0, 2 * target.size * allowance)


def _within(name: str, numbers: Tensor, expected: Tensor | float, allowance: float) -> None:
    """The columns' means are as expected."""
    excess = (numbers.mean(0) - expected).abs() - 4 * numbers.std(0) / math.sqrt(len(numbers)) - allowance
    assert (excess <= 0).all(), f"{name}: off by {float(excess.max()):.4f} beyond its error"


def log_prob_is_true(estimator: Estimator, target: Target, z: Tensor, c: Tensor, bound: float = 0.02) -> None:
    """Within `bound` nats at each draw of the truth."""
    worst = float((estimator.log_prob(z, c) - target.log_prob(z, c)).abs().max())
    assert worst < bound, f"ln p is off by {worst:.4f}"


def draws_know_their_density(
    estimator: Estimator, target: Target, c: Tensor, bound: float = 0.02, n: int = 200
) -> None:
    """Of 99 % of draws within `bound` nats; the others lie on the ways that part two modes."""
    z, log_prob = estimator.sample_and_log_prob(n, c, laws.generator(34))
    off = float((log_prob - target.log_prob(z, c)).abs().flatten().quantile(0.99))
    assert off < bound, f"ln p of draws is off by {off:.4f}"


NUDGES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "constant": lambda y, _: torch.ones_like(y),
    "along y": lambda y, _: y,
    "in time": lambda y, s: y * torch.cos(5 * s)[..., None],
    "at much noise": lambda y, s: y * torch.exp(8 * s - 8)[..., None],
}


def nudged(estimator: Continuous, nudge: Callable[[Tensor, Tensor], Tensor], size: float) -> Callable:
    """The loss with `size` times `nudge` of a place and a time added to what the closed form says."""
    name, owner = ("field", estimator) if "field" in vars(estimator) else ("forward", estimator.network)
    right = getattr(owner, name)

    def loss(run: Estimator, *arguments: Tensor, generator: torch.Generator) -> Tensor:
        setattr(owner, name, lambda y, s, c: right(y, s, c) + size * nudge(y, s))
        try:
            return run(*arguments, generator=generator)
        finally:
            setattr(owner, name, right)

    return loss


@torch.no_grad()
def truth_minimises_the_loss(run: Estimator, estimator: Continuous, target: Target) -> None:
    """The mean loss is stationary at the closed form, whatever is added to it: E[dL / d size] = 0.

    The loss is quadratic, so that a difference of two sizes is the derivative.

    Args:
        run: whose loss is judged: the estimator, or a twin around it.

    """
    c = laws.normal(10_000, 1, seed=35)
    z = target.sample(1, c, laws.generator(36))[:, 0]
    run.train()
    for name, nudge in NUDGES.items():
        up, down = (nudged(estimator, nudge, h)(run, z, c, generator=laws.generator(37)) for h in (0.5, -0.5))
        slope = up - down
        error = 4 * float(slope.std()) / math.sqrt(len(slope))
        assert abs(float(slope.mean())) < error, f"{name}: the loss falls by {float(slope.mean()):.4f} +- {error:.4f}"
    run.eval()


def errors_are_estimated(
    run: Estimator, estimator: Continuous, target: Target, share: float, times: float = 1.0, n: int = 1000
) -> None:
    """`times` the estimated error holds the true one, against the equation solved without any, in a share of cases."""
    c = laws.normal(n, 1, seed=38)
    z = target.sample(1, c, laws.generator(39))[:, 0]
    log_prob, error = run.log_prob_and_error(z, c, laws.generator(40))
    off = (log_prob - numerical_truth(estimator, target, z, c)).abs()
    held = float((off <= times * error).double().mean())
    assert held >= share, f"{held:.3f} of errors are within {times:g} times their estimate"


@torch.no_grad()
def bound_rises_to_the_density(elbo: Callable[..., Tensor], target: Target) -> None:
    """`elbo(levels)` is not above ln p on average, and at four times the levels not half as far below it."""
    c = laws.normal(1000, 1, seed=41)
    z = target.sample(1, c, laws.generator(42))[:, 0]
    gaps = []
    for levels in (8, 32, 128):
        gap = target.log_prob(z, c) - elbo(levels)(z, c, laws.generator(43))
        error = 4 * float(gap.std()) / math.sqrt(len(gap))
        assert float(gap.mean()) > -error, f"{levels} levels: {float(gap.mean()):.3f} +- {error:.3f} above ln p"
        gaps.append(float(gap.mean()))
    assert gaps[1] < 0.5 * gaps[0], f"gaps {gaps}"
    assert gaps[2] < 0.5 * gaps[1], f"gaps {gaps}"
