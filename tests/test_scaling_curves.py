"""Curves of observables: arcsinh where tails demand it, logarithms where there are many scales, and far away."""

import numpy as np
import pytest
import torch
from scaling_toys import bent, of_order_one, scaled, standardise


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
    assert bool(scaler.curved)
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
    assert not bool(scaler.curved)
    np.testing.assert_allclose(s, bent((x - x.mean()) / x.std()), atol=1e-5)
    assert name in ("uniform", "binary") or not np.allclose(s, (x - x.mean()) / x.std(), atol=0.1)


def test_each_entry_of_a_vector_is_judged_alone():
    rng = np.random.default_rng(4)
    x = np.stack([rng.normal(size=20_000), rng.standard_t(2, 20_000), rng.uniform(size=20_000)], 1)
    scaler, s = scaled(x)
    assert scaler.curved.tolist() == [False, True, False]
    assert all(of_order_one(column) for column in s.T)


def powers(rng, rows=20_000):
    return np.exp(rng.normal(1, 2, rows))


@pytest.mark.parametrize("name", ["positive", "with zeros", "tiny", "skewed by offset"])
def test_numbers_of_many_scales_are_seen_by_their_logarithms(name):
    """Equal ratios are equal steps, above the smallest tenth of the numbers."""
    rng = np.random.default_rng(10)
    x = powers(rng)
    x = {
        "positive": x,
        "with zeros": np.where(rng.random(len(x)) < 0.05, 0, x),
        "tiny": 1e-30 * x,
        "skewed by offset": x + 1e-3,
    }[name]
    scaler, s = scaled(x)
    assert bool(scaler.curved)
    assert float(scaler.centre) == 0
    a, b = np.quantile(x, [0.4, 0.9])
    steps = np.diff(scaler(torch.as_tensor(np.geomspace(a, b, 4))).numpy())
    np.testing.assert_allclose(steps / steps.mean(), 1, atol=0.05)
    assert 0.9 < s.std() < 1.1
    straight = np.diff((np.geomspace(a, b, 4) - x.mean()) / x.std())
    assert not np.allclose(straight / straight.mean(), 1, atol=0.5)


def test_numbers_of_one_sign_without_scales_stay_straight_and_negative_ones_are_never_logarithms():
    rng = np.random.default_rng(11)
    counts = rng.poisson(np.exp(rng.normal(4, 0.9, 20_000))).astype(float)
    x = np.stack([rng.uniform(0, 1, 20_000), rng.gamma(4.0, 1, 20_000), counts, -powers(rng)], 1)
    scaler, _ = scaled(x)
    assert scaler.curved.tolist() == [False, False, False, True]
    assert float(scaler.centre[3]) < 0, "tails: about the median"
    assert scaled(1.01 * counts[:, None])[0].curved.all(), "fractions of the same scales"


def test_the_curve_of_scales_is_the_one_that_makes_the_sample_most_normal():
    """Log-normal numbers get a width far below them: arcsinh is then their logarithm, and normal."""
    scaler, s = scaled(powers(np.random.default_rng(12)))
    assert abs(((s - s.mean()) ** 3).mean()) < 0.1
    assert abs(((s - s.mean()) ** 4).mean() - 3) < 0.2
    assert float(scaler.width) < np.exp(1 - 2)


def test_far_numbers_grow_as_their_logarithm_smoothly_and_without_end():
    """One row, a million standard deviations away, stays of order ten; order, sign and slope one at the bend remain."""
    scaler = standardise("x", np.random.default_rng(13).normal(size=(5000, 1)), np.arange(5000))
    x = torch.tensor([[-1e30], [-1e6], [-3.5], [-2.0], [0.0], [2.0], [3.5], [1e6], [1e30]])
    s = scaler(x)[:, 0].numpy()
    assert (np.diff(s) > 0).all()
    np.testing.assert_allclose(s[[1, 7]], [-3 - np.log(1e6), 3 + np.log(1e6)], atol=0.1)
    assert np.isfinite(s).all()
    near = scaler(float(scaler.sd) * torch.tensor([[2.9], [2.99], [3.01], [3.1]], dtype=torch.float64) + scaler.mean)
    np.testing.assert_allclose(near[:, 0], bent(np.array([2.9, 2.99, 3.01, 3.1])), atol=1e-5)


@pytest.mark.parametrize("share", [0.05, 0.3, 0.7])
def test_zeros_beside_numbers_of_one_scale_bring_no_logarithm(share):
    """Thresholded maps and sparse histograms keep their shape, however small their least number is."""
    rng = np.random.default_rng(14)
    uniform = np.where(rng.random(20_000) < share, 0, rng.uniform(0, 1, 20_000))
    normal = np.maximum(rng.normal(0, 1, 20_000), 0)
    many = np.where(rng.random(20_000) < share, 0, powers(rng))
    scaler, _ = scaled(np.stack([uniform, normal, many], 1))
    assert scaler.curved.tolist() == [False, False, True]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_logarithm_over_all_of_float32_stays_finite(dtype):
    """The least number of a blob's tail is denormal: x over it would be infinite in float32."""
    r2 = ((np.indices((32, 32)) - 16) ** 2).sum(0)
    width = np.random.default_rng(15).uniform(1, 3, (500, 1, 1))
    blobs = np.exp(-r2 / (2 * width**2)).astype(dtype)
    scaler = standardise("map", blobs, np.arange(500))
    s = scaler(torch.as_tensor(blobs)).numpy()
    assert bool(scaler.curved)
    assert np.isfinite(s).all()
    assert scaler(torch.as_tensor(1e6 * blobs)).isfinite().all()
