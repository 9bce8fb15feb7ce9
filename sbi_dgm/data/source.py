"""Rows of simulations as an estimator sees them: coordinates z, observables and weights, as tensors."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sbi_dgm.data.batches import Rows
from sbi_dgm.data.columns import gather, plain_dtype, span_rows
from sbi_dgm.data.simulations import Simulations
from sbi_dgm.errors import DataError
from sbi_dgm.priors import Prior
from sbi_dgm.univariate import EDGE, Array


class Source:
    """The rows of simulations, read when asked for.

    Args:
        data: the simulations.
        reference: whose coordinates z are; its parameters are a choice of theta's columns.
        weight: (N,), or None for all one.
        theta: keep all of theta too, for a noise model.

    """

    def __init__(
        self, data: Simulations, reference: Prior, weight: np.ndarray | None = None, *, theta: bool = False
    ) -> None:
        self.data, self.reference, self.weight, self.theta = data, reference, weight, theta
        self.columns = {name: data.columns[f"x/{name}"] for name in data.observables}
        self._chosen = [data.names.index(name) for name in reference.names]

    def bytes(self, rows: int) -> int:
        """Memory that so many rows take."""
        x = sum(_tensor_dtype(c.dtype).itemsize * int(np.prod(c.shape[1:])) for c in self.columns.values())
        return rows * (x + 4 * len(self._chosen) + 4 * self.theta * len(self.data.names) + 4)

    def take(self, rows: np.ndarray, step: int | None = None) -> Rows:
        """The given ascending rows, on the CPU, read in spans of `step` rows."""
        if not len(rows):
            raise DataError("no rows are left to train or to validate on: change the split.")
        theta = gather(self.data.columns["theta"], rows, step)
        x = {name: tensor(gather(column, rows, step)) for name, column in self.columns.items()}
        weight = None if self.weight is None else torch.as_tensor(self.weight[rows], dtype=torch.float32)
        physical = torch.as_tensor(theta, dtype=torch.float32) if self.theta else None
        return Rows(torch.as_tensor(self._z(theta), dtype=torch.float32), x, weight, physical)

    def _z(self, theta: np.ndarray) -> Array:
        return self.reference.standardise(theta[:, self._chosen], self.data.columns["theta"].dtype)

    def at_edge(self, rows: np.ndarray) -> int:
        """How many of the given ascending rows have a parameter on an edge of the prior."""
        column = self.data.columns["theta"]
        step = span_rows({"theta": column})
        theta = (gather(column, part, step) for part in _parted(rows, step))
        return sum(int((np.abs(self._z(block)) >= EDGE - 1e-3).any(1).sum()) for block in theta)

    def blocks(self, rows: np.ndarray, size_bytes: int) -> list[np.ndarray]:
        """The given ascending rows, parted by chunk-aligned spans of about `size_bytes`."""
        return _parted(rows, span_rows(self.columns, size_bytes))

    def stream(self, rows: np.ndarray, size_bytes: int = 2**23) -> Iterator[tuple[np.ndarray, Rows]]:
        """Row numbers and rows, block by block."""
        step = span_rows(self.columns, size_bytes)
        return ((part, self.take(part, step)) for part in _parted(rows, step))


def _parted(rows: np.ndarray, step: int) -> list[np.ndarray]:
    return np.split(rows, np.flatnonzero(np.diff(rows // step)) + 1)


def _tensor_dtype(dtype: np.dtype) -> np.dtype:
    """What torch can index: this machine's byte order, and unsigned integers beyond bytes as signed ones."""
    dtype = plain_dtype(dtype)
    return np.promote_types(dtype, np.int8) if dtype.kind == "u" and dtype.itemsize > 1 else dtype


def tensor(values: np.ndarray) -> Tensor:
    """The values as a tensor, in the dtype that training sees."""
    return torch.as_tensor(values.astype(_tensor_dtype(values.dtype), copy=False))
