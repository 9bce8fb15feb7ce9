"""The gate accuses a loss by name, and a run without one no more often than it says."""

import copy
import json
import math
from pathlib import Path

import benchmark_toys
import numpy as np
import pytest

from sbi_dgm.benchmark.gate import ALPHA, baseline, compare
from sbi_dgm.cli import main
from sbi_dgm.errors import FileError, OptionError

SPREAD = 0.02
KEYS = [("two_moons", "flow"), ("two_moons", "diffusion"), ("slcp", "flow"), ("slcp", "diffusion")]


def summary(rng, seeds, loss=0.0, spread=SPREAD):
    entries = [
        {"task": t, "method": m, "budget": 1000, "c2st": rng.normal(0.6 + loss * (t == "slcp"), spread, seeds).tolist()}
        for t, m in KEYS
    ]
    return {"format": "sbi_dgm/benchmark", "observations": [1, 2], "draws": 1000, "entries": entries}


def accused(seeds, loss=0.0, runs=2000, stored=5, **given):
    rng = np.random.default_rng(0)
    verdicts = [compare(summary(rng, seeds, loss), summary(rng, stored), **given) for _ in range(runs)]
    return [sum(v.lost for v in run) for run in verdicts]


def test_a_run_without_change_is_accused_as_rarely_as_promised():
    """At least one of four entries, by chance: at most ALPHA of the runs, and not much less."""
    for seeds in (1, 2):
        share, error = np.mean(np.array(accused(seeds)) > 0), (ALPHA / 2000) ** 0.5
        assert ALPHA / 3 < share < ALPHA + 3 * error


def test_a_gate_without_correction_would_accuse_too_often():
    share = np.mean(np.array(accused(2, alpha=4 * ALPHA)) > 0)
    assert share > ALPHA + 3 * (ALPHA / 2000) ** 0.5


def test_a_loss_is_seen_and_named():
    assert np.mean(np.array(accused(2, loss=5 * SPREAD, stored=10)) > 0) > 0.95
    rng = np.random.default_rng(1)
    verdicts = compare(summary(rng, 2, loss=0.3), summary(rng, 5))
    assert {v.key[0] for v in verdicts if v.lost} == {"slcp"}
    assert str(next(v for v in verdicts if v.lost)).startswith("LOST: slcp flow 1000: c2st 0.9")


def test_a_gain_is_no_loss_and_a_failed_cell_is_one():
    rng = np.random.default_rng(2)
    before, now = summary(rng, 5), summary(rng, 2, loss=-0.3)
    assert not any(v.lost for v in compare(now, before))
    now["entries"][0]["c2st"] = []
    (lost,) = [v for v in compare(now, before) if v.lost]
    assert lost.key[0] == "two_moons"
    assert math.isnan(lost.now)


def test_seeds_that_agree_by_chance_leave_the_noise_of_the_classifier():
    rng = np.random.default_rng(3)
    before = summary(rng, 5, spread=0.0)
    now = copy.deepcopy(before)
    for entry in now["entries"]:
        entry["c2st"] = [entry["c2st"][0] + 0.002]
    assert not any(v.lost for v in compare(now, before))


def test_what_cannot_be_compared_is_refused(tmp_path):
    rng = np.random.default_rng(4)
    now, before = summary(rng, 2), summary(rng, 5)
    with pytest.raises(OptionError, match="draws = 1000, this run 500"):
        compare(now | {"draws": 500}, before)
    with pytest.raises(OptionError, match="3 are needed"):
        compare(now, summary(rng, 2))
    with pytest.raises(OptionError, match="share no task"):
        compare(now | {"entries": []}, before)
    (tmp_path / "other.json").write_text('{"format": "something"}')
    (tmp_path / "broken.json").write_text("{")
    for name, message in (("other", "is no baseline"), ("broken", "no JSON can"), ("absent", "there is no file")):
        with pytest.raises(FileError, match=message):
            baseline(tmp_path / f"{name}.json")


def test_the_command_exits_with_one_on_a_loss_and_names_it(tmp_path, capsys, monkeypatch):
    """The method "exact" stored, and then replaced by one half as wide under the same name."""
    monkeypatch.chdir(Path(__file__).parent)
    words = ["benchmark", "--tasks", "benchmark_toys:Line", "--estimators", "benchmark_toys:exact", "--draws", "500"]
    words += ["--observations", "1-2", "--scores", "c2st"]
    assert main([*words, "--seeds", "0-3", "-o", str(tmp_path / "before")]) == 0
    against = ["--against", str(tmp_path / "before" / "summary.json"), "-o"]
    assert main([*words, "--seeds", "4", *against, str(tmp_path / "same")]) == 0
    assert "holds: line benchmark_toys.exact 1000" in capsys.readouterr().out
    monkeypatch.setattr(benchmark_toys, "exact", benchmark_toys.narrow)
    monkeypatch.setattr(benchmark_toys.narrow, "__name__", "exact")
    assert main([*words, "--seeds", "4", *against, str(tmp_path / "worse")]) == 1
    assert "LOST: line benchmark_toys.exact 1000: c2st 0.6" in capsys.readouterr().out
    content = json.loads((tmp_path / "before" / "summary.json").read_text())
    assert content["entries"][0]["seeds"] == [0, 1, 2, 3]
