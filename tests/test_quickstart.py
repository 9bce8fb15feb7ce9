"""The whole job: quickstart, and the commands that it prints, which must do the same."""

import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sbi_dgm import Samples, Simulations, cli, loop, quickstart

MADE = {"simulations.h5", "run", "observed.txt", "samples.h5", "comparison.csv", "corner.png", "report"}


def follow(lines: list[str], folder: Path) -> None:
    commands = [shlex.split(line.replace(" my/", f" {folder}/")) for text in lines for line in text.splitlines()]
    steps = [words[1:] for words in commands if words and words[0] == "sbi-dgm"]
    assert [words[0] for words in steps] == ["simulate", "train", "sample", "calibrate"]
    assert [cli.main(words) for words in steps[:3]] == [0, 0, 0]
    assert cli.main(steps[3]) in (0, 1)


def check_same(ours: Path, steps: Path) -> None:
    assert (
        Simulations.open(ours / "simulations.h5").fingerprint()
        == Simulations.open(steps / "simulations.h5").fingerprint()
    )
    np.testing.assert_array_equal(Samples.load(ours / "samples.h5").array, Samples.load(steps / "samples.h5").array)
    assert (ours / "report/report.json").read_text() == (steps / "report/report.json").read_text()


def test_quickstart_makes_everything_and_its_commands_do_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart, "ROWS", 1200)
    monkeypatch.setattr(quickstart, "DRAWS", 500)
    monkeypatch.setattr(loop.Training.model_fields["max_rounds"], "default", 2)
    loop.Training.model_rebuild(force=True)
    lines: list[str] = []
    try:
        quickstart.quickstart(tmp_path / "q", say=lines.append)
        follow(lines, tmp_path / "steps")
    finally:
        monkeypatch.undo()
        loop.Training.model_rebuild(force=True)
    assert {path.name for path in (tmp_path / "q").iterdir()} == MADE
    check_same(tmp_path / "q", tmp_path / "steps")


def test_quickstart_replaces_only_what_it_made(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "thesis.tex").write_text("years of work")
    quickstart._clear(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.slow
def test_quickstart_agrees_with_the_exact_posterior(tmp_path):
    _, report = quickstart.quickstart(tmp_path / "q", say=print)
    table = pd.read_csv(tmp_path / "q/comparison.csv", index_col=0, header=[0, 1])
    assert (table["difference", "mean [sd]"].abs() <= 0.15).all()
    assert (table["difference", "sd ratio"].sub(1).abs() <= 0.15).all()
    assert table["prior", "edge reached"]["omega_m"] == "low"
    assert report.calibrated
