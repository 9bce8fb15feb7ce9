"""The command line does the whole job, says what it made, and costs nothing to ask for help."""

import json
import shutil
import subprocess
import sys
import warnings

import h5py
import numpy as np
import pytest
from safetensors.torch import load_file
from training_toys import RUN_FILES

from sbi_dgm import Parameter, Prior, Samples, Simulations, Uniform, checkpoints, cli, load, loop
from sbi_dgm.cli import main

SMALL = """
[estimator]
name = "flow"
transforms = 1
hidden = 8

[training]
max_rounds = 3
batch_size = 128
"""


def command(*words):
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A folder in which the four commands have run; their exit codes."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "small.toml").write_text(SMALL)
    np.savetxt(folder / "x.txt", np.linspace(-0.3, 0.3, 10))
    train = ["--config", folder / "small.toml", "--device", "cpu"]
    model = folder / "run" / "posterior.safetensors"
    codes = [
        command("simulate", "gaussian_linear", "-n", 400, "-o", folder / "sims.h5", "--shard-rows", 150),
        command("simulate", "gaussian_linear", "-n", 120, "-o", folder / "fresh.h5", "--seed", 1),
        command("train", folder / "sims.h5", "-o", folder / "run", *train),
        command("sample", model, folder / "x.txt", "-n", 500, "-o", folder / "samples.h5", "--seed", 3),
        command("calibrate", model, folder / "fresh.h5", "-o", folder / "report", "--draws", 50),
    ]
    return folder, codes


def test_the_four_commands_do_the_job(job):
    folder, codes = job
    assert codes[:4] == [0, 0, 0, 0]
    assert len(Simulations.open(folder / "sims.h5")) == 400
    posterior = load(folder / "run" / "posterior.safetensors")
    assert posterior.record["best_validation_loss"] < 10 * 0.5 * np.log(2 * np.pi * np.e) - 0.1
    samples = Samples.load(folder / "samples.h5")
    assert samples.names == [f"theta_{i}" for i in range(1, 11)]
    expected = posterior.sample(500, np.linspace(-0.3, 0.3, 10), seed=3, log_prob=True)
    np.testing.assert_array_equal(samples.array, expected.array)
    np.testing.assert_array_equal(samples.log_prob, expected.log_prob)


def test_the_run_folder_tells_how_it_was_made(job):
    folder = job[0] / "run"
    assert sorted(p.name for p in folder.iterdir()) == RUN_FILES
    config = json.loads((folder / "config.json").read_text())
    assert config["data"]["fingerprint"] == Simulations.open(job[0] / "sims.h5").fingerprint()
    assert config["estimator"]["options"]["transforms"] == 1
    assert config["training"]["batch_size"] == 128
    steps = [line.split(",")[0] for line in (folder / "history.csv").read_text().splitlines()]
    assert steps[0] == "step"
    assert len(steps) >= 4


def test_calibrate_reports_and_its_exit_code_is_the_verdict(job):
    folder, codes = job
    report = json.loads((folder / "report" / "report.json").read_text())
    assert codes[4] == (0 if report["calibrated"] else 1)
    assert (report["verdict"] == "calibrated") is report["calibrated"]
    assert (report["rows"], report["draws"]) == (120, 50)
    assert set(report["parameters"]) == {f"theta_{i}" for i in range(1, 11)}
    written = {p.name for p in (folder / "report").iterdir()}
    assert written == {"index.html", "report.json", "draws.h5", "figures"}


def test_calibrate_simulates_again_and_looks_at_an_observation(job, capsys, monkeypatch):
    folder = job[0]
    (folder / "mine.py").write_text("QUANTITIES = {'sum': lambda t: t['theta_1'] + t['theta_2']}\n")
    (folder / "own.py").write_text("from simulators.gaussian_linear import GaussianLinear\n")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    asked = ["--simulator", "own:GaussianLinear", "--at", folder / "x.txt", "--draws", 50, "--overwrite"]
    asked += ["--quantities", "mine:QUANTITIES"]
    code = command(
        "calibrate", folder / "run" / "posterior.safetensors", folder / "fresh.h5", "-o", folder / "again", *asked
    )
    report = json.loads((folder / "again" / "report.json").read_text())
    assert set(report["predictions"]) == {f"replication, component {k}" for k in (1, 2, 3)}
    assert set(report["quantities"]) == {"sum"}
    assert len(report["local"]) == 1
    passed = report["calibrated"] and report["local"][0] >= report["level"]
    assert code == (0 if passed else 1)
    told = capsys.readouterr().out
    assert "replication, component 1" in told
    assert "at observation 1: p = " in told


def test_calibrate_on_the_training_file_and_its_extension_uses_held_out_rows_only(job, tmp_path, capsys):
    folder, _ = job
    command("simulate", "gaussian_linear", "-n", 460, "-o", folder / "longer.h5", "--shard-rows", 150)
    command("calibrate", folder / "run" / "posterior.safetensors", folder / "longer.h5", "-o", tmp_path, "--draws", 20)
    assert json.loads((tmp_path / "report.json").read_text())["rows"] == 20 + 60


def test_the_same_command_gives_the_same_draws(job, tmp_path):
    folder, _ = job
    model = folder / "run" / "posterior.safetensors"
    for name, seed in (("a", 3), ("b", 4)):
        command("sample", model, folder / "x.txt", "-n", 500, "-o", tmp_path / f"{name}.h5", "--seed", seed)
    first = Samples.load(folder / "samples.h5").array
    np.testing.assert_array_equal(Samples.load(tmp_path / "a.h5").array, first)
    assert not np.array_equal(Samples.load(tmp_path / "b.h5").array, first)


@pytest.mark.parametrize("suffix", ["txt", "npy", "csv", "npz", "h5"])
def test_an_observation_gives_the_same_draws_from_any_format(job, tmp_path, suffix):
    folder, _ = job
    data = Simulations.open(folder / "fresh.h5")
    x = data.x(np.array([7]))["x"][0]
    path, row = tmp_path / f"x.{suffix}", []
    if suffix == "npy":
        np.save(path, x)
    elif suffix == "npz":
        np.savez(path, x=x)
    elif suffix == "h5":
        path, row = folder / "fresh.h5", ["--row", 7]
    else:
        np.savetxt(path, x, delimiter="," if suffix == "csv" else " ")
    model = folder / "run" / "posterior.safetensors"
    command("sample", model, path, "-n", 30, "-o", tmp_path / "s.h5", "--seed", 1, *row)
    expected = load(model).sample(30, x, seed=1).array
    np.testing.assert_array_equal(Samples.load(tmp_path / "s.h5").array, expected)


def test_an_observation_is_hdf5_by_what_it_holds_whatever_its_name(job, tmp_path):
    folder, _ = job
    shutil.copy(folder / "fresh.h5", tmp_path / "fresh.nc")
    model = folder / "run" / "posterior.safetensors"
    for path in (folder / "fresh.h5", tmp_path / "fresh.nc"):
        assert (
            command("sample", model, path, "--row", 7, "-n", 30, "-o", tmp_path / f"{path.name}.out", "--seed", 1) == 0
        )
    draws = [Samples.load(tmp_path / f"fresh.{suffix}.out").array for suffix in ("h5", "nc")]
    np.testing.assert_array_equal(*draws)


def test_a_corner_plot_is_drawn_when_asked(job, tmp_path):
    folder, _ = job
    command("simulate", "gaussian_linear", "-n", 200, "-o", tmp_path / "s.h5")
    small = ["--config", folder / "small.toml", "--parameters", "theta_2,theta_5"]
    command("train", tmp_path / "s.h5", "-o", tmp_path / "run", *small)
    model = tmp_path / "run" / "posterior.safetensors"
    words = ["-n", 400, "-o", tmp_path / "draws.h5", "--corner", tmp_path / "c.png"]
    assert command("sample", model, folder / "x.txt", *words) == 0
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert Samples.load(tmp_path / "draws.h5").names == ["theta_2", "theta_5"]
    np.save(tmp_path / "one.npy", np.loadtxt(folder / "x.txt")[None])
    assert command("sample", model, tmp_path / "one.npy", "--overwrite", *words[:-1], tmp_path / "d.png") == 0
    assert Samples.load(tmp_path / "draws.h5").array.shape == (1, 400, 2)
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")


def test_a_label_that_no_figure_can_show_is_told_before_the_draws(job, tmp_path, capsys):
    folder, _ = job
    theta = np.random.default_rng(0).uniform(size=(200, 1))
    prior = Prior([Parameter("a", Uniform(0, 1), label=r"\omga")])
    Simulations.from_arrays(theta, {"x": theta}, prior=prior).save(tmp_path / "s.h5")
    assert command("train", tmp_path / "s.h5", "-o", tmp_path / "run", "--config", folder / "small.toml") == 0
    model, x = tmp_path / "run" / "posterior.safetensors", tmp_path / "x.txt"
    x.write_text("0.5")
    assert command("sample", model, x, "-o", tmp_path / "d.h5", "--corner", tmp_path / "c.png") == 2
    assert r"label '$\\omga$' is no LaTeX" in capsys.readouterr().err
    assert not (tmp_path / "d.h5").exists()


def test_inspect_tells_what_each_kind_of_file_holds(job, capsys):
    folder, _ = job
    with h5py.File(folder / "sims.h5") as file:
        assert file["theta"].shape == (400, 10)
    told = {}
    for name in ("sims.h5", "run/posterior.safetensors", "samples.h5"):
        capsys.readouterr()
        assert command("inspect", folder / name) == 0
        told[name] = capsys.readouterr().out
    for words in ("400 simulations, 0 failed", "gaussian_linear", "theta_10", "x/x", "(400, 10)", "float32"):
        assert words in told["sims.h5"]
    for words in ("posterior of theta_1,", "flow", "'transforms': 1", "best_validation_loss", "fingerprint"):
        assert words in told["run/posterior.safetensors"]
    for words in ("draws (500, 10)", "theta_10", "median"):
        assert words in told["samples.h5"]


def test_inspect_shows_the_tree_of_a_file_of_others(tmp_path, capsys):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["maps/kappa"], file["theta"] = np.zeros((60, 4, 4), "f4"), np.arange(120.0).reshape(60, 2)
    assert command("inspect", tmp_path / "a.h5") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("a.h5: HDF5, not written by sbi_dgm, so without checksums of ours")
    assert lines[1:4] == [
        "  maps/",
        "    kappa              (60, 4, 4) float32, contiguous",
        "  theta              (60, 2) float64, contiguous",
    ]
    assert lines[-1] == f"  sbi-dgm train {tmp_path}/a.h5 --theta theta --x maps/kappa -o run"


def test_workers_change_nothing_but_the_time(job, tmp_path):
    folder, _ = job
    command("simulate", "gaussian_linear", "-n", 400, "-o", tmp_path / "a.h5", "--shard-rows", 150, "--workers", 2)
    a, b = Simulations.open(tmp_path / "a.h5"), Simulations.open(folder / "sims.h5")
    assert all(np.array_equal(a.columns[name][:], b.columns[name][:]) for name in b.columns)


def config(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--set", "training.batch_size=64"], {"name": "flow", "transforms": 1, "hidden": 8, "batch_size": 64}),
        (["--set", "estimator.transforms=2"], {"name": "flow", "transforms": 2, "hidden": 8, "batch_size": 128}),
        (["--set", "estimator.map=affine"], {"map": "affine", "transforms": 1}),
        (["--set", "training.max_rounds=1", "--set", "training.max_rounds=2"], {"max_rounds": 2, "transforms": 1}),
        (["--set", "split.seed=7", "--set", "embedding.name=mlp"], {"split": 7, "embedding": "mlp"}),
    ],
)
def test_words_rule_over_the_file_of_settings(job, tmp_path, words, found):
    folder, _ = job
    command("train", folder / "sims.h5", "-o", tmp_path, "--config", folder / "small.toml", *words)
    made = config(tmp_path)
    values = made["estimator"]["options"] | made["training"]
    values |= {
        "name": made["estimator"]["name"],
        "split": made["split"]["seed"],
        "embedding": made["embedding"]["name"],
    }
    assert {key: values[key] for key in found} == found


def test_the_estimators_name_rules_over_words_and_file(job, tmp_path):
    folder, _ = job
    (tmp_path / "l.toml").write_text('[estimator.of]\nname = "flow"\ntransforms = 1\nhidden = 8\n')
    words = ["--estimator", "located", "--set", "training.max_rounds=1", "--set", "estimator.name=flow"]
    command("train", folder / "sims.h5", "-o", tmp_path / "run", "--config", tmp_path / "l.toml", *words)
    made = config(tmp_path / "run")["estimator"]
    assert made["name"] == "located"
    assert made["options"]["of"]["options"]["transforms"] == 1


def stopped(monkeypatch, saves):
    """Let training be interrupted right after so many checkpoints, one a round."""
    save, left = checkpoints.save, [saves]

    def then_stop(*arguments):
        save(*arguments)
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "save", then_stop)


@pytest.mark.parametrize("saves", [1, 3])
def test_an_interrupted_training_resumes_to_the_same_weights(job, tmp_path, monkeypatch, capsys, saves):
    folder, _ = job
    words = ["train", folder / "sims.h5", "-o", tmp_path, "--config", folder / "small.toml", "--device", "cpu"]
    with monkeypatch.context() as patch:
        stopped(patch, saves)
        assert command(*words) == 130
    assert "--resume" in capsys.readouterr().err
    assert not (tmp_path / "posterior.safetensors").exists()
    assert command(*words) == 2
    assert "unfinished run" in capsys.readouterr().err
    assert command(*words, "--resume") == 0
    whole, resumed = (load_file(f / "posterior.safetensors") for f in (folder / "run", tmp_path))
    assert all((whole[name] == resumed[name]).all() for name in whole)


def test_a_run_is_resumed_only_as_it_was(job, tmp_path, monkeypatch, capsys):
    folder, _ = job
    words = ["train", folder / "sims.h5", "-o", tmp_path, "--config", folder / "small.toml"]
    with monkeypatch.context() as patch:
        stopped(patch, 1)
        command(*words)
    for change in (["--seed", "1"], ["--set", "training.batch_size=64"], ["--set", "estimator.hidden=9"]):
        capsys.readouterr()
        assert command(*words, "--resume", *change) == 2
        assert "resume as it was" in capsys.readouterr().err
    other = ["train", folder / "fresh.h5", *words[2:], "--resume"]
    assert command(*other) == 2
    assert "other simulations" in capsys.readouterr().err


def test_debug_shows_where_an_error_comes_from():
    with pytest.raises(cli.SbiError, match="nothing"):
        command("inspect", "nothing", "--debug")
    with pytest.raises(cli.SbiError, match="nothing"):
        command("--debug", "inspect", "nothing")


@pytest.mark.parametrize("name", ["", *cli.COMMANDS])
def test_help_is_given_for_every_command(name, capsys):
    with pytest.raises(SystemExit) as end:
        command(*name.split(), "--help")
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "usage: sbi-dgm" in text
    assert all(other in text for other in cli.COMMANDS) or name


def test_help_tells_defaults_once_and_none_of_flags(capsys):
    with pytest.raises(SystemExit):
        command("sample", "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "draws (default: 10000)" in text
    assert "of all random numbers (default: 0)" in text
    assert text.count("(default: 10000)") == 2  # of -n, and of --effective, which says so itself
    assert not any(f"(default: {word})" in text for word in ("False", "None", "[]"))


def test_the_module_is_the_command(tmp_path):
    words = [sys.executable, "-m", "sbi_dgm", "simulate", "two_moons", "-n", "0", "-o", "a.h5"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "sbi-dgm: n = 0: a whole number, at least 1, is needed.\n"
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_leaves_warnings_as_they_were(capsys):
    before = warnings.showwarning
    assert cli.main(["inspect", "nowhere.h5"]) == 2
    assert warnings.showwarning is before
