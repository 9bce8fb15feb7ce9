"""Score compression against linear Gaussian models, where it loses nothing, and what it refuses."""

import numpy as np
import pytest
import torch

import sbi_dgm
from sbi_dgm import score as scores
from sbi_dgm.distributions import Normal, Uniform
from sbi_dgm.embeddings import base as embeddings
from sbi_dgm.embeddings.fusion import Fusion
from sbi_dgm.embeddings.moped import Moped, moped
from sbi_dgm.errors import DataError, ObservationError, OptionError, PriorError, SbiError
from sbi_dgm.estimators.flow import Flow
from sbi_dgm.loop import Training
from sbi_dgm.parameters import Observable, Parameter
from sbi_dgm.priors import Prior
from sbi_dgm.score import numbers, score
from sbi_dgm.seeds import numpy_generator

SIZE = 12


class Linear:
    """x ~ N(5 + A theta, C), theta ~ N(0, 1)^2; the first ten numbers are `x`, the others `y`."""

    name = "linear"

    def __init__(self, size: int = SIZE, log: bool = False) -> None:
        rng = np.random.default_rng(3)
        self.prior = Prior([Parameter(name, Normal(0, 1)) for name in "ab"])
        self.size, self.log, self.fiducial = size, log, np.array([0.3, -0.2])
        self.observables = {"x": Observable((size - 2,)), "y": Observable((2,))}
        self.slope = rng.normal(size=(size, 2)) * np.geomspace(1, 0.1, size)[:, None]
        root = 0.5 * rng.normal(size=(size, size)) / np.sqrt(size) + np.diag(np.geomspace(2, 0.1, size))
        self.root, self.covariance = root, root @ root.T

    @property
    def fisher(self) -> np.ndarray:
        return self.slope.T @ np.linalg.solve(self.covariance, self.slope)

    def flat(self, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return 5 + theta @ self.slope.T + rng.normal(size=(len(theta), self.size)) @ self.root.T

    def __call__(self, theta: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        flat = self.flat(theta, rng)
        return {"x": np.exp(flat[:, :-2]) if self.log else flat[:, :-2], "y": flat[:, -2:]}


LINEAR = Linear()


def test_the_fisher_matrix_is_that_of_the_linear_model_without_bias():
    """60 simulations of 12 numbers: the factor is 0.78. By 60 seeds its mean is known to 3 %."""
    exact = np.linalg.inv(np.linalg.cholesky(LINEAR.fisher))
    found = np.stack([exact @ score(LINEAR, simulations=60, seed=s).fisher @ exact.T for s in range(60)])
    check_identity(found)
    with pytest.raises(AssertionError):
        check_identity(found * 59 / (60 - SIZE - 2))


def check_identity(found: np.ndarray) -> None:
    error = found.std(0, ddof=1) / np.sqrt(len(found))
    assert (np.abs(found.mean(0) - np.eye(2)) < 4 * error).all()


def posterior_of(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What y = W (x - mu) says of theta in the linear model: the map from x to the mean, and the covariance."""
    response, noise = maps @ LINEAR.slope, maps @ LINEAR.covariance @ maps.T
    covariance = np.linalg.inv(np.eye(2) + response.T @ np.linalg.solve(noise, response))
    return covariance @ response.T @ np.linalg.solve(noise, maps), covariance


def check_lossless(maps: np.ndarray, share: float) -> None:
    """A part of the information is lost, and means move by no more than its root, in units of the posterior's sd."""
    exact, covariance = posterior_of(np.eye(SIZE))
    found, wider = posterior_of(maps)
    assert np.linalg.eigvals(np.linalg.solve(covariance, wider)).max() < 1 + share
    spread = (found - exact) @ LINEAR.covariance @ (found - exact).T
    assert (np.diag(spread) < share * np.diag(covariance)).all()


def test_the_posterior_of_two_numbers_is_that_of_all_twelve():
    """An estimated covariance of n simulations loses L / n of the information, here 0.3 %."""
    check_lossless(score(LINEAR, simulations=4000).maps, 4 * SIZE / 4000)
    with pytest.raises(AssertionError):
        check_lossless(np.linalg.pinv(LINEAR.slope), 4 * SIZE / 4000)


def check_exact_derivatives(found: scores.Score) -> None:
    """W J = 1 by construction: with J exact W A is too."""
    assert np.abs(found.maps @ LINEAR.slope - np.eye(2)).max() < 1e-9


def test_matched_seeds_cancel_the_noise_of_derivatives(monkeypatch):
    check_exact_derivatives(score(LINEAR, simulations=200))
    used = []
    monkeypatch.setattr(scores, "numpy_generator", lambda *key: used.append(key) or numpy_generator(*key, len(used)))
    with pytest.raises(AssertionError):
        check_exact_derivatives(score(LINEAR, simulations=4000))


class Unmatched(Linear):
    """Draws more random numbers at one theta than at another, so that no noise is shared."""

    def flat(self, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        rng.normal(size=int(1e3 * abs(theta[0] @ (1, np.sqrt(2)))))
        return super().flat(theta, rng)


def check_no_bias(seeds: range) -> None:
    found = [score(Unmatched(), simulations=600, steps=(0.4, 0.4), seed=s) for s in seeds]
    exact = np.linalg.inv(np.linalg.cholesky(LINEAR.fisher))
    check_identity(np.stack([exact @ one.fisher @ exact.T for one in found]))
    check_identity(np.stack([one.maps @ LINEAR.slope for one in found]))


def test_noise_of_derivatives_makes_neither_information_nor_shrinks_estimates(monkeypatch):
    check_no_bias(range(60))
    monkeypatch.setattr(scores, "_noise", lambda *of: np.zeros((2, 2)))
    with pytest.raises(AssertionError):
        check_no_bias(range(60))


def test_derivatives_lost_in_noise_are_refused():
    with pytest.raises(DataError, match=r"lost in noise: .* \d+% of the Fisher matrix \(at most 25%\)"):
        score(Unmatched(), simulations=60, steps=(0.01, 0.01))


def test_steps_are_a_tenth_of_the_prior_about_the_point_or_those_given():
    assert scores._steps(LINEAR, LINEAR.fiducial, None) == pytest.approx([0.1, 0.1])
    assert scores._steps(LINEAR, LINEAR.fiducial, {"b": 0.2, "a": 0.3}) == pytest.approx([0.3, 0.2])
    joint = Linear()
    joint.prior = sbi_dgm.MultivariateNormal(["a", "b"], [0, 0], [[4.0, 1.9], [1.9, 1.0]])
    assert scores._steps(joint, LINEAR.fiducial, None) == pytest.approx([0.2, 0.1])


def test_summaries_are_estimates_of_theta_for_one_observation_and_for_stacks():
    compressor = moped(LINEAR)
    theta = np.tile([0.7, 0.4], (4000, 1))
    found = compressor(LINEAR(theta, np.random.default_rng(1)))
    inverse = np.linalg.inv(compressor.fisher)
    assert (np.abs(found.mean(0) - theta[0]) < 4 * np.sqrt(np.diag(inverse) * (1 / 4000 + 1 / 2000))).all()
    assert np.cov(found.T) == pytest.approx(inverse, rel=0.15)
    one = LINEAR(theta[:1], np.random.default_rng(1))
    assert compressor({name: values[0] for name, values in one.items()}).shape == (2,)
    assert compressor.fiducial.tolist() == [0.3, -0.2]


def test_logarithms_of_some_observables_are_compressed():
    compressor, plain = moped(Linear(log=True), log=["x"]), moped(LINEAR)
    x = LINEAR(np.zeros((5, 2)), np.random.default_rng(0))
    assert compressor({"x": np.exp(x["x"]), "y": x["y"]}) == pytest.approx(plain(x))
    assert not np.allclose(moped(Linear(log=True)).fisher, plain.fisher, rtol=0.2)
    with pytest.raises(DataError, match=r"'x', row 0: entry 2 is -1 and has no logarithm"):
        compressor({"x": [1.0, 1, -1] + [1.0] * 7, "y": x["y"][0]})


def simulations(simulator: Linear = LINEAR, rows: int = 3000) -> sbi_dgm.Simulations:
    theta = simulator.prior.sample(rows, seed=1)
    return sbi_dgm.Simulations.from_arrays(theta, simulator(theta, np.random.default_rng(2)), prior=simulator.prior)


def trained(embedding, data: sbi_dgm.Simulations, **options) -> sbi_dgm.Posterior:
    flow = Flow(transforms=1, hidden=16, blocks=1, map="affine", dropout=0.0)
    how = Training(batch_size=256, round=25, max_rounds=options.pop("rounds", 16), learning_rate=1e-2, ema=0.98)
    return sbi_dgm.fit(data, flow, embedding, training=how, device="cpu", progress=False, **options)


def test_a_posterior_by_summaries_is_the_exact_one_and_survives_its_file(tmp_path):
    posterior, x = trained(moped(LINEAR), simulations()), LINEAR(np.array([[0.5, 1.0]]), np.random.default_rng(4))
    draws = posterior.sample(4000, x, seed=0).array[0]
    gain, covariance = posterior_of(np.eye(SIZE))
    mean, sd = gain @ (numbers(x)[0] - 5), np.sqrt(np.diag(covariance))
    assert (np.abs(draws.mean(0) - mean) < 0.25 * sd).all()
    assert draws.std(0) == pytest.approx(sd, rel=0.15)
    posterior.save(tmp_path / "p.safetensors")
    loaded = sbi_dgm.load(tmp_path / "p.safetensors")
    assert np.array_equal(loaded.sample(20, x, seed=3).array, posterior.sample(20, x, seed=3).array)
    assert loaded.model.embedding == posterior.model.embedding
    maps = next(p for p in posterior.network.summary.modules() if hasattr(p, "maps")).maps
    assert np.array_equal(maps.numpy(), score(LINEAR).maps), "nothing of it is trained"


def test_the_digest_tells_other_numbers_and_a_run_is_resumed_with_the_same_alone(tmp_path):
    one, same, other = moped(LINEAR), moped(LINEAR), moped(LINEAR, seed=1)
    assert one == same
    assert one.digest != other.digest
    assert embeddings.restore(embeddings.describe(one)) == one != other
    data = simulations(rows=400)
    with pytest.raises(sbi_dgm.SbiError, match="stopped"):
        trained(one, data, out=tmp_path / "run", max_time=0, rounds=2)
    with pytest.raises(SbiError, match="was started with embedding"):
        trained(other, data, out=tmp_path / "run", resume=True, rounds=2)
    assert trained(same, data, out=tmp_path / "run", resume=True, rounds=2).names == ["a", "b"]


def test_it_may_be_a_part_of_several_summaries():
    """`x` compressed from its own simulator, `y` as it is."""
    alone = Linear()
    alone.observables = {"x": alone.observables["x"]}
    posterior = trained(Fusion(parts={"x": moped(alone)}), simulations(rows=400), rounds=2)
    x = LINEAR(np.zeros((3, 2)), np.random.default_rng(0))
    context = posterior._context(posterior._seen(x)[0])
    assert context.shape == (3, 4)
    assert torch.allclose(context[:, 2:], posterior.network.summary.scalers[1](torch.as_tensor(x["y"])))


def test_without_its_numbers_it_is_no_embedding_to_train():
    for blank in (Moped(features=2), embeddings.restore(embeddings.describe(moped(LINEAR)))):
        with pytest.raises(OptionError, match=r"made in Python before training.*sbi_dgm.moped"):
            trained(blank, simulations(rows=100))
        with pytest.raises(OptionError, match="made in Python"):
            trained(Fusion(parts={"x": blank}), simulations(rows=100))
    theta = LINEAR.prior.sample(60, seed=0)
    with pytest.raises(OptionError, match=r"made for x \(10,\), y \(2,\), and is given x \(3,\)"):
        trained(moped(LINEAR), sbi_dgm.Simulations.from_arrays(theta, np.repeat(theta[:, :1], 3, 1)))


def test_a_number_without_logarithm_is_refused_where_it_is_observed():
    posterior = trained(moped(Linear(log=True), log=["x"]), simulations(Linear(log=True), 200), rounds=2)
    x = Linear(log=True)(np.zeros((2, 2)), np.random.default_rng(0))
    x["x"][1, 3] = -0.5
    with pytest.raises(ObservationError, match=r"'x' has the entry -0\.5"):
        posterior.sample(3, x)


class Odd(Linear):
    """One whose numbers are as a rule says."""

    def __init__(self, rule) -> None:
        super().__init__()
        self.rule = rule

    def __call__(self, theta, rng):
        x = super().__call__(theta, rng)
        self.rule(theta, x["x"])
        return x


def repeat(theta, x):
    x[:, 1] = x[:, 0]


def still(theta, x):
    x[:, 3] = theta[:, 1]


def fail(theta, x):
    x[:2, 0] = np.nan


class Deaf(Linear):
    def __call__(self, theta, rng):
        return super().__call__(theta * [1, 0], rng)


class Twins(Linear):
    def __call__(self, theta, rng):
        return super().__call__(np.stack([theta.sum(1)] * 2, 1), rng)


@pytest.mark.parametrize(
    ("simulator", "options", "error", "words"),
    [
        (LINEAR, {"simulations": 50}, OptionError, "simulations = 50 for 12 numbers.*60"),
        (LINEAR, {"fiducial": [0.1]}, OptionError, r"fiducial has shape \(1,\).*a, b"),
        (LINEAR, {"fiducial": {"a": 1.0}}, OptionError, "the parameters are a, b"),
        (LINEAR, {"steps": [0.1, -1]}, OptionError, "step of b is -1"),
        (LINEAR, {"log": ["z"]}, OptionError, "unknown observable 'z'"),
        (Odd(repeat), {}, DataError, "covariance of the numbers of x is singular"),
        (Odd(still), {}, DataError, "number 3 of x has no noise and depends on b"),
        (Odd(fail), {}, DataError, "failed in 40 of 2000 simulations"),
        (Deaf(), {}, DataError, "does not change with b"),
        (Twins(), {}, DataError, "Fisher matrix is singular"),
    ],
)
def test_what_has_no_score_is_refused_with_the_reason(simulator, options, error, words):
    with pytest.raises(error, match=words):
        moped(simulator, **options)


def test_points_outside_of_the_prior_and_sets_are_refused():
    box = Linear()
    box.prior = Prior([Parameter("a", Uniform(0, 1)), Parameter("b", Uniform(0, 1))])
    box.fiducial = None
    with pytest.raises(OptionError, match="linear has no fiducial point: pass fiducial="):
        moped(box)
    with pytest.raises(PriorError, match=r"fiducial point: b = 1\.5 is outside its prior \[0, 1\]"):
        moped(box, [0.5, 1.5])
    with pytest.raises(PriorError, match=r"step from the fiducial point: a = 1\.1.*smaller steps"):
        moped(box, [0.5, 0.5], steps=[0.6, 0.1])
    box.weighted = True
    with pytest.raises(OptionError, match="linear gives weighted events"):
        moped(box, [0.5, 0.5])
    box.weighted = False
    box.observables = {"hits": Observable((5, 2), kind="set")}
    with pytest.raises(OptionError, match="'hits' is a set"):
        moped(box, [0.5, 0.5])
