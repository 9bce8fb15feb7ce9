"""Runs that end at a time limit and go on, the status line's time left, and curves for TensorBoard."""

import math
import subprocess
import sys
import threading

import pytest
from test_cli import SMALL, command
from training_toys import BRIEF, check_same, curve, fit

from sbi_dgm import loop
from sbi_dgm.errors import FileError, OptionError, TimeLimitError
from sbi_dgm.files import held
from sbi_dgm.loop import Progress, Run


class Clock:
    """A clock that a round of training moves on by ten seconds."""

    def __init__(self, monkeypatch) -> None:
        self.now, original = 0.0, Run._round

        def turn(run, bar):
            self.now += 10.0
            return original(run, bar)

        monkeypatch.setattr(loop.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(Run, "_round", turn)


def test_it_ends_before_a_round_that_would_exceed_the_limit_and_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        clock = Clock(patch)
        with pytest.raises(TimeLimitError, match=r"after 00:35 at step 15.*--resume"):
            fit(out=tmp_path / "run", max_time=35.0)
        assert clock.now == 30.0
    assert not (tmp_path / "run" / "posterior.safetensors").exists()
    assert len(curve(tmp_path / "run")) == 3
    whole = fit(out=tmp_path / "whole")
    check_same(fit(out=tmp_path / "run", resume=True), whole)


def test_the_limit_counts_for_each_call_anew(tmp_path, monkeypatch):
    Clock(monkeypatch)
    for steps in (10, 20):
        with pytest.raises(TimeLimitError, match=f"at step {steps}"):
            fit(out=tmp_path / "run", resume=True, max_time=25.0)


def test_enough_time_changes_nothing(tmp_path):
    check_same(fit(out=tmp_path / "a", max_time=3600.0), fit(out=tmp_path / "b"))


@pytest.mark.parametrize("asked", [{"max_time": 60.0}, {"tensorboard": True}])
def test_what_needs_a_folder_says_so(asked):
    with pytest.raises(OptionError, match=r"out="):
        fit(**asked)


def left(**at) -> int:
    run = Run.__new__(Run)
    run.at, run.training, run.round = Progress(**at), BRIEF, 5
    return run._left()


def test_the_time_left_is_that_of_a_run_that_improves_no_more():
    """Patience 3 rounds of 5 steps after the best, then half as many steps as led there."""
    assert left(step=100, best_step=100) == 15 + 50
    assert left(step=110, best_step=100) == 5 + 50
    assert left(step=100, phase="decay", decay_from=90, decay_to=135) == 35


def test_the_status_line_says_rate_losses_and_time_left(capfd):
    fit(progress=True)
    line = capfd.readouterr().err.split("\r")[-1]
    assert all(word in line for word in ("step/s", "loss", "validation", "best", "left"))


def test_tensorboard_gets_the_history(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(out=tmp_path / "run", tensorboard=True)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    rows = [row for row in curve(tmp_path / "run") if row["phase"] == "plateau"]
    for name in ("loss", "validation", "learning_rate"):
        found = [(event.step, event.value) for event in events.Scalars(f"{name}/plateau")]
        assert [step for step, _ in found] == [int(row["step"]) for row in rows]
        for (_, value), row in zip(found, rows, strict=True):
            assert math.isclose(value, float(row[name]), rel_tol=1e-6)


def test_the_command_ends_with_code_three_and_goes_on(tmp_path, capsys):
    (tmp_path / "small.toml").write_text(SMALL)
    command("simulate", "gaussian_linear", "-n", 400, "-o", tmp_path / "sims.h5")
    words = [
        "train",
        tmp_path / "sims.h5",
        "-o",
        tmp_path / "run",
        "--config",
        tmp_path / "small.toml",
        "--device",
        "cpu",
    ]
    assert command(*words, "--max-time", "0.000001s") == 3
    assert command(*words, "--resume", "--max-time", "2h") == 0
    for wrong in ("soon", "-3m", "0", "2w", "inf"):
        assert command(*words, "--overwrite", f"--max-time={wrong}") == 2
        assert "2h" in capsys.readouterr().err


def test_curves_leave_no_thread_behind(tmp_path):
    pytest.importorskip("tensorboard")
    before = set(threading.enumerate())
    for name in ("a", "b"):
        fit(training=BRIEF, out=tmp_path / name, tensorboard=True)
    assert set(threading.enumerate()) <= before


def test_bars_leave_the_process_as_it_was():
    """tqdm's own start a thread, and a lock that fixes how processes begin."""
    code = (
        "import multiprocessing, threading\nfrom {module} import {name}\n"
        "for shown in (True, False):\n    list({name}(range(3), disable=shown))\n"
        "{name}.write('said')\nmultiprocessing.set_start_method('spawn')\nassert threading.active_count() == 1\n"
    )

    def ends_well(**of):
        return not subprocess.run(
            [sys.executable, "-c", code.format(**of)], capture_output=True, check=False
        ).returncode

    assert ends_well(module="sbi_dgm.progress", name="Bar")
    assert not ends_well(module="tqdm", name="tqdm")


def test_one_folder_has_one_run_at_a_time(tmp_path):
    with held(tmp_path / "run"), pytest.raises(FileError, match="is being written by another process"):
        fit(training=BRIEF, out=tmp_path / "run")
    fit(training=BRIEF, out=tmp_path / "run")
