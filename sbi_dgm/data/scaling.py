"""Observables brought to order one, with statistics of the training rows only, in one pass over them.

Moments are streamed in float64 (the pairwise update of Chan, Golub and LeVeque 1983), quantiles come from a fixed
sample of rows. A curve t(x) = arcsinh((x - centre) / width) comes first, with the moments of the sample, in two cases:

- tails: where the central 99.8 % are more than ten times as wide as the central 68 % (a normal: 3.1 times), about the
  median; such tails may have no variance at all;
- scales: where no number is negative, some are fractions, and t with a centre of 0 is more normal: by `CLEAR` nats a
  row than x itself, or at all than the curve of tails. The width is the least positive number: t is nearly
  ln(2 x / width), and takes zeros too. Counts stay as they are: logarithms would magnify the noise of the small ones.

An entry with one value only has that value as its mean, so that it comes out as 0 however large it is. Beyond `BEND`
standard deviations numbers grow as their logarithm: few rows lie there, and a network would go on with a straight line.
Rows in which an optional observable is absent do not count.
"""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sbi_dgm.data.columns import absent_rows
from sbi_dgm.errors import DataError
from sbi_dgm.parameters import Observable
from sbi_dgm.univariate import Array

SAMPLE_ROWS = 100_000
SAMPLE_NUMBERS = 2**23
LEAST = 50  # rows in which an optional observable has to be there
HEAVY, CLEAR, BEND = 10.0, 0.5, 3.0
RANGE, TINIEST = 1e-18, 1e-37  # a logarithm's width: at least this share of the greatest number, and float32 holds it
LEVELS = (0.001, 0.16, 0.5, 0.84, 0.999)


class Standardise(nn.Module):
    """s = (t(x) - mean) / sd, with t the identity or, where `curved`, arcsinh((x - centre) / width); then `bent`.

    One set of numbers for each entry of a number or vector; one for all entries of a field.

    Shapes: (B, *shape) -> (B, *shape), float32.
    """

    mean: Tensor
    sd: Tensor
    centre: Tensor
    width: Tensor
    curved: Tensor

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        for name, fill in (("mean", 0.0), ("sd", 1.0), ("centre", 0.0), ("width", 1.0)):
            self.register_buffer(name, torch.full(shape, fill))
        self.register_buffer("curved", torch.zeros(shape, dtype=torch.bool))
        self.straight = True

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *given: Any) -> None:
        """Take the dtype of what is loaded, and read, once, whether any entry is curved.

        In `forward`, each step would wait for its device.
        """
        self.to(state_dict.get(f"{prefix}mean", self.mean).dtype)
        super()._load_from_state_dict(state_dict, prefix, *given)
        self.straight = not bool(self.curved.any())

    def forward(self, x: Tensor) -> Tensor:
        x = x if x.dtype in (torch.float32, torch.float64) else x.to(self.mean.dtype)
        if not self.straight:
            x = torch.where(self.curved, torch.asinh((x - self.centre) / self.width), x)
        return bent(((x - self.mean) / self.sd).float())


def bent(s: Tensor) -> Tensor:
    """s where |s| <= 3, else of size 3 + ln(1 + |s| - 3).

    >>> bent(torch.tensor([-2.0, 3.0, 1002.0])).numpy().round(2)
    array([-2.  ,  3.  ,  9.91], dtype=float32)
    """
    size = s.abs()
    return torch.where(size > BEND, s.sign() * (BEND + (size - BEND).clamp(min=0).log1p()), s)


class StandardiseSet(Standardise):
    """The same for the features of a set's members, (B, M, F + 1), the last of which says who is there; else 0."""

    def forward(self, x: Tensor) -> Tensor:
        there = x[..., -1:].float()
        return torch.cat([super().forward(x[..., :-1]) * there, there], dim=-1)


def blank(observable: Observable) -> Standardise:
    """A scaler of the right shape that does nothing yet."""
    if observable.kind == "set":
        return StandardiseSet((observable.shape[-1] - 1,))
    return Standardise(observable.shape if len(observable.shape) <= 1 else ())


class Statistics:
    """What a pass over the training rows collects about one observable.

    Args:
        name: for error messages.
        rows: how many rows will come.

    >>> x = np.random.default_rng(0).normal(3, 2, (1000, 4))
    >>> statistics = Statistics("x", Observable((4,)), 1000)
    >>> statistics.add(np.arange(1000), x)
    >>> np.allclose(statistics.scaler(np.dtype(float)).mean, x.mean(0))
    True

    """

    def __init__(self, name: str, observable: Observable, rows: int) -> None:
        self.name, self.observable = name, observable
        kept = min(SAMPLE_ROWS, max(1, SAMPLE_NUMBERS // max(1, observable.size)))
        self.every, self.seen = -(-rows // kept), 0
        self.sample: list[np.ndarray] = []
        self.count, self.mean, self.spread = 0, np.float64(0.0), np.float64(0.0)

    def add(self, rows: np.ndarray, x: np.ndarray) -> None:
        """More rows (B, ...); `rows` are their numbers, for error messages."""
        if self.observable.optional:
            there = ~absent_rows(x)
            rows, x = rows[there], x[there]
        self._require_finite(rows, x)
        self.sample.append(self._entries(x[-self.seen % self.every :: self.every]).copy())
        self.seen += len(x)
        entries = self._entries(x).astype(np.float64)
        total, mean = self.count + len(entries), entries.mean(0) if len(entries) else np.float64(0.0)
        shift = mean - self.mean
        share = len(entries) / max(1, total)
        self.spread = self.spread + ((entries - mean) ** 2).sum(0) + shift**2 * self.count * share
        self.mean, self.count = self.mean + shift * share, total

    def _entries(self, x: np.ndarray) -> np.ndarray:
        """Independent draws of what one set of numbers describes: a number, a vector, a field's pixel, a member."""
        if self.observable.kind == "set":
            return x[..., :-1][x[..., -1] > 0]
        return x if x.ndim <= 2 else x.ravel()

    def _require_finite(self, rows: np.ndarray, x: np.ndarray) -> None:
        if x.dtype.kind == "f" and not np.isfinite(x).all():
            where = np.argwhere(~np.isfinite(x))[0]
            entry = int(np.ravel_multi_index(tuple(where[1:]), x.shape[1:])) if x.ndim > 1 else 0
            raise DataError(
                f"observable {self.name!r}, row {rows[where[0]]}: entry {entry} is {x[tuple(where)]}, yet the row "
                "counts as valid: mark it as failed (valid = 0) or repair it."
            )

    def scaler(self, dtype: np.dtype) -> Standardise:
        """The scaler for observables of the given dtype; an entry that never changes is warned of."""
        if self.observable.optional and self.seen < LEAST:
            raise DataError(
                f"observable {self.name!r} is there in {self.seen} training rows: at least {LEAST} are needed; leave "
                "it out, or simulate more."
            )
        scaler = blank(self.observable)
        sample = np.concatenate(self.sample, dtype=np.float64)
        if not len(sample):
            return scaler
        curved, centre, width = curve(sample)
        mean, sd = np.asarray(self.mean), np.sqrt(self.spread / max(1, self.count))
        if curved.any():
            drawn = np.arcsinh((sample - centre) / width)
            mean, sd = np.where(curved, drawn.mean(0), mean), np.where(curved, drawn.std(0), sd)
        rounding = 1e-12 * np.abs(mean)
        constant = sd <= rounding
        mean = np.where(constant, np.median(sample, axis=0), mean)  # the value: a mean of many has rounding errors
        if constant.any():
            where = np.flatnonzero(np.atleast_1d(constant))[:5].tolist()
            warnings.warn(
                f"observable {self.name!r}: entries {where} never change; they are scaled by 1.", stacklevel=2
            )
        sd = np.where(constant, np.maximum(1.0, rounding), sd)
        numbers = {"mean": mean, "sd": sd, "centre": centre, "width": width, "curved": curved}
        kept = {name: torch.as_tensor(value) for name, value in numbers.items()}
        exact = torch.float64 if dtype.itemsize > (4 if dtype.kind == "f" else 2) else torch.float32
        scaler.load_state_dict({name: v.to(exact) if v.is_floating_point() else v for name, v in kept.items()})
        return scaler


def curve(sample: Array) -> tuple[np.ndarray, Array, Array]:
    """Which entries of a sample (n, ...) need a curve, and its centre and width, each (...).

    Where no number is negative, zeros do not count: of them no curve makes a normal.

    >>> curve(np.exp(np.random.default_rng(0).normal(0, 2, (1000, 1))))[0]
    array([ True])
    """
    low, left, median, right, high = np.quantile(sample, LEVELS, axis=0)
    tails = ((high - low) > HEAVY * (right - left)) & (right > left)
    scales = (sample >= 0).all(0) & (sample % 1 > 0).any(0) & (high > low)
    counted = (sample > 0) | ~scales
    least = np.min(sample, axis=0, where=sample > 0, initial=np.inf)
    least = np.maximum(least, np.maximum(RANGE * sample.max(0), TINIEST))
    best = np.where(tails, -np.inf, CLEAR - np.log(_spread(sample, counted)))
    curved, centre, width = np.zeros_like(tails), np.zeros_like(median), np.ones_like(median)
    for which, about, by in ((tails, median, (right - left) / 2), (scales, 0.0, least)):
        if which.any():
            by = np.where(which, by, 1.0)
            score = _normality(sample - about, by, counted)
            better = which & (score > best)
            best, curved = np.where(better, score, best), curved | better
            centre, width = np.where(better, about, centre), np.where(better, by, width)
    return curved, centre, width


def _normality(away: Array, width: Array, counted: np.ndarray) -> Array:
    """The mean ln p of numbers of which arcsinh(away / width) is normal, but for a constant: (n, ...) -> (...)."""
    slope = np.log(np.hypot(away, width)).mean(0, where=counted)
    return -np.log(_spread(np.arcsinh(away / width), counted)) - slope


def _spread(sample: Array, counted: np.ndarray) -> Array:
    """The standard deviation of the numbers that count; infinite where there are none or they are all alike."""
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # of entries in which nothing counts
        spread = sample.std(0, where=counted)
    return np.where(spread > 0, spread, np.inf)


def scalers(
    observables: Mapping[str, Observable],
    dtypes: Mapping[str, np.dtype],
    count: int,
    stream: Iterable[tuple[np.ndarray, Mapping[str, Tensor]]],
) -> dict[str, Standardise]:
    """Scalers by observable, from `count` training rows that come as row numbers and observables, block by block."""
    found = {name: Statistics(name, observable, count) for name, observable in observables.items()}
    for rows, x in stream:
        for name, statistics in found.items():
            statistics.add(rows, x[name].cpu().numpy())
    return {name: statistics.scaler(dtypes[name]) for name, statistics in found.items()}
