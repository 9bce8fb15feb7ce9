"""Weights of both signs: their local mean, learned from rows that it does not judge, is the weight."""

import numpy as np
import pytest
from scipy.stats import norm
from weight_toys import (
    CPU,
    FREEDOM,
    PRIOR,
    SIZE,
    WIDE,
    brief,
    check_gaussian,
    check_right,
    columns,
    found,
    ratio,
    signed,
    simulations,
    train,
)

import sbi_dgm
from sbi_dgm import weights
from sbi_dgm.data.reading import Reading
from sbi_dgm.data.source import Source
from sbi_dgm.distributions import Normal
from sbi_dgm.errors import DataError
from sbi_dgm.parameters import Parameter
from sbi_dgm.priors import Prior


def regression_error(weight: np.ndarray, truth: np.ndarray) -> float:
    """Root mean square, in units of the spread of the truth: 1 for a constant."""
    return float(((weight - truth) ** 2).mean() ** 0.5 / truth.std())


@pytest.mark.filterwarnings("ignore:event weights")
def test_signed_weights_are_learned_and_give_the_posterior_of_their_mean():
    """A weight's noise is at most SIZE: a regression of P numbers on n rows (3 of 8) errs by SIZE sqrt(P / n)."""
    data = signed(12_000)
    weight, truth = found(data, rate=True), ratio(*columns(data))
    bound = 2 * SIZE * (FREEDOM / 4500) ** 0.5 / truth.std()
    assert regression_error(weight, truth) < bound < 0.8
    assert regression_error(np.abs(data.column("event_weight")), truth) > 1
    check_right(train(data, rate=True), len(data) / SIZE**2)
    theta, x = columns(data)
    unsigned = train(simulations(theta, x, event_weight=np.full(len(data), SIZE)), rate=True)
    check_gaussian(unsigned, lambda x: x / (1 + WIDE), WIDE / (1 + WIDE), len(data))
    with pytest.raises(AssertionError):
        check_right(unsigned, len(data) / SIZE**2)


def test_a_mean_that_is_negative_is_refused_with_numbers():
    with pytest.raises(
        DataError, match=r"local mean is negative at \d+ of 3000 rows, with \d+\.\d% of the weight: no dens"
    ):
        found(signed(3000, offset=1.0), rate=True)


def test_a_mean_a_little_below_zero_is_counted_and_becomes_zero():
    mean, valid = np.array([-0.01, 1.0, 2.0, -5.0]), np.array([1, 1, 1, 0], bool)
    with pytest.warns(UserWarning, match=r"1 local means a little below zero \(0\.33% of the weight\)"):
        assert weights._positive(mean, valid).tolist() == [0, 1, 2, 0]
    with pytest.raises(DataError, match=r"negative at 1 of 3 rows, with 3\.2%"):
        weights._positive(np.array([-0.1, 1.0, 2.0, 0.0]), valid)


@pytest.mark.filterwarnings("ignore:event weights")
def test_the_mean_of_a_row_does_not_depend_on_its_own_weight(monkeypatch):
    """One weight, a thousand times as large, changes the other half's means, and none of its own half's."""
    brief(monkeypatch)
    data, changed = signed(600), 123
    weight = data.column("event_weight").copy()
    weight[changed] *= 1000
    theta, x = columns(data)
    before, after = found(data, rate=True), found(simulations(theta, x, event_weight=weight), rate=True)
    halves = sbi_dgm.data.splits.split_rows(
        sbi_dgm.SplitRule(validation=0.5, test=0.0), np.arange(600), np.ones(600, bool)
    )
    own, other = (halves.train, halves.validation)[:: 1 if changed in halves.train else -1]
    assert np.array_equal(before[own], after[own])
    assert (before[other] != after[other]).mean() > 0.9


@pytest.mark.filterwarnings("ignore:event weights")
def test_rows_of_one_group_are_learned_together(monkeypatch):
    """Two rows of a group have their means from the same network, which has seen neither."""
    brief(monkeypatch)
    theta, x = (values.repeat(2) for values in columns(signed(300)))
    weight = signed(600).column("event_weight")
    mean = found(simulations(theta, x, event_weight=weight, group=np.arange(300).repeat(2)), rate=True)
    assert np.array_equal(mean[::2], mean[1::2])
    apart = found(simulations(theta, x, event_weight=weight), rate=True)
    assert not np.array_equal(apart[::2], apart[1::2])


@pytest.mark.filterwarnings("ignore:event weights")
def test_signed_weights_of_all_rows_are_learned_where_the_file_has_splits(monkeypatch):
    """Also those of test rows, which diagnostics need, and none of a row that failed."""
    brief(monkeypatch)
    monkeypatch.setattr(weights, "_positive", lambda mean, valid: np.abs(mean))
    data = signed(600)
    theta, x = columns(data)
    label, valid = np.arange(600) % 3, np.arange(600) % 7 > 0
    weight = found(simulations(theta, x, event_weight=data.column("event_weight"), split=label, valid=valid), rate=True)
    assert np.array_equal(weight > 0, valid)


@pytest.mark.filterwarnings("ignore:event weights")
def test_signed_weights_with_a_cross_section_leave_the_prior_alone():
    """Means are learned first, then divided by their mean at each point: the noise of the signs does not enter."""
    rng, theta = np.random.default_rng(6), norm.ppf((np.arange(200) + 0.5) / 200).repeat(60)
    x = theta + WIDE**0.5 * rng.normal(size=len(theta))
    sign = np.where(rng.random(len(theta)) < (1 + ratio(theta, x) / SIZE) / 2, 1, -1)
    data = simulations(theta, x, event_weight=SIZE * np.exp(theta) * sign)
    means = found(data).reshape(200, 60).mean(1)
    assert np.allclose(means, 1, atol=1e-9)
    check_right(train(data), len(data) / SIZE**2 / np.e)


@pytest.mark.filterwarnings("ignore:event weights")
def test_signed_weights_are_learned_from_a_stream_too(monkeypatch):
    brief(monkeypatch)
    source = Source(signed(600), PRIOR)
    monkeypatch.setattr(weights, "_positive", lambda mean, valid: mean)
    both = [
        weights.row_weights(source, Reading(mode=mode), rate=True, seed=0, device=CPU) for mode in ("memory", "stream")
    ]
    assert np.isfinite(both[1]).all()
    assert not np.array_equal(*both), "another order of rows"


@pytest.mark.filterwarnings("ignore:event weights")
def test_the_mean_of_signed_weights_is_learned_given_all_parameters(monkeypatch):
    """So that a parameter that is not inferred may change the cross section; one that never changes may not."""
    brief(monkeypatch)
    monkeypatch.setattr(weights, "_positive", lambda mean, valid: mean)
    prior = Prior([Parameter(name, Normal(0, 1)) for name in "abc"])
    data = signed(600)
    x, theta = columns(data)[1], np.c_[prior.sample(600, 0)[:, :2], np.full(600, 0.3)]
    given = sbi_dgm.Simulations.from_arrays(theta, x, prior=prior, event_weight=data.column("event_weight"))
    one, two = (
        weights.row_weights(Source(given, prior.marginal(n)), Reading(mode="memory"), rate=True, seed=0, device=CPU)
        for n in (["a"], ["b", "a"])
    )
    assert np.array_equal(one, two)
    theta[:, 1] = prior.sample(600, 1)[:, 1]
    given = sbi_dgm.Simulations.from_arrays(theta, x, names=["a", "b", "c"], event_weight=data.column("event_weight"))
    source = Source(given, prior.marginal(["a"]))
    other = weights.row_weights(source, Reading(mode="memory"), rate=True, seed=0, device=CPU)
    assert np.isfinite(other).all()
    assert not np.array_equal(one, other)
