"""Pareto's k of weights whose tail is known."""

import numpy as np
import pytest

from sbi_dgm import pareto

SIZE = 20_000
TAIL = 3 * np.sqrt(SIZE)


def log_weights(k: float, seed: int = 0) -> np.ndarray:
    """ln of u^-k: a Pareto distribution of shape k."""
    return -k * np.log(np.random.default_rng(seed).uniform(size=SIZE))


def check_shape(k: float, said: float) -> None:
    """Within four standard errors, (1 + k) / sqrt(M), and what ten weights that say 0.5 draw it by."""
    assert abs(said - k) < 4 * (1 + k) / np.sqrt(TAIL) + 10 * abs(k - 0.5) / TAIL


@pytest.mark.parametrize("k", [0.2, 0.5, 0.7, 0.9, 1.3])
def test_the_shape_is_found(k):
    for seed in range(5):
        check_shape(k, pareto.shape(log_weights(k, seed)))
    with pytest.raises(AssertionError):
        check_shape(k, pareto.shape(log_weights(k + 0.6)))


def test_weights_may_have_any_scale():
    assert pareto.shape(log_weights(0.6) - 5000) == pytest.approx(pareto.shape(log_weights(0.6)), abs=1e-6)


def test_bounded_weights_have_no_heavy_tail():
    assert pareto.shape(np.log(np.random.default_rng(0).uniform(size=SIZE))) < 0


def test_weights_all_alike_have_none():
    assert pareto.shape(np.zeros(1000)) == -np.inf


@pytest.mark.parametrize("log_weight", [np.zeros(10), np.full(1000, -np.inf)])
def test_too_few_weights_are_not_judged(log_weight):
    assert np.isnan(pareto.shape(log_weight))
    assert pareto.meaning(pareto.shape(log_weight), len(log_weight)).startswith("too few")


def test_three_weights_among_zeros_are_useless():
    log_weight = np.full(1000, -np.inf)
    log_weight[:3] = 0
    assert pareto.meaning(pareto.shape(log_weight), 1000).startswith("useless")


@pytest.mark.parametrize(
    ("k", "count", "word"),
    [
        (0.3, 100, "good"),
        (0.6, 10_000, "usable"),
        (0.6, 100, "unreliable"),
        (0.8, 10**6, "unreliable"),
        (1.1, 99, "us"),
    ],
)
def test_words_follow_the_bounds(k, count, word):
    assert pareto.meaning(k, count).startswith(word)
