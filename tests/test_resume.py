"""Resuming: what survives an interruption, to the bit, and what is refused."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from training_toys import BRIEF, check_same, curve, fit, simulations

import sbi_dgm
from sbi_dgm import checkpoints, loop
from sbi_dgm.errors import FileError, TrainingError
from sbi_dgm.estimators.flow import Flow
from sbi_dgm.loop import Run
from sbi_dgm.posterior import Posterior


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Posterior, Path]:
    """An uninterrupted run and its folder."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return fit(out=folder), folder


def interrupt(monkeypatch, folder: Path, rounds: int, every: float = -1.0, **options) -> None:
    """A run that Ctrl-C stops after some rounds, with a checkpoint at each."""
    original, calls = Run.validate, []

    def validate(self):
        calls.append(1)
        if len(calls) > rounds:
            raise KeyboardInterrupt
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_SECONDS", every)
        patch.setattr(Run, "validate", validate)
        with pytest.raises(KeyboardInterrupt):
            fit(out=folder, **options)


@pytest.mark.parametrize("rounds", [0, 1, 4, 7], ids=["no checkpoint", "first", "plateau", "decay"])
def test_a_resumed_run_ends_with_the_same_weights(monkeypatch, tmp_path, whole, rounds):
    interrupt(monkeypatch, tmp_path / "run", rounds)
    assert not (tmp_path / "run" / "posterior.safetensors").exists()
    resumed = fit(out=tmp_path / "run", resume=True)
    check_same(resumed, whole[0])
    assert curve(tmp_path / "run") == curve(whole[1])


def test_a_run_interrupted_twice_ends_with_the_same_weights(monkeypatch, tmp_path, whole):
    interrupt(monkeypatch, tmp_path / "run", 2)
    interrupt(monkeypatch, tmp_path / "run", 3, resume=True)
    check_same(fit(out=tmp_path / "run", resume=True), whole[0])


def test_work_since_the_last_checkpoint_is_done_again_alike(monkeypatch, tmp_path, whole):
    """Where the last checkpoint is older than the interruption."""
    original, saves = Run.save, []

    def only_once(self, folder):
        saves.append(1)
        if len(saves) == 1:
            original(self, folder)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", only_once)
        interrupt(monkeypatch, tmp_path / "run", 5)
    check_same(fit(out=tmp_path / "run", resume=True), whole[0])
    assert curve(tmp_path / "run") == curve(whole[1])


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import training_toys
from sbi_dgm import loop, sealed

def save_file(tensors, path, metadata, count=[0]):
    count[0] += 1
    if count[0] == 4:
        path.write_bytes(b"half a checkpoint")
        os.kill(os.getpid(), signal.SIGKILL)
    original(tensors, path, metadata)

original, sealed.save_file, loop.CHECKPOINT_SECONDS = sealed.save_file, save_file, -1.0
training_toys.fit(out={out!r})
"""


def test_a_run_killed_while_it_writes_a_checkpoint_resumes_to_the_same_weights(tmp_path, whole):
    code = KILLED.format(tests=str(Path(__file__).parent), out=str(tmp_path / "run"))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert result.returncode == -signal.SIGKILL, result.stderr.decode()
    check_same(fit(out=tmp_path / "run", resume=True), whole[0])
    assert curve(tmp_path / "run") == curve(whole[1])


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.3, 1.0, 2.0])
def test_a_run_killed_at_any_moment_resumes_to_the_same_weights(tmp_path, whole, seconds):
    code = KILLED.replace("== 4", "== -1").format(tests=str(Path(__file__).parent), out=str(tmp_path / "run"))
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    while not (tmp_path / "run" / "config.json").exists():
        time.sleep(0.01)
    time.sleep(seconds)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    if not (tmp_path / "run" / "posterior.safetensors").exists():
        check_same(fit(out=tmp_path / "run", resume=True), whole[0])


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"seed": 1}, "seed"),
        ({"training": BRIEF.model_copy(update={"batch_size": 64})}, "training"),
        ({"estimator": Flow(transforms=3, hidden=8, blocks=1)}, "estimator"),
        ({"embedding": "auto"}, "embedding"),
        ({"parameters": ["a", "b"]}, "parameters"),
        ({"split": sbi_dgm.SplitRule(seed=5)}, "split"),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused_by_its_key(monkeypatch, tmp_path, changed, key):
    interrupt(monkeypatch, tmp_path / "run", 1)
    before = (tmp_path / "run" / "checkpoint").read_bytes()
    with pytest.raises(TrainingError, match=f"was started with {key} = "):
        fit(out=tmp_path / "run", resume=True, **changed)
    assert (tmp_path / "run" / "checkpoint").read_bytes() == before


def test_a_checkpoint_of_other_simulations_is_refused(monkeypatch, tmp_path):
    interrupt(monkeypatch, tmp_path / "run", 1)
    with pytest.raises(TrainingError, match="other simulations"):
        fit(simulations(seed=2), out=tmp_path / "run", resume=True)


def test_a_checkpoint_of_other_observables_of_the_same_parameters_is_refused(monkeypatch, tmp_path):
    """As of a simulator that was repaired; the same x in another precision go on."""
    interrupt(monkeypatch, tmp_path / "run", 1)
    data = simulations()
    x = data.x(np.arange(len(data)))["x"]
    other = sbi_dgm.Simulations.from_arrays(data.theta, {"x": -x}, prior=data.prior)
    with pytest.raises(TrainingError, match="other simulations"):
        fit(other, out=tmp_path / "run", resume=True)
    assert sbi_dgm.Simulations.from_arrays(data.theta, {"x": x.astype(np.float64)}).glimpse() == data.glimpse()
    assert other.glimpse() != data.glimpse()


def test_a_broken_checkpoint_is_refused_in_a_sentence(monkeypatch, tmp_path):
    interrupt(monkeypatch, tmp_path / "run", 1)
    content = (tmp_path / "run" / "checkpoint").read_bytes()
    (tmp_path / "run" / "checkpoint").write_bytes(content[: len(content) // 2])
    with pytest.raises(FileError, match=r"no readable checkpoint.*overwrite=True"):
        fit(out=tmp_path / "run", resume=True)


def test_a_folder_with_a_run_is_kept_unless_told(monkeypatch, tmp_path, whole):
    with pytest.raises(FileError, match="finished run"):
        fit(out=whole[1])
    with pytest.raises(FileError, match="finished run"):
        fit(out=whole[1], resume=True)
    interrupt(monkeypatch, tmp_path / "run", 4, seed=9)
    with pytest.raises(FileError, match="unfinished run"):
        fit(out=tmp_path / "run")
    check_same(fit(out=tmp_path / "run", overwrite=True), whole[0])
    assert curve(tmp_path / "run") == curve(whole[1])


def test_checkpoints_keep_every_bit(tmp_path):
    groups = {
        "a": {"w": torch.randn(3, generator=torch.Generator().manual_seed(0)).double()},
        "b": {"n": torch.ones(2).bool()},
    }
    checkpoints.save(tmp_path / "c", groups, {"step": 3, "best": float("inf")})
    loaded, note = checkpoints.load(tmp_path / "c", torch.device("cpu"))
    assert note == {"step": 3, "best": float("inf")}
    assert {k: set(v) for k, v in loaded.items()} == {"a": {"w"}, "b": {"n"}}
    assert torch.equal(loaded["a"]["w"], groups["a"]["w"])
    assert loaded["b"]["n"].dtype == torch.bool
