"""The gate of trained posteriors: what either space sees, files, warnings, refusals."""

import re
import warnings

import h5py
import numpy as np
import pytest
import torch
from posterior_toys import PLAIN
from posterior_toys import X as PLAIN_X
from torch import nn
from training_toys import BRIEF, SMALL, Own, interrupted_at, simulations
from training_toys import fit as fit_toy
from trust_toys import check_rate

import sbi_dgm
from sbi_dgm.cli import main
from sbi_dgm.data.reading import Reading
from sbi_dgm.errors import ObservationError, TrustError, TrustWarning
from sbi_dgm.samples import Samples
from sbi_dgm.trust import Trust


class Ring(nn.Module):
    """The radius, and nothing else: blind to the angle, and to the third number."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.scale * (x[:, :2] ** 2).sum(1, keepdim=True)


def ring(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    theta = sbi_dgm.Prior([sbi_dgm.Parameter("a", sbi_dgm.Uniform(0, 1))]).sample(n, seed)
    rng = np.random.default_rng(seed)
    angle, radius = rng.uniform(0, 2 * np.pi, n), 5 + 0.1 * rng.standard_normal(n) + 0.2 * theta[:, 0]
    return theta, np.column_stack([radius * np.cos(angle), radius * np.sin(angle), rng.standard_normal(n)])


@pytest.fixture(scope="module")
def of_ring() -> sbi_dgm.Posterior:
    prior = sbi_dgm.Prior([sbi_dgm.Parameter("a", sbi_dgm.Uniform(0, 1))])
    data = sbi_dgm.Simulations.from_arrays(*ring(3000, 1), prior=prior)
    return sbi_dgm.fit(data, SMALL, Ring(), training=BRIEF, device="cpu", progress=False)


def alone(space: str, posterior: sbi_dgm.Posterior, x: np.ndarray) -> float:
    """The share of 1,000 fresh simulations that are stranger than x in one space alone."""
    both = {"x": np.concatenate([ring(1000, 9)[1], x[None]])}
    v = posterior.gate.vector(both) if space == "x" else posterior._context(both).double().numpy()
    score = np.max(posterior.gate.clouds[space].surprise(v), axis=0)
    return float((score[:-1] >= score[-1]).mean())


def test_what_the_embedding_discards_is_seen_in_x(of_ring):
    x = np.array([5.1, 0.0, 6.0])
    assert of_ring.trust(x).flagged
    assert "x[2]" in of_ring.trust(x).reason
    assert alone("x", of_ring, x) == 0.0
    assert alone("context", of_ring, x) > 0.05


def test_what_is_not_linear_in_x_is_seen_by_the_embedding(of_ring):
    """The middle of the ring is the mean of x."""
    x = np.zeros(3)
    assert of_ring.trust(x).flagged
    assert of_ring.trust(x).reason.startswith("what the embedding makes of x is ")
    assert alone("context", of_ring, x) == 0.0
    assert alone("x", of_ring, x) > 0.9


def test_the_gate_of_a_training_flags_fresh_simulations_at_its_rate(of_ring):
    check_rate(of_ring.trust(ring(2000, 7)[1]).flagged, of_ring.gate)


def seen(rows: int, seed: int) -> np.ndarray:
    return simulations(rows, seed=seed).x(np.arange(rows))["x"]


X, FAR = np.array([0.1, -0.4, 0.5]), np.array([0.1, -0.4, 9.0])


@pytest.fixture(scope="module")
def trained() -> sbi_dgm.Posterior:
    return fit_toy()


def test_samples_carry_the_verdict_and_a_warning_says_it(trained):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not trained.sample(5, X, seed=0).trust.flagged
    with pytest.warns(TrustWarning, match=r"\(p = 0.024\): x\[2\] is 19.9 sd.*strict refuses") as caught:
        samples = trained.sample(5, FAR, seed=0)
    assert caught[0].filename == __file__
    assert samples.trust.flagged
    assert trained.trust(FAR).p_value == samples.trust.p_value


def test_strict_refuses_what_is_warned_of(trained):
    assert trained.sample(5, X, seed=0, strict=True).trust.p_value == trained.trust(X).p_value
    with pytest.raises(TrustError, match="unlike the simulations"):
        trained.sample(5, FAR, strict=True)


def test_a_stack_is_warned_of_where_chance_does_not_explain_it(trained):
    x = seen(200, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert trained.sample(1, x, seed=0, strict=True).trust.p_value.shape == (200,)
    x[:50, 1] = 20.0
    with pytest.warns(TrustWarning, match=r"5\d of 200 observations are unlike the simulations, where by chance 4.88"):
        samples = trained.sample(1, x, seed=0)
    assert samples.trust.flagged[:50].all()
    assert samples.observation(3).trust.p_value == samples.trust.p_value[3]
    with pytest.raises(ObservationError, match="one observation already"):
        samples.observation(3).trust.observation(0)


@pytest.mark.parametrize(("flagged", "warned"), [(3, False), (5, True)])
def test_how_many_of_a_hundred_are_too_many(flagged, warned):
    """Of the beta-binomial of 10,000 simulations: P(>= 4) = 0.019, P(>= 5) = 0.0035, P(>= 6) = 0.0006."""
    p = np.full(100, 0.5)
    p[: flagged + 1] = 0.005
    assert bool(Trust(p, 0.01, 9999, ("why",) * 100).concern) == warned


def check_same_gate(one: sbi_dgm.Posterior, two: sbi_dgm.Posterior) -> None:
    first, second = one.gate.arrays(), two.gate.arrays()
    assert set(first) == set(second)
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_the_file_keeps_the_gate_to_the_bit(trained, tmp_path):
    trained.save(tmp_path / "p.safetensors")
    loaded = sbi_dgm.load(tmp_path / "p.safetensors", embedding=Own())
    check_same_gate(loaded, trained)
    for x in (X, FAR):
        one, two = trained.trust(x), loaded.trust(x)
        assert (one.p_value, one.level, one.reason) == (two.p_value, two.level, two.reason)
    assert loaded.using().gate is loaded.gate
    with pytest.raises(AssertionError):
        check_same_gate(loaded, fit_toy(simulations(seed=2)))


def test_a_repaired_posterior_keeps_the_gate(trained):
    check_same_gate(trained.repaired(simulations(600, seed=5), draws=100, progress=False), trained)


def test_a_resumed_run_has_the_same_gate(trained, tmp_path):
    with interrupted_at(20):
        fit_toy(out=tmp_path / "run")
    check_same_gate(fit_toy(out=tmp_path / "run", resume=True), trained)


def test_a_stream_has_a_gate_too():
    streamed = fit_toy(reading=Reading(mode="stream"))
    assert streamed.trust(FAR).flagged
    assert not streamed.trust(X).flagged


def noise(x, theta, generator):
    return x + 3.0 * torch.randn(x.shape, generator=generator, device=x.device)


def test_the_gate_sees_the_noise_that_training_saw():
    data = simulations(2000)
    noisy = fit_toy(data, noise=noise)
    fresh = seen(2000, 3)
    fresh = fresh + 3.0 * np.random.default_rng(4).standard_normal(fresh.shape)
    check_rate(noisy.trust(fresh).flagged, noisy.gate)
    with pytest.raises(AssertionError):
        check_rate(fit_toy(data).trust(fresh).flagged, noisy.gate)


def test_an_ensemble_compares_with_what_all_members_make_of_x(trained, tmp_path):
    several = fit_toy(members=2, workers=1, out=tmp_path / "run")
    assert len(several.gate.clouds["context"].arrays["centre"]) == 2 * len(trained.gate.clouds["context"].arrays["sd"])
    first = sbi_dgm.load(tmp_path / "run" / "members" / "0" / "posterior.safetensors", embedding=Own())
    check_same_gate(first, trained)
    for name, values in first.gate.clouds["x"].arrays.items():
        assert np.array_equal(values, several.gate.clouds["x"].arrays[name])
    check_same_gate(sbi_dgm.load(tmp_path / "run" / "posterior.safetensors", embedding=Own()), several)
    assert several.trust(FAR).flagged
    check_rate(several.trust(seen(2000, 3)).flagged, several.gate)


def test_without_a_gate_nothing_is_said_and_strict_refuses(tmp_path):
    assert PLAIN.trust(PLAIN_X) is None
    assert PLAIN.sample(5, PLAIN_X).trust is None
    PLAIN.save(tmp_path / "p.safetensors")
    assert sbi_dgm.load(tmp_path / "p.safetensors").trust(PLAIN_X) is None
    with pytest.raises(TrustError, match="no simulations to compare"):
        PLAIN.sample(5, PLAIN_X, strict=True)


def test_a_likelihood_has_no_gate():
    learned = sbi_dgm.fit(simulations(), SMALL, learn="likelihood", training=BRIEF, device="cpu", progress=False)
    assert learned.inner.gate is None


def test_a_refined_posterior_passes_through_the_gate_of_its_proposal(trained):
    refined = trained.refined(lambda theta, x: -0.5 * ((theta - x) ** 2).sum(1), effective=100)
    assert not refined.sample(5, X, seed=0).trust.flagged
    with pytest.raises(TrustError, match="unlike the simulations"):
        refined.sample(5, FAR, seed=0, strict=True)
    with pytest.warns(TrustWarning, match="unlike the simulations") as caught:
        assert refined.sample(5, FAR, seed=0).trust.flagged
    assert [w.filename for w in caught if w.category is TrustWarning] == [__file__]


@pytest.mark.parametrize("x", [FAR, np.stack([X, FAR, X])], ids=["one", "several"])
def test_files_of_samples_keep_it_beside_the_draws(trained, tmp_path, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrustWarning)
        samples = trained.sample(7, x, seed=0)
    samples.save(tmp_path / "s.h5")
    kept = Samples.load(tmp_path / "s.h5").trust
    assert np.array_equal(kept.p_value, samples.trust.p_value)
    assert type(kept.p_value) is type(samples.trust.p_value)
    assert (kept.level, kept.simulations, kept.reason) == (
        samples.trust.level,
        samples.trust.simulations,
        samples.trust.reason,
    )
    with h5py.File(tmp_path / "s.h5") as file:
        assert {"a", "b", "c"} == set(file["posterior"]) - {"chain", "draw", "observation"}
        assert set(file["trust"]) == {"p_value", "reason"} | ({"observation"} if x.ndim > 1 else set())


def test_the_command_line_warns_and_with_strict_refuses(tmp_path, capsys):
    posterior = fit_toy(embedding=sbi_dgm.MLP(features=4, hidden=8, blocks=0))
    posterior.save(tmp_path / "p.safetensors")
    for name, x in (("near", X), ("far", FAR)):
        np.savetxt(tmp_path / f"{name}.txt", x)

    def sample(name, *words):
        given, out = (str(tmp_path / f"{name}.{end}") for end in ("txt", "h5"))
        return main(
            ["sample", str(tmp_path / "p.safetensors"), given, "-o", out, "-n", "50", "--device", "cpu", *words]
        )

    assert sample("near", "--strict") == 0
    assert re.search(r"trust: p = [0-9.]+ among 40 simulations, not flagged", capsys.readouterr().out)
    assert sample("far", "--strict") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sbi-dgm:")]
    assert "the observation is unlike the simulations (p = 0.024)" in line
    assert not (tmp_path / "far.h5").exists()
    assert sample("far") == 0
    assert "note: the observation is unlike the simulations" in capsys.readouterr().err
    assert Samples.load(tmp_path / "far.h5").trust.flagged
