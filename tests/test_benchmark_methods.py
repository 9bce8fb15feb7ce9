"""Methods of a benchmark that share networks, posteriors refined by learned likelihoods, and what cells are told by."""

import json
from pathlib import Path
from types import SimpleNamespace

import benchmark_toys as toys
import numpy as np
from test_benchmark import BRIEF, SMALL, line, only, run

from sbi_dgm import Suite, recipe
from sbi_dgm.benchmark import cells
from sbi_dgm.benchmark.methods import Fitted, Refining
from sbi_dgm.benchmark.scores import at_truths
from sbi_dgm.config import suite
from sbi_dgm.parameters import Observable


def test_a_single_network_is_the_first_member_of_an_ensemble_and_refinement_takes_either(tmp_path):
    """flow, flow x 2 and the latter refined: two posteriors and two likelihoods are trained in all."""
    several = Fitted("two", {**SMALL.settings, "members": 2})
    likelihood = Fitted("likelihood", {"estimator": "auto", "learn": "likelihood", "members": 2, "training": BRIEF})
    refined = Refining("refined", several, likelihood)
    how = {"tasks": [toys.Line()], "budgets": [100], "observations": "1", "scores": ("c2st",), "truths": 0}
    results = run(tmp_path, line(**how, estimators=[SMALL, several, refined]))
    assert not results.failed
    assert len(list((tmp_path / "runs").glob("*/members/*/posterior.safetensors"))) == 2
    assert len(list((tmp_path / "runs").glob("*/members/*/likelihood.safetensors"))) == 2
    alone, both, whole = (only(results, method=name)["train_seconds"] for name in ("small", "two", "refined"))
    assert 0 <= alone <= both <= whole, "seconds of members and of both parts add up"


def test_methods_that_share_a_network_wait_for_each_other(tmp_path):
    """A network, an ensemble of it and the ensemble refined, all at once in three processes."""
    several = Fitted("two", {**SMALL.settings, "members": 2})
    likelihood = Fitted("likelihood", {"estimator": "auto", "learn": "likelihood", "training": BRIEF})
    methods = [several, SMALL, Refining("refined", several, likelihood)]
    how = {"tasks": [toys.Line()], "budgets": [100], "observations": "1", "scores": ("c2st",), "truths": 0}
    results = run(tmp_path, line(**how, estimators=methods), workers=3)
    assert not results.failed
    assert len(list((tmp_path / "runs").glob("*/members/*/posterior.safetensors"))) == 2


def test_a_refined_posterior_is_judged_by_its_draws_and_by_no_density(tmp_path):
    likelihood = Fitted("likelihood", {"estimator": "auto", "learn": "likelihood", "training": BRIEF})
    how = {"tasks": [toys.Line()], "budgets": [100], "observations": "1-2", "draws": 500, "truths": 2}
    row = only(run(tmp_path, line(**how, estimators=[Refining("refined", SMALL, likelihood)])))
    assert row["error"] == ""
    assert np.isfinite(row["calibration_error"])
    kept = json.loads(next((tmp_path / "cells").glob("*refined*.json")).read_text())
    assert kept["settings"]["power"] == "held-out"
    assert kept["pool"]["rows"] == 10
    assert {"kl", "log_prob", "expected_log_prob"}.isdisjoint(row)


def test_seconds_of_training_are_summed_over_members_and_parts():
    ensemble = {"seconds": 0.1, "members": [{"seconds": 2.0}, {"seconds": 3.0}]}
    assert cells.trained_for(ensemble) == 5
    assert cells.trained_for({"posterior": ensemble, "likelihood": {"seconds": 4.0}}) == 9
    assert cells.trained_for({"seconds": 1.5}) == 1.5
    assert cells.trained_for({}) is None
    assert cells.trained_for({"steps": 5, "how": {"rate": 1}}) is None


def test_the_suite_of_the_defaults_has_four_columns():
    chosen = suite(str(Path(__file__).parents[1] / "benchmarks" / "suites" / "defaults.toml"), {})
    methods = {cell.method.label: cell.method for cell in chosen.cells()}
    assert list(methods) == ["flow", "diffusion", "flow_x4", "refined"]
    assert methods["flow"].describe() == {"estimator": methods["flow_x4"].describe()["estimator"]}
    assert methods["refined"].describe()["posterior"] == methods["flow_x4"].describe()
    auto = {"name": "auto", "recipe": recipe.fingerprint()}
    assert methods["refined"].describe()["likelihood"] == {"estimator": auto, "learn": "likelihood", "members": 4}


def test_settings_beside_the_estimator_hold_for_the_likelihood_that_refines_too(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'tasks = ["slcp"]\nestimators = ["r"]\n[methods.r]\nrefine = true\n[methods.r.training]\nema = 0.9\n'
    )
    (cell, *_) = suite(str(path), {}).cells()
    described = cell.method.describe()
    assert described["likelihood"]["training"]["ema"] == described["posterior"]["training"]["ema"] == 0.9


def test_fresh_simulations_count_where_an_optional_observable_is_absent():
    """They are no failures, as those are that lack what has to be there."""

    class Gappy(toys.Line):
        def __init__(self, optional):
            super().__init__()
            self.observables = {"x": Observable((1,)), "v": Observable((1,), optional=optional)}

        def __call__(self, theta, rng):
            x = super().__call__(theta, rng)
            return {"x": x, "v": np.where(np.arange(len(x))[:, None] % 2, np.nan, x)}

    class Exact:
        def sample(self, n, x, *, seed):
            rng = np.random.default_rng(seed)
            return SimpleNamespace(array=x["x"][:, None] / 2 + 0.5**0.5 * rng.normal(size=(len(x["x"]), n, 1)))

    assert [at_truths(Gappy(optional), Exact(), 100, 0)["truths"] for optional in (True, False)] == [100, 50]


def test_cells_of_another_version_or_state_are_others(tmp_path):
    """And those of version 1, and of functions, are where they were."""

    class Wide:
        def __init__(self, width):
            self.width = width

        def __call__(self, theta, x, *, task):
            return toys.Scaled(task, self.width)

    def place(task, by):
        return Suite(tasks=[task], estimators=[by], budgets=[60]).cells()[0].path(tmp_path)

    newer = toys.Line()
    newer.version = "2"
    assert place(toys.Line(), toys.exact) == place(toys.Line(), toys.exact) != place(newer, toys.exact)
    assert place(toys.Line(), Wide(1.0)) == place(toys.Line(), Wide(1.0)) != place(toys.Line(), Wide(2.0))
