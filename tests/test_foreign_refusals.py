"""Layouts that cannot be: one sentence from the library and the command line, and nothing changed."""

import json

import h5py
import layouts
import numpy as np
import pytest
from command_toys import SMALL, check_matches, command, everything

from sbi_dgm import Simulations
from sbi_dgm.errors import DataError, FileError, OptionError, SbiError


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
    "dotted": (
        {"t": table_of(omega_m="f8", h="f8")},
        {"theta": "t.omega_m"},
        "unknown dataset 't.omega_m': did you mean 't/omega_m'.*Known: t, t/h, t/omega_m, theta, x",
    ),
    "theta_in_a_table": (
        {"t": table_of(a="f8", b="f8", flux="f8")},
        {"theta": "t/a,t/b", "x": "t"},
        r"'t/a' is theta and among x: name what else x is \(--x t/flux\)",
    ),
    "theta_in_a_group": (
        {"g/a": np.arange(60.0), "g/b": np.arange(60.0)},
        {"theta": "g/a", "x": "g"},
        r"'g/a' is theta and among x: .*--x g/b",
    ),
    "theta_is_x": ({}, {"x": "again=theta"}, r"'theta' is theta and among x: .*--x \.\.\."),
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
    path = layouts.paired(tmp_path, **datasets)
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
    check_matches(words, told[0])


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
    path = layouts.paired(tmp_path)
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
    path = layouts.paired(tmp_path)
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
    layouts.paired(tmp_path, "a0.h5", **ones), layouts.paired(tmp_path, "a1.h5", **(ones | second))
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
        layouts.paired(tmp_path, f"a{i}.h5", theta=None, x=np.zeros(one), y=np.zeros(two))
    np.savetxt(tmp_path / "t.txt", np.random.default_rng(0).random((60, 2)))
    with pytest.raises(DataError, match=r"a0\.h5: 'x' has 20 rows and 'y' 40"):
        Simulations.open(tmp_path / "a*.h5", theta="t.txt", x="x,y")


def test_fields_in_another_order_are_not_joined_by_place(tmp_path):
    layouts.paired(tmp_path, "a0.h5", x=table_of(u="f8", v="f8"))
    layouts.paired(tmp_path, "a1.h5", x=table_of(v="f8", u="f8"))
    with pytest.raises(DataError, match=r"a1\.h5: observable 'x' is array \(2,\) \['v', 'u'\].*\['u', 'v'\]"):
        Simulations.open(tmp_path / "a*.h5", theta="theta", x="x")
    layouts.paired(tmp_path, "a0.h5", theta=table_of(u="f8", v="f8"))
    layouts.paired(tmp_path, "a1.h5", theta=table_of(v="f8", u="f8"))
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


def test_an_unusable_option_is_an_option_error(tmp_path):
    with pytest.raises(OptionError):
        Simulations.open(layouts.paired(tmp_path), theta="theta", x="x", weight="w")


@pytest.mark.parametrize(
    ("datasets", "places", "words"),
    [
        ({"t": table_of(a="f8", name="S16", b="f8")}, {"theta": "t"}, r"'t/name' holds \|S16: .*--theta t/a,t/b\)"),
        ({"t": table_of(a="f8", name="S16", b="f8")}, {"x": "t"}, r"'t/name' holds \|S16: .*--x t/a,t/b\)"),
        ({"g/a": np.zeros(60), "g/n": np.full(60, "a", "S3")}, {"x": "g"}, r"'g/n' holds \|S3: .*--x g/a\)"),
    ],
)
def test_text_among_numbers_is_refused_with_the_fields_to_list(tmp_path, datasets, places, words):
    path = layouts.paired(tmp_path, **datasets)
    with pytest.raises(DataError, match=words):
        Simulations.open(path, **({"theta": "theta", "x": "x"} | places))


def test_the_fields_listed_are_read_beside_text(tmp_path):
    path = layouts.paired(tmp_path, t=table_of(a="f8", name="S16", b="f8"))
    assert Simulations.open(path, theta="t/a,t/b", x="x").names == ["a", "b"]
    table = tmp_path / "p.csv"
    table.write_text("a,model,b\n" + "".join(f"{i},LCDM,{i}\n" for i in range(60)))
    assert Simulations.open(path, theta="p.csv/a,p.csv/b", x="x").names == ["a", "b"]
