"""The simulation file: named draws (theta, x) in HDF5, written atomically, checked when opened.

Datasets: `theta` (N, D) f8, `x/<observable>` (N, ...), `valid` (N,) u1, and where there are any `seed` u8 (the
shard that drew the row), `failure` (why it failed, 120 bytes of UTF-8), `proposal_weight` f8, `event_weight` f8,
`group` i8, `split` u1; all in row chunks of at most 1 MiB with fletcher32 checksums. Root attributes say what they
mean, with a sha256 over them all; `complete` comes last.

HDF5 protects the bytes of a chunk, not what it knows of them: number types, shapes, names and the places of chunks
have no checksum, and a chunk of zeros has a sum of zero. So the attribute `datasets` says what there must be, and
`/crc32` holds a checksum of the numbers themselves, block by block (`data.sums`); damage to its structure makes HDF5
loop or crash, so a seal behind its end is compared first (`data.frame`). Files without these are read as they are.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sbi_dgm import priors
from sbi_dgm.data import frame
from sbi_dgm.data.columns import Column, Handle, plain_dtype
from sbi_dgm.data.sink import writing
from sbi_dgm.data.sums import TABLE, Summed, Sums, sealed, shared
from sbi_dgm.errors import DataError, FileError
from sbi_dgm.files import atomic, require_file, understood
from sbi_dgm.parameters import Observable, Parameter
from sbi_dgm.priors import Prior

FORMAT = "sbi_dgm/simulations"
VERSION = 1
CHUNK_BYTES = 2**20
UNSIGNED = ("created", "sha256", "complete")  # attributes outside the hash
DTYPES = {"proposal_weight": np.float64, "event_weight": np.float64, "group": np.int64, "split": np.uint8}
OPTIONAL = ("seed", "failure", *DTYPES)

Block = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Header:
    """What the root attributes say."""

    parameters: tuple[Parameter, ...]
    observables: Mapping[str, Observable]
    prior: Mapping[str, Any] | None = None
    simulator: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.observables:
            if name in ("", ".", "..") or "/" in name or "\0" in name:
                raise DataError(f"observable {name!r} has no usable name: give one without '/', as files need it.")

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
            "versions": json.dumps(_versions()),
        }
        return _signed(content)

    @classmethod
    def restore(cls, attributes: Mapping[str, Any]) -> "Header":
        """The inverse of `attributes`."""
        names, labels, units = (json.loads(attributes[key]) for key in ("names", "labels", "units"))
        observables = json.loads(attributes["observables"]).items()
        prior = json.loads(attributes["prior"])
        parameters = [Parameter(n, None, label, unit) for n, label, unit in zip(names, labels, units, strict=True)]
        if prior is not None:
            parameters = [Parameter.restore(p) for p in prior["parameters"]]
            _ = prior["fingerprint"] if prior["kind"] == "external" else priors.restore(prior)  # which must succeed
        return cls(
            tuple(parameters),
            {name: Observable.restore(description) for name, description in observables},
            prior,
            json.loads(attributes["simulator"]),
        )


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("sbi_dgm", "numpy", "scipy", "h5py")}


def _hash(attributes: Mapping[str, Any]) -> str:
    content = {key: value for key, value in attributes.items() if key not in UNSIGNED}
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=int).encode()).hexdigest()


def _signed(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {**attributes, "sha256": _hash(attributes)}


def write(path: str | Path, header: Header, rows: int, parts: Iterable[Block]) -> None:
    """Write a simulation file of `rows` rows, atomically, block after block.

    Args:
        parts: blocks of rows, dicts of equal columns, each named as its dataset.

    """
    with atomic(path) as temporary:
        with writing(temporary) as file:
            sums = _fill(file, rows, parts)
            if (written := min((one.seen for one in sums.values()), default=0)) != rows:
                raise DataError(f"{path}: {rows} rows were announced and {written} came.")
            numbers = _finish(file, header, sums)
        frame.seal(temporary, numbers)


def _fill(file: h5py.File, rows: int, parts: Iterable[Block]) -> dict[str, Sums]:
    """Write the rows, block after block; the checksums of each dataset."""
    sums: dict[str, Sums] = {}
    for block in parts:
        for name, values in block.items():
            if name not in sums:
                sums[name] = _create(file, name, values, rows)
            dataset: Any = file[name]
            dataset[sums[name].seen : sums[name].seen + len(values)] = values
            sums[name].add(values)
    return sums


def _finish(file: h5py.File, header: Header, sums: Mapping[str, Sums]) -> frame.Extents:
    """Write the attributes; where the numbers lie."""
    file.attrs.update({**_signed(header.attributes() | _table(file, sums)), "created": _now()})
    file.flush()
    numbers = [extent for name in sums for extent in frame.chunks(file[name])]
    file.attrs["complete"] = True
    return numbers


def _table(file: h5py.File, sums: Mapping[str, Sums]) -> dict[str, str]:
    """Write the table of checksums; the attributes that say what it is of."""
    table = np.array([number for one in sums.values() for number in one.found], "<u4")
    file.create_dataset(TABLE, data=table, chunks=len(table) > 0 or None, fletcher32=len(table) > 0)
    return {"datasets": json.dumps({name: one.describe() for name, one in sums.items()}), TABLE: sealed(table)}


def _now() -> str:
    """The time; or that of SOURCE_DATE_EPOCH (reproducible-builds.org), so that files can be equal in every byte."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    moment = datetime.now(UTC) if epoch is None else datetime.fromtimestamp(int(epoch), UTC)
    return moment.isoformat(timespec="seconds")


def _create(file: h5py.File, name: str, values: np.ndarray, rows: int) -> Sums:
    shape = (rows, *values.shape[1:])
    row_bytes = max(1, values.dtype.itemsize * int(np.prod(values.shape[1:])))
    chunk = (max(1, min(rows, CHUNK_BYTES // row_bytes)), *values.shape[1:])
    file.create_dataset(name, shape, values.dtype, chunks=chunk if rows else None, fletcher32=bool(rows))
    return Sums(shape, values.dtype, chunk[0])


def is_ours(path: str | Path) -> bool:
    """Whether a file calls itself a simulation file of this library, or would if it were not damaged."""
    try:
        frame.check(Path(path))
    except FileError:
        return True
    except OSError:
        return False
    try:
        with h5py.File(path) as file:
            return file.attrs.get("format") == FORMAT
    except (OSError, RuntimeError, ValueError, TypeError):
        return False


def read(path: str | Path) -> tuple[Header, dict[str, Column]]:
    """Open a simulation file: its header and its columns, which stay on the disk.

    Raises:
        FileError: missing, not HDF5, truncated, of another format, newer, changed or inconsistent.

    """
    path = require_file(path)
    frame.check(path)
    with understood(path, "{path} is no readable simulation file: {why}."):
        handle = Handle(path)
        attributes = {key: _plain(value) for key, value in handle.open().attrs.items()}
        _check_attributes(path, attributes)
        frame.require_whole(path, handle.open())
        columns = _columns(handle, attributes)
        header = Header.restore(attributes)
        _check_shapes(path, header, columns)
    return header, columns


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _check_attributes(path: Path, attributes: Mapping[str, Any]) -> None:
    found, number = attributes.get("format"), attributes.get("format_version", 0)
    if found != FORMAT:
        raise FileError(
            f"{path} is HDF5 but no simulation file of sbi_dgm (its format is {found!r}, not {FORMAT!r}): say where "
            "theta and x are (theta=..., x=...; --theta, --x). `sbi-dgm inspect` shows what it holds."
        )
    if number > VERSION:
        raise FileError(f"{path} has format version {number}; this sbi_dgm reads up to {VERSION}: update it.")
    if not attributes.get("complete", False):
        raise FileError(f"{path} was never completed: run the command that made it again.")
    if attributes.get("sha256") != _hash(attributes):
        raise FileError(f"{path}: its attributes were changed after it was written (sha256 differs).")


def _columns(handle: Handle, attributes: Mapping[str, Any]) -> dict[str, Column]:
    file: Any = handle.open()
    names = ["theta", "valid", *(f"x/{name}" for name in file["x"]), *(name for name in OPTIONAL if name in file)]
    described, table = json.loads(attributes["datasets"]), file[TABLE][:]
    if sealed(table) != attributes[TABLE]:
        raise FileError(f"{handle.path}: its table of checksums, {TABLE!r}, is damaged: restore the file from a copy.")
    for name in sorted(described.keys() ^ names):
        raise FileError(f"{handle.path}: dataset {name!r} was {'taken away' if name in described else 'added'} later.")
    return {name: _summed(handle, name, described[name], sums) for name, sums in shared(described, table)}


def _summed(handle: Handle, name: str, described: Mapping[str, Any], sums: np.ndarray) -> Summed:
    """The column of a dataset, where its shape and the type of its numbers are those that were written."""
    column, dtype = Summed(handle, name, described["block"], sums), plain_dtype(np.dtype(described["dtype"]))
    expected = {"shape": tuple(described["shape"]), "dtype": dtype}
    for what, wanted in expected.items():
        if (found := getattr(column, what)) != wanted:
            raise FileError(f"{handle.path}: dataset {name!r} has {what} {found}, expected {wanted}.")
    return column


def _check_shapes(path: Path, header: Header, columns: Mapping[str, Column]) -> None:
    expected = {"theta": (len(header.parameters),)} | {f"x/{n}": o.shape for n, o in header.observables.items()}
    rows = columns["theta"].shape[0]
    for name in {**expected, **columns}:
        if name not in columns:
            raise FileError(f"{path}: dataset {name!r} is missing.")
        shape = (rows, *expected.get(name, ()))
        if columns[name].shape != shape:
            raise FileError(f"{path}: dataset {name!r} has shape {columns[name].shape}, expected {shape}.")


def cast(name: str, values: np.ndarray) -> np.ndarray:
    """A column about the rows (N,) in its dtype, where every row survives that."""
    with np.errstate(invalid="ignore"):
        found = values.astype(DTYPES[name])
    bad = (found != values) | ~np.isfinite(found)
    wanted = f"a finite {found.dtype}"
    if name == "split":
        bad, wanted = bad | (found > 2), "0 (train), 1 (validation) or 2 (test)"
    if name == "proposal_weight":
        bad, wanted = bad | (found <= 0), "positive, as a ratio of densities"
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(f"{name} row {row} is {values[row]}: it must be {wanted}.")
    return found
