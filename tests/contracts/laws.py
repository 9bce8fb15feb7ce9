"""The laws of the contract `sbi_dgm.estimators.base.Estimator`: each raises `AssertionError` where it is broken.

Every law holds for any weights, so that an estimator with random ones (`wild`) can be judged without training.
Tolerances of sums over draws are four standard errors; all else is rounding in float64, unless said otherwise.
"""

import copy
import math
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import ks_2samp
from torch import Tensor

from sbi_dgm.estimators.base import Estimator, Family, Space
from sbi_dgm.seeds import lending

ROUNDING = 1e-7  # of sums of order ten in float64, through up to thirty autoregressive passes


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def wild(options: Family, size: int = 2, context: int = 3, *, seed: int = 0, scale: float = 0.15) -> Estimator:
    """An estimator in float64 with every weight moved by `scale` times a normal number: far from its start."""
    with lending(seed):
        estimator = options.build(Space((size,)), context).double()
        with torch.no_grad():
            for weight in estimator.parameters():
                weight += scale * torch.randn_like(weight)
    return estimator.eval()


class Grid(NamedTuple):
    """Ln q on the midpoints of a rectangle that holds all draws with room to spare."""

    log_prob: Tensor
    cell: float

    def integral(self, power: float = 1.0) -> float:
        """Of q to a power."""
        return float((power * self.log_prob).exp().sum() * self.cell)

    def entropy(self) -> float:
        return float(-(self.log_prob.exp() * self.log_prob).sum() * self.cell)


@torch.no_grad()
def on_grid(estimator: Estimator, context: Tensor, points: int = 400) -> Grid:
    """Ln q(z | context (1, C)) on points x points places."""
    draws = estimator.sample(20_000, context, generator(11))[0]
    low, high = draws.min(0).values, draws.max(0).values
    low, high = low - 0.3 * (high - low), high + 0.3 * (high - low)
    middle = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    places = torch.cartesian_prod(*(low + (high - low) * middle[:, None]).T)
    return Grid(estimator.log_prob(places[None], context)[0], float(((high - low) / points).prod()))


def integrates_to_one(grid: Grid) -> None:
    """Within 1e-3: the midpoint rule's error on densities of these tests, found by halving the cells."""
    assert abs(grid.integral() - 1) < 1e-3, f"the density integrates to {grid.integral():.5f}"


@torch.no_grad()
def weights_of_a_narrower_density(estimator: Estimator, context: Tensor, grid: Grid, n: int = 20_000) -> None:
    """For r = q^2 / integral of q^2, which is narrower than q, the mean of r / q over draws of q is 1."""
    log_prob = estimator.sample_and_log_prob(n, context, generator(12))[1][0]
    weight = log_prob.exp() / grid.integral(power=2)
    error = 4 * float(weight.std()) / math.sqrt(n)
    assert abs(float(weight.mean()) - 1) < error, f"mean of r / q is {float(weight.mean()):.4f} +- {error:.4f}"


@torch.no_grad()
def entropy_of_draws(estimator: Estimator, context: Tensor, grid: Grid, n: int = 20_000) -> None:
    """The mean of ln q over draws is minus the entropy of q on the grid."""
    log_prob = estimator.sample_and_log_prob(n, context, generator(13))[1][0]
    error = 4 * float(log_prob.std()) / math.sqrt(n) + 2e-3  # and the grid's
    assert abs(float(log_prob.mean()) + grid.entropy()) < error, f"{float(log_prob.mean())} and {-grid.entropy()}"


@torch.no_grad()
def one_map_for_draws_and_density(estimator: Estimator, context: Tensor, tolerance: float = ROUNDING) -> None:
    """`sample`, `sample_and_log_prob` and `log_prob` agree."""
    z, log_prob = estimator.sample_and_log_prob(50, context, generator(14))
    assert torch.equal(z, estimator.sample(50, context, generator(14)))
    worst = float((estimator.log_prob(z, context) - log_prob).abs().max())
    assert worst < tolerance, f"ln q of draws differs from ln q by {worst}"


@torch.no_grad()
def stacks_are_rows(estimator: Estimator, context: Tensor) -> None:
    """Ln q of (B, S, D) is ln q of each (B, D)."""
    z = normal(len(context), 4, estimator.space.size, seed=15)
    columns = [estimator.log_prob(z[:, i], context) for i in range(4)]
    assert torch.allclose(estimator.log_prob(z, context), torch.stack(columns, 1), atol=ROUNDING, rtol=0)


def loss_of_each_row(estimator: Estimator, context: Tensor) -> None:
    """The loss is (B,) and permutes with its rows (families with a stochastic loss: see `rows_are_alone`)."""
    z, order = normal(len(context), estimator.space.size, seed=16), torch.arange(len(context)).roll(1)
    loss = estimator(z, context)
    assert loss.shape == (len(context),)
    assert torch.allclose(estimator(z[order], context[order]), loss[order], atol=ROUNDING, rtol=0)


def rows_are_alone(estimator: Estimator, context: Tensor) -> None:
    """Another first row leaves losses, densities and draws of all others as they are, in training and after."""
    z = normal(len(context), estimator.space.size, seed=17)
    other_z, other_context = z.clone(), context.clone()
    other_z[0], other_context[0] = 2 * z[0] + 1, 2 * context[0] - 1
    for mode in (True, False):
        estimator.train(mode)
        results = [
            (
                estimator(a, c, generator=generator(18)),
                estimator.log_prob(a, c, generator(18)),
                estimator.sample(5, c, generator(18)),
            )
            for a, c in ((z, context), (other_z, other_context))
        ]
        for before, after in zip(*results, strict=True):
            assert not torch.allclose(before[0], after[0]), "the changed row itself shows no change"
            worst = float((before - after)[1:].detach().abs().max())
            assert worst < ROUNDING, f"a row sees another: {worst}"
    estimator.eval()


def gradients_reach_every_weight(estimator: Estimator, context: Tensor) -> None:
    estimator.zero_grad()
    estimator(normal(len(context), estimator.space.size, seed=19), context, generator=generator(19)).mean().backward()
    unreached = [n for n, w in estimator.named_parameters() if w.grad is None or not w.grad.abs().max() > 0]
    assert not unreached, f"no gradient: {unreached}"


@torch.no_grad()
def draws_are_a_function_of_the_generator(estimator: Estimator, context: Tensor) -> None:
    """The same generator gives the same draws, another one others, and global random state stays as it was."""
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = (estimator.sample(20, context, generator(seed)) for seed in (20, 20, 21))
    assert torch.equal(first, again)
    assert float((first - other).abs().min()) > 0
    assert torch.equal(before, torch.get_rng_state()), "torch's global generator moved"
    assert (numpy_before == np.random.get_state()[1]).all(), "NumPy's global generator moved"  # noqa: NPY002


@torch.no_grad()
def draws_come_in_their_place(estimator: Estimator, context: Tensor) -> None:
    """Draws of a stack of contexts have each row's own distribution: ln q is higher at their own context.

    The mean of ln q(z | own) - ln q(z | other) over draws is a Kullback-Leibler divergence: above 4 standard errors.
    """
    z, own = estimator.sample_and_log_prob(500, context, generator(22))
    gain = own - estimator.log_prob(z, context.roll(1, dims=0))
    assert (gain.mean(1) > 4 * gain.std(1) / math.sqrt(500)).all(), f"{gain.mean(1)}"


@torch.no_grad()
def context_moves_every_coordinate(estimator: Estimator, context: Tensor, n: int = 4000) -> None:
    """Each coordinate's marginal differs between the first context and another: Kolmogorov and Smirnov's p < 1e-6."""
    first, *others = (estimator.sample(n, row[None], generator(23 + i))[0].numpy() for i, row in enumerate(context))
    for i in range(estimator.space.size):
        p_value = min(float(ks_2samp(first[:, i], other[:, i]).pvalue) for other in others)
        assert p_value < 1e-6, f"coordinate {i}: p = {p_value}"


@torch.no_grad()
def weights_are_all_there_is(estimator: Estimator, twin: Estimator, context: Tensor) -> None:
    """`twin`, of other weights, becomes `estimator` by its state_dict."""
    z = normal(len(context), estimator.space.size, seed=25)
    assert not torch.allclose(estimator.log_prob(z, context), twin.log_prob(z, context))
    twin.load_state_dict(copy.deepcopy(estimator.state_dict()))
    assert torch.equal(estimator.log_prob(z, context), twin.log_prob(z, context))
    assert torch.equal(estimator.sample(5, context, generator(26)), twin.sample(5, context, generator(26)))


@torch.no_grad()
def any_number_of_rows_and_draws(estimator: Estimator, context: int) -> None:
    """B = 0, 1, 3 rows and n = 0, 1, 4 draws give the shapes of the contract, finite, in the context's dtype."""
    for rows in (0, 1, 3):
        c = normal(rows, context, seed=27)
        assert estimator(normal(rows, estimator.space.size), c, generator=generator()).shape == (rows,)
        assert estimator.log_prob(normal(rows, estimator.space.size), c).shape == (rows,)
        for n in (0, 1, 4):
            z, log_prob = estimator.sample_and_log_prob(n, c, generator(28))
            assert z.shape == (rows, n, estimator.space.size)
            assert z.dtype == torch.float64
            assert log_prob.shape == estimator.log_prob(z, c).shape == (rows, n)
            assert torch.isfinite(z).all()
            assert torch.isfinite(log_prob).all()


@torch.no_grad()
def single_precision_is_enough(estimator: Estimator, context: Tensor) -> None:
    """In float32 (how networks run) ln q is that of float64 within 1e-3 at z of order one."""
    z = normal(len(context), estimator.space.size, seed=29)
    single = copy.deepcopy(estimator).float().log_prob(z.float(), context.float())
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), estimator.log_prob(z, context), atol=1e-3, rtol=0)


class Curved:
    """A 2-D banana whose place, bend and width depend on one number c ~ N(0, 1)."""

    @staticmethod
    def draw(n: int, seed: int) -> tuple[Tensor, Tensor]:
        noise = torch.randn(n, 3, generator=generator(seed))
        c, first = noise[:, 0], 0.5 * noise[:, 0] + 0.6 * noise[:, 1]
        return torch.stack([first, 0.7 * (first.square() - 1) + 0.4 * (0.3 * c).exp() * noise[:, 2]], 1), c[:, None]

    @staticmethod
    def log_prob(z: Tensor, context: Tensor) -> Tensor:
        c, width = context[:, 0], 0.4 * (0.3 * context[:, 0]).exp()
        u = torch.stack([(z[:, 0] - 0.5 * c) / 0.6, (z[:, 1] - 0.7 * (z[:, 0].square() - 1)) / width], 1)
        return -0.5 * u.square().sum(1) - math.log(2 * math.pi * 0.6) - width.log()


def train(estimator: Estimator, steps: int, rate: float = 5e-3) -> Estimator:
    """Fresh draws of `Curved` at every step, the rate falling to zero."""
    optimiser = torch.optim.Adam(estimator.parameters(), lr=rate)
    fall = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / steps)
    for step in range(steps):
        optimiser.zero_grad()
        estimator(*Curved.draw(256, 1000 + step), generator=generator(step)).mean().backward()
        torch.nn.utils.clip_grad_norm_(estimator.parameters(), 5.0)
        optimiser.step()
        fall.step()
    return estimator.eval()


@torch.no_grad()
def has_learned(estimator: Estimator, bound: float, n: int = 4000) -> None:
    """KL(truth, q) <= bound nats on fresh draws, not below zero by more than 4 standard errors (no q beats the truth),
    and 0.3 nats or more worse where contexts are shuffled."""
    z, context = Curved.draw(n, 1)
    excess = Curved.log_prob(z, context) - estimator.log_prob(z, context)
    divergence, error = float(excess.mean()), 4 * float(excess.std()) / math.sqrt(n)
    assert -error <= divergence <= bound, f"KL {divergence:.4f} +- {error:.4f} nats"
    shuffled = estimator.log_prob(z, context.roll(1, dims=0)).mean()
    assert float(estimator.log_prob(z, context).mean() - shuffled) > 0.3, "the context is hardly used"
