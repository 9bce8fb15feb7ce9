"""Masks that hide what they must and pass what they may; contexts that rows share."""

import pytest
import torch

from sbi_dgm.conditioners import JointMLP, MaskedMLP
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
