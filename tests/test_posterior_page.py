"""What docs/posterior.md shows runs as it stands, by a short training; every prior of docs/data.md is what it says."""

import re
import tomllib

import numpy as np
import pytest
from pages import blocks, page
from scipy import stats

import sbi_dgm
from sbi_dgm import training
from sbi_dgm.cli import main
from sbi_dgm.distributions import DISTRIBUTIONS, as_distribution
from sbi_dgm.loop import Training
from sbi_dgm.priors import tabulated

PAGE = page("posterior.md")
BRIEF = Training(round=2, max_rounds=1, batch_size=64)
PRIOR = re.compile(r"^\| [^-|]*`(\w+\([^`]+)` \| `(\w+ = [^`]+)` \|", re.MULTILINE)
NUMBERS = {"low": 0.5, "high": 2.0, "mean": 1.0, "sd": 0.25, "a": 2.0, "b": 3.0}


@pytest.mark.filterwarnings("ignore")
def test_the_examples_run(monkeypatch, tmp_path):
    original = training.fit
    monkeypatch.setattr(
        training, "fit", lambda data, out: original(data, training=BRIEF, device="cpu", progress=False, out=out)
    )
    monkeypatch.chdir(tmp_path)
    known: dict = {}
    for block in blocks(PAGE, "python"):
        exec(compile(block, "docs/posterior.md", "exec"), known)
    assert known["stack"].array.shape == (2, 1000, 2)
    assert known["array"].shape == known["samples"].array.shape == (10_000, 2)
    np.testing.assert_array_equal(known["again"].array, known["samples"].array)
    np.savetxt("observed.csv", known["x"][None], delimiter=",")
    for line in "".join(blocks(PAGE, "sh")).splitlines():
        assert main([*line.split()[1:], "-n", "20"]) == 0


def test_the_priors_of_both_columns_are_the_same():
    """With numbers for the names, `Uniform(low, high)` is what `uniform = [low, high]` means."""
    found = PRIOR.findall(page("data.md"))
    assert len(found) == len(DISTRIBUTIONS) - 2 + 1  # all but the two for observables, and scipy's
    for python, toml in found:
        text = re.sub(r"\b(low|high|mean|sd|a|b)\b", lambda word: str(NUMBERS[word[0]]), toml)
        told = tabulated({"theta": tomllib.loads(text)})
        meant = eval(python, vars(stats) | {name: getattr(sbi_dgm, name) for name in sbi_dgm.__all__} | NUMBERS)
        at = told.sample(50, 0)[:, 0]
        np.testing.assert_allclose(told.log_prob(at[:, None]), as_distribution(meant).log_prob(at), rtol=1e-12)
