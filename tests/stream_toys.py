"""Rows that know their number, in columns that count what is read of them."""

import numpy as np

from sbi_dgm import Simulations
from sbi_dgm.data.source import Source
from sbi_dgm.data.streaming import IN_FLIGHT, Streamed
from sbi_dgm.distributions import Normal
from sbi_dgm.parameters import Parameter
from sbi_dgm.priors import Prior

PRIOR = Prior([Parameter("a", Normal(0, 1)), Parameter("b", Normal(0, 1))])


class Counting:
    """An array in chunks of so many rows, which notes every slice that is read."""

    def __init__(self, values: np.ndarray, chunk: int) -> None:
        self.values, self.chunk, self.shape, self.dtype = values, chunk, values.shape, values.dtype
        self.read: list[tuple[int, int]] = []

    def __getitem__(self, rows: slice) -> np.ndarray:
        self.read.append(rows.indices(len(self.values))[:2])
        return self.values[rows].copy()

    def visits(self) -> np.ndarray:
        """How often each chunk has been read."""
        found = np.zeros(-(-len(self.values) // self.chunk), int)
        for first, last in self.read:
            found[first // self.chunk : -(-last // self.chunk)] += 1
        return found


def table(rows: int, chunk: int = 16, *, weights: bool = False) -> Source:
    """Rows sorted by the first parameter; x is (row, 2 row, ..., 5 row), n the row, and the weight 1 + row / 1000."""
    index = np.arange(rows)
    theta = np.stack([np.linspace(-2, 2, rows), np.linspace(2, -2, rows) ** 3], 1)
    x = {"x": (index[:, None] * np.arange(1, 6)).astype("f4"), "n": index.astype("i4")}
    data = Simulations.from_arrays(theta, x, names=["a", "b"])
    data.columns |= {f"x/{name}": Counting(values, chunk) for name, values in x.items()}
    return Source(data, PRIOR, 1 + index / 1000 if weights else None, theta=True)


def streamed(source: Source, rows: np.ndarray, size: int, *seed: int, blocks: int = 5, **options) -> Streamed:
    """Batches from windows of so many blocks; `stream_toys.table` with blocks of one chunk."""
    largest = max(map(len, source.blocks(rows, 1)))
    return Streamed(source, rows, size, *seed, buffer=IN_FLIGHT * blocks * source.bytes(largest), **options)
