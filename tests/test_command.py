"""External programs: what they are given, what is read of what they write, and how each of their failures is kept."""

import pickle
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from campaign_toys import content, run

from sbi_dgm import CommandSimulator, Normal, Observable, Parameter, Prior, Simulator, Uniform
from sbi_dgm.errors import DataError, OptionError
from sbi_dgm.simulator import FailedRowsError, reason

X, MAP = Observable((3,)), Observable((2, 2))
PRIOR = Prior([Parameter("omega_m", Uniform(0, 1)), Parameter("b", Normal(0, 1))])
HEAD = "#!/bin/sh\n"
TEXT = HEAD + 'echo "$1 $2 $3" > "$4"\n'


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """Temporary folders of their own, and a working folder with a program in it."""
    place, work = tmp_path / "scratch", tmp_path / "work"
    place.mkdir()
    work.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.chdir(work)
    return place


def program(text, name="toy"):
    path = Path(name)
    path.write_text(text)
    path.chmod(0o755)
    return f"./{name}"


def simulator(
    text=TEXT, output="x.txt", observables=None, arguments=("{omega_m}", "{b}", "{seed}", "{out}"), **options
):
    command = [program(text), *arguments]
    return CommandSimulator("toy", PRIOR, observables or {"x": X}, command=command, output=output, **options)


def python(text):
    """A program in Python that knows a, b, seed and the output's path."""
    head = "import os, sys, time\nimport numpy as np\na, b, seed, out = *map(float, sys.argv[1:4]), sys.argv[4]\n"
    return f"#!{sys.executable}\n{head}{text}\n"


THETA = np.array([[0.1, -2.0], [1 / 3, 1e-300], [0.7, 12345.678901234567]])


def rng(seed=0):
    return np.random.default_rng(seed)


def failures(one, theta=THETA):
    """The reason of each failed row."""
    with pytest.raises(FailedRowsError) as told:
        one(theta, rng())
    return {row: reason(error) for row, error in told.value.errors.items()}


def test_parameters_arrive_to_the_last_digit_and_the_seed_is_the_generators(tmp_path):
    kept = tmp_path / "given.txt"
    one = simulator(HEAD + f'echo "$1 $2 $3" >> {kept}; echo 1 2 3 > "$4"\n')
    one(THETA, rng(5))
    given = [line.split() for line in kept.read_text().splitlines()]
    assert [[float(a), float(b)] for a, b, _ in given] == THETA.tolist()
    assert [int(seed) for *_, seed in given] == rng(5).integers(2**31, size=3).tolist()


def test_rows_do_not_depend_on_the_batch_that_they_come_in():
    one = simulator()
    whole = one(THETA, rng(1))["x"]
    np.testing.assert_array_equal(whole[:, 0], THETA[:, 0])
    np.testing.assert_array_equal(one(THETA[:2], rng(1))["x"], whole[:2])
    assert (one(THETA, rng(2))["x"][:, 2] != whole[:, 2]).all()


def test_it_is_a_simulator_and_travels():
    one = simulator()
    assert isinstance(one, Simulator)
    other = pickle.loads(pickle.dumps(one))
    np.testing.assert_array_equal(other(THETA, rng())["x"], one(THETA, rng())["x"])


FORMATS = {
    "x.npy": "np.save('x.npy', [a, b, seed])",
    "deep/x.txt": "os.mkdir('deep'); np.savetxt(out, [a, b, seed], fmt='%.17g')",
    "x.dat": "print(a, b, seed, file=open(out, 'w'))",
    "x.csv": "print(a, b, seed, sep=', ', file=open(out, 'w'))",
    "x.npz": "np.savez(out, x=[a, b, seed], other=1)",
    "x.h5": "import h5py\nwith h5py.File(out, 'w') as f: f['x'] = [a, b, seed]; f.create_group('more')",
}


@pytest.mark.parametrize("output", FORMATS)
def test_every_format_is_read(output):
    x = simulator(python(FORMATS[output]), output)(THETA[1:], rng(3))["x"]
    seeds = rng(3).integers(2**31, size=2)
    np.testing.assert_array_equal(x, np.column_stack([THETA[1:], seeds]))


TWO = {"x": X, "map": MAP}


@pytest.mark.parametrize(
    ("output", "text"),
    [
        ("all.npz", "np.savez(out, x=[a, b, 0], map=[[a, b], [0, 1]])"),
        ("all.h5", "import h5py\nwith h5py.File(out, 'w') as f: f['x'] = [a, b, 0]; f['map'] = [[a, b], [0, 1]]"),
        ({"x": "x.txt", "map": "map.txt"}, "np.savetxt('x.txt', [a, b, 0]); np.savetxt('map.txt', [[a, b], [0, 1]])"),
        ({"x": "x.npy", "map": "m.npz"}, "np.save('x.npy', [a, b, 0]); np.savez('m.npz', map=[[a, b], [0, 1]])"),
    ],
)
def test_several_observables_come_in_one_file_or_in_one_each(output, text):
    arguments = ("{omega_m}", "{b}", "{seed}", "{scratch}/all" if isinstance(output, dict) else "{out}")
    x = simulator(python(text), output, TWO, arguments)(THETA, rng())
    np.testing.assert_array_equal(x["x"][:, :2], THETA)
    np.testing.assert_array_equal(x["map"][:, 0], THETA)
    np.testing.assert_array_equal(x["map"][:, 1], [[0, 1]] * 3)


def test_numbers_in_a_line_take_the_declared_shape_and_a_table_keeps_its_own():
    line = simulator(HEAD + 'echo 1 2 3 4 > "$4"\n', observables={"map": MAP})
    np.testing.assert_array_equal(line(THETA[:1], rng())["map"], [[[1, 2], [3, 4]]])
    tall = Observable((4, 1))
    table = simulator(HEAD + 'printf "1 2\\n3 4\\n" > "$4"\n', observables={"map": tall})
    assert failures(table, THETA[:1]) == {0: "observable 'map' has shape (2, 2), expected (4, 1)"}
    number = simulator(HEAD + 'echo 7 > "$4"\n', observables={"n": Observable(())})
    assert number(THETA, rng())["n"].tolist() == [7, 7, 7]


BAD = {
    "exits": ("test $2 = 1e-300 && { echo a >&2; echo no  root >&2; exit 3; }", "toy ended with exit code 3: no root"),
    "silent": ("test $2 = 1e-300 && exit 1", "toy ended with exit code 1"),
    "crashes": ("test $2 = 1e-300 && kill -SEGV $$", "toy ended with signal 11 (SIGSEGV)"),
    "hangs": ("test $2 = 1e-300 && { echo waiting >&2; sleep 60; }", "toy took longer than 0.5 s: waiting"),
    "forgets": ("test $2 = 1e-300 && exit 0", "toy ended well and wrote no x.txt"),
    "stammers": ('test $2 = 1e-300 && { echo 1 two 3 > "$4"; exit 0; }', "x.txt cannot be read: ValueError: could not"),
    "short": ('test $2 = 1e-300 && { echo 1 2 > "$4"; exit 0; }', "observable 'x' has shape (2,), expected (3,)"),
}  # fmt: skip


@pytest.mark.parametrize("how", BAD)
def test_a_row_that_fails_says_why_and_costs_no_other(how, scratch):
    text, words = BAD[how]
    bad = simulator(f'{HEAD}{text}\necho "$1 $2 $3" > "$4"\n', timeout=0.5)
    with pytest.raises(FailedRowsError) as told:
        bad(THETA, rng())
    (row, error), = told.value.errors.items()  # fmt: skip
    assert row == 1
    assert reason(error).startswith(words)
    np.testing.assert_array_equal(told.value.x["x"][[0, 2]], simulator()(THETA, rng())["x"][[0, 2]])
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(("output", "written"), [("x.npy", "text"), ("x.npz", "text"), ("x.h5", "text")])
def test_a_file_of_another_format_is_no_output(output, written):
    bad = simulator(HEAD + f'echo {written} > "$4"\n', output)
    assert failures(bad, THETA[:1])[0].startswith(f"{output} cannot be read: ")


def test_a_pickle_is_never_opened():
    bad = simulator(python("np.save(out, np.array([print], dtype=object), allow_pickle=True)"), "x.npy")
    assert "allow_pickle=False" in failures(bad, THETA[:1])[0]


def test_a_dataset_that_is_missing_is_named():
    bad = simulator(python("np.savez(out, y=1)"), "x.npz")
    assert failures(bad, THETA[:1]) == {0: "gave ['y'], without its observable 'x'"}


def test_all_that_a_program_started_ends_with_its_time(tmp_path):
    mark = tmp_path / "alive"
    forks = simulator(HEAD + f"(while true; do date > {mark}; sleep 0.05; done) &\nsleep 60\n", timeout=0.5)
    assert failures(forks, THETA[:1]) == {0: "toy took longer than 0.5 s"}
    assert mark.exists()
    mark.unlink()
    time.sleep(0.3)
    assert not mark.exists()


def test_what_a_program_leaves_running_ends_with_it(tmp_path):
    mark = tmp_path / "alive"
    simulator(HEAD + f'(while true; do date > {mark}; sleep 0.05; done) &\necho 1 2 3 > "$4"\n')(THETA[:1], rng())
    mark.unlink(missing_ok=True)
    time.sleep(0.3)
    assert not mark.exists()


def test_the_working_folder_is_empty_and_new_for_each_row_and_gone_afterwards(tmp_path, scratch):
    kept = tmp_path / "folders"
    one = simulator(
        HEAD + f'ls -A | wc -l >> {kept}; pwd >> {kept}; touch litter; mkdir -m 000 locked; echo 1 2 3 > "$4"\n'
    )
    one(THETA, rng())
    lines = kept.read_text().split()
    assert lines[::2] == ["0", "0", "0"]
    assert len(set(lines[1::2])) == 3
    assert {Path(line).parent for line in lines[1::2]} == {scratch}
    assert list(scratch.iterdir()) == []


def test_programs_are_found_from_where_the_simulator_was_made(tmp_path, monkeypatch):
    one = simulator()
    monkeypatch.chdir(tmp_path)
    assert one(THETA, rng())["x"].shape == (3, 3)


def test_braces_that_are_no_placeholders_stay():
    text = HEAD + 'test "$1" = \'{"om": 0.25, "s": {}}\' || exit 9\necho "$2" > x.txt\n'
    arguments = ('{"om": {omega_m}, "s": {}}', "{b} {b} {seed}")
    assert simulator(text, arguments=arguments)(np.array([[0.25, 2.0]]), rng())["x"][0, :2].tolist() == [2, 2]


class TestCampaigns:
    """In campaigns."""

    def test_failures_reach_the_file_and_nothing_is_run_twice(self, tmp_path):
        count = tmp_path / "count"
        text = f'{HEAD}echo >> {count}\ncase $1 in 0.9*) echo "too dense" >&2; exit 4;; esac\necho "$1 $2 $3" > "$4"\n'
        with pytest.warns(
            UserWarning, match=r"simulations failed \(most often: toy ended with exit code 4: too dense\)"
        ):
            data = run(tmp_path / "a.h5", 40, simulator(text), shard_rows=20)
        expected = [b"toy ended with exit code 4: too dense" if a >= 0.9 else b"" for a in data.theta[:, 0]]
        assert data.columns["failure"][:].tolist() == expected
        assert 0 < 40 - data.valid.sum() < 20
        assert len(count.read_text()) == 40

    @pytest.mark.filterwarnings("ignore:.*simulations failed")
    def test_two_workers_give_the_same_file(self, tmp_path):
        text = f'{HEAD}case $1 in 0.9*) exit 4;; esac\necho "$1 $2 $3" > "$4"\n'
        run(tmp_path / "a.h5", 40, simulator(text), shard_rows=10)
        run(tmp_path / "b.h5", 40, simulator(text), shard_rows=10, workers=2)
        assert content(tmp_path / "a.h5") == content(tmp_path / "b.h5")

    @pytest.mark.parametrize(
        ("text", "words"),
        [(None, "'toy': '.*/toy' cannot be started: No such file"), ("not a program", "cannot be started: Exec format"),
         (HEAD + 'echo 1 2 > "$4"\n', r"'toy': observable 'x' has shape \(2,\), expected \(3,\)")],
    )  # fmt: skip
    def test_what_no_row_survives_ends_the_campaign_at_its_first_shard(self, tmp_path, text, words):
        one = simulator(text or TEXT)
        if text is None:
            Path("toy").unlink()
        with pytest.raises(DataError, match=words):
            run(tmp_path / "a.h5", 400, one, shard_rows=5)
        assert not list(tmp_path.rglob("[0-9]*.h5"))


def make(**changes):
    given = {"command": ["./toy", "{omega_m}", "{b}"], "output": "x.npy"} | changes
    observables = given.pop("observables", {"x": X})
    return CommandSimulator("toy", given.pop("prior", PRIOR), observables, **given)


SEED = Prior([Parameter("seed", Uniform(0, 1))])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"command": "./toy {omega_m} {b}"}, "give a list of arguments"),
        ({"command": []}, "give a list of arguments"),
        ({"command": ["toy", "{omega_m}", "{b}", "{sed}"]}, "unknown placeholder 'sed': did you mean 'seed'"),
        ({"command": ["toy", "{omega_m}"]}, "never takes parameter 'b': put {b} into"),
        ({"command": ["toy", "{seed}"], "prior": SEED}, "'seed' has the name of a placeholder of ours"),
        ({"output": "x.fits"}, "unknown format of output 'x.fits' '.fits'.*npy"),
        ({"output": "x.npy", "observables": TWO}, "holds one array, and there are 2 observables"),
        ({"output": {"y": "x.npy"}}, r"output names \['y'\], and the observables are \['x'\]"),
        ({"output": "/tmp/x.npy"}, "'/tmp/x.npy' lies outside of the scratch folder"),
        ({"output": {"x": "../x.npy"}}, "'../x.npy' lies outside of the scratch folder"),
        ({"output": {"x": "x.npy"}, "command": ["toy", "{omega_m}", "{b}", "{out}"]}, "unknown placeholder 'out'"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_made(changes, words):
    with pytest.raises(OptionError, match=words):
        make(**changes)


def test_paths_and_numbers_may_stand_in_a_command():
    made = make(command=[Path("./toy"), "{omega_m}", "{b}", 3], output=Path("x.npy"))
    assert made.version == make(command=["toy", "{omega_m}", "{b}", "3"]).version
    assert made.files == make().files


def test_the_command_is_its_version_unless_one_is_given():
    assert make().version == "./toy '{omega_m}' '{b}'"
    assert make(version="2.1").version == "2.1"


def test_what_an_hdf5_holds_beside_the_observables_is_left_alone():
    text = "import h5py\nwith h5py.File(out, 'w') as f: f['x'] = [1., 2, 3]; f['note'] = 'text'; f['y'] = np.ones(9)"
    assert simulator(python(text), "x.h5")(THETA, rng())["x"].tolist() == [[1, 2, 3]] * 3
