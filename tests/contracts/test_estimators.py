"""The law-suite of all families: each joins by one line of `FAMILIES`, each law has a wrong twin that must fail it."""

import copy

import laws
import learning
import pytest
import torch
import twins
from torch import Tensor
from twins import accuses

from sbi_dgm.estimators.base import Estimator, Family, Space
from sbi_dgm.estimators.continuous_flow import ContinuousFlow
from sbi_dgm.estimators.diffusion import Diffusion
from sbi_dgm.estimators.flow import Flow
from sbi_dgm.estimators.flow_matching import FlowMatching
from sbi_dgm.estimators.located import Located
from sbi_dgm.estimators.vae import VAE
from sbi_dgm.seeds import lending

NETWORK = {"hidden": 16, "blocks": 1}
SURE = {**NETWORK, "dropout": 0.0}  # laws hold for each network that dropout leaves; here it leaves one
SMALL = {"transforms": 3, **SURE}
FAMILIES: dict[str, Family] = {
    "flow autoregressive spline": Flow(**SMALL, layout="autoregressive", map="spline"),
    "flow coupling spline": Flow(**SMALL, layout="coupling", map="spline"),
    "flow autoregressive affine": Flow(**SMALL, layout="autoregressive", map="affine"),
    "flow coupling affine": Flow(**SMALL, layout="coupling", map="affine"),
    "located flow": Located(Flow(**SMALL), **SURE),
    "diffusion": Diffusion(**SURE, steps=96),
    "flow matching": FlowMatching(**SURE, steps=48),
    "continuous flow": ContinuousFlow(**NETWORK),
    "vae": VAE(**NETWORK, latent=2, components=2),
    "vae of two levels": VAE(**NETWORK, latent=1, levels=2, components=2),
    "located flow matching": Located(FlowMatching(**SURE, steps=48), **SURE),
}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
CONTEXT = laws.normal(4, 3, seed=1)
FAR = torch.tensor([[4, -2, 2], [-4, 2, -2], [2, 4, -4], [-2, -4, 4]], dtype=torch.float64)


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES.keys(), scope="module")
def family(request) -> Family:
    return request.param


@pytest.fixture(scope="module")
def estimator(family) -> Estimator:
    return laws.wild(family)


@pytest.fixture(scope="module")
def grid(estimator) -> laws.Grid:
    return laws.on_grid(estimator, CONTEXT[:1])


@pytest.fixture(scope="module")
def said(estimator) -> Tensor:
    return laws.said_of_draws(estimator, CONTEXT[:1], n=10_000 if laws.bounds(estimator) else 20_000)


@pytest.fixture(scope="module")
def narrow(estimator) -> Tensor:
    """Too narrow by 5 %; by 30 % where ln q is an estimate that scatters."""
    share, n = {"ode": (0.95, 8000), "bound": (0.7, 10_000)}.get(estimator.density, (0.95, 20_000))
    return laws.said_of_draws(twins.Narrow(estimator, share), CONTEXT[:1], n=n)


def solving(family: Family) -> bool:
    return family.build(Space((1,)), 1).density == "ode"


SOLVING = {name: family for name, family in FAMILIES.items() if solving(family)}


def test_density_integrates_to_one(grid):
    laws.integrates_to_one(grid)
    accuses(laws.integrates_to_one, laws.Grid(grid.log_prob + 0.05, grid.cell))


@pytest.mark.parametrize("spoil", [twins.volume_off, twins.divergence_flipped])
def test_a_wrong_volume_does_not_integrate_to_one(estimator, spoil):
    accuses(laws.integrates_to_one, laws.on_grid(spoil(estimator), CONTEXT[:1], points=40))


@pytest.mark.parametrize("law", [laws.weights_of_a_narrower_density, laws.entropy_of_draws])
def test_draws_come_from_the_density(estimator, grid, said, narrow, law):
    law(said, grid)
    accuses(law, said + (0.2 if laws.bounds(estimator) else 0.05), grid)
    accuses(law, narrow, grid)


@pytest.mark.parametrize("size", [1, 2, 30])
def test_draws_and_density_come_from_one_map(family, size):
    estimator = laws.wild(family, size)
    laws.one_map_for_draws_and_density(estimator, CONTEXT)
    accuses(laws.one_map_for_draws_and_density, twins.Swapped(estimator), CONTEXT)


@pytest.mark.parametrize("spoil", [twins.volume_off, twins.divergence_flipped])
def test_volumes_off_in_one_direction_break_the_map(estimator, spoil):
    twin = twins.Twin(estimator)
    twin.log_prob = laws.solved_to(1e-5, spoil(estimator)).log_prob  # type: ignore[method-assign]
    accuses(laws.one_map_for_draws_and_density, twin, CONTEXT)


def test_stacks_of_z_are_evaluated_row_by_row(estimator):
    laws.stacks_are_rows(estimator, CONTEXT)
    accuses(laws.stacks_are_rows, twins.Swapped(estimator), CONTEXT)


def test_gradients_of_the_density_are_true_or_withheld(estimator):
    laws.slopes_are_true_or_withheld(estimator, CONTEXT)
    accuses(laws.slopes_are_true_or_withheld, twins.Crooked(estimator), CONTEXT)


def test_loss_is_one_number_a_row_wherever_the_row_stands(estimator):
    laws.loss_of_each_row(estimator, CONTEXT)
    accuses(laws.loss_of_each_row, twins.Positional(estimator), CONTEXT)


def test_rows_do_not_see_each_other(estimator):
    laws.rows_are_alone(estimator, CONTEXT)
    accuses(laws.rows_are_alone, twins.Leaky(estimator), CONTEXT)


def test_gradients_reach_every_weight(estimator):
    laws.gradients_reach_every_weight(estimator, CONTEXT)
    accuses(laws.gradients_reach_every_weight, twins.Lazy(estimator), CONTEXT)


def test_weights_scale_gradients(estimator):
    laws.weights_scale_gradients(estimator, CONTEXT)
    accuses(laws.weights_scale_gradients, twins.Averaged(estimator), CONTEXT)


def test_draws_are_a_function_of_the_generator(estimator):
    laws.draws_are_a_function_of_the_generator(estimator, CONTEXT)
    accuses(laws.draws_are_a_function_of_the_generator, twins.Unseeded(estimator), CONTEXT)


def test_draws_belong_to_their_context(estimator):
    laws.draws_come_in_their_place(estimator, FAR)
    accuses(laws.draws_come_in_their_place, twins.Deaf(estimator), FAR)
    accuses(laws.draws_come_in_their_place, twins.Misplaced(estimator), FAR)


@pytest.mark.parametrize("size", [1, 3])
def test_context_moves_every_coordinate(family, size):
    estimator = laws.wild(family, size)
    laws.context_moves_every_coordinate(estimator, FAR)
    accuses(laws.context_moves_every_coordinate, twins.Deaf(estimator), FAR)
    accuses(laws.context_moves_every_coordinate, twins.HalfDeaf(estimator), FAR)


@pytest.mark.parametrize("size", [1, 2, 30])
def test_any_number_of_dimensions_rows_and_draws(family, size):
    laws.any_number_of_rows_and_draws(laws.wild(family, size, context=1), context=1)


def test_weights_are_all_there_is(family, estimator):
    other = laws.wild(family, seed=1)
    laws.weights_are_all_there_is(estimator, copy.deepcopy(other), CONTEXT)
    accuses(laws.weights_are_all_there_is, twins.Forgetful(estimator, 0.0), twins.Forgetful(other, 1e-3), CONTEXT)


def test_single_precision_is_enough(estimator):
    laws.single_precision_is_enough(estimator, CONTEXT)
    accuses(laws.single_precision_is_enough, twins.Half(estimator), CONTEXT)


@pytest.mark.parametrize("device", DEVICES)
def test_weights_move_between_devices(estimator, device):
    moved = copy.deepcopy(estimator).to(device)
    z, context = laws.normal(4, 2, seed=2).to(device), CONTEXT.to(device)
    assert moved.log_prob(z, context).device.type == device
    assert moved.sample(2, context, torch.Generator(device)).device.type == device
    assert moved.sample_and_log_prob(2, context, torch.Generator(device))[1].device.type == device
    assert moved(z, context, generator=torch.Generator(device)).device.type == device
    assert torch.allclose(moved.log_prob(z, context).cpu(), estimator.log_prob(z.cpu(), CONTEXT), atol=laws.ROUNDING)


@pytest.mark.parametrize("name", SOLVING)
def test_nothing_is_drawn_from_a_network_that_is_not_finite(name):
    estimator = laws.wild(SOLVING[name])
    laws.divergence_is_told(copy.deepcopy(estimator), CONTEXT)
    accuses(laws.divergence_is_told, twins.Silent(estimator), CONTEXT)


def test_a_short_training_learns_a_curved_target(family):
    with lending(0):
        estimator = family.build(Space((2,)), 1)
    learning.has_learned(learning.train(estimator), bound=0.08)


@pytest.mark.parametrize(
    ("spoil", "name"),
    [
        (twins.Deaf, "flow autoregressive affine"),
        (twins.Inflated, "flow autoregressive affine"),
        (twins.Flipped, "flow matching"),
        (twins.SevenTimes, "flow matching"),
    ],
)
def test_an_estimator_that_learns_wrongly_is_accused(spoil, name):
    with lending(0):
        right = FAMILIES[name].build(Space((2,)), 1)
    accuses(learning.has_learned, learning.train(spoil(right)), 0.08)
