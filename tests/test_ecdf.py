"""Simultaneous bands of distribution functions: the recursion against simulation, closed forms, and a wrong band."""

import numpy as np
import pytest
from scipy.stats import binom, kstest

from sbi_dgm.diagnostics import ecdf


def left(low: np.ndarray, high: np.ndarray, rows: int, repetitions: int, points: int) -> int:
    """How many of so many sets of uniform numbers leave a band."""
    u = np.random.default_rng(rows).random((repetitions, rows))
    found = np.stack([ecdf.counts(row, points) for row in u])
    return int(((found < low) | (found > high)).any(1).sum())


def check_level(low: np.ndarray, high: np.ndarray, rows: int, level: float, points: int = ecdf.POINTS) -> None:
    inside = binom.ppf([0.0005, 0.9995], 4000, level)
    assert inside[0] <= left(low, high, rows, 4000, points) <= inside[1]


@pytest.mark.parametrize(("rows", "points"), [(40, 100), (300, 100), (1000, 20)])
@pytest.mark.parametrize("level", [0.01, 0.1])
def test_a_band_is_left_as_rarely_as_said(rows, points, level):
    low, high = ecdf.band(rows, level, points)
    check_level(low, high, rows, ecdf.leaving(low, high, rows), points)
    assert 0.6 * level < ecdf.leaving(low, high, rows) <= level
    t = np.arange(1, points) / points
    with pytest.raises(AssertionError):  # pointwise edges of that level are left far more often
        check_level(*binom.interval(1 - level, rows, t), rows, level, points)


def test_one_point_is_a_binomial():
    for low, high in ((3, 7), (0, 4), (6, 10)):
        expected = 1 - (binom.cdf(high, 10, 0.5) - binom.cdf(low - 1, 10, 0.5))
        assert ecdf.leaving(np.array([low]), np.array([high]), 10) == pytest.approx(expected, rel=1e-12)


def test_bounds_that_hold_always_are_never_left():
    assert ecdf.leaving(np.zeros(9, int), np.full(9, 50), 50) == pytest.approx(0, abs=1e-12)


def test_two_numbers_and_two_points_by_hand():
    """Of two numbers one below 1/3 and two below 2/3: 2 (1/3)(1/3); none and at most one: 1/9 + 2 (1/3)(1/3)."""
    one = 1 - ecdf.leaving(np.array([1, 2]), np.array([1, 2]), 2)
    none = 1 - ecdf.leaving(np.array([0, 0]), np.array([0, 1]), 2)
    assert (one, none) == (pytest.approx(2 / 9), pytest.approx(1 / 9 + 2 / 9))


def test_p_values_of_uniform_numbers_are_uniform_or_larger():
    p = np.array([ecdf.p_value(row) for row in np.random.default_rng(0).random((2000, 80))])
    assert kstest(p, "uniform", alternative="greater").pvalue > 1e-3, "counts are whole: a little conservative"
    for level in (0.01, 0.05, 0.5):
        assert binom.ppf(0.001, 2000, 0.8 * level) <= (p <= level).sum() <= binom.ppf(0.999, 2000, level)


def test_a_p_value_is_the_level_of_the_band_that_is_just_kept():
    rng = np.random.default_rng(3)
    for u in (rng.random(200), rng.beta(1.2, 1.0, 200), rng.beta(0.9, 0.9, 200)):
        p, found = ecdf.p_value(u), ecdf.counts(u)
        wider, tighter = ecdf.band(200, 0.8 * p), ecdf.band(200, min(1.0, 1.2 * p))
        assert ((found >= wider[0]) & (found <= wider[1])).all()
        assert not ((found >= tighter[0]) & (found <= tighter[1])).all()


@pytest.mark.parametrize("u", [np.full(600, 1e-9), np.full(600, 1 - 1e-9), np.full(600, 0.5)])
def test_numbers_at_one_place_have_no_probability(u):
    assert ecdf.p_value(u) < 1e-12
