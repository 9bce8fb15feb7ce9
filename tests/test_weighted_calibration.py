"""Weights in calibration: held-out rows are kept in proportion to them."""

import numpy as np
import pytest
from scipy.stats import chi2, norm
from weight_toys import PRIOR, RULE, SHIFT, columns, events, proposed, signed, simulations, train

import sbi_dgm
from sbi_dgm.errors import DataError
from sbi_dgm.heldout import independent
from sbi_dgm.report import calibrate
from sbi_dgm.samples import Samples


class Exact:
    """N((x + shift) / 2, 1 / 2)."""

    def __init__(self, shift: float = 0.0, *, rate: bool = False) -> None:
        self.names, self.record, self.shift, self.prior = ["a"], {"rate": rate}, shift, PRIOR

    def sample(self, n, x, *, seed=None, log_prob=False):
        mean = (x["x"] + self.shift) / 2
        draws = mean[:, None] + 0.5**0.5 * np.random.default_rng(seed).normal(size=(len(mean), n, 1))
        return Samples(draws, PRIOR.parameters, norm.logpdf(draws, mean[:, None], 0.5**0.5)[..., 0])

    def log_prob(self, theta, x):
        return norm.logpdf(theta, (x["x"] + self.shift) / 2, 0.5**0.5)[:, 0]


def judge(posterior, data, **options):
    return calibrate(posterior, data, draws=100, progress=False, **options)


def test_calibration_judges_by_the_weighted_rows():
    data = proposed(6000)
    assert judge(Exact(), data).verdict == "calibrated"
    assert judge(Exact(SHIFT), data).parameters["a"]["finding"] == "biased high"
    assert judge(Exact(SHIFT), proposed(6000, weighted=False)).verdict == "calibrated"


def test_calibration_keeps_the_rate_where_the_posterior_has_it():
    data = events(seed=3, points=3000, each=10)
    assert judge(Exact(), data).verdict == "calibrated"
    assert judge(Exact(1.0), data).parameters["a"]["finding"] == "biased high"
    assert judge(Exact(1.0, rate=True), data).verdict == "calibrated"
    assert judge(Exact(rate=True), data).parameters["a"]["finding"] == "biased low"


@pytest.mark.filterwarnings("ignore:event weights")
def test_calibration_learns_signed_weights():
    data = signed(12_000, seed=4)
    assert judge(Exact(rate=True), data).verdict == "calibrated"
    theta, x = columns(data)
    without = judge(Exact(rate=True), simulations(theta, x), max_rows=4000)
    assert without.parameters["a"]["finding"] == "overconfident"


def test_a_fitted_posterior_is_judged_on_its_own_weighted_test_rows():
    data = proposed(8000, seed=5)
    report = judge(train(data), data)
    assert report.verdict == "calibrated"
    assert 50 <= report.rows < 300, "some of 400 test rows, each once"


def test_rows_are_kept_each_once_in_proportion_to_their_weights():
    """A row's count in 400 repetitions is binomial with p = w / max w: chi-squared over all rows."""
    weight, rows = np.random.default_rng(0).uniform(0.1, 1, 900), np.arange(0, 900, 3)
    data = simulations(*columns(proposed(900)), proposal_weight=weight)
    kept = [independent(Exact(), data, rows, np.random.default_rng(seed)) for seed in range(400)]
    assert all(len(np.unique(one)) == len(one) for one in kept)
    counts, p = np.bincount(np.concatenate(kept), minlength=900)[rows], weight[rows] / weight[rows].max()
    assert counts[p == 1] == 400
    score = ((counts - 400 * p) ** 2 / (400 * p * (1 - p) + (p == 1))).sum()
    assert chi2.ppf(1e-4, 299) < score < chi2.ppf(1 - 1e-4, 299)
    score = ((counts - 400 * p**0.9) ** 2 / (400 * p * (1 - p) + (p == 1))).sum()
    assert score > chi2.ppf(1 - 1e-4, 299)


def test_all_rows_are_kept_where_there_are_no_weights():
    data = proposed(300, weighted=False)
    rows = np.arange(0, 300, 3)
    assert independent(Exact(), data, rows, np.random.default_rng(0)) is rows


def test_too_few_rows_left_are_told_with_numbers():
    data = proposed(300)
    weight = data.column("proposal_weight") ** 6
    theta, x = columns(data)
    message = r"\d+ of 300 held-out rows are left, .*\(the largest is \d+ times the mean\): at least 50 are needed"
    with pytest.raises(DataError, match=message):
        judge(Exact(), simulations(theta, x, proposal_weight=weight))
    few = sbi_dgm.Simulations.from_arrays(theta[:40, None], x[:40, None], proposal_weight=weight[:40], names=["a"])
    with pytest.raises(DataError, match="1 of 40 held-out rows are left"):
        judge(Exact(), few)
    none = few.split(RULE).test[:0]
    assert len(independent(Exact(), few, none, np.random.default_rng(0))) == 0
