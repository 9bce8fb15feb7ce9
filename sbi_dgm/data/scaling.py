"""Observables brought to order one, with statistics of the training rows only.

Moments are streamed in float64 (Chan's pairwise update), quantiles come from a fixed sample of rows. Where
the central 99.8 % are more than ten times as wide as the central 68 % (a normal: 3.1 times), an
arcsinh about the median comes first, since such tails may have no variance at all.
"""

import warnings
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sbi_dgm.data.format import Column, blocks
from sbi_dgm.data.simulations import gather
from sbi_dgm.errors import DataError

SAMPLE = 100_000
HEAVY = 10.0
LEVELS = (0.001, 0.16, 0.5, 0.84, 0.999)


class Moments(NamedTuple):
    """Mean and standard deviation of each entry."""

    mean: np.ndarray
    sd: np.ndarray


class Standardise(nn.Module):
    """s = (t(x) - mean) / sd, with t the identity or, where tails demand it, arcsinh((x - median) / width).

    One set of numbers for each entry of a number or vector; one for all entries of a field.

    Shapes: (B, *shape) -> (B, *shape), float32.
    """

    mean: Tensor
    sd: Tensor
    median: Tensor
    width: Tensor
    heavy: Tensor

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        for name, fill in (("mean", 0.0), ("sd", 1.0), ("median", 0.0), ("width", 1.0)):
            self.register_buffer(name, torch.full(shape, fill))
        self.register_buffer("heavy", torch.zeros(shape, dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        x = x if x.is_floating_point() else x.float()
        if self.heavy.any():
            x = torch.where(self.heavy, torch.asinh((x - self.median) / self.width), x)
        return ((x - self.mean) / self.sd).float()


def standardise(name: str, column: Column, rows: np.ndarray) -> Standardise:
    """Fit a `Standardise` to the given rows of one observable.

    Raises:
        DataError: a row with a number that is not finite.

    """
    scaler = Standardise(column.shape[1:] if len(column.shape) <= 2 else ())
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, SAMPLE).astype(int))]
    sample = _entries(gather(column, chosen))
    _check_finite(name, sample, chosen)
    low, left, median, right, high = np.quantile(sample, LEVELS, axis=0)
    heavy = (high - low) > HEAVY * (right - left)
    heavy &= right > left
    scaler.heavy = torch.as_tensor(heavy)
    scaler.median = torch.as_tensor(median)
    scaler.width = torch.as_tensor(np.where(heavy, (right - left) / 2, 1.0))
    moments = _moments(name, column, rows, scaler)
    constant = moments.sd <= 1e-12 * np.abs(moments.mean)
    if constant.any():
        where = np.flatnonzero(np.atleast_1d(constant))[:5].tolist()
        warnings.warn(f"observable {name!r}: entries {where} never change; they are scaled by 1.", stacklevel=2)
    scaler.mean = torch.as_tensor(moments.mean)
    scaler.sd = torch.as_tensor(np.where(constant, 1.0, moments.sd))
    return scaler.to(torch.float64 if column.dtype.itemsize > 4 and column.dtype.kind == "f" else torch.float32)


def _entries(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) if x.ndim <= 2 else x.astype(np.float64).ravel()


def _moments(name: str, column: Column, rows: np.ndarray, scaler: Standardise) -> Moments:
    wanted = np.zeros(column.shape[0], bool)
    wanted[rows] = True
    count, mean, spread, first = 0, np.float64(0.0), np.float64(0.0), 0
    heavy, median, width = (t.numpy() for t in (scaler.heavy, scaler.median, scaler.width))
    for block in blocks({"x": column}, 0, column.shape[0]):
        keep = wanted[first : first + len(block["x"])]
        x = _entries(block["x"][keep])
        _check_finite(name, x, first + np.flatnonzero(keep))
        x = np.where(heavy, np.arcsinh((x - median) / width), x)
        if len(x):
            total = count + len(x)
            shift = x.mean(0) - mean
            spread = spread + ((x - x.mean(0)) ** 2).sum(0) + shift**2 * count * len(x) / total
            mean, count = mean + shift * len(x) / total, total
        first += len(block["x"])
    return Moments(np.asarray(mean), np.sqrt(spread / max(1, count)))


def _check_finite(name: str, x: np.ndarray, rows: np.ndarray) -> None:
    bad = ~np.isfinite(x)
    if bad.any():
        per_row = max(1, x.size // max(1, len(rows)))
        position = int(np.argmax(bad.ravel()))
        row = rows[position // per_row]
        raise DataError(
            f"observable {name!r}, row {row}: entry {position % per_row} is {x.ravel()[position]}, yet the row "
            "counts as valid: mark it as failed (valid = 0) or repair it."
        )
