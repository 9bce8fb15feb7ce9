"""Posteriors of diffusion, flow matching and continuous flows: use after training, resume, files, the command line."""

from functools import cache

import numpy as np
import pytest
import training_toys as toys

import sbi_dgm
from sbi_dgm.cli import main
from sbi_dgm.errors import OptionError, SolverError
from sbi_dgm.estimators.base import Family
from sbi_dgm.estimators.continuous_flow import ContinuousFlow
from sbi_dgm.estimators.diffusion import Diffusion
from sbi_dgm.estimators.flow import Flow
from sbi_dgm.estimators.flow_matching import FlowMatching
from sbi_dgm.estimators.located import Located

TINY = {"hidden": 16, "blocks": 1, "dropout": 0.2}
DENOISING: dict[str, Family] = {
    "diffusion": Diffusion(**TINY),
    "flow matching": FlowMatching(**TINY),
    "located diffusion": Located(Diffusion(**TINY), hidden=8, blocks=1),
}
FAMILIES = DENOISING | {"continuous flow": ContinuousFlow(hidden=16, blocks=1)}
X = np.array([0.1, 0.5, 0.4])


@cache
def fitted(name: str) -> sbi_dgm.Posterior:
    return toys.fit(estimator=FAMILIES[name], seed=3)


@pytest.fixture(params=FAMILIES, scope="module")
def posterior(request) -> sbi_dgm.Posterior:
    return fitted(request.param)


@pytest.fixture(params=DENOISING, scope="module")
def denoising(request) -> sbi_dgm.Posterior:
    return fitted(request.param)


@pytest.mark.parametrize("name", FAMILIES)
def test_an_interrupted_run_ends_like_an_uninterrupted_one(name, tmp_path):
    family = FAMILIES[name]
    with toys.interrupted_at(12):
        toys.fit(estimator=family, seed=3, out=tmp_path / "run")
    toys.check_same(toys.fit(estimator=family, seed=3, out=tmp_path / "run", resume=True), fitted(name))


def test_a_loaded_posterior_draws_the_same(posterior, tmp_path):
    posterior.save(tmp_path / "p.safetensors")
    loaded = sbi_dgm.load(tmp_path / "p.safetensors", embedding=toys.Own())
    assert (loaded.sample(50, X, seed=1).array == posterior.sample(50, X, seed=1).array).all()
    assert loaded.density == "ode"


def test_draws_stay_within_the_prior(posterior):
    draws = posterior.sample(2000, X, seed=2).array
    assert np.isfinite(posterior.prior.log_prob(draws)).all()


def test_kept_densities_are_those_of_log_prob(posterior):
    fine = posterior.using(tolerance=1e-5)
    samples = fine.sample(40, X, seed=4, log_prob=True)
    assert np.abs(samples.log_prob - fine.log_prob(samples.array, X)).max() < 0.02


def test_the_error_of_a_density_is_that_of_its_tolerance(posterior):
    theta = posterior.sample(40, X, seed=5).array
    exact = posterior.using(tolerance=1e-6).log_prob(theta, X)
    log_q, error = posterior.using(tolerance=1e-4).log_prob_and_error(theta, X)
    assert log_q.shape == error.shape == (40,)
    assert (np.abs(log_q - exact) <= error + 1e-4).mean() >= 0.95
    assert (posterior.log_prob_and_error(theta + 100, X)[0] == -np.inf).all()
    assert (posterior.log_prob_and_error(theta + 100, X)[1] == 0).all()


def test_exact_densities_have_no_error():
    posterior = toys.fit(estimator=Flow(transforms=1, hidden=8, blocks=1))
    log_q, error = posterior.log_prob_and_error(np.zeros((2, 3)) + 0.5, X)
    assert (log_q == posterior.log_prob(np.zeros((2, 3)) + 0.5, X)).all()
    assert (error == 0).all()


def test_a_sampler_is_chosen_after_training(denoising):
    before = denoising.sample(20, X, seed=6).array
    other = denoising.using(sampler="heun", steps=60)
    assert (other.sample(20, X, seed=6).array != before).any()
    assert np.abs(denoising.using(sampler="dpm", steps=200).sample(20, X, seed=6).array - before).max() < 0.2
    assert (other.using(sampler="dpm", steps=24).sample(20, X, seed=6).array == before).all()
    assert (denoising.sample(20, X, seed=6).array == before).all()


def test_what_training_fixed_cannot_be_changed_after_it(denoising):
    with pytest.raises(OptionError, match=r"after training 'hidden'.*Known: probes, sampler, steps, tolerance"):
        denoising.using(hidden=8)
    with pytest.raises(OptionError, match="steps"):
        denoising.using(steps=0)


def test_a_continuous_flow_is_drawn_to_its_tolerance():
    posterior = fitted("continuous flow")
    fine, coarse = (posterior.using(tolerance=t).sample(200, X, seed=6).array for t in (1e-6, 1e-3))
    assert (fine != coarse).any()
    assert np.abs(fine - posterior.sample(200, X, seed=6, log_prob=True).array).max() < 1e-3
    with pytest.raises(OptionError, match=r"after training 'steps'.*Known: probes, tolerance"):
        posterior.using(steps=8)


def test_a_diverged_network_is_told_and_draws_nothing(posterior):
    spoiled = posterior.using()
    for weight in spoiled.network.estimator.parameters():
        weight.data.fill_(np.nan)
    with pytest.raises(SolverError, match=r"step 0 .*diverged"):
        spoiled.sample(10, X, seed=1)
    with pytest.raises(SolverError, match="10 of 10"):
        spoiled.log_prob(np.full((10, 3), 0.5), X)
    assert np.isfinite(posterior.sample(10, X, seed=1).array).all()


def test_more_noise_than_a_schedule_has_is_refused():
    with pytest.raises(OptionError, match=r"high = 200.*'vp_linear' ends at a noise of 15"):
        toys.fit(estimator=Diffusion(schedule="vp_linear", high=200.0))


def test_the_command_line_trains_and_draws(tmp_path, capsys):
    toys.simulations().save(tmp_path / "sims.h5")
    np.save(tmp_path / "x.npy", X)
    run, draws = str(tmp_path / "run"), str(tmp_path / "draws.h5")
    quick = [f"--set=training.{name}" for name in ("max_rounds=2", "round=5")] + ["--set=estimator.hidden=8"]
    assert main(["train", str(tmp_path / "sims.h5"), "-o", run, "--estimator", "diffusion", *quick]) == 0
    model, words = f"{run}/posterior.safetensors", [str(tmp_path / "x.npy"), "-n", "30", "-o", draws]
    assert main(["sample", model, *words]) == 0
    assert sbi_dgm.Samples.load(draws).log_prob is None
    before = sbi_dgm.Samples.load(draws).array
    assert main(["sample", model, *words, "--overwrite", "--set", "estimator.steps=100"]) == 0
    assert (sbi_dgm.Samples.load(draws).array != before).all()
    assert main(["sample", model, *words, "--overwrite", "--log-prob"]) == 0
    assert np.isfinite(sbi_dgm.Samples.load(draws).log_prob).all()
    assert "30 draws of a, b, c" in capsys.readouterr().out


class Counting:
    """A posterior of exact draws that counts those with a density: theta ~ N(x, 1) of width `width`."""

    names = ("a",)

    def __init__(self, density: str, width: float = 1.0) -> None:
        self.density, self.width, self.asked = density, width, []

    def sample(self, n, x, *, seed=None, log_prob=False):
        self.asked.append((n, log_prob))
        u = np.random.default_rng(seed).normal(size=(len(x["x"]), n, 1))
        array = x["x"][:, None] + self.width * u
        return sbi_dgm.Samples(array, ["a"], log_prob=-0.5 * u[..., 0] ** 2 if log_prob else None)

    def log_prob(self, theta, x):
        return -0.5 * ((theta - x["x"]) / self.width)[:, 0] ** 2


def located_data() -> sbi_dgm.Simulations:
    rng = np.random.default_rng(8)
    x = rng.normal(size=(1000, 1))
    return sbi_dgm.Simulations.from_arrays(x + rng.normal(size=(1000, 1)), x, names=["a"])


@pytest.mark.parametrize(("density", "asked"), [("exact", [(1000, True)]), ("ode", [(20, True), (1000, False)])])
def test_calibration_asks_for_few_densities_where_they_are_dear(density, asked):
    data, judged = located_data(), Counting(density)
    report = sbi_dgm.calibrate(judged, data, progress=False)
    assert judged.asked[: len(asked)] == asked
    assert report.calibrated
    assert not sbi_dgm.calibrate(Counting(density, width=0.7), data, progress=False).calibrated


def test_regions_of_twenty_draws_accuse_a_posterior_that_is_too_narrow():
    report = sbi_dgm.calibrate(Counting("ode", width=0.7), located_data(), progress=False)
    assert report.regions["finding"] == "overconfident"
