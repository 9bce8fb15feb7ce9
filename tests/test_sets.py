"""Sets of any size: neither order nor padding matters, and what is independent given theta adds up as it should."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import sbi_dgm
from sbi_dgm import DeepSets, Observable, Parameter, Prior, SetTransformer, Simulations, Training, Uniform, load
from sbi_dgm.embeddings.base import Embedding, Summary
from sbi_dgm.embeddings.sets import Count, Waves
from sbi_dgm.embeddings.vectors import MLP
from sbi_dgm.errors import OptionError
from sbi_dgm.seeds import lending, torch_generator

MOST = 500
SETS = [DeepSets(), SetTransformer(hidden=16, heads=2)]


def members(counts: list[int], most: int = MOST, seed: int = 0) -> torch.Tensor:
    """Sets (B, most, 4) of three numbers each."""
    x = torch.zeros(len(counts), most, 4)
    for row, count in zip(x, counts, strict=True):
        row[:count, :3] = torch.randn(count, 3, generator=torch_generator(seed, count))
        row[:count, 3] = 1
    return x


def built(embedding: Embedding, most: int = MOST) -> nn.Module:
    """A summary whose count is in units of sets of 1 to 500."""
    with lending(0):
        network = embedding.build({"jet": Observable((most, 4), kind="set")}, 2).eval()
    for part in network.modules():
        if isinstance(part, Count):
            part.settle([torch.linspace(1, MOST, 100).sqrt()])
    return network


COUNTS = [1, 2, 37, 250, 499, 500, 0]


@torch.no_grad()
@pytest.mark.parametrize("embedding", SETS)
def test_order_does_not_matter(embedding):
    x, network = members(COUNTS), built(embedding)
    order = torch.randperm(MOST, generator=torch_generator(1))
    assert float((network({"jet": x}) - network({"jet": x[:, order]})).abs().max()) < 1e-5


@torch.no_grad()
def test_it_matters_to_a_vector():
    x, network = members(COUNTS), built(MLP())
    order = torch.randperm(MOST, generator=torch_generator(1))
    assert float((network({"jet": x}) - network({"jet": x[:, order]})).abs().max()) > 0.01


@torch.no_grad()
@pytest.mark.parametrize("embedding", SETS)
def test_padding_changes_nothing_nor_do_the_other_sets_of_a_batch(embedding):
    network = built(embedding)
    together = network({"jet": members(COUNTS)})
    for count, summary in zip(COUNTS, together, strict=True):
        alone = network({"jet": members([count], most=max(count, 1))})[0]
        assert float((alone - summary).abs().max()) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("embedding", SETS)
def test_what_lies_in_empty_places_is_not_seen(embedding):
    network, x = built(embedding), members([3, 0], most=8)
    other = torch.where(x[..., 3:] > 0, x, 7 * (1 - x[..., 3:]) * torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert torch.equal(network({"jet": x}), network({"jet": other}))


@torch.no_grad()
@pytest.mark.parametrize("embedding", SETS)
def test_every_member_and_their_number_are_seen(embedding):
    network, x = built(embedding), members([5])
    summary = network({"jet": x})
    for i in range(5):
        other = x.clone()
        other[0, i, 1] += 1
        assert float((network({"jet": other}) - summary).abs().max()) > 1e-4
    twice = x.clone()
    twice[0, 5:10] = x[0, :5]
    assert float((network({"jet": twice}) - summary).abs().max()) > 1e-3


def test_waves_are_sines_and_cosines():
    s = torch.tensor([[0.3, -2.0]])
    angles = [np.pi / 4 * k * v for v in (0.3, -2.0) for k in (1, 2, 3)]
    expected = [0.3, -2.0, *np.sin(angles), *np.cos(angles)]
    np.testing.assert_allclose(Waves(3)(s)[0], expected, atol=1e-6)
    assert Waves(3).outputs(2) == len(expected)


def test_counts_are_in_units_of_their_spread_in_training_rows_alone():
    summary = Summary({"jet": nn.Identity()}, built(DeepSets(), most=40))
    counts = [int(n) for n in np.random.default_rng(0).poisson(20, 300)]
    batches = [{"jet": members(counts[:100], 40)}, {"jet": members(counts[100:], 40)}]
    summary.gather(batches)
    (count,) = (part for part in summary.modules() if isinstance(part, Count))
    root = np.sqrt(counts)
    assert float(count.mean) == pytest.approx(root.mean(), rel=1e-6)
    assert float(count.sd) == pytest.approx(root.std(), rel=1e-6)
    before = copy.deepcopy(summary.state_dict())
    summary({"jet": members([3], 40)})
    assert all(torch.equal(before[name], value) for name, value in summary.state_dict().items())


def test_sets_of_one_size_have_a_count_of_zero():
    count = Count()
    count.settle([torch.full((5,), 7**0.5)])
    assert float(count(torch.tensor([7]))) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("embedding", SETS)
def test_what_is_no_set_is_refused_by_name(embedding):
    with pytest.raises(OptionError, match=r"observable 'jet' is an array of shape \(500, 4\), no set"):
        embedding.build({"jet": Observable((MOST, 4))}, 2)


def draws(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """1 to 60 members ~ N(theta, 1), theta ~ U(-2, 2): the posterior is N(mean, 1 / n), cut at the edges."""
    rng = np.random.default_rng(seed)
    theta, counts = rng.uniform(-2, 2, (rows, 1)), rng.integers(1, 61, rows)
    x = np.zeros((rows, 60, 2), np.float32)
    there = np.arange(60) < counts[:, None]
    x[..., 0] = np.where(there, theta + rng.standard_normal((rows, 60)), 0)
    x[..., 1] = there
    return theta, x


@pytest.fixture(scope="module", params=[DeepSets(), SetTransformer(hidden=16, heads=2, blocks=1, inducing=4)])
def learned(request, tmp_path_factory):
    theta, x = draws(3000, 0)
    prior = Prior([Parameter("mu", Uniform(-2, 2))])
    data = Simulations.from_arrays(theta, x, prior=prior, observables={"x": Observable((60, 2), kind="set")})
    path = tmp_path_factory.mktemp("sets") / "posterior.safetensors"
    how = Training(patience=4, max_rounds=10, batch_size=128)
    posterior = sbi_dgm.fit(data, sbi_dgm.Flow(transforms=1), request.param, training=how, device="cpu", progress=False)
    posterior.save(path)
    return load(path)


@pytest.mark.filterwarnings("ignore::sbi_dgm.errors.TrustWarning")
def test_the_mean_of_sets_of_any_size_is_known_as_well_as_it_can_be(learned):
    _, x = draws(200, 1)
    n = x[..., 1].sum(1)
    exact = x[..., 0].sum(1) / n
    inside = (np.abs(exact) + 3 / np.sqrt(n) < 2) & (n >= 5)
    found = learned.sample(500, x, seed=0).array[..., 0]
    error, width = (found.mean(1) - exact) * np.sqrt(n), found.std(1) * np.sqrt(n)
    assert np.sqrt((error[inside] ** 2).mean()) < 0.35
    assert 0.85 < width[inside].mean() < 1.25
    few, many = n[inside] < 20, n[inside] > 40
    assert width[inside][few].mean() / width[inside][many].mean() == pytest.approx(1, abs=0.25), "not as 1 / sqrt(n)"


@pytest.mark.filterwarnings("ignore::sbi_dgm.errors.TrustWarning")
def test_permuted_members_have_the_same_posterior(learned):
    _, x = draws(20, 2)
    order = np.random.default_rng(0).permutation(60)
    theta = np.linspace(-1.9, 1.9, 50)[:, None]
    grid = np.broadcast_to(theta, (20, 50, 1))
    np.testing.assert_allclose(learned.log_prob(grid, x[:, order]), learned.log_prob(grid, x), rtol=1e-4, atol=1e-4)
    one, other = (learned.sample(100, rows, seed=3).array for rows in (x, x[:, order]))
    np.testing.assert_allclose(one, other, atol=1e-5)
