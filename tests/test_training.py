"""The training loop: its schedule, its seeds, its files, and losses that are no numbers."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from training_toys import RUN_FILES, Own, check_same, curve, fit, history, simulations

import sbi_dgm
from sbi_dgm.errors import TrainingError
from sbi_dgm.estimators.flow import Flow
from sbi_dgm.loop import Progress, Run, Training
from sbi_dgm.posterior import Posterior


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Posterior, Path]:
    """An uninterrupted run and its folder."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return fit(out=folder), folder


def test_the_same_seed_gives_the_same_weights(whole):
    check_same(fit(), whole[0])
    with pytest.raises(AssertionError):
        check_same(fit(seed=1), whole[0])


def test_one_embedding_serves_two_runs_alike(whole):
    """The user's module is not changed by the first."""
    module = Own()
    check_same(fit(embedding=module), fit(embedding=module))
    check_same(fit(embedding=module), whole[0])


def test_global_random_state_is_neither_read_nor_changed(whole):
    embedding = Own()
    torch.manual_seed(123)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    check_same(fit(embedding=embedding), whole[0])
    assert torch.equal(before, torch.get_rng_state())
    assert (numpy_before == np.random.get_state()[1]).all()  # noqa: NPY002


def test_a_run_folder_holds_what_the_design_says(whole):
    posterior, folder = whole
    assert sorted(p.name for p in folder.iterdir()) == RUN_FILES
    config = json.loads((folder / "config.json").read_text())
    assert config["training"]["batch_size"] == 32
    assert config["estimator"]["options"]["hidden"] == 8
    check_same(sbi_dgm.load(folder / "posterior.safetensors", embedding=Own()), posterior)


def test_history_has_a_row_for_each_round(whole):
    rows = history(whole[1])
    assert {"step", "phase", "loss", "validation", "learning_rate", "seconds"} <= set(rows[0])
    assert all(np.isfinite(float(row["loss"])) and np.isfinite(float(row["validation"])) for row in rows)
    assert [row["phase"] for row in rows] == sorted((row["phase"] for row in rows), key=["plateau", "decay"].index)
    plateau = [int(row["step"]) for row in rows if row["phase"] == "plateau"]
    assert plateau == list(range(5, 5 * len(plateau) + 1, 5))


def check_schedule(rows: list[dict[str, str]], how: Training) -> None:
    """One step a round: the rate rises by equal steps, stays, and after the best point falls by equal steps to zero."""
    rates = {phase: [float(r["learning_rate"]) for r in rows if r["phase"] == phase] for phase in ("plateau", "decay")}
    rising = how.learning_rate * np.minimum(1, np.arange(1, len(rates["plateau"]) + 1) / how.warmup)
    assert rates["plateau"] == pytest.approx(rising)
    plateau = [float(r["validation"]) for r in rows if r["phase"] == "plateau"]
    best = int(np.argmin(plateau)) + 1
    fall = int(np.ceil(how.decay * best))
    falling = np.arange(fall, 0, -1) / fall
    warm = np.minimum(1, np.arange(best + 1, best + fall + 1) / how.warmup)
    assert rates["decay"] == pytest.approx(how.learning_rate * np.minimum(falling, warm))
    assert [int(r["step"]) for r in rows if r["phase"] == "decay"] == list(range(best + 1, best + fall + 1))


@pytest.mark.parametrize("max_rounds", [40, 1000], ids=["limit", "stall"])
def test_the_rate_warms_up_stays_and_falls_to_zero_from_the_best_point(tmp_path, max_rounds):
    how = Training(
        batch_size=64, round=1, warmup=8, patience=10, decay=0.5, learning_rate=0.05, ema=0.5, max_rounds=max_rounds
    )
    fit(out=tmp_path, training=how, embedding="auto")
    check_schedule(history(tmp_path), how)
    with pytest.raises(AssertionError):
        check_schedule(history(tmp_path), how.model_copy(update={"decay": 0.6}))


def test_the_rate_never_leaves_its_range():
    how = Training(warmup=10, learning_rate=1e-3)
    late = Progress(step=500, phase="decay", decay_from=400, decay_to=600)
    assert late.rate(how) == pytest.approx(0.5e-3)
    early = Progress(step=2, phase="decay", decay_from=2, decay_to=100)
    assert early.rate(how) == pytest.approx(0.3e-3)


def check_returned_is_best(posterior: Posterior, data: sbi_dgm.Simulations, rows: list[dict[str, str]]) -> None:
    """The mean loss on the validation rows, found from log_prob alone, is the smallest of the history."""
    held = data.split(sbi_dgm.SplitRule(**posterior.record["split"])).validation
    theta = data.theta[held]
    log_q = posterior.log_prob(theta, data.x(held)) - posterior.model.reference.coordinates.forward(theta)[1]
    assert -log_q.mean() == pytest.approx(min(float(row["validation"]) for row in rows), abs=1e-5)


def test_the_best_weights_by_validation_are_returned(tmp_path):
    data = simulations(150)
    how = Training(batch_size=64, round=10, patience=5, learning_rate=0.02, ema=0.9, warmup=5)
    posterior = fit(
        data, out=tmp_path, training=how, estimator=Flow(transforms=2, hidden=32, blocks=1), embedding="auto"
    )
    rows = history(tmp_path)
    assert float(rows[-1]["validation"]) > min(float(row["validation"]) for row in rows), "this run must overfit"
    check_returned_is_best(posterior, data, rows)
    with pytest.raises(AssertionError):
        check_returned_is_best(posterior, data, rows[-3:])


def test_the_record_says_how_it_was_trained(whole):
    record = whole[0].record
    best = min(history(whole[1]), key=lambda row: float(row["validation"]))
    assert record["best_validation_loss"] == pytest.approx(float(best["validation"]))
    assert record["best_step"] == int(best["step"])
    assert record["rows"] == {"train": 340, "validation": 40, "test": 20, "validated": 40}
    assert record["data"]["fingerprint"] == simulations().fingerprint()
    assert {"torch", "numpy", "nflows", "sbi_dgm"} <= set(record["versions"])


class Exploding(nn.Module):
    """Not a number, from some training step on; or only when it does not train."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.layer, self.after, self.calls = nn.Linear(3, 3), after, 0

    def forward(self, x):
        self.calls += self.training
        bad = self.calls > self.after if self.training else self.after < 0
        return self.layer(x) * (torch.nan if bad else 1.0)


def test_a_loss_that_is_no_number_ends_in_a_sentence(tmp_path):
    with pytest.raises(TrainingError, match=r"training loss is nan between steps 10 and 15.*learning_rate"):
        fit(embedding=Exploding(after=13), out=tmp_path / "run")
    assert not (tmp_path / "run" / "posterior.safetensors").exists()


def test_a_validation_loss_that_is_no_number_ends_in_a_sentence(monkeypatch):
    monkeypatch.setattr(Run, "validate", lambda self: float("nan"))
    with pytest.raises(TrainingError, match="validation loss is nan"):
        fit()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_compiled_steps_are_the_same_steps(tmp_path):
    """Up to rounding: the losses of a hundred steps agree (dropout aside, which draws other numbers)."""
    how = Training(batch_size=32, round=20, max_rounds=5, warmup=10, decay=0)
    flow = Flow(transforms=2, hidden=8, blocks=1)
    plain = fit(estimator=flow, embedding="auto", training=how, out=tmp_path / "plain")
    fused = how.model_copy(update={"compile": True})
    compiled = fit(estimator=flow, embedding="auto", training=fused, out=tmp_path / "compiled")
    losses = [[float(row["loss"]) for row in curve(tmp_path / name)] for name in ("plain", "compiled")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    assert losses[0][0] - losses[0][-1] > 0.1, "they learned"
    assert compiled.record["best_validation_loss"] == pytest.approx(plain.record["best_validation_loss"], abs=1e-3)
