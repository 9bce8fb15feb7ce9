"""Columns: rows that are read by slice, from arrays, from datasets on the disk, and from combinations of these.

A file's layout is a composition of columns: several files are `Joined`, parameters kept apart stand `Beside`
each other, theta of a universe is `Repeated` for its maps, complex numbers are `RealImaginary`, events of varying
length are `Padded`. Nothing is read before it is asked for.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import h5py
import numpy as np

from sbi_dgm.errors import DataError, FileError, first_line

BLOCK_BYTES = 2**23
FILES = 256  # open at once; a process may often have 1024
ARRAYS = ' sbi_dgm.Simulations.from_arrays(theta, x).save("sims.h5") makes a simulation file of arrays.'


class Column(Protocol):
    """Rows that can be read by slice: an array, or something that stays on the disk."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __getitem__(self, rows: slice, /) -> np.ndarray: ...


class Handle:
    """An HDF5 file opened when read, once per process, and never pickled; of many the latest FILES stay open."""

    _lock, _latest = Lock(), WeakKeyDictionary["Handle", None]()

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._file: h5py.File | None = None
        self._owner = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_file": None, "_owner": 0}

    def open(self) -> h5py.File:
        """The open file, which stays open while it is held."""
        file = self._file if self._owner == os.getpid() else None
        if file is None:
            try:
                file = h5py.File(self.path, "r")
            except OSError as error:
                remedy = ARRAYS if self.path.exists() and not h5py.is_hdf5(self.path) else ""
                raise FileError(f"{self.path} is no readable HDF5 file: {first_line(error)}.{remedy}") from None
        self._keep(file)
        return file

    def _keep(self, file: h5py.File) -> None:
        with self._lock:
            self._file, self._owner = file, os.getpid()
            self._latest.pop(self, None)
            self._latest[self] = None
            while len(self._latest) > FILES:
                oldest = next(iter(self._latest))
                self._latest.pop(oldest)
                oldest._file = None

    @classmethod
    def guard_forks(cls) -> None:
        """Let no process fork while another thread holds the lock."""
        if hasattr(os, "register_at_fork"):
            lock = cls._lock
            os.register_at_fork(before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release)


Handle.guard_forks()


class Stored:
    """A dataset on the disk, or one field of a compound one; a failing checksum names the dataset and the rows.

    Attributes:
        chunk: rows of its chunks on the disk.

    """

    def __init__(self, handle: Handle, name: str, field: str | None = None) -> None:
        file = handle.open()
        dataset: Any = file[name]
        self.handle, self.name, self.field = handle, name, field
        whole = dataset.dtype if field is None else dataset.dtype[field]
        inner = () if whole.subdtype is None else whole.subdtype[1]
        self.shape: tuple[int, ...] = (*(dataset.shape or ()), *inner)
        self.dtype: np.dtype = plain_dtype(whole.base)
        self.chunk: int = dataset.chunks[0] if dataset.chunks else 1

    def __getitem__(self, rows: slice) -> np.ndarray:
        if not self.shape:
            raise DataError(f"{self.handle.path}: dataset {self.name!r} has no rows: it holds one value, or none.")
        try:
            file = self.handle.open()
            dataset: Any = file[self.name]
            values = dataset[rows] if self.field is None else dataset.fields(self.field)[rows]
            return values.astype(self.dtype, copy=False)
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            first, last, _ = rows.indices(self.shape[0])
            raise DataError(
                f"{self.handle.path}: dataset {self.name!r}, rows {first} to {last - 1}, cannot be read: its checksum "
                f"fails or the file is cut ({first_line(error)}). Restore the file from a copy."
            ) from None


def plain_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype in this machine's byte order, floats of at most double precision, and truth as 0 and 1."""
    if dtype.kind == "b":
        return np.dtype(np.uint8)
    if dtype.kind in "fc":
        dtype = min(dtype, np.dtype("f8" if dtype.kind == "f" else "c16"), key=lambda d: d.itemsize)
    return dtype.newbyteorder("=")


class Joined:
    """Columns of equal rows behind each other: one table in several files."""

    def __init__(self, parts: Sequence[Column]) -> None:
        self.parts = tuple(parts)
        self.ends = np.cumsum([part.shape[0] for part in parts])
        self.shape = (int(self.ends[-1]), *parts[0].shape[1:])
        self.dtype = np.result_type(*(part.dtype for part in parts))
        self.chunk = max(chunk_rows(part) for part in parts)

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, last, _ = rows.indices(self.shape[0])
        pieces = [np.empty((0, *self.shape[1:]), self.dtype)]
        for part, end in zip(self.parts, self.ends, strict=True):
            start = end - part.shape[0]
            if first < end and last > start:
                pieces.append(part[max(first - start, 0) : min(last, end) - start])
        return np.concatenate(pieces, dtype=self.dtype)


def joined(parts: Sequence[Column]) -> Column:
    """One column of the parts behind each other."""
    return parts[0] if len(parts) == 1 else Joined(parts)


class Beside:
    """Columns of numbers or vectors side by side: (N,) or (N, d) each -> (N, D)."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = tuple(columns)
        self.shape = (columns[0].shape[0], sum(int(np.prod(column.shape[1:])) for column in columns))
        self.dtype = np.result_type(*(column.dtype for column in columns))
        self.chunk = max(chunk_rows(column) for column in columns)

    def __getitem__(self, rows: slice) -> np.ndarray:
        pieces = [column[rows] for column in self.columns]
        return np.concatenate([a.reshape(len(a), int(np.prod(a.shape[1:]))) for a in pieces], axis=1, dtype=self.dtype)


class Repeated:
    """Every row m times: row i is row i // m of the column."""

    def __init__(self, column: Column, times: int) -> None:
        self.column, self.times = column, times
        self.shape = (column.shape[0] * times, *column.shape[1:])
        self.dtype = column.dtype
        self.chunk = chunk_rows(column) * times

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, last, _ = rows.indices(self.shape[0])
        start = first // self.times
        rows_read = self.column[start : -(-last // self.times)]
        return rows_read[np.arange(first, last) // self.times - start]


class RealImaginary:
    """Complex numbers as pairs of real ones: (N, ...) -> (N, ..., 2)."""

    def __init__(self, column: Column) -> None:
        self.column = column
        self.shape = (*column.shape, 2)
        self.dtype = np.dtype(f"f{column.dtype.itemsize // 2}")
        self.chunk = chunk_rows(column)

    def __getitem__(self, rows: slice) -> np.ndarray:
        values = np.ascontiguousarray(self.column[rows])
        return values.view(self.dtype).reshape(*values.shape, 2)


class Padded:
    """Members of sets stored end to end, as rows of equal length: (N, M, F + 1).

    The last feature says whether a member is there (1) or padding (0, as its other features).

    Args:
        values: (total, F), or (total,) for F = 1.
        offsets: (N + 1,), ascending; row i holds the members offsets[i] to offsets[i + 1].
        members: M, at least the largest number of members of a row.

    """

    def __init__(self, values: Column, offsets: np.ndarray, members: int) -> None:
        self.values, self.offsets = values, offsets
        self.features = int(np.prod(values.shape[1:]))
        self.shape = (len(offsets) - 1, members, self.features + 1)
        self.dtype = values.dtype if values.dtype.kind == "f" else np.dtype("f4")
        self.chunk = max(1, round(chunk_rows(values) * self.shape[0] / max(1, int(offsets[-1]))))

    def __getitem__(self, rows: slice) -> np.ndarray:
        first, last, _ = rows.indices(self.shape[0])
        ends = self.offsets[first : max(first, last) + 1]
        there = np.arange(self.shape[1]) < np.diff(ends)[:, None]
        padded = np.zeros((len(there), *self.shape[1:]), self.dtype)
        padded[there, :-1] = self.values[int(ends[0]) : int(ends[-1])].reshape(-1, self.features)
        padded[there, -1] = 1
        return padded


class Finite:
    """(N,) of 1 where every number of the columns' row is finite, else 0; found by one pass, when first asked for."""

    def __init__(self, columns: Mapping[str, Column]) -> None:
        self.columns = {name: column for name, column in columns.items() if column.dtype.kind == "f"}
        self.shape: tuple[int, ...] = next(iter(columns.values())).shape[:1]
        self.dtype = np.dtype(np.uint8)
        self._rows: np.ndarray | None = None

    def __getitem__(self, rows: slice) -> np.ndarray:
        if self._rows is None:
            found = [_finite(block) for block in blocks(self.columns, 0, self.shape[0])] if self.columns else []
            self._rows = np.concatenate(found) if found else np.ones(self.shape, self.dtype)
        return self._rows[rows]


def _finite(block: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.all([finite_rows(values) for values in block.values()], axis=0).astype(np.uint8)


def finite_rows(values: np.ndarray) -> np.ndarray:
    """(N,), True where all of a row (N, ...) is finite."""
    return np.asarray(np.isfinite(values).all(axis=tuple(range(1, values.ndim))))


def chunk_rows(column: Column) -> int:
    """Rows that are read at the price of one."""
    return getattr(column, "chunk", 1)


def row_bytes(columns: Mapping[str, Column]) -> int:
    """Bytes of one row of all columns."""
    return sum(c.dtype.itemsize * int(np.prod(c.shape[1:])) for c in columns.values())


def span_rows(columns: Mapping[str, Column], size_bytes: int = BLOCK_BYTES) -> int:
    """Rows of about `size_bytes`, in whole chunks of the heaviest column, at least one."""
    heaviest = max(columns.values(), key=lambda column: row_bytes({"": column}))
    chunk = chunk_rows(heaviest)
    return chunk * max(1, size_bytes // max(1, chunk * row_bytes(columns)))


def blocks(
    columns: Mapping[str, Column], start: int, stop: int, size_bytes: int = BLOCK_BYTES
) -> Iterator[dict[str, np.ndarray]]:
    """The rows [start, stop) of all columns, in aligned spans of about `size_bytes`."""
    step = span_rows(columns, size_bytes)
    for first in range(start // step * step, stop if stop > start else 0, step):
        rows = slice(max(first, start), min(first + step, stop))
        yield {name: column[rows] for name, column in columns.items()}


def gather(column: Column, rows: np.ndarray, step: int | None = None) -> np.ndarray:
    """The given ascending rows, read in aligned spans of `step` rows, never one by one."""
    if isinstance(column, np.ndarray) or not len(rows):
        return column[rows] if isinstance(column, np.ndarray) else np.empty((0, *column.shape[1:]), column.dtype)
    step = step or span_rows({"": column})
    found = np.empty((len(rows), *column.shape[1:]), column.dtype)
    spans, starts = np.unique(rows // step, return_index=True)
    for span, first, last in zip(spans, starts, [*starts[1:], len(rows)], strict=True):
        block = column[slice(span * step, min((span + 1) * step, column.shape[0]))]
        found[first:last] = block[rows[first:last] - span * step]
    return found


def absent_rows(values: np.ndarray) -> np.ndarray:
    """(N,), True where all of a row (N, ...) is not a number: an observable that is absent.

    >>> absent_rows(np.array([[np.nan, np.nan], [np.nan, 1.0]]))
    array([ True, False])
    """
    if values.dtype.kind != "f":
        return np.zeros(len(values), bool)
    return np.asarray(np.isnan(values).all(axis=tuple(range(1, values.ndim))))


def usable_rows(values: np.ndarray, optional: bool) -> np.ndarray:
    """(N,), True where all of a row is finite, or an optional observable is absent."""
    return finite_rows(values) | absent_rows(values) if optional else finite_rows(values)
