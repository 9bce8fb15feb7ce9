"""Scaling: numpy's moments over the training rows only, in one pass, arcsinh where tails demand it, digits kept."""

import warnings

import numpy as np
import pytest
import torch
from scaling_toys import bent, of_order_one, scaled, standardise

from sbi_dgm import Observable
from sbi_dgm.data import scaling
from sbi_dgm.data.scaling import Statistics, blank, scalers
from sbi_dgm.errors import DataError

ROWS = np.arange(0, 5000, 3)


def numbers(scaler):
    return scaler.mean.numpy(), scaler.sd.numpy()


def close(scaler, x, axis):
    """Whether a scaler holds numpy's moments of x."""
    expected = x.mean(axis, dtype=np.float64), x.std(axis, dtype=np.float64)
    return all(
        np.shape(a) == np.shape(b) and np.allclose(a, b, rtol=1e-5, atol=1e-6)
        for a, b in zip(numbers(scaler), expected, strict=True)
    )


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_moments_are_numpys_over_the_training_rows_only(shape, dtype):
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (5000, *shape)) * np.linspace(1, 5, 5000).reshape(-1, *(1,) * len(shape))
    x = x.astype(dtype)
    scaler, axis = standardise("x", x, ROWS), 0 if len(shape) <= 1 else None
    assert close(scaler, x[ROWS], axis)
    assert not close(scaler, x, axis)


@pytest.mark.parametrize("shape", [(60,), (8, 9)])
def test_one_pass_in_blocks_gives_numpys_moments_to_rounding(shape):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3000, *shape)) + np.linspace(0, 1e4, 3000).reshape(-1, *(1,) * len(shape))
    axis = 0 if len(shape) == 1 else None
    for block in (1, 7, 1000, 3000):
        mean, sd = numbers(standardise("x", x, np.arange(3000), block=block))
        np.testing.assert_allclose(mean, x.mean(axis), rtol=1e-12)
        np.testing.assert_allclose(sd, x.std(axis), rtol=1e-12)


def same(one, two, rtol=1e-12):
    pairs = zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    return all(torch.allclose(a.double(), b.double(), rtol=rtol, atol=0) for a, b in pairs)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint32])
def test_large_integers_keep_their_last_digits(dtype):
    """Seconds since 1970, of which float32 knows every 128th."""
    x = (1_700_000_000 + np.arange(100)).astype(dtype)
    statistics = Statistics("x", Observable(()), 100)
    statistics.add(np.arange(100), x)
    scaled = statistics.scaler(np.dtype(dtype))(torch.as_tensor(x.astype(np.int64)))
    np.testing.assert_allclose(np.diff(scaled), 1 / x.std(), rtol=1e-4)


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_every_kth_row_is_sampled_whatever_the_blocks(monkeypatch, shape):
    """The quantiles of heavy tails come from rows 0, k, 2k, ... in whatever pieces they arrive."""
    monkeypatch.setattr(scaling, "SAMPLE_ROWS", 100)
    x = np.random.default_rng(1).standard_cauchy((1003, *shape))
    rows = np.arange(1003)
    known = standardise("x", x, rows, block=1003)
    assert known.curved.any()
    np.testing.assert_allclose(known.centre, np.median(x[::11], axis=0 if len(shape) == 1 else None), rtol=1e-12)
    for block in (1, 2, 11, 13, 400):
        assert same(standardise("x", x, rows, block=block), known)
    assert not same(standardise("x", np.roll(x, 1, axis=0), rows), known)


@pytest.mark.parametrize("shape", [(), (1000,), (100, 100)])
def test_a_pass_keeps_a_sample_of_bounded_size(monkeypatch, shape):
    monkeypatch.setattr(scaling, "SAMPLE_ROWS", 50)
    monkeypatch.setattr(scaling, "SAMPLE_NUMBERS", 20_000)
    found = Statistics("x", Observable(shape), 10_000)
    for first in range(0, 10_000, 100):
        found.add(np.arange(first, first + 100), np.broadcast_to(np.float32(first), (100, *shape)))
    kept = [part.base if part.base is not None else part for part in found.sample]
    assert sum(part.size for part in kept) <= 20_000
    assert all(len(part) for part in found.sample[::50]), "from the first rows to the last"


def test_scalers_of_several_observables_come_from_one_pass():
    x = {"a": torch.randn(100, 3, generator=torch.Generator().manual_seed(0)), "n": torch.arange(100)}
    asked = []

    def stream():
        for first in range(0, 100, 30):
            asked.append(first)
            yield np.arange(first, min(first + 30, 100)), {name: v[first : first + 30] for name, v in x.items()}

    dtypes = {"a": np.dtype("f4"), "n": np.dtype("i8")}
    found = scalers({"a": Observable((3,)), "n": Observable(())}, dtypes, 100, stream())
    assert asked == [0, 30, 60, 90]
    np.testing.assert_allclose(found["a"].mean, x["a"].mean(0), atol=1e-6)
    assert float(found["n"].mean) == 49.5


@pytest.mark.parametrize("value", [0.0, 0.1, -7.3e8, 1e-30])
def test_an_entry_that_never_changes_is_named_and_scaled_by_one(value):
    x = np.random.default_rng(5).normal(size=(1000, 3))
    x[:, 1] = value
    with pytest.warns(UserWarning, match=r"'spectrum': entries \[1\] never change; they are scaled by 1"):
        scaler = standardise("spectrum", x, np.arange(1000))
    s = scaler(torch.as_tensor(x)).numpy()
    assert scaler.sd[1] == 1
    np.testing.assert_allclose(s[:, 1], 0, atol=1e-6)
    np.testing.assert_allclose(s[:, [0, 2]].std(0), 1, atol=1e-3)


def test_an_entry_constant_in_the_training_rows_alone_counts_as_constant():
    x = np.random.default_rng(5).normal(size=(1000, 2))
    x[:500, 0] = 4
    with pytest.warns(UserWarning, match=r"entries \[0\]"):
        scaler = standardise("x", x, np.arange(500))
    assert scaler.sd[0] == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(("shape", "place", "entry"), [((), (), 0), ((5,), (3,), 3), ((4, 6), (2, 5), 17)])
def test_a_number_that_is_not_finite_is_refused_with_row_and_entry(value, shape, place, entry):
    x = np.random.default_rng(6).normal(size=(300, *shape))
    x[(123, *place)] = value
    x[(200, *place)] = value
    rows = np.arange(21, 300, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match=f"observable 'x', row 123: entry {entry} is {value}"):
            standardise("x", x, rows)
        standardise("x", x, rows[(rows != 123)])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64, bool])
def test_integers_are_scaled_as_numbers(dtype):
    x = np.random.default_rng(7).integers(0, 2, (2000, 4)).astype(dtype)
    _, s = scaled(x)
    f = x.astype(float)
    assert s.dtype == np.float32
    np.testing.assert_allclose(s, (f - f.mean(0)) / f.std(0), atol=1e-5)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.float16])
def test_numbers_that_fill_their_dtype_are_judged_without_overflow(dtype):
    """numpy's quantiles of such numbers overflow in their own dtype."""
    most = np.finfo(dtype).max if dtype == np.float16 else np.iinfo(dtype).max
    x = (np.random.default_rng(7).uniform(-0.99, 0.99, 5000) * float(most)).astype(dtype)
    scaler, s = scaled(x)
    assert not bool(scaler.curved)
    assert abs(float(scaler.centre)) < 0.05 * float(most)
    np.testing.assert_allclose(s, (x - x.mean(dtype="f8")) / x.std(dtype="f8"), atol=1e-4)


def test_float64_keeps_its_digits_beside_a_large_offset():
    signal = np.random.default_rng(8).normal(size=(2000, 2))
    expected = bent((signal - signal.mean(0)) / signal.std(0))
    _, s = scaled(signal + 1e9)
    assert np.abs(s - expected).max() < 1e-5
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, rounded = scaled((signal + 1e9).astype(np.float32))
    assert np.abs(rounded - expected).max() > 0.1


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_the_network_always_sees_float32(dtype):
    x = (10 * np.random.default_rng(9).normal(size=(500, 3))).astype(dtype)
    assert scaled(x)[1].dtype == np.float32


SET = Observable((6, 3), kind="set")


def members(rows, features=2, most=6, seed=0, offset=5.0):
    """Sets (rows, most, features + 1) of a random number of members, zero elsewhere; and who is there."""
    rng = np.random.default_rng(seed)
    there = np.arange(most) < rng.integers(0, most + 1, rows)[:, None]
    x = np.zeros((rows, most, features + 1))
    x[there, :-1] = rng.normal(offset, 2, (there.sum(), features)) * np.arange(1, features + 1)
    x[there, -1] = 1
    return x, there


def test_statistics_of_a_set_are_those_of_its_members():
    x, there = members(2000)
    mean, sd = numbers(standardise("hits", x, np.arange(2000), observable=SET))
    np.testing.assert_allclose(mean, x[there, :-1].mean(0), rtol=1e-12)
    np.testing.assert_allclose(sd, x[there, :-1].std(0), rtol=1e-12)
    padded = x[..., :-1].reshape(-1, 2)
    assert not np.allclose(mean, padded.mean(0), rtol=0.1), "padding would count"
    assert not np.allclose(sd, padded.std(0), rtol=0.1)


def test_a_scaled_set_keeps_its_padding_its_flags_and_its_order_to_itself():
    x, there = members(500)
    scaler = standardise("hits", x, np.arange(500), observable=SET)
    s = scaler(torch.as_tensor(x)).numpy()
    assert s.dtype == np.float32
    assert (s[~there] == 0).all()
    np.testing.assert_array_equal(s[..., -1], there)
    straight = (x[there, :-1] - x[there, :-1].mean(0)) / x[there, :-1].std(0)
    np.testing.assert_allclose(s[there, :-1], bent(straight), atol=1e-5)
    order = np.random.default_rng(1).permutation(6)
    np.testing.assert_array_equal(scaler(torch.as_tensor(x[:, order])).numpy(), s[:, order])


def test_features_with_heavy_tails_and_without_share_a_set():
    x, there = members(5000)
    x[there, 0] = np.exp(2.5 * x[there, 0] / 2)
    scaler = standardise("hits", x, np.arange(5000), observable=SET)
    assert scaler.curved.tolist() == [True, False]
    s = scaler(torch.as_tensor(x)).numpy()
    assert all(of_order_one(s[there, i]) for i in range(2))
    assert (s[~there] == 0).all()


def test_sets_may_all_be_empty_for_a_while_or_for_good():
    x, there = members(600)
    x[:300], there[:300] = 0, False
    mean, _ = numbers(standardise("hits", x, np.arange(600), block=100, observable=SET))
    np.testing.assert_allclose(mean, x[there, :-1].mean(0), rtol=1e-12)
    nobody = standardise("hits", np.zeros((50, 6, 3)), np.arange(50), observable=SET)
    assert same(nobody, blank(SET))


def test_a_feature_of_a_set_that_is_not_finite_is_named_by_row():
    x, _ = members(300)
    x[123, 0, 1] = np.nan
    with pytest.raises(DataError, match="observable 'hits', row 123: entry 1 is nan"):
        standardise("hits", x, np.arange(300), block=50, observable=SET)


@pytest.mark.filterwarnings("ignore:.*constant", "ignore:.*never change")
@pytest.mark.parametrize("value", [1e30, 1.98847e33, -3.1, 0.1])
def test_an_entry_that_never_changes_becomes_zero_however_large(value):
    x = np.random.default_rng(9).normal(5, 2, (1000, 2))
    x[:, 1] = value
    statistics = Statistics("x", Observable((2,)), 1000)
    for first in range(0, 1000, 300):
        statistics.add(np.arange(first, min(first + 300, 1000)), x[first : first + 300])
    scaled = statistics.scaler(np.dtype(float))(torch.as_tensor(x))
    assert (scaled[:, 1] == 0).all()
    assert abs(float(scaled[:, 0].std()) - 1) < 1e-3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(2,), (3, 4)])
def test_one_value_is_exactly_zero_in_any_dtype_and_shape_and_blocks(shape, dtype):
    x = np.full((2000, *shape), 1.98847e33, dtype)
    for block in (1, 7, 2000):
        with pytest.warns(UserWarning, match="never change"):
            scaler = standardise("x", x, np.arange(2000), block=block)
        assert not scaler(torch.as_tensor(x)).any()


def test_rounding_of_a_huge_value_stays_of_order_one_and_a_real_spread_is_scaled_as_ever():
    signal = np.random.default_rng(1).normal(size=(2000, 2))
    x = np.stack([np.nextafter(1e30, np.where(signal[:, 0] > 0, np.inf, 0)), 1e30 * (1 + 1e-9 * signal[:, 1])], 1)
    with pytest.warns(UserWarning, match=r"entries \[0\] never change"):
        scaler, s = scaled(x)
    assert np.abs(s[:, 0]).max() < 1e-3
    np.testing.assert_allclose(scaler.sd[1], x[:, 1].std(), rtol=1e-6)
    np.testing.assert_allclose(s[:, 1], bent((x[:, 1] - x[:, 1].mean()) / x[:, 1].std()), atol=1e-5)
