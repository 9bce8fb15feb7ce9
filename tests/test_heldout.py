"""Which rows a posterior is judged by: none that it was trained on, and of each group one."""

import numpy as np
import pytest

import sbi_dgm
from sbi_dgm.distributions import Uniform
from sbi_dgm.errors import DataError, OptionError
from sbi_dgm.estimators.flow import Flow
from sbi_dgm.heldout import held_out
from sbi_dgm.loop import Training
from sbi_dgm.parameters import Parameter
from sbi_dgm.priors import Prior
from sbi_dgm.report import calibrate


def flat(rows: int, seed: int = 1, **columns) -> sbi_dgm.Simulations:
    prior = Prior([Parameter("a", Uniform(0, 1)), Parameter("b", Uniform(0, 1))])
    theta = prior.sample(rows, seed)
    return sbi_dgm.Simulations.from_arrays(theta, 2 * theta, prior=prior, **columns)


def brief(data: sbi_dgm.Simulations, **options):
    how = Training(batch_size=50, round=2, max_rounds=1)
    return sbi_dgm.fit(
        data, Flow(transforms=1, hidden=4, blocks=0), training=how, device="cpu", progress=False, **options
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> sbi_dgm.Simulations:
    return flat(400).save(tmp_path_factory.mktemp("data") / "sims.h5")


def test_on_the_training_file_only_test_rows_are_held_out(file):
    posterior = brief(file)
    rows, parts = held_out(posterior, file), file.split(sbi_dgm.SplitRule())
    assert np.array_equal(rows, parts.test)
    assert not set(rows) & (set(parts.train) | set(parts.validation))
    assert np.array_equal(held_out(posterior, flat(400)), rows), "the same rows in memory"


def test_on_a_grown_file_test_and_new_rows_are_held_out(tmp_path):
    data = flat(400).save(tmp_path / "sims.h5")
    posterior = brief(data)
    more = flat(100, seed=2)
    grown = data.append(more.theta, more.x(np.arange(100)))
    expected = np.concatenate([flat(400).split(sbi_dgm.SplitRule()).test, np.arange(400, 500)])
    assert np.array_equal(held_out(posterior, grown), expected)


def test_on_a_fresh_file_all_valid_rows_are_held_out(file):
    valid = np.arange(400) % 7 > 0
    fresh = flat(400, seed=3, valid=valid)
    assert np.array_equal(held_out(brief(file), fresh), np.flatnonzero(valid))
    assert np.array_equal(held_out(OfUniverses(), flat(60)), np.arange(60)), "nor has a foreign posterior a record"


def test_new_rows_of_a_training_group_are_not_held_out(tmp_path):
    """Maps of one universe stay on one side, also where the file grew by more maps of it."""
    data = flat(400, group=np.arange(400) // 4).save(tmp_path / "sims.h5")
    posterior = brief(data)
    more = flat(120, seed=2)
    group = np.arange(90, 120).repeat(4)
    grown = data.append(more.theta, more.x(np.arange(120)), group=group)
    test = data.split(sbi_dgm.SplitRule()).test
    tested = np.unique(test // 4)
    new = 400 + np.flatnonzero(np.isin(group, tested) | (group >= 100))
    assert np.array_equal(held_out(posterior, grown), np.concatenate([test, new]))


def test_a_posterior_of_some_parameters_is_judged_on_its_own_columns(file):
    report = calibrate(brief(file, parameters=["b"]), flat(100, seed=5), draws=50, progress=False)
    assert list(report.parameters) == ["b"]
    assert report.rows == 100


def test_the_splits_seed_and_fractions_are_those_of_training(file):
    rule = sbi_dgm.SplitRule(validation=0.1, test=0.3, seed=8)
    assert np.array_equal(held_out(brief(file, split=rule), file), file.split(rule).test)


def test_too_few_rows_or_draws_are_refused(file):
    with pytest.raises(DataError, match="20 held-out rows: at least 50"):
        calibrate(brief(file), file, progress=False)
    with pytest.raises(DataError, match=r"0 held-out rows.*test split"):
        calibrate(brief(file, split=sbi_dgm.SplitRule(test=0)), file, progress=False)
    with pytest.raises(OptionError, match="draws = 5"):
        calibrate(brief(file), flat(60), draws=5, progress=False)


def universes(rows_each: int, count: int = 100) -> sbi_dgm.Simulations:
    """Maps of one universe: theta ~ N(0, 1) repeated, x = theta + 3 noise."""
    rng = np.random.default_rng(31)
    theta = np.repeat(rng.normal(size=(count, 1)), rows_each, axis=0)
    x = theta + 3 * rng.normal(size=theta.shape)
    return sbi_dgm.Simulations.from_arrays(theta, x, names=["a"], group=np.repeat(np.arange(count), rows_each))


class OfUniverses:
    """The exact posterior of `universes`, N(x / 10, 9 / 10)."""

    names = ("a",)

    def sample(self, n, x, *, seed=None, log_prob=False):
        u = np.random.default_rng(seed).normal(size=(len(x["x"]), n, 1))
        return sbi_dgm.Samples(0.1 * x["x"][:, None] + 0.9**0.5 * u, ["a"], log_prob=-0.5 * u[..., 0] ** 2)

    def log_prob(self, theta, x):
        return -0.5 * ((theta - 0.1 * x["x"])[:, 0] ** 2) / 0.9


def test_one_map_of_each_universe_is_judged():
    reports = [calibrate(OfUniverses(), universes(15), seed=s, progress=False) for s in range(20)]
    assert {report.rows for report in reports} == {100}
    assert sum(not report.calibrated for report in reports) <= 1
    with pytest.raises(DataError, match="40 held-out groups"):
        calibrate(OfUniverses(), universes(15, count=40), progress=False)
