"""Files that others wrote: one command trains on each as on the native file of the same rows, and changes nothing."""

import contextlib
import gc
import json
import multiprocessing
import pickle
import shlex
import shutil
import tracemalloc
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import h5py
import layouts
import numpy as np
import pytest
from safetensors.torch import load_file

import sbi_dgm
from sbi_dgm import Parameter, Prior, PriorTransform, Samples, Simulations, SplitRule, Uniform, load
from sbi_dgm.cli import main
from sbi_dgm.data import columns
from sbi_dgm.data.columns import gather
from sbi_dgm.errors import DataError, ExternalError, FileError, OptionError, PriorError, SbiError

TINY = ["training.max_rounds=2", "training.round=5", "estimator.transforms=1", "estimator.hidden=8"]
SMALL = [word for setting in TINY for word in ("--set", setting)] + ["--device", "cpu"]


def command(*words):
    """Run the command line in this process; its exit code."""
    try:
        return main([str(word) for word in words])
    except SystemExit as end:
        return end.code


def everything(folder):
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.iterdir()) if p.is_file()}


def unequal(data, other):
    """Names of the columns that are not equal to the bit."""
    return {
        name
        for name in {*data.columns, *other.columns}
        if name not in data.columns
        or name not in other.columns
        or data.columns[name][:].dtype != other.columns[name][:].dtype
        or data.columns[name][:].tobytes() != other.columns[name][:].tobytes()
    }


@pytest.mark.parametrize("writer", layouts.ALL, ids=lambda writer: writer.__name__)
def test_one_command_trains_on_a_layout_as_on_the_native_file_of_its_rows(tmp_path, capsys, writer):
    made = writer(tmp_path)
    before = everything(tmp_path)
    assert command("train", made.path, "-o", tmp_path / "a", *made.words, *SMALL) == 0, capsys.readouterr().err
    assert "no checksums of ours" in capsys.readouterr().err
    assert everything(tmp_path) == before
    native = made.native(tmp_path / "native.h5")
    weights = {"--rate"} & set(made.words)
    assert command("train", native.path, "-o", tmp_path / "b", *weights, *SMALL) == 0
    a, b = (load_file(tmp_path / name / "posterior.safetensors") for name in "ab")
    assert a.keys() == b.keys()
    assert [name for name in a if a[name].numpy().tobytes() != b[name].numpy().tobytes()] == []
    one, two = (load(tmp_path / name / "posterior.safetensors") for name in "ab")
    rows = np.flatnonzero(native.valid)[:2]
    x = native.x(rows)
    assert one.sample(20, x, seed=1).array.tobytes() == two.sample(20, x, seed=1).array.tobytes()
    assert one.names == two.names == made.names
    assert (one.prior, one.record["rows"]) == (two.prior, two.record["rows"])
    assert one.record["data"]["fingerprint"] == native.fingerprint()


@pytest.mark.parametrize("writer", layouts.ALL, ids=lambda writer: writer.__name__)
def test_rows_names_and_observables_are_the_native_ones_and_save_keeps_them(tmp_path, writer):
    made = writer(tmp_path)
    data, native = made.open(), made.native(tmp_path / "native.h5")
    assert unequal(data, native) == set()
    assert (data.names, dict(data.observables), data.prior) == (native.names, dict(native.observables), native.prior)
    assert data.fingerprint() == native.fingerprint()
    saved = data.save(tmp_path / "saved.h5")
    assert unequal(Simulations.open(saved.path), native) == set()
    other = made.theta.copy()
    other[-1, 0] = np.nextafter(other[-1, 0], 0.3)
    made.theta = other
    assert unequal(data, made.native(tmp_path / "twin.h5")) == {"theta"}


def test_weights_of_the_posterior_tell_rows_apart(tmp_path):
    made = layouts.plain(tmp_path)
    command("train", made.path, "-o", tmp_path / "a", *made.words, *SMALL)
    made.theta = made.theta[::-1].copy()
    twin = made.native(tmp_path / "native.h5")
    command("train", twin.path, "-o", tmp_path / "b", *SMALL)
    a, b = (load_file(tmp_path / name / "posterior.safetensors") for name in "ab")
    assert any(not np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_maps_of_a_universe_lie_in_one_part_of_the_split(tmp_path, seed):
    data = layouts.camels(tmp_path).open()
    parts = data.split(SplitRule(validation=0.2, test=0.2, seed=seed))
    universe = {name: set(rows // layouts.MAPS) for name, rows in vars(parts).items()}
    assert sum(map(len, vars(parts).values())) == len(data)
    assert len(set.union(*universe.values())) == sum(map(len, universe.values()))
    data.columns.pop("group")
    leaking = {name: set(rows // layouts.MAPS) for name, rows in vars(data.split(SplitRule(seed=seed))).items()}
    assert len(set.union(*leaking.values())) < sum(map(len, leaking.values()))


def with_prior_file(folder, made):
    (folder / "prior.toml").write_text(layouts.TOML)
    return [*made.words, "--config", str(folder / "prior.toml")]


@pytest.mark.parametrize("reverse", [False, True])
def test_calibrate_and_sample_know_layout_and_prior_from_training(tmp_path, capsys, reverse):
    made = layouts.group_of_columns(tmp_path)
    table = dict(reversed(layouts.TABLE.items()) if reverse else layouts.TABLE.items())
    (tmp_path / "p.toml").write_text(
        "[prior]\n" + "".join(f"{n} = {{uniform = {e['uniform']}}}\n" for n, e in table.items())
    )
    split = ["--set", "split.test=0.4"]
    words = [*made.words, "--config", tmp_path / "p.toml", *split]
    assert command("train", made.path, "-o", tmp_path / "run", *words, *SMALL) == 0
    model = tmp_path / "run" / "posterior.safetensors"
    assert load(model).names == list(table)
    assert command("calibrate", model, made.path, "-o", tmp_path / "report", "--draws", 20) in (0, 1)
    assert json.loads((tmp_path / "report" / "report.json").read_text())["rows"] == 60
    assert command("sample", model, made.path, "--row", 4, "-n", 30, "-o", tmp_path / "s.h5", "--seed", 2) == 0
    expected = load(model).sample(30, made.x["spectrum"][4], seed=2).array
    np.testing.assert_array_equal(Samples.load(tmp_path / "s.h5").array, expected)
    assert capsys.readouterr().err.count("Traceback") == 0


def test_calibrate_uses_what_is_said_over_what_was_said(tmp_path):
    made = layouts.plain(tmp_path)
    command("train", made.path, "-o", tmp_path / "run", *made.words, *SMALL)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["p"], file["q"] = made.theta, made.x["x"]
    words = ["--theta", "p", "--x", "x=q", "--draws", 20]
    model = tmp_path / "run" / "posterior.safetensors"
    assert command("calibrate", model, tmp_path / "other.h5", "-o", tmp_path / "a", *words) == 2  # 8 held-out rows
    with h5py.File(tmp_path / "other.h5", "r+") as file:
        file["p"][0] += 0.001
    assert command("calibrate", model, tmp_path / "other.h5", "-o", tmp_path / "a", *words) in (0, 1)
    assert json.loads((tmp_path / "a" / "report.json").read_text())["rows"] == 150


def test_an_observed_file_needs_no_parameters(tmp_path):
    made = layouts.camels(tmp_path)
    command("train", made.path, "-o", tmp_path / "run", *made.words, *SMALL)
    (tmp_path / "sky").mkdir()
    with h5py.File(tmp_path / "sky" / "observed.h5", "w") as file:
        file["maps"] = made.x["maps"][:3]
    model = tmp_path / "run" / "posterior.safetensors"
    words = ["--row", 2, "-n", 20, "-o", tmp_path / "s.h5", "--seed", 0]
    assert command("sample", model, tmp_path / "sky" / "observed.h5", *words) == 0
    expected = load(model).sample(20, made.x["maps"][2], seed=0).array
    np.testing.assert_array_equal(Samples.load(tmp_path / "s.h5").array, expected)


# --- priors


@pytest.mark.parametrize("how", ["table", "prior", "file", "theta", "described", "none"])
def test_the_prior_comes_from_a_table_a_prior_the_file_or_nowhere(tmp_path, how):
    made = layouts.group_of_columns(tmp_path)
    with h5py.File(made.path, "r+") as file:
        if how == "file":
            file.attrs["prior"] = layouts.TOML_AS_JSON
        if how == "theta":
            file["params"].attrs["prior"] = layouts.TOML_AS_JSON.encode()
        if how == "described":
            file.attrs["prior"] = json.dumps(layouts.PRIOR.describe())
    given = {"table": {"prior": layouts.TABLE}, "prior": {"prior": layouts.PRIOR}}.get(how, {})
    data = Simulations.open(made.path, **made.places, **given)
    assert data.prior == (None if how == "none" else layouts.PRIOR)
    assert data.parameters[0].label == ("" if how == "none" else r"\Omega_m")
    np.testing.assert_array_equal(data.theta, made.theta)


def test_the_prior_that_is_given_rules_over_the_files_own(tmp_path):
    made = layouts.failed_rows(tmp_path)
    wider = Prior([Parameter("omega_m", Uniform(0, 1)), Parameter("sigma_8", Uniform(0, 2))])
    with pytest.warns(UserWarning, match="theta is not drawn from its prior, by omega_m; sigma_8"):
        assert Simulations.open(made.path, **made.places, prior=wider).prior == wider


@pytest.mark.parametrize("writer", [layouts.group_of_columns, layouts.camels, layouts.dingo, layouts.madminer])
def test_columns_follow_the_priors_order_where_the_file_names_them(tmp_path, writer):
    made = writer(tmp_path)
    turned = Prior(list(reversed(layouts.PRIOR.parameters)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = Simulations.open(made.path, **made.places, prior=turned)
    assert data.names == ["sigma_8", "omega_m"]
    np.testing.assert_array_equal(data.theta, made.theta[:, ::-1])


def test_columns_without_names_are_the_priors_in_its_order(tmp_path):
    made = layouts.plain(tmp_path)
    data = Simulations.open(made.path, **made.places, prior=layouts.PRIOR)
    assert data.names == layouts.NAMES
    np.testing.assert_array_equal(data.theta, made.theta)


@pytest.mark.parametrize("names", [["omega_m", "s8"], ["omega_m"], ["omega_m", "sigma_8", "h"]])
def test_a_prior_of_other_parameters_is_refused_with_both_lists(tmp_path, names):
    made = layouts.group_of_columns(tmp_path)
    prior = Prior([Parameter(name, Uniform(0, 1)) for name in names])
    with pytest.raises(PriorError, match=r"the prior is of \['omega_m'.*but theta has \['omega_m', 'sigma_8'\]"):
        Simulations.open(made.path, **made.places, prior=prior)


@pytest.mark.parametrize("row", [0, 149])
def test_theta_outside_its_prior_is_refused_with_row_name_value_and_bounds(tmp_path, row):
    made = layouts.group_of_columns(tmp_path)
    with h5py.File(made.path, "r+") as file:
        file["params/sigma_8"][row] = 1.25
    with pytest.raises(PriorError, match=rf"theta row {row}: sigma_8 = 1\.25 is outside its prior \[0\.6, 1\]"):
        Simulations.open(made.path, **made.places, prior=layouts.PRIOR)


@pytest.mark.parametrize("prior", [None, layouts.PRIOR])
@pytest.mark.parametrize(("value", "row"), [(np.nan, 3), (np.inf, 149)])
def test_theta_that_is_not_finite_is_refused_with_its_row(tmp_path, prior, value, row):
    made = layouts.group_of_columns(tmp_path)
    with h5py.File(made.path, "r+") as file:
        file["params/omega_m"][row] = value
    with pytest.raises(DataError, match=rf"theta row {row}: omega_m is {value}"):
        Simulations.open(made.path, **made.places, prior=prior)


@pytest.mark.parametrize(("value", "words"), [(np.nan, "theta_1 is nan"), (7.5, r"theta_1 = 7\.5 is outside")])
def test_the_row_is_absolute_beyond_the_first_block(tmp_path, value, words):
    rows = 1_300_000
    theta = np.random.default_rng(0).random((rows, 2)).astype(np.float32)
    theta[1_234_567, 1] = value
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["theta"], file["x"] = theta, theta[:, 0]
    prior = Prior([Parameter(f"theta_{i}", Uniform(0, 1)) for i in range(2)])
    with pytest.raises(SbiError, match=rf"theta row 1234567: {words}"):
        Simulations.open(tmp_path / "a.h5", theta="theta", x="x", prior=prior)


def test_a_prior_that_is_a_function_is_asked_for_and_not_guessed(tmp_path):
    made = layouts.plain(tmp_path)
    cube = PriorTransform(layouts.NAMES, lambda u: layouts.LOW + 0.4 * u, lambda theta: (theta - layouts.LOW) / 0.4)
    with h5py.File(made.path, "r+") as file:
        file.attrs["prior"] = json.dumps(cube.describe())
    with pytest.raises(ExternalError, match=r"pass it as prior=\.\.\."):
        Simulations.open(made.path, **made.places)
    assert Simulations.open(made.path, **made.places, prior=cube).prior is cube


@pytest.mark.parametrize("text", ["flat", "[1, 2]", "3", ""])
def test_a_word_about_the_prior_that_is_no_table_is_no_prior(tmp_path, text):
    made = layouts.plain(tmp_path)
    with h5py.File(made.path, "r+") as file:
        file.attrs["prior"] = text
    assert made.open().prior is None


def test_theta_that_is_not_of_its_prior_is_noted_stored_and_kept_from_what_rests_on_it(tmp_path, capsys):
    rng = np.random.default_rng(0)
    theta = layouts.LOW + 0.4 * rng.random((4000, 2)) ** [1, 1.3]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["theta"], file["x"], file["w"] = theta, layouts.vectors(theta), np.ones(4000)
    (tmp_path / "p.toml").write_text(layouts.TOML)
    words = ["--theta", "theta", "--x", "x", "--config", tmp_path / "p.toml", *SMALL]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert command("train", tmp_path / "a.h5", "-o", tmp_path / "a", *words) == 0
    assert "theta is not drawn from its prior, by sigma_8" in capsys.readouterr().err
    accused = load(tmp_path / "a" / "posterior.safetensors")
    assert accused.record["agreement"]["differs"] == ["sigma_8"]
    with pytest.raises(PriorError, match="evidence needs theta drawn from its prior, and by sigma_8 it was not"):
        accused.require_prior("evidence")
    assert command("train", tmp_path / "a.h5", "-o", tmp_path / "b", *words, "--proposal-weight", "w") == 0
    assert "not drawn" not in capsys.readouterr().err
    assert load(tmp_path / "b" / "posterior.safetensors").require_prior("evidence") == layouts.PRIOR
    command("train", tmp_path / "a.h5", "-o", tmp_path / "c", *words[:4], *SMALL)
    with pytest.raises(PriorError, match="evidence needs the prior, and training had none"):
        load(tmp_path / "c" / "posterior.safetensors").require_prior("evidence")


# --- failed rows, groups, weights


def test_rows_without_numbers_count_as_failed_and_do_not_train(tmp_path):
    made = layouts.failed_rows(tmp_path)
    data = made.open()
    assert np.flatnonzero(~data.valid).tolist() == [7, 40]
    used = np.concatenate(list(vars(data.split(SplitRule())).values()))
    assert sorted(used.tolist()) == [i for i in range(layouts.ROWS) if i not in (7, 40)]
    whole = Path(shutil.copy(made.path, tmp_path / "whole.h5"))
    with h5py.File(whole, "r+") as file:
        file["data"][7], file["data"][40] = 0, 1e30
    assert Simulations.open(whole, **made.places).valid.all()


@pytest.mark.parametrize("place", ["inside", "beside"])
def test_what_is_given_once_a_universe_counts_for_all_its_maps(tmp_path, place):
    theta = layouts.universes(6)
    x, weight = np.arange(24.0), np.linspace(1, 2, 6)
    for i, rows in enumerate((slice(0, 2), slice(2, 6))):
        with h5py.File(tmp_path / f"a{i}.h5", "w") as file:
            file["theta"], file["x"] = theta[rows], x[4 * rows.start : 4 * rows.stop]
            file["w"], file["box"] = weight[rows], np.array(["b", "a", "a", "c", "b", "d"][rows], "S1")
    np.savetxt(tmp_path / "t.txt", theta)
    given = str(tmp_path / "t.txt") if place == "beside" else "theta"
    data = Simulations.open(tmp_path / "a*.h5", theta=given, x="x", weight={"proposal": "w"}, group="box")
    np.testing.assert_array_equal(data.theta, np.repeat(theta, 4, axis=0))
    np.testing.assert_array_equal(data.column("proposal_weight"), np.repeat(weight, 4))
    np.testing.assert_array_equal(data.column("group"), np.repeat([1, 0, 0, 2, 1, 3], 4))


def test_labels_mean_the_same_in_all_files(tmp_path):
    labels = [["b", "c", "b"], ["a", "b", "zz"]]
    for i, words in enumerate(labels):
        with h5py.File(tmp_path / f"a{i}.h5", "w") as file:
            file["theta"], file["x"], file["g"] = layouts.universes(3, i), np.arange(3.0), np.array(words, object)
    data = Simulations.open(tmp_path / "a*.h5", theta="theta", x="x", group="g")
    assert data.column("group").tolist() == [1, 2, 1, 0, 1, 3]


def test_a_field_of_a_table_can_be_weight_and_group(tmp_path):
    table = np.zeros(60, [("a", "f8"), ("w", "f4"), ("g", "i2"), ("v", "f4", (3,))])
    table["a"], table["w"], table["g"] = np.arange(60), 2, np.arange(60) // 3
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["t"] = table
    data = Simulations.open(tmp_path / "a.h5", theta="t/a", x="t/v", weight={"event": "t/w"}, group="t/g")
    assert (data.column("event_weight") == 2).all()
    assert data.column("group").tolist() == table["g"].tolist()
    assert data.observables["v"].shape == (3,)


def test_numbered_files_stand_in_the_order_of_their_numbers(tmp_path):
    theta = layouts.universes(12)
    for i in range(12):
        with h5py.File(tmp_path / f"LH_{i}.h5", "w") as file:
            file["x"] = np.full((2, 3), float(i))
    np.savetxt(tmp_path / "params.txt", theta, fmt="%.17g")
    data = Simulations.open(tmp_path / "LH_*.h5", theta="params.txt", x="x")
    np.testing.assert_array_equal(data.columns["x/x"][:][:, 0], np.arange(24) // 2)
    np.testing.assert_array_equal(data.theta, np.repeat(theta, 2, axis=0))


# --- what the file stays, and what processes do with it


def test_the_file_stays_as_it_is_and_is_not_ours_to_grow(tmp_path):
    made = layouts.plain(tmp_path)
    made.path.chmod(0o444)
    before = everything(tmp_path)
    data = made.open()
    with pytest.raises(FileError, match=r"sims\.h5 is not ours to change: save\(\)"):
        data.append(made.theta, made.x)
    sbi_dgm.fit(data, training=sbi_dgm.Training(max_rounds=1, round=2), progress=False)
    assert everything(tmp_path) == before
    grown = data.save(tmp_path / "mine.h5").append(made.theta, made.x)
    assert len(grown) == 2 * layouts.ROWS


def _sums(data):
    return {name: float(np.asarray(column[:], float)[data.valid].sum()) for name, column in data.columns.items()}


@pytest.mark.parametrize("writer", [layouts.camels, layouts.ragged, layouts.split_files, layouts.dingo])
def test_columns_travel_to_forked_and_fresh_processes(tmp_path, writer):
    data = writer(tmp_path).open()
    total = _sums(data)
    assert len(pickle.dumps(data)) < 40_000
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        assert list(pool.map(_sums, [data] * 2)) == [total] * 2
    assert _sums(data) == total


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are listed in /proc")
def test_more_files_than_a_process_may_open_are_one_table(tmp_path, monkeypatch):
    theta = layouts.universes(120)
    for i in range(40):
        paired(tmp_path, f"a{i}.h5", theta=theta[3 * i : 3 * i + 3], x=np.arange(3 * i, 3 * i + 3))

    def held():
        links = [Path(link) for link in Path("/proc/self/fd").iterdir()]
        return sum(str(tmp_path) in str(link.readlink()) for link in links if link.is_symlink())

    monkeypatch.setattr(columns, "FILES", 4)
    data = Simulations.open(tmp_path / "a*.h5", theta="theta", x="x")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(gather, [data.columns["x/x"]] * 8, [np.arange(0, 120, 7)] * 8, [1] * 8))
    assert [rows.tolist() for rows in found] == [list(range(0, 120, 7))] * 8
    assert (data.theta == theta).all()
    assert 0 < held() <= 4
    monkeypatch.setattr(columns, "FILES", 256)
    assert (data.theta == theta).all()
    assert held() == 40
    del data
    gc.collect()
    assert held() == 0


def test_a_few_rows_of_a_large_file_cost_about_those_rows(tmp_path):
    rows, width = 30_000, 500
    with h5py.File(tmp_path / "big.h5", "w") as file:
        x = file.create_dataset("x", (rows, width), "f4", chunks=(250, width), compression="lzf")
        for first in range(0, rows, 5000):
            x[first : first + 5000] = np.repeat(np.arange(first, first + 5000, dtype="f4")[:, None], width, axis=1)
        file["theta"] = layouts.universes(rows)
    column = Simulations.open(tmp_path / "big.h5", theta="theta", x="x").columns["x/x"]
    chosen = np.arange(17, rows, 1501)
    tracemalloc.start()
    found = gather(column, chosen)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(found[:, 0], chosen)
    assert peak < found.nbytes + 2.5 * 2**23
    assert rows * width * 4 > 2 * peak


# --- layouts that cannot be


def paired(folder, name="a.h5", **datasets):
    theta = layouts.universes(60)
    content = {"theta": theta, "x": layouts.vectors(theta)} | datasets
    with h5py.File(folder / name, "w") as file:
        for place, values in content.items():
            if values is not None:
                file[place] = values
    return folder / name


def table_of(**fields):
    table = np.zeros(60, list(fields.items()))
    for name in fields:
        table[name] = np.arange(60).astype(table.dtype[name])
    return table


SETS = np.zeros((30, 2))
BAD = {
    "missing": ({}, {"x": "maps"}, r"unknown dataset 'maps'.*Known: theta, x"),
    "misspelt": ({}, {"theta": "thetta"}, "unknown dataset 'thetta': did you mean 'theta'"),
    "deep": ({"obs/kappa": SETS}, {"x": "obs/kapa"}, "unknown dataset 'obs/kapa': did you mean 'obs/kappa'"),
    "no_weight": ({}, {"weight": {"event": "ww"}}, "unknown dataset 'ww'"),
    "no_group": ({}, {"group": "thet"}, "unknown dataset 'thet': did you mean 'theta'"),
    "field": (
        {"t": table_of(omega_m="f8", h="f8")},
        {"theta": "t/omega"},
        "dataset 't': unknown field 'omega': did you mean 'omega_m'.*Known: h, omega_m",
    ),
    "text_x": ({"x": np.full(60, "a", "S3")}, {}, r"'x' holds \|S3 \(60,\): rows of real numbers"),
    "text_field": ({"t": table_of(a="S4")}, {"x": "t/a"}, r"'t/a' holds \|S4 \(60,\): rows of real numbers"),
    "text_theta": ({"theta": np.full((60, 2), "a", "S3")}, {}, "'theta' holds .S3"),
    "objects": ({"x": np.array(["a"] * 60, object)}, {}, "'x' holds object"),
    "scalar": ({"x": 3.0}, {}, r"'x' holds float64 \(\): rows of real numbers"),
    "null": ({"x": h5py.Empty("f4")}, {}, r"'x' holds float32 \(\)"),
    "theta_3d": ({"theta": np.zeros((60, 2, 2))}, {}, r"'theta' has shape \(60, 2, 2\): theta needs rows of numbers"),
    "complex_theta": ({"theta": np.zeros((60, 2), complex)}, {}, "'theta' holds complex128"),
    "not_a_multiple": ({"x": np.zeros(130)}, {}, "theta has 60 rows and x 130: give one of theta for each of x"),
    "fewer": ({"x": np.zeros(30)}, {}, "theta has 60 rows and x 30"),
    "empty_theta": ({"theta": np.zeros((0, 2))}, {}, "theta has 0 rows and x 60"),
    "empty": ({"theta": np.zeros((0, 2)), "x": np.zeros((0, 3))}, {}, "theta has 0 rows and x 0"),
    "pair_x": ({"y": np.zeros(120)}, {"x": "x,y"}, "'x' has 60 rows and 'y' 120: observables of one simulation"),
    "pair_theta": ({"a": np.zeros(60), "b": np.zeros(120)}, {"theta": "a,b"}, "'a' has 60 rows and 'b' 120: columns"),
    "pair_group": (
        {"g/a": np.zeros(60), "g/b": np.zeros(61)},
        {"theta": "g"},
        "'g/a' has 60 rows and 'g/b' 61: columns of one table",
    ),
    "pair_x_group": ({"g/a": np.zeros(60), "g/b": np.zeros(61)}, {"x": "g"}, "'g/a' has 60 rows and 'g/b' 61"),
    "no_columns": ({"g/a": np.zeros((60, 2))}, {"theta": "g"}, "group 'g' holds no 1-D columns"),
    "same_names": (
        {"g/a": np.arange(60.0), "h/a": np.arange(60.0)},
        {"theta": "g/a,h/a"},
        r"theta has columns \['a', 'a'\]: each name may stand only once",
    ),
    "same_observables": (
        {"h/c/u": table_of(u="f8", v="S2"), "h/d/u": table_of(u="f8", v="S2")},
        {"x": "h/c/u/u,h/d/u/u"},
        "two places end alike",
    ),
    "twice_named": (
        {"g/p/u": np.zeros((60, 2)), "h/p/u": np.zeros((60, 2))},
        {"x": {"a": "g", "b": "h"}},
        "two observables are called",
    ),
    "ends_alike": ({"g/a": SETS}, {"x": "g/a,h/a"}, "two places end alike; name them, such as a=first/x"),
    "backwards": (
        {"s/values": SETS, "s/offsets": np.r_[0, np.full(59, 9), 8, 30]},
        {"x": "s"},
        r"s/offsets row 59 ends at 8: they must ascend from 0 to 30",
    ),
    "beyond": ({"s/values": SETS, "s/offsets": np.r_[np.arange(60), 31]}, {"x": "s"}, "s/offsets row .* ends at"),
    "late": ({"s/values": SETS, "s/offsets": np.r_[np.arange(1, 31)]}, {"x": "s"}, "s/offsets must be integers"),
    "floats": ({"s/values": SETS, "s/offsets": np.linspace(0, 30, 61)}, {"x": "s"}, "s/offsets must be integers"),
    "no_members": ({"s/values": SETS[:0], "s/offsets": np.zeros(61, int)}, {"x": "s"}, "s/values is empty"),
    "too_many_sets": ({"s/values": SETS, "s/offsets": np.r_[np.zeros(60, int), 5]}, {"x": "s"}, "theta has 60 .* x 61"),
    "negative": (
        {"w": np.r_[np.ones(41), -1, np.ones(18)]},
        {"weight": {"proposal": "w"}},
        "proposal_weight row 41 is -1",
    ),
    "nan_weight": (
        {"w": np.r_[np.ones(41), np.nan, np.ones(18)]},
        {"weight": {"event": "w"}},
        "event_weight row 41 is nan",
    ),
    "two_weights": (
        {"w": np.ones((60, 2))},
        {"weight": {"event": "w"}},
        "'w' has 2 numbers a row: event_weight needs one",
    ),
    "short_weight": (
        {"w": np.ones(59)},
        {"weight": {"event": "w"}},
        "event_weight has 59 rows and x 60: they must pair",
    ),
    "short_group": ({"g": np.arange(61)}, {"group": "g"}, "group has 61 rows and x 60"),
    "wide_group": (
        {"g": np.zeros((60, 2), int)},
        {"group": "g"},
        r"group 'g' has int64 \(60, 2\): give one label a row",
    ),
    "float_group": ({"g": np.zeros(60)}, {"group": "g"}, "group 'g' has float64"),
    "group_group": ({"g/a": np.zeros(60)}, {"group": "g"}, "'g' is a group: name one of its datasets"),
    "soft": ({"x": h5py.SoftLink("/gone")}, {}, "'x' is a link to /gone, which is not there"),
    "external": ({"x": h5py.ExternalLink("gone.h5", "/y")}, {}, "'x' is a link to gone.h5 /y, which is not there"),
    "soft_in_group": (
        {"g/a": np.zeros(60), "g/b": h5py.SoftLink("/gone")},
        {"theta": "g"},
        "'g/b' is a link to /gone, which is not there",
    ),
    "soft_in_x": ({"g/a": np.zeros(60), "g/b": h5py.SoftLink("/gone")}, {"x": "g"}, "'g/b' is a link to /gone"),
    "soft_weight": ({"w": h5py.SoftLink("/gone")}, {"weight": {"event": "w"}}, "'w' is a link to /gone"),
    "theta_alone": ({}, {"x": None}, r"the layout of a foreign file needs x='x' too \(--x\)"),
    "x_alone": ({}, {"theta": None}, r"the layout of a foreign file needs theta='theta' too"),
    "no_place": ({}, {"theta": ","}, "theta names no place in the file"),
    "no_table": ({}, {"theta": "params.txt"}, r"there is no file 'params\.txt'"),
    "table_and_more": ({}, {"theta": "params.txt,theta"}, "give one table beside the file, columns of it"),
}


@pytest.mark.parametrize("door", ["library", "command"])
@pytest.mark.parametrize("name", BAD)
def test_a_layout_that_cannot_be_is_refused_in_one_sentence(tmp_path, capsys, name, door):
    datasets, places, words = BAD[name]
    path = paired(tmp_path, **datasets)
    places = {k: v for k, v in ({"theta": "theta", "x": "x"} | places).items() if v is not None}
    before = everything(tmp_path)
    if door == "library":
        with pytest.raises(SbiError, match=words) as caught:
            Simulations.open(path, **places)
        assert "\n" not in str(caught.value)
    else:
        if isinstance(places.get("x"), dict):
            places["x"] = ",".join(f"{k}={v}" for k, v in places["x"].items())
        made = layouts.Written(path, places, None, [], {})
        refused(capsys, words, "train", path, "-o", tmp_path / "run", *made.words)
    assert everything(tmp_path) == before
    assert not (tmp_path / "run").exists()


def refused(capsys, words, *line):
    capsys.readouterr()
    assert command(*line) == 2
    told = [text for text in capsys.readouterr().err.splitlines() if text.strip() and ": note: " not in text]
    assert len(told) == 1
    assert told[0].startswith("sbi-dgm: ")
    with pytest.raises(RuntimeError, match=words):
        raise RuntimeError(told[0])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"weight": "w"}, r"weight = 'w': say which kind, \{'event': place\}.*\{'proposal': place\}"),
        ({"weight": {"mc": "w"}}, "say which kind"),
        ({"weight": {"event": 3}}, "weight.event=3"),
        ({"theta": 5}, "5 is no place in a file"),
        ({"theta": [1, 2]}, "is no place in a file"),
        ({"x": 5}, "5 is no place in a file"),
        ({"x": {"a": 5}}, "x.a=5"),
        ({"x": {}}, "x names no place"),
        ({"theta": []}, "theta names no place"),
        ({"group": 5}, "group=5"),
        ({"prior": {"omega_m": 3}}, "prior of 'omega_m': 3 is no table"),
        ({"prior": {"omega_m": {"unifrom": [0, 1]}}}, "prior of 'omega_m'.*did you mean 'uniform'"),
        ({"prior": {"omega_m": {"uniform": [1, 0]}}}, "prior of 'omega_m'"),
    ],
)
def test_a_layout_in_the_wrong_words_is_refused(tmp_path, capsys, given, words):
    path = paired(tmp_path)
    with pytest.raises(SbiError, match=words) as caught:
        Simulations.open(path, **({"theta": "theta", "x": "x"} | given))
    assert "\n" not in str(caught.value)
    tables = {"data": {"theta": "theta", "x": "x"} | {k: v for k, v in given.items() if k != "prior"}}
    tables["prior"] = given.get("prior", {})
    settings = [
        w for t, table in tables.items() for k, v in table.items() for w in ("--set", f"{t}.{k}={json.dumps(v)}")
    ]
    refused(capsys, words, "train", path, "-o", tmp_path / "run", *settings)


def test_unknown_keys_of_the_data_table_are_refused(tmp_path, capsys):
    path = paired(tmp_path)
    refused(capsys, r"unknown key of \[data\] 'thetas': did you mean 'theta'", "train", path, "-o", tmp_path / "run",
            "--set", "data.thetas=theta", "--x", "x")  # fmt: skip


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"x": np.zeros((60, 4))}, r"a1\.h5: observable 'x' is array \(4,\).*a0\.h5 array \(3,\)"),
        ({"theta": np.zeros((60, 3))}, r"a1\.h5 has theta \[\] \(60, 3\), but .*a0\.h5 has \[\] \(60, 2\)"),
        ({"theta": np.zeros((30, 2))}, r"a1\.h5 has 60 of x for 30 of theta, but .*a0\.h5 60 for 60"),
        ({"theta": np.zeros((20, 2)), "x": np.zeros((60, 3))}, "each theta needs equally many in all files"),
        ({"theta": np.zeros((61, 2))}, r"a1\.h5: theta has 61 rows and x 60"),
        ({"w": np.ones(59)}, r"a1\.h5: event_weight has 59 rows and x 60"),
        ({"w": np.r_[np.ones(58), np.nan, 1]}, "event_weight row 118 is nan"),
        ({"x": None}, r"a1\.h5: unknown dataset 'x'"),
        ({"theta": None}, r"a1\.h5: unknown dataset 'theta'"),
    ],
)
def test_files_of_one_glob_must_agree(tmp_path, capsys, second, words):
    ones = {"w": np.ones(60)}
    paired(tmp_path, "a0.h5", **ones), paired(tmp_path, "a1.h5", **(ones | second))
    places = {"theta": "theta", "x": "x", "weight": {"event": "w"}}
    with pytest.raises(SbiError, match=words):
        Simulations.open(tmp_path / "a*.h5", **places)
    line = layouts.Written(tmp_path / "a*.h5", places, None, [], {}).words
    refused(capsys, words, "train", tmp_path / "a*.h5", "-o", tmp_path / "run", *line)


def test_maps_of_files_with_unequal_numbers_a_universe_are_not_paired_wrongly(tmp_path):
    for i, times in enumerate((2, 6)):
        with h5py.File(tmp_path / f"a{i}.h5", "w") as file:
            file["theta"], file["x"] = layouts.universes(2, i), np.arange(2 * times)
    with pytest.raises(DataError, match=r"a1\.h5 has 12 of x for 2 of theta, but .*a0\.h5 4 for 2"):
        Simulations.open(tmp_path / "a*.h5", theta="theta", x="x")


def test_observables_whose_lengths_agree_only_in_sum_are_refused(tmp_path):
    for i, (one, two) in enumerate(((20, 40), (40, 20))):
        paired(tmp_path, f"a{i}.h5", theta=None, x=np.zeros(one), y=np.zeros(two))
    np.savetxt(tmp_path / "t.txt", np.random.default_rng(0).random((60, 2)))
    with pytest.raises(DataError, match=r"a0\.h5: 'x' has 20 rows and 'y' 40"):
        Simulations.open(tmp_path / "a*.h5", theta="t.txt", x="x,y")


def test_fields_in_another_order_are_not_joined_by_place(tmp_path):
    paired(tmp_path, "a0.h5", x=table_of(u="f8", v="f8"))
    paired(tmp_path, "a1.h5", x=table_of(v="f8", u="f8"))
    with pytest.raises(DataError, match=r"a1\.h5: observable 'x' is array \(2,\) \['v', 'u'\].*\['u', 'v'\]"):
        Simulations.open(tmp_path / "a*.h5", theta="theta", x="x")
    paired(tmp_path, "a0.h5", theta=table_of(u="f8", v="f8"))
    paired(tmp_path, "a1.h5", theta=table_of(v="f8", u="f8"))
    with pytest.raises(DataError, match=r"a1\.h5 has theta \['v', 'u'\]"):
        Simulations.open(tmp_path / "a*.h5", theta="theta", x="x")


@pytest.mark.parametrize("content", [b"", b"omega_m, w0\n0.3, -1\n", bytes(range(256)) * 8, "cut"])
@pytest.mark.parametrize("verb", ["train", "inspect", "calibrate"])
def test_what_is_no_hdf5_is_refused_in_one_sentence(tmp_path, capsys, content, verb):
    made = layouts.plain(tmp_path)
    path = tmp_path / "broken.h5"
    path.write_bytes(made.path.read_bytes()[:3000] if content == "cut" else content)
    with pytest.raises(FileError, match=r"broken\.h5 is no readable HDF5 file"):
        Simulations.open(path, **made.places)
    out = [] if verb == "inspect" else ["-o", tmp_path / "run"]
    model = [] if verb != "calibrate" else [model_of(tmp_path, made)]
    refused(capsys, r"broken\.h5 is no readable HDF5 file", verb, *model, path, *out, *made.words)


def model_of(folder, made):
    command("train", made.path, "-o", folder / "model", *made.words, *SMALL)
    return folder / "model" / "posterior.safetensors"


def test_no_file_no_match_and_a_folder_are_named(tmp_path, capsys):
    made = layouts.plain(tmp_path)
    for name, words in (("gone.h5", "there is no file .*gone"), ("g*.h5", r"no file matches .*g\*"), ("", "no file")):
        with pytest.raises(FileError, match=words):
            Simulations.open(tmp_path / name, **made.places)
        refused(capsys, words, "train", tmp_path / name, "-o", tmp_path / "run", *made.words)


def test_a_foreign_file_without_a_layout_is_asked_for_one(tmp_path, capsys):
    made = layouts.plain(tmp_path)
    words = "say where theta and x are .*--theta, --x.*inspect"
    with pytest.raises(FileError, match=words):
        Simulations.open(made.path)
    refused(capsys, words, "train", made.path, "-o", tmp_path / "run")


def test_links_that_lead_somewhere_are_followed(tmp_path):
    made = layouts.plain(tmp_path)
    with h5py.File(tmp_path / "master.h5", "w") as file:
        file["p"] = h5py.ExternalLink("sims.h5", "/theta")
        file["all"] = h5py.ExternalLink("sims.h5", "/")
        file["y"] = h5py.SoftLink("/all/x")
    data = Simulations.open(tmp_path / "master.h5", theta="p", x="x=y")
    np.testing.assert_array_equal(data.theta, made.theta)
    np.testing.assert_array_equal(data.x(np.arange(len(data)))["x"], made.x["x"])


def test_a_table_beside_is_found_from_anywhere_and_remembered(tmp_path, monkeypatch):
    made = layouts.camels(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.testing.assert_array_equal(made.open().theta, made.theta)
    monkeypatch.chdir(tmp_path)
    shutil.move("params.txt", "elsewhere/params.txt")
    np.testing.assert_array_equal(Simulations.open("maps.h5", theta="elsewhere/params.txt", x="maps").theta, made.theta)


def test_the_documented_words_are_understood(tmp_path):
    made = layouts.several(tmp_path)
    line = shlex.split("--theta labels --x obs --group run")
    with contextlib.chdir(tmp_path):
        assert command("train", "several.h5", "-o", "run", *line, *SMALL) == 0
    assert set(load(tmp_path / "run" / "posterior.safetensors").model.observables) == {
        "image",
        "count",
        "number",
        "flag",
    }
    assert made.path.exists()
    assert Path(tmp_path / "run" / "history.csv").exists()


def test_an_unusable_option_is_an_option_error(tmp_path):
    with pytest.raises(OptionError):
        Simulations.open(paired(tmp_path), theta="theta", x="x", weight="w")


def test_columns_of_a_table_beside_are_chosen_by_name_and_in_order(tmp_path):
    made = layouts.camels(tmp_path)
    whole = Simulations.open(made.path, theta="params.txt", x="maps")
    for names in (["sigma_8"], ["sigma_8", "omega_m"]):
        some = Simulations.open(made.path, theta=[f"params.txt/{name}" for name in names], x="maps")
        assert some.names == names
        np.testing.assert_array_equal(some.theta, whole.theta[:, [whole.names.index(name) for name in names]])
    with pytest.raises(DataError, match=r"params\.txt: unknown column 'omega': did you mean 'omega_m'\?"):
        Simulations.open(made.path, theta="params.txt/omega", x="maps")
    with pytest.raises(OptionError, match="give one table beside the file, columns of it"):
        Simulations.open(made.path, theta="params.txt,params.txt/omega_m", x="maps")
