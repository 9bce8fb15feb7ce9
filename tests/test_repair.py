"""Repair: too narrow and too wide become right, the density goes along, and regions hold as often as they say."""

import json
import math

import numpy as np
import pytest
import torch
from posterior_toys import BOX, UNIT, Stub, model, stubbed, untrained
from scipy.special import ndtr, ndtri
from scipy.stats import binom, kstest, norm

import sbi_dgm
from sbi_dgm import cli, conformal, load
from sbi_dgm.data.scaling import Standardise
from sbi_dgm.embeddings.vectors import Flatten
from sbi_dgm.errors import DataError, ExternalError, OptionError
from sbi_dgm.estimators.base import family
from sbi_dgm.estimators.flow import Flow
from sbi_dgm.loop import Training
from sbi_dgm.model import whole
from sbi_dgm.posterior import Posterior
from sbi_dgm.repair import FITTING, Scale, _scaled, fitted
from sbi_dgm.report import calibrate
from simulators.gaussian_linear import VARIANCE, GaussianLinear

TASK = GaussianLinear()
SD = (VARIANCE / 2) ** 0.5
ROWS = 12_000


class Gaussian(Stub):
    """The exact posterior of gaussian_linear in z, N(x / 2, 1 / 2) by VARIANCE, made too narrow and shifted."""

    def __init__(self, width: float | list[float] = 1.0, shift: float = 0.0) -> None:
        super().__init__(10)
        self.sd, self.shift = 0.5**0.5 * torch.tensor(width).double().expand(10), 0.5**0.5 * shift

    def mean(self, context):
        return context / (2 * VARIANCE**0.5) + self.shift

    def formula(self, z, context):
        u = (z - self.mean(context)) / self.sd
        return -0.5 * u.square().sum(-1) - (self.sd * math.sqrt(2 * math.pi)).log().sum()

    def sample_and_log_prob(self, n, context, generator=None):
        noise = torch.randn((len(context), n, 10), generator=generator, dtype=torch.float64)
        z = self.mean(context.double())[:, None] + self.sd * noise
        return z, self.log_prob(z, context)


class Mute(Gaussian):
    """Draws without a density."""

    density = "none"

    def log_prob(self, z, context, generator=None):
        raise OptionError("no density: sample.")

    def sample_and_log_prob(self, n, context, generator=None):
        return torch.zeros(len(context), n, 10) + torch.randn((len(context), n, 10), generator=generator), None


def posterior(width=1.0, shift: float = 0.0) -> Posterior:
    return stubbed(TASK.prior, Gaussian(width, shift), 10)


def simulations(rows: int, seed: int) -> sbi_dgm.Simulations:
    theta = TASK.prior.sample(rows, seed)
    return sbi_dgm.Simulations.from_arrays(theta, TASK(theta, np.random.default_rng(seed + 1000)), prior=TASK.prior)


HELD_OUT, FRESH = simulations(ROWS, 1), simulations(1000, 2)


def repaired(of: Posterior, data=HELD_OUT, **options) -> Posterior:
    return of.repaired(data, **({"draws": 200, "max_rows": ROWS, "progress": False} | options))


def check_width(found: Posterior) -> None:
    """Within 3 %: 4 standard errors of ln s from 9000 rows are 3 %, those of the sd of 40,000 draws 1.4 %."""
    x = FRESH.x(np.arange(20))["x"]
    deviation = found.sample(2000, x, seed=0).array - x[:, None] / 2
    widths = deviation.std((0, 1)) / SD
    assert np.abs(widths - 1).max() < 0.03, widths


@pytest.mark.parametrize("width", [0.85, 1.15, [0.7, 1.0, 1.3, 0.85, 0.9, 1.1, 0.5, 2.0, 1.0, 0.3]])
def test_a_wrong_width_is_repaired_to_within_3_percent(width):
    """And passes `calibrate`, which the original does not."""
    wrong = posterior(width)
    right = repaired(wrong)
    check_width(right)
    with pytest.raises(AssertionError):
        check_width(wrong)
    assert calibrate(right, FRESH, draws=200, progress=False).verdict == "calibrated"
    assert not calibrate(wrong, FRESH, draws=200, progress=False).calibrated


def test_the_exact_posterior_stays_as_it_is():
    """s = 1 within four of its stated errors, which are 1 / sqrt(2 R) for normal posteriors."""
    found = repaired(posterior()).record["repaired"]["scale"]
    assert list(found) == list(TASK.prior.names)
    assert found["theta_1"]["log_error"] == pytest.approx((2 * FITTING * ROWS) ** -0.5, rel=0.1)
    logs = np.array([math.log(one["scale"]) / one["log_error"] for one in found.values()])
    assert np.abs(logs).max() < 4
    assert np.abs([math.log(1.15) / one["log_error"] for one in found.values()]).min() > 4, "15 % would be seen"


def test_stated_errors_are_those_of_repetitions():
    """Over 300 repetitions with 200 rows and 60 draws, ln s scatters by its error and about the truth."""
    rng, found = np.random.default_rng(0), []
    for _ in range(300):
        truth, draws = rng.normal(0.3, 1.2, 200), rng.normal(0.3, 1.0, (200, 60))
        one = fitted("a", truth, draws, np.full(200, 0.3))
        found.append((math.log(one.scale), one.log_error))
    logs, errors = np.array(found).T
    assert abs(logs.mean() - math.log(1.2)) < 4 * logs.std() / 300**0.5
    assert logs.std() == pytest.approx(errors.mean(), rel=4 / 600**0.5)
    assert errors.mean() == pytest.approx(1 / 400**0.5, rel=0.1)


def test_a_truth_beyond_all_draws_is_no_obstacle():
    """Twenty times too narrow: nine truths of ten lie beyond all draws."""
    rng = np.random.default_rng(0)
    one = fitted("a", rng.normal(size=5000), rng.normal(0, 0.05, (5000, 100)), np.zeros(5000))
    assert one.scale == pytest.approx(20, rel=4 / 10_000**0.5)
    with pytest.raises(DataError, match=r"a: no scale from 0.01 to 100 repairs it.*train again"):
        fitted("a", np.full(300, 5.0) + rng.normal(size=300), rng.normal(0, 1e-4, (300, 100)), np.zeros(300))


def scaled(of: Posterior, *values: float) -> Posterior:
    return _scaled(of, {name: Scale(value, 0.0) for name, value in zip(of.names, values, strict=True)})


NODES = np.linspace(-8, 8, 8001)  # in z; theta = Phi(z)
NOWHERE = np.zeros(3)


def mass(of: Posterior) -> np.ndarray:
    """q dtheta at the nodes."""
    return np.exp(of.log_prob(ndtr(NODES)[:, None], NOWHERE) + norm.logpdf(NODES)) * (NODES[1] - NODES[0])


def test_the_density_integrates_to_one():
    """By the trapezium rule in z: within 1e-4, what float32 leaves of ln q."""
    one = scaled(untrained(UNIT, x=(3,)), 1.4)
    assert mass(one).sum() == pytest.approx(1, abs=1e-4)
    assert 1.4 * mass(one).sum() != pytest.approx(1, abs=1e-4), "without - ln s"


def check_draws(of: Posterior, said: Posterior) -> None:
    drawn = of.sample(4000, NOWHERE, seed=0).array[:, 0]
    assert kstest(drawn, lambda theta: np.interp(ndtri(theta), NODES, mass(said).cumsum())).pvalue > 1e-4


def test_draws_follow_the_density():
    original = untrained(UNIT, x=(3,))
    narrower = scaled(original, 0.6)
    check_draws(narrower, narrower)
    with pytest.raises(AssertionError):
        check_draws(original, narrower)


def made_of(name: str, members: int = 1, **options) -> Posterior:
    """Random weights of any family."""
    chosen = family(name, **options)
    estimator = {"name": name, "options": {key: getattr(chosen, key) for key in type(chosen).model_fields}}
    specification = model(BOX, x=(3,))._replace(estimator=estimator, members=members)
    return Posterior(specification, whole(specification, {"x": Standardise((3,))}, Flatten()), {})


SMALL = {"hidden": 8, "blocks": 1}
FAMILIES = {
    "flow": {"transforms": 1, **SMALL},
    "diffusion": {"steps": 5, "tolerance": 1e-3, **SMALL},
    "flow_matching": {"steps": 5, "tolerance": 1e-3, **SMALL},
    "continuous_flow": {"tolerance": 1e-3, **SMALL},
    "vae": {"latent": 2, "components": 2, **SMALL},
}
FEW_X = np.random.default_rng(0).normal(size=(5, 3))
OF_BOX = sbi_dgm.Simulations.from_arrays(BOX.sample(200, 0), FEW_X.repeat(40, axis=0), prior=BOX)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_repaired_and_survives_its_file_to_the_bit(name, tmp_path, monkeypatch):
    """Also ensembles: one scale for the mixture."""
    monkeypatch.setattr("sbi_dgm.repair.RANKED", 20)
    monkeypatch.setattr("sbi_dgm.estimators.rescaled.CENTRE", 20)
    monkeypatch.setattr("sbi_dgm.conformal.SOLVED", 20)
    original = made_of(name, members=2 if name == "flow" else 1, **FAMILIES[name])
    better = repaired(original, OF_BOX, draws=20)
    better.save(tmp_path / "p.safetensors")
    load(tmp_path / "p.safetensors").save(tmp_path / "again.safetensors")
    loaded, x = load(tmp_path / "again.safetensors"), np.array([0.3, -1.0, 2.0])
    assert loaded.record == json.loads(json.dumps(better.record))
    first, second = (one.sample(20, x, seed=5, log_prob=True) for one in (better, loaded))
    assert np.array_equal(first.array, second.array)
    assert np.array_equal(first.log_prob, second.log_prob)
    assert np.array_equal(better.log_prob(first.array, x), loaded.log_prob(first.array, x))
    assert np.array_equal(better.regions(0.8, x).threshold, loaded.regions(0.8, x).threshold)
    assert not np.array_equal(first.array, original.sample(20, x, seed=5).array)
    assert "repaired" not in original.record


def test_other_options_of_use_keep_the_repair():
    better = scaled(made_of("diffusion", **FAMILIES["diffusion"]), 2.0, 1.0)
    finer, x = better.using(steps=10), np.zeros(3)
    assert torch.equal(finer.network.estimator.scale, torch.tensor([2.0, 1.0]))
    assert finer.model.estimator["options"]["steps"] == 10
    assert not np.allclose(finer.sample(5, x, seed=0).array, better.sample(5, x, seed=0).array)


def check_coverage(covered: float, level: float) -> None:
    """Within four standard errors, of 1000 fresh rows and of the 500 that the level rests on, and a draw of 200."""
    assert abs(covered - level) < 4 * (level * (1 - level) * (1 / 1000 + 1 / 500)) ** 0.5 + 1 / 200, covered


BAD = posterior([0.4] * 5 + [1.5] * 5, shift=0.7)
X = FRESH.x(np.arange(1000))["x"]


@pytest.fixture(scope="module")
def mended() -> Posterior:
    """Shifted still."""
    return repaired(BAD, max_rows=2000)


@pytest.mark.parametrize("level", [0.68, 0.9])
def test_regions_of_a_bad_posterior_hold_as_often_as_they_say(mended, level):
    check_coverage(mended.regions(level, X, seed=3).contains(FRESH.theta).mean(), level)
    drawn = BAD.sample(200, X, seed=3, log_prob=True).log_prob
    naive = BAD.log_prob(FRESH.theta, X) >= np.quantile(drawn, 1 - level, axis=1)
    with pytest.raises(AssertionError):
        check_coverage(naive.mean(), level)


@pytest.mark.parametrize("level", [0.68, 0.9])
def test_intervals_of_a_bad_posterior_hold_as_often_as_they_say(mended, level):
    def held(low, high):
        return ((low <= FRESH.theta) & (high >= FRESH.theta)).mean(0)

    for share in held(*np.moveaxis(mended.intervals(level, X, seed=3), -1, 0)):
        check_coverage(share, level)
    naive = np.quantile(BAD.sample(200, X, seed=3).array, [(1 - level) / 2, (1 + level) / 2], axis=1)
    for share in held(*naive)[:5]:
        with pytest.raises(AssertionError):
            check_coverage(share, level)


def check_order(order, rows: int, level: float, repetitions: int = 4000) -> None:
    """P(a further one <= the k-th smallest of n) >= level, and no more than 1 / (n + 1) above it."""
    scores = np.random.default_rng(0).integers(1000, size=(repetitions, rows + 1))
    held = (scores[:, -1] <= np.sort(scores[:, :-1], 1)[:, order(level, rows) - 1]).sum()
    assert (
        binom.ppf(0.001, repetitions, level)
        <= held
        <= binom.ppf(0.999, repetitions, min(1.0, level + 1 / (rows + 1) + 0.001))
    )


@pytest.mark.parametrize(("rows", "level"), [(9, 0.9), (19, 0.68), (50, 0.95)])
def test_the_guarantee_holds_for_few_rows(rows, level):
    check_order(conformal._order, rows, level)
    with pytest.raises(AssertionError):
        check_order(lambda level, rows: math.floor(rows * level), rows, level)


def test_levels_that_so_few_rows_cannot_promise_are_refused():
    better = repaired(posterior(), max_rows=200)
    x = np.zeros(10)
    assert better.regions(0.98, x).threshold.shape == ()
    assert better.intervals(0.9, x).shape == (10, 2)
    sentence = "level = 0.99: the 50 rows kept for regions can promise 0.9804 at most: .* enough to keep 99"
    for ask in (better.regions, better.intervals):
        with pytest.raises(OptionError, match=sentence):
            ask(0.99, x)
        with pytest.raises(OptionError, match=r"level = 1.0: give a probability"):
            ask(1.0, x)
    with pytest.raises(OptionError, match="of a repaired posterior"):
        posterior().regions(0.9, x)


def test_a_region_beyond_all_draws_is_refused():
    """Far off in place: a scale of its own does not make its draws reach half of the truths."""
    kept = {"regions": {"draws": 100, "above": [5] * 50 + [100] * 50}, "intervals": {"draws": 100, "depth": {}}}
    kept["intervals"]["depth"] = {name: [50] * 50 + [0] * 50 for name in TASK.prior.names}
    far = posterior()
    far.record["repaired"] = kept
    assert far.regions(0.4, np.zeros(10)).credibility == 0.05
    for ask in (far.regions, far.intervals):
        with pytest.raises(OptionError, match="in 50 of 100 rows the truth lies beyond all 100 draws"):
            ask(0.6, np.zeros(10))


def test_shapes_of_regions_and_intervals():
    better = repaired(posterior(), max_rows=400)
    x = FRESH.x(np.arange(3))["x"]
    region = better.regions(0.9, x)
    assert region.threshold.shape == (3,)
    assert region.contains(x / 2).tolist() == [True] * 3, "the mode"
    assert region.contains(x / 2 + 2).tolist() == [False] * 3
    assert region.contains((x / 2)[:, None].repeat(5, axis=1)).shape == (3, 5)
    assert better.regions(0.9, x[0]).contains(x[0] / 2).shape == ()
    assert abs(region.credibility - 0.9) < 4 * 0.03 + 0.05, "of a calibrated posterior the level itself"
    assert better.intervals(0.9, x).shape == (3, 10, 2)


def test_a_family_without_a_density_has_intervals_alone():
    better = repaired(stubbed(TASK.prior, Mute(), 10), simulations(300, 5))
    assert better.intervals(0.9, np.zeros(10)).shape == (10, 2)
    with pytest.raises(OptionError, match="'none' has no regions: ask for intervals"):
        better.regions(0.9, np.zeros(10))


def brief(data: sbi_dgm.Simulations, **options) -> Posterior:
    how = Training(batch_size=100, round=2, max_rounds=1)
    return sbi_dgm.fit(
        data, Flow(transforms=1, hidden=4, blocks=0), training=how, device="cpu", progress=False, **options
    )


def test_its_own_file_is_repaired_by_validation_rows_and_judged_by_test_rows():
    data = simulations(2500, 3)
    better = repaired(brief(data), data, draws=100)
    assert better.record["repaired"]["rows"] == {"scale": 187, "regions": 63}
    assert better.record["repaired"]["data"]["fingerprint"] == data.fingerprint()
    report = calibrate(better, data, draws=50, progress=False)
    assert report.rows == 125
    assert report.to_json()["repaired"] == {
        name: one["scale"] for name, one in better.record["repaired"]["scale"].items()
    }
    assert calibrate(posterior(), FRESH, draws=50, max_rows=50, progress=False).repaired is None


def test_rows_that_repaired_do_not_judge():
    data = simulations(300, 4)
    better = repaired(posterior(), data)
    with pytest.raises(DataError, match=r"repaired by these 300 rows.*other simulations"):
        calibrate(better, data, progress=False)
    more = simulations(60, 5)
    grown = sbi_dgm.Simulations.from_arrays(
        np.concatenate([data.theta, more.theta]),
        np.concatenate([data.x(np.arange(300))["x"], more.x(np.arange(60))["x"]]),
        prior=TASK.prior,
    )
    assert calibrate(better, grown, draws=50, progress=False).rows == 60, "those that were added"


def test_what_cannot_be_repaired_is_refused():
    with pytest.raises(DataError, match="150 rows to repair by: at least 200"):
        repaired(posterior(), simulations(150, 4))
    with pytest.raises(OptionError, match="repaired already: repair the one that was trained"):
        repaired(repaired(posterior(), max_rows=200))
    with pytest.raises(OptionError, match="draws = 20: regions need at least 100"):
        repaired(posterior(), draws=20)
    with pytest.raises(ExternalError, match="trained with noise=None"):
        repaired(posterior(), noise=lambda x, theta, generator: x)


def test_groups_count_once():
    universes = np.repeat(np.arange(250), 4)
    theta = np.repeat(TASK.prior.sample(250, 7), 4, axis=0)
    x = TASK(theta, np.random.default_rng(8))
    data = sbi_dgm.Simulations.from_arrays(theta, x, prior=TASK.prior, group=universes)
    rows = repaired(posterior(), data).record["repaired"]["rows"]
    assert sum(rows.values()) == 250


def command(*words) -> int:
    return cli.main([str(word) for word in words])


def test_the_command_line_repairs(tmp_path, capsys):
    data = simulations(2500, 3).save(tmp_path / "sims.h5")
    brief(data, out=tmp_path / "run")
    model, out = tmp_path / "run" / "posterior.safetensors", tmp_path / "repaired.safetensors"
    assert command("repair", model, data.path, "-o", out, "--draws", 100, "--device", "cpu") == 0
    told = capsys.readouterr().out
    better = load(out)
    for name, one in better.record["repaired"]["scale"].items():
        assert f"{name:<20} {one['scale']:.3f} +- {one['scale'] * one['log_error']:.3f}" in told
    expected = repaired(load(model), data, draws=100, max_rows=4000)
    assert expected.record == better.record
    assert command("repair", model, data.path, "-o", out) == 2, "there is such a file"
    assert command("repair", out, data.path, "-o", tmp_path / "again.safetensors") == 2
    assert "repaired already" in capsys.readouterr().err
    np.savetxt(tmp_path / "x.txt", np.zeros(10))
    assert command("sample", out, tmp_path / "x.txt", "-n", 10, "-o", tmp_path / "s.h5") == 0
    command("calibrate", out, data.path, "-o", tmp_path / "report", "--draws", 50)
    assert "repaired: draws scaled by" in capsys.readouterr().out
    command("inspect", out)
    told = capsys.readouterr().out
    assert "repaired: " in told
    assert len(told) < 10_000, "without the scores"
