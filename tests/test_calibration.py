"""Calibration: the exact posterior passes; a narrow, wide or shifted one is called what it is."""

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import binom, kstest

import sbi_dgm
from sbi_dgm.diagnostics import calibration
from sbi_dgm.diagnostics.checks import OF_DISTANCES, OF_REGIONS, OF_VALUES, Check
from sbi_dgm.distributions import Normal, Uniform
from sbi_dgm.errors import DataError, OptionError
from sbi_dgm.parameters import Parameter
from sbi_dgm.priors import Prior
from sbi_dgm.report import LEVEL, Report, calibrate
from sbi_dgm.samples import Samples
from simulators.gaussian_linear import VARIANCE, GaussianLinear

TASK = GaussianLinear()
SD = (VARIANCE / 2) ** 0.5


class Gaussian:
    """The exact posterior N(x / 2, 0.05 I) of gaussian_linear, `width` times as wide, moved by `shift` of its sd."""

    def __init__(self, width: float = 1.0, shift: float = 0.0, only: int | None = None) -> None:
        self.names, self.record = list(TASK.prior.names), {}
        moved = [i for i in range(10) if only in (None, i)]
        self.width, self.shift = np.ones(10), np.zeros(10)
        self.width[moved], self.shift[moved] = width, shift * SD

    def sample(self, n, x, *, seed=None, log_prob=False):
        mean = x["x"] / 2 + self.shift
        noise = np.random.default_rng(seed).normal(size=(len(mean), n, 10))
        draws = mean[:, None] + SD * self.width * noise
        return Samples(draws, TASK.prior.parameters, self._log_prob(noise))

    def log_prob(self, theta, x):
        return self._log_prob((theta - x["x"] / 2 - self.shift) / (SD * self.width))

    def _log_prob(self, u):
        return -0.5 * (u**2).sum(-1) - np.log(SD * self.width * np.sqrt(2 * np.pi)).sum()


class Ignorant(Gaussian):
    """The prior itself, whatever x says: true, if useless."""

    def sample(self, n, x, *, seed=None, log_prob=False):
        draws = TASK.prior.sample(n * len(x["x"]), seed).reshape(-1, n, 10)
        return Samples(draws, TASK.prior.parameters, TASK.prior.log_prob(draws))

    def log_prob(self, theta, x):
        return TASK.prior.log_prob(theta)


def simulations(rows: int = 600, seed: int = 1) -> sbi_dgm.Simulations:
    theta = TASK.prior.sample(rows, seed)
    return sbi_dgm.Simulations.from_arrays(theta, TASK(theta, np.random.default_rng(1000 + seed)), prior=TASK.prior)


DATA = simulations()


def judge(posterior, data: sbi_dgm.Simulations = DATA, **options) -> Report:
    return calibrate(posterior, data, **({"draws": 200, "progress": False} | options))


def findings(report: Report) -> set[str]:
    return {entry["finding"] for entry in report.parameters.values()}


def check_exact(report: Report) -> None:
    assert report.verdict == "calibrated", report.verdict
    assert report.calibrated
    assert findings(report) == {"calibrated"}
    assert report.regions["finding"] == "calibrated"
    for level, covered in report.coverage.items():
        nominal = float(level.rstrip("%")) / 100
        assert abs(covered - nominal) < 4 * (nominal * (1 - nominal) / report.rows) ** 0.5
    assert kstest(report.ranks.ravel(), "uniform").pvalue > 1e-4


def test_the_exact_posterior_is_calibrated():
    check_exact(judge(Gaussian()))
    with pytest.raises(AssertionError):
        check_exact(judge(Gaussian(width=0.85)))


def test_too_narrow_by_15_percent_is_overconfident():
    report = judge(Gaussian(width=0.85))
    assert report.verdict.startswith("regions overconfident; ")
    assert not report.calibrated
    assert report.regions["finding"] == "overconfident"
    assert findings(report) <= {"overconfident", "calibrated"}
    assert "overconfident" in findings(report)
    assert all(covered < float(level.rstrip("%")) / 100 - 0.04 for level, covered in report.coverage.items())


def test_too_wide_by_15_percent_is_underconfident():
    report = judge(Gaussian(width=1.15))
    assert report.verdict.startswith("regions underconfident; ")
    assert report.regions["finding"] == "underconfident"
    assert findings(report) <= {"underconfident", "calibrated"}
    assert report.coverage["50%"] > 0.6


@pytest.mark.parametrize(("width", "word"), [(0.02, "overconfident"), (0.3, "overconfident"), (50, "underconfident")])
def test_a_gross_error_of_the_width_is_named_alike(width, word):
    report = judge(Gaussian(width=width))
    assert report.regions["finding"] == word
    assert findings(report) == {word}


@pytest.mark.parametrize(
    ("shift", "words"), [(-0.3, "biased low"), (0.3, "biased high"), (-20, "biased low"), (20, "biased high")]
)
def test_a_shift_by_a_third_of_the_sd_or_more_is_a_bias_in_its_direction(shift, words):
    """Low: the posterior lies below the truth."""
    report = judge(Gaussian(shift=shift))
    assert findings(report) == {words}
    assert not report.calibrated


def test_the_parameter_that_is_wrong_is_named_and_no_other():
    """Half as wide in theta_4 only."""
    report = judge(Gaussian(width=0.5, only=3))
    assert report.parameters["theta_4"]["finding"] == "overconfident"
    assert [n for n, entry in report.parameters.items() if entry["finding"] != "calibrated"] == ["theta_4"]
    assert "theta_4 overconfident" in report.verdict


def test_the_prior_is_seen_where_x_tells_more_and_its_log_prob_says_how_much():
    """Its ranks and regions cannot tell: it is the posterior of an observation that tells nothing."""
    report, exact = judge(Ignorant()), judge(Gaussian())
    assert report.verdict.startswith("points predicted less informed than x allows; ")
    assert findings(report) == {report.regions["finding"]} == {"calibrated"}
    assert report.bins["quantity"].startswith("component"), "its means are the same everywhere"
    assert report.bins["finding"].startswith("biased")
    gain = exact.log_prob["mean"] - report.log_prob["mean"]
    error = 4 * np.hypot(exact.log_prob["standard_error"], report.log_prob["standard_error"])
    assert abs(gain - 5 * np.log(2)) < error, "ten parameters, each with half the prior's variance"


def both(t):
    """A sum of two parameters, whose errors add where a correlation is missed."""
    return t["theta_1"] + t["theta_2"]


class Uncorrelated(Gaussian):
    """Draws whose second parameter mirrors the first about their means: each has the right width."""

    def sample(self, n, x, *, seed=None, log_prob=False):
        samples = super().sample(n, x, seed=seed, log_prob=log_prob)
        samples.array[..., 1] = x["x"][:, None, 1] / 2 - (samples.array[..., 0] - x["x"][:, None, 0] / 2)
        return samples


def test_a_quantity_of_the_users_is_judged_like_a_parameter():
    """Deviations of the first two parameters always cancel: each is right alone, their sum is far too narrow."""
    exact, wrong = (judge(p, test_quantities={"both": both}) for p in (Gaussian(), Uncorrelated()))
    check_exact(exact)
    assert exact.quantities["both"]["finding"] == "calibrated"
    assert findings(wrong) == {"calibrated"}
    assert wrong.quantities["both"]["finding"] == "overconfident"
    assert "both overconfident" in wrong.verdict


@pytest.mark.parametrize(
    ("quantity", "sentence"),
    [
        ({"theta_1": both}, "test quantity 'theta_1': that is the name of a check already"),
        ({"worst of all bins": both}, "test quantity 'worst of all bins': that is the name of a check already"),
        ({"replication, component 1": both}, "that is the name of a check already; call it something else"),
        ({"f": lambda t: t["zzz"]}, r"test quantity 'f' of a dict of theta_1, .* fails: KeyError"),
        ([both], "test quantities are functions of the parameters by name, such as {'S8': f}: this is a list"),
        ({"f": lambda t: t["theta_1"].mean()}, r"test quantity 'f': \(\) came back for parameters of shape \(60,\)"),
        ({"f": lambda t: np.where(t["theta_1"] > 0, 1, np.nan)}, r"test quantity 'f' is nan at theta_1 = -"),
    ],
)
def test_quantities_that_are_none_are_refused(quantity, sentence):
    with pytest.raises(OptionError, match=sentence):
        judge(Gaussian(), test_quantities=quantity, max_rows=60)


def test_what_so_many_rows_would_have_shown_is_stated():
    few, many = (judge(Gaussian(), max_rows=rows).visible for rows in (60, 600))
    assert set(few) == {"narrow", "wide", "shift"}
    assert all(few[name] > 2 * many[name] > 0.1 for name in few)


def test_log_prob_of_the_truth_is_the_mean_over_rows():
    """-5 ln(2 pi e 0.05) for the exact posterior, within 4 standard errors, which is sqrt(5 / rows)."""
    found = judge(Gaussian()).log_prob
    assert found["standard_error"] == pytest.approx((5 / 600) ** 0.5, rel=0.15)
    assert abs(found["mean"] + 5 * np.log(2 * np.pi * np.e * SD**2)) < 4 * found["standard_error"]


def check_false_alarms(shift: float, repetitions: int = 200) -> None:
    """A calibrated posterior is accused with a probability of LEVEL at most: 99.9 % point of the binomial."""
    prior, alarms = Prior([Parameter("a", Normal(0, 1)), Parameter("b", Uniform(0, 1))]), 0
    for seed in range(repetitions):
        theta = prior.sample(60, seed)
        data = sbi_dgm.Simulations.from_arrays(theta, np.zeros((60, 1)), prior=prior)
        alarms += not calibrate(Constant(prior, shift), data, draws=60, seed=seed, progress=False).calibrated
    assert alarms <= binom.ppf(0.999, repetitions, LEVEL), f"{alarms} false alarms in {repetitions}"


class Constant:
    """Draws of a prior that x does not change, moved by `shift`."""

    def __init__(self, prior: Prior, shift: float) -> None:
        self.prior, self.names, self.shift = prior, list(prior.names), shift

    def sample(self, n, x, *, seed=None, log_prob=False):
        draws = self.prior.sample(n * len(x["x"]), seed).reshape(len(x["x"]), n, -1)
        return Samples(draws + self.shift, self.prior.parameters, self.prior.log_prob(draws))

    def log_prob(self, theta, x):
        return np.nan_to_num(self.prior.log_prob(theta - self.shift), neginf=-1e9)


def test_false_alarms_are_as_rare_as_said():
    check_false_alarms(shift=0.0)
    with pytest.raises(AssertionError):
        check_false_alarms(shift=0.2, repetitions=40)


def test_p_values_of_uniform_ranks_are_not_too_small():
    """P(p < level) <= level, within binomial error over 4000 repetitions of 50 ranks."""
    u = np.random.default_rng(0).uniform(size=(4000, 50))
    p = np.array([Check(row, OF_VALUES).test(0.01).p_value for row in u])
    for level in (0.01, 0.05):
        assert (p < level).sum() <= binom.ppf(0.999, 4000, level)


def test_ranks_count_the_draws_below():
    rng = np.random.default_rng(0)
    draws = np.arange(9.0)[None, :, None] + np.zeros((1000, 9, 1))
    u = calibration.ranks(np.full((1000, 1), 3.5), draws, rng)[:, 0]
    assert u.min() >= 0.4
    assert u.max() <= 0.5
    assert kstest(u, "uniform", (0.4, 0.1)).pvalue > 1e-4


def test_ranks_share_ties_at_random():
    """Truth and draws on a grid of three values: ranks stay uniform."""
    rng = np.random.default_rng(1)
    u = calibration.ranks(rng.integers(3, size=(4000, 1)), rng.integers(3, size=(4000, 7, 1)), rng)
    assert kstest(u[:, 0], "uniform").pvalue > 1e-4
    constant = calibration.ranks(np.zeros((4000, 1)), np.zeros((4000, 7, 1)), rng)
    assert kstest(constant[:, 0], "uniform").pvalue > 1e-4


@pytest.mark.parametrize(
    ("u", "shape"),
    [
        (0.8 + 0.2 * np.random.default_rng(0).uniform(size=300), "biased low"),
        (0.2 * np.random.default_rng(0).uniform(size=300), "biased high"),
        (np.random.default_rng(0).beta(0.5, 0.5, 300), "overconfident"),
        (np.random.default_rng(0).beta(3, 3, 300), "underconfident"),
        (np.random.default_rng(0).uniform(size=300), "calibrated"),
    ],
)
def test_shapes_of_ranks_have_names(u, shape):
    assert Check(u, OF_VALUES).test(0.01).shape == shape


def test_a_deviation_of_neither_place_nor_width_is_seen_by_its_shape():
    """Ranks one sd to either side only: their normal scores have mean 0 and variance 1."""
    u = np.repeat([ndtr(-1), ndtr(1)], 100)
    assert Check(u, OF_VALUES).test(0.01).shape == "of the wrong shape"


@pytest.mark.parametrize("u", [np.full(50, 0.9), np.full(50, 0.1)])
def test_two_deviations_of_one_word_are_both_seen(u):
    """Points anywhere are "misplaced" on either side."""
    assert Check(u, OF_DISTANCES).test(0.01).shape == "misplaced"


def test_what_has_no_word_is_left_to_the_shape():
    u = np.random.default_rng(0).beta(0.5, 0.5, 300)
    assert Check(u, OF_REGIONS).test(0.01).shape == "of the wrong shape"
    assert Check(u, OF_VALUES).test(0.01).shape == "overconfident"


def test_bands_hold_99_percent():
    rng = np.random.default_rng(0)
    counts = (rng.uniform(size=(3000, 200)) < 1 / calibration.BINS).sum(1)
    low, high = calibration.bin_band(200)
    outside = ((counts < low) | (counts > high)).mean()
    assert outside < 0.01 + 4 * (0.01 / 3000) ** 0.5
    low, high = calibration.coverage_band(np.array([0.0, 0.68, 1.0]), 400)
    assert low[[0, 2]].tolist() == high[[0, 2]].tolist() == [0.0, 1.0]
    assert high[1] - low[1] == pytest.approx(2 * 2.576 * (0.68 * 0.32 / 400) ** 0.5, rel=0.05)


def test_at_most_max_rows_are_judged_the_same_for_the_same_seed():
    reports = [judge(Gaussian(), max_rows=60, draws=50, seed=seed) for seed in (1, 1, 2)]
    assert [r.rows for r in reports] == [60] * 3
    assert np.array_equal(reports[0].ranks, reports[1].ranks)
    assert not np.array_equal(reports[0].ranks, reports[2].ranks)


@pytest.mark.parametrize("rows", [0, 1, -3, 49, 60.5])
def test_too_few_rows_to_judge_by_cannot_be_asked_for(rows):
    with pytest.raises(OptionError, match=f"max_rows = {rows}: a whole number, at least 50"):
        judge(Gaussian(), max_rows=rows)


def test_rows_that_are_no_draws_of_the_prior_judge_nothing():
    theta = DATA.theta[:200].copy()
    theta[:, 3] = 0.25
    x = {"x": DATA.x(np.arange(200))["x"]}
    with pytest.raises(DataError, match=r"parameter 'theta_4' is the same in all rows: draws of the prior alone"):
        judge(Gaussian(), sbi_dgm.Simulations.from_arrays(theta, x, names=DATA.names))
    inside = Gaussian()
    inside.prior = sbi_dgm.Prior([sbi_dgm.Parameter(name, sbi_dgm.Uniform(-0.1, 0.1)) for name in DATA.names])
    with pytest.raises(DataError, match=r"rows lie outside of the posterior's prior \(the first: theta_1 = "):
        judge(inside)


def test_a_parameter_with_the_name_of_a_check_is_refused_before_anything_is_drawn():
    named = Gaussian()
    named.names = ["regions", *named.names[1:]]
    with pytest.raises(OptionError, match="parameter 'regions': that is the name of a check already"):
        judge(named)


def test_blocks_do_not_change_what_is_judged(monkeypatch):
    monkeypatch.setattr("sbi_dgm.diagnostics.evidence.BLOCK_DRAWS", 1000)
    check_exact(judge(Gaussian()))


def test_p_values_are_corrected_for_the_number_of_checks():
    """Of one parameter: ten parameters, regions, two kinds of points and the bins are 14 checks."""
    report = judge(Gaussian())
    assert report.tests == 14
    alone = report.grounds.checks["theta_1"].test(LEVEL).p_value
    assert report.parameters["theta_1"]["p_value"] == pytest.approx(min(1.0, 14 * alone))
