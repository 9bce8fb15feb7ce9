"""Checksums of numbers, block by block: written while rows are written, compared when a block is first read.

A dataset is parted into blocks of rows, each with the CRC-32 of its numbers in little-endian order. The table of all
sums stands in the file, and its sha256 among the signed attributes.
"""

import hashlib
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sbi_dgm.data.columns import Handle, Stored, plain_dtype
from sbi_dgm.errors import DataError

TABLE = "crc32"


class Sums:
    """The checksums of a dataset's blocks of `rows` rows, which come piece by piece."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, rows: int) -> None:
        self.shape, self.dtype, self.rows = shape, dtype, rows
        self.found: list[int] = []
        self.seen = 0

    def add(self, values: np.ndarray) -> None:
        """The next rows."""
        while len(values):
            start = self.seen % self.rows
            if not start:
                self.found.append(0)
            piece = values[: self.rows - start]
            self.found[-1] = checksum(piece, self.found[-1])
            self.seen, values = self.seen + len(piece), values[len(piece) :]

    def describe(self) -> dict[str, Any]:
        """As JSON: what the dataset must be when it is read."""
        return {"shape": self.shape, "dtype": plain_dtype(self.dtype).str, "block": self.rows}


def checksum(values: np.ndarray, start: int = 0) -> int:
    """CRC-32 of numbers as they are read, going on from `start`.

    >>> one = checksum(np.arange(3))
    >>> checksum(np.arange(3, 5), one) == checksum(np.arange(5)) == checksum(np.arange(5).astype(">i8"))
    True
    """
    little = plain_dtype(values.dtype).newbyteorder("<")
    return zlib.crc32(np.ascontiguousarray(values, little).reshape(-1).view(np.uint8).data, start)


def sealed(table: np.ndarray) -> str:
    """The sha256 of a table of sums."""
    return hashlib.sha256(np.ascontiguousarray(table, "<u4").tobytes()).hexdigest()


def shared(described: Mapping[str, Any], table: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Each dataset's part of the table of sums."""
    first = 0
    for name, dataset in described.items():
        last = first + -(-dataset["shape"][0] // dataset["block"])
        yield name, table[first:last]
        first = last


class Summed(Stored):
    """A dataset whose blocks are compared with their checksums when they are first read."""

    def __init__(self, handle: Handle, name: str, rows: int, sums: np.ndarray) -> None:
        super().__init__(handle, name)
        self.block, self.sums = rows, sums
        self._good = np.zeros(len(sums), bool)

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, last, _ = rows.indices(self.shape[0])
        blocks = slice(first // self.block, -(-last // self.block) if last > first else 0)
        if self._good[blocks].all():
            return super().__getitem__(rows)
        start = blocks.start * self.block
        values = super().__getitem__(slice(start, min(blocks.stop * self.block, self.shape[0])))
        for block in blocks.start + np.flatnonzero(~self._good[blocks]):
            self._check(int(block), values[block * self.block - start :][: self.block])
        return values[first - start : last - start : rows.step]

    def _check(self, block: int, values: np.ndarray) -> None:
        if checksum(values) != self.sums[block]:
            first = block * self.block
            raise DataError(
                f"{self.handle.path}: dataset {self.name!r}, rows {first} to {first + len(values) - 1}, are not what "
                "was written: their checksum fails. Restore the file from a copy."
            )
        self._good[block] = True
