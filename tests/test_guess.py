"""What inspect says of a foreign file: its tree, a guess at theta and x, and a command that trains when it is run."""

import shlex

import h5py
import layouts
import numpy as np
import pytest

from sbi_dgm import Simulations, load
from sbi_dgm.cli import main
from sbi_dgm.data.foreign import Layout
from sbi_dgm.data.guess import command, guess
from sbi_dgm.data.tree import tree
from sbi_dgm.inspection import describe

TINY = ["training.max_rounds=1", "training.round=3", "estimator.transforms=1", "estimator.hidden=8"]
SMALL = [word for setting in TINY for word in ("--set", setting)] + ["--device", "cpu"]


def printed(path, capsys):
    capsys.readouterr()
    assert main(["inspect", str(path)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out.splitlines()


def file_of(folder, **content):
    with h5py.File(folder / "a.h5", "w") as file:
        for name, values in content.items():
            file[name.replace("__", "/")] = values
    return folder / "a.h5"


ROWS = 60
NUMBERS = np.random.default_rng(0).normal(size=(ROWS, 3))


@pytest.mark.parametrize("writer", layouts.ALL, ids=lambda writer: writer.__name__)
def test_the_command_that_inspect_prints_trains(tmp_path, capsys, monkeypatch, writer):
    made = writer(tmp_path)
    line = printed(min(tmp_path.glob(made.path.name)), capsys)[-1]
    if writer is layouts.pandas_records:  # one table: nobody can tell which of its fields are parameters
        assert line == "Nothing looks like theta and x: name them with --theta and --x."
        return
    assert line.startswith("  sbi-dgm train ")
    monkeypatch.chdir(tmp_path)
    few = writer is layouts.split_files  # a dozen rows in the first of the files
    assert main([*shlex.split(line)[1:], *SMALL]) == (2 if few else 0)
    if few:
        assert "rows are valid: at least 50" in capsys.readouterr().err
    else:
        assert sorted(load("run/posterior.safetensors").names) == sorted(made.names)


@pytest.mark.parametrize(
    ("writer", "theta", "x", "weight", "group"),
    [
        (layouts.plain, "theta", ["x"], {}, None),
        (layouts.camels, "params.txt", ["maps"], {}, None),
        (layouts.camels_bare, "params.txt", ["maps"], {}, None),
        (layouts.dingo, "parameters", ["polarizations"], {}, None),
        (layouts.madminer, "samples/theta", ["samples/observations"], {"event": "samples/weights"}, None),
        (layouts.ragged, "theta", ["particles"], {}, None),
        (layouts.group_of_columns, "params", ["spectrum"], {}, None),
        (layouts.failed_rows, "y", ["data"], {}, None),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_theta_and_x_are_found_by_the_names_of_the_field(tmp_path, writer, theta, x, weight, group):
    path = writer(tmp_path).path
    with h5py.File(path) as file:
        found = guess(path, file)
    assert (found.theta, list(found.x.values()), found.weight, found.group) == ((theta,), x, weight, group)


@pytest.mark.parametrize(
    ("content", "theta", "x"),
    [
        ({"alpha": NUMBERS[:, :2], "beta": np.zeros((ROWS, 8, 8))}, "alpha", "beta"),
        ({"beta": NUMBERS[:, :2], "alpha": np.zeros((5 * ROWS, 8))}, "beta", "alpha"),
        ({"run1__theta": NUMBERS, "run1__x": NUMBERS}, "run1/theta", "run1/x"),
        ({"Parameters": NUMBERS, "Maps": np.zeros((ROWS, 4, 4)), "noise": np.zeros((7, 2))}, "Parameters", "Maps"),
    ],
)
def test_without_such_names_the_narrowest_table_and_the_widest_dataset_stand(tmp_path, content, theta, x):
    path = file_of(tmp_path, **content)
    with h5py.File(path) as file:
        found = guess(path, file)
    assert (found.theta, list(found.x.values())) == ((theta,), [x])


@pytest.mark.parametrize(
    "content",
    [{}, {"a": 3.0}, {"a": np.zeros(0)}, {"a": NUMBERS}, {"a": np.full(9, "w", "S3")}, {"a": np.arange(9.0)}],
)
def test_where_nothing_looks_like_theta_and_x_it_is_said(tmp_path, capsys, content):
    lines = printed(file_of(tmp_path, **content), capsys)
    assert lines[-1] == "Nothing looks like theta and x: name them with --theta and --x."


def test_the_tree_says_shape_dtype_chunks_compression_attributes_and_links(tmp_path):
    table = np.zeros(9, [("omega_m", ">f4"), ("tag", "S3")])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset(
            "maps/kappa", data=np.zeros((9, 4), "f2"), chunks=(3, 4), compression="gzip", fletcher32=True
        )
        file["maps/kappa"].attrs["unit"], file.attrs["author"] = "Jy", "b" * 100
        file["maps"].attrs["n"] = np.arange(3)
        file["table"], file["deep/er/still"] = table, 3
        file["soft"], file["gone"] = h5py.SoftLink("/maps"), h5py.SoftLink("/nowhere")
        file["away"] = h5py.ExternalLink("b.h5", "/x")
        file["deep/up"] = h5py.SoftLink("/deep")
        file.create_dataset("void", data=h5py.Empty("f4"))
    with h5py.File(tmp_path / "a.h5") as file:
        text = "\n".join(tree(file))
    for words in (
        "@author = 'bbbb",
        "...",
        "maps/",
        "@n = [0, 1, 2]",
        "kappa              (9, 4) float16, chunks (3, 4), gzip, fletcher32",
        "@unit = 'Jy'",
        "{omega_m: >f4, tag: |S3}, contiguous",
        "soft/ -> /maps",
        "gone               leads nowhere -> /nowhere",
        "away               leads nowhere -> b.h5 /x",
        "up/ -> /deep",
        "still              () int64",
        "void               None float32",
    ):
        assert words in text
    assert max(map(len, text.splitlines())) < 120


def test_inspect_survives_broken_links_and_odd_neighbours(tmp_path, capsys):
    made = layouts.plain(tmp_path)
    with h5py.File(made.path, "r+") as file:
        file["g/soft"], file["away"] = h5py.SoftLink("/nowhere"), h5py.ExternalLink("b.h5", "/x")
        file["s/values"], file["s/offsets"] = 3.0, 1
    (tmp_path / "readme.txt").write_text("a b\nc d\n")
    (tmp_path / "noise.dat").write_bytes(bytes(range(256)))
    lines = printed(made.path, capsys)
    assert lines[-1] == f"  sbi-dgm train {made.path} --theta theta --x x -o run"


def test_linked_data_are_seen(tmp_path):
    made = layouts.plain(tmp_path)
    with h5py.File(tmp_path / "master.h5", "w") as file:
        file["theta"], file["x"] = h5py.ExternalLink("sims.h5", "/theta"), h5py.ExternalLink("sims.h5", "/x")
    with h5py.File(tmp_path / "master.h5") as file:
        found = guess(tmp_path / "master.h5", file)
    assert (found.theta, found.x) == (("theta",), {"x": "x"})
    assert made.path.exists()


def test_odd_names_are_quoted_in_the_command(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "my sims"
    folder.mkdir()
    with h5py.File(folder / "run 1.h5", "w") as file:
        file["my theta"], file["the x's"] = NUMBERS[:, :2], NUMBERS
    line = printed(folder / "run 1.h5", capsys)[-1]
    monkeypatch.chdir(tmp_path)
    assert main([*shlex.split(line)[1:], *SMALL]) == 0


def test_the_command_says_weights_and_groups():
    layout = Layout(theta="a,b", x="m/x", weight={"event": "w"}, group="g")
    assert command("a.h5", layout) == "sbi-dgm train a.h5 --theta a,b --x m/x --event-weight w --group g -o run"


def test_groups_and_event_weights_are_found_by_name(tmp_path):
    path = file_of(
        tmp_path, theta=NUMBERS, x=NUMBERS, weights=np.ones(ROWS), sim_id=np.arange(ROWS), weight_maps=NUMBERS
    )
    with h5py.File(path) as file:
        found = guess(path, file)
    assert (found.weight, found.group) == ({"event": "weights"}, "sim_id")


def test_with_a_layout_inspect_describes_the_simulations(tmp_path, capsys):
    made = layouts.failed_rows(tmp_path)
    assert main(["inspect", str(made.path), *made.words]) == 0
    out = capsys.readouterr().out
    for words in ("150 simulations, 2 failed", "omega_m            Uniform", "x/data", "(150, 3) float64"):
        assert words in out
    assert describe(made.path, **made.places) == out[:-1]


def test_our_own_files_are_no_foreign_ones(tmp_path):
    Simulations.create(tmp_path / "a.h5", NUMBERS, NUMBERS)
    assert "60 simulations, 0 failed" in describe(tmp_path / "a.h5")


WIDE, PARTS = np.zeros((ROWS, 40)), np.zeros((ROWS // 3, 3))
COLUMN = np.arange(ROWS) ** 1.5


def guessed(path):
    with h5py.File(path) as file:
        found = guess(path, file)
    return found and (",".join(found.theta), ",".join(found.x.values()))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # theta and x lie apart
        ({"run__theta": COLUMN, "run__b": COLUMN}, None),
        ({"sim_0__theta": COLUMN, "sim_0__x": COLUMN}, ("sim_0/theta", "sim_0/x")),
        ({"data__theta": NUMBERS, "data__x": WIDE}, ("data/theta", "data/x")),
        # equal lengths come before those that divide
        ({"fiducial__theta": PARTS, "lh__theta": NUMBERS, "maps": WIDE}, ("lh/theta", "maps")),
        ({"bins": PARTS, "table": NUMBERS, "maps": WIDE}, ("table", "maps")),
        # names that say what a place is not
        ({"spectrum": NUMBERS, "more": WIDE}, None),
        ({"spectrum": NUMBERS, "table": NUMBERS}, ("table", "spectrum")),
        ({"theta": NUMBERS, "omega_m": WIDE}, None),
        ({"params": NUMBERS, "labels": WIDE}, None),
        ({"table": NUMBERS, "cov": np.zeros((ROWS, ROWS)), "square": np.zeros((ROWS, ROWS))}, None),
        ({"theta": NUMBERS, "pk": NUMBERS, "covariance": WIDE, "seed": WIDE, "counts": WIDE}, ("theta", "pk")),
        ({"ids": NUMBERS, "x": WIDE}, None),
        # training rows come before others
        ({"test__theta": NUMBERS, "test__x": WIDE, "train__theta": NUMBERS, "train__x": WIDE},
         ("train/theta", "train/x")),
        ({"val__theta": NUMBERS, "val__x": WIDE, "training__theta": PARTS, "training__x": WIDE},
         ("training/theta", "training/x")),
        ({"x_test": WIDE, "theta_test": NUMBERS, "x_train": WIDE, "theta_train": NUMBERS}, ("theta_train", "x_train")),
        # nothing rather than one of several
        ({"a__theta": NUMBERS, "b__theta": NUMBERS, "x": WIDE}, None),
        ({"theta": NUMBERS, "maps": WIDE, "spectra": WIDE}, None),
        ({"theta": NUMBERS, "one": WIDE, "two": WIDE}, None),
        ({"one": NUMBERS, "two": NUMBERS + 1}, None),
        ({"omega_m": COLUMN, "sigma_8": COLUMN, "x": WIDE}, None),
    ],
)  # fmt: skip
def test_a_guess_keeps_the_rules_or_is_none(tmp_path, content, expected):
    assert guessed(file_of(tmp_path, **content)) == expected


@pytest.mark.parametrize(
    ("tables", "theta"),
    [
        ({"k_bins.txt": ("k lo", PARTS + np.arange(3) ** 2), "runs.csv": ("a,b,c", NUMBERS)}, "runs.csv"),
        ({"t.csv": ("seed,a,b", NUMBERS)}, "t.csv/a,t.csv/b"),
        ({"t.csv": ("a,n,b", np.insert(NUMBERS[:, :2], 1, 5 + 2 * np.arange(ROWS), axis=1))}, "t.csv/a,t.csv/b"),
        ({"t.txt": ("", np.column_stack([np.arange(ROWS), NUMBERS]))}, None),
        ({"a.csv": ("a,b,c", NUMBERS), "b.csv": ("a,b,c", NUMBERS)}, None),
        ({"params.csv": ("a,b,c", NUMBERS), "b.csv": ("a,b,c", NUMBERS)}, "params.csv"),
    ],
)  # fmt: skip
def test_tables_beside_are_said_and_lend_the_columns_that_do_not_number_rows(tmp_path, capsys, tables, theta):
    path = file_of(tmp_path, maps=WIDE)
    for name, (title, values) in tables.items():
        title = title if len(title.split(",")) == values.shape[1] else ""
        np.savetxt(tmp_path / name, values, header=title, comments="", delimiter=",")
    lines = printed(path, capsys)
    for name, (_, values) in tables.items():
        assert any(line.startswith(f"  {name} ") and f"{len(values)} rows, columns" in line for line in lines)
    last = f"  sbi-dgm train {path} --theta {theta} --x maps -o run"
    assert lines[-1] == (last if theta else "Nothing looks like theta and x: name them with --theta and --x.")


@pytest.mark.parametrize("inside", [True, False])
def test_of_a_glob_the_first_file_is_described_and_all_are_trained_on(tmp_path, capsys, inside):
    for i in (10, 2):
        file_of(tmp_path, maps=WIDE, **({"theta": NUMBERS} if inside else {})).rename(tmp_path / f"sim_{i}.h5")
    np.savetxt(tmp_path / "params.txt", np.concatenate([NUMBERS, NUMBERS]))
    lines = printed(tmp_path / "sim_*.h5", capsys)
    assert lines[0].startswith(f"{tmp_path / 'sim_2.h5'}, the first of 2 files: HDF5")
    theta = "theta" if inside else "params.txt"
    assert lines[-1] == f"  sbi-dgm train '{tmp_path / 'sim_*.h5'}' --theta {theta} --x maps -o run"
    assert Simulations.open(tmp_path / "sim_*.h5", theta=theta, x="maps").theta.shape == (2 * ROWS, 3)
