"""Weights in training: what they make of batches, gradients and the validation loss."""

import numpy as np
import pytest
import torch
from training_toys import check_same
from weight_toys import BRIEF, RULE, brief, columns, proposed, signed, simulations, train

from sbi_dgm.loop import Run


@pytest.mark.filterwarnings("ignore:event weights")
@pytest.mark.parametrize("kind", ["proposal_weight", "event_weight", "signed"])
def test_a_factor_common_to_all_weights_changes_nothing(monkeypatch, kind):
    """Powers of two, so that there is no rounding: equal to the bit. Other factors are as good as that."""
    brief(monkeypatch)
    data = signed(400)
    weight, name = data.column("event_weight"), kind if kind != "signed" else "event_weight"
    weight = weight if kind == "signed" else np.abs(weight) * np.random.default_rng(0).random(400)
    theta, x = columns(data)
    rate = name == "event_weight"
    fits = [train(simulations(theta, x, **{name: factor * weight}), BRIEF, rate=rate) for factor in (1, 2.0**-60, 2)]
    check_same(fits[0], fits[1])
    check_same(fits[0], fits[2])
    weight = weight * np.where(np.arange(400) % 2, 1, 2)
    with pytest.raises(AssertionError):
        check_same(fits[0], train(simulations(theta, x, **{name: weight}), BRIEF, rate=rate))


@pytest.fixture
def caught(monkeypatch) -> list[Run]:
    """The runs that `fit` makes."""
    runs = []

    class Kept(Run):
        def __init__(self, *given) -> None:
            super().__init__(*given)
            runs.append(self)

    monkeypatch.setattr("sbi_dgm.job.Run", Kept)
    return runs


def test_batches_are_divided_by_the_mean_weight_of_all_training_rows(caught):
    data = proposed(600)
    train(data, BRIEF)
    weight, parts = data.column("proposal_weight"), data.split(RULE)
    seen = torch.cat([caught[0].batches[step].weight for step in range(caught[0].batches.per_epoch)]).numpy()
    expected = (weight / weight[parts.train].mean())[parts.train].astype(np.float32)
    assert np.isin(seen, expected).all()
    means = [float(caught[0].batches[step].weight.mean()) for step in range(7)]
    assert np.std(means) > 0.05, "a batch keeps its own mean"
    assert caught[0].held_out.weight.double().mean() == pytest.approx(1, abs=1e-6)


def test_the_gradient_of_a_batch_is_linear_in_its_weights(caught):
    """With weights divided by the batch's own sum it would not be: gradients of weights a, b and a + b add up."""
    train(proposed(600), BRIEF)
    network, batch = caught[0].network.eval(), caught[0].batches[0]  # without dropout
    ones = torch.ones_like(batch.weight)

    def gradient(weight, total=None):
        network.zero_grad()
        (weight * network(batch.z, batch.x)).mean().div(1 if total is None else total).backward()
        return torch.cat([p.grad.flatten() for p in network.parameters()])

    apart, together = gradient(batch.weight) + gradient(ones), gradient(batch.weight + ones)
    assert torch.allclose(apart, together, rtol=1e-4, atol=1e-5)
    own = [gradient(w, w.mean()) for w in (batch.weight, ones, batch.weight + ones)]
    assert not torch.allclose(own[0] + own[1], own[2], rtol=1e-4, atol=1e-5)


def test_the_validation_loss_is_the_weighted_mean(caught):
    data = proposed(600)
    posterior = train(data, BRIEF)
    rows, weight = data.split(RULE).validation, data.column("proposal_weight")
    theta, x = columns(data)
    loss = -posterior.log_prob(theta[rows, None], x[rows, None])
    assert caught[0].validate() == pytest.approx(float((weight[rows] * loss).sum() / weight[rows].sum()), abs=1e-4)
    assert abs(caught[0].validate() - float(loss.mean())) > 1e-3


def test_validation_and_training_weights_do_not_leak_into_each_other(caught):
    """Weights of validation rows a thousand times as large are the same weights."""
    data = proposed(600)
    weight = data.column("proposal_weight").copy()
    weight[data.split(RULE).validation] *= 1024
    theta, x = columns(data)
    check_same(train(data, BRIEF), train(simulations(theta, x, proposal_weight=weight), BRIEF))
