r"""Summaries of series and fields by residual convolutions, over one axis or two.

A stem of stride s and kernel s turns patches into channels, which loses nothing where it has as many channels as a
patch has numbers, and makes all that follows s times cheaper for each axis. Stages of pre-activation residual blocks
(He et al. 2016, arXiv:1603.05027),

.. math::  h \leftarrow h + W_2 * a(W_1 * a(h)),

with the activation a = SiLU and convolutions `*`, W_2 = 0 at first and without normalisation, so that rows never see
each other, are parted by convolutions of stride 2. Each stage gives of each channel

.. math::  \langle h \rangle \quad \text{and} \quad \ln(\langle h^2 \rangle + \epsilon) ,

means over all places: as the stream starts linear in x, the second is the logarithm of a spectrum in learned bands.
Where the axes are not periodic, the last stage's places are seen one by one too, because where things lie may matter.
Where they are, nothing depends on a shift by the product of all strides (and little on others), and the spectrum of x
itself is seen, on which no shift has an effect: the logarithms of its mean power

.. math::  \ln\Big(\frac{1}{N_b} \sum_{|k| \in b} \frac{|x_k|^2}{P} + \epsilon\Big)

in bands b of N_b of the P wavevectors, in units of their spread in training; epsilon = `EPSILON`. That is all that one
isotropic Gaussian field has to tell, to a per cent and from the first step on; filters that move while they learn tell
it less well. What two channels share, and what differs by direction, is left to the stages.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from sbi_dgm.embeddings.base import Learned
from sbi_dgm.embeddings.stored import Scaled
from sbi_dgm.errors import OptionError
from sbi_dgm.networks import ResidualMLP
from sbi_dgm.parameters import Observable

LAST = 4  # places along an axis of the last stage, at most twice as many
LONG = 8 * LAST  # an axis from which a stem of stride 4 is taken
WIDEST = 2  # channels of the last stage, in units of the first's
EPSILON = 1e-4
BANDS = 20  # of |k|, at most: those without a wavevector are left out
HEAD_BLOCKS = 2
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d}


class Convolutional(Learned):
    """The options of a convolutional summary.

    Attributes:
        hidden: channels of the first stage; the next have twice as many.
        blocks: residual blocks of a stage.
        periodic: the axes close on themselves, and where things lie does not matter.
        head: width of the network that makes the summary of what stages give.

    """

    hidden: int = Field(default=32, ge=1)
    blocks: int = Field(default=1, ge=0)
    periodic: bool = False
    head: int = Field(default=128, ge=1)


class Series(Convolutional):
    """A summary of a series (L,), or of several channels (K, L) or (L, K), K the smaller."""

    def network(self, name: str, observable: Observable, dimension: int) -> nn.Module:
        axes = channels_first(name, observable, 1)
        channels, length = arranged(observable.shape, axes)
        return nn.Sequential(Arranged(axes), Pyramid(channels, (length,), self.length(dimension), self))


class CNN(Convolutional):
    """A summary of a field (H, W), or of several channels (K, H, W) or (H, W, K), K the smallest.

    Attributes:
        symmetric: training turns and mirrors each batch, and moves it where the axes are periodic, because a field
            is as likely as its images.

    """

    symmetric: bool = False

    def network(self, name: str, observable: Observable, dimension: int) -> nn.Module:
        axes = channels_first(name, observable, 2)
        channels, *places = arranged(observable.shape, axes)
        images = [Images(self.periodic, places[0] == places[1])] if self.symmetric else []
        return nn.Sequential(Arranged(axes), *images, Pyramid(channels, places, self.length(dimension), self))


def channels_first(name: str, observable: Observable, places: int) -> tuple[int, ...]:
    """The order of an observable's axes in which channels come first, one axis more than there are `places`.

    The first is -1 where there is none: one channel.

    >>> channels_first("map", Observable((64, 64, 3)), 2), channels_first("flux", Observable((100,)), 1)
    ((2, 0, 1), (-1, 0))
    """
    shape = observable.shape
    if observable.kind == "set" or len(shape) not in (places, places + 1):
        raise OptionError(
            f"observable {name!r} has shape {shape} and is a{'' if observable.kind == 'set' else 'n'} "
            f"{observable.kind}: this embedding takes {places} axes, or {places + 1} with channels."
        )
    if len(shape) == places:
        return (-1, *range(places))
    return (places, *range(places)) if shape[-1] < min(shape[:-1]) else tuple(range(places + 1))


def arranged(shape: Sequence[int], axes: Sequence[int]) -> list[int]:
    """The shape with its axes in that order."""
    return [1 if axis < 0 else shape[axis] for axis in axes]


class Arranged(nn.Module):
    """Channels first: `(B, *shape)` -> (B, K, ...)."""

    def __init__(self, axes: Sequence[int]) -> None:
        super().__init__()
        self.axes = [axis + 1 for axis in axes]

    def forward(self, x: Tensor) -> Tensor:
        return x[:, None] if self.axes[0] == 0 else x.permute(0, *self.axes)


class Images(nn.Module):
    """In training, one of a field's mirror images, turned where it is a square, and moved where it is periodic."""

    def __init__(self, periodic: bool, square: bool) -> None:
        super().__init__()
        self.periodic, self.square = periodic, square

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        height, width, turn, *mirrored = torch.rand(5).tolist()
        x = x.flip([axis for axis, side in zip((2, 3), mirrored, strict=True) if side < 0.5])
        x = x.transpose(2, 3) if self.square and turn < 0.5 else x
        shifts = int(height * x.shape[2]), int(width * x.shape[3])
        return x.roll(shifts, (2, 3)) if self.periodic else x


class Pyramid(nn.Module):
    """Stem, stages and head: (B, K, L) or (B, K, H, W) -> (B, features).

    Args:
        channels: K.
        places: lengths of the axes.
        features: of the summary.
        how: the options.

    """

    def __init__(self, channels: int, places: Sequence[int], features: int, how: Convolutional) -> None:
        super().__init__()
        periodic, stride = how.periodic, _stride(places, how.periodic)
        lengths = [-(-length // stride) for length in places]
        self.missing = [n * stride - length for n, length in zip(lengths, places, strict=True)]
        self.stem = _convolution(len(places), channels, how.hidden, stride, stride)
        self.stages, self.steps = nn.ModuleList(), nn.ModuleList()
        width, pooled = how.hidden, 0
        while True:
            self.stages.append(nn.Sequential(*(Residual(len(places), width, periodic) for _ in range(how.blocks))))
            pooled += 2 * width
            if max(lengths) <= LAST or min(lengths) < 2:
                break
            wider = min(2 * width, WIDEST * how.hidden)
            self.steps.append(_convolution(len(places), width, wider, 3, 2, **_around(periodic)))
            width, lengths = wider, [-(-length // 2) for length in lengths]
        seen = 0 if periodic else width
        for length in lengths:
            seen *= length
        self.periodic = periodic
        self.bands = Bands(channels, places) if periodic else None
        pooled += self.bands.outputs if self.bands is not None else 0
        self.head = ResidualMLP(pooled + seen, features, hidden=how.head, blocks=HEAD_BLOCKS)

    def forward(self, x: Tensor) -> Tensor:
        if any(self.missing):
            x = nn.functional.pad(x, [side for extra in reversed(self.missing) for side in (0, extra)])
        h, pooled = self.stem(x), [] if self.bands is None else [self.bands(x)]
        for stage, step in zip(self.stages, [*self.steps, None], strict=True):
            h = stage(h)
            pooled.append(spectrum(h.flatten(2)))
            h = h if step is None else step(h)
        seen = [] if self.periodic else [h.flatten(1)]
        return self.head(torch.cat(pooled + seen, dim=1))


class Bands(nn.Module):
    """The power spectrum of each channel in bands of |k|, logarithmic and scaled: (B, K, ...) -> (B, outputs)."""

    average: Tensor

    def __init__(self, channels: int, places: Sequence[int]) -> None:
        super().__init__()
        self.axes = tuple(range(2, 2 + len(places)))
        axes = [torch.fft.fftfreq(length) for length in places[:-1]] + [torch.fft.rfftfreq(places[-1])]
        k = torch.stack(torch.meshgrid(*axes, indexing="ij")).square().sum(0).sqrt()
        twice = torch.where((axes[-1] == 0) | (axes[-1] == 0.5), 1.0, 2.0).expand_as(k)  # -k is not among them
        edges = torch.logspace(math.log10(0.99 / max(places)), math.log10(1.01 * float(k.max())), BANDS + 1)
        weight = nn.functional.one_hot(torch.bucketize(k, edges), BANDS + 2) * twice[..., None]
        weight = weight.flatten(0, -2)[:, 1:-1]
        weight = weight[:, weight.sum(0) > 0]
        self.register_buffer("average", weight / weight.sum(0), persistent=False)
        self.outputs = channels * weight.shape[1]
        self.scale = Scaled(self.outputs)

    def forward(self, x: Tensor) -> Tensor:
        power = torch.fft.rfftn(x, dim=self.axes, norm="ortho").abs().square().flatten(2) @ self.average
        return self.scale((power + EPSILON).log().flatten(1))


def spectrum(h: Tensor) -> Tensor:
    """Mean and logarithm of the mean square of each channel: (B, K, P) -> (B, 2 K)."""
    return torch.cat([h.mean(-1), (h.square().mean(-1) + EPSILON).log()], dim=1)


class Residual(nn.Module):
    """h + W_2 * a(W_1 * a(h)), W_2 = 0 at first: (B, K, ...) -> (B, K, ...)."""

    def __init__(self, axes: int, channels: int, periodic: bool) -> None:
        super().__init__()
        self.inner = _convolution(axes, channels, channels, 3, **_around(periodic))
        self.outer = _convolution(axes, channels, channels, 3, **_around(periodic))
        nn.init.zeros_(self.outer.weight)

    def forward(self, h: Tensor) -> Tensor:
        silu = nn.functional.silu
        return h + self.outer(silu(self.inner(silu(h))))


def _convolution(axes: int, inputs: int, outputs: int, kernel: int, stride: int = 1, **how: Any) -> Any:
    return CONVOLUTIONS[axes](inputs, outputs, kernel, stride, **how)


def _around(periodic: bool) -> dict[str, Any]:
    """What a kernel of three meets beyond the edges."""
    return {"padding": 1, "padding_mode": "circular" if periodic else "zeros"}


def _stride(places: Sequence[int], periodic: bool) -> int:
    """Of the stem: 4, 2 or 1 by the shortest axis; a divisor of all where they are periodic."""
    most = 4 if min(places) >= LONG else 2 if min(places) >= LONG // 2 else 1
    fits = [stride for stride in (4, 2, 1) if stride <= most and (not periodic or all(n % stride == 0 for n in places))]
    return fits[0]
