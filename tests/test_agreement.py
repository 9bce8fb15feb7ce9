"""Theta against its prior: draws of it pass at the stated level, other draws are accused by name."""

import json
import warnings

import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtri

from sbi_dgm import BoundedPrior, MultivariateNormal, Normal, Parameter, Prior, Simulations, Uniform
from sbi_dgm.data import agreement
from sbi_dgm.data.agreement import Agreement, against_failures, against_prior

PRIOR = Prior([Parameter("a", Uniform(0.1, 0.5)), Parameter("b", Normal(2, 3)), Parameter("c", Uniform(-1, 1))])
PAIRS = ["a, b", "a, c", "b, c"]


def cube(rows, seed=0):
    return np.random.default_rng(seed).random((rows, 3))


def from_cube(u):
    return PRIOR.coordinates.inverse(ndtri(u))


def differs(theta, prior=PRIOR):
    return Agreement(against_prior(prior, theta)).differs


def alarms(level, trials, found):
    """How many of the trials have any p-value below the level, shared out as the library does."""
    return sum(min(p.values(), default=1) < level / max(1, len(p)) for p in map(found, range(trials)))


def most(level, trials):
    """An upper bound that a correct rate exceeds once in ten thousand times."""
    return stats.binom.isf(1e-4, trials, level)


def least(level, trials):
    return stats.binom.ppf(1e-4, trials, level / 2)


@pytest.mark.parametrize("rows", [30, 1000])
def test_draws_of_the_prior_are_accused_as_rarely_as_is_said(rows):
    count = alarms(0.1, 400, lambda seed: against_prior(PRIOR, PRIOR.sample(rows, seed)))
    assert least(0.1, 400) <= count <= most(0.1, 400)
    skewed = alarms(0.1, 50, lambda seed: against_prior(PRIOR, from_cube(cube(rows, seed) ** 1.5)))
    assert skewed > most(0.1, 50)


@pytest.mark.parametrize("rows", [30, 1000])
def test_failures_at_random_are_accused_as_rarely_as_is_said(rows):
    def found(seed, power=1.0):
        u = cube(rows, seed)
        valid = np.random.default_rng([seed, 1]).random(rows) > 0.4 * u[:, 1] ** (power - 1)
        return against_failures(["a", "b", "c"], u, valid)

    assert alarms(0.1, 400, found) <= most(0.1, 400)
    if rows > 30:
        assert alarms(0.1, 50, lambda seed: found(seed, 6.0)) > most(0.1, 50)


def test_the_level_is_one_in_ten_thousand_for_all_tests_together():
    p = {"a": 2e-5, "b": 0.9e-5, "c": 1, **dict.fromkeys(PAIRS, 0.5), "d": 0.5, "e": 0.3, "f": 1.0, "g": 1.0}
    assert len(p) == 10
    assert Agreement(p).differs == ["b"]
    assert Agreement({}, p).fails == ["b"]
    assert Agreement().differs == []
    assert agreement.LEVEL == 1e-4


WRONG = {
    "wider": (lambda u: 0.5 + (u[:, 0] - 0.5) / 1.1, 0, ["a"]),
    "shifted": (lambda u: ndtri(u[:, 1]) * 3 + 2.2, 1, ["b"]),
    "narrow_normal": (lambda u: ndtri(u[:, 1]) * 2.7 + 2, 1, ["b"]),
    "log_uniform": (lambda u: u[:, 2] ** 1.1, 2, ["c"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_prior_that_theta_was_not_drawn_from_is_accused_by_name(name):
    make, column, names = WRONG[name]
    u = cube(20_000)
    theta = from_cube(u)
    theta[:, column] = make(u) if column == 1 else from_cube(np.stack([make(u)] * 3, 1))[:, column]
    assert differs(theta) == names
    assert differs(from_cube(u)) == []


@pytest.mark.parametrize(("i", "j"), [(0, 1), (0, 2), (1, 2)])
def test_correlated_parameters_are_accused_by_pair(i, j):
    z = np.random.default_rng(0).normal(size=(20_000, 3))
    z[:, j] = 0.06 * z[:, i] + np.sqrt(1 - 0.06**2) * z[:, j]
    assert differs(PRIOR.coordinates.inverse(z)) == [f"{PRIOR.names[i]}, {PRIOR.names[j]}"]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("design", ["LatinHypercube", "Sobol", "Halton"])
@pytest.mark.parametrize("rows", [64, 1024, 8192])
def test_designs_that_are_more_even_than_draws_pass(design, rows, seed):
    u = getattr(stats.qmc, design)(3, rng=seed).random(rows)
    assert differs(from_cube(np.clip(u, 1e-12, 1 - 1e-12))) == []


def test_a_design_over_a_wider_box_does_not_pass():
    u = stats.qmc.LatinHypercube(3, rng=0).random(8192)
    u[:, 2] = 0.5 + (u[:, 2] - 0.5) / 1.1
    assert differs(from_cube(u)) == ["c"]


@pytest.mark.parametrize("times", [15, 400])
def test_repeated_universes_count_once(times):
    for seed in range(20):
        universes = PRIOR.sample(100, seed)
        once, often = against_prior(PRIOR, universes), against_prior(PRIOR, np.repeat(universes, times, axis=0))
        assert {n: round(p, 9) for n, p in often.items()} == {n: round(p, 9) for n, p in once.items()}
    z = PRIOR.standardise(np.repeat(universes, 400, axis=0))
    assert min(stats.kstest(column, "norm")[1] for column in z.T) < 1e-4  # what counting all would say


def test_universes_that_fail_as_a_whole_count_once():
    def found(seed):
        theta = np.repeat(PRIOR.sample(100, seed), 15, axis=0)
        valid = np.repeat(np.random.default_rng([seed, 1]).random(100) > 0.1, 15)
        return against_failures(list(PRIOR.names), theta, valid)

    assert alarms(0.01, 200, found) <= most(0.01, 200)
    naive = 0
    for seed in range(50):
        theta = np.repeat(cube(100, seed), 15, axis=0)
        valid = np.repeat(np.random.default_rng([seed, 1]).random(100) > 0.1, 15)
        naive += min(stats.ks_2samp(a, b)[1] for a, b in zip(theta[~valid].T, theta[valid].T, strict=True)) < 0.003
    assert naive > most(0.01, 50)


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_failures_that_depend_on_a_parameter_are_named(name):
    theta = PRIOR.sample(4000, 0)
    z = PRIOR.standardise(theta)[:, PRIOR.names.index(name)]
    valid = np.random.default_rng(1).random(4000) > np.where(z > 1, 0.3, 0.05)
    x = np.where(valid[:, None], theta, np.nan)
    data = Simulations.from_arrays(theta, x, prior=PRIOR)
    assert data.agreement().fails == [name]
    assert data.agreement().differs == []
    even = np.random.default_rng(1).random(4000) > 0.1
    assert Simulations.from_arrays(theta, theta, prior=PRIOR, valid=even).agreement().fails == []


@pytest.mark.parametrize("valid", [0, 1])
def test_nothing_is_said_of_failures_where_all_or_none_failed(valid):
    assert against_failures(["a"], cube(50)[:, :1], np.full(50, bool(valid))) == {}


def test_proposal_weights_and_a_missing_prior_switch_the_test_off():
    theta = from_cube(cube(4000) ** 1.5)
    told = {n: Simulations.from_arrays(theta, theta, **k).agreement() for n, k in {
        "prior": {"prior": PRIOR},
        "weights": {"prior": PRIOR, "proposal_weight": np.ones(4000)},
        "none": {},
        "events": {"prior": PRIOR, "event_weight": np.ones(4000)},
    }.items()}  # fmt: skip
    assert {n: bool(a.differs) for n, a in told.items()} == {
        "prior": True, "weights": False, "none": False, "events": True,
    }  # fmt: skip
    assert told["weights"].theta == told["none"].theta == {}


class Triangle:
    """b below a, uniform there: a joint density in a box."""

    def sample(self, n, rng):
        u = rng.random((n, 2))
        return np.stack([u.max(1), u.min(1)], 1)

    def log_prob(self, theta):
        return np.where(theta[..., 1] <= theta[..., 0], np.log(2.0), -np.inf)


def test_a_bounded_prior_is_compared_with_its_own_draws():
    prior = BoundedPrior(["a", "b"], Triangle(), [0, 0], [1, 1])
    for seed in range(10):
        assert differs(prior.sample(5000, seed), prior) == []
    flat = np.random.default_rng(0).random((5000, 2))
    assert differs(flat, prior) == ["a", "b"]
    own = prior.sample(5000, 3)
    assert differs(np.stack([own[:, 0], np.random.default_rng(1).permutation(own[:, 1])], 1), prior) == ["a, b"]


def test_a_correlated_prior_is_compared_in_its_own_coordinates():
    prior = MultivariateNormal(["a", "b"], [0, 1], [[1, 0.9], [0.9, 1]])
    assert differs(prior.sample(20_000, 0), prior) == []
    apart = MultivariateNormal(["a", "b"], [0, 1], [[1, 0.85], [0.85, 1]])
    assert differs(apart.sample(20_000, 0), prior) != []


def test_draws_on_an_edge_and_a_parameter_that_never_changes_do_not_disturb():
    theta = PRIOR.sample(2000, 0)
    theta[0, 0], theta[1, 2] = 0.1, 1
    assert differs(theta) == []
    theta[:, 2] = 0.25
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Agreement(against_prior(PRIOR, theta))
    assert found.differs == ["c"]
    assert all(np.isfinite(p) for p in found.theta.values())
    json.loads(json.dumps(found.describe(), allow_nan=False))


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_few_rows_are_compared_without_complaint(rows):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert differs(PRIOR.sample(rows, 0)) == []


def test_a_large_table_is_thinned_evenly():
    theta = from_cube(cube(300_000))
    assert differs(theta) == []
    theta[150_000:, 1] += 1
    assert differs(theta) == ["b"]
