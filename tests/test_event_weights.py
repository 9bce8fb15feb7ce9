"""Campaigns of weighted events: weights of either sign reach the file, to the bit; rows without a finite one fail."""

import numpy as np
import pytest
from campaign_toys import Toy, content, interrupted, left_over, run

from sbi_dgm.diagnostics.evidence import Evidence
from sbi_dgm.diagnostics.predictive import predicted
from sbi_dgm.errors import DataError, FileError, OptionError
from sbi_dgm.parameters import Observable
from sbi_dgm.simulator import FailedRowsError, unbatched
from simulators.collider.dimuon_weighted import DimuonWeighted


def weight_of(theta):
    """Of either sign, and too fine for float32."""
    return np.where(theta[:, 1] < 0, -1, 1) * (1 + 1e-12 * theta[:, 0])


class Weighted(Toy):
    """The toy with weights; `spoils` is what becomes of them, and of all, where a > 0.9."""

    weighted = True

    def __init__(self, spoils=lambda out, bad: out):
        super().__init__()
        self.spoils = spoils

    def __call__(self, theta, rng):
        return self.spoils({**super().__call__(theta, rng), "event_weight": weight_of(theta)}, theta[:, 0] > 0.9)


class Killed(Weighted):
    """Stops with Ctrl-C after three shards."""

    left = 3

    def __call__(self, theta, rng):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().__call__(theta, rng)


def infinite(out, bad):
    return out | {"event_weight": np.where(bad, np.inf, out["event_weight"])}


def raising(out, bad):
    if bad.any():
        raise ZeroDivisionError("no solution")
    return out


def naming(out, bad):
    raise FailedRowsError(out, {int(i): ZeroDivisionError("no solution") for i in np.flatnonzero(bad)})


def rowwise(out, bad):
    """The same numbers, given row by row."""

    def one(row, rng):
        return raising({name: a[row] for name, a in out.items()}, bad[row])

    return unbatched(one)(np.arange(len(bad)), None)


def lost(out, bad):
    """A shard that begins badly is lost altogether."""
    if bad[0]:
        raise FailedRowsError(None, {i: ValueError("lost") for i in range(len(bad))})
    return out


def test_weights_reach_the_file_in_double_precision(tmp_path):
    data = run(tmp_path / "w.h5", simulator=Weighted())
    found = data.column("event_weight")
    assert found.dtype == np.float64
    assert (found == weight_of(data.theta)).all()
    assert (found < 0).any()
    assert (found != found.astype(np.float32)).any()
    assert list(data.observables) == ["x", "n"]
    plain = run(tmp_path / "p.h5")
    assert "event_weight" not in plain.columns
    assert (plain.x(np.arange(250))["x"] == data.x(np.arange(250))["x"]).all()


@pytest.mark.filterwarnings("ignore:.*simulations failed")
@pytest.mark.parametrize("spoils", [infinite, raising, naming, rowwise, lost])
def test_failed_rows_weigh_nothing_and_the_others_keep_theirs(tmp_path, spoils):
    data = run(tmp_path / "w.h5", simulator=Weighted(spoils))
    found, bad = data.column("event_weight"), ~data.valid.astype(bool)
    assert 0 < bad.sum() < 250
    if spoils is not lost:
        assert (bad == (data.theta[:, 0] > 0.9)).all()
    assert (found[bad] == 0).all()
    assert (found[~bad] == weight_of(data.theta[~bad])).all()
    reason = {infinite: b"event_weight is inf", lost: b"ValueError: lost"}.get(
        spoils, b"ZeroDivisionError: no solution"
    )
    assert set(data.columns["failure"][:][bad]) == {reason}


def test_weights_that_are_whole_numbers_are_stored_as_others(tmp_path):
    data = run(tmp_path / "w.h5", simulator=Weighted(lambda out, bad: out | {"event_weight": np.sign(out["n"] - 4)}))
    assert data.column("event_weight").dtype == np.float64
    assert set(data.column("event_weight")) == {-1.0, 0.0, 1.0}


def test_any_number_of_workers_a_kill_and_an_extension_give_the_same_file(tmp_path):
    run(tmp_path / "whole.h5", simulator=Weighted())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed.h5", simulator=Killed())
    run(tmp_path / "killed.h5", simulator=Weighted())
    run(tmp_path / "longer.h5", 130, simulator=Weighted())
    run(tmp_path / "longer.h5", simulator=Weighted())
    for name in ("killed", "longer"):
        assert content(tmp_path / f"{name}.h5") == content(tmp_path / "whole.h5")
    run(tmp_path / "one.h5", simulator=DimuonWeighted())
    run(tmp_path / "two.h5", simulator=DimuonWeighted(), workers=2)
    assert content(tmp_path / "one.h5") == content(tmp_path / "two.h5")
    assert content(tmp_path / "one.h5") != content(tmp_path / "whole.h5")


def test_a_campaign_without_weights_does_not_go_on_with_them(tmp_path):
    interrupted(tmp_path / "a.h5")
    with pytest.raises(FileError, match="holds another campaign"):
        run(tmp_path / "a.h5", simulator=Weighted())


def without(out, bad):
    return {name: a for name, a in out.items() if name != "event_weight"}


class Unannounced(Weighted):
    weighted = False


class Twice(Weighted):
    def __init__(self):
        super().__init__()
        self.observables = {**self.observables, "event_weight": Observable(())}


@pytest.mark.parametrize(
    ("simulator", "told"),
    [
        (Weighted(without), "without its observable 'event_weight'"),
        (Weighted(lambda out, bad: out | {"event_weight": np.ones((len(bad), 2))}), "has shape"),
        (Weighted(lambda out, bad: out | {"event_weight": 1.0}), "has shape"),
        (Weighted(lambda out, bad: out | {"event_weight": np.full(len(bad), "heavy")}), "not of real numbers"),
        (Unannounced(), "has no attribute weighted = True"),
        (Twice(), "has an observable called 'event_weight'"),
    ],
)
def test_weights_that_do_not_fit_end_the_campaign(tmp_path, simulator, told):
    with pytest.raises(DataError, match=told):
        run(tmp_path / "w.h5", simulator=simulator)
    assert not [name for name in left_over(tmp_path / "w.h5") if name.endswith(".part")]


def test_predictive_checks_refuse_weighted_events():
    problem = DimuonWeighted()
    theta = problem.prior.sample(50, seed=0)
    x = problem(theta, np.random.default_rng(0))["event"]
    evidence = Evidence(problem.prior.names, theta, {"event": x}, theta[:, None], np.zeros(50), np.zeros((50, 1)))
    with pytest.raises(OptionError, match="dimuon_weighted weighs its own"):
        predicted(evidence, problem, None, np.random.default_rng(0))
