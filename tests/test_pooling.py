"""The logarithmic pool against normals, whose pools are normals: powers, gains and draws in closed form."""

import json
import shutil

import numpy as np
import pytest
from scipy.stats import norm
from training_toys import BRIEF, simulations

import sbi_dgm
from sbi_dgm import Flow, Simulations, heldout
from sbi_dgm.cli import main
from sbi_dgm.distributions import Normal
from sbi_dgm.errors import DataError, FileError, OptionError
from sbi_dgm.parameters import Parameter
from sbi_dgm.pooling import Evaluated, gains
from sbi_dgm.priors import Prior
from sbi_dgm.refinement import Refined

SD, NOISE, DIMS = 2.0, 0.5, 2
PRIOR = Prior([Parameter(name, Normal(0.0, SD)) for name in "ab"])
WIDTH = (SD**-2 + NOISE**-2) ** -0.5
SHIFT, BACK, BEST = 0.3, -0.6, 1 / 3  # (1 - BEST) SHIFT + BEST BACK = 0: there the pool is the posterior
X = np.array([0.7, -1.1])


def centre(x):
    return np.asarray(x) * WIDTH**2 / NOISE**2


class Shifted:
    """The exact posterior of x = theta + noise, moved by a multiple of its width, and as many times as wide."""

    names, density = ("a", "b"), "exact"

    def __init__(self, shift=SHIFT, wide=1.0):
        self.shift, self.width = shift * WIDTH, wide * WIDTH

    def require_prior(self, purpose):
        return PRIOR

    def proposals(self, n, x, seed):
        theta = centre(x) + self.shift + self.width * np.random.default_rng(seed).standard_normal((n, DIMS))
        return theta, self.proposal_density(theta, x, 0)

    def proposal_density(self, theta, x, seed):
        return norm.logpdf(theta, centre(x) + self.shift, self.width).sum(-1)

    def observations(self, x):
        rows = x["x"] if isinstance(x, dict) else x
        return ([rows], True) if rows.ndim == 1 else (list(rows), False)

    def trust(self, x):
        return None


def shifted(shift=BACK, wide=1.0):
    """A likelihood by which the posterior is moved by a multiple of its width, and as many times as wide."""

    def log_likelihood(theta, x):
        return Shifted(shift, wide).proposal_density(theta, x, 0) - PRIOR.log_prob(theta)

    return log_likelihood


def drawn(rows=1500, seed=0):
    theta = PRIOR.sample(rows, seed)
    x = theta + NOISE * np.random.default_rng(seed + 1).standard_normal(theta.shape)
    return Simulations.from_arrays(theta, {"x": x}, prior=PRIOR)


def pooled(q=SHIFT, by=BACK, **options):
    refined = Refined(Shifted(q), shifted(by), effective=5000)
    return refined.pooled(drawn(), progress=False, **({"max_rows": 1500, "draws": 256} | options))


def check_power(found, expected, q=SHIFT, by=BACK):
    """Within four standard errors: the pool is the truth's density there, so that the information is Var t."""
    error = 1 / np.sqrt(found.pool.rows * DIMS * (q - by) ** 2)
    assert abs(found.power - expected) < 4 * error


def test_the_power_and_its_gain_are_those_of_normals():
    found = pooled()
    check_power(found, BEST)
    with pytest.raises(AssertionError):
        check_power(found, 1 - BEST)
    assert abs(found.pool.gain - DIMS * SHIFT**2 / 2) < 4 * found.pool.error
    assert abs(found.pool.whole - DIMS * (SHIFT**2 - BACK**2) / 2) < 4 * found.pool.whole_error
    assert found.pool.whole < 0 < found.pool.gain


def true_gain(power, q, by):
    """Of a pool of normals, each (shift, width) in units of the posterior: E ln r - ln q under N(0, 1)."""
    (a, v), (b, w) = q, by
    first, second = (1 - power) / v**2, power / w**2
    precision, mean = first + second, (first * a + second * b) / (first + second)
    log_r, log_q = (np.log(p) / 2 - p * (1 + m**2) / 2 for p, m in ((precision, mean), (1 / v**2, a)))
    return DIMS * (log_r - log_q)


def check_best(power, q, by, rows):
    """What is lost against the best power is that of one number fitted to so many rows, 1 / (2 R) on average."""
    most = max(true_gain(b, q, by) for b in np.linspace(0, 1, 1001))
    assert most - true_gain(power, q, by) < 8 / rows


def test_widths_count_as_places_do():
    """A posterior that is too wide and a likelihood that is too narrow, both off."""
    q, by = (0.2, 1.6), (-0.4, 0.6)
    found = Refined(Shifted(*q), shifted(*by), effective=10).pooled(drawn(), max_rows=1500, draws=256, progress=False)
    check_best(found.power, q, by, 1500)
    for wrong in (found.power - 0.25, found.power + 0.25):
        with pytest.raises(AssertionError):
            check_best(wrong, q, by, 1500)
    assert abs(found.pool.gain - true_gain(found.power, q, by)) < 4 * found.pool.error
    assert abs(found.pool.whole - true_gain(1.0, q, by)) < 4 * found.pool.whole_error


def test_an_exact_likelihood_has_the_whole_say_and_one_that_knows_nothing_next_to_none():
    exact = pooled(by=0.0)
    check_power(exact, 1.0, by=0.0)
    assert abs(exact.pool.whole - DIMS * SHIFT**2 / 2) < 4 * exact.pool.whole_error
    dull = Refined(Shifted(0.0), lambda theta, x: np.zeros(len(theta)), effective=5000)
    assert dull.pooled(drawn(), progress=False).power < 0.05
    wrong = Refined(Shifted(0.0), shifted(5.0), effective=5000).pooled(drawn(), progress=False)
    assert wrong.power < 0.02, "a likelihood that is five widths off"
    none = Refined(Shifted(0.0), shifted(0.0, 0.01), effective=5000).pooled(drawn(), progress=False)
    assert none.pool[:3] == (0.0, 0.0, 0.0)
    assert "a power of 0: on 256 held-out simulations it brings nothing (with a power of 1: -" in str(none.pool)
    assert "brings nothing" not in str(exact.pool)


def test_what_the_draws_miss_is_told_too_small():
    """A posterior that is 40 widths off: of the pool only the truths and some draws of the prior are seen."""
    data = drawn(200)
    theta, x = data.columns["theta"][:], data.columns["x/x"][:]
    truth = norm.logpdf(theta, centre(x), WIDTH).sum(-1) - norm.logpdf(theta, centre(x) + 40 * WIDTH, WIDTH).sum(-1)
    told = Refined(Shifted(40.0), shifted(0.0), effective=10).pooled(data, progress=False, draws=256).pool.whole
    assert truth.mean() - 2 < told < truth.mean()
    unseen = Evaluated(np.array([[-1e4, -1e4, -3.0]]), np.zeros((1, 3)), np.full((1, 3), -1.0))
    assert gains(1.0, unseen)[0] == pytest.approx(np.log(3) - 1), "at most M + 1 times g"


def check_draws(refined):
    """Mean and width of the posterior within four standard errors of 4,000 draws."""
    draws = refined.sample(4000, X, seed=1).array
    assert (np.abs(draws.mean(0) - centre(X)) < 4 * WIDTH / np.sqrt(4000)).all()
    assert (np.abs(draws.std(0) / WIDTH - 1) < 4 / np.sqrt(8000)).all()


def test_draws_are_the_pool():
    check_draws(Refined(Shifted(), shifted(), effective=8000, power=BEST))
    check_draws(Refined(Shifted(0.0), shifted(), effective=8000, power=0.0))
    for power in (1.0, 1 - BEST, 0.0):
        with pytest.raises(AssertionError):
            check_draws(Refined(Shifted(), shifted(), effective=8000, power=power))


def test_its_density_is_the_pool_but_for_a_constant():
    refined = Refined(Shifted(), shifted(), effective=1000, power=BEST)
    theta = np.vstack([PRIOR.sample(20, 0), centre(X)])
    difference = refined.log_target(theta, X) - norm.logpdf(theta, centre(X), WIDTH).sum(-1)
    np.testing.assert_allclose(difference, difference[-1], rtol=0, atol=1e-9)


def test_a_power_below_one_has_no_evidence():
    found = Refined(Shifted(), shifted(), effective=1000, power=BEST).weigh(X, seed=0)
    assert "the likelihood has a power of 0.333" in found.verdict
    assert "ln Z" not in found.verdict
    with pytest.raises(OptionError, match="no evidence: refine with power=1"):
        found.log_evidence  # noqa: B018
    assert "ln Z" in Refined(Shifted(), shifted(), effective=1000).weigh(X, seed=0).verdict


def test_the_seed_decides():
    one, same, other = (pooled(max_rows=50, seed=seed).pool for seed in (1, 1, 2))
    assert one._replace(seconds=0.0) == same._replace(seconds=0.0)
    assert one.gain != other.gain


# What cannot be


class Joint(Shifted):
    density = "bound"


def test_densities_that_hold_hidden_numbers_are_refused():
    with pytest.raises(OptionError, match="kind 'bound' cannot be pooled"):
        Refined(Joint(), shifted(), effective=10).pooled(drawn(50), progress=False)
    with pytest.raises(OptionError, match="kind 'bound' cannot be pooled"):
        Refined(Joint(), shifted(), effective=10, power=0.5)


@pytest.mark.parametrize("power", [-1.0, 1.1, float("nan")])
def test_impossible_powers_are_refused(power):
    with pytest.raises(OptionError, match=r"give a number from 0 to 1"):
        Refined(Shifted(), shifted(), effective=10, power=power)


def test_few_rows_tell_nothing():
    with pytest.raises(DataError, match=r"9 rows to tell the power by: at least 10"):
        Refined(Shifted(), shifted(), effective=10).pooled(drawn(9), progress=False)


@pytest.mark.parametrize("options", [{"draws": 99}, {"max_rows": 9}])
def test_few_draws_tell_nothing(options):
    with pytest.raises(OptionError, match="at least 100 and 10 are needed"):
        pooled(**options)


def test_a_posterior_that_gives_a_truth_no_density_is_not_pooled():
    class Cut(Shifted):
        def proposal_density(self, theta, x, seed):
            return np.where(theta[:, 0] > x[0], super().proposal_density(theta, x, seed), -np.inf)

    with pytest.raises(DataError, match="the posterior gives no density to a held-out simulation of a = "):
        Refined(Cut(), shifted(), effective=10).pooled(drawn(50), progress=False)


def test_a_truth_without_density_is_named():
    data = drawn(50)
    lost = np.sort(data.columns["theta"][:, 0])[-1]
    never = Refined(Shifted(), lambda theta, x: np.where(theta[:, 0] < lost, 0.0, -np.inf), effective=10)
    with pytest.raises(DataError, match=f"likelihood gives no density to a held-out simulation of a = {lost:g}, b = "):
        never.pooled(data, progress=False)


# Runs


QUICK = {"estimator": Flow(transforms=1, hidden=8), "training": BRIEF, "device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refined") / "run"
    sbi_dgm.fit(simulations(), learn="refined", out=folder, **QUICK)
    return folder


def test_a_run_keeps_what_its_validation_rows_have_told(run):
    kept = json.loads((run / "likelihood" / "pool.json").read_text())["pool"]
    refined = sbi_dgm.load_refined(run, effective=500)
    assert kept["rows"] == 40
    assert refined.record["pool"] == kept
    again = refined.pooled(simulations(), progress=False).pool
    assert again._replace(seconds=0.0)._asdict() == kept | {"seconds": 0.0}, "in memory or read again: the same"


OTHER = sbi_dgm.SplitRule(validation=0.4, seed=1)


def test_rows_that_trained_either_tell_nothing(run):
    """A likelihood by another split: rows that validated both; one of the same file alone: its validation rows."""
    data = simulations()
    posterior = sbi_dgm.load(run / "posterior.safetensors")
    other = sbi_dgm.fit(data, learn="likelihood", split=OTHER, **QUICK)
    parts = [data.split(rule) for rule in (sbi_dgm.SplitRule(), OTHER)]
    both = np.intersect1d(*(part.validation for part in parts))
    assert 10 <= len(both) < len(parts[0].validation)
    assert posterior.refined(other).pooled(data, progress=False).pool.rows == len(both)
    elsewhere = sbi_dgm.fit(simulations(seed=9), **QUICK).refined(other)
    assert elsewhere.pooled(data, progress=False).pool.rows == len(parts[1].validation)


def test_a_refined_posterior_is_judged_by_rows_that_trained_neither_of_its_parts(run):
    refined, data = sbi_dgm.load_refined(run), simulations()
    rows = heldout.held_out(refined, data)
    np.testing.assert_array_equal(rows, heldout.held_out(refined.proposal, data))
    assert len(rows) == len(data.split(sbi_dgm.SplitRule()).test)


def test_failed_weighted_and_grouped_rows_do_not_hinder():
    valid, weight = np.arange(400) % 7 != 0, np.random.default_rng(0).uniform(0.5, 1, 400)
    data = simulations(valid=valid, proposal_weight=weight, group=np.arange(400) // 2)
    found = sbi_dgm.fit(data, learn="refined", **QUICK).pool
    validation = data.split(sbi_dgm.SplitRule()).validation
    assert 10 <= found.rows <= len(np.unique(validation // 2))


def test_a_run_of_few_rows_warns_and_says_why_whenever_it_is_read(tmp_path):
    with pytest.warns(UserWarning, match=r"keeps a power of 1: 6 rows"):
        assert sbi_dgm.fit(simulations(60), learn="refined", out=tmp_path, **QUICK).power == 1
    with pytest.warns(UserWarning, match=r"has a power of 1: 6 rows"):
        assert sbi_dgm.load_refined(tmp_path).power == 1


def test_what_was_killed_while_it_pooled_goes_on(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    kept = copy / "likelihood" / "pool.json"
    whole = json.loads(kept.read_text())
    kept.unlink()
    with pytest.warns(UserWarning, match=r"pool.json is missing: train --refine --resume finds the best"):
        assert sbi_dgm.load_refined(copy).power == 1
    sbi_dgm.fit(simulations(), learn="refined", out=copy, resume=True, **QUICK)
    again = json.loads(kept.read_text())
    assert [part["pool"] | {"seconds": 0} for part in (whole, again)] == [whole["pool"] | {"seconds": 0}] * 2
    with pytest.raises(FileError, match="finished run"):
        sbi_dgm.fit(simulations(), learn="refined", out=copy, resume=True, **QUICK)
    kept.write_text("{")
    with pytest.raises(FileError, match="damaged: remove it"):
        sbi_dgm.load_refined(copy)


def test_the_power_of_another_posterior_is_refused(run):
    other = sbi_dgm.fit(simulations(), seed=5, **QUICK)
    with pytest.raises(OptionError, match=r"tells the power of a likelihood for another posterior"):
        sbi_dgm.load_refined(run, posterior=other)


def test_the_command_samples_the_pool(run, tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.zeros(3))
    words = ["sample", str(run / "posterior.safetensors"), str(tmp_path / "x.npy"), "-n", "50", "--effective", "100"]
    assert main([*words, "--refine", "-o", str(tmp_path / "s.h5")]) == 0
    power = sbi_dgm.load_refined(run).power
    said = f"the likelihood has a power of {power:g}" if power < 1 else "ln Z ="
    assert said in capsys.readouterr().out
