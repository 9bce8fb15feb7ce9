"""Bad input on the command line: exit code 2, one sentence, no traceback, nothing written, nothing lost."""

import json
import shutil
from pathlib import Path

import bad_files
import h5py
import pytest
import torch
from bad_files import MODEL
from command_toys import check_matches, command


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workshop")
    bad_files.fill(folder)
    return folder


def snapshot(folder):
    return {p.relative_to(folder): (p.is_dir() or p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*")}


def sentences(stderr):
    """The lines of stderr that are no progress bar."""
    return [line for line in stderr.split("\n") if line.strip() and "\r" not in line]


def faults(code, stderr, before, after):
    """What a command did wrong in refusing its input."""
    lines = sentences(stderr)
    found = [] if code == 2 else [f"exit code {code}"]
    if len(lines) != 1 or not lines[0].startswith("sbi-dgm: "):
        found.append(f"not one sentence: {lines}")
    if "Traceback" in stderr:
        found.append("a traceback")
    if before != after:
        found.append(f"changed: {sorted(str(p) for p, _ in set(before.items()) ^ set(after.items()))}")
    return found


def train(data="sims.h5", *words, out="new"):
    return ["train", data, "-o", out, *words]


def draw(observation="x.npy", *words, model=MODEL, out="new.h5"):
    return ["sample", model, observation, "-o", out, "-n", "20", *words]


def judge(data="sims.h5", *words, model=MODEL, out="new"):
    return ["calibrate", model, data, "-o", out, *words]


def make(*words, simulator="gaussian_linear", n="60", out="new.h5"):
    return ["simulate", simulator, "-n", n, "-o", out, *words]


FILES = [
    (train("nothing.h5"), "there is no file 'nothing.h5'"),
    (train("run"), "there is no file 'run'"),
    (train("cut.h5"), "cut.h5 is no readable HDF5 file: .*truncated"),
    (train("text.h5"), r"text.h5 is no readable HDF5 file: .*\. sbi_dgm.Simulations.from_arrays\(theta, x\)"),
    (train("empty.h5"), "empty.h5 is no readable HDF5 file"),
    (train("newer.h5"), "newer.h5 has format version 9; this sbi_dgm reads up to 1"),
    (train("foreign.h5"), "foreign.h5 .*'astro/catalogue', not 'sbi_dgm/simulations'"),
    (train("incomplete.h5"), "incomplete.h5 was never completed"),
    (train("edited.h5"), "edited.h5: its attributes were changed"),
    (train("samples.h5"), "samples.h5 is HDF5 but no simulation file .*: say where theta and x are .*--theta, --x"),
    (train("foreign.h5", "--theta", "theta"), r"foreign.h5: the layout of a foreign file needs x='x' too \(--x\)"),
    (train("foreign.h5", "--x", "x/x"), r"foreign.h5: the layout of a foreign file needs theta='theta' too"),
    (train("foreign.h5", "--theta", "thet", "--x", "x/x"), "unknown dataset 'thet': did you mean 'theta'"),
    (train("cut.h5", "--theta", "theta", "--x", "x/x"), "cut.h5 is no readable HDF5 file: .*truncated"),
    (train("*.h55"), r"no file matches '\*.h55'"),
    (train("s[iu]*.h5"), r"supernovae\.h5 does not continue sims\.h5: its prior, observables or datasets differ"),
    (train("flipped.h5"), "flipped.h5: dataset 'theta', rows 0 to 299, .*checksum"),
    (judge("cut.h5"), "cut.h5 is no readable HDF5 file"),
    (judge("newer.h5"), "version 9; this sbi_dgm reads up to 1"),
    (judge("nothing.h5"), "there is no file 'nothing.h5'"),
    (["inspect", "nothing.h5"], "there is no file 'nothing.h5'"),
    (["inspect", "cut.h5"], "cut.h5 .*truncated"),
    (["inspect", "newer.h5"], "version 9; this sbi_dgm reads up to 1"),
    (["inspect", "x.npy"], r"x.npy is neither HDF5 nor a posterior\. sbi_dgm.Simulations.from_arrays"),
    (["inspect", "run"], "there is no file 'run'"),
    (["inspect", "run/checkpoint"], "run/checkpoint is a safetensors file but no posterior"),
]

ROWS = [
    (train("lengths.h5"), r"'x/x' has shape \(299, 10\), expected \(300, 10\)"),
    (train("nan_theta.h5"), "theta row 41: theta_3 is nan"),
    (train("inf_theta.h5"), "theta row 41: theta_3 is inf"),
    (train("nan_x.h5"), r"observable 'x', row 4\d: entry 2 is nan"),
    (train("inf_x.h5"), r"observable 'x', row 4\d: entry 2 is inf"),
    (train("outside.h5"), r"theta row 41: omega_m = 0\.75 is outside its prior.*\[0\.05, 0\.6\]"),
    (train("constant.h5"), "parameter 'theta_3' is the same in all rows"),
    (train("few.h5"), r"49 of 49 rows are valid: at least 50 are needed\.$"),
    (train("failed.h5"), "40 of 300 rows are valid: at least 50"),
    (judge("few.h5"), "49 held-out rows: at least 50"),
    (judge("sims.h5"), "15 held-out rows: at least 50"),
    (judge("supernovae.h5"), "theta_1"),
]

OBSERVATIONS = [
    (draw("nothing.npy"), "there is no file 'nothing.npy'"),
    (draw("nine.npy"), r"'x' has shape \(9,\); expected \(10,\)"),
    (draw("nine.txt"), r"'x' has shape \(9,\); expected \(10,\)"),
    (draw("stack_of_nine.npy"), r"'x' has shape \(4, 9\); expected \(10,\)"),
    (draw("supernovae.h5", "--row", "0"), r"has \['mu'\]; expected the observables \['x'\]"),
    (draw("other.npz"), r"has \['flux'\]; expected the observables \['x'\]"),
    (draw("nan.npy"), r"no finite number.*4"),
    (draw("inf.npy"), r"no finite number.*4"),
    (draw("words.npy"), "observable 'x'"),
    (draw("complex.npy"), "observable 'x'"),
    (draw("nan_x.h5", "--row", "50"), "no finite number"),
    (draw("sims.h5"), "rows 0 to 299: choose one with --row"),
    (draw("sims.h5", "--row", "300"), "rows 0 to 299: .*given: 300"),
    (draw("x.npy", "--row", "3"), "--row chooses a row of a simulation file"),
    (draw("empty.npy"), "empty.npy holds no array of numbers"),
    (draw("cut.npz"), "cut.npz holds no array of numbers"),
    (draw("header.csv"), "header.csv holds no array of numbers"),
    (draw("x.npy", "-n", "-1"), "n = -1"),
    (draw("stack.npy", "--corner", "new.png"), "--corner shows one observation, and stack.npy holds several"),
    (draw("x.npy", "--effective", "50"), "--effective is that of importance weights: it needs --refine"),
    (draw("x.npy", "--set", "training.ema=0.5"), "training.ema was decided by training: .*options of .estimator."),
    (draw("x.npy", "--seed", "-1"), "seed = -1: give a whole number, 0 or more"),
    (judge("supernovae.h5", "--row", "3"), "--row is a row of the observation --at: name its file"),
    (judge("supernovae.h5", "--set", "split.test=0.5"), "split.test was decided by training"),
    (draw("x.npy", "--corner", "new.xyz"), "unknown figure format '.xyz'.*png"),
]

NAMES = [
    (["trian", "sims.h5"], "unknown command 'trian': did you mean 'train'"),
    (["--frobnicate"], "unknown option .*'--frobnicate'"),
    ([], "required: COMMAND"),
    (["train", "sims.h5"], "required: -o/--out"),
    (make(n="many"), "argument -n: invalid int value: 'many'"),
    (make(n="0"), "n = 0: a whole number, at least 1"),
    (make("--workers", "0"), "workers = 0: a whole number, at least 1"),
    (make("--seed", "-1"), "seed = -1: give a whole number, 0 or more"),
    (train("sims.h5", "--seed", "-1"), "seed = -1: give a whole number, 0 or more"),
    (make("--worker", "2"), "unknown option of simulate '--worker': did you mean '--workers'"),
    (make(simulator="gausian_linear"), "unknown simulator 'gausian_linear': did you mean 'gaussian_linear'"),
    (["train", "sims.h5", "--outt", "new"], "unknown option of train '--outt': did you mean '--out'"),
    (train("sims.h5", "more.h5"), "unrecognized arguments: more.h5"),
    (train("sims.h5", "--estimator", "flwo"), "unknown estimator 'flwo': did you mean 'flow'"),
    (train("sims.h5", "--set", "estimator.name=5"), "unknown estimator '5'"),
    (train("sims.h5", "--set", "estimator.transform=5"), "'transform': did you mean 'transforms'"),
    (train("sims.h5", "--set", "estimator.transforms=0"), "transforms=0.*greater than or equal to 1"),
    (train("sims.h5", "--set", "training.batchsize=5"), "'batchsize': did you mean 'batch_size'"),
    (train("sims.h5", "--set", "training.batch_size=big"), "batch_size='big'.*integer"),
    (train("sims.h5", "--set", "trainig.batch_size=5"), "unknown table 'trainig': did you mean 'training'"),
    (train("sims.h5", "--set", "batch_size"), "write it as table.key=value"),
    (train("sims.h5", "--set", "embedding.name=mpl"), "unknown embedding 'mpl': did you mean 'mlp'"),
    (train("sims.h5", "--set", "split.validation=0"), "validation=0"),
    (train("sims.h5", "--set", "split.validation=0.99"), "leave nothing to train on"),
    (train("sims.h5", "--set", "split.validation=0.0001"), "no rows are left"),
    (train("sims.h5", "--parameters", "theta_1,thta_2"), "unknown parameter 'thta_2': did you mean 'theta_2'"),
    (train("sims.h5", "--config", "nothing.toml"), "there is no file 'nothing.toml'"),
    (train("sims.h5", "--config", "unknown_key.toml"), "'batchsize': did you mean 'batch_size'"),
    (train("sims.h5", "--config", "unknown_table.toml"), "'trainig': did you mean 'training'"),
    (train("sims.h5", "--config", "unknown_family.toml"), "unknown estimator 'flwo': did you mean 'flow'"),
    (train("sims.h5", "--config", "flat.toml"), "flat.toml: estimator = 'flow' must be a table"),
    (train("sims.h5", "--config", "broken.toml"), "broken.toml is no TOML"),
    (train("foreign.h5", "--config", "data_key.toml"), r"unknown key of \[data\] 'thetas': did you mean 'theta'"),
    (train("sims.h5", "--config", "prior_word.toml"), "prior of 'theta_1': .*'unifrom'.*did you mean 'uniform'"),
    (train("sims.h5", "--set", "data.weight=w"), "the layout of a foreign file needs theta"),
    (train("sims.h5", "--device", "quantum"), "device 'quantum'"),
    (judge("sims.h5", "--draws", "5"), "draws = 5"),
]

EXISTING = [
    (make(out="sims.h5"), "sims.h5 exists already, with 300 rows: .*--overwrite"),
    (make(n="600", out="supernovae.h5"), "supernovae.h5 holds another campaign.*--overwrite"),
    (make(out="x.npy"), "x.npy"),
    (train(out="run"), "run holds a finished run: .*--overwrite"),
    (train(out="x.npy"), "x.npy"),
    (draw(out="samples.h5"), "samples.h5 exists already: .*--overwrite"),
    (draw("x.npy", "--corner", "x.png"), "x.png exists already: .*--overwrite"),
    (judge("supernovae.h5", out="report"), "report/report.json exists already: .*--overwrite"),
    (["quickstart", "-o", "run"], "run exists already: .*--overwrite"),
]

LARGE = [(draw("x.npy", "-n", str(10**14)), "Unable to allocate .* PiB")]

ARTEFACTS = [
    (verb, words)
    for name, words in {
        "size": "no readable safetensors",
        "header": "sha256 differs|no readable safetensors",
        "weights": "sha256 differs",
        "last_byte": "sha256 differs",
        "cut_in_header": "no readable safetensors",
        "cut_in_weights": "no readable safetensors",
        "random": "no readable safetensors",
        "nothing": "no readable safetensors",
        "strange": "no posterior of sbi_dgm",
    }.items()
    for path in [f"{name}.safetensors"]
    for verb in (draw(model=path), judge("supernovae.h5", model=path), ["inspect", path])
] + [
    (draw(model="nothing.h5"), "there is no file 'nothing.h5'"),
    (draw(model="sims.h5"), "sims.h5 is no readable safetensors"),
    (draw(model="run/checkpoint"), "run/checkpoint is a safetensors file but no posterior"),
]


@pytest.mark.parametrize(
    ("words", "message"), [pytest.param(*c, id=" ".join(c[0]))
                           for c in FILES + ROWS + OBSERVATIONS + NAMES + EXISTING + LARGE + ARTEFACTS]
)  # fmt: skip
def test_bad_input_ends_in_one_sentence(workshop, monkeypatch, capsys, words, message):
    refused(workshop, monkeypatch, capsys, words, message)


def refused(workshop, monkeypatch, capsys, words, message):
    monkeypatch.chdir(workshop)
    before = snapshot(workshop)
    code = command(*words)
    captured = capsys.readouterr()
    try:
        assert faults(code, captured.err, before, snapshot(workshop)) == []
        check_matches(message, sentences(captured.err)[0])
    finally:
        for path in (Path("new"), Path("new.h5.shards")):
            shutil.rmtree(path, ignore_errors=True)
        for path in Path().glob("new.*"):
            path.unlink()


def test_an_error_without_words_is_named(workshop, monkeypatch, capsys):
    def raises(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("sbi_dgm.inspection.describe", raises)
    refused(workshop, monkeypatch, capsys, ["inspect", "sims.h5"], "^sbi-dgm: MemoryError$")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("words", [train(), draw(), judge("supernovae.h5")], ids=lambda words: words[0])
def test_a_device_that_is_not_there_is_refused(workshop, monkeypatch, capsys, words):
    refused(workshop, monkeypatch, capsys, [*words, "--device", "cuda"], "device 'cuda' is not to be had here")


@pytest.mark.parametrize(
    ("outcome", "count"),
    [
        ((2, "training: 10%\rtraining: 100%\nsbi-dgm: no.\n", {}, {}), 0),
        ((0, "", {}, {}), 2),
        ((1, "sbi-dgm: no.\n", {}, {}), 1),
        ((2, "sbi-dgm: note: odd.\nsbi-dgm: no.\n", {}, {}), 1),
        ((2, "Traceback (most recent call last):\n  File\nValueError\n", {}, {}), 2),
        ((2, "sbi-dgm: no.\n", {}, {"new.h5": (0, 0)}), 1),
        ((2, "sbi-dgm: no.\n", {"old.h5": (0, 0)}, {}), 1),
        ((2, "sbi-dgm: no.\n", {"old.h5": (5, 0)}, {"old.h5": (6, 0)}), 1),
    ],
)
def test_the_check_accuses_what_it_should(outcome, count):
    assert len(faults(*outcome)) == count


def test_good_input_passes_where_bad_input_is_refused(workshop, monkeypatch, capsys):
    monkeypatch.chdir(workshop)
    before = snapshot(workshop)
    assert command(*draw()) == 0
    assert faults(0, capsys.readouterr().err, before, snapshot(workshop)) != []
    Path("new.h5").unlink()


@pytest.mark.parametrize(
    "words",
    [
        train("nan_x.h5", "--overwrite", out="kept"),
        train("sims.h5", "--overwrite", "--set", "split.validation=0.0001", out="kept"),
        train("sims.h5", "--overwrite", "--device", "quantum", out="kept"),
        draw("nan.npy", "--overwrite", out="samples.h5"),
        judge("few.h5", "--overwrite", out="report"),
        make("--overwrite", simulator="gausian_linear", out="sims.h5"),
    ],
    ids=" ".join,
)
def test_what_was_to_be_overwritten_survives_bad_input(workshop, monkeypatch, capsys, words):
    shutil.copytree(workshop / "run", workshop / "kept", dirs_exist_ok=True)
    refused(workshop, monkeypatch, capsys, words, "sbi-dgm: ")


def test_overwriting_is_done_when_asked(workshop, monkeypatch, capsys):
    monkeypatch.chdir(workshop)
    shutil.copy("samples.h5", "new.h5")
    assert command(*draw("stack.npy", "--overwrite")) == 0
    with h5py.File("new.h5") as file:
        assert file["posterior/theta_1"].shape == (1, 20, 4)
    Path("new.h5").unlink()


def test_the_record_of_the_fixture_is_a_whole_run(workshop):
    assert json.loads((workshop / "run" / "config.json").read_text())["data"]["rows"] == 300
