"""Where a posterior is wrong: errors that cancel over all rows are found in their bin, and exact posteriors pass."""

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import binom

from sbi_dgm.diagnostics import bins, calibration
from sbi_dgm.diagnostics.evidence import Evidence

LEVEL = 0.01


def ranks(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=(rows, 2))


def verdict(u: np.ndarray, quantity: np.ndarray) -> bins.Worst:
    found = bins.binned(u, quantity)
    assert found is not None
    worst = bins.worst({"q": found})
    assert worst is not None
    return worst


def test_biases_that_cancel_are_found_where_they_are():
    """A third of a sd too low in the lower half of q, too high in the upper: no test over all rows sees it."""
    rng = np.random.default_rng(1)
    q = rng.uniform(size=1000)
    u = ranks(1000, 2)
    u[:, 1] = ndtr(rng.normal(size=1000) + np.where(q < 0.5, 0.35, -0.35))
    assert calibration.uniformity(u[:, 1], "h", "l", "", "", LEVEL).shape == "calibrated"
    worst = verdict(u, q)
    assert worst.p_value < LEVEL
    assert (worst.parameter, worst.quantity) == (1, "q")
    assert worst.finding == ("biased low" if worst.high < 0.5 else "biased high")
    assert verdict(ranks(1000, 2), q).p_value > LEVEL, "and nothing is found where nothing is"


@pytest.mark.parametrize(("factor", "word"), [(1.5, "overconfident"), (0.6, "underconfident")])
def test_a_wrong_width_in_one_bin_has_its_range(factor, word):
    rng = np.random.default_rng(3)
    q = rng.uniform(size=1000)
    u = ranks(1000, 4)
    u[:, 0] = ndtr(rng.normal(size=1000) * np.where(q > 0.8, factor, 1.0))
    worst = verdict(u, q)
    assert (worst.p_value < LEVEL, worst.parameter, worst.finding) == (True, 0, word)
    assert worst.low == pytest.approx(0.8, abs=0.03)


def test_false_alarms_are_at_most_the_level():
    alarms = sum(verdict(ranks(200, seed), np.arange(200.0)).p_value < 0.05 for seed in range(400))
    assert alarms <= binom.ppf(0.999, 400, 0.05)


def test_coverage_and_rows_are_counted_in_each_bin():
    q, u = np.arange(10.0), np.full((10, 1), 0.5)
    u[:2] = 0.99
    found = bins.binned(u, q)
    assert found is not None
    assert found.rows.tolist() == [2] * 5
    assert found.covered[:, 0].tolist() == [0, 1, 1, 1, 1]


def test_a_quantity_of_few_values_has_as_many_bins_and_of_one_none():
    found = bins.binned(ranks(90, 5), np.repeat([0.0, 1.0, 2.0], 30))
    assert found is not None
    assert found.rows.sum() == 90
    assert len(found.rows) == 2, "the upper edge counts to the last bin"
    assert bins.binned(ranks(90, 5), np.zeros(90)) is None


def test_principal_components_are_those_of_the_singular_values():
    """Either way of computing them, by columns and by rows."""
    rng = np.random.default_rng(6)
    for shape in ((50, 8), (8, 50)):
        values = rng.normal(size=shape) * 10.0 ** -np.arange(shape[1])
        found = bins.principal(values)
        left, singular, _ = np.linalg.svd(values - values.mean(0), full_matrices=False)
        assert found.shape == (shape[0], 3)
        assert np.abs(np.abs(found) - np.abs(left[:, :3]) * shape[0] ** 0.5).max() < 1e-6
        assert singular[0] > singular[1]


def test_bins_of_the_truth_would_accuse_an_exact_posterior_and_bins_of_what_x_tells_do_not():
    """Theta ~ N(0, 1), x ~ N(theta, 1), so theta | x ~ N(x / 2, 1 / 2)."""
    rng = np.random.default_rng(7)
    theta = rng.normal(size=(1000, 1))
    x = theta + rng.normal(size=(1000, 1))
    draws = x[:, None] / 2 + rng.normal(size=(1000, 200, 1)) * 0.5**0.5
    u = calibration.ranks(theta, draws, rng)
    evidence = Evidence(["a"], theta, {"x": x}, draws, np.zeros(1000), np.zeros((1000, 20)))
    told = bins.quantities(evidence)
    assert {"mean of a", "component 1 of x"} <= set(told)
    assert all(verdict(u, quantity).p_value > LEVEL for quantity in told.values())
    assert verdict(u, theta[:, 0]).p_value < 1e-6
