"""Convolutions over series and fields: what they are blind to, what they must see, and how well they summarise."""

import numpy as np
import pytest
import torch
from torch import nn

import sbi_dgm
from sbi_dgm import CNN, Observable, Parameter, Prior, Series, Simulations, Training, Transformer, Uniform
from sbi_dgm.embeddings import convolutions
from sbi_dgm.embeddings.base import Embedding
from sbi_dgm.embeddings.convolutions import EPSILON, Bands, Images
from sbi_dgm.errors import OptionError
from sbi_dgm.seeds import lending, torch_generator


def built(embedding: Embedding, *shape: int, kind: str = "array") -> nn.Module:
    with lending(0):
        return embedding.build({"x": Observable(shape, kind=kind)}, 2).eval()


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch_generator(1))


@torch.no_grad()
def changed(network: nn.Module, x: torch.Tensor, other: torch.Tensor) -> float:
    return float((network({"x": x}) - network({"x": other})).abs().max())


@pytest.mark.parametrize(
    ("kind", "axes", "shape"), [(Series, (2,), (2, 128)), (CNN, (2, 3), (2, 64, 32)), (CNN, (1, 2), (64, 64))]
)
def test_a_periodic_summary_does_not_depend_on_where_things_lie(kind, axes, shape):
    """Moved by 32 places, the stride of stem (4) and steps (2 each) or a multiple."""
    x = noise(3, *shape)
    moved = x.roll([32] * len(axes), axes)
    assert changed(built(kind(periodic=True), *shape), x, moved) < 1e-5
    assert changed(built(kind(), *shape), x, moved) > 1e-3


@pytest.mark.parametrize(
    ("embedding", "shape"),
    [
        (CNN(), (17, 33)),
        (CNN(periodic=True), (3, 36, 34)),
        (CNN(hidden=4), (35, 70, 3)),
        (Series(), (2, 37)),
        (Series(periodic=True), (130,)),
        (Transformer(), (3, 131)),
    ],
)
def test_no_number_is_left_out_whatever_the_lengths(embedding, shape):
    x = noise(2, *shape).requires_grad_()
    built(embedding, *shape, kind="series" if len(shape) == 1 else "array")({"x": x})[0].square().sum().backward()
    assert x.grad is not None
    assert (x.grad[0] != 0).all()
    assert (x.grad[1] == 0).all(), "a row saw another"


@pytest.mark.parametrize(("embedding", "shape"), [(CNN(), (40, 48, 3)), (Series(), (100, 2)), (Transformer(), (64, 2))])
def test_channels_may_come_last(embedding, shape):
    last, first = built(embedding, *shape), built(embedding, shape[-1], *shape[:-1])
    first.load_state_dict(last.state_dict())
    x = noise(2, *shape)
    assert torch.equal(last({"x": x}), first({"x": x.movedim(-1, 1)}))


def test_a_transformer_of_a_series_sees_its_order():
    x = noise(2, 64)
    network = built(Transformer(), 64, kind="series")
    assert changed(network, x, x.flip(1)) > 1e-3


def test_images_are_symmetries_drawn_in_training_alone():
    x = noise(2, 1, 8, 8)
    images = Images(periodic=True, square=True)
    assert torch.equal(images.eval()(x), x)
    with lending(3):
        seen = [images.train()(x) for _ in range(50)]
    assert all(torch.equal(image.flatten().sort().values, x.flatten().sort().values) for image in seen)
    spectrum = torch.fft.fft2(x).abs().sum((1, 2, 3))
    assert all(torch.allclose(torch.fft.fft2(image).abs().sum((1, 2, 3)), spectrum, rtol=1e-4) for image in seen)
    assert len({tuple(image[0, 0, 0].tolist()) for image in seen}) > 40
    with lending(3):
        assert torch.equal(images(x), seen[0])
        assert torch.equal(Images(periodic=False, square=False)(x).diff().abs().sum(), x.diff().abs().sum())


@pytest.mark.parametrize(
    ("embedding", "observable"),
    [
        (CNN(), Observable((20,))),
        (CNN(), Observable((4, 3), kind="set")),
        (Series(), Observable((3, 32, 32))),
        (Transformer(), Observable((3, 32, 32), kind="field")),
    ],
)
def test_a_shape_that_does_not_fit_is_refused_by_name(embedding, observable):
    with pytest.raises(OptionError, match=r"observable 'x' has shape .* axes, or"):
        embedding.build({"x": observable}, 2)


def test_one_observable_alone_or_fusion():
    with pytest.raises(OptionError, match="fusion"):
        CNN().build({"a": Observable((16, 16)), "b": Observable((16, 16))}, 2)


def amplitudes(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """White noise of sd e^theta on 16 x 16 pixels; with S = ln of their root mean square, theta | x ~ N(S, 1 / 512)."""
    rng = np.random.default_rng(seed)
    theta = rng.uniform(-0.5, 0.5, (rows, 1))
    return theta, np.exp(theta)[..., None] * rng.standard_normal((rows, 16, 16))


def judged(embedding: Embedding) -> tuple[float, float]:
    """Mean error and width of posteriors of the amplitude, in units of the exact sd."""
    theta, x = amplitudes(2000, 0)
    data = Simulations.from_arrays(theta, x, prior=Prior([Parameter("ln_sd", Uniform(-0.5, 0.5))]))
    training = Training(patience=4, max_rounds=20)
    posterior = sbi_dgm.fit(
        data, sbi_dgm.Flow(transforms=1), embedding, training=training, device="cpu", progress=False
    )
    _, x = amplitudes(50, 1)
    draws = posterior.sample(500, x, seed=0).array[..., 0]
    exact = np.log(np.sqrt((x**2).mean((1, 2))))
    inside = np.abs(exact) < 0.4
    return float(np.abs(draws.mean(1) - exact)[inside].mean() * 512**0.5), float(draws.std(1)[inside].mean() * 512**0.5)


def test_bands_hold_the_power_of_their_wavevectors():
    """White noise has power one in each; a wave has all its power in one band, as much as its square says."""
    bands = Bands(2, (32, 64))
    bands.scale = nn.Identity()
    power = bands(noise(300, 2, 32, 64)).exp().reshape(300, 2, -1).mean(0) - EPSILON
    modes = bands.average.gt(0).sum(0)
    assert ((power - 1).abs() < 5 / (300 * modes).sqrt()).all()
    assert torch.allclose(bands.average.sum(0), torch.ones(len(modes)))
    i, j = torch.meshgrid(torch.arange(32), torch.arange(64), indexing="ij")
    for wave in [(3, 5), (0, 32), (16, 0)]:
        x = torch.cos(2 * torch.pi * (wave[0] * i / 32 + wave[1] * j / 64)).expand(1, 2, 32, 64)
        found = bands(x).exp().reshape(2, -1) - EPSILON
        assert int((found[0] > 1e-6).sum()) == 1
        assert torch.equal(found[0], found[1])


@pytest.mark.filterwarnings("ignore::sbi_dgm.errors.TrustWarning")
@pytest.mark.parametrize(("periodic", "most"), [(True, 0.4), (False, 0.8)])
def test_the_amplitude_of_a_field_is_found_nearly_as_well_as_by_its_likelihood(periodic, most):
    error, width = judged(CNN(hidden=8, blocks=0, periodic=periodic))
    assert error < most
    assert 0.8 < width < 1.1 + most


@pytest.mark.filterwarnings("ignore::sbi_dgm.errors.TrustWarning")
def test_without_squares_it_is_not_found(monkeypatch):
    """Of a field of mean zero, means of what is linear at first tell next to nothing."""
    monkeypatch.setattr(convolutions, "spectrum", lambda h: torch.cat([h.mean(-1), 0 * h.mean(-1)], dim=1))
    error, width = judged(CNN(hidden=8, blocks=0))
    assert width > 2
    assert error > 1
