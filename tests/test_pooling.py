"""The logarithmic pool against normals, whose pools are normals: powers, gains and draws in closed form."""

import json

import numpy as np
import pytest
from scipy.stats import norm
from training_toys import BRIEF, simulations

import sbi_dgm
from sbi_dgm import Flow, Simulations
from sbi_dgm.cli import main
from sbi_dgm.distributions import Normal
from sbi_dgm.errors import DataError, OptionError
from sbi_dgm.parameters import Parameter
from sbi_dgm.pooling import LEAST, Evaluated, gains
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
    """The exact posterior of x = theta + noise, moved by a multiple of its width."""

    names, density = ("a", "b"), "exact"

    def __init__(self, shift=SHIFT):
        self.shift = shift * WIDTH

    def require_prior(self, purpose):
        return PRIOR

    def proposals(self, n, x, seed):
        theta = centre(x) + self.shift + WIDTH * np.random.default_rng(seed).standard_normal((n, DIMS))
        return theta, self.proposal_density(theta, x, 0)

    def proposal_density(self, theta, x, seed):
        return norm.logpdf(theta, centre(x) + self.shift, WIDTH).sum(-1)

    def observations(self, x):
        rows = x["x"] if isinstance(x, dict) else x
        return ([rows], True) if rows.ndim == 1 else (list(rows), False)

    def trust(self, x):
        return None


def shifted(shift=BACK):
    """A likelihood by which the posterior is moved by a multiple of its width."""
    return lambda theta, x: norm.logpdf(x + shift * NOISE**2 / WIDTH, theta, NOISE).sum(-1)


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


def test_an_exact_likelihood_has_the_whole_say_and_one_that_knows_nothing_next_to_none():
    exact = pooled(by=0.0)
    check_power(exact, 1.0, by=0.0)
    assert abs(exact.pool.whole - DIMS * SHIFT**2 / 2) < 4 * exact.pool.whole_error
    dull = Refined(Shifted(0.0), lambda theta, x: np.zeros(len(theta)), effective=5000)
    told = dull.pooled(drawn(), progress=False).pool
    assert told.power < 5 * LEAST
    assert "brings nothing that these could show" in str(told)
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
    for power in (1.0, 1 - BEST):
        with pytest.raises(AssertionError):
            check_draws(Refined(Shifted(), shifted(), effective=8000, power=power))


def test_its_density_is_the_pool_but_for_a_constant():
    refined = Refined(Shifted(), shifted(), effective=1000, power=BEST)
    theta = np.vstack([PRIOR.sample(20, 0), centre(X)])
    difference = refined.log_prob(theta, X) - norm.logpdf(theta, centre(X), WIDTH).sum(-1)
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


@pytest.mark.parametrize("power", [0.0, -1.0, 1.1, float("nan")])
def test_impossible_powers_are_refused(power):
    with pytest.raises(OptionError, match=r"give a number from 0.01 to 1"):
        Refined(Shifted(), shifted(), effective=10, power=power)


def test_few_rows_tell_nothing():
    with pytest.raises(DataError, match=r"9 rows to tell the power by: at least 10"):
        Refined(Shifted(), shifted(), effective=10).pooled(drawn(9), progress=False)


def test_a_truth_without_density_is_named():
    data = drawn(50)
    lost = np.sort(data.columns["theta"][:, 0])[-1]
    never = Refined(Shifted(), lambda theta, x: np.where(theta[:, 0] < lost, 0.0, -np.inf), effective=10)
    with pytest.raises(DataError, match=f"no density to a held-out simulation of a = {lost:g}, b = "):
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


def test_a_likelihood_by_another_split_may_have_seen_the_rows(run):
    other = sbi_dgm.fit(simulations(), learn="likelihood", split=sbi_dgm.SplitRule(validation=0.2), **QUICK)
    posterior = sbi_dgm.load(run / "posterior.safetensors")
    with pytest.raises(OptionError, match="trained by different splits"):
        posterior.refined(other).pooled(simulations(), progress=False)


def test_a_run_of_few_rows_warns_and_goes_on():
    with pytest.warns(UserWarning, match=r"keeps a power of 1: 6 rows"):
        assert sbi_dgm.fit(simulations(60), learn="refined", **QUICK).power == 1


def test_the_power_of_another_posterior_is_refused_and_a_missing_one_is_told(run, tmp_path, capsys):
    other = sbi_dgm.fit(simulations(), seed=5, **QUICK)
    with pytest.raises(OptionError, match=r"tells the power of a likelihood for another posterior"):
        sbi_dgm.load_refined(run, posterior=other)
    (run / "likelihood" / "pool.json").rename(run / "kept.json")
    try:
        with pytest.warns(UserWarning, match=r"pool.json is missing: the likelihood has a power of 1"):
            assert sbi_dgm.load_refined(run).power == 1
    finally:
        (run / "kept.json").rename(run / "likelihood" / "pool.json")
    np.save(tmp_path / "x.npy", np.zeros(3))
    words = ["sample", str(run / "posterior.safetensors"), str(tmp_path / "x.npy"), "-n", "50", "--effective", "100"]
    assert main([*words, "--refine", "-o", str(tmp_path / "s.h5")]) == 0
    power = sbi_dgm.load_refined(run).power
    said = f"the likelihood has a power of {power:g}" if power < 1 else "ln Z ="
    assert said in capsys.readouterr().out
