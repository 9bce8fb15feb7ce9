"""Starts at zero; rows that never meet; derivatives that are pushed forward."""

from unittest import mock

import pytest
import torch

from sbi_dgm import networks
from sbi_dgm.networks import ResidualMLP, SteeredMLP
from sbi_dgm.seeds import lending


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
