"""Shuffled batches of data that live on the device, each a pure function of (seed, step).

Nothing is remembered between steps: the order of an epoch comes from its own generator, so that a run
resumes anywhere by its step number, to the bit.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from sbi_dgm.seeds import torch_generator


class Batch(NamedTuple):
    """Rows of one step: z (B, D), observables by name, weights (B,) with global mean one."""

    z: Tensor
    x: dict[str, Tensor]
    weight: Tensor


class Rows:
    """All rows of a part of the data, on one device.

    Args:
        z: (N, D).
        x: observables by name, each (N, ...).
        weight: (N,), or None for all one.

    """

    def __init__(self, z: Tensor, x: Mapping[str, Tensor], weight: Tensor | None = None) -> None:
        self.z, self.x = z, dict(x)
        self.weight = torch.ones(len(z), device=z.device) if weight is None else weight / weight.mean()

    def __len__(self) -> int:
        return len(self.z)

    def __getitem__(self, index: Tensor | slice) -> Batch:
        return Batch(self.z[index], {name: values[index] for name, values in self.x.items()}, self.weight[index])


class Shuffled:
    """Batches of equal size; every epoch visits the rows in a new order and leaves out the remainder.

    Args:
        rows: what to draw from.
        size: rows of a batch; all rows where there are fewer.
        seed: of the order, with the keys of its stream.

    >>> batches = Shuffled(Rows(torch.arange(10.0)[:, None], {}), 4, 0)
    >>> batches.per_epoch, len(set(torch.cat([batches[0].z, batches[1].z]).flatten().tolist()))
    (2, 8)

    """

    def __init__(self, rows: Rows, size: int, *seed: int) -> None:
        self.rows, self.seed = rows, seed
        self.size = min(size, len(rows))
        self.per_epoch = len(rows) // self.size
        self._epoch, self._order = -1, torch.empty(0)

    def __getitem__(self, step: int) -> Batch:
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            order = torch.randperm(len(self.rows), generator=torch_generator(*self.seed, epoch))
            self._epoch, self._order = epoch, order.to(self.rows.z.device)
        return self.rows[self._order[position * self.size : (position + 1) * self.size]]
