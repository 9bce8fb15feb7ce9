"""Shuffled batches of data in memory, each a pure function of (seed, step).

Nothing is remembered between steps: the order of an epoch comes from its own generator, so that a run
resumes anywhere by its step number, to the bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Generator, Tensor

from sbi_dgm.errors import OptionError
from sbi_dgm.seeds import torch_generator

PIECE_ROWS, PIECE_BYTES = 4096, 2**26
Noise = Callable[[Any, Tensor, Generator], Any]  # (x, theta, generator) -> x, as a user writes it


class Batch(NamedTuple):
    """Rows of one step: z (B, D), observables by name, weights (B,) with global mean one, theta (B, P) where asked."""

    z: Tensor
    x: dict[str, Tensor]
    weight: Tensor
    theta: Tensor | None = None


class Batches(Protocol):
    """Where training gets its steps from."""

    @property
    def per_epoch(self) -> int:
        """Steps in one visit to all rows."""
        ...

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step, always the same."""
        ...


class Rows:
    """Rows of a part of the data, on one device.

    Args:
        z: (N, D).
        x: observables by name, each (N, ...).
        weight: (N,), or None for all one.
        theta: (N, P) for a noise model, or None.

    """

    def __init__(
        self, z: Tensor, x: Mapping[str, Tensor], weight: Tensor | None = None, theta: Tensor | None = None
    ) -> None:
        self.z, self.x, self.theta = z, dict(x), theta
        self.weight = torch.ones(len(z), device=z.device) if weight is None else weight

    def __len__(self) -> int:
        return len(self.z)

    def __getitem__(self, index: Tensor | slice) -> Batch:
        theta = None if self.theta is None else self.theta[index]
        return Batch(self.z[index], {name: values[index] for name, values in self.x.items()}, self.weight[index], theta)

    def to(self, device: torch.device) -> "Rows":
        """The rows on another device."""
        theta = None if self.theta is None else self.theta.to(device)
        return Rows(self.z.to(device), {n: v.to(device) for n, v in self.x.items()}, self.weight.to(device), theta)

    def pieces(self) -> Iterator[Batch]:
        """All rows in order, so many at a time as a network takes at once."""
        heavy = max(1, sum(values[:1].nbytes for values in self.x.values()))
        size = min(PIECE_ROWS, max(1, PIECE_BYTES // heavy))
        return (self[slice(first, first + size)] for first in range(0, len(self), size))


def together(parts: Sequence[Batch]) -> Batch:
    """Batches behind each other."""
    if len(parts) == 1:
        return parts[0]
    x = {name: torch.cat([part.x[name] for part in parts]) for name in parts[0].x}
    theta = None if parts[0].theta is None else torch.cat([part.theta for part in parts if part.theta is not None])
    return Batch(torch.cat([part.z for part in parts]), x, torch.cat([part.weight for part in parts]), theta)


class Shuffled:
    """Batches of equal size; every epoch visits the rows in a new order and leaves out the remainder.

    Args:
        rows: what to draw from.
        size: rows of a batch; all rows where there are fewer.
        seed: of the order, with the keys of its stream.
        shard: (rank, ranks): every ranks-th row of the order only, so that ranks share an epoch.

    >>> batches = Shuffled(Rows(torch.arange(10.0)[:, None], {}), 4, 0)
    >>> batches.per_epoch, len(set(torch.cat([batches[0].z, batches[1].z]).flatten().tolist()))
    (2, 8)

    """

    def __init__(self, rows: Rows, size: int, *seed: int, shard: tuple[int, int] = (0, 1)) -> None:
        self.rows, self.seed, self.shard = rows, seed, shard
        self.size = min(size, len(rows) // shard[1])
        self.per_epoch = len(rows) // shard[1] // self.size
        self._epoch, self._order = -1, torch.empty(0)

    def __getitem__(self, step: int) -> Batch:
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            order = torch.randperm(len(self.rows), generator=torch_generator(*self.seed, epoch))
            rank, ranks = self.shard
            self._epoch, self._order = epoch, order[rank::ranks].to(self.rows.z.device)
        return self.rows[self._order[position * self.size : (position + 1) * self.size]]


class Noisy:
    """Batches whose observables get fresh noise at every step, on their device.

    Args:
        batches: the batches before noise.
        noise: (x, theta, generator) -> x, with x a tensor (B, ...), or a dict of them where there are several, and
            theta (B, P) in the order of the data's parameters.
        seed: of the noise, with the keys of its stream.

    """

    def __init__(self, batches: Batches, noise: Noise, *seed: int) -> None:
        self.batches, self.noise, self.seed = batches, noise, seed

    @property
    def per_epoch(self) -> int:
        """Steps in one visit to all rows."""
        return self.batches.per_epoch

    def __getitem__(self, step: int) -> Batch:
        return noisy(self.batches[step], self.noise, *self.seed, step)


def noisy(batch: Batch, noise: Noise, *seed: int) -> Batch:
    """A batch with noise on its observables, drawn from the stream `seed`.

    The model of noise gets copies: it may change them in place.
    """
    generator = torch_generator(*seed, device=batch.z.device)
    x, theta = {name: values.clone() for name, values in batch.x.items()}, batch.theta.clone()  # type: ignore[union-attr]
    if len(x) == 1:
        found = {name: noise(values, theta, generator) for name, values in x.items()}
    else:
        found = noise(x, theta, generator)
    return batch._replace(x=_like(batch.x, found, noise))


def _like(x: Mapping[str, Tensor], found: Any, noise: Noise) -> dict[str, Tensor]:
    """What a model of noise gave, where it is observables as they were before."""
    before = {name: tuple(values.shape) for name, values in x.items()}
    given = found if isinstance(found, Mapping) else {}
    after = {name: tuple(v.shape) if isinstance(v, Tensor) else type(v).__name__ for name, v in given.items()}
    if after != before:
        raise OptionError(
            f"noise {named(noise)} gave {after or type(found).__name__} for observables {before}: it must return "
            "tensors of the same names and shapes."
        )
    return {name: given[name] for name in x}


def named(noise: Noise | None) -> str | None:
    """How an artefact knows a noise model, which no file can hold."""
    return None if noise is None else getattr(noise, "__qualname__", type(noise).__qualname__)
