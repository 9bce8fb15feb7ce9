"""Conditional VAEs against one whose density is known; collapse, told and cured. The contract: tests/contracts."""

import csv
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from training_toys import fit

import sbi_dgm
from sbi_dgm import options
from sbi_dgm.distributions import Normal
from sbi_dgm.errors import OptionError
from sbi_dgm.estimators.base import FAMILIES, Space
from sbi_dgm.estimators.diffusion import Diffusion
from sbi_dgm.estimators.ensemble import Mixture
from sbi_dgm.estimators.flow import Flow
from sbi_dgm.estimators.located import Located
from sbi_dgm.estimators.vae import VAE, VAEEstimator
from sbi_dgm.loop import Training
from sbi_dgm.parameters import Parameter
from sbi_dgm.posterior import load
from sbi_dgm.priors import Prior
from sbi_dgm.seeds import lending

NETWORK = {"hidden": 16, "blocks": 1}
SLOPE = 0.8


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def log_normal(z: Tensor, mean: float = 0.0, sd: float = 1.0) -> Tensor:
    return -0.5 * (((z - mean) / sd).square() + math.log(2 * math.pi * sd**2)).sum(-1)


def built(family: VAE, size: int = 2, context: int = 1) -> VAEEstimator:
    with lending(3):
        return family.build(Space((size,)), context).double().eval().requires_grad_(False)


def linear(off: float = 0.0, wide: float = 0.0, **choices) -> VAEEstimator:
    """One whose density is N(0, I): z = a w + sqrt(1 - a^2) u. Its encoder is off in mean, and ln sd, by so much."""
    estimator = built(VAE(**NETWORK, components=1, **{"skip": SLOPE, "latent": 2} | choices))
    for weight in estimator.decoder.network.last.parameters():
        weight.zero_()
    for encoder in estimator.encoders:
        encoder.network.last[-1].bias[:2] += off
        encoder.network.last[-1].bias[2:] += wide
    return estimator


def mean_and_error(numbers: Tensor) -> tuple[float, float]:
    """And four standard errors."""
    return float(numbers.mean()), 4 * float(numbers.std()) / math.sqrt(numbers.numel())


def check_mean(numbers: Tensor, expected: float) -> None:
    mean, error = mean_and_error(numbers)
    assert abs(mean - expected) < error, f"{mean:.4f} +- {error:.4f}, not {expected:.4f}"


CONTEXT, Z = normal(5000, 1, seed=1), normal(5000, 2, seed=2)


@pytest.mark.parametrize("choices", [{}, {"levels": 3}, {"latent": 3}, {"latent": 1}, {"prior": Flow(**NETWORK)}])
def test_untrained_ones_are_standard_normals_whose_encoder_is_exact(choices):
    estimator = built(VAE(**NETWORK, **choices))
    for weight in estimator.decoder.network.last.parameters():
        weight.zero_()
    log_prob, error = estimator.log_prob_and_error(Z[:50], CONTEXT[:50])
    assert torch.allclose(log_prob, log_normal(Z[:50]), atol=1e-6)
    assert float(error.max()) < 1e-6


def rises_to_the_truth(estimator: VAEEstimator) -> None:
    """The bound is not above ln p but for its error, nor its exponential off p, and the gap falls as 1 / K."""
    gaps = []
    for draws in (2, 16, 128):
        estimator.options = estimator.options.using(importance=draws)
        off = estimator.log_prob(Z, CONTEXT, generator(draws)) - log_normal(Z)
        mean, error = mean_and_error(off)
        assert mean < error, f"{draws} draws: {mean:.4f} +- {error:.4f} above ln p"
        check_mean(off.exp(), 1.0)
        gaps.append(-mean)
    assert gaps[1] < 0.5 * gaps[0], f"gaps {gaps}"
    assert gaps[2] < 0.5 * gaps[1], f"gaps {gaps}"


@pytest.mark.parametrize("levels", [1, 2])
def test_the_bound_rises_with_its_draws_and_stays_below_the_truth(levels):
    estimator = linear(off=0.3, wide=0.4, levels=levels)
    rises_to_the_truth(estimator)
    for spoil in (0.1, -0.1):
        spoiled = linear(off=0.3, wide=0.4, levels=levels)
        spoiled._terms = likelier(spoiled._terms, spoil)
        with pytest.raises(AssertionError):
            rises_to_the_truth(spoiled)


def likelier(terms: Callable, by: float) -> Callable:
    def spoiled(*arguments):
        log_likelihood, kl = terms(*arguments)
        return log_likelihood + by, kl

    return spoiled


def check_errors(off: Tensor, error: Tensor) -> None:
    """Errors are as large as estimates scatter about the truth."""
    assert float(off.std()) == pytest.approx(float(error.square().mean().sqrt()), rel=0.1)


def test_the_standard_error_is_that_of_the_bound():
    estimator = linear(off=0.2, wide=0.3)
    log_prob, error = estimator.log_prob_and_error(Z, CONTEXT, generator(4))
    check_errors(log_prob - log_normal(Z), error)
    with pytest.raises(AssertionError):
        check_errors(log_prob - log_normal(Z), error / math.sqrt(2))


def test_without_a_generator_the_bound_is_a_function_of_z():
    estimator = linear(off=0.3, wide=0.4)
    log_prob = estimator.log_prob(Z[:100], CONTEXT[:100])
    assert torch.equal(log_prob, estimator.log_prob(Z[:100], CONTEXT[:100]))
    assert torch.allclose(log_prob.flip(0), estimator.log_prob(Z[:100].flip(0), CONTEXT[:100].flip(0)), atol=1e-9)
    seeded = estimator.log_prob(Z[:100], CONTEXT[:100], generator(5))
    assert float((seeded - log_prob).abs().min()) > 0


@pytest.mark.parametrize(("draws", "levels"), [(2, 1), (8, 1), (8, 2)])
def test_weights_of_draws_are_unbiased_however_few_the_latents(draws, levels):
    """The mean of f / p over draws is the integral of f; with the bound at the same draws in place of p it is not."""
    estimator = linear(off=0.4, wide=0.3, levels=levels, importance=draws)
    z, said = estimator.sample_and_log_prob(20_000, CONTEXT[:1], generator(6))
    target = log_normal(z, 0.2, 0.6)
    check_mean((target - said).exp(), 1.0)
    with pytest.raises(AssertionError):
        check_mean((target - estimator.log_prob(z, CONTEXT[:1], generator(7))).exp(), 1.0)


def test_draws_stand_above_the_truth_and_the_bound_below():
    estimator = linear(off=0.4, wide=0.4, importance=4)
    z, said = estimator.sample_and_log_prob(5000, CONTEXT[:1], generator(8))
    above, error = mean_and_error(said - log_normal(z))
    assert above > error
    below, error = mean_and_error(estimator.log_prob(z, CONTEXT[:1], generator(9)) - log_normal(z))
    assert below < -error


def test_weights_of_an_ensembles_draws_are_unbiased():
    members = [linear(off=off, wide=0.3, importance=2) for off in (0.4, -0.4)]
    mixture = Mixture(members, [1, 1])
    z, said = mixture.sample_and_log_prob(20_000, CONTEXT[:1].repeat(1, 2), generator(10))
    target = log_normal(z, 0.2, 0.6)
    check_mean((target - said).exp(), 1.0)
    with pytest.raises(AssertionError):
        check_mean((target - mixture.log_prob(z, CONTEXT[:1].repeat(1, 2), generator(11))).exp(), 1.0)


KL = -math.log(1 - SLOPE**2)  # of two latents: E KL(N(a z, 1 - a^2), N(0, 1)) = -ln(1 - a^2) / 2 each
LIKELIHOOD = -math.log(2 * math.pi * (1 - SLOPE**2)) - 1  # E ln p(z | w)


@pytest.mark.parametrize(
    ("choices", "progress", "expected"),
    [
        ({}, 0.5, KL - LIKELIHOOD),
        ({"beta": 3.0}, 0.5, 3 * KL - LIKELIHOOD),
        ({"anneal": True}, 0.5, 0.5 * KL - LIKELIHOOD),
        ({"anneal": True, "beta": 3.0}, 1.0, 3 * KL - LIKELIHOOD),
        ({"free_bits": 20.0}, 1.0, 40 - LIKELIHOOD),
        ({"free_bits": 20.0, "prior": Flow(**NETWORK)}, 1.0, 40 - LIKELIHOOD),
        ({"free_bits": 20.0, "beta": 2.0, "anneal": True}, 0.5, 40 - LIKELIHOOD),
    ],
)
def test_the_loss_is_the_elbo_with_its_weights(choices, progress, expected):
    estimator = linear(samples=1, **choices)
    check_mean(estimator(Z, CONTEXT, progress=progress, generator=generator(12)), expected)
    with pytest.raises(AssertionError):
        check_mean(estimator(Z, CONTEXT, progress=progress, generator=generator(12)), expected + 0.1)


def test_the_loss_of_several_draws_is_the_importance_weighted_bound():
    estimator = linear(off=0.4, wide=0.4, samples=5, importance=5)
    loss = estimator(Z, CONTEXT, generator=generator(13))
    check_mean(loss + estimator.log_prob(Z, CONTEXT, generator(14)), 0.0)
    one = linear(off=0.4, wide=0.4, samples=1)
    with pytest.raises(AssertionError):
        check_mean(one(Z, CONTEXT, generator=generator(13)) + estimator.log_prob(Z, CONTEXT, generator(14)), 0.0)


def test_figures_are_the_kl_of_each_latent():
    estimator = linear(latent=3)  # the third has no line to z
    estimator.encoders[0].network.last[-1].bias.zero_()
    figures = estimator.monitor(Z, CONTEXT)
    assert [figures[f"kl_1_{i}"] for i in (1, 2)] == pytest.approx([KL / 2] * 2, abs=0.1)
    assert abs(figures["kl_1_3"]) < 1e-9
    assert figures["active_units"] == 2
    grouped = linear(prior=Flow(**NETWORK)).monitor(Z, CONTEXT)
    assert grouped == pytest.approx({"kl_1": KL, "active_units": 2.0}, abs=0.15)
    levels = linear(levels=2).monitor(Z, CONTEXT)
    assert levels == pytest.approx(
        {f"kl_{i}_{j}": KL / 2 for i in (1, 2) for j in (1, 2)} | {"active_units": 4}, abs=0.1
    )


def test_collapse_is_named_with_its_remedy():
    estimator = linear(skip=0.0)
    estimator.encoders[0].line.slope.zero_()
    told = estimator.concern(estimator.monitor(Z, CONTEXT))
    assert "posterior collapse" in told
    assert "set free_bits (now 0; 0.1 is a start)" in told
    assert linear().concern(linear().monitor(Z, CONTEXT)) == ""
    levels = linear(levels=2)
    for line in (levels.encoders[1].line, levels.links[0].line):
        line.slope.zero_()
    assert "latents of level 2 " in levels.concern(levels.monitor(Z, CONTEXT))


def trained(folder, **choices) -> tuple[dict[str, str], VAEEstimator]:
    """The last figures, and the estimator, of a run whose decoder can do without latents: the posteriors are normal."""
    theta = normal(1500, 2, seed=20).numpy()
    x = theta + 0.5 * normal(1500, 2, seed=21).numpy()
    prior = Prior([Parameter("a", Normal(0, 1)), Parameter("b", Normal(0, 1))])
    how = Training(batch_size=128, round=40, max_rounds=10, learning_rate=1e-2, ema=0.98)
    family = VAE(**NETWORK, components=8, skip=0.0, samples=1, **choices)
    data = sbi_dgm.Simulations.from_arrays(theta, x, prior=prior)
    posterior = sbi_dgm.fit(data, family, training=how, out=folder, device="cpu", progress=False)
    with (folder / "history.csv").open() as file:
        return list(csv.DictReader(file))[-1], posterior.network.estimator


def check_used(last: dict[str, str], estimator: VAEEstimator) -> None:
    """Every latent is active, and the decoder knows its own latents from another row's of the same context."""
    assert float(last["active_units"]) == 2
    assert min(float(last[f"kl_1_{i}"]) for i in (1, 2)) > 0.1
    c = torch.zeros(4000, 2)
    z = estimator.sample(4000, c[:1], generator(22))[0]
    w = estimator.encode(z, c, generator(23))
    gain, error = mean_and_error(estimator.decoder.log_prob(z, w, c) - estimator.decoder.log_prob(z, w.roll(1, 0), c))
    assert gain > error, f"own latents are worth {gain:.4f} +- {error:.4f} nats"


def test_a_decoder_that_is_too_strong_collapses_and_free_bits_cure_it(tmp_path, recwarn):
    with pytest.warns(UserWarning, match=r"posterior collapse.*set free_bits"):
        last, estimator = trained(tmp_path / "strong")
    assert float(last["active_units"]) == 0
    assert max(float(last[f"kl_1_{i}"]) for i in (1, 2)) < 0.01
    with pytest.raises(AssertionError):
        check_used(last, estimator)
    recwarn.clear()
    check_used(*trained(tmp_path / "cured", free_bits=0.2))
    assert not [w for w in recwarn if "collapse" in str(w.message)]


@pytest.mark.parametrize("spoil", [0.0, 0.05])
def test_one_with_a_flow_as_prior_integrates_to_one(spoil):
    """On a line, far from its start; an estimate at each place, without bias."""
    with lending(4):
        estimator = VAE(**NETWORK, latent=2, prior=Flow(transforms=2, **NETWORK)).build(Space((1,)), 1).double()
        with torch.no_grad():
            for weight in (*estimator.decoder.parameters(), *estimator.prior.parameters()):
                weight += 0.1 * torch.randn_like(weight)
            estimator.encoders[0].network.last[-1].bias[2:] += 0.5
    estimator.eval().requires_grad_(False)._terms = likelier(estimator._terms, spoil)
    places, c = torch.linspace(-8, 8, 3000, dtype=torch.float64)[:, None], torch.ones(3000, 1, dtype=torch.float64)
    log_prob, error = estimator.log_prob_and_error(places, c, generator(24))
    cell = 16 / 2999
    off = abs(float(log_prob.exp().sum()) * cell - 1)
    bound = 4 * cell * float((log_prob.exp() * error).square().sum().sqrt())
    assert bound < 0.03
    assert (off < bound) == (spoil == 0), f"off by {off:.4f} +- {bound:.4f}"


def test_a_fixed_spread_of_the_encoder_stays():
    estimator = built(VAE(**NETWORK, encoder_sd=0.3))
    draws = estimator.encode(Z, CONTEXT, generator(15)) - estimator.encode(Z, CONTEXT)
    check_mean(draws.square(), 0.09)
    free = linear()
    with pytest.raises(AssertionError):
        check_mean((free.encode(Z, CONTEXT, generator(15)) - free.encode(Z, CONTEXT)).square(), 0.09)


@pytest.mark.parametrize("levels", [1, 2])
def test_what_is_encoded_and_decoded_comes_back(levels):
    """z' given w given z: both on lines of slope a, so that z' is a^2 z with variance 1 - a^4."""
    estimator = linear(levels=levels)
    w = estimator.encode(Z, CONTEXT, generator(16))
    assert w.shape == (len(Z), 2 * levels)
    back = estimator.decode(w, CONTEXT, generator(17))
    check_mean(back - SLOPE**2 * Z, 0.0)
    check_mean((back - SLOPE**2 * Z).square(), 1 - SLOPE**4)
    with pytest.raises(AssertionError):
        check_mean((back - Z).square(), 1 - SLOPE**4)


def test_a_prior_without_an_exact_density_is_refused():
    with pytest.raises(OptionError, match=r"VAE\(prior=Diffusion\(\)\): its density is 'ode'"):
        VAE(prior=Diffusion()).build(Space((2,)), 1)


def test_options_survive_json_with_the_prior_inside():
    chosen = VAE(prior=Flow(transforms=2), levels=2)
    assert options.restore("estimator", FAMILIES, options.describe(FAMILIES, chosen)) == chosen
    assert options.restore("estimator", FAMILIES, options.describe(FAMILIES, VAE())) == VAE()


def test_more_draws_after_training_and_after_a_file(tmp_path):
    """Located, since that passes on what is asked of the family behind: `using`, figures, errors."""
    how = Training(batch_size=64, round=10, patience=2, max_rounds=2, warmup=5)
    posterior = fit(estimator=Located(VAE(**NETWORK)), embedding="auto", training=how, out=tmp_path)
    assert "kl_1_3" in (tmp_path / "history.csv").read_text()
    posterior = load(tmp_path / "posterior.safetensors")
    assert posterior.density == "bound"
    samples = posterior.sample(200, np.zeros(3), seed=1, log_prob=True)
    errors = [
        posterior.using(importance=k).log_prob_and_error(samples.array, np.zeros(3))[1].mean() for k in (16, 64, 256)
    ]
    assert errors[1] < 0.7 * errors[0]
    assert errors[2] < 0.7 * errors[1]
