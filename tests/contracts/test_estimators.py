"""The law-suite of all families: each joins by one line of `FAMILIES`, each law has a wrong twin that must fail it."""

import copy

import laws
import pytest
import torch
from torch import nn

from sbi_dgm.estimators.base import Estimator, Family, Space
from sbi_dgm.estimators.flow import Flow, FlowEstimator
from sbi_dgm.estimators.located import Located
from sbi_dgm.seeds import lending

SMALL = {"transforms": 3, "hidden": 16, "blocks": 1}
FAMILIES: dict[str, Family] = {
    "flow autoregressive spline": Flow(**SMALL, layout="autoregressive", map="spline"),
    "flow coupling spline": Flow(**SMALL, layout="coupling", map="spline"),
    "flow autoregressive affine": Flow(**SMALL, layout="autoregressive", map="affine"),
    "flow coupling affine": Flow(**SMALL, layout="coupling", map="affine"),
    "located flow": Located(Flow(**SMALL), hidden=16, blocks=1),
}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
CONTEXT = laws.normal(4, 3, seed=1)
FAR = torch.tensor([[2, -1, 1], [-2, 1, -1], [1, 2, -2], [-1, -2, 2]], dtype=torch.float64)


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES.keys(), scope="module")
def family(request) -> Family:
    return request.param


@pytest.fixture(scope="module")
def estimator(family) -> Estimator:
    return laws.wild(family)


@pytest.fixture(scope="module")
def grid(estimator) -> laws.Grid:
    return laws.on_grid(estimator, CONTEXT[:1])


class Twin(Estimator):
    """The same as `right`; subclasses spoil one thing."""

    def __init__(self, right: Estimator) -> None:
        super().__init__()
        self.right, self.space, self.density = right, right.space, right.density

    def forward(self, z, context, *, progress=1.0, generator=None):
        return self.right(z, context, progress=progress, generator=generator)

    def log_prob(self, z, context, generator=None):
        return self.right.log_prob(z, context, generator)

    def sample(self, n, context, generator=None):
        return self.sample_and_log_prob(n, context, generator)[0]

    def sample_and_log_prob(self, n, context, generator=None):
        return self.right.sample_and_log_prob(n, context, generator)


class Inflated(Twin):
    """Ln q is 0.05 too high."""

    def log_prob(self, z, context, generator=None):
        return super().log_prob(z, context, generator) + 0.05

    def sample_and_log_prob(self, n, context, generator=None):
        z, log_prob = super().sample_and_log_prob(n, context, generator)
        return z, log_prob + 0.05


class Narrow(Twin):
    """Draws are 5 % too close to their mean; their ln q is honest."""

    def sample_and_log_prob(self, n, context, generator=None):
        z, _ = super().sample_and_log_prob(n, context, generator)
        z = z.mean(1, keepdim=True) + 0.95 * (z - z.mean(1, keepdim=True))
        return z, self.log_prob(z, context, generator)


class Deaf(Twin):
    """The context is not looked at."""

    def forward(self, z, context, *, progress=1.0, generator=None):
        return super().forward(z, 0 * context, progress=progress, generator=generator)

    def log_prob(self, z, context, generator=None):
        return super().log_prob(z, 0 * context, generator)

    def sample_and_log_prob(self, n, context, generator=None):
        return super().sample_and_log_prob(n, 0 * context, generator)


class HalfDeaf(Twin):
    """The first coordinate is drawn without a look at the context."""

    def sample_and_log_prob(self, n, context, generator=None):
        z, log_prob = super().sample_and_log_prob(n, context, generator)
        deaf = self.right.sample(n, 0 * context, laws.generator(99))
        return torch.cat([deaf[..., :1], z[..., 1:]], -1), log_prob


class Leaky(Twin):
    """The context passes a batch normalisation."""

    def __init__(self, right: Estimator) -> None:
        super().__init__(right)
        self.normalisation = nn.BatchNorm1d(3).double()

    def forward(self, z, context, *, progress=1.0, generator=None):
        return super().forward(z, self.normalisation(context), progress=progress, generator=generator)


class Swapped(Twin):
    """Draws go to the wrong rows of the stack."""

    def sample_and_log_prob(self, n, context, generator=None):
        z, log_prob = super().sample_and_log_prob(n, context, generator)
        return z.roll(1, dims=0), log_prob.roll(1, dims=0)

    def log_prob(self, z, context, generator=None):
        rows = context if z.ndim == 2 else context.repeat(z.shape[1], 1).unflatten(0, z.shape[:2])
        return super().log_prob(z.flatten(0, -2), rows.flatten(0, -2), generator).unflatten(0, z.shape[:-1])


class Misplaced(Twin):
    """Draws go to the wrong rows of the stack; ln q is right."""

    def sample_and_log_prob(self, n, context, generator=None):
        z, _ = super().sample_and_log_prob(n, context, generator)
        return z.roll(1, dims=0), self.log_prob(z.roll(1, dims=0), context)


class Positional(Twin):
    """The loss weighs a row by its place in the batch."""

    def forward(self, z, context, *, progress=1.0, generator=None):
        return super().forward(z, context) * torch.linspace(1, 1.01, len(z))


class Lazy(Twin):
    """A weight that the loss never meets."""

    def __init__(self, right: Estimator) -> None:
        super().__init__(right)
        self.idle = nn.Linear(3, 3).double()


class Unseeded(Twin):
    """Noise comes from the global generator."""

    def sample_and_log_prob(self, n, context, generator=None):
        return super().sample_and_log_prob(n, context, None)


class Forgetful(Twin):
    """A shift that no state_dict holds."""

    def __init__(self, right: Estimator, shift: float) -> None:
        super().__init__(right)
        self.shift = shift

    def log_prob(self, z, context, generator=None):
        return super().log_prob(z + self.shift, context, generator)


class Half(Twin):
    """Works with eight bits, unless in float64."""

    def log_prob(self, z, context, generator=None):
        if z.dtype == torch.float32:
            z = z.bfloat16().float()
        return super().log_prob(z, context, generator)


class Scaled(nn.Module):
    """A transform whose log-determinant is 1 % too large, either way."""

    def __init__(self, transform) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, z, context):
        u, log_det = self.transform(z, context)
        return u, 1.01 * log_det

    def inverse(self, u, context):
        z, log_det = self.transform.inverse(u, context)
        return z, 1.01 * log_det


def log_determinant_off(estimator: Estimator) -> Estimator:
    twin = copy.deepcopy(estimator)
    for module in list(twin.modules()):
        if isinstance(module, FlowEstimator):
            module.transform = Scaled(module.transform)  # type: ignore[assignment]
    return twin


def accuses(law, *arguments) -> None:
    with pytest.raises(AssertionError):
        law(*arguments)


def test_density_integrates_to_one(grid):
    laws.integrates_to_one(grid)


@pytest.mark.parametrize("spoil", [Inflated, log_determinant_off])
def test_a_wrong_density_does_not_integrate_to_one(estimator, spoil):
    accuses(laws.integrates_to_one, laws.on_grid(spoil(estimator), CONTEXT[:1], points=300))


def test_weights_of_a_narrower_density_average_to_one(estimator, grid):
    laws.weights_of_a_narrower_density(estimator, CONTEXT[:1], grid)
    accuses(laws.weights_of_a_narrower_density, Narrow(estimator), CONTEXT[:1], grid)
    accuses(laws.weights_of_a_narrower_density, Inflated(estimator), CONTEXT[:1], grid)


def test_mean_log_prob_of_draws_is_minus_the_entropy(estimator, grid):
    laws.entropy_of_draws(estimator, CONTEXT[:1], grid)
    accuses(laws.entropy_of_draws, Narrow(estimator), CONTEXT[:1], grid)
    accuses(laws.entropy_of_draws, Inflated(estimator), CONTEXT[:1], grid)


@pytest.mark.parametrize("size", [1, 2, 30])
def test_draws_and_density_come_from_one_map(family, size):
    estimator = laws.wild(family, size)
    laws.one_map_for_draws_and_density(estimator, CONTEXT)
    accuses(laws.one_map_for_draws_and_density, Swapped(estimator), CONTEXT)


def test_a_log_determinant_off_in_one_direction_breaks_the_map(estimator):
    twin = Twin(estimator)
    twin.log_prob = log_determinant_off(estimator).log_prob  # type: ignore[method-assign]
    accuses(laws.one_map_for_draws_and_density, twin, CONTEXT)


def test_stacks_of_z_are_evaluated_row_by_row(estimator):
    laws.stacks_are_rows(estimator, CONTEXT)
    accuses(laws.stacks_are_rows, Swapped(estimator), CONTEXT)


def test_loss_is_one_number_a_row_wherever_the_row_stands(estimator):
    laws.loss_of_each_row(estimator, CONTEXT)
    accuses(laws.loss_of_each_row, Positional(estimator), CONTEXT)


def test_rows_do_not_see_each_other(estimator):
    laws.rows_are_alone(estimator, CONTEXT)
    accuses(laws.rows_are_alone, Leaky(estimator), CONTEXT)


def test_gradients_reach_every_weight(estimator):
    laws.gradients_reach_every_weight(estimator, CONTEXT)
    accuses(laws.gradients_reach_every_weight, Lazy(estimator), CONTEXT)


def test_draws_are_a_function_of_the_generator(estimator):
    laws.draws_are_a_function_of_the_generator(estimator, CONTEXT)
    accuses(laws.draws_are_a_function_of_the_generator, Unseeded(estimator), CONTEXT)


def test_draws_belong_to_their_context(estimator):
    laws.draws_come_in_their_place(estimator, FAR)
    accuses(laws.draws_come_in_their_place, Deaf(estimator), FAR)
    accuses(laws.draws_come_in_their_place, Misplaced(estimator), FAR)


@pytest.mark.parametrize("size", [1, 3])
def test_context_moves_every_coordinate(family, size):
    estimator = laws.wild(family, size)
    laws.context_moves_every_coordinate(estimator, FAR)
    accuses(laws.context_moves_every_coordinate, Deaf(estimator), FAR)
    accuses(laws.context_moves_every_coordinate, HalfDeaf(estimator), FAR)


@pytest.mark.parametrize("size", [1, 2, 30])
def test_any_number_of_dimensions_rows_and_draws(family, size):
    laws.any_number_of_rows_and_draws(laws.wild(family, size, context=1), context=1)


def test_weights_are_all_there_is(family, estimator):
    laws.weights_are_all_there_is(estimator, laws.wild(family, seed=1), CONTEXT)
    accuses(
        laws.weights_are_all_there_is, Forgetful(estimator, 0.0), Forgetful(laws.wild(family, seed=1), 1e-3), CONTEXT
    )


def test_single_precision_is_enough(estimator):
    laws.single_precision_is_enough(estimator, CONTEXT)
    accuses(laws.single_precision_is_enough, Half(estimator), CONTEXT)


@pytest.mark.parametrize("device", DEVICES)
def test_weights_move_between_devices(estimator, device):
    moved = copy.deepcopy(estimator).to(device)
    z, context = laws.normal(4, 2, seed=2).to(device), CONTEXT.to(device)
    assert moved.log_prob(z, context).device.type == device
    assert moved.sample(2, context, torch.Generator(device)).device.type == device
    assert torch.allclose(moved.log_prob(z, context).cpu(), estimator.log_prob(z.cpu(), CONTEXT), atol=laws.ROUNDING)


def test_a_short_training_learns_a_curved_target(family):
    with lending(0):
        estimator = family.build(Space((2,)), 1)
    laws.has_learned(laws.train(estimator, 300), bound=0.08)


@pytest.mark.parametrize("spoil", [Deaf, Inflated])
def test_an_estimator_that_learns_wrongly_is_accused(spoil):
    with lending(0):
        right = FAMILIES["flow autoregressive affine"].build(Space((2,)), 1)
    twin = laws.train(spoil(right), 300)
    accuses(laws.has_learned, twin, 0.08)
