"""A benchmark measures what it says: exact posteriors pass, wrong ones score as known, failures are red cells."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import benchmark_toys as toys
import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from sbi_dgm import Flow, Simulations, Suite, Training, run_benchmark
from sbi_dgm.benchmark import cells, page
from sbi_dgm.benchmark.methods import Called, Fitted, method
from sbi_dgm.benchmark.table import Results, gathered
from sbi_dgm.benchmark.tasks import observed, references, stream
from sbi_dgm.cli import main
from sbi_dgm.config import suite
from sbi_dgm.errors import FileError, OptionError
from sbi_dgm.executors import Pool
from sbi_dgm.seeds import numpy_generator
from simulators.two_moons import TwoMoons

BRIEF = Training(batch_size=32, round=5, patience=2, max_rounds=3, warmup=5)
SMALL = Fitted("small", {"estimator": Flow(transforms=1, hidden=8), "training": BRIEF})
DRAWS = 1500


def line(**given) -> Suite:
    return Suite(
        **{"tasks": [toys.Line()], "estimators": [toys.exact], "observations": "1-2", "draws": DRAWS, "truths": 400}
        | given
    )


def run(folder, chosen=None, **given):
    return run_benchmark(chosen or line(), out=folder, progress=False, **given)


def only(results, **key):
    rows = results.table()
    for name, value in key.items():
        rows = rows[rows[name] == value]
    (row,) = rows.to_dict("records")
    return row


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Methods that know the answer, and by how much they are wrong."""
    chosen = line(estimators=[toys.exact, toys.narrow, toys.shifted, toys.silent], seeds="0,1")
    return run(tmp_path_factory.mktemp("scored"), chosen)


# What is measured


def test_the_exact_posterior_scores_perfectly(scored):
    row = only(scored, method="exact")
    noise = (0.25 / (2 * DRAWS)) ** 0.5  # of one C2ST; seeds share the exact draws
    unequal = (2 / np.pi * 0.25 / (2 * DRAWS / 5)) ** 0.5  # a fold that trains on more of one kind is tested on fewer
    assert 0.5 - unequal - 3 * noise < row["c2st"] < 0.5 + 3 * noise
    assert abs(row["width"] - 1) < 4 * (1 / DRAWS / 4) ** 0.5
    assert row["mean_error"] < 4 * (2 / DRAWS) ** 0.5
    assert abs(row["kl"]) < 1e-12
    assert row["calibration_error"] < 2.5 * 0.41 / (400) ** 0.5
    expected = -0.5 * np.log(np.pi * np.e)  # minus the entropy of N(x / 2, 1 / 2)
    assert abs(row["expected_log_prob"] - expected) < 4 * 0.5**0.5 / 800**0.5
    assert row["drawn_distinct"] == row["reference_effective"] == DRAWS


def test_wrong_posteriors_score_as_theory_says(scored):
    """The best classifier of two normals is right with probability (1 + total variation) / 2."""
    shifted, narrow = only(scored, method="shifted"), only(scored, method="narrow")
    crossing = np.sqrt(2 * np.log(2) / 3)  # where the densities of sd 1 and 1 / 2 cross
    variation = 2 * (norm.cdf(2 * crossing) - norm.cdf(crossing))
    assert abs(shifted["c2st"] - norm.cdf(0.5)) < 0.02
    assert abs(narrow["c2st"] - (1 + variation) / 2) < 0.02
    assert abs(narrow["width"] - 0.5) < 0.03
    assert abs(shifted["mean_error"] - 1) < 0.1
    assert abs(shifted["kl"] - 0.5) < 0.15
    assert narrow["calibration_error"] > 0.05
    assert narrow["expected_log_prob"] < only(scored, method="exact")["expected_log_prob"] - 0.3


def test_a_method_without_a_density_is_scored_by_its_draws(scored):
    row = only(scored, method="silent")
    assert abs(row["c2st"] - 0.5) < 0.03
    assert np.isnan(row["kl"])
    assert np.isnan(row["expected_log_prob"])


def test_observations_may_be_several_arrays(tmp_path):
    row = only(run(tmp_path, line(tasks=[toys.Pair()], estimators=[toys.exact, toys.shifted])), method="exact")
    assert abs(row["c2st"] - 0.5) < 0.03
    assert abs(row["kl"]) < 1e-6


def test_our_own_estimators_are_trained_on_the_budget_and_only_once(tmp_path):
    chosen = line(tasks=["two_moons"], estimators=[SMALL], budgets=[300], observations="1,12", truths=0)
    results = run(tmp_path, chosen)
    assert not results.failed
    (data,) = (tmp_path / "simulations").glob("*.h5")
    assert len(Simulations.open(data)) == 300
    (trained,) = (tmp_path / "runs").glob("*/members/0/posterior.safetensors")
    before = trained.stat().st_mtime_ns
    again = run(tmp_path, chosen.model_copy(update={"draws": 500}))
    assert trained.stat().st_mtime_ns == before
    assert len(again.scores()) == 2


# Observations


def test_published_observations_come_first_and_fresh_ones_follow():
    task = TwoMoons()
    at = observed(task, (2, 10, 11))
    np.testing.assert_array_equal(at.x["x"][:2], task.observations[[1, 9]])
    np.testing.assert_array_equal(at.theta[:2], task.true_parameters[[1, 9]])
    alone = observed(task, (11,))
    np.testing.assert_array_equal(at.x["x"][2], alone.x["x"][0])
    assert not np.array_equal(alone.x["x"], observed(task, (12,)).x["x"])
    with pytest.raises(OptionError, match="counted from 1"):
        observed(task, (0,))


def shared(draw):
    """How many theta of the benchmark stand among those that a seed trains on."""
    task = TwoMoons()
    trained = [task.prior.draw(1000, numpy_generator(seed, shard)) for seed in (0, 1) for shard in range(13)]
    return np.isin(np.concatenate([draw(task, k) for k in (2, 11)])[:, 0], np.concatenate(trained)[:, 0]).sum()


def test_judging_shares_no_random_numbers_with_training():
    assert shared(lambda task, k: task.prior.draw(5, stream(k, seed=1))) == 0
    assert shared(lambda task, k: observed(task, (k + 9,)).theta) == 0
    assert shared(lambda task, k: task.prior.draw(5, numpy_generator(1, k))) > 0  # the streams of shards


def test_reference_draws_are_kept_and_belong_to_their_observation(tmp_path):
    task = toys.Line()
    first = references(task, observed(task, (1, 2)), 200, tmp_path)
    np.testing.assert_array_equal(references(task, observed(task, (2,)), 200, tmp_path)[0], first[1])
    assert len(list(tmp_path.iterdir())) == 2
    references(task, observed(task, (2,)), 100, tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


# Cells


def test_a_failure_is_one_red_cell_and_is_tried_again(tmp_path):
    chosen = line(tasks=[toys.Line(), toys.Broken()], estimators=[toys.exact, toys.crashes], scores=["c2st"])
    results = run(tmp_path, chosen)
    failed = {(cell["task"], cell["method"]): cell["error"] for cell in results.failed}
    assert set(failed) == {("line", "crashes"), ("broken", "exact"), ("broken", "crashes")}
    assert failed["line", "crashes"] == "ValueError: no posterior from 1000 simulations"
    assert "(1499, 1)" in failed["broken", "exact"]
    assert "FAILED" in (tmp_path / "table.md").read_text()
    assert 'class="failed"' in (tmp_path / "index.html").read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toys.Broken, "reference_posterior", toys.Line.reference_posterior)
        assert {cell["method"] for cell in run(tmp_path, chosen).failed} == {"crashes"}


def test_a_cell_that_another_run_has_measured_meanwhile_is_not_measured_again(tmp_path):
    (cell,) = line(scores=["c2st"], draws=200).cells()
    first = cells.run(cell, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "_measured", lambda *_: pytest.fail("measured again"))
        assert cells.run(cell, tmp_path) == first


def test_a_process_that_dies_is_one_red_cell(tmp_path):
    with pytest.warns(UserWarning, match="a worker died"):
        results = run(tmp_path, line(estimators=[toys.exact, toys.dies], scores=["c2st"]), workers=2)
    assert [cell["method"] for cell in results.failed] == ["dies"]
    assert "died" in results.failed[0]["error"]


def test_a_method_that_no_other_process_can_have_is_refused_before_anything_runs(tmp_path):
    chosen = line(estimators=[toys.exact, lambda theta, x: None])
    with pytest.raises(OptionError, match="<lambda> cannot be sent to other processes"):
        run(tmp_path, chosen, workers=2)
    assert not (tmp_path / "cells").exists()


def test_any_number_of_workers_gives_the_same_table_and_so_does_the_same_call_again(tmp_path):
    chosen = line(estimators=[toys.exact, SMALL], budgets=[200], seeds=[0, 1], truths=50, scores=["c2st", "log_prob"])
    one, two = run(tmp_path / "one", chosen), run(tmp_path / "two", chosen, workers=2)
    with Pool(1) as pool:
        three = run(tmp_path / "three", chosen, executor=pool)
    kept = (tmp_path / "one" / "table.csv").read_bytes()
    for other in (two, three):
        pd.testing.assert_frame_equal(other.scores(), one.scores())
        pd.testing.assert_frame_equal(timeless(other), timeless(one))
    run(tmp_path / "one", chosen)
    assert (tmp_path / "one" / "table.csv").read_bytes() == kept


def timeless(results: Results) -> pd.DataFrame:
    table = results.table()
    return table[[name for name in table if not name.endswith("_seconds")]]


def test_a_killed_run_goes_on_and_ends_as_an_uninterrupted_one(tmp_path):
    words = ["--tasks", "benchmark_toys:Line", "--estimators", "benchmark_toys:slow", "--seeds", "0-4"]
    words += ["--observations", "1-2", "--draws", "500", "--scores", "c2st,width", "-o"]
    process = launched(words, tmp_path / "killed")
    deadline = time.monotonic() + 60
    while len(list((tmp_path / "killed").glob("cells/[!.]*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed" / "cells").glob("[!.]*.json")}
    assert 2 <= len(done) < 5
    assert launched(words, tmp_path / "killed").wait() == 0
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert launched(words, tmp_path / "whole").wait() == 0
    pd.testing.assert_frame_equal(timeless(gathered(tmp_path / "killed")), timeless(gathered(tmp_path / "whole")))
    assert (tmp_path / "killed" / "scores.csv").read_bytes() == (tmp_path / "whole" / "scores.csv").read_bytes()


def launched(words: list[str], out: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "sbi_dgm", "benchmark", *words, str(out)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=Path(__file__).parent, env={**os.environ, "OMP_NUM_THREADS": "1"}, **quiet)


def test_other_settings_are_other_cells(tmp_path):
    chosen = line(scores=["c2st"])
    run(tmp_path, chosen)
    run(tmp_path, line(scores=["c2st"], observations="1"))
    run(tmp_path, line(scores=["c2st"], draws=500))
    assert len(list((tmp_path / "cells").iterdir())) == 3
    (cell, *_) = (json.loads(path.read_text()) for path in (tmp_path / "cells").iterdir())
    assert cell["simulations"] == 1000
    assert set(cell["versions"]) >= {"torch", "numpy", "sbi_dgm"}
    assert set(cell["seconds"]) == {"simulate", "train", "reference", "sample", "score"}


# Tables


def cell(task="slcp", name="flow", budget=1000, seed=0, c2st=(0.8, 0.9, 1.0), **more):
    found = {"task": task, "method": name, "budget": budget, "seed": seed, "observations": [1, 2, 3], "draws": 10_000}
    return found | {"scores": {"c2st": list(c2st)}, "truths": {}, "seconds": {"train": 10.0}} | more


def test_means_medians_and_standard_errors():
    results = Results([cell(), cell(seed=1, c2st=(0.6, 0.6, 0.9)), cell(budget=10_000)])
    first, second = results.table().to_dict("records")
    assert first["c2st"] == pytest.approx((0.9 + 0.7) / 2)
    assert first["c2st_median"] == pytest.approx((0.9 + 0.6) / 2)
    assert first["c2st_error"] == pytest.approx(np.std([0.9, 0.7], ddof=1) / 2**0.5)
    assert first["seeds"] == 2
    assert np.isnan(second["c2st_error"])
    assert (first["published NPE"], second["published sequential"]) == (0.975, 0.713)


def test_failed_seeds_are_told_and_the_others_count():
    bad = {"task": "slcp", "method": "flow", "budget": 1000, "seed": 1, "error": "too bad"}
    (row,) = Results([cell(), bad]).table().to_dict("records")
    assert (row["seeds"], row["error"]) == (1, "too bad")
    assert row["c2st"] == pytest.approx(0.9)
    (entry,) = Results([cell(), bad]).summary()["entries"]
    assert (entry["seeds"], entry["c2st"]) == ([0], [0.9])


def test_a_method_called_like_a_published_one_keeps_its_own_figures():
    (row,) = page.grid(Results([cell(name="npe_sbibm")]).table()).to_dict("records")
    assert (row["npe_sbibm"], row["published NPE"]) == ("0.900 (0.900)", "0.975")


def test_published_figures_are_not_set_beside_scores_of_fewer_draws(tmp_path):
    results = Results([cell(draws=2000)])
    assert results.table()["published NPE"].isna().all()
    assert list(page.grid(results.table())) == ["task", "budget", "flow"]
    results.save(tmp_path)


def test_the_page_holds_its_numbers_and_escapes_what_is_foreign(tmp_path):
    Results([cell(), cell(name="<b>mine</b>", c2st=(0.51, 0.52, 0.53))]).save(tmp_path)
    text = (tmp_path / "index.html").read_text()
    assert "0.520 (0.520)" in text
    assert "&lt;b&gt;mine" in text
    assert "<b>mine" not in text
    assert "data:image/png;base64," in text
    assert "| slcp | 1000 | 0.900 (0.900) |" in (tmp_path / "table.md").read_text()


# Suites and methods


def test_suites_from_names_files_and_words(tmp_path):
    standard = suite("standard", {})
    assert (len(standard.tasks), standard.budgets, standard.observations) == (10, (1000, 10_000), tuple(range(1, 11)))
    assert len(standard.cells()) == 40
    path = tmp_path / "mine.toml"
    path.write_text(
        'tasks = ["slcp"]\nestimators = ["flow", "wide"]\n'
        "[methods.wide]\nmembers = 4\n"
        '[methods.wide.estimator]\nname = "flow"\nhidden = 32\n[methods.wide.training]\nbatch_size = 64\n'
    )
    chosen = suite(str(path), {"budgets": "100,200", "draws": None})
    wide = next(cell.method for cell in chosen.cells() if cell.method.label == "wide")
    assert wide.describe()["estimator"]["options"]["hidden"] == 32
    assert wide.describe()["training"]["batch_size"] == 64
    assert wide.describe()["members"] == 4
    assert len(chosen.cells()) == 4
    path.write_text('tasks = ["slcp"]\n[methods.wide.trainig]\nx = 1\n')
    with pytest.raises(OptionError, match="did you mean 'training'"):
        suite(str(path), {})
    path.write_text('tasks = ["slcp"]\n[methods.many]\nmembers = 0\n')
    with pytest.raises(OptionError, match="members = 0: a whole number, at least 1"):
        suite(str(path), {})
    path.write_text('tasks = ["slcp"]\n[methods.many]\nrefine = "flow"\n')
    with pytest.raises(OptionError, match="give true or false"):
        suite(str(path), {})


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"tasks": ["two_mons"]}, "unknown simulator 'two_mons': did you mean 'two_moons'"),
        ({"tasks": ["benchmark_toys:exact"]}, "is no simulator"),
        ({"tasks": ["two_moons"], "estimators": ["flwo"]}, "unknown estimator 'flwo': did you mean 'flow'"),
        ({"tasks": ["two_moons"], "scores": ["c2s"]}, "unknown score 'c2s'"),
        ({"tasks": ["two_moons"], "scores": ["mmd"]}, "scores mmd: c2st is what tables are made of"),
        ({"tasks": ["two_moons"], "observations": "5-1"}, "'5-1': write numbers as 1-5,8"),
        ({"tasks": ["two_moons", "two_moons"]}, "stands twice"),
        ({"tasks": ["two_moons"], "budgets": ()}, "the suite is empty"),
        ({"tasks": ["two_moons"], "draws": 3}, "greater than or equal to 100"),
        ({"tasks": [type("Bare", (), {"name": "bare"})()]}, "is no simulator: it needs name, prior"),
        ({"tasks": ["jets"]}, "'jets' is no task of a benchmark: it needs reference_posterior"),
        ({"tasks": ["two_moons"], "estimators": [3]}, "3 is no method"),
    ],
)
def test_suites_that_cannot_be_run_are_refused_at_once(chosen, message):
    with pytest.raises(OptionError, match=message):
        Suite(**chosen).cells()


def test_a_benchmark_without_tasks_or_of_an_unknown_suite_is_refused(tmp_path):
    with pytest.raises(OptionError, match="needs tasks"):
        suite(None, {})
    with pytest.raises(OptionError, match="did you mean 'quick'"):
        suite("quik", {})
    (tmp_path / "bad.toml").write_text("tasks = [")
    with pytest.raises(FileError, match="is no TOML"):
        suite(str(tmp_path / "bad.toml"), {})


def test_methods_have_names_of_their_own():
    assert method(Flow(transforms=8)).label == "flow(transforms=8)"
    assert method("benchmark_toys:narrow").label == "benchmark_toys.narrow"
    assert method(toys.narrow).label == "narrow"
    assert isinstance(method(toys.narrow), Called)
    assert method("diffusion").describe() != method("flow").describe()


# The command line


def test_the_command_line_says_what_it_found_and_fails_where_a_cell_does(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)
    words = ["benchmark", "--tasks", "benchmark_toys:Line", "--observations", "1", "--draws", "300"]
    words += ["--scores", "c2st", "-o", str(tmp_path), "--estimators"]
    assert main([*words, "benchmark_toys:exact"]) == 0
    assert capsys.readouterr().out.split()[:4] == ["task", "budget", "benchmark_toys.exact", "line"]
    assert main([*words, "benchmark_toys:exact,benchmark_toys:crashes"]) == 1
    said = capsys.readouterr().out
    assert "FAILED: line benchmark_toys.crashes 1000 seed 0: ValueError" in said
    assert main([*words, "flwo"]) == 2
    assert "did you mean 'flow'" in capsys.readouterr().err
