"""Exact posteriors of the ten tasks: against the published draws, and calibrated on fresh observations.

The published draws are 10,000 for each of observations 1 to 5, all distinct; neighbours in the file are uncorrelated
(the lag-one autocorrelation of every parameter is within 0.031, over lags 1 to 49 their mean is within 0.005), so their
effective size is taken for their number. They are rounded to float32, by less than 2e-5 of a deviation.
"""

import importlib.util
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest
from scipy import stats

from sbi_dgm.simulator import find

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT.parent / "shared" / "data" / "sbibm_reference.h5"
ALL = (1, 2, 3, 4, 5)
TASKS = {  # task: draws; observations that are compared at every run (the others are slow); fresh observations
    "gaussian_linear": (10_000, ALL, 400),
    "gaussian_linear_uniform": (10_000, ALL, 400),
    "gaussian_mixture": (10_000, ALL, 400),
    "two_moons": (10_000, ALL, 400),
    "slcp": (4_000, (1, 2, 3), 100),
    "slcp_distractors": (4_000, (1,), 0),
    "bernoulli_glm": (4_000, ALL, 100),
    "bernoulli_glm_raw": (4_000, (1,), 0),
    "sir": (4_000, (1, 2), 80),
    "lotka_volterra": (4_000, (1,), 60),
}
QUICK = {name for name, (_, _, fresh) in TASKS.items() if fresh > 100}


def slowly(name, quick, *values):
    return pytest.param(name, *values, marks=() if quick else pytest.mark.slow)


def script():
    """`benchmarks/references.py`, which has a wrong twin of every reference and compares them all by C2ST."""
    spec = importlib.util.spec_from_file_location("references", ROOT / "benchmarks" / "references.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = script()


def right(task, x, n, rng):
    return task.reference_posterior(x, n, rng)


def half_as_wide(task, x, n, rng):
    theta = task.reference_posterior(x, n, rng)
    return theta.mean(0) + 0.5 * (theta - theta.mean(0))


# The published draws


@cache
def published(name):
    if not PUBLISHED.is_file():
        pytest.skip("the published reference draws are not here")
    with h5py.File(PUBLISHED) as file:
        return file[SCRIPT.SAME_POSTERIOR.get(name, name)]["reference_posterior"][:].astype(float)


def features(theta, mean, sd):
    """All parameters and all their products (S, D (D + 3) / 2), standardised."""
    z = (theta - mean) / sd
    first, second = np.triu_indices(z.shape[1])
    return np.concatenate([z, z[:, first] * z[:, second]], axis=1)


def check_published(name, row, draw, n):
    """Means, variances and correlations within 5 standard errors: 329 features of ten tasks, five times."""
    known, task = published(name)[row - 1], find(name)
    ours = draw(task, task.observations[row - 1], n, np.random.default_rng(row))
    a, b = (features(theta, known.mean(0), known.std(0)) for theta in (known, ours))
    error = np.sqrt(a.var(0) / len(a) + b.var(0) / len(b))
    assert np.abs((a.mean(0) - b.mean(0)) / error).max() < 5


ROWS = [slowly(name, row in quick, row) for name, (_, quick, _) in TASKS.items() for row in ALL]


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_references_agree_with_the_published_draws(name, row):
    check_published(name, row, right, TASKS[name][0])


@pytest.mark.parametrize("name", TASKS)
def test_a_wrong_twin_does_not(name):
    published(name)
    with pytest.raises(AssertionError):
        check_published(name, 1, SCRIPT.WRONG[name], 2000)


@pytest.mark.parametrize("name", TASKS)
def test_references_stay_in_the_prior_and_repeat_themselves(name):
    task = find(name)
    draws = task.reference_posterior(task.observations[5], 50, np.random.default_rng(0))
    assert draws.shape == (50, len(task.prior))
    assert len(np.unique(draws, axis=0)) == 50
    task.prior.check(draws)
    if name in QUICK:
        assert draws.tolist() == task.reference_posterior(task.observations[5], 50, np.random.default_rng(0)).tolist()


def test_published_draws_are_distinct_and_uncorrelated():
    for name in TASKS:
        for draws in published(name):
            assert len(np.unique(draws, axis=0)) == len(draws)
            z = (draws - draws.mean(0)) / draws.std(0)
            assert np.abs((z[1:] * z[:-1]).mean(0)).max() < 4 / np.sqrt(len(z))


# Calibration on fresh observations


def ranks(name, draw, n=63):
    """The share of draws below the theta that made x, with a random part of a draw: uniform where the draws are the
    posterior's (Talts et al. 2018, arXiv:1804.06788).

    Of each parameter, of the likelihood, and of the distance from the prior's middle: a posterior without its prior
    has uniform ranks of the others (Modrak et al. 2023, arXiv:2211.02383).
    """
    task, rng = find(name), np.random.default_rng(0)
    theta = task.prior.sample(TASKS[name][2], seed=1)
    middle, spread = task.prior.sample(1000, seed=2).mean(0), task.prior.sample(1000, seed=2).std(0)
    found = []
    for truth, x in zip(theta, task(theta, rng), strict=True):
        draws = np.concatenate([truth[None], draw(task, x, n, rng)])
        likelihood, distance = task.log_likelihood(draws, x), (((draws - middle) / spread) ** 2).sum(1)
        values = np.concatenate([draws, likelihood[:, None], distance[:, None]], axis=1)
        found.append((values[1:] < values[0]).sum(0) + rng.random())
    return np.array(found) / (n + 1)


def check_calibration(name, draw):
    """Mean and spread of the ranks, as Legendre polynomials of unit variance, within 4.5 standard errors; and the
    test of Kolmogorov and Smirnov."""
    u = ranks(name, draw)
    waves = np.sqrt([[3], [5]]) * np.stack([2 * u - 1, 6 * u**2 - 6 * u + 1]).mean(1)
    assert np.abs(waves).max() < 4.5 / np.sqrt(len(u))
    assert stats.kstest(u, "uniform").pvalue.min() > 1e-5


CALIBRATED = [slowly(name, name in QUICK) for name, (_, _, fresh) in TASKS.items() if fresh > 0]
# seen at fresh x, few of which are near an edge
WRONG = dict.fromkeys(("gaussian_mixture", "sir", "lotka_volterra"), half_as_wide)


@pytest.mark.parametrize("name", CALIBRATED)
def test_references_are_calibrated(name):
    check_calibration(name, right)


@pytest.mark.parametrize("name", CALIBRATED)
def test_wrong_twins_are_not(name):
    with pytest.raises(AssertionError):
        check_calibration(name, WRONG.get(name, SCRIPT.WRONG[name]))
