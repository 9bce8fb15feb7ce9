"""Masks that hide what they must and pass what they may; starts at zero; rows that never meet."""

from unittest import mock

import pytest
import torch

from sbi_dgm import networks
from sbi_dgm.networks import JointMLP, MaskedMLP, ResidualMLP, SteeredMLP
from sbi_dgm.seeds import lending

SHAPES = [(1, 2, 3), (2, 3, 1), (5, 4, 2), (3, 1, 4)]  # features, context, outputs per feature


def shaken(features, context, outputs):
    """A `MaskedMLP` whose every weight is far from zero."""
    with lending(features, context):
        net = MaskedMLP(features, context, outputs, hidden=32).double()
        for p in net.parameters():
            torch.nn.init.normal_(p, std=0.7)
    return net


def influence(net, features, context):
    """Which output group depends on which input (features, features), and on which context (features, context)."""
    z, c = torch.linspace(-1, 1, features, dtype=torch.float64), torch.linspace(0.5, 2, context, dtype=torch.float64)
    by_z, by_c = torch.autograd.functional.jacobian(lambda z, c: net(z[:, None], c[None])[..., 0], (z, c))
    return by_z.abs().amax(1), by_c.abs().amax(1)


def check_is_autoregressive(net, features, context):
    by_z, by_c = influence(net, features, context)
    assert (by_z.triu() == 0).all()
    assert (by_z[*torch.tril_indices(features, features, -1)] > 0).all()
    assert (by_c > 0).all()


@pytest.mark.parametrize(("features", "context", "outputs"), SHAPES)
def test_group_i_sees_the_inputs_before_it_and_the_context(features, context, outputs):
    check_is_autoregressive(shaken(features, context, outputs), features, context)


def leak(net):
    net.blocks[0].inner.mask.fill_(1.0)


def blind_to_the_context(net):
    net.beside.weight.data[:, -1] = 0


def blind_to_an_input(net):
    net.first.mask[:, 1] = 0


def loosen(net):
    net.last.mask = (net.last.mask + net.last.mask.roll(-1, 0)).clamp(max=1)


@pytest.mark.parametrize("spoil", [leak, blind_to_the_context, blind_to_an_input, loosen])
def test_a_wrong_mask_is_noticed(spoil):
    net = shaken(5, 4, 2)
    spoil(net)
    with pytest.raises(AssertionError):
        check_is_autoregressive(net, 5, 4)


def test_the_masked_network_starts_at_zero_and_its_groups_do_not_mix():
    with lending(0):
        net = MaskedMLP(3, 2, 4)
    assert (net(torch.ones(3, 7), torch.ones(7, 2)) == 0).all()
    net = shaken(2, 1, 3)
    z, c = torch.randn(2, 5, generator=torch.Generator().manual_seed(0)).double(), torch.ones(5, 1).double()
    changed = net(z + torch.tensor([[0.0], [1.0]]), c) - net(z, c)
    assert changed.shape == (2, 3, 5)
    assert (changed == 0).all()


@pytest.mark.parametrize("each", [1, 3])
@pytest.mark.parametrize(("features", "context", "outputs"), [*SHAPES, (4, 0, 2)])
def test_inputs_that_follow_from_their_outputs_solve_the_same_equations(features, context, outputs, each):
    """z_i = sum of group i + a known number: found one after another, they are a fixed point of the whole network."""
    net = shaken(features, context, outputs)
    c = torch.linspace(-1, 1, 4 * context, dtype=torch.float64).reshape(4, context)
    known = torch.linspace(-1, 1, 4 * each * features, dtype=torch.float64).reshape(features, 4 * each)
    z = net.solve(4 * each, c, lambda i, raw: known[i] + torch.tanh(raw.sum(0)))
    torch.testing.assert_close(z, known + torch.tanh(net(z, c).sum(1)), rtol=0, atol=1e-12)
    wrong = z.roll(1, 1)
    assert not torch.allclose(wrong, known + torch.tanh(net(wrong, c).sum(1)), atol=1e-3)


@pytest.mark.parametrize(("make", "inputs", "context"), [(JointMLP, 2, 3), (JointMLP, 0, 3), (JointMLP, 2, 0)])
def test_rows_behind_each_other_share_their_context(make, inputs, context):
    with lending(6):
        net = make(inputs, context, 4, 5).double()
        for p in net.parameters():
            torch.nn.init.normal_(p)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(inputs, 6, generator=generator, dtype=torch.float64)
    c = torch.randn(3, context, generator=generator, dtype=torch.float64)
    repeated = net(z, c.repeat_interleave(2, 0))
    assert repeated.shape == (4, 5, 6)
    torch.testing.assert_close(net(z, c), repeated)
    if context:
        assert not torch.allclose(net(z, c), net(z, c.repeat(2, 1)))


@pytest.mark.parametrize("inputs", [0, 4])
def test_a_residual_network_starts_at_exactly_zero_on_demand(inputs):
    x = torch.randn(6, inputs, generator=torch.Generator().manual_seed(0))
    with lending(1):
        still, moving = ResidualMLP(inputs, 3, zero=True), ResidualMLP(inputs, 3)
    assert (still(x) == 0).all()
    assert (moving(x) != 0).any(0).all()
    still(x).sum().backward()
    assert still.last[1].weight.grad.abs().sum() > 0  # zero, and able to leave it


def test_without_inputs_a_residual_network_is_a_learned_constant():
    with lending(2):
        net = ResidualMLP(0, 2)
    y = net(torch.empty(5, 0))
    torch.testing.assert_close(y, y[:1].expand_as(y))  # rows of a product round by where they stand
    y[:, 0].sum().backward()
    assert net.first.value.grad.abs().sum() > 0


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_rows_never_see_each_other(blocks):
    with lending(3):
        net = ResidualMLP(3, 2, blocks=blocks, dropout=0.5).eval()
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    jacobian = torch.autograd.functional.jacobian(net, x)  # (4, 2, 4, 3)
    between = jacobian.abs().sum((1, 3))
    assert (between.diagonal() > 0).all()
    assert (between - between.diagonal().diag() == 0).all()


def test_dropout_acts_in_training_only_and_from_the_lent_generator():
    with lending(4):
        net = ResidualMLP(3, 2, dropout=0.5)
    x = torch.ones(1, 3)

    def draw(key):
        with lending(5, key):
            return net(x)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    net.eval()
    assert torch.equal(draw(1), draw(2))


def derivatives_are_pushed_forward(net):
    """The output is that of `forward`, and derivatives along directions those of torch, with gradients in float64."""
    noise = torch.Generator().manual_seed(6)
    z, c = torch.randn(5, 3, generator=noise).double(), torch.randn(5, 2, generator=noise).double()
    s, along = torch.rand(5, generator=noise).double(), torch.randn(4, 5, 3, generator=noise).double()
    steering = net.steer(c)
    value, pushed = net.pushed(z, s, steering, along)
    torch.testing.assert_close(value, net(z, s, steering))
    expected = [torch.func.jvp(lambda v: net(v, s, steering), (z,), (e,))[1] for e in along]
    torch.testing.assert_close(pushed, torch.stack(expected))
    torch.autograd.gradcheck(
        lambda v, h: net.pushed(v, s, h, along), (z.requires_grad_(), steering.detach().requires_grad_())
    )


@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_a_steered_network_pushes_derivatives_forward(blocks):
    with lending(7):
        net = SteeredMLP(3, 2, hidden=6, blocks=blocks).double()
        torch.nn.init.normal_(net.last[1].weight)
    derivatives_are_pushed_forward(net)
    right = networks._silu
    with (
        mock.patch.object(networks, "_silu", lambda x: (right(x)[0], 1.01 * right(x)[1])),
        pytest.raises(AssertionError),
    ):
        derivatives_are_pushed_forward(net)
