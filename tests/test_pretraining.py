"""Summaries trained by mutual information: its bound on normals, and what a posterior behind them is worth."""

import math

import numpy as np
import pytest
import torch

import sbi_dgm
from sbi_dgm.distributions import Normal
from sbi_dgm.embeddings import base as embeddings
from sbi_dgm.embeddings.fusion import Fusion
from sbi_dgm.embeddings.pretrained import Pretrained, pretrained
from sbi_dgm.embeddings.vectors import MLP
from sbi_dgm.errors import OptionError
from sbi_dgm.estimators import contrastive
from sbi_dgm.estimators.base import Space
from sbi_dgm.estimators.contrastive import Contrastive
from sbi_dgm.estimators.flow import Flow
from sbi_dgm.loop import Training
from sbi_dgm.parameters import Parameter
from sbi_dgm.priors import Prior
from sbi_dgm.seeds import lending

CRITIC = Contrastive(hidden=32, blocks=1, width=16, dropout=0.0)
MANY = 80  # numbers of x


def normals(rho: float, rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    z, noise = torch.randn(2, rows, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return z, rho * z + math.sqrt(1 - rho**2) * noise


def best(rho: float, z: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Products of these are ln p(z | c) / p(z), but for a function of c."""
    ratio = 1 / (1 - rho**2)
    return torch.cat([z, z**2], 1), torch.cat([rho * ratio * c, torch.full_like(c, 0.5 - 0.5 * ratio)], 1)


def information(lost, g: torch.Tensor, h: torch.Tensor, block: int = 500) -> tuple[float, float]:
    """Minus the loss over blocks, and four standard errors."""
    found = torch.stack([-lost(a, b).mean() for a, b in zip(g.split(block), h.split(block), strict=True)])
    return float(found.mean()), 4 * float(found.std()) / math.sqrt(len(found))


def check_information(lost, rho: float) -> None:
    """At most the truth for every critic, and the truth for the best one, but for e^I / 2 K."""
    z, c = normals(rho, 20_000)
    exact = -0.5 * math.log(1 - rho**2)
    found, error = information(lost, *best(rho, z, c))
    assert exact - error - math.exp(exact) / 500 < found < exact + error
    for off in (0.5, 2.0):
        g, h = best(rho, z, c)
        assert information(lost, off * g, h)[0] < exact + error


def without_itself(g: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """The wrong denominator: the others alone."""
    f = h @ g.T
    others = f.masked_fill(torch.eye(len(f), dtype=torch.bool), -torch.inf)
    return others.logsumexp(1) - math.log(len(f)) - f.diagonal()


@pytest.mark.parametrize("rho", [0.3, 0.9])
def test_the_bound_is_met_on_normals_and_never_beaten(rho):
    check_information(contrastive._lost, rho)


def test_other_denominators_do_not_pass():
    for wrong in (without_itself, lambda g, h: contrastive._lost(h, g.flip(0)), lambda g, h: -(g * h).sum(1)):
        with pytest.raises(AssertionError):
            check_information(wrong, 0.99 if wrong is without_itself else 0.5)


def built(**options) -> contrastive.ContrastiveEstimator:
    with lending(0):
        return Contrastive(**options).build(Space((1,)), 1).double().eval().requires_grad_(False)


def test_the_loss_of_a_row_is_that_of_its_block_and_blocks_are_even():
    z, c = normals(0.8, 1000)
    estimator = built(block=400)
    losses = estimator(z, c)
    parts = [estimator(a, b) for a, b in zip(z.split([334, 333, 333]), c.split([334, 333, 333]), strict=True)]
    assert torch.allclose(losses, torch.cat(parts))
    assert not torch.allclose(losses, built(block=1000)(z, c))
    assert float(estimator(z[:1], c[:1])) == pytest.approx(0.0, abs=1e-12)


def test_what_reaches_the_ceiling_is_warned_of():
    estimator = built(block=64)
    figures = estimator.monitor(*normals(0.5, 640))
    assert figures["information_at_most"] == pytest.approx(math.log(64))
    assert figures["information"] == pytest.approx(-float(estimator(*normals(0.5, 640)).mean()))
    assert not estimator.concern(figures)
    assert "4.10 nats of theta, of the 4.16 that blocks of 64" in estimator.concern(figures | {"information": 4.1})


PRIOR = Prior([Parameter(name, Normal(0, 1)) for name in "ab"])
SLOPE = np.random.default_rng(5).normal(size=(MANY, 2)) * 0.45
PRECISION = np.eye(2) + SLOPE.T @ SLOPE


def simulations(rows: int = 4000, seed: int = 1) -> sbi_dgm.Simulations:
    """x ~ N(A theta, 1), of 80 numbers."""
    theta, rng = PRIOR.sample(rows, seed), np.random.default_rng(100 + seed)
    return sbi_dgm.Simulations.from_arrays(theta, theta @ SLOPE.T + rng.normal(size=(rows, MANY)), prior=PRIOR)


def trained(estimator, embedding, data=None, rounds: int = 10, **options) -> sbi_dgm.Posterior:
    how = Training(batch_size=256, round=25, max_rounds=rounds, learning_rate=5e-3, ema=0.98, warmup=20)
    data = simulations() if data is None else data
    return sbi_dgm.fit(data, estimator, embedding, training=how, device="cpu", progress=False, **options)


@pytest.fixture(scope="module")
def first() -> sbi_dgm.Posterior:
    return trained(CRITIC, MLP(features=4, hidden=32, blocks=1))


AFFINE = Flow(transforms=1, hidden=16, blocks=1, map="affine", dropout=0.0)


def check_exact(posterior: sbi_dgm.Posterior, share: float) -> None:
    """Of 200 observations, means within `share` of the exact sd in the mean square, and sds within 15 %."""
    data = simulations(200, seed=2)
    x = data.x(np.arange(200))["x"]
    draws = posterior.sample(1000, x, seed=0).array
    covariance = np.linalg.inv(PRECISION)
    sd = np.sqrt(np.diag(covariance))
    off = (draws.mean(1) - x @ SLOPE @ covariance) / sd
    assert np.sqrt((off**2).mean(0)).max() < share
    assert draws.std(1).mean(0) == pytest.approx(sd, rel=0.15)


def test_a_posterior_on_a_frozen_summary_is_close_to_the_exact_one(first, tmp_path):
    """The exact information is 2.8 nats; a summary of theta shuffled has none and its posterior is the prior."""
    exact = 0.5 * np.linalg.slogdet(PRECISION)[1]
    assert exact - 0.4 < -first.record["best_validation_loss"] < exact + 0.2
    made = pretrained(first)
    posterior = trained(AFFINE, made)
    check_exact(posterior, 0.5)
    learned, before = posterior.network.summary.embedding.summary.state_dict(), first.network.summary.state_dict()
    assert all(torch.equal(learned[name], before[name]) for name in before)
    posterior.save(tmp_path / "p.safetensors")
    x = simulations(3, seed=3).x(np.arange(3))
    loaded = sbi_dgm.load(tmp_path / "p.safetensors")
    assert np.array_equal(loaded.sample(9, x, seed=1).array, posterior.sample(9, x, seed=1).array)
    assert loaded.model == posterior.model


def test_theta_shuffled_has_no_information():
    data = simulations()
    theta = np.random.default_rng(0).permutation(data.theta)
    shuffled = sbi_dgm.Simulations.from_arrays(theta, data.x(np.arange(len(data)))["x"], prior=PRIOR)
    blind = trained(CRITIC, MLP(features=4, hidden=32, blocks=1), shuffled, rounds=2)
    assert -blind.record["best_validation_loss"] < 0.02
    with pytest.raises(AssertionError):
        check_exact(trained(AFFINE, pretrained(blind), rounds=4), 0.5)


def test_a_summary_that_starts_there_is_trained_further_and_a_frozen_one_has_no_gradient(first):
    moving = trained(AFFINE, pretrained(first, frozen=False), rounds=2)
    inner, before = moving.network.summary.embedding.summary.state_dict(), first.network.summary.state_dict()
    weights = [name for name in before if not name.startswith("scalers")]
    assert any(not torch.equal(inner[name], before[name]) for name in weights)
    assert all(torch.equal(inner[name], before[name]) for name in before if name.startswith("scalers"))
    for frozen in (True, False):
        observables = first.model.observables
        module = pretrained(first, frozen=frozen).build(observables, 2).train()
        assert module.summary.training != frozen
        module({"x": torch.zeros(3, MANY)}).sum().backward() if not frozen else None
        assert all((p.grad is None) == frozen for p in module.parameters())


def test_other_rows_do_not_change_how_it_sees_x(first):
    """Its own scalers stay, whatever those of the second run are; what it gives is scaled by the second's rows."""
    data, x = simulations(400, seed=5), torch.as_tensor(simulations(5, seed=6).x(np.arange(5))["x"])
    wide = sbi_dgm.Simulations.from_arrays(data.theta, 3 * data.x(np.arange(400))["x"], prior=PRIOR)
    posterior = trained(AFFINE, pretrained(first), wide, rounds=1)
    embedding = posterior.network.summary.embedding
    assert torch.equal(embedding.summary({"x": x}), first.network.summary({"x": x}))
    rows = wide.split(sbi_dgm.SplitRule()).train
    context = embedding.scale.standard(embedding.summary({"x": torch.as_tensor(wide.x(rows)["x"])})).double()
    assert context.mean(0).abs().max() < 0.2
    assert 0.7 < float(context.std(0).min()) <= float(context.std(0).max()) < 1.2


def test_it_is_known_by_its_digest_and_survives_json(first):
    made, again = pretrained(first), pretrained(first)
    assert made == again
    assert embeddings.restore(embeddings.describe(made)) == made
    assert made != pretrained(first, frozen=False)
    other = trained(CRITIC, MLP(features=4, hidden=32, blocks=1), rounds=1)
    assert pretrained(other).digest != made.digest
    with pytest.raises(OptionError, match=r"made in Python before training.*sbi_dgm.pretrained"):
        trained(AFFINE, embeddings.restore(embeddings.describe(made)))


def test_it_may_be_a_part_of_several_summaries(first):
    data = simulations(200)
    x = data.x(np.arange(200))["x"]
    two = sbi_dgm.Simulations.from_arrays(data.theta, {"x": x, "y": x[:, :2]}, prior=PRIOR)
    posterior = trained(AFFINE, Fusion(parts={"x": pretrained(first)}), two, rounds=1)
    assert posterior.sample(3, {"x": x[0], "y": x[0, :2]}).array.shape == (3, 2)


def test_what_has_no_summary_of_its_own_is_refused(first):
    with pytest.raises(OptionError, match="module of your own"):
        pretrained(trained(AFFINE, torch.nn.Linear(MANY, 2), simulations(200), rounds=1))
    several = sbi_dgm.Posterior(first.model._replace(members=3), first.network, {})
    with pytest.raises(OptionError, match="an ensemble has 3 summaries"):
        pretrained(several)
    with pytest.raises(OptionError, match=r"made for x \(80,\), and is given x \(3,\)"):
        pretrained(first).build({"x": sbi_dgm.Observable((3,))}, 2)


def test_a_summarys_run_has_neither_draws_nor_density_and_says_what_has(first, tmp_path):
    x = np.zeros(MANY)
    for call in (lambda p: p.sample(3, x), lambda p: p.log_prob([0.0, 0.0], x), lambda p: p.map(x)):
        with pytest.raises(OptionError, match=r"summary of x and nothing else\. sbi_dgm\.pretrained"):
            call(first)
    first.save(tmp_path / "c.safetensors")
    assert pretrained(sbi_dgm.load(tmp_path / "c.safetensors")) == pretrained(first)
    assert isinstance(pretrained(first), Pretrained)
    assert first.trust(simulations(3, seed=9).x(np.arange(3))).p_value.shape == (3,)
