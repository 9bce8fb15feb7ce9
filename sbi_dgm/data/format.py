"""The simulation file: named draws (theta, x) in HDF5, written atomically, checked when opened.

Datasets: `theta` (N, D) f8, `x/<observable>` (N, ...), `valid` (N,) u1, and where there are any `seed` u8 (the
shard that drew the row), `proposal_weight` f8, `event_weight` f8, `group` i8, `split` u1; all in row chunks
of at most 1 MiB with fletcher32 checksums. Root attributes say what they mean, with a sha256 over them all;
`complete` comes last.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np

from sbi_dgm import priors
from sbi_dgm.errors import DataError, FileError
from sbi_dgm.files import atomic, require_file
from sbi_dgm.parameters import Observable, Parameter
from sbi_dgm.priors import Prior

FORMAT = "sbi_dgm/simulations"
VERSION = 1
CHUNK_BYTES = 2**20
UNSIGNED = ("created", "sha256", "complete")  # attributes outside the hash
OPTIONAL = ("seed", "proposal_weight", "event_weight", "group", "split")

Block = Mapping[str, np.ndarray]


class Column(Protocol):
    """Rows that can be read by slice: an array, or a dataset that stays on the disk."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __getitem__(self, rows: slice, /) -> np.ndarray: ...


@dataclass(frozen=True)
class Header:
    """What the root attributes say."""

    parameters: tuple[Parameter, ...]
    observables: Mapping[str, Observable]
    prior: Mapping[str, Any] | None = None
    simulator: Mapping[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Names of the parameters, in the order of theta's columns."""
        return [p.name for p in self.parameters]

    def restore_prior(self, external: Prior | None = None) -> Prior | None:
        """The prior, or None where the file has none."""
        return None if self.prior is None else priors.restore(dict(self.prior), external)

    def attributes(self) -> dict[str, Any]:
        """As stored: strings, numbers and JSON."""
        content = {
            "format": FORMAT,
            "format_version": VERSION,
            "names": json.dumps(self.names),
            "labels": json.dumps([p.label for p in self.parameters]),
            "units": json.dumps([p.unit for p in self.parameters]),
            "prior": json.dumps(self.prior),
            "observables": json.dumps({name: o.describe() for name, o in self.observables.items()}),
            "simulator": json.dumps(dict(self.simulator)),
            "versions": json.dumps({name: version(name) for name in ("sbi_dgm", "numpy", "scipy", "h5py")}),
        }
        return content | {"sha256": _hash(content)}

    @classmethod
    def restore(cls, attributes: Mapping[str, Any]) -> "Header":
        """The inverse of `attributes`."""
        names, labels, units = (json.loads(attributes[key]) for key in ("names", "labels", "units"))
        observables = json.loads(attributes["observables"]).items()
        prior = json.loads(attributes["prior"])
        parameters = [Parameter(n, None, label, unit) for n, label, unit in zip(names, labels, units, strict=True)]
        if prior is not None:
            parameters = [Parameter.restore(p) for p in prior["parameters"]]
        return cls(
            tuple(parameters),
            {name: Observable.restore(description) for name, description in observables},
            prior,
            json.loads(attributes["simulator"]),
        )


def _hash(attributes: Mapping[str, Any]) -> str:
    content = {key: value for key, value in attributes.items() if key not in UNSIGNED}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=int).encode()).hexdigest()


def write(path: str | Path, header: Header, rows: int, blocks: Iterable[Block]) -> None:
    """Write a simulation file of `rows` rows, atomically, block after block.

    Args:
        blocks: dicts of equal columns, each named as its dataset.

    """
    written = 0
    with atomic(path) as temporary, h5py.File(temporary, "w") as file:
        for block in blocks:
            count = len(block["theta"])
            for name, values in block.items():
                dataset: Any = file[name] if name in file else _create(file, name, values, rows)
                dataset[written : written + count] = values
            written += count
        if written != rows:
            raise DataError(f"{path}: {rows} rows were announced and {written} came.")
        file.attrs.update({**header.attributes(), "created": datetime.now(UTC).isoformat(timespec="seconds")})
        file.flush()
        file.attrs["complete"] = True


def _create(file: h5py.File, name: str, values: np.ndarray, rows: int) -> h5py.Dataset:
    shape = (rows, *values.shape[1:])
    row_bytes = max(1, values.dtype.itemsize * int(np.prod(values.shape[1:])))
    chunk = (max(1, min(rows, CHUNK_BYTES // row_bytes)), *values.shape[1:])
    return file.create_dataset(name, shape, values.dtype, chunks=chunk if rows else None, fletcher32=bool(rows))


class Handle:
    """An HDF5 file opened when first read, once per process, and never pickled."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: h5py.File | None = None
        self._owner = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_file": None, "_owner": 0}

    def open(self) -> h5py.File:
        if self._file is None or self._owner != os.getpid():
            self._file, self._owner = h5py.File(self.path, "r"), os.getpid()
        return self._file


class StoredColumn:
    """A dataset on the disk, read by slice; a failing checksum names the dataset and the rows."""

    def __init__(self, handle: Handle, name: str) -> None:
        dataset: Any = handle.open()[name]
        self.handle, self.name = handle, name
        self.shape: tuple[int, ...] = dataset.shape
        self.dtype: np.dtype = dataset.dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        try:
            dataset: Any = self.handle.open()[self.name]
            return dataset[rows]
        except OSError as error:
            first, last, _ = rows.indices(self.shape[0])
            raise DataError(
                f"{self.handle.path}: dataset {self.name!r}, rows {first} to {last - 1}, cannot be read: its checksum "
                f"fails or the file is cut ({str(error).splitlines()[0]}). Restore the file from a copy."
            ) from None


def read(path: str | Path) -> tuple[Header, dict[str, Column]]:
    """Open a simulation file: its header and its columns, which stay on the disk.

    Raises:
        FileError: missing, not HDF5, truncated, of another format, newer, changed or inconsistent.

    """
    path = require_file(path)
    try:
        handle = Handle(path)
        attributes = {key: _plain(value) for key, value in handle.open().attrs.items()}
        _check_attributes(path, attributes)
        columns = _columns(handle)
        header = Header.restore(attributes)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise FileError(f"{path} is no readable simulation file: {str(error).splitlines()[0]}.") from None
    _check_shapes(path, header, columns)
    return header, columns


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _check_attributes(path: Path, attributes: Mapping[str, Any]) -> None:
    found, number = attributes.get("format"), attributes.get("format_version", 0)
    if found != FORMAT:
        raise FileError(f"{path} is HDF5 but no simulation file of sbi_dgm (its format is {found!r}, not {FORMAT!r}).")
    if number > VERSION:
        raise FileError(f"{path} has format version {number}; this sbi_dgm reads up to {VERSION}: update it.")
    if not attributes.get("complete", False):
        raise FileError(f"{path} was never completed: run the command that made it again.")
    if attributes.get("sha256") != _hash(attributes):
        raise FileError(f"{path}: its attributes were changed after it was written (sha256 differs).")


def _columns(handle: Handle) -> dict[str, Column]:
    file: Any = handle.open()
    names = ["theta", "valid", *(f"x/{name}" for name in file["x"]), *(name for name in OPTIONAL if name in file)]
    return {name: StoredColumn(handle, name) for name in names}


def _check_shapes(path: Path, header: Header, columns: Mapping[str, Column]) -> None:
    expected = {"theta": (len(header.parameters),)} | {f"x/{n}": o.shape for n, o in header.observables.items()}
    rows = columns["theta"].shape[0]
    for name in {**expected, **columns}:
        if name not in columns:
            raise FileError(f"{path}: dataset {name!r} is missing.")
        shape = (rows, *expected.get(name, ()))
        if columns[name].shape != shape:
            raise FileError(f"{path}: dataset {name!r} has shape {columns[name].shape}, expected {shape}.")


def blocks(
    columns: Mapping[str, Column], start: int, stop: int, size_bytes: int = 2**23
) -> Iterator[dict[str, np.ndarray]]:
    """The rows [start, stop) of all columns, in blocks of about `size_bytes`."""
    row_bytes = sum(c.dtype.itemsize * int(np.prod(c.shape[1:])) for c in columns.values())
    step = max(1, size_bytes // max(1, row_bytes))
    for first in range(start, stop, step):
        rows = slice(first, min(first + step, stop))
        yield {name: column[rows] for name, column in columns.items()}
