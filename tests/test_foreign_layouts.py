"""Files that others wrote: one command trains on each as on the native file of the same rows, and changes nothing."""

import contextlib
import json
import shlex
import shutil
from pathlib import Path

import h5py
import layouts
import numpy as np
import pytest
from command_toys import SMALL, command, everything
from safetensors.torch import load_file

from sbi_dgm import Samples, Simulations, SplitRule, load
from sbi_dgm.errors import DataError, OptionError


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


def test_a_prior_that_is_not_known_is_told_when_training_begins(tmp_path, capsys):
    made = layouts.plain(tmp_path)
    command("train", made.path, "-o", tmp_path / "a", *made.words, *SMALL)
    assert "the prior is not known: draws may leave the range of theta" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    told = layouts.camels_with_prior(tmp_path / "other")
    assert command("train", told.path, "-o", tmp_path / "b", *told.words, *SMALL) == 0
    assert "the prior is not known" not in capsys.readouterr().err


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


def test_theta_may_be_a_vector_of_a_compound_table(tmp_path):
    rng, table = np.random.default_rng(0), np.zeros(60, [("theta", "f8", (2,)), ("flux", "f4", (4,))])
    table["theta"], table["flux"] = rng.normal(size=(60, 2)), rng.normal(size=(60, 4))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["sims"] = table
    data = Simulations.open(tmp_path / "a.h5", theta="sims/theta", x="sims/flux")
    np.testing.assert_array_equal(data.theta, table["theta"])
    np.testing.assert_array_equal(data.x(np.arange(60))["flux"], table["flux"])


@pytest.mark.parametrize("key", ["names", "param_names", "theta_names", "parameters"])
@pytest.mark.parametrize("owner", ["theta", "/"])
def test_names_are_found_in_the_attributes_that_people_use(tmp_path, key, owner):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["theta"], file["x"] = np.random.default_rng(0).normal(size=(60, 2)), np.zeros((60, 3))
        file[owner].attrs[key] = ["omega_m", "h"]
    assert Simulations.open(tmp_path / "a.h5", theta="theta", x="x").names == ["omega_m", "h"]


def test_a_place_that_is_given_twice_adds_to_the_first(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name in "abxy":
            file[name] = np.random.default_rng(ord(name)).normal(size=60)
    words = ["--theta", "a", "--x", "x", "--theta", "b", "--x", "y", "--set", "training.max_rounds=1"]
    assert command("train", tmp_path / "a.h5", "-o", tmp_path / "run", *words) == 0
    model = load(tmp_path / "run" / "posterior.safetensors")
    assert (model.names, list(model.model.observables)) == (["a", "b"], ["x", "y"])


@pytest.mark.parametrize(
    ("x", "names"),
    [
        ("z=0.00/maps", ["maps"]),
        ("m=z=0.00/maps", ["m"]),
        ("z=0.00/maps,b=z=0.00/maps", ["maps", "b"]),
        ("m=plain", ["m"]),
        ({"m": "z=0.00/maps"}, ["m"]),
        ("t=0/u", ["u"]),
    ],
)
def test_datasets_may_have_an_equals_sign_in_their_name(tmp_path, x, names):
    table = np.zeros(60, [("u", "f8")])
    path = layouts.paired(tmp_path, **{"z=0.00/maps": np.ones((60, 2)), "plain": np.zeros(60), "t=0": table})
    assert list(Simulations.open(path, theta="theta", x=x).observables) == names


def test_a_dataset_with_an_equals_sign_trains_and_is_found_again(tmp_path):
    theta = layouts.universes(60)
    path = layouts.paired(tmp_path, **{"z=0.00/maps": layouts.vectors(theta), "x": None})
    assert command("train", path, "-o", tmp_path / "run", "--theta", "theta", "--x", "z=0.00/maps", *SMALL) == 0
    model = tmp_path / "run" / "posterior.safetensors"
    assert command("sample", model, path, "--row", 4, "-n", 30, "-o", tmp_path / "s.h5") == 0


def test_columns_that_end_alike_are_named(tmp_path):
    """As they were said, also by what remembers the layout; a name in the file itself is a place first."""
    theta = np.random.default_rng(0).normal(size=(60, 3))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, column in zip(("inj/mass/value", "inj/ra/value", "inj/a=b"), theta.T, strict=True):
            file[name] = column
        file["x"], file["pair"] = theta, theta[:, :2]
    places = "mass=inj/mass/value,inj/ra/value,inj/a=b"
    data = Simulations.open(tmp_path / "a.h5", theta=places, x="x")
    assert data.names == ["mass", "value", "a=b"]
    np.testing.assert_array_equal(data.theta, theta)
    again = Simulations.open(tmp_path / "a.h5", **data.layout.model_dump(include={"theta", "x"}))
    assert again.names == data.names
    turned = Simulations.open(tmp_path / "a.h5", theta="r=inj/ra/value,m=inj/mass/value", x="x")
    np.testing.assert_array_equal(turned.theta, theta[:, [1, 0]])
    with pytest.raises(OptionError, match="name single columns, each with its own place"):
        Simulations.open(tmp_path / "a.h5", theta="both=pair", x="x")
    with pytest.raises(
        DataError, match=r"\['value', 'value'\]: each name may stand only once; name them, such as a=first/x"
    ):
        Simulations.open(tmp_path / "a.h5", theta="inj/mass/value,inj/ra/value", x="x")
