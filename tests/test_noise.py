"""A model of noise: fresh at every step, the same in every validation, and inferred as if it were simulated."""

import numpy as np
import pytest
import torch
from torch import nn
from training_toys import BRIEF, check_same, curve, interrupted_at, prepared_by

import sbi_dgm
from sbi_dgm.data.reading import Reading
from sbi_dgm.distributions import Normal, Uniform
from sbi_dgm.errors import DataError, ExternalError, OptionError, TrainingError
from sbi_dgm.estimators.flow import Flow
from sbi_dgm.loop import Run, Training
from sbi_dgm.parameters import Observable, Parameter
from sbi_dgm.posterior import Posterior
from sbi_dgm.priors import Prior

PRIOR = Prior([Parameter("a", Normal(0, 1)), Parameter("s", Uniform(10, 20))])
SMALL = Flow(transforms=1, hidden=8, blocks=1)
MODES = [Reading(mode="memory"), Reading(mode="stream")]
both = pytest.mark.parametrize("reading", MODES, ids=["memory", "stream"])


def signals(rows=400, several=False, seed=1):
    """x is the signal a; y, where there are several, is (s, -s)."""
    theta = PRIOR.sample(rows, seed)
    x = {"x": theta[:, :1].astype("f4")}
    if several:
        x["y"] = np.stack([theta[:, 1], -theta[:, 1]], 1).astype("f4")
    return sbi_dgm.Simulations.from_arrays(theta, x, prior=PRIOR)


def half(x, theta, generator):
    return x + 0.5 * torch.randn(x.shape, generator=generator, device=x.device)


def other(x, theta, generator):
    return half(x, theta, generator)


def fit(data=None, **options) -> Posterior:
    given = {"estimator": SMALL, "training": BRIEF, "device": "cpu", "progress": False} | options
    return sbi_dgm.fit(signals() if data is None else data, **given)


class Spy:
    """Noise that notes every call."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, theta, generator):
        self.calls.append((x, theta.clone(), generator.initial_seed()))
        return half(x, theta, generator)


@both
def test_noise_sees_a_tensor_and_all_parameters_in_their_units(reading):
    spy = Spy()
    fit(noise=spy, reading=reading, parameters=["a"])
    for x, theta, _ in spy.calls:
        assert theta.shape == (len(x), 2)
        assert x.shape == (len(x), 1)
        torch.testing.assert_close(x[:, 0], theta[:, 0])
        assert float(theta[:, 1].min()) > 10


@both
def test_noise_sees_a_dict_where_there_are_several_observables(reading):
    seen = []

    def noise(x, theta, generator):
        seen.append({name: tuple(values.shape) for name, values in x.items()})
        torch.testing.assert_close(x["y"][:, 0], theta[:, 1])
        return {"y": x["y"] + theta[:, :1], "x": half(x["x"], theta, generator)}

    posterior = fit(signals(several=True), noise=noise, reading=reading)
    assert all(shapes == {"x": (shapes["x"][0], 1), "y": (shapes["x"][0], 2)} for shapes in seen)
    assert np.isfinite(posterior.log_prob([0.0, 15.0], {"x": [0.3], "y": [15.0, -15.0]}))


def prepared(reading, noise=half, data=None, **options):
    """What `fit` trains on."""
    how = Training(round=1, max_rounds=1, batch_size=32)
    return prepared_by(fit, data, noise=noise, reading=reading, training=how, **options)


@both
def test_noise_is_fresh_at_every_step_and_epoch_and_fixed_for_each(reading):
    ready = prepared(reading)
    assert ready.batches.per_epoch == 10
    drawn = {}
    for step in range(20):
        batch = ready.batches[step]
        drawn[step] = (batch.x["x"] - batch.theta[:, :1])[:, 0]
    assert len({tuple(noise.tolist()) for noise in drawn.values()}) == 20
    every = torch.cat(list(drawn.values()))
    assert abs(float(every.std()) - 0.5) < 5 * 0.5 / (2 * len(every)) ** 0.5
    again = ready.batches[13]
    assert torch.equal((again.x["x"] - again.theta[:, :1])[:, 0], drawn[13])
    assert torch.equal(prepared(reading).batches[13].x["x"], again.x["x"])
    assert not torch.equal(prepared(reading, seed=1).batches[13].x["x"], again.x["x"])


@both
def test_every_validation_sees_the_same_noise(monkeypatch, reading):
    seen, original = [], Run.validate
    monkeypatch.setattr(Run, "validate", lambda self: seen.append(self.held_out.x["x"].clone()) or original(self))
    data = signals()
    fit(data, noise=half, reading=reading)
    assert len(seen) > 3
    assert all(torch.equal(x, seen[0]) for x in seen)
    clean = data.x(data.split(sbi_dgm.SplitRule()).validation)["x"]
    residual = seen[0].numpy() - clean
    assert abs(residual.std() - 0.5) < 5 * 0.5 / (2 * len(clean)) ** 0.5


def test_no_stream_of_noise_is_drawn_twice():
    """Training, validation and scaling each have their own."""
    spy = Spy()
    fit(noise=spy, training=Training(batch_size=32, round=5, max_rounds=2, patience=9, decay=0.0))
    seeds = [seed for _, _, seed in spy.calls]
    assert len(set(seeds)) == len(seeds)


@both
def test_scalers_see_the_noisy_observables(reading):
    data = signals(4000)
    found = float(prepared(reading, data=data).scalers["x"].sd)
    assert found == pytest.approx(1.25**0.5, abs=5 * 1.25**0.5 / (2 * 3400) ** 0.5)
    assert abs(float(prepared(reading, None, data=data).scalers["x"].sd) - found) > 0.06


def test_scalers_of_a_stream_and_of_memory_see_the_same_noise():
    one, two = (prepared(reading, data=signals(3000)).scalers["x"] for reading in MODES)
    assert torch.equal(one.mean, two.mean)
    assert torch.equal(one.sd, two.sd)


@both
def test_noise_may_change_its_arguments_in_place(reading):
    def inplace(x, theta, generator):
        x += 0.5 * torch.randn(x.shape, generator=generator)
        theta *= 0
        return x

    check_same(fit(noise=inplace, reading=reading), fit(noise=half, reading=reading))


@both
def test_the_same_seed_gives_the_same_weights_and_noise_is_not_nothing(reading):
    one = fit(noise=half, reading=reading)
    check_same(one, fit(noise=half, reading=reading))
    with pytest.raises(AssertionError):
        check_same(one, fit(reading=reading))


@both
@pytest.mark.parametrize("step", [7, 14])
def test_a_noisy_run_resumes_to_the_same_weights(tmp_path, reading, step):
    whole = fit(noise=half, reading=reading, out=tmp_path / "whole")
    with interrupted_at(step):
        fit(noise=half, reading=reading, out=tmp_path / "run")
    for noise in (None, other):
        with pytest.raises(TrainingError, match="was started with noise = half, not"):
            fit(noise=noise, reading=reading, out=tmp_path / "run", resume=True)
    check_same(fit(noise=half, reading=reading, out=tmp_path / "run", resume=True), whole)
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")


def learned(noise, reading=MODES[0], rows=6000, data=None) -> Posterior:
    how = Training(batch_size=256, round=25, max_rounds=14, learning_rate=1e-2, ema=0.98, warmup=10)
    flow = Flow(transforms=1, hidden=16, blocks=1, map="affine")
    data = signals(rows) if data is None else data
    return fit(data, noise=noise, reading=reading, parameters=["a"], estimator=flow, training=how)


def check_gaussian(posterior):
    """N(0.8 x, 0.2): mean within 0.15 of its sd and sd within 10 %, for x within two sd of its distribution."""
    for x in (-1.5, 0.0, 1.5):
        draws = posterior.sample(4000, [x], seed=1).array
        assert abs(draws.mean() - 0.8 * x) < 0.15 * 0.2**0.5, f"mean {draws.mean():.3f} at x = {x}"
        assert abs(draws.std() / 0.2**0.5 - 1) < 0.10, f"sd {draws.std():.3f} at x = {x}"


@both
def test_signals_with_a_model_of_noise_give_the_posterior_of_the_noisy_problem(reading):
    check_gaussian(learned(half, reading))


def test_the_check_accuses_training_on_clean_signals():
    with pytest.raises(AssertionError):
        check_gaussian(learned(None))


@pytest.mark.slow
def test_noise_of_a_marginalised_parameter_widens_the_posterior():
    """The noise's sd is (s - 10) / 10, with s uniform on (10, 20): at x = 0 the posterior of a is a mixture over s."""

    def noise(x, theta, generator):
        return x + (theta[:, 1:] - 10) / 10 * torch.randn(x.shape, generator=generator)

    sd = np.linspace(0, 1, 2001)[1:]
    weight = 1 / np.sqrt(1 + sd**2)
    expected = np.sqrt((weight * sd**2 / (1 + sd**2)).sum() / weight.sum())
    flow = Flow(transforms=3, hidden=32, blocks=1)
    how = Training(batch_size=256, round=25, max_rounds=24, learning_rate=5e-3, ema=0.98, warmup=10)
    posterior = fit(signals(8000), noise=noise, parameters=["a"], estimator=flow, training=how)
    draws = posterior.sample(8000, [0.0], seed=1).array
    assert draws.std() == pytest.approx(expected, rel=0.15)


def test_calibrate_passes_with_the_noise_and_refuses_without_it_or_with_another(tmp_path):
    data = sbi_dgm.Simulations.create(tmp_path / "a.h5", *clean(6000), prior=PRIOR)
    posterior = learned(half, data=data)
    assert posterior.record["noise"] == "half"
    posterior.save(tmp_path / "p.safetensors")
    loaded = sbi_dgm.load(tmp_path / "p.safetensors")
    report = sbi_dgm.calibrate(loaded, data, noise=half, draws=200, progress=False)
    assert report.calibrated, report.verdict
    for wrong, name in ((None, "None"), (other, "other")):
        with pytest.raises(ExternalError, match=f"trained with noise=half, and is judged with {name}: pass it"):
            sbi_dgm.calibrate(loaded, data, noise=wrong, draws=200, progress=False)
    loaded.record["noise"] = None
    report = sbi_dgm.calibrate(loaded, data, draws=200, progress=False)
    assert not report.calibrated, "on clean signals it is too wide"


def clean(rows):
    theta = PRIOR.sample(rows, 1)
    return theta, theta[:, :1].astype("f4")


def test_a_posterior_trained_without_noise_is_not_judged_with_it():
    posterior = fit()
    assert posterior.record["noise"] is None
    with pytest.raises(ExternalError, match="trained with noise=None, and is judged with half"):
        sbi_dgm.calibrate(posterior, signals(), noise=half, draws=200, progress=False)


@both
def test_noise_on_counts_makes_fractions_that_the_posterior_takes(tmp_path, reading):
    theta = PRIOR.sample(400, 1)
    counts = np.round(100 + 30 * theta[:, :1]).clip(0).astype("u2")
    data = sbi_dgm.Simulations.from_arrays(theta, counts, prior=PRIOR)
    posterior = fit(data, noise=half, reading=reading)
    posterior.save(tmp_path / "p.safetensors")
    for one in (posterior, sbi_dgm.load(tmp_path / "p.safetensors")):
        assert np.isfinite(one.log_prob([0.0, 15.0], [100.25]))
        assert one.log_prob([0.0, 15.0], [100.25]) != one.log_prob([0.0, 15.0], [100.75])


@pytest.mark.parametrize(
    ("noise", "words"),
    [
        (lambda x, theta, generator: None, "gave NoneType|gave {'x': 'NoneType'}"),
        (lambda x, theta, generator: x.numpy(), "gave {'x': 'ndarray'}"),
        (lambda x, theta, generator: x + theta, r"gave {'x': \(\d+, 2\)} for observables {'x': \(\d+, 1\)}"),
    ],
    ids=["nothing", "array", "shape"],
)
def test_noise_that_returns_something_else_is_refused_in_a_sentence(noise, words):
    with pytest.raises(OptionError, match=words):
        fit(noise=noise)


@pytest.mark.parametrize("noise", [lambda x, t, g: {"x": x["x"]}, lambda x, t, g: x["x"]], ids=["missing", "tensor"])
def test_noise_that_loses_an_observable_is_refused_in_a_sentence(noise):
    with pytest.raises(OptionError, match="it must return tensors of the same names and shapes"):
        fit(signals(several=True), noise=noise)


def test_noise_that_is_not_finite_is_refused_before_training(tmp_path):
    with pytest.raises(DataError, match="observable 'x', row"):
        fit(noise=lambda x, theta, generator: x / 0, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Counted(nn.Module):
    """The mean of a set's members."""

    def forward(self, x):
        return x.sum(1) / x[..., -1:].sum(1).clamp(min=1)


@both
def test_noise_on_the_members_of_a_set(reading):
    rng = np.random.default_rng(0)
    theta = PRIOR.sample(400, 1)
    x = np.zeros((400, 5, 2), "f4")
    x[..., 1] = np.arange(5) < rng.integers(1, 6, (400, 1))
    x[..., 0] = x[..., 1] * theta[:, :1]
    shape = {"x": Observable((5, 2), kind="set")}
    data = sbi_dgm.Simulations.from_arrays(theta, {"x": x}, prior=PRIOR, observables=shape)

    def noise(x, theta, generator):
        there = x[..., 1:]
        return torch.cat([half(x[..., :1], theta, generator) * there, there], -1)

    ready = prepared(reading, noise, data, embedding=Counted())
    scaled = ready.scalers["x"](ready.batches[0].x["x"])
    assert (scaled[scaled[..., 1] == 0] == 0).all()
    assert float(ready.scalers["x"].sd) == pytest.approx(1.25**0.5, abs=0.15)
