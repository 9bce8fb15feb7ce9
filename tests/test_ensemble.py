"""Ensembles as runs: members that go on, are added, refuse what is not theirs, and make one file."""

import json

import numpy as np
import pytest
from training_toys import BRIEF, SMALL, Own, check_same, simulations

import sbi_dgm
from sbi_dgm.errors import FileError, OptionError, TimeLimitError, TrainingError
from sbi_dgm.estimators.diffusion import Diffusion
from sbi_dgm.estimators.flow import Flow

X = np.array([0.1, -0.4, 0.5])


def fit(**options) -> sbi_dgm.Posterior:
    given = {"estimator": SMALL, "training": BRIEF, "device": "cpu", "progress": False, "members": 3, "workers": 1}
    return sbi_dgm.fit(simulations(), **(given | options))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensemble") / "run"
    return fit(out=folder), folder


def test_members_differ_and_the_file_holds_all(trained):
    posterior, folder = trained
    members = [sbi_dgm.load(folder / "members" / str(k) / "posterior.safetensors") for k in range(3)]
    theta = simulations().theta[:20]
    each = np.stack([member.log_prob(theta, X) for member in members])
    assert np.abs(each - each[:1]).max(1)[1:].min() > 1e-3, "other initial weights and another order"
    np.testing.assert_allclose(posterior.log_prob(theta, X), np.log(np.exp(each).mean(0)), atol=1e-4)
    loaded = sbi_dgm.load(folder / "posterior.safetensors")
    check_same(loaded, posterior)
    assert (loaded.sample(50, X, seed=1).array == posterior.sample(50, X, seed=1).array).all()


def test_the_record_states_weights_seeds_and_losses(trained):
    posterior, folder = trained
    stated = posterior.record["members"]
    assert [entry["weight"] for entry in stated] == [1 / 3] * 3
    assert len({entry["seed"] for entry in stated}) == 3
    losses = [entry["best_validation_loss"] for entry in stated]
    assert posterior.record["best_validation_loss"] == pytest.approx(np.mean(losses))
    splits = [json.loads((folder / "members" / str(k) / "config.json").read_text())["split"] for k in range(3)]
    assert splits[0] == splits[1] == splits[2]


def test_the_first_member_is_the_run_without_an_ensemble(trained):
    first = sbi_dgm.load(trained[1] / "members" / "0" / "posterior.safetensors")
    check_same(first, fit(members=1))


def test_processes_give_the_same_members(trained, tmp_path):
    check_same(fit(workers=2, out=tmp_path / "run"), trained[0])


def test_a_time_limit_keeps_what_is_done_and_the_rest_goes_on(trained, tmp_path, monkeypatch):
    with pytest.raises(TimeLimitError, match="0 of 3 members"):
        fit(out=tmp_path / "run", max_time=1e-6)
    check_same(fit(out=tmp_path / "run", resume=True), trained[0])


def test_members_of_a_run_that_was_overwritten_do_not_come_back(trained, tmp_path):
    """Three on other x, the same theta, then two, then three: the third is trained anew."""
    folder, data = tmp_path / "run", simulations()
    other = sbi_dgm.Simulations.from_arrays(data.theta, {"x": -data.columns["x/x"][:]}, prior=data.prior)
    settings = {"training": BRIEF, "device": "cpu", "progress": False, "workers": 1, "out": folder}
    sbi_dgm.fit(other, SMALL, members=3, **settings)
    fit(out=folder, members=2, overwrite=True)
    check_same(fit(out=folder, resume=True), trained[0])
    assert sorted(place.name for place in (folder / "members").iterdir()) == ["0", "1", "2"]


def test_more_members_are_added_and_the_old_ones_stay(trained, tmp_path):
    fit(out=tmp_path / "run", members=2)
    before = (tmp_path / "run" / "members" / "1" / "posterior.safetensors").stat().st_mtime_ns
    with pytest.raises(FileError, match="finished"):
        fit(out=tmp_path / "run")
    check_same(fit(out=tmp_path / "run", resume=True), trained[0])
    assert (tmp_path / "run" / "members" / "1" / "posterior.safetensors").stat().st_mtime_ns == before


def test_finished_members_of_another_run_are_refused(tmp_path):
    fit(out=tmp_path / "run", members=2)
    with pytest.raises(TrainingError, match="estimator"):
        fit(out=tmp_path / "run", resume=True, estimator=Flow(transforms=1, hidden=8, blocks=1))


def test_a_run_of_one_network_is_not_taken_for_an_ensemble(tmp_path):
    fit(out=tmp_path / "run", members=1)
    (tmp_path / "run" / "posterior.safetensors").unlink()
    before = (tmp_path / "run" / "config.json").read_bytes()
    for resume in (False, True):
        with pytest.raises(FileError, match="one network"):
            fit(out=tmp_path / "run", resume=resume)
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_what_cannot_go_to_a_process_is_named(tmp_path):
    with pytest.raises(OptionError, match="workers=1"):
        fit(noise=lambda x, theta, generator: x, workers=2)


@pytest.mark.parametrize("wrong", [{"members": 0}, {"members": -1}, {"workers": 0}])
def test_numbers_below_one_are_refused(wrong):
    with pytest.raises(OptionError, match="at least 1"):
        fit(**wrong)


def test_other_families_own_embeddings_and_options_of_use(tmp_path):
    posterior = fit(estimator=Diffusion(hidden=8, blocks=1), embedding=Own(), members=2, out=tmp_path / "run")
    assert posterior.density == "ode"
    loaded = sbi_dgm.load(tmp_path / "run" / "posterior.safetensors", embedding=Own())
    few = loaded.using(steps=3)
    assert few.model.estimator["options"]["steps"] == 3
    assert not np.allclose(few.sample(20, X, seed=0).array, loaded.sample(20, X, seed=0).array)
    log_prob, error = loaded.log_prob_and_error(simulations().theta[:3], X)
    assert np.isfinite(log_prob).all()
    assert (error > 0).all()
