"""Joint priors against known densities, their seeds, their sentences, and their way through JSON."""

import json

import numpy as np
import pytest
from prior_toys import COVARIANCE, from_triangle, triangle
from scipy import stats

from sbi_dgm.distributions import LogNormal, Normal, Uniform
from sbi_dgm.errors import ExternalError, PriorError
from sbi_dgm.parameters import Observable, Parameter
from sbi_dgm.priors import BoundedPrior, MultivariateNormal, Prior, PriorTransform, restore, tabulated

MEAN = np.array([1.0, -2.0, 0.5])
LOW, HIGH = 0.2, 3.0
N = 20_000


def crowded(u):
    """Without the square root the draws crowd at the origin."""
    return np.stack([u[..., 0] * (1 - u[..., 1]), u[..., 0] * u[..., 1]], axis=-1)


def from_crowded(theta):
    return np.stack([theta.sum(-1), theta[..., 1] / theta.sum(-1)], axis=-1)


def nested(u):
    """theta_1 log-uniform on [0.2, 3], theta_2 uniform on [0, theta_1]."""
    first = LOW * (HIGH / LOW) ** u[..., 0]
    return np.stack([first, first * u[..., 1]], axis=-1)


def from_nested(theta):
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([np.log(theta[..., 0] / LOW) / np.log(HIGH / LOW), theta[..., 1] / theta[..., 0]], axis=-1)


def independent():
    return Prior(
        [
            Parameter("a", Uniform(0.1, 0.5), r"\alpha", "mag"),
            Parameter("b", LogNormal(0.3, 0.4)),
            Parameter("c", stats.gamma(2.0)),
        ]
    )


def normal():
    return MultivariateNormal(["a", "b", Parameter("c", label="C")], MEAN, COVARIANCE)


def flat():
    return PriorTransform(["a", "b"], triangle, from_triangle)


def in_the_triangle(n, seed=0):
    return np.random.default_rng(seed).dirichlet([1.0, 1.0, 1.0], n)[:, :2]


def check_is_flat_on_the_triangle(prior):
    """ln 2, up to the central differences of |z| <= 4 (near 1e-7)."""
    theta = in_the_triangle(500)
    np.testing.assert_allclose(prior.log_prob(theta), np.log(2), rtol=0, atol=1e-5)


def test_independent_density_is_the_product():
    prior = independent()
    theta = prior.sample(200, seed=0)
    known = [stats.uniform(0.1, 0.4), stats.lognorm(0.4, scale=np.exp(0.3)), stats.gamma(2.0)]
    expected = sum(d.logpdf(column) for d, column in zip(known, theta.T, strict=True))
    np.testing.assert_allclose(prior.log_prob(theta), expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(prior.log_prob(theta.reshape(20, 10, 3)), expected.reshape(20, 10), rtol=0, atol=1e-9)
    assert float(prior.log_prob(theta[3])) == pytest.approx(expected[3], abs=1e-9)


def test_multivariate_normal_density_is_scipys():
    theta = normal().sample(200, seed=0)
    expected = stats.multivariate_normal(MEAN, COVARIANCE).logpdf(theta)
    np.testing.assert_allclose(normal().log_prob(theta), expected, rtol=0, atol=1e-10)


def test_a_flat_prior_on_a_triangle_is_flat():
    check_is_flat_on_the_triangle(flat())


def test_a_map_that_crowds_is_not_flat():
    with pytest.raises(AssertionError):
        check_is_flat_on_the_triangle(PriorTransform(["a", "b"], crowded, from_crowded))


def test_a_normal_by_its_cube_is_the_multivariate_normal():
    factor = np.linalg.cholesky(COVARIANCE)
    prior = PriorTransform(
        ["a", "b", "c"],
        lambda u: MEAN + stats.norm.ppf(u) @ factor.T,
        lambda theta: stats.norm.cdf((theta - MEAN) @ np.linalg.inv(factor).T),
    )
    theta = normal().sample(200, seed=0)
    np.testing.assert_allclose(prior.log_prob(theta), normal().log_prob(theta), rtol=0, atol=1e-5)


def test_a_conditional_prior_has_the_known_density_and_integrates_to_one():
    prior = PriorTransform(["a", "b"], nested, from_nested)
    nodes, weights = np.polynomial.legendre.leggauss(24)
    first = LOW + (HIGH - LOW) * (nodes + 1) / 2
    theta = np.stack([np.repeat(first, 24), np.outer(first, (nodes + 1) / 2).ravel()], axis=-1)
    density = np.exp(prior.log_prob(theta))
    np.testing.assert_allclose(density, 1 / (theta[:, 0] ** 2 * np.log(HIGH / LOW)), rtol=1e-6)
    area = np.outer(weights * first, weights).ravel() * (HIGH - LOW) / 4
    assert (density * area).sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("prior", "outside"),
    [
        (
            independent(),
            [
                [0.0999, 1, 1],
                [0.5001, 1, 1],
                [0.3, 0, 1],
                [0.3, -1, 1],
                [0.3, 1, -1e-9],
                [np.nan, 1, 1],
                [0.3, np.inf, 1],
            ],
        ),
        (normal(), [[np.nan, 0, 0], [0, np.inf, 0], [0, 0, -np.inf]]),
        (flat(), [[0.6, 0.6], [-0.1, 0.5], [0.5, -0.1], [3, 3], [np.nan, 0.1]]),
        (PriorTransform(["a", "b"], nested, from_nested), [[0.1, 0.05], [3.1, 1], [1, 1.1], [1, -0.1], [-1, -0.5]]),
    ],
    ids=["independent", "normal", "triangle", "nested"],
)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_outside_the_support_the_density_is_zero_and_standardising_refuses(prior, outside):
    assert prior.log_prob(outside).tolist() == [-np.inf] * len(outside)
    for row in outside:
        with pytest.raises(PriorError, match="theta row 0"):
            prior.standardise([row])


@pytest.mark.parametrize("prior", [independent(), normal(), flat()], ids=["independent", "normal", "triangle"])
def test_draws_are_standard_normal_under_the_coordinates_and_reproducible(prior):
    theta = prior.sample(N, seed=3)
    z = prior.standardise(theta)
    assert min(stats.kstest(column, "norm").pvalue for column in z.T) > 1e-4
    correlation = np.corrcoef(z.T) - np.eye(len(prior))
    assert np.abs(correlation).max() < 4 / np.sqrt(N)  # 4 standard errors
    assert prior.sample(N, seed=3).tolist() == theta.tolist()
    assert prior.sample(5, seed=4).tolist() != theta[:5].tolist()
    assert prior.sample(5).tolist() != prior.sample(5).tolist()


def test_draws_of_the_triangle_have_its_moments():
    theta = flat().sample(N, seed=1)
    for values, known in [(theta[:, 0], 1 / 3), (theta[:, 1] ** 2, 1 / 6), (theta.prod(-1), 1 / 12)]:
        assert abs(values.mean() - known) < 4 * values.std() / np.sqrt(N)  # 4 standard errors


def test_the_sentence_names_row_parameter_value_bounds_and_count():
    theta = np.tile([0.3, 1.0, 1.0], (6, 1))
    theta[2, 0], theta[4, 1] = 0.7, -3.0
    said = r"theta row 2: a = 0\.7 is outside its prior \[0\.1, 0\.5\] \(2 of 6 rows are\)"
    with pytest.raises(PriorError, match=said):
        independent().check(theta)
    independent().check(theta[[0, 1, 3, 5]])


def test_theta_of_another_length_is_refused_with_its_shape():
    with pytest.raises(PriorError, match=r"shape \(2,\).*3 parameters"):
        independent().log_prob([0.1, 0.2])
    with pytest.raises(PriorError, match=r"shape \(\)"):
        independent().log_prob(0.1)


def test_the_marginal_of_independent_parameters_is_theirs():
    part = independent().marginal(["c", "a"])
    assert part.names == ("c", "a")
    theta = part.sample(50, seed=0)
    expected = stats.gamma(2.0).logpdf(theta[:, 0]) - np.log(0.4)
    np.testing.assert_allclose(part.log_prob(theta), expected, rtol=0, atol=1e-9)


def test_the_marginal_of_a_normal_is_its_block():
    part = normal().marginal(["c", "a"])
    theta = part.sample(50, seed=0)
    expected = stats.multivariate_normal(MEAN[[2, 0]], COVARIANCE[np.ix_([2, 0], [2, 0])]).logpdf(theta)
    np.testing.assert_allclose(part.log_prob(theta), expected, rtol=0, atol=1e-10)


def test_the_marginal_of_a_transform_is_unknown_unless_whole():
    prior = flat()
    assert prior.marginal(["a"]) is None
    assert prior.marginal(["a", "b"]) is prior


@pytest.mark.parametrize("prior", [independent(), normal()], ids=["independent", "normal"])
def test_the_marginal_of_an_unknown_name_is_refused(prior):
    with pytest.raises(PriorError, match="unknown parameter 'd'"):
        prior.marginal(["a", "d"])


@pytest.mark.parametrize("prior", [independent(), normal()], ids=["independent", "normal"])
def test_description_survives_json(prior):
    again = restore(json.loads(json.dumps(prior.describe())))
    assert again == prior
    assert again.parameters[0].label == prior.parameters[0].label
    theta = prior.sample(20, seed=0)
    assert again.log_prob(theta).tolist() == prior.log_prob(theta).tolist()


def test_an_external_prior_is_asked_for_and_recognised():
    description = json.loads(json.dumps(flat().describe()))
    given = flat()
    assert restore(description, given) is given
    with pytest.raises(ExternalError, match="pass it as prior="):
        restore(description)
    for other in (PriorTransform(["a", "b"], nested, from_nested), Prior([Parameter("a", Uniform(0, 1))])):
        with pytest.raises(ExternalError, match="not the one of the file"):
            restore(description, other)


def test_a_prior_of_a_kind_yet_unknown_is_refused():
    with pytest.raises(PriorError, match="'copula' is unknown to this version"):
        restore({"kind": "copula", "parameters": []} | {"parameters": [Parameter("a").describe()]})


@pytest.mark.parametrize("prior", [independent(), normal(), flat()], ids=["independent", "normal", "triangle"])
def test_draws_do_not_share_the_stream_of_a_users_noise(prior):
    """With the same seed, theta and noise would be functions of each other."""
    z = prior.standardise(prior.sample(5000, seed=3))
    noise = np.random.default_rng(3).normal(size=z.shape)
    assert all(abs(np.corrcoef(a, b)[0, 1]) < 5 / 5000**0.5 for a, b in zip(z.T, noise.T, strict=True))
    twin = prior.standardise(prior.draw(5000, np.random.default_rng(3)))
    assert np.corrcoef(twin[:, 0], noise[:, 0])[0, 1] > 0.9


def test_a_prior_that_is_a_function_keeps_its_order():
    with pytest.raises(PriorError, match="keeps the order of its parameters: a, b"):
        flat().marginal(["b", "a"])
    assert flat().marginal(["a"]) is None
    assert flat().marginal(["a", "b"]) is not None


def test_a_bounded_prior_is_told_from_another_of_the_same_bounds():
    class Power:
        def __init__(self, power):
            self.power = power

        def sample(self, n, rng):
            return rng.random((n, 1)) ** (1 / (1 + self.power))

        def log_prob(self, theta):
            return np.log1p(self.power) + self.power * np.log(theta[..., 0])

    one, other = (BoundedPrior(["a"], Power(power), [0], [1]) for power in (1, 3))
    assert one == BoundedPrior(["a"], Power(1), [0], [1])
    assert one != other
    with pytest.raises(ExternalError, match="not the one of the file"):
        restore(one.describe(), other)


def test_a_table_of_numbers_by_name_is_no_list_of_them():
    with pytest.raises(PriorError, match=r"prior of 'h': prior uniform with \{'low': 0, 'high': 1\}: give a list"):
        tabulated({"h": {"uniform": {"low": 0, "high": 1}}})


@pytest.mark.parametrize("names", [["a", "a"], []])
def test_names_must_be_unique_and_some(names):
    with pytest.raises(PriorError, match="unique names"):
        Prior([Parameter(name, Normal(0, 1)) for name in names])


@pytest.mark.parametrize("name", ["", "a/b", " a", "a "])
def test_names_must_do_for_files(name):
    with pytest.raises(PriorError, match="no usable name"):
        Parameter(name, Normal(0, 1))


def test_a_parameter_without_prior_is_refused():
    with pytest.raises(PriorError, match="'a' has no prior"):
        Prior([Parameter("a")])


@pytest.mark.parametrize(
    ("mean", "covariance", "said"),
    [
        ([0.0], np.eye(2), r"mean \(2,\)"),
        ([0.0, 0.0], np.eye(3), r"covariance \(2, 2\)"),
        ([0.0, 0.0], [[1.0, 2.0], [2.0, 1.0]], "not positive definite"),
        ([0.0, 0.0], [[1.0, 0.9], [0.0, 1.0]], "symmetric"),
        ([0.0, 0.0], [[1.0, np.nan], [np.nan, 1.0]], "finite"),
        ([np.inf, 0.0], np.eye(2), "finite"),
    ],
)
def test_moments_that_make_no_normal_are_refused(mean, covariance, said):
    with pytest.raises(PriorError, match=said):
        MultivariateNormal(["a", "b"], mean, covariance)


def test_maps_that_do_not_undo_each_other_are_refused():
    with pytest.raises(PriorError, match="not the inverse of from_cube"):
        PriorTransform(["a", "b"], triangle, from_crowded)


def test_titles_and_observables():
    assert Parameter("M", Normal(0, 1), unit="mag").title == "M [mag]"
    assert Parameter("omega_m", label=r"\Omega_m").title == r"$\Omega_m$"
    observable = Observable((3, 4), "mag", r"\mu", ("a", "b"))
    assert observable.size == 12
    assert Observable(()).size == 1
    assert Observable.restore(json.loads(json.dumps(observable.describe()))) == observable


class Tilted:
    """p(a, b) = (1 + a b) on [-1, 1]^2, over 4."""

    def sample(self, n, rng):
        theta = rng.uniform(-1, 1, (4 * n, 2))
        return theta[rng.uniform(0, 2, 4 * n) < 1 + theta.prod(-1)][:n]

    def log_prob(self, theta):
        return np.log1p(theta.prod(-1)) - np.log(4)


def test_a_prior_of_draws_and_density_serves_between_its_bounds():
    prior = BoundedPrior(["a", "b"], Tilted(), [-1, -1], [1, 1])
    draws = prior.sample(20_000, seed=0)
    assert abs(draws.prod(-1).mean() - 1 / 9) < 4 * draws.prod(-1).std() / 20_000**0.5
    assert prior.log_prob([[0.5, 0.5], [2.0, 0.0]]).tolist() == [np.log(1.25) - np.log(4), -np.inf]
    z, _ = prior.coordinates.forward(draws)
    np.testing.assert_allclose(prior.coordinates.inverse(z), draws, atol=1e-12)
    with pytest.raises(PriorError, match="as many bounds"):
        BoundedPrior(["a", "b"], Tilted(), [-1], [1])
