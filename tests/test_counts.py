"""Whole numbers in a learned likelihood: told by their values, dequantised, with probabilities instead of densities."""

import warnings
from itertools import product

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit

from sbi_dgm import Flow, Located, Simulations, Training, fit
from sbi_dgm.data.exchanged import GIVEN, Roles, counted, exchanged
from sbi_dgm.data.splits import SplitRule
from sbi_dgm.distributions import LogNormal, Normal, SoftplusNormal, Uniform
from sbi_dgm.errors import ObservationError
from sbi_dgm.parameters import Observable, Parameter
from sbi_dgm.priors import Prior

QUICK = {"training": Training(batch_size=200, max_rounds=30), "progress": False, "device": "cpu"}
BRIEF = QUICK | {"training": Training(batch_size=200, max_rounds=2), "learn": "likelihood"}
SMALL = Flow(transforms=2, hidden=24, blocks=1)
RATES = Prior([Parameter("log_rate", Uniform(0, 3))])


def poisson(dtype, n=4000):
    theta = RATES.draw(n, np.random.default_rng(0))
    drawn = np.random.default_rng(1).poisson(np.exp(theta[:, 0]))
    return Simulations.from_arrays(theta, {"n": drawn.astype(dtype)}, prior=RATES)


def made(x, seed=0):
    return Simulations.from_arrays(np.random.default_rng(seed).normal(size=(len(x), 1)), {"x": x})


def turned(data):
    return exchanged(data, data.split(SplitRule()), 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_counts_get_probabilities_that_sum_to_one(dtype):
    likelihood = fit(poisson(dtype), SMALL, learn="likelihood", **QUICK)
    n = np.arange(200, dtype=dtype)
    for rate in (0.5, 2.5):
        log_q = likelihood.log_prob(n, np.full((200, 1), rate))
        exact = stats.poisson(np.exp(rate))
        assert abs(np.exp(log_q).sum() - 1) < 0.02
        divergence = exact.pmf(n.astype(int)) @ (exact.logpmf(n) - log_q)
        assert -0.02 < divergence < 0.05  # by how much the sum is not one
        drawn = likelihood.sample([rate], 4000, seed=0)
        assert drawn.dtype == (np.int64 if dtype == np.uint8 else dtype)
        assert np.array_equal(drawn, np.floor(drawn))
        assert drawn.min() >= 0
        assert abs(drawn.mean() - exact.mean()) < 0.1 * exact.std()
        assert abs(drawn.var() / exact.var() - 1) < 0.15


def test_the_type_of_the_file_changes_nothing(tmp_path):
    """Nor does saving: counts in a floating column and in one of integers have one likelihood, to the last digit."""
    whole, floating = (fit(poisson(dtype, 500), SMALL, **BRIEF) for dtype in (np.int32, np.float64))
    floating.save(tmp_path / "likelihood.safetensors")
    at = np.arange(5), np.full((5, 1), 1.5)
    expected = whole.log_prob(*at)
    np.testing.assert_array_equal(floating.log_prob(*at), expected)
    np.testing.assert_array_equal(type(whole).load(tmp_path / "likelihood.safetensors").log_prob(*at), expected)
    with pytest.raises(ObservationError, match=r"observation 1: n is 2.5, and whole in all simulations"):
        floating.log_prob(np.array([2.0, 2.5]), np.full((2, 1), 1.5))


def test_dequantised_numbers_fill_the_unit_interval_above():
    rng = np.random.default_rng(0)
    n = rng.integers(0, 5, (3000, 2))
    data = Simulations.from_arrays(rng.normal(size=(3000, 1)), {"n": n, "y": rng.normal(size=3000)})
    found = exchanged(data, data.split(SplitRule()), seed=3)
    above = found.theta[:, :2] - n
    assert stats.kstest(above.ravel(), "uniform").pvalue > 1e-3
    np.testing.assert_array_equal(found.theta[:, 2], data.columns["x/y"][:])
    assert found.names == ["n[0]", "n[1]", "y"]


def test_what_is_whole_is_told_by_all_values():
    """One fraction makes a number continuous; beyond 2^24 every float32 is whole, and none is meant to be."""
    rng = np.random.default_rng(0)
    x = rng.integers(-40, 40, (300, 3)).astype(np.float32)
    x[17, 1] += 0.5
    x[:, 2] = 2**24 * (2 + rng.random(300))
    assert (x[:, 2] == np.floor(x[:, 2])).all()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = turned(made(x))
    assert found.roles.counts == ["x[0]"]
    assert [str(w.message).split(" = ")[0] for w in caught] == ["x[1]"]


@pytest.mark.parametrize(("dtype", "fixed"), [(np.float32, {"x[1]": 3.0}), (np.int16, {})])
def test_a_number_that_never_varies_is_a_count_by_its_type_alone(dtype, fixed):
    x = np.random.default_rng(0).integers(0, 9, (200, 2)).astype(dtype)
    x[:, 1] = 3
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"x\[1\] = 3 in all rows")
        roles = turned(made(x)).roles
    assert roles.fixed == fixed
    assert roles.counts == ["x[0]", "x[1]"][: 2 - len(fixed)]


def test_what_comes_again_and_is_not_whole_is_named():
    x = np.random.default_rng(0).normal(size=(1000, 2))
    x[:50, 1] = 0.25
    with pytest.warns(UserWarning, match=r"^x\[1\] = 0.25 \(5% of rows\): a value that comes so often"):
        turned(made(x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        turned(made(x[50:]))


def test_roles_of_a_file_know_their_counts():
    roles = Roles({"a": Observable((2,)), "n": Observable(())}, {"a": "<f4", "n": "|u1"}, ["t"], None)
    counted = roles._replace(counts=["a[1]", "n"])
    assert not roles.whole.any()
    assert Roles.restore(counted.describe()).whole.tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("v", "kind"),
    [
        (100 + np.random.default_rng(0).standard_normal(500), SoftplusNormal),
        (np.exp(3 + np.random.default_rng(0).standard_normal(500)) + 1, LogNormal),
        (np.exp(3 + np.random.default_rng(0).standard_normal(500)) * (np.arange(500) % 4) + 0.1, SoftplusNormal),
    ],
)
def test_counts_are_straight_but_for_zero_and_log_normal_without_zeros(v, kind):
    assert isinstance(counted(v, binary=False), kind)


def test_what_is_binary_is_told_by_all_rows_not_by_those_that_train():
    """A single 2 in the validation rows has a density; integers that may be negative are normal."""
    n = np.random.default_rng(0).integers(0, 2, (200, 2))
    label = np.repeat([0, 1], [180, 20])
    n[190, 1] = 2
    n = np.column_stack([n, n[:, 0] - 1])
    data = Simulations.from_arrays(np.random.default_rng(1).normal(size=(200, 1)), {"n": n}, split=label)
    found = turned(data)
    kinds = [p.prior for p in found.reference(found.names, np.arange(180))[0].parameters]
    assert [type(kind) for kind in kinds] == [Uniform, SoftplusNormal, Normal]
    assert np.isfinite([kind.log_prob(v) for kind, v in zip(kinds, found.theta.T, strict=True)]).all()
    assert np.floor(kinds[0].from_normal(np.array([-30.0, 30.0]))).tolist() == [0, 1]


def bits(n, seed=0):
    """Six numbers that are 1 with probabilities expit(theta + offset)."""
    prior = Prior([Parameter("t", Uniform(-3, 3))])
    theta = prior.sample(n, seed)
    ones = np.random.default_rng(seed + 1).random((n, 6)) < expit(theta + OFFSET)
    return Simulations.from_arrays(theta, {"x": ones.astype(np.float32)}, prior=prior)


OFFSET = np.linspace(-1, 1, 6)


def test_trains_of_zeros_and_ones_have_their_probabilities():
    """All 64 of them, for three theta: the divergence is small, and that from the opposite theta is not."""
    likelihood = fit(bits(4000), Located(Flow(transforms=2, hidden=16)), learn="likelihood", **QUICK)
    x = np.array(list(product([0.0, 1.0], repeat=6)))
    for theta in (-2.0, 1.0, 2.0):
        log_p, log_other = (_log_bits(x, one) for one in (theta, -theta))
        log_q = likelihood.log_prob(x, np.full((64, 1), theta))
        total = np.exp(log_q).sum()
        assert abs(total - 1) < 0.15  # sixteen points of six dimensions
        assert np.exp(log_p) @ (log_p - log_q + np.log(total)) < 0.1
        assert np.exp(log_p) @ (log_p - log_other) > 0.3
    drawn = likelihood.sample([0.5], 2000, seed=0)
    assert set(np.unique(drawn)) == {0.0, 1.0}
    assert np.abs(drawn.mean(0) - expit(0.5 + OFFSET)).max() < 0.1


def test_of_very_many_whole_numbers_the_centre_of_the_cube_is_taken():
    """And zero for what is not whole; up to 32 of them by sixteen points, whose mean is another number."""
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.integers(0, 2, (300, 33)), rng.normal(size=300)])
    many, few = (fit(made(part), Located(Flow(transforms=1, hidden=16)), **BRIEF) for part in (x, x[:, 1:]))
    theta, above = np.zeros((5, 1)), 0.5 * (np.arange(34) < 33)
    expected = many.inner.log_prob(x[:5] + above, {GIVEN: many.roles.given(theta)})
    np.testing.assert_allclose(many.log_prob(x[:5], theta), expected, rtol=0, atol=1e-4)
    twin = few.inner.log_prob(x[:5, 1:] + above[1:], {GIVEN: few.roles.given(theta)})
    assert np.abs(few.log_prob(x[:5, 1:], theta) - twin).max() > 0.01


def _log_bits(x, theta):
    return stats.bernoulli.logpmf(x, expit(theta + OFFSET)).sum(-1)


def test_chunks_of_theta_change_nothing(monkeypatch):
    """The matrices of a few theta at once, or of all: the same to rounding."""
    likelihood = fit(bits(400), Located(Flow(transforms=1, hidden=16)), **BRIEF)
    theta, x = np.linspace(-2, 2, 50)[:, None], np.array([0.0, 1, 1, 0, 1, 0])
    expected = likelihood.log_prob(x, theta)
    monkeypatch.setattr("sbi_dgm.likelihood.AT_ONCE", 36 * 7)
    np.testing.assert_allclose(likelihood.log_prob(x, theta), expected, rtol=0, atol=1e-5)
    assert np.ptp(expected) > 1e-3
