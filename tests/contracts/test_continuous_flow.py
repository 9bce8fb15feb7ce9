"""The continuous normalizing flow: its two gradients, its loss and trace, what it learns; laws have wrong twins."""

import math
from itertools import pairwise
from unittest import mock

import laws
import pytest
import torch
import twins
from targets import TARGETS, Target
from torch import Tensor
from twins import accuses

from sbi_dgm.estimators import continuous, continuous_flow
from sbi_dgm.estimators.base import Estimator, Space
from sbi_dgm.estimators.continuous_flow import Adjoint, ContinuousFlow, ContinuousFlowEstimator
from sbi_dgm.seeds import lending
from sbi_dgm.solvers import EULER

SMALL = {"hidden": 16, "blocks": 1}
CONTEXT = laws.normal(6, 3, seed=1)


def wild(size: int = 2, **options) -> ContinuousFlowEstimator:
    return laws.wild(ContinuousFlow(**SMALL, **options), size)  # type: ignore[return-value]


def with_options(estimator: ContinuousFlowEstimator, **options) -> ContinuousFlowEstimator:
    """The same weights, solved otherwise."""
    with lending(0):
        twin = ContinuousFlow(**(estimator.options.model_dump() | options)).build(estimator.space, 3).double()
    twin.load_state_dict(estimator.state_dict())
    return twin.train(estimator.training)  # type: ignore[return-value]


def gradients(estimator: Estimator) -> list[Tensor]:
    """Of the mean training loss by z, context and weights; rows weigh differently."""
    z = laws.normal(len(CONTEXT), estimator.space.size, seed=2).requires_grad_()
    context = CONTEXT.clone().requires_grad_()
    loss = estimator.train()(z, context, generator=laws.generator(3))
    total = (torch.arange(1.0, 1 + len(loss)) * loss).mean()
    return list(torch.autograd.grad(total, [z, context, *estimator.parameters()]))


def adjoint_agrees_with_direct(estimator: ContinuousFlowEstimator) -> None:
    """To 1e-4 of each tensor's norm: 8 steps of order four were found to differ by 6e-6 at most, 32 by 1e-8."""
    pairs = zip(*(gradients(with_options(estimator, gradient=way)) for way in ("adjoint", "direct")), strict=True)
    worst = max(float((a - b).norm() / b.norm()) for a, b in pairs)
    assert worst < 1e-4, f"gradients differ by {worst:.1e}"


@pytest.mark.parametrize("size", [1, 2, 20])
def test_gradients_by_the_adjoint_equation_are_the_direct_ones(size):
    adjoint_agrees_with_direct(wild(size, steps=16, smoothness=0.3))


def end_taken_for_the_start(f, y, places):
    """Backwards, the whole state but what is integrated stays where it is."""
    return follow(f, y, places) if places[0] < places[-1] else y + (places[-1] - places[0]) * f(y, places[0])


def coarse_on_the_way_back(f, y, places):
    if places[0] < places[-1]:
        return follow(f, y, places)
    with mock.patch.object(continuous_flow, "RK4", EULER):
        return follow(f, y, places)


follow = continuous_flow.follow


@pytest.mark.parametrize("wrong", [end_taken_for_the_start, coarse_on_the_way_back])
def test_an_adjoint_equation_that_is_not_solved_is_accused(wrong):
    with mock.patch.object(continuous_flow, "follow", wrong):
        accuses(adjoint_agrees_with_direct, wild(steps=16))


def test_an_adjoint_that_forgets_the_gradient_of_the_trace_is_accused():
    class Forgetful(Adjoint):
        @staticmethod
        def backward(ctx, pull):
            return Adjoint.backward(ctx, torch.cat([pull[:, :-2], 0 * pull[:, -2:]], -1))

    with mock.patch.object(continuous_flow, "Adjoint", Forgetful):
        accuses(adjoint_agrees_with_direct, wild(steps=16))


def kept(estimator: Estimator) -> int:
    """Numbers that a forward pass keeps for the backward one."""
    found = []
    context, z = laws.normal(50, 3), laws.normal(50, 2)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: found.append(t.numel()) or t, lambda t: t):
        estimator.train()(z, context)
    return sum(found)


def memory_does_not_grow(way: str) -> None:
    few, many = (kept(wild(gradient=way, steps=steps)) for steps in (2, 16))
    assert many <= few + 14, f"{few} numbers are kept for 2 steps, {many} for 16"


def test_memory_of_the_adjoint_does_not_grow_with_steps():
    memory_does_not_grow("adjoint")
    accuses(memory_does_not_grow, "direct")


@torch.no_grad()
def loss_is_minus_log_prob(estimator: Estimator, order: int = 4) -> None:
    """Within 1e-5 at 32 steps, and with the error of an order at fewer: a factor of 2^4 each time, within 2."""
    right, z = laws.solved_to(1e-8, estimator), laws.normal(len(CONTEXT), 2, seed=2)
    log_prob = right.log_prob(z, CONTEXT)
    errors = [float((with_options(right, steps=n)(z, CONTEXT) + log_prob).abs().max()) for n in (1, 2, 4)]  # type: ignore[arg-type]
    assert errors[-1] < 1e-5, f"{errors}"
    assert all(a > 2 ** (order - 1) * b for a, b in pairwise(errors)), f"{errors}"


def test_the_loss_is_minus_log_prob():
    estimator = bent(wild())
    loss_is_minus_log_prob(estimator)
    with mock.patch.object(continuous_flow, "RK4", EULER):
        accuses(loss_is_minus_log_prob, estimator)
    wrong = bent(wild())
    right = wrong._carried
    wrong._carried = lambda *of: (lambda y, traces: (y, 1.001 * traces))(*right(*of))  # type: ignore[method-assign]
    with mock.patch.object(laws, "solved_to", lambda _, e: e), mock.patch(f"{__name__}.with_options", lambda e, **o: e):
        accuses(loss_is_minus_log_prob, wrong)


def bent(estimator: ContinuousFlowEstimator) -> ContinuousFlowEstimator:
    """A field three times as strong, so that steps have errors above rounding."""
    with torch.no_grad():
        for weight in estimator.network.last.parameters():
            weight *= 3
    return estimator


@torch.no_grad()
def trace_is_unbiased(estimator: ContinuousFlowEstimator, right: ContinuousFlowEstimator, n: int = 3000) -> None:
    """The training loss with one random sign vector a row is on average that of `right` with the exact trace."""
    one = laws.normal(1, 20, seed=4)
    z, context = one.expand(n, -1), CONTEXT[:1].expand(n, -1)
    noisy = estimator.train()(z, context, generator=laws.generator(5))
    with mock.patch.object(continuous, "EXACT", 20), mock.patch.object(continuous_flow, "EXACT", 20):
        exact = right.train()(one, CONTEXT[:1])
    error = 4 * float(noisy.std()) / math.sqrt(n)
    assert error > 0
    assert abs(float(noisy.mean() - exact)) < error, f"{float(noisy.mean() - exact):.4f} +- {error:.4f}"


def test_the_trace_of_training_has_no_bias():
    estimator, wrong = bent(wild(20, smoothness=0.2)), bent(wild(20, smoothness=0.2))
    trace_is_unbiased(estimator, estimator)
    wrong._signs = lambda *of: 1.05 * estimator._signs(*of)  # type: ignore[method-assign]
    accuses(trace_is_unbiased, wrong, estimator)
    wrong._signs = lambda *of: estimator._signs(*of)[..., :1].expand(-1, -1, 20)  # type: ignore[method-assign]
    accuses(trace_is_unbiased, wrong, estimator)


def test_validation_takes_all_probes_and_finer_steps():
    estimator = wild(20, steps=2, probes=3)
    z = laws.normal(len(CONTEXT), 20)
    with mock.patch.object(estimator.network, "pushed", wraps=estimator.network.pushed) as pushed:
        estimator.eval()(z, CONTEXT, generator=laws.generator())
        assert {len(call.args[3]) for call in pushed.call_args_list} == {3}
        assert pushed.call_count == 2 * continuous_flow.FINER * 4
        pushed.reset_mock()
        estimator.train()(z, CONTEXT, generator=laws.generator())
        assert {len(call.args[3]) for call in pushed.call_args_list} == {1}
        assert pushed.call_count == 2 * 4


def penalty_is_roughness(estimator: ContinuousFlowEstimator) -> None:
    """That of training: the integral of |f|^2 + |df/dy|^2, by the midpoint rule and reverse derivatives."""
    z, context = laws.normal(3, 2, seed=6), CONTEXT[:3]
    plain, rough = (with_options(estimator, smoothness=w).train()(z, context) for w in (0.0, 0.7))
    steering, y, total, n = estimator.network.steer(context), z, torch.zeros(3), 400
    for i in range(n):
        s = torch.tensor((i + 0.5) / n, dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(lambda v, s=s: estimator.field(v, s, steering).sum(0), y)
        half = y + estimator.field(y, s - 0.5 / n, steering) * 0.5 / n
        f = estimator.field(half, s, steering)
        total, y = total + (f.square().sum(-1) + jacobian.square().sum((0, 2))) / n, y + f / n
    assert torch.allclose(rough - plain, 0.7 * total, rtol=1e-2), f"{rough - plain} and {0.7 * total}"
    assert torch.equal(plain, with_options(estimator, smoothness=0.0).train()(z, context))
    still = [with_options(estimator, smoothness=w).eval()(z, context) for w in (0.0, 0.7)]
    assert torch.equal(*still)


def test_the_penalty_is_what_it_says_and_training_s_alone():
    estimator = bent(wild(steps=16))
    penalty_is_roughness(estimator)
    right = estimator.field
    estimator.field = lambda *of: 1.02 * right(*of)  # type: ignore[method-assign]
    accuses(penalty_is_roughness, estimator)


def starts_as_the_normal(estimator: Estimator) -> None:
    """Density, loss and draws are those of N(0, I)."""
    z = laws.normal(len(CONTEXT), 2, seed=7)
    log_prob = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    for said in (estimator.log_prob(z, CONTEXT), -estimator.train()(z, CONTEXT), -estimator.eval()(z, CONTEXT)):
        assert torch.allclose(said, log_prob)
    draws = estimator.sample(3, CONTEXT, laws.generator(8))
    expected = torch.randn(draws.shape, generator=laws.generator(8), dtype=torch.float64)
    assert torch.allclose(draws, expected)


def test_an_untrained_one_is_the_normal():
    with lending(0):
        starts_as_the_normal(ContinuousFlow(**SMALL).build(Space((2,)), 3).double().eval())
    accuses(starts_as_the_normal, wild())


@torch.no_grad()
def draws_are_those_with_a_density(estimator: Estimator) -> None:
    """The same equation from the same noise: within a hundred tolerances."""
    twin = laws.solved_to(1e-6, estimator)
    fast = twin.sample(50, CONTEXT, laws.generator(9))
    z, _ = twin.sample_and_log_prob(50, CONTEXT, laws.generator(9))
    assert float((fast - z).abs().max()) < 1e-4


def test_draws_are_the_same_with_a_density_and_without():
    draws_are_those_with_a_density(wild())
    spoiled = twins.Narrow(wild())
    spoiled.sample_and_log_prob = spoiled.right.sample_and_log_prob  # type: ignore[method-assign]
    accuses(draws_are_those_with_a_density, spoiled)


def trained(target: Target, gradient: str) -> Estimator:
    with lending(0):
        estimator = ContinuousFlow(hidden=32, blocks=1, gradient=gradient).build(Space((2,)), 1)  # type: ignore[arg-type]
    optimiser = torch.optim.Adam(estimator.parameters(), lr=1e-2)
    for step in range(STEPS):
        optimiser.param_groups[0]["lr"] = 1e-2 * (1 - step / STEPS)
        c = torch.randn(256, 1, generator=laws.generator(1000 + step))
        z = target.sample(1, c, laws.generator(step))[:, 0]
        optimiser.zero_grad()
        estimator(z, c).mean().backward()
        optimiser.step()
    return estimator.eval()


STEPS = 500


@torch.no_grad()
def reaches_the_entropy(estimator: Estimator, target: Target, bound: float) -> None:
    """Losses of fresh draws are within `bound` nats above minus ln p of the truth, and not below."""
    c = torch.randn(4000, 1, generator=laws.generator(10))
    z = target.sample(1, c, laws.generator(11))[:, 0]
    for said in (-estimator(z, c), estimator.log_prob(z[:1000], c[:1000])):
        excess = target.log_prob(z, c)[: len(said)] - said
        error = 4 * float(excess.std()) / math.sqrt(len(said))
        assert -error < float(excess.mean()) < bound, f"KL {float(excess.mean()):.4f} +- {error:.4f} nats"


@pytest.mark.parametrize(("name", "gradient"), [("correlated", "direct"), ("bimodal", "adjoint")])
def test_it_learns_a_target_to_its_entropy(name, gradient):
    estimator = trained(TARGETS[name], gradient)
    reaches_the_entropy(estimator, TARGETS[name], 0.06)
    for wrong in (twins.Deaf(estimator), twins.Inflated(estimator), twins.divergence_flipped(estimator)):
        accuses(reaches_the_entropy, wrong, TARGETS[name], 0.06)
