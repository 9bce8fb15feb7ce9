"""The laws of the contract `sbi_dgm.estimators.base.Estimator`: each raises `AssertionError` where it is broken.

Every law holds for any weights, so that an estimator with random ones (`wild`) can be judged without training.
Tolerances of sums over draws are four standard errors; all else is rounding in float64, unless said otherwise.
Families whose density is an equation's (`density` "ode") solve it to a tolerance of 1e-3 a step where only rounding
is at stake, of 1e-4 for sums over many thousands of draws, and of 1e-5 where ln q itself is (`SOLVED`). Families with a
bound take 64, 128 and 512 draws of their encoder there. The bound's exponential is an estimate of q without bias, and
one over what is said of draws one of 1 / q: integrals and means of ratios are exact but for their standard errors.
"""

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import ks_2samp
from torch import Tensor

from sbi_dgm.errors import SolverError
from sbi_dgm.estimators.base import Estimator, Family, Space
from sbi_dgm.estimators.continuous import EXACT, Continuous
from sbi_dgm.estimators.vae import VAEEstimator
from sbi_dgm.seeds import lending

ROUNDING = 1e-7  # of sums of order ten in float64, through up to thirty autoregressive passes
SOLVED = 2e-2  # of ln q by wild networks at a tolerance of 1e-5 a step: twice the worst found


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def solves(estimator: Estimator) -> bool:
    return estimator.density == "ode"


def bounds(estimator: Estimator) -> bool:
    return estimator.density == "bound"


def wild(options: Family, size: int = 2, context: int = 3, *, seed: int = 2) -> Estimator:
    """An estimator in float64 with every weight moved by 0.15 times a normal number: far from its start."""
    with lending(seed):
        estimator = options.build(Space((size,)), context).double()
        with torch.no_grad():
            for weight in estimator.parameters():
                weight += 0.15 * torch.randn_like(weight)
            for module in estimator.modules():
                if isinstance(module, VAEEstimator):
                    widen(module)
    return solved_to(1e-3, estimator).eval()


def widen(vae: VAEEstimator) -> None:
    """Encoders less wild, and 1.6 times as wide: of one narrower than p(w | z, c), weights have no finite variance."""
    for encoder in vae.encoders:
        for weight in encoder.network.last.parameters():
            weight *= 0.3
        bias = encoder.network.last[-1].bias
        bias[vae.latent :] += 0.5


def solved_to(tolerance: float, estimator: Estimator) -> Estimator:
    """The same, its equation solved to this tolerance a step, or its bound from the more draws; others as they are."""
    twin = copy.deepcopy(estimator)
    for module in twin.modules():
        if isinstance(module, Continuous):
            module.options = module.options.using(tolerance=tolerance)
        if isinstance(module, VAEEstimator):
            module.options = module.options.using(importance={1e-3: 64, 1e-4: 128, 1e-5: 512}[tolerance])
    return twin


class Grid(NamedTuple):
    """Ln q on the midpoints of a rectangle that holds all draws with room to spare."""

    log_prob: Tensor
    cell: float
    error: Tensor | float = 0.0  # standard errors of ln q, where it is an estimate

    def integral(self, power: float = 1.0) -> float:
        """Of q to a power."""
        return float((power * self.log_prob).exp().sum() * self.cell)

    def entropy(self) -> float:
        return float(-(self.log_prob.exp() * self.log_prob).sum() * self.cell)

    def off(self, power: float = 1.0) -> float:
        """Four standard errors of the integral."""
        return 4 * self.cell * float((power * (power * self.log_prob).exp() * self.error).square().sum().sqrt())

    def entropy_off(self) -> float:
        """Four standard errors of the entropy."""
        slope = self.log_prob.exp() * (1 + self.log_prob)
        return 4 * self.cell * float((slope * self.error).square().sum().sqrt())


@torch.no_grad()
def on_grid(estimator: Estimator, context: Tensor, points: int | None = None) -> Grid:
    """Ln q(z | context (1, C)) on 400 x 400 places, or 60 x 60 where each costs an equation's solution, or a sum."""
    points = points or (60 if solves(estimator) or bounds(estimator) else 400)
    draws = estimator.sample_and_log_prob(2000 if solves(estimator) else 20_000, context, generator(11))[0][0]
    low, high = draws.min(0).values, draws.max(0).values
    low, high = low - 0.3 * (high - low), high + 0.3 * (high - low)
    middle = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    places = torch.cartesian_prod(*(low + (high - low) * middle[:, None]).T)
    finer, cell = solved_to(1e-4, estimator), float(((high - low) / points).prod())
    if not bounds(estimator):
        return Grid(finer.log_prob(places[None], context)[0], cell)
    log_prob, error = finer.log_prob_and_error(places[None], context, generator(13))
    return Grid(log_prob[0], cell, error[0])


def integrates_to_one(grid: Grid) -> None:
    """Within 1e-3: the midpoint rule's error on densities of these tests, found by halving the cells."""
    assert abs(grid.integral() - 1) < 1e-3 + grid.off(), f"the density integrates to {grid.integral():.5f}"


@torch.no_grad()
def said_of_draws(estimator: Estimator, context: Tensor, n: int = 20_000) -> Tensor:
    """Ln q of draws by `sample_and_log_prob` (n,)."""
    return solved_to(1e-4, estimator).sample_and_log_prob(n, context, generator(12))[1][0]


def weights_of_a_narrower_density(log_prob: Tensor, grid: Grid) -> None:
    """For r = q^2 / integral of q^2, which is narrower than q, the mean of r / q over draws of q is 1.

    Where ln q is an estimate from K draws, q^2 means that of K draws on both sides: latents belong to the space.
    """
    weight = log_prob.exp() / grid.integral(power=2)
    error = 4 * float(weight.std()) / math.sqrt(len(weight)) + grid.off(power=2) / grid.integral(power=2)
    assert abs(float(weight.mean()) - 1) < error, f"mean of r / q is {float(weight.mean()):.4f} +- {error:.4f}"


def entropy_of_draws(log_prob: Tensor, grid: Grid) -> None:
    """The mean of ln q over draws is minus the entropy of q on the grid."""
    error = 4 * float(log_prob.std()) / math.sqrt(len(log_prob)) + 2e-3 + grid.entropy_off()  # and the grid's
    assert abs(float(log_prob.mean()) + grid.entropy()) < error, f"{float(log_prob.mean())} and {-grid.entropy()}"


@torch.no_grad()
def one_map_for_draws_and_density(estimator: Estimator, context: Tensor) -> None:
    """`sample_and_log_prob` and `log_prob` agree; so does `sample`, but where it is a faster way to solve an equation.

    Beyond `EXACT` dimensions an equation's ln q is an estimate without bias: there, on average over draws. Of a bound p
    and what is said of draws, r, E[p / r] = 1, and E ln p <= E ln r by no more than half the squares of their errors.
    """
    if bounds(estimator):
        bound_meets_draws(solved_to(1e-5, estimator), context)
        return
    estimated = solves(estimator) and estimator.space.size > EXACT
    estimator = solved_to(1e-3 if estimated else 1e-5, estimator)
    z, log_prob = estimator.sample_and_log_prob(50, context, generator(14))
    difference = estimator.log_prob(z, context) - log_prob
    if estimated:
        error = 4 * float(difference.std()) / math.sqrt(difference.numel())
        assert abs(float(difference.mean())) < error, f"{float(difference.mean()):.3f} +- {error:.3f}"
        return
    worst = float(difference.abs().max())
    assert worst < (SOLVED if solves(estimator) else ROUNDING), f"ln q of draws differs from ln q by {worst}"
    assert solves(estimator) or torch.equal(z, estimator.sample(50, context, generator(14)))


@torch.no_grad()
def bound_meets_draws(estimator: Estimator, context: Tensor) -> None:
    """The law above, where both sides are estimates."""
    z, said = estimator.sample_and_log_prob(50, context, generator(14))
    log_prob, off = estimator.log_prob(z, context, generator(15)), estimator.log_prob_and_error(z, context)[1]
    ratio, gap = (log_prob - said).exp(), said - log_prob
    error, gap_error = (4 * float(each.std()) / math.sqrt(each.numel()) for each in (ratio, gap))
    assert abs(float(ratio.mean()) - 1) < error, f"mean of p / r is {float(ratio.mean()):.4f} +- {error:.4f}"
    bias = 4 * float(off.square().mean())  # twice as much for each side, since errors are estimates
    assert -gap_error < float(gap.mean()) < gap_error + bias, f"the bound is {float(gap.mean()):.4f} below draws"
    assert torch.equal(z, estimator.sample(50, context, generator(14)))


@torch.no_grad()
def stacks_are_rows(estimator: Estimator, context: Tensor) -> None:
    """Ln q of (B, S, D) is ln q of each (B, D)."""
    z = normal(len(context), 3, estimator.space.size, seed=15)
    columns = [estimator.log_prob(z[:, i], context) for i in range(3)]
    assert torch.allclose(estimator.log_prob(z, context), torch.stack(columns, 1), atol=ROUNDING, rtol=0)


def slopes_are_true_or_withheld(estimator: Estimator, context: Tensor) -> None:
    """The gradient of ln q by z, where there is one, is its slope: within 1 % of differences between places near by."""
    estimator = solved_to(1e-5, estimator)
    z, way = normal(len(context), estimator.space.size, seed=31), normal(len(context), estimator.space.size, seed=32)
    log_prob = estimator.log_prob(z.requires_grad_(), context)
    (gradient,) = torch.autograd.grad(log_prob.sum(), z, allow_unused=True) if log_prob.requires_grad else (None,)
    if gradient is not None:
        slope = (gradient * way).sum(-1)
        ahead, behind = (estimator.log_prob(z + h * way, context) for h in (0.01, -0.01))
        assert torch.allclose(slope, (ahead - behind) / 0.02, rtol=0.01, atol=0.01), f"gradient {slope}"


def loss_of_each_row(estimator: Estimator, context: Tensor) -> None:
    """The loss is (B,) and permutes with its rows, on average over 200 draws of its noise where it has some.

    There a batch is compared with itself in the other order of halves.
    """
    z, order = normal(len(context), estimator.space.size, seed=16), torch.arange(len(context)).roll(1)
    loss = estimator(z, context, generator=generator(16))
    assert loss.shape == (len(context),)
    if torch.equal(loss, estimator(z, context, generator=generator(17))):
        assert torch.allclose(estimator(z[order], context[order]), loss[order], atol=ROUNDING, rtol=0)
        return
    z, context = normal(16, estimator.space.size, seed=16).repeat(2, 1), context.repeat(32 // len(context), 1)
    for mode in (True, False):
        estimator.train(mode)
        halves = [estimator(z, context, generator=generator(seed)).detach().split(16) for seed in range(200)]
        gap = torch.stack([first.mean() - second.mean() for first, second in halves])
        error = 4 * float(gap.std()) / math.sqrt(len(gap))
        assert abs(float(gap.mean())) < error, f"the first half costs {float(gap.mean()):.4f} +- {error:.4f} more"


@torch.no_grad()
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
                estimator.sample_and_log_prob(5, c, generator(18))[1],
            )
            for a, c in ((z, context), (other_z, other_context))
        ]
        for before, after in zip(*results, strict=True):
            assert not torch.allclose(before[0], after[0]), "the changed row itself shows no change"
            worst = float((before - after)[1:].abs().max())
            assert worst < ROUNDING, f"a row sees another: {worst}"
    estimator.eval()


def gradients_reach_every_weight(estimator: Estimator, context: Tensor) -> None:
    unreached = [n for n, g in gradients(estimator, context).items() if g is None or not g.abs().max() > 0]
    assert not unreached, f"no gradient: {unreached}"


def gradients(estimator: Estimator, context: Tensor, weight: Tensor | None = None) -> dict[str, Tensor | None]:
    """Of the weighted mean of the loss."""
    loss = estimator(normal(len(context), estimator.space.size, seed=19), context, generator=generator(19))
    total = (loss if weight is None else weight * loss).mean()
    names, weights = zip(*estimator.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(total, weights, allow_unused=True), strict=True))


def weights_scale_gradients(estimator: Estimator, context: Tensor) -> None:
    """A row of weight 2 pulls twice as hard as one of weight 1, and one of weight 0, whatever it is, not at all."""
    first = torch.zeros(len(context), dtype=torch.float64)
    first[0] = 1.0
    other = torch.cat([context[:1], 2 * context[1:] - 1])
    once, twice = gradients(estimator, context, first), gradients(estimator, other, 2 * first)
    for name, gradient in once.items():
        if gradient is not None:
            assert torch.allclose(2 * gradient, twice[name], atol=ROUNDING, rtol=1e-6), name


@torch.no_grad()
def draws_are_a_function_of_the_generator(estimator: Estimator, context: Tensor) -> None:
    """The same generator gives the same draws, another one others, and global random state stays as it was."""
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    for draw in (estimator.sample, lambda *of: estimator.sample_and_log_prob(*of)[0]):
        first, again, other = (draw(20, context, generator(seed)) for seed in (20, 20, 21))
        assert torch.equal(first, again)
        assert float((first - other).abs().min()) > 0
    estimator.log_prob(first[:, 0], context)
    estimator(first[:, 0], context, generator=generator())
    assert torch.equal(before, torch.get_rng_state()), "torch's global generator moved"
    assert (numpy_before == np.random.get_state()[1]).all(), "NumPy's global generator moved"  # noqa: NPY002


@torch.no_grad()
def draws_come_in_their_place(estimator: Estimator, context: Tensor) -> None:
    """Draws of a stack of contexts have each row's own distribution: ln q is higher at their own context.

    The mean of ln q(z | own) - ln q(z | other) over draws is a Kullback-Leibler divergence: above 4 standard errors.
    """
    z = estimator.sample_and_log_prob(1000, context, generator(22))[0]
    gain = estimator.log_prob(z, context) - estimator.log_prob(z, context.roll(1, dims=0))
    assert (gain.mean(1) > 4 * gain.std(1) / math.sqrt(1000)).all(), f"{gain.mean(1)}"


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
    z, estimator = normal(len(context), estimator.space.size, seed=29), solved_to(1e-5, estimator)
    single = copy.deepcopy(estimator).float().log_prob(z.float(), context.float())
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), estimator.log_prob(z, context), atol=1e-3, rtol=0)


@torch.no_grad()
def divergence_is_told(estimator: Estimator, context: Tensor) -> None:
    """Of a network that is not finite for the third row nothing is drawn: the error counts its draws and says where."""
    for module in estimator.modules():
        if isinstance(module, Continuous):
            module.network = Diverging(module.network)  # type: ignore[assignment]
    z = normal(len(context), 5, estimator.space.size, seed=30)
    for run in (estimator.sample, estimator.sample_and_log_prob, lambda *_: estimator.log_prob(z, context)):
        assert f"5 of {5 * len(context)} solutions are not finite at step 0 (time " in complaint(run, 5, context)


def complaint(run: Callable, *arguments: object) -> str:
    try:
        run(*arguments)
    except SolverError as error:
        return str(error)
    return ""


class Diverging(torch.nn.Module):
    """Says NaN of the third row."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def steer(self, context: Tensor) -> Tensor:
        steering = self.network.steer(context).clone()  # type: ignore[operator]
        steering[2] = math.nan
        return steering

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.network(*inputs)
