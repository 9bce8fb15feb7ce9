"""Observables that may be absent: exact posteriors of two detectors, of one, and of none; files, refusals, the gate."""

import numpy as np
import pytest
import torch

import sbi_dgm
from sbi_dgm.data.observed import observed_arrays
from sbi_dgm.data.scaling import Statistics
from sbi_dgm.diagnostics.evidence import side_by_side
from sbi_dgm.distributions import Normal
from sbi_dgm.embeddings import base as embeddings
from sbi_dgm.embeddings.absent import Absent
from sbi_dgm.embeddings.convolutions import Series
from sbi_dgm.embeddings.fusion import Auto, Fusion
from sbi_dgm.embeddings.moped import moped
from sbi_dgm.embeddings.pretrained import pretrained
from sbi_dgm.embeddings.vectors import MLP, Flatten
from sbi_dgm.errors import DataError, ObservationError, OptionError
from sbi_dgm.estimators.flow import Flow
from sbi_dgm.loop import Training
from sbi_dgm.parameters import Observable, Parameter
from sbi_dgm.priors import Prior
from sbi_dgm.seeds import lending
from sbi_dgm.simulator import MisfitError

PRIOR = Prior([Parameter(name, Normal(0, 1)) for name in "pq"])
SLOPES = {"a": np.array([[1.0, 0.2], [0.3, 0.0], [0.5, -1.0]]), "b": np.array([[0.1, 1.5], [-0.4, 0.6]])}
PATTERNS = [("a", "b"), ("a",), ("b",), ()]
AFFINE = Flow(transforms=1, hidden=32, blocks=1, map="affine", dropout=0.0)


class Detectors:
    """Two detectors, each with noise of sd 0.5; with `off`, b is off in this share of rows."""

    name = "detectors"

    def __init__(self, off: float = 0.0) -> None:
        self.prior, self.off = PRIOR, off
        self.observables = {name: Observable((len(A),), optional=name == "b" and off > 0) for name, A in SLOPES.items()}

    def __call__(self, theta, rng):
        x = {name: theta @ A.T + 0.5 * rng.normal(size=(len(theta), len(A))) for name, A in SLOPES.items()}
        if self.off:
            x["b"][rng.random(len(theta)) < self.off] = np.nan
        return x


def simulations(rows: int = 6000, off: float = 0.0) -> sbi_dgm.Simulations:
    theta, simulator = PRIOR.draw(rows, np.random.default_rng(1)), Detectors(off)
    x = simulator(theta, np.random.default_rng(2))
    return sbi_dgm.Simulations.from_arrays(theta, x, prior=PRIOR, observables=simulator.observables)


def trained(embedding, data=None, rounds: int = 20, **options) -> sbi_dgm.Posterior:
    how = Training(batch_size=256, round=25, max_rounds=rounds, learning_rate=5e-3, ema=0.99, warmup=20)
    given = {"training": how, "device": "cpu", "progress": False, "estimator": AFFINE} | options
    return sbi_dgm.fit(simulations() if data is None else data, embedding=embedding, **given)


@pytest.fixture(scope="module")
def dropped() -> sbi_dgm.Posterior:
    """Trained on complete simulations."""
    return trained(Auto(absent=0.3))


@pytest.fixture(scope="module")
def gappy() -> sbi_dgm.Posterior:
    """Trained where b is off in four of ten simulations."""
    return trained("auto", simulations(off=0.4))


def exact(x: dict[str, np.ndarray], there: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Means (B, 2) and covariance of the posterior given what is there."""
    slopes = {name: SLOPES[name] / 0.5 for name in there}
    covariance = np.linalg.inv(np.eye(2) + sum(A.T @ A for A in slopes.values()))
    gain = sum((x[name] / 0.5 @ A for name, A in slopes.items()), start=np.zeros((len(x["a"]), 2)))
    return gain @ covariance, covariance


def check_pattern(posterior: sbi_dgm.Posterior, there: tuple[str, ...], gone=None) -> None:
    """Of 100 observations, means within 0.25 of the exact sd in the mean square, and sds within 15 %."""
    x = Detectors()(PRIOR.sample(100, seed=5), np.random.default_rng(6))
    mean, covariance = exact(x, there)
    sd = np.sqrt(np.diag(covariance))
    given = {name: values if name in there else gone for name, values in x.items()}
    draws = posterior.sample(1000, given, seed=0).array
    draws = draws if there else np.repeat(draws[None], 100, 0)
    assert np.sqrt((((draws.mean(1) - mean) / sd) ** 2).mean(0)).max() < 0.25
    assert draws.std(1).mean(0) == pytest.approx(sd, rel=0.15)


@pytest.mark.parametrize("there", PATTERNS, ids=["both", "a alone", "b alone", "none"])
def test_one_network_gives_the_posterior_of_any_detectors(dropped, there):
    check_pattern(dropped, there)


def test_simulations_that_lack_b_give_the_posterior_with_it_and_without(gappy):
    check_pattern(gappy, ("a", "b"))
    check_pattern(gappy, ("a",))
    check_pattern(gappy, ("a",), np.full((100, 2), np.nan))


def test_zeros_in_place_of_what_is_absent_do_not_pass(dropped):
    for there, gone in ((("a",), np.zeros((100, 2))), (("b",), np.zeros((100, 3)))):
        with pytest.raises(AssertionError):
            check_pattern(dropped, there, gone)


def test_none_nan_and_stacks_that_mix_are_the_same(dropped):
    x = {"a": np.array([0.3, 0.1, -1.0]), "b": np.array([0.4, 0.2])}
    one = dropped.sample(5, {**x, "b": None}, seed=1).array
    assert np.array_equal(one, dropped.sample(5, {**x, "b": [np.nan, np.nan]}, seed=1).array)
    stack = {"a": np.array([x["a"], x["a"]]), "b": np.array([[np.nan] * 2, x["b"]])}
    theta = np.array([[0.1, 0.2], [0.1, 0.2]])
    both = [float(dropped.log_prob(theta[0], {**x, "b": None})), float(dropped.log_prob(theta[0], x))]
    assert dropped.log_prob(theta, stack) == pytest.approx(both, abs=1e-5)
    assert dropped.map({**x, "b": None}).shape == (2,)
    assert [row["b"].shape for row in dropped.observations(stack)[0]] == [(2,), (2,)]


def test_they_survive_their_files(dropped, gappy, tmp_path):
    x = {"a": np.array([0.3, 0.1, -1.0]), "b": None}
    for i, posterior in enumerate((dropped, gappy)):
        posterior.save(tmp_path / f"{i}.safetensors")
        loaded = sbi_dgm.load(tmp_path / f"{i}.safetensors")
        assert loaded.model == posterior.model
        assert np.array_equal(loaded.sample(9, x, seed=2).array, posterior.sample(9, x, seed=2).array)
        assert loaded.trust(x) == posterior.trust(x) or loaded.trust(x).p_value == posterior.trust(x).p_value
    assert [o.optional for o in dropped.model.observables.values()] == [True, True]
    assert [o.optional for o in gappy.model.observables.values()] == [False, True]


def test_training_takes_away_and_judging_does_not():
    observables = simulations(60).observables
    with lending(0):
        module = embeddings.build(Fusion(absent=0.25).chosen(observables), observables, 2)
        part = module.parts[0]
        assert isinstance(part, Absent)
        x = {"a": torch.ones(20_000, 3)}
        share = 1 - float(part.train()(x)[:, -1].detach().mean())
        assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 20_000)
        assert bool((part.eval()(x)[:, -1] == 1).all())


def test_no_nan_reaches_a_network_and_other_rows_are_not_touched():
    class Strict(torch.nn.Module):
        def forward(self, x):
            assert torch.isfinite(x["s"]).all()
            return x["s"].cumsum(1)

    with lending(0):
        part = Absent("s", Strict(), 3)
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    gone = torch.tensor([False, True, False, True, False, False])
    holed = torch.where(gone[:, None], torch.nan, x)
    context = part({"s": holed})
    assert torch.equal(context[~gone], torch.cat([x.cumsum(1), torch.ones(6, 1)], 1)[~gone])
    assert torch.equal(context[gone], torch.cat([part.token, torch.zeros(1)]).expand(2, -1))
    context.sum().backward()
    assert torch.equal(part.token.grad, torch.full((3,), 2.0))
    assert part({"s": holed[gone]}).shape == (2, 4)


@pytest.mark.parametrize("kind", ["series", "set", "field"])
def test_summaries_of_any_kind_can_be_absent(kind):
    shape = {"series": (2, 40), "set": (6, 3), "field": (16, 16)}[kind]
    rng, theta = np.random.default_rng(0), PRIOR.sample(120, seed=1)
    x = rng.normal(size=(120, *shape))
    if kind == "set":
        x[..., -1] = rng.random((120, 6)) < 0.5
    x[:40] = np.nan
    seen = {"s": Observable(shape, kind=kind, optional=True), "y": Observable((2,))}
    data = sbi_dgm.Simulations.from_arrays(theta, {"s": x, "y": theta}, prior=PRIOR, observables=seen)
    assert data.valid.all()
    posterior = trained("auto", data, rounds=1)
    assert np.isfinite(posterior.sample(4, {"s": None, "y": theta[0]}, seed=0).array).all()
    assert posterior.trust({"s": x[[0, 50]], "y": theta[[0, 50]]}).p_value.shape == (2,)


def test_the_scaler_is_that_of_the_rows_that_are_there():
    x = np.random.default_rng(0).normal(3, 2, (600, 2))
    seen = Statistics("b", Observable((2,), optional=True), 900)
    seen.add(np.arange(900), np.concatenate([x[:300], np.full((300, 2), np.nan), x[300:]]))
    plain = Statistics("b", Observable((2,)), 600)
    plain.add(np.arange(600), x)
    one, other = seen.scaler(x.dtype), plain.scaler(x.dtype)
    assert torch.allclose(one.mean, other.mean)
    assert torch.allclose(one.sd, other.sd)
    few = Statistics("b", Observable((2,), optional=True), 900)
    few.add(np.arange(900), np.concatenate([x[:3], np.full((897, 2), np.nan)]))
    with pytest.raises(DataError, match="'b' is there in 3 training rows: at least 50"):
        few.scaler(x.dtype)


def test_the_gate_judges_what_is_there_by_itself(dropped, gappy):
    x = Detectors()(PRIOR.sample(2000, seed=8), np.random.default_rng(9))
    for posterior in (dropped, gappy):
        for given in (x, {**x, "b": None}):
            flagged = np.mean(posterior.trust(given).flagged)
            assert flagged < 0.01 + 4 * np.sqrt(0.01 / 600 + 0.01 / 2000), "600 validation rows"
        strange = {"a": x["a"][0] + [0, 9, 0], "b": None}
        assert posterior.trust(strange).flagged
        assert "a[1]" in posterior.trust(strange).reason
    assert not dropped.trust({"a": None, "b": None}).flagged


def test_partly_absent_and_absent_where_it_must_not_be_is_refused_with_the_place(gappy):
    a, b = np.zeros((3, 3)), np.zeros((3, 2))
    b[1, 1] = np.nan
    with pytest.raises(ObservationError, match=r"'b'.*observation 1, entry \[1\]: nan.*all of its entries NaN"):
        gappy.sample(2, {"a": a, "b": b})
    for gone in (None, np.full(3, np.nan)):
        with pytest.raises(ObservationError, match=r"'a' is absent.*'fusion' and its option absent=0\.2"):
            gappy.sample(2, {"a": gone, "b": [0.0, 1.0]})
    with pytest.raises(ObservationError, match="disagree"):
        gappy.sample(2, {"a": a, "b": np.zeros((2, 2))})


def test_whole_numbers_may_be_absent_at_an_observation_and_are_floats_then():
    known = {"n": Observable((2,), optional=True), "m": Observable((1,))}
    arrays, single = observed_arrays(
        {"n": [[1.0, 2.0], [np.nan, np.nan]], "m": [[1], [2]]}, known, {"n": "|u1", "m": "|u1"}
    )
    assert arrays["n"].dtype == np.float64
    assert arrays["m"].dtype == np.uint8
    assert not single
    with pytest.raises(ObservationError, match="no finite number in uint8"):
        observed_arrays({"n": [[1.5, 2.0], [np.nan, np.nan]], "m": [[1], [2]]}, known, {"n": "|u1", "m": "|u1"})
    rows = {"n": np.random.default_rng(0).integers(0, 9, (90, 2)), "m": np.ones((90, 1))}
    rows["m"][0] = 2
    data = sbi_dgm.Simulations.from_arrays(PRIOR.sample(90, seed=0), rows, prior=PRIOR)
    posterior = trained(Fusion(absent=0.2), data, rounds=1)
    assert posterior.sample(3, {"n": None, "m": [1.0]}, seed=0).array.shape == (3, 2)


def test_campaigns_and_files_keep_absent_observables(tmp_path):
    data = sbi_dgm.simulate(Detectors(0.3), 200, out=tmp_path / "d.h5", seed=3, progress=False)
    gone = np.isnan(data.x(np.arange(200))["b"]).all(1)
    assert data.valid.all()
    assert 0.3 - 4 * np.sqrt(0.21 / 200) < gone.mean() < 0.3 + 4 * np.sqrt(0.21 / 200)
    again = sbi_dgm.Simulations.open(tmp_path / "d.h5")
    assert again.observables == data.observables
    copy = again.save(tmp_path / "copy.h5")
    assert copy.observables["b"].optional


class Broken(Detectors):
    """Of b one number is missing in some rows, and a is missing in others."""

    def __call__(self, theta, rng):
        x = super().__call__(theta, rng)
        x["b"][:5, 1], x["b"][:5, 0], x["a"][5:9] = np.nan, 0.0, np.nan
        return x


def test_what_is_absent_in_part_or_must_be_there_fails(tmp_path):
    data = sbi_dgm.simulate(Broken(0.3), 60, out=tmp_path / "d.h5", seed=3, progress=False)
    assert np.flatnonzero(~data.valid).tolist() == list(range(9))
    theta, x = PRIOR.sample(60, seed=0), {"b": np.ones((60, 2), int)}
    with pytest.raises(DataError, match="'b' may be absent and has dtype int64"):
        sbi_dgm.Simulations.from_arrays(theta, x, observables={"b": Observable((2,), optional=True)})
    broken = Detectors(0.3)
    broken.observables = {"n": Observable((), optional=True)}
    broken.__class__ = type("Counts", (Detectors,), {"__call__": lambda s, t, r: {"n": np.ones(len(t), int)}})
    with pytest.raises(DataError, match="'n' may be absent and is of type int64"):
        sbi_dgm.simulate(broken, 60, out=tmp_path / "n.h5", progress=False)
    assert issubclass(MisfitError, DataError)


def test_likelihoods_scores_and_summaries_of_all_at_once_are_refused():
    data = simulations(100, off=0.3)
    with pytest.raises(DataError, match="'b' may be absent: a likelihood"):
        sbi_dgm.fit(data, learn="likelihood", progress=False)
    with pytest.raises(OptionError, match="'b' may be absent: a score"):
        moped(Detectors(0.3), [0, 0])
    for joint in (Flatten(), MLP(), torch.nn.Linear(5, 2)):
        with pytest.raises(OptionError, match=r"'b' may be absent, and .* takes all observables together"):
            trained(joint, data, rounds=1)
    assert isinstance(Auto().chosen(data.observables), Fusion)
    assert isinstance(Auto().chosen({"b": data.observables["b"]}), Flatten)


def test_any_embedding_of_a_single_observable_can_be_without_it():
    observables = {"s": Observable((40,), optional=True)}
    x = {"s": torch.full((3, 40), torch.nan)}
    x["s"][0] = torch.arange(40.0)
    for chosen in (Series(hidden=4), MLP(hidden=4), torch.nn.Linear(40, 3), Fusion()):
        made = embeddings.build(chosen, observables, 2)
        context = made(x)
        assert torch.isfinite(context).all()
        assert torch.equal(context[1], context[2])
        assert not torch.equal(context[0], context[1])


def test_a_pretrained_summary_goes_without_what_its_own_training_went_without(gappy):
    made = pretrained(gappy)
    assert made.optional == ("b",)
    posterior = trained(made, simulations(300, off=0.4), rounds=1)
    x = {"a": np.zeros(3), "b": None}
    inner = posterior.network.summary.embedding.summary
    seen = {"a": torch.zeros(1, 3), "b": torch.full((1, 2), torch.nan)}
    assert torch.equal(inner(seen), gappy.network.summary(seen))
    assert posterior.sample(3, x, seed=0).array.shape == (3, 2)
    whole = trained(MLP(hidden=8), simulations(300), rounds=1)
    with pytest.raises(OptionError, match=r"'b' may be absent, and Pretrained takes all"):
        trained(pretrained(whole), simulations(300, off=0.4), rounds=1)


def test_a_pretrained_part_of_a_fusion_is_taken_away_too(dropped):
    data = simulations(300)
    alone = sbi_dgm.Simulations.from_arrays(data.theta, {"a": data.x(np.arange(300))["a"]}, prior=PRIOR)
    first = trained(MLP(hidden=8, features=3), alone, rounds=1)
    posterior = trained(Fusion(parts={"a": pretrained(first)}, absent=0.4), data, rounds=1)
    assert posterior.sample(3, {"a": None, "b": [0.0, 1.0]}, seed=0).array.shape == (3, 2)
    assert [type(part) for part in posterior.network.summary.embedding.parts] == [Absent, Absent]


def test_an_ensemble_knows_what_may_be_absent(tmp_path):
    posterior = trained(Fusion(absent=0.3), simulations(300), rounds=1, members=2, workers=1)
    posterior.save(tmp_path / "p.safetensors")
    x = {"a": np.zeros(3), "b": None}
    loaded = sbi_dgm.load(tmp_path / "p.safetensors")
    assert np.array_equal(loaded.sample(5, x, seed=0).array, posterior.sample(5, x, seed=0).array)
    assert loaded.trust(x).p_value == posterior.trust(x).p_value


def test_diagnostics_judge_simulations_that_lack_something(gappy):
    theta = PRIOR.sample(400, seed=20)
    x = Detectors(0.4)(theta, np.random.default_rng(21))
    fresh = sbi_dgm.Simulations.from_arrays(theta, x, prior=PRIOR, observables=Detectors(0.4).observables)
    report = sbi_dgm.calibrate(gappy, fresh, draws=200, seed=0, progress=False, simulator=Detectors(0.4))
    assert report.calibrated, report.verdict
    assert report.predictions
    numbers = side_by_side(x)
    assert np.isfinite(numbers).all()
    assert np.array_equal(numbers[:, 5], np.isnan(x["b"]).all(1))
