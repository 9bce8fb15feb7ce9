"""The flat optimiser against torch's own, weight by weight."""

import pytest
import torch
from torch import nn

from sbi_dgm.errors import TrainingError
from sbi_dgm.optimiser import AdamW, flattened
from sbi_dgm.seeds import lending


def pair():
    with lending(0):
        first = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    second = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    second.load_state_dict(first.state_dict())
    return first, second


def check_follows_torch(ours: nn.Module, theirs: nn.Module, decay: float, clip: float, said: float) -> None:
    """Thirty steps of a changing rate; `said` is the decay that ours is told."""
    flat = AdamW(list(ours[0].parameters()), list(ours[2].parameters()), decay=said, clip=clip)
    groups = [{"params": theirs[0].parameters(), "weight_decay": decay}, {"params": theirs[2].parameters()}]
    reference = torch.optim.AdamW(groups, weight_decay=0.0)
    generator = torch.Generator().manual_seed(1)
    for step in range(30):
        x = torch.randn(8, 3, generator=generator, dtype=torch.float64)
        rate = 0.1 / (1 + step)
        flat.clear()
        ours(x).square().sum().backward()
        flat.step(rate)
        reference.zero_grad()
        theirs(x).square().sum().backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), clip)
        for group in reference.param_groups:
            group["lr"] = rate
        reference.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("clip", [0.5, 1e9])
def test_steps_are_those_of_torch(clip):
    check_follows_torch(*pair(), 0.1, clip, said=0.1)


def test_another_decay_is_noticed():
    with pytest.raises(AssertionError):
        check_follows_torch(*pair(), 0.1, 1e9, said=0.11)


def test_parameters_become_views_of_one_vector_and_keep_their_numbers():
    module, same = pair()
    vector = flattened(module.parameters())
    for a, b in zip(module.parameters(), same.parameters(), strict=True):
        assert torch.equal(a, b)
    vector.zero_()
    assert all((p == 0).all() for p in module.parameters())


def test_state_goes_on_where_it_was():
    ours, _ = pair()
    flat = AdamW([], list(ours.parameters()), decay=0.0, clip=1.0)
    ours(torch.ones(1, 3).double()).sum().backward()
    flat.step(0.1)
    kept, weights = flat.state(), flat.weights.clone()
    flat.step(0.1)
    after = flat.weights.clone()
    flat.weights.copy_(weights)
    flat.restore(kept)
    flat.step(0.1)
    assert torch.equal(flat.weights, after)


def test_weights_without_a_gradient_stay():
    ours, _ = pair()
    before = ours[2].weight.clone()
    flat = AdamW([], list(ours.parameters()), decay=0.0, clip=1.0)
    ours[0](torch.ones(1, 3).double()).sum().backward()
    flat.step(0.1)
    assert torch.equal(ours[2].weight, before)


def test_mixed_numbers_are_refused():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    with pytest.raises(TrainingError, match=r"float32.*float64"):
        flattened(module.parameters())
