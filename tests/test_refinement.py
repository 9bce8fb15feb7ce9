"""Importance refinement against posteriors and evidences in closed form."""

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from sbi_dgm import VAE, Flow, FlowMatching, Simulations, Training, fit
from sbi_dgm.distributions import Normal, Uniform
from sbi_dgm.errors import ObservationError, OptionError, PriorError
from sbi_dgm.parameters import Observable, Parameter
from sbi_dgm.priors import Prior
from sbi_dgm.refinement import BLOCK, Refined

PRIOR = Prior([Parameter("a", Normal(0.0, 1.0)), Parameter("b", Normal(0.0, 2.0))])
NOISE = 0.3
X = np.array([0.8, -1.0])
VARIANCE = np.array([1.0, 4.0])
WIDTH = np.sqrt(1 / (1 / VARIANCE + 1 / NOISE**2))
CENTRE = X * WIDTH**2 / NOISE**2
LOG_EVIDENCE = float(norm.logpdf(X, 0, np.sqrt(VARIANCE + NOISE**2)).sum())


class Toy:
    """A normal proposal, of a shift and a width relative to the exact posterior's."""

    names = ["a", "b"]  # noqa: RUF012

    def __init__(self, shift=0.0, width=1.0, lie=0.0):
        self.mean, self.sd, self.lie = CENTRE + shift * WIDTH, width * WIDTH, lie

    def require_prior(self, purpose):
        return PRIOR

    def proposals(self, n, x, seed):
        theta = self.mean + self.sd * np.random.default_rng(seed).standard_normal((n, 2))
        return theta, self.proposal_density(theta, x, 0)

    def proposal_density(self, theta, x, seed):
        return norm.logpdf(theta, self.mean, self.sd).sum(-1) + self.lie

    def observations(self, x):
        return ([x], True) if x.ndim == 1 else (list(x), False)

    def trust(self, x):
        return None


def log_likelihood(theta, x):
    return norm.logpdf(x, theta, NOISE).sum(-1)


def two_modes(theta, x):
    """The posterior's twin at -x beside it."""
    return np.logaddexp(log_likelihood(theta, x), log_likelihood(theta, -x))


def weighed(proposal, function=log_likelihood, seed=0, **options):
    return Refined(proposal, function, **({"effective": 5000} | options)).weigh(X, seed=seed)


def check_evidence(proposal, function=log_likelihood, expected=LOG_EVIDENCE):
    """z-scores of twenty runs: as a standard normal's, none beyond 4, their mean square below the 99.9 % point."""
    scores = []
    for seed in range(20):
        found = weighed(proposal, function, seed)
        scores.append((found.log_evidence - expected) / found.log_evidence_error)
    assert np.abs(scores).max() < 4
    assert np.mean(np.square(scores)) < 2.27


@pytest.mark.parametrize(
    "proposal", [Toy(), Toy(1.0), Toy(0.5, 0.7), Toy(0.0, 3.0)], ids=["exact", "off", "narrow", "wide"]
)
def test_the_evidence_is_right_within_its_error(proposal):
    check_evidence(proposal)


def test_a_proposal_that_lies_about_its_density_is_noticed():
    with pytest.raises(AssertionError):
        check_evidence(Toy(0.5, 1.3, lie=0.1))


def check_draws(draws):
    """Mean and sd within four standard errors of 4,000 draws."""
    assert (np.abs(draws.mean(0) - CENTRE) < 4 * WIDTH / np.sqrt(4000)).all()
    assert (np.abs(draws.std(0) / WIDTH - 1) < 4 / np.sqrt(8000)).all()


@pytest.mark.parametrize("proposal", [Toy(), Toy(1.0, 1.5)], ids=["exact", "off"])
def test_draws_are_the_posterior(proposal):
    check_draws(Refined(proposal, log_likelihood, effective=8000).sample(4000, X, seed=1).array)


def test_draws_by_another_likelihood_are_noticed():
    with pytest.raises(AssertionError):
        check_draws(
            Refined(Toy(), lambda t, x: 1.3 * log_likelihood(t, x), effective=8000).sample(4000, X, seed=1).array
        )


def test_an_exact_posterior_keeps_its_draws():
    found = weighed(Toy())
    assert found.effective > 0.94 * len(found.theta)
    assert found.pareto_k < 0
    assert found.distinct(1000) == pytest.approx(1000)
    assert found.trusted


def test_a_missed_mode_is_flagged_and_a_covered_one_is_not():
    missed = Refined(Toy(), two_modes, effective=5000, cap=BLOCK).weigh(X, seed=0)
    assert missed.pareto_k > 0.7
    assert not missed.trusted
    assert "misses the posterior or a mode" in missed.verdict
    covering = weighed(Toy(-CENTRE / WIDTH, (np.abs(CENTRE) + WIDTH) / WIDTH), two_modes)
    assert covering.trusted
    assert covering.k_alone < 0.7


def test_a_mixture_fitted_to_what_the_prior_has_hit_finds_a_missed_mode():
    """The same mass on both sides, and twice the evidence; the verdict says that the posterior alone had failed."""
    check_evidence(Toy(), two_modes, LOG_EVIDENCE + np.log(2))
    found = weighed(Toy(), two_modes)
    assert found.trusted
    assert "of the posterior alone: k = " in found.verdict
    assert found.k_alone > 0.7
    draws = found.draw(4000, np.random.default_rng(0))[0]
    assert abs((draws[:, 0] > 0).mean() - 0.5) < 4 * 0.5 / np.sqrt(4000)


def test_proposals_that_leave_the_prior_weigh_nothing():
    """A likelihood that falls so slowly that fitted tails reach beyond |z| = 8.2; the evidence stays right."""
    wide = Prior([Parameter("a", Normal(0.0, 1.0)), Parameter("b", Normal(0.0, 1.0))])

    class Far(Toy):
        def require_prior(self, purpose):
            return wide

    def at_the_edge(theta, x):
        return np.where((np.abs(theta) < 8.2).all(-1), norm.logpdf(6.0, theta, 2.0).sum(-1), -np.inf)

    exact = 2 * norm.logpdf(6.0, 0, np.sqrt(5.0))
    for seed in range(5):
        found = Refined(Far(0, 30.0), at_the_edge, effective=20_000).weigh(X, seed=seed)
        assert abs(found.log_evidence - exact) < 4 * found.log_evidence_error


def test_the_cap_is_said_and_warned_of():
    small = Refined(Toy(), two_modes, effective=10**6, cap=BLOCK)
    assert "1000000 were asked for: the cap" in small.weigh(X, seed=0).verdict
    said = (
        r"the weights of 2 of 2 observations are of little use: observation 0: .* of 10 draws are different; .*Pareto"
    )
    with pytest.warns(UserWarning, match=said) as warned:
        small.sample(10, np.stack([X, X]), seed=0)
    assert len(warned) == 1


def test_it_goes_on_until_enough_are_effective():
    found = weighed(Toy(1.0), effective=20_000)
    assert found.reached
    assert len(found.theta) > BLOCK
    less = weighed(Toy(1.0), effective=20_000, cap=len(found.theta) - BLOCK)
    assert not less.reached


def test_the_target_less_the_evidence_is_a_density():
    posterior = Refined(Toy(), log_likelihood, effective=1000)
    theta = CENTRE + WIDTH * np.random.default_rng(0).standard_normal((50, 2))
    exact = multivariate_normal(CENTRE, np.diag(WIDTH**2)).logpdf(theta)
    np.testing.assert_allclose(posterior.log_target(theta, X) - LOG_EVIDENCE, exact, rtol=0, atol=1e-9)


def check_density(posterior):
    """ln q of given points and of draws, within five standard errors of the constant."""
    theta = CENTRE + WIDTH * np.random.default_rng(0).standard_normal((50, 2))
    error = 5 * posterior.weigh(X, seed=0).log_evidence_error
    exact = multivariate_normal(CENTRE, np.diag(WIDTH**2))
    assert np.abs(posterior.log_prob(theta, X) - exact.logpdf(theta)).max() < error
    drawn = posterior.sample(50, X, seed=1, log_prob=True)
    assert np.abs(drawn.log_prob - exact.logpdf(drawn.array)).max() < error


def test_the_density_is_normalised():
    check_density(Refined(Toy(0.5, 1.3), log_likelihood, effective=5000))


def test_a_density_by_proposals_that_lie_is_noticed():
    with pytest.raises(AssertionError):
        check_density(Refined(Toy(0.5, 1.3, lie=0.1), log_likelihood, effective=5000))


def test_densities_of_a_stack_are_those_of_its_observations():
    posterior, stack = Refined(Toy(0.0, 2.0), log_likelihood, effective=2000), np.stack([X, X + 0.2])
    theta = CENTRE + WIDTH * np.random.default_rng(0).standard_normal((2, 7, 2))
    each = np.stack([posterior.log_prob(t, x) for t, x in zip(theta, stack, strict=True)])
    np.testing.assert_allclose(posterior.log_prob(theta, stack), each, rtol=0, atol=0.1)
    np.testing.assert_allclose(posterior.log_prob(theta[:, 0], stack), each[:, 0], rtol=0, atol=0.1)
    assert posterior.sample(7, stack, seed=0, log_prob=True).log_prob.shape == (2, 7)
    assert posterior.sample(7, X, seed=0).log_prob is None


def test_a_stack_is_refined_one_by_one():
    posterior = Refined(Toy(0.0, 2.0), log_likelihood, effective=2000)
    draws = posterior.sample(3000, np.stack([X, X + 0.2]), seed=0)
    assert draws.array.shape == (2, 3000, 2)
    step = draws.array[1].mean(0) - draws.array[0].mean(0)
    assert (np.abs(step - 0.2 * WIDTH**2 / NOISE**2) < 5 * WIDTH * np.sqrt(2 / 2000)).all()
    with pytest.raises(ObservationError, match="2 observations: weigh them one by one"):
        posterior.weigh(np.stack([X, X]))


def test_the_seed_decides():
    a, b, c = (Refined(Toy(), log_likelihood, effective=10).sample(5, X, seed=s).array for s in (1, 1, 2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda t, x: np.where(t[:, 0] > 1, np.nan, 0.0), r"log-likelihood is nan at a = "),
        (lambda t, x: np.full(len(t), np.inf), r"log-likelihood is inf at a = "),
        (lambda t, x: np.full(len(t), -np.inf), "zero at all 16384 proposals"),
        (lambda t, x: t, r"gave shape \(16384, 2\)"),
    ],
)
def test_impossible_likelihoods_are_refused(function, sentence):
    with pytest.raises(ObservationError, match=sentence):
        weighed(Toy(), function)


@pytest.mark.parametrize("options", [{"effective": 0}, {"effective": 10, "cap": 5}])
def test_impossible_options_are_refused(options):
    with pytest.raises(OptionError, match="effective"):
        Refined(Toy(), log_likelihood, **({"cap": BLOCK} | options))


def test_what_is_no_likelihood_is_refused():
    with pytest.raises(OptionError, match="no likelihood"):
        Refined(Toy(), 3, effective=10)


def test_a_simulator_is_no_likelihood():
    class Silent:
        name, prior, observables = "silent", PRIOR, {"x": Observable((2,))}

        def __call__(self, theta, rng):
            return theta

    with pytest.raises(OptionError, match="simulator 'silent' has no log_likelihood"):
        Refined(Toy(), Silent(), effective=10)


class Known:
    """The exact likelihood with names in another order, or of other parameters."""

    def __init__(self, *names):
        self.name, self.observables = "known", {"x": Observable((2,))}
        self.prior = Prior([Parameter(name, Normal(0.0, 1.0)) for name in names])

    def log_likelihood(self, theta, x):
        return log_likelihood(theta[:, [self.prior.names.index(name) for name in ("a", "b")]], x)


def test_parameters_of_a_likelihood_are_told_by_name():
    """In whatever order; a function without names takes the posterior's, and in the other one is noticed."""
    expected = weighed(Toy())
    for names in (("a", "b"), ("b", "a")):
        np.testing.assert_array_equal(weighed(Toy(), Known(*names)).log_weight, expected.log_weight)
    found = weighed(Toy(), lambda theta, x: log_likelihood(theta[:, ::-1], x), cap=BLOCK)
    assert np.abs(found.log_weight - expected.log_weight).max() > 5


@pytest.mark.parametrize("names", [("a",), ("a", "c"), ("a", "b", "c")])
def test_a_likelihood_of_other_parameters_is_refused(names):
    with pytest.raises(OptionError, match=r"the likelihood is of \['a'.*, the posterior of \['a', 'b'\]: refine"):
        Refined(Toy(), Known(*names), effective=10)


def test_a_negative_number_of_draws_is_refused():
    with pytest.raises(OptionError, match="n = -5: give a whole number, 0 or more"):
        Refined(Toy(), log_likelihood, effective=10).sample(-5, X)


def test_without_a_prior_there_is_no_refinement():
    class Uninformed(Toy):
        def require_prior(self, purpose):
            raise PriorError(f"{purpose} needs the prior")

    with pytest.raises(PriorError, match="refinement needs"):
        Refined(Uninformed(), log_likelihood, effective=10)


# Posteriors of families, whose densities mean different things


def linear(n=1500):
    theta = PRIOR.sample(n, 0)
    x = theta + NOISE * np.random.default_rng(1).standard_normal((n, 2))
    return Simulations.from_arrays(theta, {"x": x}, prior=PRIOR)


FAMILIES = {
    "flow": Flow(transforms=2, hidden=16, blocks=1),
    "vae": VAE(hidden=16, blocks=1, components=1, importance=4),
    "flow_matching": FlowMatching(hidden=16, blocks=1, tolerance=1e-3),
}


def test_a_known_likelihood_sees_what_was_seen_and_not_the_simulations_float32():
    """A date of which float32 knows the half day alone."""
    day = 2450005.1
    prior = Prior([Parameter("t", Uniform(day - 50, day + 50))])
    theta = prior.sample(300, 0)
    data = Simulations.from_arrays(theta, {"x": (theta + 1).astype(np.float32)}, prior=prior)
    training = Training(batch_size=100, max_rounds=1, decay=0.0)
    posterior = fit(data, FAMILIES["flow"], training=training, progress=False, device="cpu")
    better = posterior.refined(lambda theta, x: norm.logpdf(x[0], theta[:, 0], 0.05), effective=100)
    assert abs(better.sample(500, [day], seed=0).array.mean() - day) < 0.02
    assert abs(float(np.float32(day)) - day) > 0.08


def test_a_prior_that_the_cross_section_tilts_is_no_prior():
    theta = PRIOR.sample(40, 0).repeat(10, axis=0)
    rows = {"event_weight": np.exp(theta[:, 0])}
    data = Simulations.from_arrays(theta, {"x": theta + 1.0}, prior=PRIOR, **rows)
    how = {"training": Training(batch_size=100, max_rounds=1, decay=0.0), "progress": False, "device": "cpu"}
    with pytest.raises(PriorError, match="rate=True made the cross section part of it"):
        fit(data, FAMILIES["flow"], rate=True, **how).refined(log_likelihood)
    with pytest.raises(OptionError, match="rate=True makes the cross section part of the prior"):
        fit(data, learn="refined", rate=True, **how)
    fit(data, FAMILIES["flow"], **how).refined(log_likelihood)  # divided by the cross section nothing tilts


@pytest.mark.parametrize("name", FAMILIES)
def test_the_evidence_is_right_whatever_the_density_means(name):
    """Four observations; the posterior is trained for a moment, so that weights vary."""
    training = Training(batch_size=100, max_rounds=8, decay=0.0)
    posterior = fit(linear(), FAMILIES[name], training=training, progress=False, device="cpu")
    better, scores = posterior.refined(log_likelihood, effective=50), []
    for i, x in enumerate(np.array([[0.8, -1.0], [-1.2, 2.0], [0.0, 0.0], [1.5, 1.0]])):
        found = better.weigh(x, seed=i)
        exact = norm.logpdf(x, 0, np.sqrt(VARIANCE + NOISE**2)).sum()
        scores.append((found.log_evidence - exact) / found.log_evidence_error)
    assert np.abs(scores).max() < 4
