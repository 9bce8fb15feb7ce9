"""Simulations: what goes in comes out, what cannot be learned from is refused with row, name and numbers."""

import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pandas as pd
import pytest

import sbi_dgm
from sbi_dgm import Normal, Observable, Parameter, Prior, Simulations, SplitRule, Uniform
from sbi_dgm.data import native
from sbi_dgm.errors import DataError, FileError, OptionError, PriorError, SbiError

PRIOR = Prior([Parameter("a", Uniform(0, 1)), Parameter("b", Normal(0, 1))])


def draws(rows, seed=0):
    theta = PRIOR.sample(rows, seed)
    noise = np.random.default_rng(seed).normal(size=(rows, 3))
    return theta, {"v": (theta[:, :1] + noise).astype(np.float32), "n": np.arange(rows)}


def join(one, two):
    return {name: np.concatenate([one[name], two[name]]) for name in one}


def content(data):
    return {name: (column.dtype, column[:].tobytes()) for name, column in data.columns.items()}


@pytest.fixture
def stored(tmp_path):
    return Simulations.create(tmp_path / "a.h5", *draws(120), prior=PRIOR, group=np.arange(120) // 2)


@pytest.mark.parametrize("place", ["memory", "file"])
@pytest.mark.parametrize("more", [1, 80])
def test_appending_equals_creating_with_all_rows(tmp_path, place, more):
    (theta, x), (theta2, x2) = draws(120), draws(more, seed=1)
    weights = np.random.default_rng(2).uniform(1, 2, 120 + more)
    whole = Simulations.from_arrays(
        np.concatenate([theta, theta2]), join(x, x2), prior=PRIOR, proposal_weight=weights, group=np.arange(120 + more)
    )
    part = {"proposal_weight": weights[:120], "group": np.arange(120)}
    rest = {"proposal_weight": weights[120:], "group": np.arange(120, 120 + more)}
    data = Simulations.from_arrays(theta, x, prior=PRIOR, **part)
    if place == "file":
        data, whole = data.save(tmp_path / "a.h5"), whole.save(tmp_path / "b.h5")
    grown = data.append(theta2, x2, **rest)
    assert content(grown) == content(whole)
    assert content(data) != content(whole)
    assert grown.header == whole.header
    if place == "file":
        assert content(Simulations.open(tmp_path / "a.h5")) == content(whole)


@pytest.mark.parametrize("place", ["memory", "file"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": lambda x: {**x, "v": x["v"][:, :2]}}, r"x/v has shape \(2,\), expected \(3,\)"),
        ({"x": lambda x: {"v": x["v"]}}, "x/n is described but not given"),
        ({"x": lambda x: {**x, "w": x["n"]}}, r"only one side has \['x/w'\]"),
        ({"x": lambda x: {**x, "n": x["n"] + 0.5}}, "x/n has dtype float64, expected int64"),
        ({"theta": lambda theta: theta[:, :1]}, r"theta has shape \(1,\), expected \(2,\)"),
        ({"group": None}, r"only one side has \['group'\]"),
        ({"split": np.zeros(120)}, r"only one side has \['split'\]"),
    ],
)
def test_rows_that_do_not_fit_are_not_appended(stored, place, change, words):
    data = stored if place == "file" else Simulations.from_arrays(*draws(120), prior=PRIOR, group=np.arange(120) // 2)
    before = stored.path.read_bytes()
    theta, x = draws(120, seed=1)
    theta, x = change.get("theta", lambda t: t)(theta), change.get("x", lambda a: a)(x)
    columns = {"group": np.arange(120)} | {n: v for n, v in change.items() if n not in ("theta", "x")}
    with pytest.raises(SbiError, match=words):
        data.append(theta, x, **columns)
    assert stored.path.read_bytes() == before
    assert len(data) == 120


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": np.zeros((99, 3))}, r"theta has 100 rows and x/x has shape \(99, 3\)"),
        ({"x": {"u": np.zeros(100), "w": np.zeros(101)}}, r"theta has 100 rows and x/w has shape \(101,\)"),
        ({"theta": np.zeros((99, 2))}, r"theta has 99 rows and x/x has shape \(100, 3\)"),
        ({"valid": np.ones(99)}, r"100 rows and valid has shape \(99,\)"),
        ({"group": np.arange(101)}, r"100 rows and group has shape \(101,\)"),
        ({"proposal_weight": np.ones(1)}, r"100 rows and proposal_weight has shape \(1,\)"),
        ({"x": 3.0}, r"100 rows and x/x has shape \(\)"),
        ({"x": {}}, "there is no observable"),
        ({"theta": np.arange(100.0)}, r"theta has shape \(100,\): give rows"),
        ({"theta": np.zeros((0, 2)), "x": np.zeros((0, 3))}, r"theta has shape \(0, 2\)"),
        ({"x": np.full((100, 3), "a")}, "x/x has dtype <U1: give real numbers"),
        ({"x": np.zeros((100, 3), complex)}, "x/x has dtype complex128"),
        ({"names": ["a", "b", "c"]}, r"theta has shape \(2,\), expected \(3,\)"),
        ({"observables": {"x": Observable((4,))}}, r"x/x has shape \(3,\), expected \(4,\)"),
        ({"observables": {"y": Observable((3,))}}, "x/y is described but not given"),
        ({"split": np.full(100, 3)}, r"split row 0 is 3: .*0 \(train\), 1 \(validation\) or 2 \(test\)"),
        ({"split": np.r_[0, -1, np.zeros(98)]}, "split row 1 is -1"),
        ({"group": np.linspace(0, 1, 100)}, "group row 1 is 0.0101"),
        ({"event_weight": np.r_[1, np.nan, np.ones(98)]}, "event_weight row 1 is nan"),
        ({"proposal_weight": np.r_[1, 1, np.inf, np.ones(97)]}, "proposal_weight row 2 is inf"),
        ({"proposal_weight": np.r_[1, 1, 0, np.ones(97)]}, "proposal_weight row 2 is 0"),
        ({"wieght": np.ones(100)}, "unknown column 'wieght'.*Known: event_weight, group, proposal_weight, split"),
    ],
)
def test_arrays_that_do_not_pair_up_are_refused_and_no_file_is_left(tmp_path, change, words):
    given = {"theta": np.random.default_rng(0).normal(size=(100, 2)), "x": np.zeros((100, 3))} | change
    for make in (Simulations.from_arrays, lambda **k: Simulations.create(tmp_path / "a.h5", **k)):
        with pytest.raises(SbiError, match=words):
            make(**given)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["memory", "file"])
def test_failed_rows_are_kept_marked_and_counted(tmp_path, place):
    theta, x = draws(100)
    x["v"][[3, 50]], x["v"][7, 1] = np.nan, np.inf
    said = np.ones(100, bool)
    said[20] = False
    data = Simulations.from_arrays(theta, x, prior=PRIOR, valid=said)
    data = data.save(tmp_path / "a.h5") if place == "file" else data
    assert len(data) == 100
    assert np.flatnonzero(~data.valid).tolist() == [3, 7, 20, 50]
    np.testing.assert_array_equal(data.theta, theta)
    np.testing.assert_array_equal(data.x(np.arange(100))["v"], x["v"])
    parts = data.split(SplitRule())
    used = np.concatenate([parts.train, parts.validation, parts.test])
    assert sorted(used.tolist()) == np.flatnonzero(data.valid).tolist()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("prior", [PRIOR, None])
def test_theta_that_is_not_finite_is_refused_with_row_and_parameter(value, prior):
    theta, x = draws(100)
    theta[41, 1] = value
    with pytest.raises(SbiError, match=rf"theta row 41: b is {value}"):
        Simulations.from_arrays(theta, x, prior=prior, names=["a", "b"])


@pytest.mark.parametrize("value", [1.25, -0.5])
def test_theta_outside_its_prior_is_refused_with_row_name_value_and_bounds(value):
    theta, x = draws(100)
    theta[[17, 60], 0] = value
    with pytest.raises(PriorError, match=rf"row 17: a = {value} is outside its prior.*\[0, 1\].*2 of 100"):
        Simulations.from_arrays(theta, x, prior=PRIOR)


@pytest.mark.parametrize("edge", [0.05, 0.6])
def test_theta_rounded_to_float32_at_an_edge_of_the_prior_is_on_the_edge(tmp_path, edge):
    prior = Prior([Parameter("omega_m", Uniform(0.05, 0.6))])
    theta = prior.sample(100, 0).astype(np.float32)
    theta[:2] = np.float32(edge)
    data = Simulations.create(tmp_path / "a.h5", theta, theta, prior=prior)
    assert data.theta[0, 0] == edge
    np.testing.assert_array_equal(data.theta[2:], theta[2:].astype(float))
    assert np.isfinite(prior.log_prob(data.theta)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_theta_beyond_rounding_of_an_edge_is_refused(dtype):
    prior = Prior([Parameter("omega_m", Uniform(0.05, 0.6))])
    theta = prior.sample(100, 0).astype(dtype)
    theta[5] = np.float32(0.6) + (1e-5 if dtype == np.float32 else 0)
    with pytest.raises(PriorError, match=r"row 5: omega_m = 0\.6"):
        Simulations.from_arrays(theta, theta, prior=prior)


@pytest.mark.parametrize("rows", [[0], [119], [3, 4, 5], [0, 7, 60, 118], [], list(range(120))])
def test_rows_of_x_are_those_asked_for(stored, rows):
    rows = np.array(rows, int)
    for name, values in draws(120)[1].items():
        np.testing.assert_array_equal(stored.x(rows)[name], values[rows])


@pytest.mark.parametrize("place", ["memory", "file"])
def test_weights_of_each_kind_are_columns_of_their_own(stored, tmp_path, place):
    theta, x = draws(60)
    ratio, event = np.random.default_rng(0).uniform(0.5, 2, 60), np.random.default_rng(1).normal(size=60)
    assert stored.column("event_weight") is stored.column("proposal_weight") is None
    one = Simulations.from_arrays(theta, x, event_weight=event)
    both = Simulations.from_arrays(theta, x, event_weight=event, proposal_weight=ratio)
    if place == "file":
        one, both = one.save(tmp_path / "one.h5"), both.save(tmp_path / "both.h5")
    assert one.column("event_weight").tolist() == both.column("event_weight").tolist() == event.tolist()
    assert both.column("proposal_weight").tolist() == ratio.tolist()
    assert one.column("proposal_weight") is None


@pytest.mark.parametrize("place", ["memory", "file"])
def test_truth_values_are_numbers_that_can_be_learned_from(tmp_path, place):
    theta, x = draws(100)
    flags = x["v"] > 0
    data = Simulations.from_arrays(theta, flags, prior=PRIOR)
    data = data.save(tmp_path / "a.h5") if place == "file" else data
    np.testing.assert_array_equal(data.x(np.arange(100))["x"], flags.astype(np.uint8))
    assert data.columns["x/x"].dtype == np.uint8
    sbi_dgm.fit(data, training=sbi_dgm.Training(max_rounds=1, round=2), progress=False)


def test_files_of_ours_behind_each_other_are_one_table(tmp_path):
    theta, x = draws(180)
    for i, rows in enumerate((slice(0, 60), slice(60, 70), slice(70, 180))):
        part = {name: values[rows] for name, values in x.items()}
        Simulations.create(tmp_path / f"part_{9 + i}.h5", theta[rows], part, prior=PRIOR)
    data = Simulations.open(tmp_path / "part_*.h5")
    assert content(data) == content(Simulations.from_arrays(theta, x, prior=PRIOR))
    Simulations.create(tmp_path / "part_12.h5", theta[:5], {"v": x["v"][:5]}, prior=PRIOR)
    with pytest.raises(FileError, match=r"part_12\.h5 does not continue .*part_9\.h5: its prior, observables"):
        Simulations.open(tmp_path / "part_*.h5")


@pytest.mark.filterwarnings("ignore:.*simulations failed")
def test_files_of_ours_join_where_only_some_know_of_failures(tmp_path):
    def half(theta, rng):
        if (theta > 0).any():
            raise ZeroDivisionError("positive")
        return theta

    for name, run in (("a", half), ("b", lambda theta, rng: theta)):
        content = {
            "name": "toy",
            "prior": Prior([Parameter("a", Normal(0, 1))]),
            "observables": {"x": Observable((1,))},
        }
        simulator = type("Toy", (), content | {"__call__": staticmethod(run)})()
        sbi_dgm.simulate(simulator, 60, out=tmp_path / f"{name}.h5", progress=False)
    assert "failure" in Simulations.open(tmp_path / "a.h5").columns
    joined = Simulations.open(tmp_path / "[ab].h5")
    assert len(joined) == 120
    assert "failure" not in joined.columns
    assert 60 < joined.valid.sum() < 120


def test_a_prior_may_be_given_to_a_file_of_ours_that_has_none(tmp_path):
    theta, x = draws(60)
    Simulations.create(tmp_path / "a.h5", theta[:, ::-1], x, names=["b", "a"])
    data = Simulations.open(tmp_path / "a.h5", prior=PRIOR)
    assert (data.names, data.prior) == (["a", "b"], PRIOR)
    np.testing.assert_array_equal(data.theta, theta)
    with pytest.raises(PriorError, match=r"the prior is of \['a'\], but theta has \['b', 'a'\]"):
        Simulations.open(tmp_path / "a.h5", prior={"a": {"uniform": [0, 1]}})


def test_the_fingerprint_knows_names_and_every_number(stored):
    theta, x = draws(120)
    first = Simulations.from_arrays(theta[:50], {n: a[:50] for n, a in x.items()}, prior=PRIOR)
    assert stored.fingerprint(50) == first.fingerprint()
    assert stored.fingerprint() != first.fingerprint()
    renamed = Simulations.from_arrays(theta, x, names=["a", "c"])
    assert renamed.fingerprint() != stored.fingerprint()
    theta[77, 1] = np.nextafter(theta[77, 1], 9)
    assert Simulations.from_arrays(theta, x, prior=PRIOR).fingerprint() != stored.fingerprint()


def _total(data):
    return float(data.theta.sum())


def test_a_pickled_file_is_its_path_and_opens_in_another_process(stored, tmp_path):
    total = _total(stored)
    note = pickle.dumps(stored)
    assert len(note) < 10_000
    assert pickle.loads(note).theta.tobytes() == stored.theta.tobytes()
    (tmp_path / "note").write_bytes(note)
    program = f"import pickle; print(pickle.load(open({str(tmp_path / 'note')!r}, 'rb')).theta.sum().hex())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float.fromhex(done.stdout) == total


def test_a_forked_process_opens_the_file_anew(stored):
    total = _total(stored)
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        assert list(pool.map(_total, [stored] * 3)) == [total] * 3
    assert _total(stored) == total


def test_an_existing_file_is_replaced_only_when_asked(stored):
    before = stored.path.read_bytes()
    with pytest.raises(FileError, match=r"exists already.*overwrite"):
        Simulations.create(stored.path, *draws(60))
    assert stored.path.read_bytes() == before
    assert len(Simulations.create(stored.path, *draws(60), overwrite=True)) == 60


def test_more_parameters_than_rows_look_transposed():
    theta, x = np.random.default_rng(0).normal(size=(2, 60)), np.zeros((2, 3))
    with pytest.raises(DataError, match=r"2 of 2 rows are valid: at least 50 .* 60 columns: is it transposed\?"):
        Simulations.from_arrays(theta, x).require_rows()


def test_another_prior_than_the_files_own_is_refused(stored):
    """Labels and units make no other prior."""
    told = [Parameter(p.name, p.prior, label="q", unit="m") for p in stored.prior.parameters]
    assert Simulations.open(stored.path, prior=Prior(told)).prior == stored.prior
    wider = [Parameter(p.name, Normal(0, 9)) for p in stored.prior.parameters]
    with pytest.raises(PriorError, match="has a prior of its own, and another is given"):
        Simulations.open(stored.path, prior=Prior(wider))


def test_an_observable_without_numbers_is_refused():
    with pytest.raises(DataError, match=r"observable 'x' has shape \(0,\): there is no number in it"):
        Simulations.from_arrays(np.random.default_rng(0).normal(size=(60, 1)), np.zeros((60, 0))).require_rows()


@pytest.mark.parametrize("judge", [lambda data: data.require_rows(), lambda data: sbi_dgm.fit(data, progress=False)])
def test_fewer_than_fifty_valid_rows_are_too_few(judge):
    theta, x = draws(60)
    x["v"][:11] = np.nan
    with pytest.raises(DataError, match="49 of 60 rows are valid: at least 50"):
        judge(Simulations.from_arrays(theta, x, prior=PRIOR))
    x["v"][0] = 0
    Simulations.from_arrays(theta, x, prior=PRIOR).require_rows()


@pytest.mark.parametrize("judge", [lambda data: data.require_rows(), lambda data: sbi_dgm.fit(data, progress=False)])
def test_a_parameter_that_never_changes_is_refused_by_name(judge):
    theta, x = draws(100)
    theta[:, 1] = 0.25
    with pytest.raises(DataError, match="parameter 'b' is the same in all rows: leave it out"):
        judge(Simulations.from_arrays(theta, x, prior=PRIOR))


def test_a_parameter_that_never_changes_may_be_left_out():
    theta, x = draws(100)
    theta[:, 1] = 0.25
    Simulations.from_arrays(theta, x, prior=PRIOR).require_rows(["a"])


@pytest.mark.parametrize(
    ("value", "words"), [(np.nan, "theta row 83: a is nan"), (1.5, r"theta row 83: a = 1.5 is outside")]
)
def test_a_bad_theta_in_a_file_is_refused_with_its_row_in_the_file(stored, tmp_path, value, words):
    numbers = {name: column[:] for name, column in stored.columns.items()}
    numbers["theta"][83, 0] = value
    native.write(tmp_path / "b.h5", stored.header, len(stored), [numbers])
    with pytest.raises(SbiError, match=words):
        sbi_dgm.fit(Simulations.open(tmp_path / "b.h5"), progress=False)


def test_an_unknown_column_is_an_option_error():
    with pytest.raises(OptionError, match="did you mean 'group'"):
        Simulations.from_arrays(*draws(60), groups=np.arange(60))


def test_saving_over_a_file_needs_a_word(tmp_path):
    theta = np.arange(12.0).reshape(6, 2)
    data = Simulations.from_arrays(theta, theta).save(tmp_path / "a.h5")
    with pytest.raises(FileError, match="exists already"):
        data.save(tmp_path / "a.h5")
    assert len(data.save(tmp_path / "a.h5", overwrite=True)) == 6


def test_columns_of_a_frame_go_by_name():
    prior = Prior([Parameter("a", Uniform(0, 1)), Parameter("b", Uniform(2, 3))])
    frame, x = pd.DataFrame({"b": [2.5, 2.6], "other": ["w", "v"], "a": [0.1, 0.2]}), np.zeros((2, 1))
    assert Simulations.from_arrays(frame, x, prior=prior).columns["theta"][:].tolist() == [[0.1, 2.5], [0.2, 2.6]]
    assert Simulations.from_arrays(frame[["b", "a"]], x).names == ["b", "a"]
    assert Simulations.from_arrays(pd.DataFrame(np.zeros((2, 2))), x).names == ["0", "1"]
    with pytest.raises(DataError, match="unknown column 'c'"):
        Simulations.from_arrays(frame, x, names=["c"])
