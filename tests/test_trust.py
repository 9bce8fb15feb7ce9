"""The gate at an observation, against known distributions: how often it flags, what it sees, and what it names."""

import re
import warnings

import h5py
import numpy as np
import pytest
import torch
from posterior_toys import PLAIN
from posterior_toys import X as PLAIN_X
from scipy.special import ndtr
from scipy.stats import betabinom, chi2, kstest
from torch import nn
from training_toys import BRIEF, SMALL, Own, interrupted_at, simulations
from training_toys import fit as fit_toy

import sbi_dgm
from sbi_dgm.cli import main
from sbi_dgm.data.reading import Reading
from sbi_dgm.data.vectors import View
from sbi_dgm.errors import ObservationError, TrustError, TrustWarning
from sbi_dgm.outliers import Cloud
from sbi_dgm.parameters import Observable
from sbi_dgm.samples import Samples
from sbi_dgm.trust import Gate, Trust
from simulators.supernovae import Supernovae

L = 20
NOISE = np.eye(L) + 100.0  # a common offset of sd 10 and noise of sd 1: any two numbers are correlated by 0.99
FACTOR = np.linalg.cholesky(NOISE)


def drawn(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, L)) @ FACTOR.T


def straight(shape: tuple[int, ...] = (L,), kind: str = "array") -> View:
    return View("x", Observable(shape, kind=kind), np.array(False), np.array(0.0), np.array(1.0))


def gate(train: np.ndarray, validation: np.ndarray, view: View | None = None) -> Gate:
    view = view or straight()
    return Gate.fit([view], (view(train), None), [({"x": validation}, validation[:, :0])])


def judged(by: Gate, x: np.ndarray) -> Trust:
    return by({"x": x}, np.empty((len(x), 0)))


GATE = gate(drawn(4000, 1), drawn(1999, 2))


def check_uniform(calibrate: np.ndarray, cloud: Cloud, n: int = 99, repetitions: int = 400) -> None:
    """One fresh observation for each set of n simulations: p is uniform on 1 / (n + 1), ..., 1."""
    rng, fresh = np.random.default_rng(0), drawn(repetitions, 3)
    view, p = straight(), []
    for i in range(repetitions):
        scores = np.max(cloud.surprise(calibrate[rng.choice(len(calibrate), n, replace=False)]), axis=0)
        p.append(judged(Gate([view], {"x": cloud}, np.sort(scores)), fresh[i : i + 1]).p_value[0])
    assert kstest(np.array(p) - rng.uniform(size=repetitions) / (n + 1), "uniform").pvalue > 1e-4


def test_p_values_are_uniform_even_where_the_cloud_is_badly_known():
    few = drawn(120, 4)
    cloud = Cloud.fit(few)
    check_uniform(drawn(400 * 99, 5), cloud)
    with pytest.raises(AssertionError):
        check_uniform(few, cloud)  # the rows that it was fitted to


def check_rate(flagged: np.ndarray, by: Gate) -> None:
    """Within the central 99.8 % of the beta-binomial of n simulations."""
    n = len(by.scores)
    k = round(by.level * (n + 1))
    low, high = betabinom.ppf([0.001, 0.999], len(flagged), k, n + 1 - k)
    assert low <= flagged.sum() <= high, flagged.mean()


def test_observations_like_the_simulations_are_flagged_at_the_stated_rate():
    assert GATE.level == 0.01
    fresh = drawn(4000, 3)
    check_rate(judged(GATE, fresh).flagged, GATE)
    with pytest.raises(AssertionError):
        check_rate(judged(GATE, 1.2 * fresh).flagged, GATE)


def test_few_simulations_flag_what_none_of_them_reaches():
    few = gate(drawn(400, 1), drawn(20, 2))
    assert few.level == 1 / 21
    trust = judged(few, np.concatenate([np.zeros((1, L)), np.full((1, L), 1e3)]))
    assert trust.flagged.tolist() == [False, True]
    assert trust.p_value[1] == 1 / 21


def numbers(trust: Trust) -> list[float]:
    """Those in the first sentence."""
    return [float(number) for number in re.findall(r"\d+\.?\d*", trust.reason[0])]


def each_by_itself() -> Gate:
    """The twin that knows no correlations."""
    cloud = Cloud({**GATE.clouds["x"].arrays, "maps": np.hstack([np.eye(L), np.eye(L)])})
    return Gate([straight()], {"x": cloud}, np.sort(np.max(cloud.surprise(drawn(1999, 2)), axis=0)))


EACH_BY_ITSELF = each_by_itself()


def check_named(trust: Trust, entry: int) -> None:
    assert trust.flagged.all()
    assert all(f"x[{entry}] is " in reason for reason in trust.reason)


def test_one_number_that_is_off_by_five_sd_of_its_noise_is_named_though_alone_it_is_ordinary():
    """r = 5 sqrt(P_ii), with P_ii = 1 - 1 / (L + 1 / 100), but for the error of an sd from 3,200 rows."""
    x = np.zeros((1, L))
    x[0, 7] = 5.0
    assert abs(x / np.sqrt(np.diag(NOISE))).max() < 0.5
    check_named(judged(GATE, x), 7)
    assert numbers(judged(GATE, x))[1] == pytest.approx(5 * (1 - 1 / (L + 0.01)) ** 0.5, rel=4 * (2 * 3200) ** -0.5)
    with pytest.raises(AssertionError):
        check_named(judged(EACH_BY_ITSELF, x), 7)


def test_many_numbers_that_are_off_together_show_in_the_distance():
    x = 2.5 * np.where(np.arange(L) % 2, 1.0, -1.0)[None]
    trust = judged(GATE, x)
    assert trust.flagged.all()
    assert trust.reason[0].startswith("x as a whole is ")
    assert numbers(trust)[:2] == pytest.approx([2.5 * L**0.5, chi2.median(L) ** 0.5], rel=4 * (2 * 3200) ** -0.5)


def test_a_number_that_never_varied_and_now_does_is_flagged():
    train, validation = drawn(1000, 1), drawn(500, 2)
    train[:, 4] = validation[:, 4] = 7.0
    by, fresh = gate(train, validation), drawn(1000, 3)
    fresh[:, 4] = 7.0
    check_rate(judged(by, fresh).flagged, by)
    fresh[:, 4] = 7.001
    trust = judged(by, fresh)
    assert trust.flagged.all()
    assert trust.reason[0] == "x[4] is 7.001, and was 7 in all simulations"


def test_numbers_that_follow_from_others_do_no_harm():
    """Copies and sums; an observation in which they no longer agree is flagged."""

    def made(n, seed):
        x = drawn(n, seed)
        return np.column_stack([x, x[:, 0], x[:, 1] + x[:, 2]])

    view = straight((L + 2,))
    by, fresh = gate(made(2000, 1), made(1000, 2), view), made(1000, 3)
    check_rate(judged(by, fresh).flagged, by)
    fresh[:, L] += 0.1
    assert judged(by, fresh).flagged.all()


def test_numbers_beyond_all_measure_are_flagged_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trust = judged(GATE, np.array([[1e300] * L, [-1e300, 1e300] * (L // 2)]))
    assert trust.flagged.all()


TABLE = Supernovae()
BINS, SIGMA = len(TABLE.redshift), np.sqrt(np.diag(TABLE.covariance))


def tables(n: int, seed: int) -> np.ndarray:
    return TABLE(TABLE.prior.sample(n, seed), np.random.default_rng(seed))


@pytest.fixture(scope="module")
def of_table() -> Gate:
    return gate(tables(8000, 1), tables(1000, 2), straight((BINS,)))


def test_a_thousand_tables_of_supernovae_are_flagged_at_the_stated_rate(of_table):
    check_rate(judged(of_table, tables(1000, 3)).flagged, of_table)


def check_power(share: float, shift: float, n: int) -> None:
    """A bin's residual is normal about shift / its sd given the others; 1 in 100 tables has one beyond 3.6 to 4.0."""
    r = shift * SIGMA * np.sqrt(np.diag(np.linalg.inv(TABLE.covariance)))
    low, high = (ndtr(r - t).mean() for t in (4.0, 3.6))
    assert low - 3 * (low * (1 - low) / n) ** 0.5 < share < high + 3 * (high * (1 - high) / n) ** 0.5


@pytest.mark.parametrize("shift", [3, 5])
def test_a_shifted_bin_of_the_table_is_seen_as_often_as_its_noise_allows(of_table, shift):
    x, row = tables(2000, 4), np.arange(2000)
    x[row, row % BINS] += shift * SIGMA[row % BINS]
    share = judged(of_table, x).flagged.mean()
    check_power(share, shift, 2000)
    with pytest.raises(AssertionError):
        check_power(share, shift + 0.5, 2000)


def test_a_bin_of_the_real_table_shifted_by_five_sd_is_flagged_and_named(of_table):
    """Every bin the way it deviates already, and nearly all the other way, where noise takes some of the shift back."""
    x = TABLE.observed["mu"]
    assert not judged(of_table, x[None]).flagged[0]
    way = np.sign(of_table.clouds["x"].residuals(x[None])[0])
    for sign, least in ((1, 1.0), (-1, 0.8)):
        trust = judged(of_table, x + np.diag(sign * way * 5 * SIGMA))
        assert trust.flagged.mean() >= least
        assert all(why.startswith(f"x[{i}] is ") for i, why in enumerate(trust.reason) if why)


SIDE = 24


def fields(n: int, seed: int) -> np.ndarray:
    """Five large waves of random height, and white noise of a tenth."""
    rng, place = np.random.default_rng(seed), np.arange(SIDE) / SIDE
    waves = np.stack([np.outer(np.sin(2 * np.pi * k * place), np.cos(2 * np.pi * k * place)) for k in range(1, 6)])
    return np.tensordot(rng.standard_normal((n, 5)), waves, 1) + 0.1 * rng.standard_normal((n, SIDE, SIDE))


def test_fields_are_judged_by_components_and_what_these_leave():
    by, fresh = gate(fields(2000, 1), fields(1000, 2), straight((SIDE, SIDE))), fields(1000, 3)
    check_rate(judged(by, fresh).flagged, by)
    hot, rough = fields(20, 4), fields(20, 5)
    hot[:, 3, 5] += 1.0
    assert np.mean(["x[3, 5] is " in why for why in judged(by, hot).reason]) > 0.9
    rough += 0.1 * np.random.default_rng(6).standard_normal(rough.shape)
    assert all("principal components leave of x as a whole" in why for why in judged(by, rough).reason)


def sets(n: int, seed: int) -> np.ndarray:
    """Up to 12 members of two features, the last column says who is there; padding is nonsense."""
    rng = np.random.default_rng(seed)
    there = np.arange(12) < rng.integers(0, 13, n)[:, None]
    return np.concatenate([np.where(there[..., None], rng.standard_normal((n, 12, 2)), 99.0), there[..., None]], 2)


def test_sets_are_judged_by_their_members_alone():
    by, fresh = gate(sets(2000, 1), sets(1000, 2), straight((12, 3), "set")), sets(1000, 3)
    check_rate(judged(by, fresh).flagged, by)
    padded = fresh.copy()
    padded[..., :2][fresh[..., 2] == 0] = -5.0
    assert np.array_equal(judged(by, padded).p_value, judged(by, fresh).p_value)
    odd = fresh[fresh[..., 2].sum(1) >= 3][:50]
    odd[:, 0, 1] = 9.0
    trust = judged(by, odd)
    assert trust.flagged.mean() > 0.9
    assert np.mean(["greatest of x[1]" in why for why in trust.reason]) > 0.5


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
    with pytest.warns(TrustWarning, match=r"\(p = 0.024\): x\[2\] is 21.8 sd.*strict refuses") as caught:
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
