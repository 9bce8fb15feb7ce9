"""Normalizing flows, layer by layer, against Jacobians by automatic differentiation. The contract: tests/contracts."""

import math

import pytest
import torch
from torch import Tensor

from sbi_dgm import options
from sbi_dgm.errors import OptionError
from sbi_dgm.estimators.base import FAMILIES, Estimator, Space, family
from sbi_dgm.estimators.flow import Flow, Mix
from sbi_dgm.seeds import lending

SMALL = {"transforms": 3, "hidden": 16, "blocks": 1}
KINDS = [(layout, kind) for layout in ("autoregressive", "coupling") for kind in ("spline", "affine")]


def flow(layout: str, kind: str, size: int = 3, context: int = 2, scale: float = 0.2, **changed) -> Estimator:
    with lending(3):
        estimator = Flow(**(SMALL | changed), layout=layout, map=kind).build(Space((size,)), context).double()
        with torch.no_grad():
            for weight in estimator.parameters():
                weight += scale * torch.randn_like(weight)
    return estimator.eval().requires_grad_(False)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check_log_determinant(transform, z: Tensor, context: Tensor) -> None:
    """Each row's log-determinant is that of its Jacobian."""
    _, log_det = transform(z, context)
    for i in range(len(z)):
        jacobian = torch.autograd.functional.jacobian(
            lambda row, i=i: transform(row[None], context[i : i + 1])[0][0], z[i]
        )
        expected = float(torch.linalg.slogdet(jacobian).logabsdet)
        assert abs(float(log_det[i]) - expected) < 1e-9, f"row {i}: {float(log_det[i])}, by its Jacobian {expected}"


def check_inverse(transform, z: Tensor, context: Tensor) -> None:
    u, log_det = transform(z, context)
    back, back_log_det = transform.inverse(u, context)
    assert torch.allclose(back, z, atol=1e-8, rtol=0)
    assert torch.allclose(back_log_det, -log_det, atol=1e-7, rtol=0)


@pytest.mark.parametrize(("layout", "kind"), KINDS)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_untrained_is_standard_normal(layout, kind, size):
    estimator = flow(layout, kind, size, scale=0.0)
    z, context = 3 * normal(50, size), 5 * normal(50, 2, seed=1)
    expected = -0.5 * z.square().sum(1) - 0.5 * size * math.log(2 * math.pi)
    assert torch.allclose(estimator.log_prob(z, context), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("layout", "kind"), KINDS)
def test_untrained_draws_are_the_noise_itself(layout, kind):
    draws = flow(layout, kind, scale=0.0).sample(4, normal(2, 2), torch.Generator().manual_seed(5))
    noise = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    assert torch.allclose(draws.sort(-1).values, noise.sort(-1).values, atol=1e-6)


@pytest.mark.parametrize(("layout", "kind"), KINDS)
def test_inverse_undoes_forward_within_beyond_and_on_the_bound(layout, kind):
    estimator = flow(layout, kind, scale=0.1)
    bound = torch.tensor([[5.0], [-5.0]], dtype=torch.float64).expand(2, 3)
    z = torch.cat([normal(20, 3), 4 * normal(20, 3, seed=1), bound])
    check_inverse(estimator.transform, z, normal(42, 2, seed=2))


@pytest.mark.parametrize(("layout", "kind"), KINDS)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_log_determinant_is_that_of_the_jacobian(layout, kind, size):
    transform = flow(layout, kind, size).transform
    z, context = 2 * normal(8, size), normal(8, 2, seed=1)
    check_log_determinant(transform, z, context)

    def off_by_one_percent(z, context):
        u, log_det = transform(z, context)
        return u, 1.01 * log_det

    with pytest.raises(AssertionError):
        check_log_determinant(off_by_one_percent, z, context)


@pytest.mark.parametrize("kind", ["spline", "affine"])
def test_autoregressive_layer_sees_only_what_came_before(kind):
    layer = flow("autoregressive", kind, size=4, transforms=1, scale=0.5).transform._transforms[0]
    context = normal(1, 2, seed=1)
    jacobian = torch.autograd.functional.jacobian(lambda z: layer(z[None], context)[0][0], normal(4))
    assert torch.equal(jacobian.triu(1), torch.zeros(4, 4))
    assert (jacobian.diag() > 0).all()
    assert (jacobian[torch.tril_indices(4, 4, -1).unbind()] != 0).all()


@pytest.mark.parametrize("kind", ["spline", "affine"])
def test_every_coordinate_of_an_autoregressive_layer_sees_the_context(kind):
    layer = flow("autoregressive", kind, size=4, transforms=1, scale=0.5).transform._transforms[0]
    z = normal(1, 4)
    jacobian = torch.autograd.functional.jacobian(lambda c: layer(z, c[None])[0][0], normal(2, seed=1))
    assert (jacobian.abs() > 1e-6).all(), "the first coordinate too"


@pytest.mark.parametrize("kind", ["spline", "affine"])
@pytest.mark.parametrize("size", [4, 5])
def test_coupling_layers_take_turns(kind, size):
    """Untrained mixing reverses: what one layer leaves as it is, the next one moves."""
    estimator = flow("coupling", kind, size=size, transforms=2, scale=0.5)
    z, context = normal(5, size), normal(5, 2, seed=1)
    moved = []
    for layer in estimator.transform._transforms:
        if isinstance(layer, Mix):
            z = z.flip(-1)
            moved = [turn.flip(-1) for turn in moved]
        else:
            there, _ = layer(z, context)
            moved.append(there != z)
            z = there
    first, second = moved
    assert torch.equal(first.sum(-1), torch.full((5,), size - size // 2))
    assert (first | second).all()


def test_mix_is_a_reversed_triangular_product():
    mix = Mix(4).double().requires_grad_(False)
    assert torch.equal(mix(torch.eye(4, dtype=torch.float64))[0], torch.eye(4).double().flip(-1))
    for weight in mix.parameters():
        weight += normal(*weight.shape, seed=2)
    z = normal(3, 4)
    matrix = torch.autograd.functional.jacobian(lambda row: mix(row[None])[0][0], z[0])
    assert abs(float(mix(z)[1][0] - torch.linalg.slogdet(matrix).logabsdet)) < 1e-9
    back, log_det = mix.inverse(mix(z)[0])
    assert torch.allclose(back, z, atol=1e-9)
    assert torch.allclose(log_det, -mix(z)[1])


@pytest.mark.parametrize(("layout", "kind"), KINDS)
@pytest.mark.parametrize("size", [1, 2])
def test_without_context_it_is_a_plain_density(layout, kind, size):
    estimator = flow(layout, kind, size, context=0)
    z, log_prob = estimator.sample_and_log_prob(20, torch.empty(2, 0).double(), torch.Generator().manual_seed(1))
    assert torch.allclose(estimator.log_prob(z, torch.empty(2, 0).double()), log_prob, atol=1e-9)


def test_dropout_acts_in_training_only():
    estimator = flow("autoregressive", "spline", dropout=0.5)
    z, context = normal(4, 3), normal(4, 2, seed=1)
    with lending(0):
        assert torch.equal(estimator(z, context), estimator(z, context))
        estimator.train()
        assert not torch.allclose(estimator(z, context), estimator(z, context))


def test_tails_go_on_as_straight_lines():
    """Beyond the bound ln q is that of a normal of some width: its third difference vanishes."""
    estimator = flow("autoregressive", "spline", size=1, transforms=1)
    z = torch.arange(6.0, 10.0, dtype=torch.float64)[:, None]
    third = torch.diff(estimator.log_prob(z, torch.zeros(4, 2).double()), n=3)
    assert abs(float(third)) < 1e-9


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"transform": 3}, "did you mean 'transforms'"),
        ({"transforms": 0}, "transforms"),
        ({"layout": "spiral"}, "layout"),
        ({"bins": 1}, "bins"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_bad_options_are_refused_by_name(values, sentence):
    with pytest.raises(OptionError, match=sentence):
        family("flow", **values)


def test_an_unknown_family_is_answered_by_the_nearest():
    with pytest.raises(OptionError, match="did you mean 'flow'"):
        family("flwo")


def test_options_survive_json():
    chosen = Flow(**SMALL, layout="coupling", map="affine", dropout=0.25)
    assert options.restore("estimator", FAMILIES, options.describe(FAMILIES, chosen)) == chosen
