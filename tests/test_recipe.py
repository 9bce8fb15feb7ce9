"""What is recommended, why, and what comes of it: rules that are monotone, and runs that go on."""

from itertools import pairwise
from typing import Any

import h5py
import numpy as np
import pytest
from training_toys import BRIEF, PRIOR, check_same, simulations

import sbi_dgm
from sbi_dgm import Diffusion, Flow, Likelihood, Located, Observable, Simulations, Uniform, recipe, training
from sbi_dgm.cli import main
from sbi_dgm.errors import DataError, FileError, OptionError, PriorError, TimeLimitError
from sbi_dgm.estimators.base import family
from sbi_dgm.parameters import Parameter
from sbi_dgm.priors import Prior
from sbi_dgm.recipe import RULES, likelihood, posterior, proposal, recommended
from sbi_dgm.refinement import Refined

X = np.array([0.1, -0.4, 0.5])
ROWS = (100, 900, 2_700, 9_000, 90_000, 900_000)


def fit(**options: Any) -> Any:
    given = {"training": BRIEF, "device": "cpu", "progress": False}
    return sbi_dgm.fit(simulations(), **(given | options))


# Rules


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("parameters", [1, 2, 5, 10, 30])
def test_more_rows_never_bring_a_simpler_choice_back(rule, parameters):
    """Monotone in the number of rows: along it the choice changes once at most."""
    chosen = [rule(rows, parameters, 8).family for rows in ROWS]
    changes = sum(a != b for a, b in pairwise(chosen))
    assert changes <= 1


def test_a_choice_says_family_rows_and_parameters():
    for choice, word in ((posterior(9000, 5, 8), "diffusion"), (posterior(900, 5, 8), "flow")):
        assert isinstance(choice.family, Diffusion if word == "diffusion" else Flow)
        assert choice.why.startswith(("a " + word, word))
        assert "5 parameters" in choice.why
        assert "rows" in choice.why
    assert posterior(9000, 2, 2).family == proposal(9000, 5, 8).family == Flow(), (
        "few parameters; densities are asked for"
    )


def test_a_likelihood_has_units_for_the_numbers_of_x():
    units = [likelihood(9000, 5, numbers).family.of.hidden for numbers in (1, 8, 20, 32, 100)]
    assert units == [16, 16, 40, 64, 64]
    assert likelihood(900, 5, 8).family == Located(Flow(transforms=2, hidden=16))


def test_another_rule_is_another_fingerprint(monkeypatch):
    before = recipe.fingerprint()
    assert before == recipe.fingerprint()
    monkeypatch.setattr(recipe, "UNITS", (16, 32))
    assert recipe.fingerprint() != before


def test_auto_trains_what_is_recommended_and_says_so(capsys):
    trained = fit(estimator="auto", progress=True)
    choice = recommended("posterior", simulations(), trained.record["rows"]["train"])
    assert f"estimator: {choice.why}" in capsys.readouterr().err
    check_same(trained, fit(estimator=choice.family))


def test_parameters_that_are_left_out_do_not_count():
    theta, x = np.random.default_rng(0).uniform(size=(9, 5)), np.zeros((9, 1))
    prior = Prior([Parameter(name, Uniform(0, 1)) for name in "abcde"])
    data = Simulations.from_arrays(theta, {"x": x}, prior=prior)
    assert isinstance(recommended("posterior", data, 10_000).family, Diffusion)
    assert isinstance(recommended("posterior", data, 10_000, ["a", "c"]).family, Flow)


def test_the_default_flow_and_diffusion_share_their_dropout():
    assert [family(name).dropout for name in ("flow", "diffusion", "flow_matching")] == [0.1] * 3


# A posterior and the likelihood that refines it


def test_refined_is_a_posterior_and_a_likelihood_of_their_own_recipes(tmp_path):
    found = fit(learn="refined", estimator=Flow(transforms=1, hidden=8), out=tmp_path)
    assert isinstance(found, Refined)
    assert isinstance(found.likelihood, Likelihood)
    assert found.likelihood.record["estimator"]["name"] == "located"
    kept = sbi_dgm.load(tmp_path / "posterior.safetensors")
    check_same(kept, found.proposal)
    check_same(Likelihood.load(tmp_path / "likelihood" / "likelihood.safetensors").inner, found.likelihood.inner)
    assert set(found.record) == {"posterior", "likelihood", "pool"}
    theta, power = PRIOR.sample(5, 0), found.power
    expected = power * (found.likelihood.log_prob(X, theta) + PRIOR.log_prob(theta))
    np.testing.assert_allclose(found.log_target(theta, X), expected + (1 - power) * kept.log_prob(theta, X))
    again = sbi_dgm.load_refined(tmp_path)
    assert again.pool == found.pool
    np.testing.assert_array_equal(again.sample(50, X, seed=1).array, found.sample(50, X, seed=1).array)


def test_an_interrupted_one_goes_on_with_what_is_missing(tmp_path, monkeypatch):
    options = {"learn": "refined", "estimator": Flow(transforms=1, hidden=8), "out": tmp_path}
    whole = fit(**(options | {"out": tmp_path / "whole"}))
    train = training._posterior

    def late(asked, *given):
        if asked.learn == "likelihood":
            raise TimeLimitError("no time is left")
        return train(asked, *given)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_posterior", late)
        with pytest.raises(TimeLimitError):
            fit(**options)
    with pytest.raises(FileError, match="finished run"):
        fit(**options)
    first = (tmp_path / "posterior.safetensors").stat().st_mtime_ns
    again = fit(**options, resume=True)
    assert (tmp_path / "posterior.safetensors").stat().st_mtime_ns == first
    check_same(again.proposal, whole.proposal)
    check_same(again.likelihood.inner, whole.likelihood.inner)


def test_an_ensemble_of_both_goes_on_too(tmp_path):
    options = {"learn": "refined", "estimator": Flow(transforms=1, hidden=8), "members": 2, "workers": 1}
    found = fit(**options, out=tmp_path)
    assert len(found.likelihood.record["members"]) == 2
    (tmp_path / "likelihood" / "likelihood.safetensors").unlink()
    kept = tmp_path / "members" / "1" / "posterior.safetensors"
    before = kept.stat().st_mtime_ns
    again = fit(**options, out=tmp_path, resume=True)
    assert kept.stat().st_mtime_ns == before
    check_same(again.likelihood.inner, found.likelihood.inner)
    (tmp_path / "likelihood" / "likelihood.safetensors").unlink()
    more = fit(**(options | {"members": 3}), out=tmp_path, resume=True)
    assert [len(more.record[part]["members"]) for part in ("posterior", "likelihood")] == [3, 3]
    with pytest.raises(FileError, match="finished run"):
        fit(**options, out=tmp_path, resume=True)


@pytest.mark.parametrize("members", [1, 2])
def test_a_posterior_that_is_overwritten_forgets_the_likelihood_of_the_old_one(tmp_path, members):
    options = {"estimator": Flow(transforms=1, hidden=8), "out": tmp_path, "members": members, "workers": 1}
    fit(learn="refined", **options)
    fit(overwrite=True, **options)
    assert not (tmp_path / "likelihood").exists()


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (np.ones((60, 101)), "x has 101 numbers: refinement learns a likelihood of up to 100"),
        (np.ones((60, 600)), "x has 600 numbers: refinement learns a likelihood of up to 100"),
        (np.ones((60, 2)), r"x\[0\], x\[1\]: the same in all rows"),
        (None, "is a set"),
    ],
)
def test_what_cannot_be_refined_is_refused_before_training(x, sentence, tmp_path):
    theta = np.random.default_rng(0).uniform(size=(60, 2))
    prior = Prior([Parameter(name, Uniform(0, 1)) for name in "ab"])
    if x is None:
        sets = {"hits": Observable((4, 2), kind="set")}
        data = Simulations.from_arrays(theta, {"hits": np.ones((60, 4, 2))}, observables=sets, prior=prior)
    else:
        data = Simulations.from_arrays(theta, {"x": x}, prior=prior)
    with pytest.raises(DataError, match=sentence):
        sbi_dgm.fit(data, learn="refined", out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_one_without_its_prior_and_some_parameters_alone_are_refused():
    with pytest.raises(PriorError, match="refinement needs the prior"):
        sbi_dgm.fit(simulations(prior=None), learn="refined", progress=False)
    wide = Prior([Parameter(p.name, Uniform(-30, 30)) for p in PRIOR.parameters])
    with pytest.raises(PriorError, match="refinement needs theta drawn from its prior, and by a; "):
        sbi_dgm.fit(simulations(prior=wide), learn="refined", progress=False)
    with pytest.raises(OptionError, match="parameters belongs to posteriors"):
        fit(learn="refined", parameters=["a"])


# The command line


def test_train_refine_and_sample_refine_find_each_other(tmp_path, capsys):
    data = simulations().save(tmp_path / "sims.h5")
    np.save(tmp_path / "x.npy", X)
    quick = ["--set", "training.max_rounds=1", "--device", "cpu"]
    assert main(["train", str(data.path), "--refine", "--estimator", "auto", "-o", str(tmp_path / "run"), *quick]) == 0
    said = capsys.readouterr()
    assert f"{tmp_path}/run/posterior.safetensors: flow" in said.out
    assert f"{tmp_path}/run/likelihood/likelihood.safetensors: located" in said.out
    assert "estimator: a flow" in said.err
    model, drawn = str(tmp_path / "run" / "posterior.safetensors"), str(tmp_path / "s.h5")
    words = ["sample", model, str(tmp_path / "x.npy"), "-n", "100", "-o", drawn, "--effective", "100", "--refine"]
    assert main(words) == 0
    assert "Pareto k" in capsys.readouterr().out
    other = simulations(60, seed=2).save(tmp_path / "other.h5")
    words = ["calibrate", model, str(other.path), "-o", str(tmp_path / "report"), "--rows", "50", "--draws", "20"]
    assert main([*words, "--effective", "100", "--refine"]) in (0, 1)
    assert "50 held-out rows, 20 draws each" in capsys.readouterr().out
    with h5py.File(tmp_path / "report" / "draws.h5") as file:
        assert file["drawn_log_prob"].shape == (50, 20)
        assert file.attrs["fingerprint"]


def test_refining_by_what_was_never_learned_is_told(tmp_path, capsys):
    fit().save(tmp_path / "p.safetensors")
    np.save(tmp_path / "x.npy", X)
    words = ["sample", str(tmp_path / "p.safetensors"), str(tmp_path / "x.npy"), "-o", str(tmp_path / "s.h5")]
    assert main([*words, "--refine"]) == 2
    assert "no likelihood was learned with it" in capsys.readouterr().err


def test_auto_takes_no_options_beside(capsys, tmp_path):
    data = simulations().save(tmp_path / "sims.h5")
    words = ["--estimator", "auto", "--set", "estimator.transforms=3", "-o", str(tmp_path / "run")]
    assert main(["train", str(data.path), *words]) == 2
    assert "auto chooses for itself: leave out transforms" in capsys.readouterr().err
