"""Predictive checks: replications of the truth rank uniformly among those of exact draws, and not of others."""

import numpy as np
import pytest

import sbi_dgm
from sbi_dgm.diagnostics import checks
from sbi_dgm.diagnostics.evidence import Evidence
from sbi_dgm.diagnostics.predictive import REPLICATIONS, ROWS, predicted
from sbi_dgm.distributions import Normal
from sbi_dgm.errors import DataError, OptionError
from sbi_dgm.parameters import Observable, Parameter
from sbi_dgm.priors import Prior


class Shifted:
    """x ~ N(a, 1), of a ~ N(0, 1) and a parameter b that changes nothing."""

    name, observables = "shifted", {"x": Observable((1,))}

    def __init__(self, names: str = "ab") -> None:
        self.prior = Prior([Parameter(name, Normal(0, 1)) for name in names])

    def __call__(self, theta, rng):
        return theta[:, :1] + rng.normal(size=(len(theta), 1))


def evidence(shift: float = 0.0, width: float = 1.0, seed: int = 0, other: float = 0.0) -> Evidence:
    """a | x ~ N(x / 2, 1 / 2), moved and scaled; b ~ N(other, 1), which is right for other = 0."""
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=(400, 2))
    x = theta[:, :1] + rng.normal(size=(400, 1))
    noise = rng.normal(size=(400, 50, 2))
    a = x / 2 + shift + width * 0.5**0.5 * noise[..., 0]
    draws = np.stack([a, other + noise[..., 1]], axis=2)
    return Evidence(["a", "b"], theta, {"x": x}, draws, np.zeros(400), np.zeros((400, 20)))


def finding(found: Evidence, seed: int = 1) -> str:
    rng = np.random.default_rng(seed)
    what = predicted(found, Shifted(), None, rng)
    assert what.x.shape == (ROWS, 1 + REPLICATIONS, 1)
    first = next(iter(checks.of_replications(what.components, rng).values()))
    return first.test(0.01).shape


@pytest.mark.parametrize("seed", range(5))
def test_exact_draws_predict_the_next_observation(seed):
    assert finding(evidence(seed=seed), seed) == "calibrated"


def test_wrong_draws_are_told_by_what_they_predict():
    """Up to the sign of a principal component."""
    assert finding(evidence(shift=0.7)).startswith("predicted too ")
    assert finding(evidence(width=3.0)) == "predicted too broadly"


def test_what_changes_no_prediction_is_passed_over():
    assert finding(evidence(other=5.0)) == "calibrated"


def test_parameters_are_taken_by_name():
    """The simulator has them in the other order: b would come where a belongs."""
    rng = np.random.default_rng(2)
    swapped = predicted(evidence(other=50.0), Shifted("ba"), None, rng)
    assert swapped.x.max() > 40, "theta[:, 0] is b there"
    assert predicted(evidence(other=50.0), Shifted("ab"), None, rng).x.max() < 10


def test_noise_is_added_to_the_replications():
    found = predicted(evidence(), Shifted(), lambda x, theta, generator: x + 100.0, np.random.default_rng(3))
    assert found.x.min() > 90


def test_other_parameters_are_refused():
    with pytest.raises(OptionError, match="shifted has the parameters a, c: they need a posterior of all of them"):
        predicted(evidence(), Shifted("ac"), None, np.random.default_rng(0))
    wider = evidence()._replace(x={"y": np.zeros((400, 2))})
    with pytest.raises(
        OptionError, match=r"shifted simulates \{'x': \(1,\)\}, and the simulations are of \{'y': \(2,\)\}"
    ):
        predicted(wider, Shifted(), None, np.random.default_rng(0))


class Failing(Shifted):
    """NaN, or an exception, at so many sd."""

    def __init__(self, limit: float, raises: bool) -> None:
        super().__init__()
        self.limit, self.raises = limit, raises

    def __call__(self, theta, rng):
        fails = theta[:, 0] > self.limit
        if self.raises and fails.any():
            raise ValueError("boom")
        return np.where(fails[:, None], np.nan, super().__call__(theta, rng))


@pytest.mark.parametrize(("raises", "why"), [(False, "a number that is not finite"), (True, "ValueError: boom")])
@pytest.mark.parametrize("seed", range(3))
def test_rows_with_a_failed_draw_are_left_out_and_the_others_rank_as_they_should(raises, why, seed):
    """A row is left out for its truth or for a draw alike: what were a row's truths alone would tilt the ranks."""
    rng = np.random.default_rng(seed)
    what = predicted(evidence(seed=seed), Failing(2.0, raises), None, rng)
    assert 100 < len(what.rows) < ROWS
    assert len(what.rows) == len(what.x) == len(what.components)
    assert np.isfinite(what.x).all()
    assert "draws of the posterior, first at [" in what.failed
    assert why in what.failed
    first = next(iter(checks.of_replications(what.components, rng).values()))
    assert first.test(0.01).shape == "calibrated"


def test_nothing_that_failed_is_nothing_to_tell():
    assert predicted(evidence(), Failing(9.0, False), None, np.random.default_rng(0)).failed == ""


def test_too_few_rows_are_refused():
    with pytest.raises(
        DataError, match=r"shifted failed at \d+ of 4200 draws .*boom.*: 0 rows are left, and 20 are needed"
    ):
        predicted(evidence(), Failing(-9.0, True), None, np.random.default_rng(0))


def test_calibrate_counts_them_among_its_checks():
    class Exact:
        names, record = ("a", "b"), {}

        def sample(self, n, x, *, seed=None, log_prob=False):
            rng = np.random.default_rng(seed)
            noise = rng.normal(size=(len(x["x"]), n, 2))
            draws = np.stack([x["x"] / 2 + 0.5**0.5 * noise[..., 0], noise[..., 1]], axis=2)
            return sbi_dgm.Samples(draws, Shifted().prior.parameters, -0.5 * (noise**2).sum(-1))

        def log_prob(self, theta, x):
            return -((theta[:, 0] - x["x"][:, 0] / 2) ** 2) - 0.5 * theta[:, 1] ** 2

    simulator = Shifted()
    theta = simulator.prior.sample(300, 0)
    data = sbi_dgm.Simulations.from_arrays(theta, simulator(theta, np.random.default_rng(1)), prior=simulator.prior)
    with pytest.raises(OptionError, match="is no simulator: it needs name, prior, observables"):
        sbi_dgm.calibrate(Exact(), data, simulator=Exact(), draws=50, progress=False)
    without = sbi_dgm.calibrate(Exact(), data, draws=50, progress=False)
    report = sbi_dgm.calibrate(Exact(), data, simulator=simulator, draws=50, progress=False)
    assert report.calibrated
    assert without.predictions == {}
    assert report.predictions.keys() == {f"replication, component {k + 1}" for k in range(len(report.predictions))}
    assert report.tests == without.tests + len(report.predictions)
    partly = sbi_dgm.calibrate(Exact(), data, simulator=Failing(2.0, False), draws=50, progress=False)
    assert any("shifted failed at" in warning for warning in partly.warnings)
    assert partly.calibrated
