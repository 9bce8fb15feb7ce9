"""Standard normals in torch: draws of them from a generator, their density, and logarithms of scales for them."""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor


def noise(shape: Sequence[int], like: Tensor, generator: Generator | None) -> Tensor:
    """Draws of N(0, 1) of this shape, in the precision and on the device of `like`."""
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)


def log_prob(u: Tensor, variance: float = 1.0) -> Tensor:
    """ln N(u; 0, variance I): (..., D) -> (...).

    >>> log_prob(torch.zeros(1, 2))
    tensor([-1.8379])
    """
    return -0.5 * (u.square().sum(-1) / variance + u.shape[-1] * math.log(2 * math.pi * variance))


def bounded(log_scale: Tensor, most: float = 7.0) -> Tensor:
    """Within (-most, most), and nearly as it was about zero."""
    return most * torch.tanh(log_scale / most)
