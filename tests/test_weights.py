"""Weights of two kinds: what they make of the posterior, of batches and of diagnostics, against analytic answers.

Throughout theta ~ N(0, 1) under the prior and x ~ N(theta, 1), so that the posterior is N(x / 2, 1 / 2).
"""

import numpy as np
import pytest
import torch
from scipy.stats import chi2, norm

import sbi_dgm
from sbi_dgm import weights
from sbi_dgm.data.reading import Reading
from sbi_dgm.data.source import Source
from sbi_dgm.distributions import Normal
from sbi_dgm.errors import DataError
from sbi_dgm.estimators.flow import Flow
from sbi_dgm.loop import Run, Training
from sbi_dgm.parameters import Parameter
from sbi_dgm.priors import Prior
from sbi_dgm.report import _thinned, calibrate
from sbi_dgm.samples import Samples

PRIOR = Prior([Parameter("a", Normal(0, 1))])
AFFINE = Flow(transforms=1, map="affine", hidden=16, blocks=1)
HOW = Training(batch_size=256, round=25, patience=8, max_rounds=40, learning_rate=5e-3, warmup=20)
BRIEF = Training(batch_size=64, round=5, patience=2, max_rounds=2, warmup=5)
RULE = sbi_dgm.SplitRule()
FREEDOM = 10  # how many numbers the network fits, in effect, with all rows near one x
CPU = torch.device("cpu")


def simulations(theta, x, **columns) -> sbi_dgm.Simulations:
    return sbi_dgm.Simulations.from_arrays(theta[:, None], x[:, None], prior=PRIOR, **columns)


def train(data: sbi_dgm.Simulations, training: Training = HOW, **options) -> sbi_dgm.Posterior:
    return sbi_dgm.fit(data, AFFINE, training=training, device="cpu", progress=False, **options)


def found(data: sbi_dgm.Simulations, *, rate: bool = False, seed: int = 0) -> np.ndarray | None:
    """The weight of each row."""
    source = Source(data, PRIOR)
    return weights.row_weights(source, Reading(mode="memory"), rate=rate, seed=seed, device=CPU)


def effective(weight: np.ndarray) -> float:
    return float(weight.sum() ** 2 / (weight**2).sum())


def check_gaussian(posterior, mean, variance: float, rows: float) -> None:
    """The posterior is N(mean(x), variance) within four standard errors of a fit to so many effective rows."""
    x = np.array([-1.0, 0.0, 1.0, 2.0])
    draws = posterior.sample(4000, x[:, None], seed=1).array[..., 0]
    error = 4 * (variance * (FREEDOM / rows + 1 / 4000)) ** 0.5
    assert np.abs(draws.mean(1) - mean(x)).max() < error, (draws.mean(1), mean(x), error)
    error = 4 * (FREEDOM / (2 * rows) + 1 / 8000) ** 0.5
    assert np.abs(draws.std(1) / variance**0.5 - 1).max() < error, (draws.std(1), variance**0.5, error)


def check_right(posterior, rows: float) -> None:
    check_gaussian(posterior, lambda x: x / 2, 0.5, rows)


SHIFT = 0.7


def proposed(rows: int, seed: int = 0, *, weighted: bool = True) -> sbi_dgm.Simulations:
    """Theta from N(SHIFT, 1), and the weight that carries it to the prior."""
    rng = np.random.default_rng(seed)
    theta = SHIFT + rng.normal(size=rows)
    weight = np.exp(SHIFT**2 / 2 - SHIFT * theta)
    return simulations(theta, theta + rng.normal(size=rows), proposal_weight=weight if weighted else None)


def test_proposal_weights_give_the_posterior_under_the_prior():
    """Without them it is the posterior under the proposal, N((x + SHIFT) / 2, 1 / 2)."""
    data = proposed(8000)
    check_right(train(data), effective(data.column("proposal_weight")))
    without = train(proposed(8000, weighted=False))
    check_gaussian(without, lambda x: (x + SHIFT) / 2, 0.5, 8000)
    with pytest.raises(AssertionError):
        check_right(without, 8000)


POINTS, EVENTS, WIDE = 200, 60, 1.5


def events(seed: int = 0, **more) -> sbi_dgm.Simulations:
    """Events of the cross section e^theta, drawn too wide, N(theta, WIDE), at evenly spread parameter points."""
    rng = np.random.default_rng(seed)
    theta = norm.ppf((np.arange(POINTS) + 0.5) / POINTS).repeat(EVENTS)
    d = WIDE**0.5 * rng.normal(size=len(theta))
    weight = np.exp(theta) * WIDE**0.5 * np.exp(-(d**2) / 2 * (1 - 1 / WIDE))
    return simulations(theta, theta + d, event_weight=weight, group=np.arange(POINTS).repeat(EVENTS), **more)


def test_event_weights_leave_the_prior_alone_unless_the_rate_is_wanted():
    """With the cross section e^theta in them, the prior N(0, 1) becomes N(1, 1)."""
    data = events()
    check_right(train(data), effective(found(data)))
    tilted = train(data, rate=True)
    check_gaussian(tilted, lambda x: (x + 1) / 2, 0.5, effective(found(data, rate=True)))
    with pytest.raises(AssertionError):
        check_right(tilted, effective(found(data, rate=True)))


def test_events_without_their_weights_are_drawn_too_wide():
    data = events()
    plain = train(simulations(data.theta[:, 0], data.x(np.arange(len(data)))["x"][:, 0]))
    check_gaussian(plain, lambda x: x / (1 + WIDE), WIDE / (1 + WIDE), len(data))


SIZE = 1.5  # of a signed weight; at least the largest p / q


def ratio(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    """N(x; theta, 1) / N(x; theta, WIDE)."""
    return WIDE**0.5 * np.exp(-((x - theta) ** 2) / 2 * (1 - 1 / WIDE))


def signed(rows: int, seed: int = 0, offset: float = 0.0) -> sbi_dgm.Simulations:
    """Events drawn too wide with weights of +-SIZE (as of MC@NLO), whose local mean is p / q - offset."""
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=rows)
    x = theta + WIDE**0.5 * rng.normal(size=rows)
    positive = rng.random(rows) < (1 + (ratio(theta, x) - offset) / SIZE) / 2
    return simulations(theta, x, event_weight=np.where(positive, SIZE, -SIZE))


def columns(data: sbi_dgm.Simulations) -> tuple[np.ndarray, np.ndarray]:
    return data.theta[:, 0], data.x(np.arange(len(data)))["x"][:, 0]


def regression_error(weight: np.ndarray, truth: np.ndarray) -> float:
    """Root mean square, in units of the spread of the truth: 1 for a constant."""
    return float(((weight - truth) ** 2).mean() ** 0.5 / truth.std())


@pytest.mark.filterwarnings("ignore:event weights")
def test_signed_weights_are_learned_and_give_the_posterior_of_their_mean():
    """A weight's noise is at most SIZE: a regression of P numbers on n rows (3 of 8) errs by SIZE sqrt(P / n)."""
    data = signed(12_000)
    weight, truth = found(data, rate=True), ratio(*columns(data))
    bound = 2 * SIZE * (FREEDOM / 4500) ** 0.5 / truth.std()
    assert regression_error(weight, truth) < bound < 0.8
    assert regression_error(np.abs(data.column("event_weight")), truth) > 1
    check_right(train(data, rate=True), len(data) / SIZE**2)
    theta, x = columns(data)
    unsigned = train(simulations(theta, x, event_weight=np.full(len(data), SIZE)), rate=True)
    check_gaussian(unsigned, lambda x: x / (1 + WIDE), WIDE / (1 + WIDE), len(data))
    with pytest.raises(AssertionError):
        check_right(unsigned, len(data) / SIZE**2)


def test_a_mean_that_is_negative_is_refused_with_numbers():
    with pytest.raises(
        DataError, match=r"local mean is negative at \d+ of 3000 rows, with \d+\.\d% of the weight: no dens"
    ):
        found(signed(3000, offset=1.0), rate=True)


def test_a_mean_a_little_below_zero_is_counted_and_becomes_zero():
    mean, valid = np.array([-0.01, 1.0, 2.0, -5.0]), np.array([1, 1, 1, 0], bool)
    with pytest.warns(UserWarning, match=r"1 local means a little below zero \(0\.33% of the weight\)"):
        assert weights._positive(mean, valid).tolist() == [0, 1, 2, 0]
    with pytest.raises(DataError, match=r"negative at 1 of 3 rows, with 3\.2%"):
        weights._positive(np.array([-0.1, 1.0, 2.0, 0.0]), valid)


@pytest.mark.filterwarnings("ignore:event weights")
def test_the_mean_of_a_row_does_not_depend_on_its_own_weight(monkeypatch):
    """One weight, a thousand times as large, changes the other half's means, and none of its own half's."""
    brief(monkeypatch)
    data, changed = signed(600), 123
    weight = data.column("event_weight").copy()
    weight[changed] *= 1000
    theta, x = columns(data)
    before, after = found(data, rate=True), found(simulations(theta, x, event_weight=weight), rate=True)
    halves = sbi_dgm.data.splits.split_rows(
        sbi_dgm.SplitRule(validation=0.5, test=0.0), np.arange(600), np.ones(600, bool)
    )
    own, other = (halves.train, halves.validation)[:: 1 if changed in halves.train else -1]
    assert np.array_equal(before[own], after[own])
    assert (before[other] != after[other]).mean() > 0.9


def brief(monkeypatch) -> None:
    """A regressor that hardly learns, and no check of its sign."""
    monkeypatch.setattr(weights, "Training", lambda **options: BRIEF)
    monkeypatch.setattr(weights, "NEGATIVE", 1.0)


@pytest.mark.filterwarnings("ignore:event weights")
def test_rows_of_one_group_are_learned_together(monkeypatch):
    """Two rows of a group have their means from the same network, which has seen neither."""
    brief(monkeypatch)
    theta, x = (values.repeat(2) for values in columns(signed(300)))
    weight = signed(600).column("event_weight")
    mean = found(simulations(theta, x, event_weight=weight, group=np.arange(300).repeat(2)), rate=True)
    assert np.array_equal(mean[::2], mean[1::2])
    apart = found(simulations(theta, x, event_weight=weight), rate=True)
    assert not np.array_equal(apart[::2], apart[1::2])


@pytest.mark.filterwarnings("ignore:event weights")
def test_signed_weights_of_all_rows_are_learned_where_the_file_has_splits(monkeypatch):
    """Also those of test rows, which diagnostics need, and none of a row that failed."""
    brief(monkeypatch)
    monkeypatch.setattr(weights, "_positive", lambda mean, valid: np.abs(mean))
    data = signed(600)
    theta, x = columns(data)
    label, valid = np.arange(600) % 3, np.arange(600) % 7 > 0
    weight = found(simulations(theta, x, event_weight=data.column("event_weight"), split=label, valid=valid), rate=True)
    assert np.array_equal(weight > 0, valid)


@pytest.mark.filterwarnings("ignore:event weights")
def test_signed_weights_with_a_cross_section_leave_the_prior_alone():
    """Means are learned first, then divided by their mean at each point: the noise of the signs does not enter."""
    rng, theta = np.random.default_rng(6), norm.ppf((np.arange(200) + 0.5) / 200).repeat(60)
    x = theta + WIDE**0.5 * rng.normal(size=len(theta))
    sign = np.where(rng.random(len(theta)) < (1 + ratio(theta, x) / SIZE) / 2, 1, -1)
    data = simulations(theta, x, event_weight=SIZE * np.exp(theta) * sign)
    means = found(data).reshape(200, 60).mean(1)
    assert np.allclose(means, 1, atol=1e-9)
    check_right(train(data), len(data) / SIZE**2 / np.e)


@pytest.mark.filterwarnings("ignore:event weights")
def test_signed_weights_are_learned_from_a_stream_too(monkeypatch):
    brief(monkeypatch)
    source = Source(signed(600), PRIOR)
    monkeypatch.setattr(weights, "_positive", lambda mean, valid: mean)
    both = [
        weights.row_weights(source, Reading(mode=mode), rate=True, seed=0, device=CPU) for mode in ("memory", "stream")
    ]
    assert np.isfinite(both[1]).all()
    assert not np.array_equal(*both), "another order of rows"


@pytest.mark.filterwarnings("ignore:event weights")
def test_the_mean_of_signed_weights_is_learned_given_all_parameters(monkeypatch):
    """So that a parameter that is not inferred may change the cross section; one that never changes may not."""
    brief(monkeypatch)
    monkeypatch.setattr(weights, "_positive", lambda mean, valid: mean)
    prior = Prior([Parameter(name, Normal(0, 1)) for name in "abc"])
    data = signed(600)
    x, theta = columns(data)[1], np.c_[prior.sample(600, 0)[:, :2], np.full(600, 0.3)]
    given = sbi_dgm.Simulations.from_arrays(theta, x, prior=prior, event_weight=data.column("event_weight"))
    one, two = (
        weights.row_weights(Source(given, prior.marginal(n)), Reading(mode="memory"), rate=True, seed=0, device=CPU)
        for n in (["a"], ["b", "a"])
    )
    assert np.array_equal(one, two)
    theta[:, 1] = prior.sample(600, 1)[:, 1]
    given = sbi_dgm.Simulations.from_arrays(theta, x, names=["a", "b", "c"], event_weight=data.column("event_weight"))
    source = Source(given, prior.marginal(["a"]))
    other = weights.row_weights(source, Reading(mode="memory"), rate=True, seed=0, device=CPU)
    assert np.isfinite(other).all()
    assert not np.array_equal(one, other)


def test_weights_without_a_sign_are_not_learned(monkeypatch):
    monkeypatch.setattr(weights, "_local_mean", None)
    data = events()
    assert np.array_equal(found(data, rate=True), data.column("event_weight"))
    theta, x = columns(data)
    valid = np.arange(len(data)) != 5
    failed = np.where(valid, data.column("event_weight"), -1.0)
    assert np.array_equal(found(simulations(theta, x, event_weight=failed, valid=valid), rate=True), failed)


def test_event_weights_have_mean_one_over_the_valid_rows_of_each_point():
    rng = np.random.default_rng(0)
    theta = np.array([0.1, -0.4, 0.9]).repeat([10, 40, 30])[rng.permutation(80)]
    valid = rng.random(80) < 0.8
    valid[theta == 0.1] = True
    weight = found(simulations(theta, theta, event_weight=rng.exponential(np.exp(theta)), valid=valid))
    means = [weight[valid & (theta == point)].mean() for point in (0.1, -0.4, 0.9)]
    assert means == pytest.approx([1, 1, 1], abs=1e-12)


def test_few_events_at_a_point_are_refused_with_the_remedy():
    theta = np.array([0.5, 0.25]).repeat([9, 51])
    data = simulations(theta, theta, event_weight=np.ones(60))
    message = r"1 of 2 parameter points have fewer than 10 events \(the first: 9 at \[0\.5\]\).*rate=True \(--rate\)\."
    with pytest.raises(DataError, match=message):
        found(data)
    assert found(data, rate=True).tolist() == [1] * 60
    valid = theta == 0.25
    assert found(simulations(theta, theta, event_weight=np.ones(60), valid=valid))[valid].tolist() == [1] * 51


def test_weights_that_sum_to_nothing_are_refused():
    theta = np.array([0.5, 0.25]).repeat(30)
    data = simulations(theta, theta, event_weight=np.where(theta > 0.3, 0.0, 1.0))
    with pytest.raises(DataError, match=r"sum at the parameter point \[0\.5\] is not positive"):
        found(data)
    with pytest.raises(DataError, match="sum over the 60 valid rows is not positive"):
        found(simulations(theta, theta, event_weight=np.zeros(60)), rate=True)


def test_weights_of_both_kinds_multiply():
    rng = np.random.default_rng(0)
    theta, proposal, event = np.array([0.5, 0.25]).repeat(30), rng.exponential(size=60), rng.exponential(size=60)
    both = simulations(theta, theta, proposal_weight=proposal, event_weight=event)
    assert np.array_equal(found(both, rate=True), proposal * event)
    assert np.array_equal(found(both), proposal * found(simulations(theta, theta, event_weight=event)))
    assert np.array_equal(found(simulations(theta, theta, proposal_weight=proposal)), proposal)
    assert found(simulations(theta, theta)) is None


def check_same(one, two) -> None:
    first, second = one.network.state_dict(), two.network.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.filterwarnings("ignore:event weights")
@pytest.mark.parametrize("kind", ["proposal_weight", "event_weight", "signed"])
def test_a_factor_common_to_all_weights_changes_nothing(monkeypatch, kind):
    """Powers of two, so that there is no rounding: equal to the bit. Other factors are as good as that."""
    brief(monkeypatch)
    data = signed(400)
    weight, name = data.column("event_weight"), kind if kind != "signed" else "event_weight"
    weight = weight if kind == "signed" else np.abs(weight) * np.random.default_rng(0).random(400)
    theta, x = columns(data)
    fits = [train(simulations(theta, x, **{name: factor * weight}), BRIEF, rate=True) for factor in (1, 2.0**-60, 2)]
    check_same(fits[0], fits[1])
    check_same(fits[0], fits[2])
    weight = weight * np.where(np.arange(400) % 2, 1, 2)
    with pytest.raises(AssertionError):
        check_same(fits[0], train(simulations(theta, x, **{name: weight}), BRIEF, rate=True))


@pytest.fixture
def caught(monkeypatch) -> list[Run]:
    """The runs that `fit` makes."""
    runs = []

    class Kept(Run):
        def __init__(self, *given) -> None:
            super().__init__(*given)
            runs.append(self)

    monkeypatch.setattr("sbi_dgm.training.Run", Kept)
    return runs


def test_batches_are_divided_by_the_mean_weight_of_all_training_rows(caught):
    data = proposed(600)
    train(data, BRIEF)
    weight, parts = data.column("proposal_weight"), data.split(RULE)
    seen = torch.cat([caught[0].batches[step].weight for step in range(caught[0].batches.per_epoch)]).numpy()
    expected = (weight / weight[parts.train].mean())[parts.train].astype(np.float32)
    assert np.isin(seen, expected).all()
    means = [float(caught[0].batches[step].weight.mean()) for step in range(7)]
    assert np.std(means) > 0.05, "a batch keeps its own mean"
    assert caught[0].held_out.weight.double().mean() == pytest.approx(1, abs=1e-6)


def test_the_gradient_of_a_batch_is_linear_in_its_weights(caught):
    """With weights divided by the batch's own sum it would not be: gradients of weights a, b and a + b add up."""
    train(proposed(600), BRIEF)
    network, batch = caught[0].network, caught[0].batches[0]
    ones = torch.ones_like(batch.weight)

    def gradient(weight, total=None):
        network.zero_grad()
        (weight * network(batch.z, batch.x)).mean().div(1 if total is None else total).backward()
        return torch.cat([p.grad.flatten() for p in network.parameters()])

    apart, together = gradient(batch.weight) + gradient(ones), gradient(batch.weight + ones)
    assert torch.allclose(apart, together, rtol=1e-4, atol=1e-5)
    own = [gradient(w, w.mean()) for w in (batch.weight, ones, batch.weight + ones)]
    assert not torch.allclose(own[0] + own[1], own[2], rtol=1e-4, atol=1e-5)


def test_the_validation_loss_is_the_weighted_mean(caught):
    data = proposed(600)
    posterior = train(data, BRIEF)
    rows, weight = data.split(RULE).validation, data.column("proposal_weight")
    theta, x = columns(data)
    loss = -posterior.log_prob(theta[rows, None], x[rows, None])
    assert caught[0].validate() == pytest.approx(float((weight[rows] * loss).sum() / weight[rows].sum()), abs=1e-4)
    assert abs(caught[0].validate() - float(loss.mean())) > 1e-3


def test_validation_and_training_weights_do_not_leak_into_each_other(caught):
    """Weights of validation rows a thousand times as large are the same weights."""
    data = proposed(600)
    weight = data.column("proposal_weight").copy()
    weight[data.split(RULE).validation] *= 1024
    theta, x = columns(data)
    check_same(train(data, BRIEF), train(simulations(theta, x, proposal_weight=weight), BRIEF))


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
    data = events(seed=3)
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
    kept = [_thinned(Exact(), data, rows, np.random.default_rng(seed)) for seed in range(400)]
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
    assert _thinned(Exact(), data, rows, np.random.default_rng(0)) is rows


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
    assert len(_thinned(Exact(), few, none, np.random.default_rng(0))) == 0
