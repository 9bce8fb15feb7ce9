"""Draws rescaled about their mean: density and draws of one map, which depends on the context alone."""

import copy

import laws
import pytest
import torch
import twins
from torch import Tensor
from twins import accuses

from sbi_dgm.estimators.base import Estimator, Family
from sbi_dgm.estimators.ensemble import Mixture
from sbi_dgm.estimators.flow import Flow
from sbi_dgm.estimators.flow_matching import FlowMatching
from sbi_dgm.estimators.rescaled import Rescaled
from sbi_dgm.estimators.vae import VAE

NETWORK = {"hidden": 16, "blocks": 1}
SURE = {**NETWORK, "dropout": 0.0}
FAMILIES: dict[str, Family] = {
    "flow": Flow(transforms=2, **SURE),
    "flow matching": FlowMatching(**SURE, steps=24),
    "vae": VAE(**NETWORK, latent=2, components=2),
}
CONTEXT = laws.normal(4, 3, seed=1)
FAR = torch.tensor([[4, -2, 2], [-4, 2, -2], [2, 4, -4], [-2, -4, 4]], dtype=torch.float64)


def rescaled(inner: Estimator) -> Rescaled:
    """By 1.2 to 0.7."""
    return Rescaled(inner, torch.linspace(1.2, 0.7, inner.space.size, dtype=torch.float64)).eval()


def mixture() -> Mixture:
    parts = [laws.wild(FAMILIES["flow"], context=1, seed=seed) for seed in range(3)]
    return Mixture(parts, [1, 1, 1]).double()


@pytest.fixture(params=[*FAMILIES, "mixture"], scope="module")
def estimator(request) -> Rescaled:
    return rescaled(mixture() if request.param == "mixture" else laws.wild(FAMILIES[request.param]))


class Unscaled(Rescaled):
    """ln s is forgotten."""

    def back(self, z, context):
        return super().back(z, context)[0], torch.zeros(())

    def there(self, u, context):
        return super().there(u, context)[0], torch.zeros(())


class Roving(Rescaled):
    """The mean is that of draws for the batch as a whole: it depends on the rows beside."""

    def centre(self, context):
        return self.inner.sample(64, context, laws.generator()).mean(1)


class Crowded(Rescaled):
    """The mean is pulled by the batch's."""

    def centre(self, context):
        centre = super().centre(context)
        return 0.9 * centre + 0.1 * centre.mean(0)


def spoiled(kind: type[Rescaled], right: Rescaled) -> Rescaled:
    return kind(right.inner, right.scale)


def test_the_density_integrates_to_one_and_is_that_of_the_draws(estimator):
    grid = laws.on_grid(estimator, CONTEXT[:1])
    laws.integrates_to_one(grid)
    accuses(laws.integrates_to_one, laws.on_grid(spoiled(Unscaled, estimator), CONTEXT[:1], points=40))
    laws.entropy_of_draws(laws.said_of_draws(estimator, CONTEXT[:1], 4000), grid)
    accuses(laws.entropy_of_draws, laws.said_of_draws(spoiled(Unscaled, estimator), CONTEXT[:1], 4000), grid)


def test_draws_and_density_come_from_one_map(estimator):
    laws.one_map_for_draws_and_density(estimator, CONTEXT)
    accuses(laws.one_map_for_draws_and_density, twins.Swapped(estimator), CONTEXT)


@torch.no_grad()
def alone_or_in_a_stack(estimator: Estimator, context: Tensor) -> None:
    """ln q of a row alone, first or last, among few or many, and in any order, is the same within rounding."""
    z = laws.normal(len(context), estimator.space.size, seed=40)
    stack, back = estimator.log_prob(z, context), estimator.log_prob(z.flip(0), context.flip(0)).flip(0)
    alone = torch.cat([estimator.log_prob(z[i : i + 1], context[i : i + 1]) for i in range(len(context))])
    for other in (back, alone):
        assert float((stack - other).abs().max()) < laws.ROUNDING


def test_a_row_is_the_same_alone_and_in_a_stack(estimator):
    alone_or_in_a_stack(spoiled(Rescaled, estimator), CONTEXT)
    accuses(alone_or_in_a_stack, spoiled(Roving, estimator), CONTEXT)


def test_stacks_of_z_are_evaluated_row_by_row(estimator):
    laws.stacks_are_rows(estimator, CONTEXT)
    accuses(laws.stacks_are_rows, twins.Swapped(estimator), CONTEXT)


def test_rows_do_not_see_each_other(estimator):
    laws.rows_are_alone(spoiled(Rescaled, estimator), CONTEXT)
    accuses(laws.rows_are_alone, spoiled(Crowded, estimator), CONTEXT)


def test_draws_are_a_function_of_the_generator(estimator):
    laws.draws_are_a_function_of_the_generator(estimator, CONTEXT)
    accuses(laws.draws_are_a_function_of_the_generator, twins.Unseeded(estimator), CONTEXT)


def test_draws_belong_to_their_context():
    estimator = rescaled(laws.wild(FAMILIES["flow"]))
    laws.draws_come_in_their_place(estimator, FAR)
    accuses(laws.draws_come_in_their_place, twins.Misplaced(estimator), FAR)


@pytest.mark.parametrize("size", [1, 2, 30])
def test_any_number_of_dimensions_rows_and_draws(size):
    laws.any_number_of_rows_and_draws(rescaled(laws.wild(FAMILIES["flow"], size, context=1)), context=1)


def test_weights_are_all_there_is():
    """Also where the means of others were remembered."""
    one, other = (rescaled(laws.wild(FAMILIES["flow"], seed=seed)) for seed in (1, 2))
    laws.weights_are_all_there_is(one, copy.deepcopy(other), CONTEXT)

    class Stale(Rescaled):
        def centre(self, context):
            self._kept = getattr(self, "_kept", super().centre(context))
            return self._kept

    accuses(laws.weights_are_all_there_is, spoiled(Stale, one), spoiled(Stale, other), CONTEXT)


def test_widths_are_scaled_and_means_stay():
    """Of the same 4000 draws, widths to rounding; means but for the error of the 256 draws that found them."""
    inner = laws.wild(FAMILIES["flow"])
    before, after = (e.sample(4000, CONTEXT[:1], laws.generator(41))[0] for e in (inner, rescaled(inner)))
    torch.testing.assert_close(after.std(0) / before.std(0), torch.tensor([1.2, 0.7]).double(), rtol=1e-6, atol=0)
    shift = (after.mean(0) - before.mean(0)).abs() / before.std(0)
    assert (shift < 0.3 * 4 * (1 / 256 + 1 / 4000) ** 0.5).all(), "|s - 1| times four standard errors"


def test_remembered_means_are_few(monkeypatch):
    monkeypatch.setattr("sbi_dgm.estimators.rescaled.KNOWN", 3)
    estimator = rescaled(laws.wild(FAMILIES["flow"]))
    first = estimator.centre(CONTEXT)
    assert torch.equal(estimator.centre(CONTEXT[:2]), first[:2])
    estimator.centre(laws.normal(2, 3, seed=5))
    assert len(estimator._centres) == 2
    assert torch.equal(estimator.centre(CONTEXT), first)
