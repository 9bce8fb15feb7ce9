"""The posterior: its draws, its shapes, its mode, and what it refuses."""

import numpy as np
import pandas as pd
import pytest
import torch
from posterior_toys import BOX, PLAIN, UNIT, Half, Stub, X, stubbed, untrained

import sbi_dgm
from sbi_dgm.distributions import Beta, HalfNormal, Normal, TruncatedNormal
from sbi_dgm.errors import ObservationError, OptionError, SbiError
from sbi_dgm.parameters import Parameter
from sbi_dgm.posterior import Posterior
from sbi_dgm.priors import Prior
from sbi_dgm.samples import Samples


def check_inside(draws: np.ndarray) -> None:
    assert (draws.min(0) >= [-1, 0.1]).all()
    assert (draws.max(0) <= [1, 10]).all()


@pytest.mark.parametrize("scale", [0.15, 3.0], ids=["moderate weights", "huge weights"])
def test_a_million_draws_stay_inside_the_prior(scale):
    draws = untrained(BOX, scale, x=(3,)).sample(1_000_000, X, seed=1).array
    check_inside(draws)
    with pytest.raises(AssertionError):
        check_inside(1.001 * draws)


def test_draws_stay_inside_priors_of_any_kind():
    kinds = [TruncatedNormal(0, 1, -0.5, 3), HalfNormal(2.0), Beta(2.0, 3.0, 1, 4), Normal(0, 1)]
    prior = Prior([Parameter(f"p{i}", kind) for i, kind in enumerate(kinds)])
    draws = untrained(prior, 1.0, x=(3,)).sample(20_000, X, seed=1).array
    assert prior.coordinates.inside(draws).all()


@pytest.mark.parametrize(
    ("theta", "stack", "shape"),
    [((2,), None, ()), ((5, 2), None, (5,)), ((4, 2), 4, (4,)), ((4, 5, 2), 4, (4, 5)), ((1, 2), 1, (1,))],
)
def test_log_prob_shapes(theta, stack, shape):
    x = X if stack is None else np.tile(X, (stack, 1))
    assert PLAIN.log_prob(np.full(theta, 0.5), x).shape == shape


@pytest.mark.parametrize(("stack", "n", "shape"), [(None, 7, (7, 2)), (3, 7, (3, 7, 2)), (1, 0, (1, 0, 2))])
def test_sample_shapes(stack, n, shape):
    x = X if stack is None else np.tile(X, (stack, 1))
    samples = PLAIN.sample(n, x, seed=0, log_prob=True)
    assert samples.array.shape == shape
    assert samples.log_prob.shape == shape[:-1]


def test_theta_of_frames_and_samples_goes_by_name():
    theta = BOX.sample(20, 0)
    expected = PLAIN.log_prob(theta, X)
    frame = pd.DataFrame({"b": theta[:, 1], "other": 0.0, "a": theta[:, 0]})
    turned = Samples(theta[:, ::-1], BOX.parameters[::-1])
    for given in (frame, turned, Samples.of(BOX, theta)):
        np.testing.assert_array_equal(PLAIN.log_prob(given, X), expected)
    assert not np.array_equal(PLAIN.log_prob(np.clip(theta[:, ::-1], [-1, 0.1], [1, 10]), X), expected)


@pytest.mark.parametrize("theta", [[[1, 2], [3]], ["a", "b"], {"a": 1}, pd.DataFrame({"a": [1.0]})])
def test_theta_that_is_no_array_of_numbers_is_refused(theta):
    with pytest.raises(SbiError):
        PLAIN.log_prob(theta, X)


def test_several_observables_are_taken_by_name():
    posterior = untrained(BOX, flux=(2,), count=())
    single = posterior.sample(5, {"count": 3, "flux": [0.1, 0.2]}, seed=0)
    stack = posterior.sample(5, {"flux": [[0.1, 0.2]], "count": [3.0]}, seed=0)
    assert np.array_equal(single.array, stack.array[0])


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros(4), [r"\(4,\)", r"\(3,\) for one"]),
        (np.zeros((2, 4)), [r"\(2, 4\)"]),
        (np.zeros((2, 2, 3)), [r"\(2, 2, 3\)"]),
        (np.zeros((0, 3)), ["empty"]),
        ([0.0, np.nan, 1.0], [r"observation 0, entry \[1\]", "finite"]),
        (np.array([[0.0, 0.0, 0.0], [0.0, 0.0, -np.inf]]), [r"observation 1, entry \[2\]"]),
        (["a", "b", "c"], ["real numbers"]),
        ({"y": X}, [r"\['y'\]", r"\['x'\]"]),
        ({"x": X, "y": X}, [r"\['x', 'y'\]"]),
    ],
)
def test_a_bad_observation_is_refused_with_what_was_expected_and_given(x, words):
    for call in (lambda: PLAIN.sample(2, x), lambda: PLAIN.log_prob([0.0, 1.0], x), lambda: PLAIN.map(x)):
        with pytest.raises(ObservationError) as caught:
            call()
        for word in words:
            caught.match(word)


def test_observables_that_disagree_are_refused():
    posterior = untrained(BOX, flux=(2,), count=())
    with pytest.raises(ObservationError, match="disagree"):
        posterior.sample(2, {"flux": np.zeros((3, 2)), "count": np.zeros(2)})


@pytest.mark.parametrize(("dtype", "value"), [("<f4", 1e39), ("<i4", 0.5), ("|u1", 256), ("|u1", -1), ("<i8", np.nan)])
def test_a_number_that_the_dtype_of_training_cannot_hold_is_refused(dtype, value):
    posterior = untrained(BOX, x=(3,))
    posterior.model = posterior.model._replace(dtypes={"x": dtype})
    assert np.isfinite(posterior.log_prob([0.0, 1.0], [0.0, 1.0, 2.0]))
    with pytest.raises(ObservationError, match=r"observation 0, entry \[1\]"):
        posterior.log_prob([0.0, 1.0], [0.0, value, 0.0])


@pytest.mark.parametrize("theta", [(3,), (5, 3), (2, 5, 2), ()])
def test_a_theta_of_the_wrong_shape_is_refused(theta):
    with pytest.raises(ObservationError, match=r"D = 2"):
        PLAIN.log_prob(np.zeros(theta), X)


def test_a_stack_of_theta_must_match_the_stack_of_x():
    with pytest.raises(ObservationError, match=r"expected \(4, D\) or \(4, S, D\)"):
        PLAIN.log_prob(np.zeros((5, 2)), np.zeros((4, 3)))


def test_a_negative_number_of_draws_is_refused():
    with pytest.raises(OptionError, match="n = -1"):
        PLAIN.sample(-1, X)


def test_a_network_that_diverges_gives_no_draws():
    posterior = untrained(BOX, x=(3,))
    next(posterior.network.estimator.parameters()).data.fill_(torch.nan)
    with pytest.raises(SbiError, match="10 of 10 draws are not finite"):
        posterior.sample(10, X)


def test_the_seed_decides_the_draws():
    one, same, other = (PLAIN.sample(50, X, seed=seed).array for seed in (1, 1, 2))
    fresh = [PLAIN.sample(50, X).array for _ in range(2)]
    assert np.array_equal(one, same)
    assert (one != other).all()
    assert (fresh[0] != fresh[1]).all()


def test_sampling_leaves_global_random_state_alone():
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    PLAIN.sample(5, X, seed=1)
    PLAIN.sample(5, X)
    assert torch.equal(torch_before, torch.get_rng_state())
    assert (numpy_before == np.random.get_state()[1]).all()  # noqa: NPY002


def check_order(log_prob, stack: np.ndarray, theta: np.ndarray) -> None:
    """A stack in another order gives the same numbers (float32: 1e-4) in that order."""
    order = np.random.default_rng(0).permutation(len(stack))
    assert np.abs(log_prob(theta[order], stack[order]) - log_prob(theta, stack)[order]).max() < 1e-4


def test_the_order_of_a_stack_does_not_matter():
    rng = np.random.default_rng(1)
    stack, theta = rng.normal(size=(40, 3)), BOX.sample(40, seed=1)
    check_order(PLAIN.log_prob, stack, theta)
    rows = np.concatenate([PLAIN.log_prob(t, x)[None] for t, x in zip(theta, stack, strict=True)])
    assert np.abs(rows - PLAIN.log_prob(theta, stack)).max() < 1e-4
    with pytest.raises(AssertionError):
        check_order(lambda t, x: PLAIN.log_prob(t, x - x[:1]), stack, theta)


def test_a_stack_in_blocks_gives_the_draws_of_one_law(monkeypatch):
    """With blocks far smaller than the stack every draw is made, in its own place."""
    monkeypatch.setattr("sbi_dgm.posterior.BLOCK", 7)
    posterior = stubbed(UNIT, Half(), 1)
    stack = np.linspace(0.2, 0.8, 5)[:, None]
    samples = posterior.sample(400, stack, seed=1, log_prob=True)
    assert np.abs(samples.array[..., 0].mean(1) - stack[:, 0]).max() < 4 * 0.1 / np.sqrt(400)
    assert np.allclose(samples.log_prob, posterior.log_prob(samples.array, stack), atol=1e-4)
    assert len(np.unique(samples.array)) == samples.array.size


class Gauss(Stub):
    """Z ~ N(context, 0.5^2)."""

    def formula(self, z, context):
        return (-2 * (z - context) ** 2 - np.log(0.5) - 0.5 * np.log(2 * np.pi)).sum(-1)

    def sample_and_log_prob(self, n, context, generator=None):
        noise = torch.randn((len(context), n, self.space.size), generator=generator, dtype=torch.float64)
        z = context[:, None] + 0.5 * noise
        return z, self.log_prob(z, context)


NORMAL = Prior([Parameter("a", Normal(1.0, 2.0)), Parameter("b", Normal(-3.0, 0.1))])


def test_map_of_a_normal_posterior_is_its_mean():
    """Theta = mean + sd z, so that the maximum is at z = x; found within 1 % of the posterior's sd."""
    posterior = stubbed(NORMAL, Gauss(2), 2)
    x = np.array([[0.5, -0.2], [-1.0, 2.0]])
    expected = np.array([1.0, -3.0]) + np.array([2.0, 0.1]) * x
    assert np.abs((posterior.map(x) - expected) / [1.0, 0.05]).max() < 0.01
    assert np.abs((posterior.map(x[0]) - expected[0]) / [1.0, 0.05]).max() < 0.01


def test_map_is_the_mode_in_theta_not_in_z():
    """LogNormal: the mode of theta is exp(mu - s^2), that of z is exp(mu)."""
    posterior = stubbed(Prior([Parameter("a", sbi_dgm.LogNormal(0.0, 1.0))]), Gauss(1), 1)
    assert abs(posterior.map([0.4])[0] - np.exp(0.4 - 0.25)) < 0.005


def test_map_at_an_edge_stays_inside_and_is_warned_of_by_name():
    with pytest.warns(UserWarning, match="edge of the draws for theta"):
        found = stubbed(UNIT, Half(), 1).map([1.0])
    assert 0.99 < found[0] <= 1.0


def test_map_inside_is_not_warned_of(recwarn):
    assert abs(stubbed(UNIT, Half(), 1).map([0.5])[0] - 0.5) < 1e-3
    assert not recwarn.list


def test_its_words():
    assert PLAIN.names == ["a", "b"]
    assert repr(PLAIN) == "Posterior(a, b | x; flow)"
    assert PLAIN.prior == BOX
    uninformed = Posterior(PLAIN.model._replace(informed=False), PLAIN.network, {})
    assert uninformed.prior is None
