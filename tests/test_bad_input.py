"""Bad input on the command line: exit code 2, one sentence, no traceback, nothing written, nothing lost."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sbi_dgm.cli import main
from sbi_dgm.data import format as layout

TINY = ["--set", "training.max_rounds=2", "--set", "estimator.transforms=1", "--set", "estimator.hidden=8"]
MODEL = "run/posterior.safetensors"


def command(*words):
    """Run the command line in this process; its exit code."""
    try:
        return main([str(word) for word in words])
    except SystemExit as end:
        return end.code


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder with a simulation file, a posterior, and everything that can be wrong."""
    folder = tmp_path_factory.mktemp("workshop")
    command("simulate", "gaussian_linear", "-n", 300, "-o", folder / "sims.h5")
    command("simulate", "supernovae", "-n", 300, "-o", folder / "supernovae.h5")
    command("train", folder / "sims.h5", "-o", folder / "run", "--device", "cpu", *TINY)
    np.save(folder / "x.npy", np.zeros(10))
    command("sample", folder / MODEL, folder / "x.npy", "-n", 50, "-o", folder / "samples.h5")
    (folder / "report").mkdir()
    (folder / "report" / "report.json").write_text("{}")
    (folder / "x.png").write_bytes(b"a figure")
    simulations(folder)
    observations(folder)
    artefacts(folder)
    settings(folder)
    return folder


def simulations(folder):
    for name, change in {
        "newer": lambda file: file.attrs.modify("format_version", 9),
        "foreign": lambda file: file.attrs.modify("format", "astro/catalogue"),
        "incomplete": lambda file: file.attrs.pop("complete"),
        "edited": lambda file: file.attrs.modify("simulator", "{}"),
        "lengths": lambda file: replace(file, "x/x", file["x/x"][:-1]),
    }.items():
        with h5py.File(shutil.copy(folder / "sims.h5", folder / f"{name}.h5"), "r+") as file:
            change(file)
    for name, (source, dataset, place, value) in {
        "nan_theta": ("sims", "theta", (41, 2), np.nan),
        "inf_theta": ("sims", "theta", (41, 2), np.inf),
        "nan_x": ("sims", "x/x", (slice(40, 300), 2), np.nan),
        "inf_x": ("sims", "x/x", (slice(40, 300), 2), np.inf),
        "constant": ("sims", "theta", (slice(None), 2), 0.125),
        "failed": ("sims", "valid", slice(40, 300), 0),
        "outside": ("supernovae", "theta", (41, 0), 0.75),
    }.items():
        header, columns = layout.read(folder / f"{source}.h5")
        numbers = {name: column[:] for name, column in columns.items()}
        numbers[dataset][place] = value
        layout.write(folder / f"{name}.h5", header, 300, [numbers])
    raw = (folder / "sims.h5").read_bytes()
    (folder / "cut.h5").write_bytes(raw[: len(raw) // 2])
    (folder / "flipped.h5").write_bytes(flip(raw, chunk(folder / "sims.h5", "theta") + 100))
    (folder / "text.h5").write_text("omega_m, w0\n0.3, -1\n")
    (folder / "empty.h5").write_bytes(b"")
    header, columns = layout.read(folder / "sims.h5")
    layout.write(folder / "few.h5", header, 49, [{name: column[:49] for name, column in columns.items()}])


def replace(file, name, values):
    del file[name]
    file[name] = values


def chunk(path, name):
    with h5py.File(path) as file:
        return file[name].id.get_chunk_info(0).byte_offset


def flip(raw, place):
    return raw[:place] + bytes([raw[place] ^ 0x10]) + raw[place + 1 :]


def observations(folder):
    np.save(folder / "nine.npy", np.zeros(9))
    np.save(folder / "stack_of_nine.npy", np.zeros((4, 9)))
    np.save(folder / "stack.npy", np.zeros((4, 10)))
    np.save(folder / "nan.npy", np.r_[np.zeros(4), np.nan, np.zeros(5)])
    np.save(folder / "inf.npy", np.r_[np.zeros(4), np.inf, np.zeros(5)])
    np.save(folder / "words.npy", np.full(10, "a"))
    np.save(folder / "complex.npy", np.zeros(10, complex))
    np.savez(folder / "other.npz", flux=np.zeros(10))
    np.savetxt(folder / "nine.txt", np.zeros(9))
    (folder / "header.csv").write_text("a,b\n1,2\n")
    (folder / "empty.npy").write_bytes(b"")
    (folder / "cut.npz").write_bytes((folder / "other.npz").read_bytes()[:100])


def artefacts(folder):
    raw = (folder / MODEL).read_bytes()
    header = int.from_bytes(raw[:8], "little")
    for name, content in {
        "size": flip(raw, 2),
        "header": flip(raw, 300),
        "weights": flip(raw, 8 + header + 1001),
        "last_byte": flip(raw, len(raw) - 1),
        "cut_in_header": raw[:200],
        "cut_in_weights": raw[:-100],
        "random": np.random.default_rng(0).bytes(5000),
        "nothing": b"",
    }.items():
        (folder / f"{name}.safetensors").write_bytes(content)
    save_file({"a": torch.zeros(3)}, folder / "strange.safetensors", {"made_by": "another"})


def settings(folder):
    for name, text in {
        "unknown_key": "[training]\nbatchsize = 3\n",
        "unknown_table": "[trainig]\nbatch_size = 3\n",
        "unknown_family": '[estimator]\nname = "flwo"\n',
        "flat": 'estimator = "flow"\n',
        "broken": "[training\n",
        "data_key": "[data]\nthetas = 'theta'\nx = 'x/x'\n",
        "prior_word": "[prior]\ntheta_1 = {unifrom = [0, 1]}\n",
    }.items():
        (folder / f"{name}.toml").write_text(text)


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
    (train("text.h5"), "text.h5 is no readable HDF5 file"),
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
    (["inspect", "x.npy"], "x.npy is no readable"),
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
    (train("few.h5"), "49 of 49 rows are valid: at least 50"),
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
    (draw("stack.npy", "--corner", "new.png"), "draws for 4 observations"),
    (draw("x.npy", "--corner", "new.xyz"), "unknown figure format '.xyz'.*png"),
]

NAMES = [
    (["trian", "sims.h5"], "unknown command 'trian': did you mean 'train'"),
    (["--frobnicate"], "unknown option .*'--frobnicate'"),
    ([], "required: COMMAND"),
    (["train", "sims.h5"], "required: -o/--out"),
    (make(n="many"), "argument -n: invalid int value: 'many'"),
    (make(n="0"), "n = 0: at least 1"),
    (make("--workers", "0"), "workers = 0: at least 1"),
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
                           for c in FILES + ROWS + OBSERVATIONS + NAMES + EXISTING + ARTEFACTS]
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
        assert_matches(message, sentences(captured.err)[0])
    finally:
        for path in (Path("new"), Path("new.h5.shards")):
            shutil.rmtree(path, ignore_errors=True)
        for path in Path().glob("new.*"):
            path.unlink()


def assert_matches(pattern, text):
    with pytest.raises(RuntimeError, match=pattern):
        raise RuntimeError(text)


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
