"""Every prior of one number against scipy, against its own normal coordinate, and through JSON."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from sbi_dgm.distributions import (
    Beta,
    HalfNormal,
    JohnsonSU,
    LogNormal,
    LogUniform,
    Normal,
    Scipy,
    SoftplusNormal,
    TruncatedNormal,
    Uniform,
    restore,
)
from sbi_dgm.errors import PriorError
from sbi_dgm.parameters import Parameter
from sbi_dgm.univariate import EDGE, standard_normal_log_prob


class Softplus(stats.rv_continuous):
    """ln(1 + e^t), t ~ N(1, 2^2)."""

    def _cdf(self, v):
        return stats.norm.cdf(np.log(np.expm1(v)), 1, 2)

    def _sf(self, v):
        return stats.norm.sf(np.log(np.expm1(v)), 1, 2)

    def _logpdf(self, v):
        return stats.norm.logpdf(np.log(np.expm1(v)), 1, 2) + v - np.log(np.expm1(v))

    def _ppf(self, p):
        return np.log1p(np.exp(stats.norm.ppf(p, 1, 2)))

    def _isf(self, p):
        return np.log1p(np.exp(stats.norm.isf(p, 1, 2)))


CASES = {
    "uniform": (Uniform(0.1, 0.5), stats.uniform(0.1, 0.4)),
    "log_uniform": (LogUniform(1e-3, 10.0), stats.loguniform(1e-3, 10.0)),
    "normal": (Normal(3.0, 2.0), stats.norm(3.0, 2.0)),
    "log_normal": (LogNormal(-0.125, 0.5), stats.lognorm(0.5, scale=np.exp(-0.125))),
    "truncated_normal": (TruncatedNormal(0.3, 0.2, 0.0, 1.0), stats.truncnorm(-1.5, 3.5, 0.3, 0.2)),
    "truncated_tail": (TruncatedNormal(0.0, 1.0, 2.0, np.inf), stats.truncnorm(2.0, np.inf)),
    "half_normal": (HalfNormal(2.0), stats.halfnorm(scale=2.0)),
    "beta": (Beta(2.0, 3.0, -1.0, 4.0), stats.beta(2.0, 3.0, -1.0, 5.0)),
    "arcsine": (Beta(0.5, 0.5), stats.arcsine()),
    "gamma": (Scipy(stats.gamma(2.0, scale=3.0)), stats.gamma(2.0, scale=3.0)),
    "t": (Scipy(stats.t(3.0)), stats.t(3.0)),
    "johnson_su": (JohnsonSU(1.0, 3.0, -0.5, 0.8), stats.johnsonsu(0.625, 1.25, 1.0, 3.0)),
    "softplus_normal": (SoftplusNormal(1.0, 2.0), Softplus(a=0.0)),
}
EACH = pytest.mark.parametrize(("ours", "theirs"), CASES.values(), ids=CASES)
DRAWS = 50_000


class WithoutJacobian(LogNormal):
    """The density of ln v, taken for that of v."""

    def log_prob(self, v):
        return super().log_prob(v) + np.log(v)


@dataclass(frozen=True)
class TooNarrow(Normal):
    """Draws five per cent too close to the mean."""

    def from_normal(self, z):
        return super().from_normal(0.95 * z)


def unresolved(theirs, v, z):
    """4 ulp of v are worth 4 ulp |dz/dv| in z: that much no coordinate can give back."""
    return 4 * np.spacing(np.abs(v)) * np.exp(theirs.logpdf(v) - stats.norm.logpdf(z))


def check_density(ours, theirs):
    v = theirs.ppf(np.linspace(1e-4, 1 - 1e-4, 501))
    np.testing.assert_allclose(ours.log_prob(v), theirs.logpdf(v), rtol=1e-9, atol=1e-9)


def check_integrates_to_one(ours, theirs):
    """Gauss-Legendre between quantiles, which leave out 2e-7 of the mass."""
    tail = np.geomspace(1e-7, 0.5, 60)
    edges = np.concatenate([theirs.ppf(tail), theirs.isf(tail[-2::-1])])
    nodes, weights = np.polynomial.legendre.leggauss(12)
    half = np.diff(edges)[:, None] / 2
    v = edges[:-1, None] + half * (nodes + 1)
    assert abs((np.exp(ours.log_prob(v)) * half * weights).sum() - 1) < 1e-6


def check_draws(ours, theirs):
    """Kolmogorov-Smirnov at 1e-4: with 50,000 draws, a scale wrong by 5 % stands out."""
    v = ours.from_normal(np.random.default_rng(0).standard_normal(DRAWS))
    assert stats.kstest(v, theirs.cdf).pvalue > 1e-4


@EACH
def test_density_is_scipys(ours, theirs):
    check_density(ours, theirs)


@EACH
def test_density_integrates_to_one(ours, theirs):
    check_integrates_to_one(ours, theirs)


@EACH
def test_mapped_normal_draws_follow_the_distribution(ours, theirs):
    check_draws(ours, theirs)


@pytest.mark.parametrize("kind", [np.float32, np.int64])
def test_bounds_of_numpy_are_numbers(kind):
    """As `x.min()` gives them: what is described is JSON, and the same distribution again."""
    bounded = Uniform(kind(-1), kind(2))
    told = json.loads(json.dumps(bounded.describe()))
    assert restore(told) == Uniform(-1, 2)


@pytest.mark.parametrize("check", [check_density, check_integrates_to_one])
def test_a_log_normal_without_its_jacobian_is_noticed(check):
    with pytest.raises(AssertionError):
        check(WithoutJacobian(-0.125, 0.5), CASES["log_normal"][1])


def test_draws_five_per_cent_too_narrow_are_noticed():
    with pytest.raises(AssertionError):
        check_draws(TooNarrow(3.0, 2.0), CASES["normal"][1])


@EACH
def test_z_is_the_normal_quantile_of_the_cdf(ours, theirs):
    p = np.concatenate([np.geomspace(1e-6, 0.5, 50), 1 - np.geomspace(1e-6, 0.4, 50)])
    v, z = theirs.ppf(p), stats.norm.ppf(p)
    assert (np.abs(ours.to_normal(v) - z) <= 1e-8 + unresolved(theirs, v, z)).all()
    for mine, known in [(ours.cdf, theirs.cdf), (ours.sf, theirs.sf), (ours.ppf, theirs.ppf), (ours.isf, theirs.isf)]:
        at = p if mine.__name__ in {"ppf", "isf"} else v
        np.testing.assert_allclose(mine(at), known(at), rtol=1e-9, atol=1e-12)


@EACH
def test_theta_to_z_to_theta_holds_to_a_billionth_of_the_scale(ours, theirs):
    v = theirs.ppf(np.linspace(1e-6, 1 - 1e-6, 2001))
    scale = theirs.ppf(0.84) - theirs.ppf(0.16)
    error = np.abs(ours.from_normal(ours.to_normal(v)) - v)
    assert (error <= 1e-9 * (scale + np.abs(v))).all()


@EACH
def test_z_to_theta_to_z_holds_to_a_billionth_where_theta_resolves_it(ours, theirs):
    z = np.linspace(-5, 5, 2001)
    v = ours.from_normal(z)
    lost = unresolved(theirs, v, z)
    assert (np.abs(ours.to_normal(v) - z) <= 1e-9 + lost).all()
    assert (lost < 1e-9).mean() > 0.8  # the claim is not an empty one


@pytest.mark.parametrize("name", ["uniform", "log_uniform", "truncated_normal", "beta", "arcsine"])
def test_closed_edges_are_at_8_2(name):
    ours, _ = CASES[name]
    assert ours.to_normal(np.array([ours.low, ours.high])).tolist() == [-EDGE, EDGE]


@pytest.mark.parametrize("name", ["half_normal", "truncated_tail", "gamma"])
def test_a_closed_lower_edge_is_at_minus_8_2(name):
    ours, _ = CASES[name]
    assert float(ours.to_normal(np.array(ours.low))) == -EDGE


@pytest.mark.parametrize("ours", [*(ours for ours, _ in CASES.values()), LogNormal(0.0, 40.0)])
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_no_z_leaves_the_support(ours):
    z = np.linspace(-40, 40, 801)
    v = ours.from_normal(z)
    assert np.isfinite(v).all()
    assert ((ours.low <= v) & (v <= ours.high)).all()
    assert (np.diff(v) >= 0).all()


@EACH
def test_description_survives_json(ours, theirs):
    again = restore(json.loads(json.dumps(ours.describe())))
    assert type(again) is type(ours)
    assert again.describe() == ours.describe()
    v = theirs.ppf(np.linspace(0.01, 0.99, 9))
    assert again.log_prob(v).tolist() == ours.log_prob(v).tolist()
    assert (again.low, again.high) == (ours.low, ours.high)


@pytest.mark.parametrize(
    ("description", "said"),
    [
        ({"scipy": ["os"]}, "no continuous distribution named 'os'"),
        ({"scipy": ["rv_discrete"]}, "no continuous distribution named 'rv_discrete'"),
        ({"scipy": ["rv_continuous"]}, "no continuous distribution named"),
        ({"scipy": ["__doc__"]}, "no continuous distribution named"),
        ({"scipy": ["poisson", 2.0]}, "no continuous distribution named 'poisson'"),
        ({"scipy": [3]}, "prior scipy"),
        ({"scipy": []}, "prior scipy"),
        ({"scipy": 3}, "prior scipy"),
        ({"scipy": ["gamma"]}, "prior scipy"),
        ({"scipy": ["gamma", "2; import os"]}, "prior scipy"),
        ({"scipy": ["gamma", 2.0, {"bogus": 1}]}, "bogus"),
        ({"scipy": ["gamma", -1.0]}, "no distribution of one number"),
        ({"scipy": ["gamma", [1.0, 2.0]]}, "no distribution of one number"),
        ({"scipy": ["vonmises", 2.0]}, "no distribution of one number"),
        ({"scipy": ["norm", 0.0, -1.0]}, "no distribution of one number"),
        ({"scipy": ["norm", float("nan"), 1.0]}, "no distribution of one number"),
        ({"circular": [0, 1]}, "circular prior needs a periodic family"),
        ({"unifrom": [0, 1]}, "did you mean 'uniform'"),
        ({"uniform": ["a", "b"]}, "prior uniform"),
        ({"uniform": [1]}, "prior uniform"),
        ({"uniform": None}, "prior uniform"),
        ({"uniform": [2, 1]}, "low < high"),
        ({}, "one name with its numbers"),
        ({"uniform": [0, 1], "normal": [0, 1]}, "one name with its numbers"),
        (["uniform"], "one name with its numbers"),
    ],
)
def test_restore_refuses_what_is_no_prior(description, said):
    with pytest.raises(PriorError, match=said):
        restore(description)


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        (Uniform, (1, 1)),
        (Uniform, (2, 1)),
        (Uniform, (0, np.inf)),
        (Uniform, (np.nan, 1)),
        (LogUniform, (0, 1)),
        (LogUniform, (-1, 1)),
        (Normal, (0, 0)),
        (Normal, (0, -1)),
        (Normal, (np.inf, 1)),
        (LogNormal, (0, 0)),
        (TruncatedNormal, (0, 1, 2, 1)),
        (TruncatedNormal, (0, 1, 50, 60)),
        (TruncatedNormal, (0, 0, -1, 1)),
        (HalfNormal, (0,)),
        (HalfNormal, (np.nan,)),
        (Beta, (0, 1)),
        (Beta, (1, 1, 3, 2)),
    ],
)
def test_numbers_that_make_no_distribution_are_refused(kind, numbers):
    with pytest.raises(PriorError):
        kind(*numbers)


@pytest.mark.parametrize(
    "prior",
    [3.0, "uniform", stats.gamma, stats.poisson(2.0), stats.rv_histogram(np.histogram([1, 2, 2, 3]), density=True)()],
    ids=["number", "string", "not frozen", "discrete", "histogram"],
)
def test_a_parameter_refuses_what_no_file_could_hold(prior):
    with pytest.raises(PriorError, match="is no prior"):
        Parameter("a", prior)


def test_the_standard_normal_is_scipys():
    z = np.random.default_rng(0).standard_normal((5, 4, 3))
    np.testing.assert_allclose(standard_normal_log_prob(z), stats.norm.logpdf(z).sum(-1), rtol=1e-12)
