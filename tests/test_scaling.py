"""Scaling: numpy's moments over the training rows only, arcsinh where tails demand it, digits kept."""

import warnings

import numpy as np
import pytest
import torch

from sbi_dgm import Simulations
from sbi_dgm.data.scaling import standardise
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
def test_moments_streamed_from_a_file_in_blocks_are_numpys(tmp_path, shape):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(30_000, *shape)) + np.linspace(0, 10, 30_000).reshape(-1, *(1,) * len(shape))
    data = Simulations.create(tmp_path / "a.h5", rng.normal(size=(30_000, 1)), x)
    rows = np.sort(rng.choice(30_000, 20_000, replace=False))
    mean, sd = numbers(standardise("x", data.columns["x/x"], rows))
    axis = 0 if len(shape) == 1 else None
    np.testing.assert_allclose(mean, x[rows].mean(axis), rtol=1e-12)
    np.testing.assert_allclose(sd, x[rows].std(axis), rtol=1e-12)


def scaled(x, rows=None):
    scaler = standardise("x", x, np.arange(len(x)) if rows is None else rows)
    return scaler, scaler(torch.as_tensor(x)).numpy()


def of_order_one(s):
    """Finite, centred, with a central 68 % of order one and nothing far away."""
    left, right = np.quantile(s, [0.16, 0.84])
    return bool(np.isfinite(s).all() and abs(np.median(s)) < 0.5 and 0.3 < right - left < 5 and np.abs(s).max() < 20)


@pytest.mark.parametrize("name", ["student", "cauchy", "skewed"])
def test_heavy_tails_are_brought_to_order_one_by_arcsinh(name):
    rng = np.random.default_rng(2)
    draw = {
        "student": lambda: rng.standard_t(2, 20_000),
        "cauchy": lambda: rng.standard_cauchy(20_000),
        "skewed": lambda: np.exp(2.5 * rng.normal(size=20_000)),
    }
    x = 1e3 * draw[name]() + 5e3
    scaler, s = scaled(x)
    assert bool(scaler.heavy)
    assert of_order_one(s)
    assert not of_order_one((x - x.mean()) / x.std())


@pytest.mark.parametrize("name", ["normal", "uniform", "exponential", "binary"])
def test_light_tails_stay_linear(name):
    rng = np.random.default_rng(3)
    draw = {
        "normal": lambda: rng.normal(5, 3, 20_000),
        "uniform": lambda: rng.uniform(2, 3, 20_000),
        "exponential": lambda: rng.exponential(4, 20_000),
        "binary": lambda: rng.integers(0, 2, 20_000).astype(float),
    }
    x = draw[name]()
    scaler, s = scaled(x)
    assert not bool(scaler.heavy)
    np.testing.assert_allclose(s, (x - x.mean()) / x.std(), atol=1e-5)


def test_each_entry_of_a_vector_is_judged_alone():
    rng = np.random.default_rng(4)
    x = np.stack([rng.normal(size=20_000), rng.standard_t(2, 20_000), rng.uniform(size=20_000)], 1)
    scaler, s = scaled(x)
    assert scaler.heavy.tolist() == [False, True, False]
    assert all(of_order_one(column) for column in s.T)


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


def test_float64_keeps_its_digits_beside_a_large_offset():
    signal = np.random.default_rng(8).normal(size=(2000, 2))
    expected = (signal - signal.mean(0)) / signal.std(0)
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
