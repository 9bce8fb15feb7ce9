"""Weights of two kinds: the posterior that they give, and the weight of each row, against analytic answers."""

import numpy as np
import pytest
from weight_toys import (
    SHIFT,
    WIDE,
    check_gaussian,
    check_right,
    columns,
    effective,
    events,
    found,
    proposed,
    simulations,
    train,
)

from sbi_dgm import weights
from sbi_dgm.errors import DataError


def test_proposal_weights_give_the_posterior_under_the_prior():
    """Without them it is the posterior under the proposal, N((x + SHIFT) / 2, 1 / 2)."""
    data = proposed(8000)
    check_right(train(data), effective(data.column("proposal_weight")))
    without = train(proposed(8000, weighted=False))
    check_gaussian(without, lambda x: (x + SHIFT) / 2, 0.5, 8000)
    with pytest.raises(AssertionError):
        check_right(without, 8000)


def test_event_weights_leave_the_prior_alone_unless_the_rate_is_wanted():
    """With the cross section e^theta in them, the prior N(0, 1) becomes N(1, 1)."""
    data = events()
    check_right(train(data), effective(found(data)))
    tilted = train(data, rate=True)
    check_gaussian(tilted, lambda x: (x + 1) / 2, 0.5, effective(found(data, rate=True)))
    with pytest.raises(AssertionError):
        check_right(tilted, effective(found(data, rate=True)))


def test_events_without_their_weights_are_drawn_too_wide():
    data = events()
    plain = train(simulations(data.theta[:, 0], data.x(np.arange(len(data)))["x"][:, 0]))
    check_gaussian(plain, lambda x: x / (1 + WIDE), WIDE / (1 + WIDE), len(data))


def test_weights_without_a_sign_are_not_learned(monkeypatch):
    monkeypatch.setattr(weights, "_local_mean", None)
    data = events()
    assert np.array_equal(found(data, rate=True), data.column("event_weight"))
    theta, x = columns(data)
    valid = np.arange(len(data)) != 5
    failed = np.where(valid, data.column("event_weight"), -1.0)
    assert np.array_equal(found(simulations(theta, x, event_weight=failed, valid=valid), rate=True), failed)


def test_event_weights_have_mean_one_over_the_valid_rows_of_each_point():
    rng = np.random.default_rng(0)
    theta = np.array([0.1, -0.4, 0.9]).repeat([10, 40, 30])[rng.permutation(80)]
    valid = rng.random(80) < 0.8
    valid[theta == 0.1] = True
    weight = found(simulations(theta, theta, event_weight=rng.exponential(np.exp(theta)), valid=valid))
    means = [weight[valid & (theta == point)].mean() for point in (0.1, -0.4, 0.9)]
    assert means == pytest.approx([1, 1, 1], abs=1e-12)


def test_few_events_at_a_point_are_refused_with_the_remedy():
    theta = np.array([0.5, 0.25]).repeat([9, 51])
    data = simulations(theta, theta, event_weight=np.ones(60))
    message = r"1 of 2 parameter points have fewer than 10 events \(the first: 9 at \[0\.5\]\).*rate=True \(--rate\)\."
    with pytest.raises(DataError, match=message):
        found(data)
    assert found(data, rate=True).tolist() == [1] * 60
    valid = theta == 0.25
    assert found(simulations(theta, theta, event_weight=np.ones(60), valid=valid))[valid].tolist() == [1] * 51


def test_weights_that_sum_to_nothing_are_refused():
    theta = np.array([0.5, 0.25]).repeat(30)
    data = simulations(theta, theta, event_weight=np.where(theta > 0.3, 0.0, 1.0))
    with pytest.raises(DataError, match=r"sum at the parameter point \[0\.5\] is not positive"):
        found(data)
    with pytest.raises(DataError, match="sum over the 60 valid rows is not positive"):
        found(simulations(theta, theta, event_weight=np.zeros(60)), rate=True)


def test_weights_of_both_kinds_multiply():
    rng = np.random.default_rng(0)
    theta, proposal, event = np.array([0.5, 0.25]).repeat(30), rng.exponential(size=60), rng.exponential(size=60)
    both = simulations(theta, theta, proposal_weight=proposal, event_weight=event)
    assert np.array_equal(found(both, rate=True), proposal * event)
    assert np.array_equal(found(both), proposal * found(simulations(theta, theta, event_weight=event)))
    assert np.array_equal(found(simulations(theta, theta, proposal_weight=proposal)), proposal)
    assert found(simulations(theta, theta)) is None
