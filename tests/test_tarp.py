"""Tests with random points: exact posteriors pass, the prior is seen by predictions, which look at no truth."""

import numpy as np
import pytest
from scipy.stats import binom, kstest

from sbi_dgm.diagnostics import calibration, tarp

LEVEL = 0.01
MIX = np.array([[1.0, 0.0], [0.8, 0.6]])  # variances 1, a correlation of 0.8


def problem(seed: int, rows: int = 240, draws: int = 60, width: float = 1.0, known: bool = True):
    """Theta ~ N(0, M M^T), x = theta + M noise, the posterior N(x / 2, M M^T / 2): truths, x, and draws."""
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=(rows, 2)) @ MIX.T
    x = theta + rng.normal(size=(rows, 2)) @ MIX.T
    noise = rng.normal(size=(rows, draws, 2)) @ MIX.T
    return theta, x, x[:, None] / 2 + width * noise / 2**0.5 if known else noise


def ranked(theta, draws, reference, seed):
    parts = (tarp.distances(part, reference, np.ones(2)) for part in (theta[:, None], draws))
    truth, others = parts
    return calibration.ranks(truth, others[..., None], np.random.default_rng(seed))[:, 0]


def ranks_anywhere(seed: int, **options) -> np.ndarray:
    theta, _, draws = problem(seed, **options)
    return ranked(theta, draws, tarp.anywhere(draws, np.random.default_rng(seed + 1)), seed)


def ranks_predicted(seed: int, **options) -> np.ndarray:
    theta, x, draws = problem(seed, **options)
    reference, rows = tarp.predictions(tarp.features(x), theta)
    return ranked(theta[rows], draws[rows], reference, seed)


def accused(u: np.ndarray) -> str:
    return calibration.uniformity(u, "far", "near", "outer", "inner", LEVEL).shape


def check_false_alarms(ranks, **options) -> None:
    found = [ranks(seed, **options) for seed in range(200)]
    assert sum(accused(u) != "calibrated" for u in found) <= binom.ppf(0.999, 200, LEVEL)
    assert kstest(np.concatenate(found), "uniform").pvalue > 1e-4


@pytest.mark.parametrize("ranks", [ranks_anywhere, ranks_predicted])
def test_the_exact_posterior_passes(ranks):
    check_false_alarms(ranks)
    with pytest.raises(AssertionError):
        check_false_alarms(ranks, width=0.85)


@pytest.mark.parametrize("seed", range(5))
def test_the_prior_is_seen_by_predictions_and_by_nothing_else(seed):
    assert accused(ranks_predicted(seed, known=False)) == "near", "the truth is nearer to what x tells than draws are"
    assert accused(ranks_anywhere(seed, known=False)) == "calibrated"


def test_a_prediction_rests_on_earlier_blocks_alone():
    theta, x, _ = problem(0)
    seen = tarp.features(x)
    before, rows = tarp.predictions(seen, theta)
    edges = tarp.blocks(240)
    assert rows.tolist() == list(range(30, 240))
    for first in edges[1:-1]:
        other = theta.copy()
        other[first:] = 99
        after = tarp.predictions(seen, other)[0]
        last = edges[edges.index(first) + 1]
        np.testing.assert_array_equal(after[: last - 30], before[: last - 30])
        assert last == 240 or not np.allclose(after[last - 30 :], before[last - 30 :]), "later ones are another's"


def test_predictions_are_better_than_the_mean():
    theta, x, _ = problem(1, rows=800)
    found, rows = tarp.predictions(tarp.features(x), theta)
    unexplained = ((found - theta[rows]) ** 2).mean(0) / theta[rows].var(0)
    assert (unexplained < 0.6).all(), "the exact posterior's mean leaves half"


def test_features_survive_tails_counts_and_columns_that_never_vary():
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.standard_cauchy(500) * 1e9, np.full(500, 3.0), rng.random(500) < 0.1])
    found = tarp.features(x)
    assert found.shape == (500, 2)
    assert np.abs(found).max() < 12


def test_distances_are_in_units_of_the_scale():
    theta, reference = np.array([[3.0, 8.0]]), np.array([[0.0, 0.0]])
    assert tarp.distances(theta, reference, np.array([1.0, 2.0])).tolist() == [5.0]
    assert tarp.distances(theta[:, None], reference, np.array([1.0, 2.0])).tolist() == [[5.0]]
