"""Places of a foreign HDF5 file, and what stands there: datasets, fields of tables, groups of columns, sets, names.

A place is a path within the file, such as `maps/kappa`; behind a compound dataset comes the field,
`parameters/omega_m`.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import h5py
import numpy as np
from h5py import h5o  # type: ignore[attr-defined]

from sbi_dgm.data.columns import Beside, Column, Handle, Padded, RealImaginary, Stored
from sbi_dgm.data.tables import Table
from sbi_dgm.errors import DataError, unknown
from sbi_dgm.parameters import Observable

NAMES = (
    "names",
    "columns",
    "parameter_names",
    "param_names",
    "theta_names",
    "parameters",
    "params",
    "labels",
)  # attributes and neighbours that may name a table's columns
INDEX = "index"  # field that pandas puts in front of a table


class Seen(NamedTuple):
    """One observable and its rows."""

    observable: Observable
    column: Column


def walk(group: Any, above: str = "", known: frozenset[Any] = frozenset()) -> Iterator[tuple[str, Any]]:
    """Every dataset and group by path, behind links too; None where a link leads nowhere."""
    for name in group:
        place, item = f"{above}{name}", group.get(name)
        yield place, item
        if isinstance(item, h5py.Group) and (here := _identity(item)) not in known:
            yield from walk(item, f"{place}/", known | {here})


def _identity(item: h5py.Group) -> tuple[str, int]:
    return item.file.filename, h5o.get_info(item.id).addr


def datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    """All datasets of a file, by path."""
    return {place: item for place, item in walk(file) if isinstance(item, h5py.Dataset)}


def children(handle: Handle, place: str, group: Any) -> dict[str, Any]:
    """What a group holds, by name."""
    return {name: _there(handle, f"{place}/{name}") for name in group}


def _there(handle: Handle, place: str) -> Any:
    file = handle.open()
    item = file.get(place)
    if item is None:
        raise DataError(f"{handle.path}: {place!r} is a link to {target(file, place)}, which is not there.")
    return item


def target(file: h5py.Group, place: str) -> str:
    """Where a link leads, or "" for what lies in the file itself."""
    link: Any = file.get(place, getlink=True)
    return " ".join(str(getattr(link, part)) for part in ("filename", "path") if hasattr(link, part))


def table(handle: Handle, places: Iterable[str], role: str = "theta") -> Table:
    """The numbers at some places, side by side."""
    parts = {place.strip("/"): _table(handle, place.strip("/"), role) for place in places}
    names = tuple(name for part in parts.values() for name in part.names)
    columns = {place: part.column for place, part in parts.items()}
    column = next(iter(columns.values())) if len(parts) == 1 else _beside(handle, columns)
    return Table(names if len(names) == column.shape[1] else (), column)


def _beside(handle: Handle, columns: Mapping[str, Column]) -> Beside:
    (first, one), *others = columns.items()
    for place, other in others:
        if other.shape[0] != one.shape[0]:
            raise DataError(
                f"{handle.path}: {first!r} has {one.shape[0]} rows and {place!r} {other.shape[0]}: columns of one "
                "table must pair up."
            )
    return Beside(list(columns.values()))


def _table(handle: Handle, place: str, role: str) -> Table:
    item, field = _find(handle, place)
    if isinstance(item, h5py.Group):
        columns = {n: _real(handle, f"{place}/{n}") for n, c in children(handle, place, item).items() if _is_column(c)}
        if not columns:
            raise DataError(f"{handle.path}: group {place!r} holds no 1-D columns of numbers.")
        return Table(tuple(columns), _beside(handle, {f"{place}/{name}": c for name, c in columns.items()}))
    if field is None and item.dtype.names:
        fields = _fields(item.dtype)
        _require_no_text(handle, place, role, {name: item.dtype[name] for name in fields})
        column = Beside([_real(handle, place, name) for name in fields])
        return Table(fields if len(fields) == column.shape[1] else (), column)
    home = place if field is None else place.rpartition("/")[0]
    column = _real(handle, home, field)
    if len(column.shape) == 1:
        return Table((place.rpartition("/")[2],), Beside([column]))
    if len(column.shape) != 2:
        raise DataError(f"{handle.path}: {place!r} has shape {column.shape}: {role} needs rows of numbers, (N, D).")
    return Table(_names(handle, home, column.shape[1], role) if field is None else (), column)


def leaves(handle: Handle, place: str) -> set[str]:
    """All datasets and fields that a place means, each by its own place."""
    place = place.strip("/")
    item, field = _find(handle, place)
    if isinstance(item, h5py.Group):
        return set().union(*(leaves(handle, f"{place}/{name}") for name in item if item.get(name) is not None))
    return {place} if field or not item.dtype.names else {f"{place}/{name}" for name in _fields(item.dtype)}


def observables(handle: Handle, name: str, place: str) -> dict[str, Seen]:
    """The observables at a place: one called `name`, or those of a group or table under their own names."""
    place = place.strip("/")
    item, field = _find(handle, place)
    if isinstance(item, h5py.Group):
        return _group(handle, name, place, item)
    if field is None and item.dtype.names:
        fields = _fields(item.dtype)
        if all(_number(item.dtype[f]) for f in fields):
            return {
                name: Seen(Observable((len(fields),), names=fields), Beside([_real(handle, place, f) for f in fields]))
            }
        _require_no_text(handle, place, "x", {f: item.dtype[f] for f in fields})
        return {f: _seen(handle, place, f) for f in fields}
    return {name: _seen(handle, place if field is None else place.rpartition("/")[0], field)}


def _group(handle: Handle, name: str, place: str, group: Any) -> dict[str, Seen]:
    if {"values", "offsets"} <= set(group):
        return {name: _set(handle, place)}
    inside = children(handle, place, group)
    _require_no_text(handle, place, "x", {name: getattr(child, "dtype", None) for name, child in inside.items()})
    if all(_is_column(child) for child in inside.values()):
        names, column = _table(handle, place, "x")
        return {name: Seen(Observable((len(names),), names=names), column)}
    return merged(handle, (observables(handle, child, f"{place}/{child}") for child in group))


def merged(handle: Handle, parts: Iterable[Mapping[str, Seen]]) -> dict[str, Seen]:
    """Observables of several places, each name once."""
    found: dict[str, Seen] = {}
    for part in parts:
        for name in found.keys() & part.keys():
            raise DataError(f"{handle.path}: two observables are called {name!r}: give their datasets, name=place.")
        found |= part
    return found


def _seen(handle: Handle, place: str, field: str | None) -> Seen:
    column: Column = Stored(handle, place, field)
    if column.dtype.kind == "c":
        column = RealImaginary(column)
    _require_numbers(handle, place if field is None else f"{place}/{field}", column)
    shape = column.shape[1:]
    return Seen(Observable(shape, names=_names(handle, place, shape[0], "x") if len(shape) == 1 else ()), column)


def _set(handle: Handle, place: str) -> Seen:
    features, values = table(handle, [f"{place}/values"], "x")
    offsets = stored(handle, f"{place}/offsets")[:]
    total = values.shape[0]
    if not total:
        raise DataError(f"{handle.path}: {place}/values is empty: there is nothing in any of the sets.")
    if offsets.ndim != 1 or offsets.dtype.kind not in "iu" or not len(offsets) or offsets[0] != 0:
        raise DataError(f"{handle.path}: {place}/offsets must be integers (N + 1,) from 0 to {total}, ascending.")
    offsets = offsets.astype(np.int64)
    if offsets[-1] != total:
        offsets = np.append(offsets, total)
    backwards = np.flatnonzero((np.diff(offsets) < 0) | (offsets[1:] > total))
    if len(backwards):
        row = int(backwards[0])
        raise DataError(
            f"{handle.path}: {place}/offsets row {row} ends at {offsets[row + 1]}: they must ascend from 0 to {total}."
        )
    return padded(features, Padded(values, offsets, int(np.diff(offsets).max())))


def padded(features: tuple[str, ...], column: Padded) -> Seen:
    """A set as an observable."""
    names = (*(features or (f"feature_{i}" for i in range(column.features))), "present")
    return Seen(Observable(column.shape[1:], names=names, kind="set"), column)


def vector(handle: Handle, place: str, role: str) -> np.ndarray:
    """The numbers (N,) at a place."""
    column = table(handle, [place], role).column
    if column.shape[1] != 1:
        raise DataError(f"{handle.path}: {place!r} has {column.shape[1]} numbers a row: {role} needs one.")
    return column[:][:, 0]


def stored(handle: Handle, place: str) -> Stored:
    """The dataset or field at a place, whatever it holds."""
    item, field = _find(handle, place.strip("/"))
    if isinstance(item, h5py.Group):
        raise DataError(f"{handle.path}: {place!r} is a group: name one of its datasets.")
    return Stored(handle, place.strip("/") if field is None else place.strip("/").rpartition("/")[0], field)


def _find(handle: Handle, place: str) -> "tuple[Any, str | None]":
    """The dataset or group at a place, and the field of the dataset, if one is meant."""
    file: Any = handle.open()
    if place in file:
        return _there(handle, place), None
    parent, _, field = place.rpartition("/")
    if isinstance(file.get(parent or "/"), h5py.Dataset):
        known = file[parent].dtype.names or ()
        if field in known:
            return file[parent], field
        raise DataError(f"{handle.path}, dataset {parent!r}: {unknown('field', field, known)}")
    found = datasets(file)
    fields = [f"{name}/{field}" for name, item in found.items() for field in item.dtype.names or ()]
    raise DataError(f"{handle.path}: {unknown('dataset', place, [*found, *fields])}")


def is_place(handle: Handle, place: str) -> bool:
    """Whether a dataset, a group or a field of a dataset is so called; a link counts wherever it leads."""
    file: Any = handle.open()
    parent, _, field = place.strip("/").rpartition("/")
    item = file.get(parent or "/")
    return place in file or (isinstance(item, h5py.Dataset) and field in (item.dtype.names or ()))


def _real(handle: Handle, place: str, field: str | None = None) -> Stored:
    column = Stored(handle, place, field)
    _require_numbers(handle, place if field is None else f"{place}/{field}", column)
    return column


def _require_numbers(handle: Handle, place: str, column: Column) -> None:
    if column.dtype.kind not in "fiub" or not column.shape:
        raise DataError(
            f"{handle.path}: {place!r} holds {column.dtype} {column.shape}: rows of real numbers are needed."
        )


def _require_no_text(handle: Handle, place: str, role: str, kinds: Mapping[str, np.dtype | None]) -> None:
    """Where text stands among numbers, say how to leave it out; groups have no dtype."""
    text = [name for name, dtype in kinds.items() if dtype is not None and dtype.base.kind in "SUO"]
    wanted = ",".join(f"{place}/{name}" for name in kinds if name not in text)
    if text and wanted:
        raise DataError(
            f"{handle.path}: {f'{place}/{text[0]}'!r} holds {kinds[text[0]]}: rows of real numbers are needed; list "
            f"the fields wanted (--{role} {wanted})."
        )


def _fields(dtype: np.dtype) -> tuple[str, ...]:
    names = dtype.names or ()
    return tuple(name for name in names if name != INDEX or len(names) == 1)


def _number(dtype: np.dtype) -> bool:
    return dtype.kind in "fiub" and dtype.subdtype is None


def _is_column(item: Any) -> bool:
    return isinstance(item, h5py.Dataset) and item.ndim == 1 and item.dtype.kind in "fiub"


def _names(handle: Handle, place: str, number: int, role: str) -> tuple[str, ...]:
    """Names of the columns of a table, from its attributes or a dataset of names beside it."""
    parent = place.rpartition("/")[0]
    file: Any = handle.open()
    kinds = ("parameters", "params", "param", "theta") if role == "theta" else ("observables", "features", "x")
    owners = [file[place], file[parent] if parent else file]
    beside = [f"{place}_names", f"{parent}/names", *(f"{kind}{gap}names" for kind in kinds for gap in "/_")]
    candidates = [owner.attrs[key] for owner in owners for key in NAMES if key in owner.attrs]
    candidates += [file[name][()] for name in beside if isinstance(file.get(name), h5py.Dataset)]
    for candidate in candidates:
        names = _decoded(candidate)
        if len(names) == number and len(set(names)) == number:
            return names
    return ()


def _decoded(value: Any) -> tuple[str, ...]:
    """Names from an array of text or bytes, from JSON, or from words between commas or blanks."""
    if isinstance(value, str | bytes):
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        try:
            words = json.loads(text)
        except json.JSONDecodeError:
            words = text.replace(",", " ").split()
    else:
        words = np.ravel(value).tolist()
    if not isinstance(words, list):
        return ()
    texts = [word.decode("utf-8", "replace") if isinstance(word, bytes) else word for word in words]
    return tuple(text.strip() for text in texts) if all(isinstance(text, str) for text in texts) else ()
