"""Foreign layouts: simulations in HDF5 files that others wrote, read where they lie, as `Simulations` reads its own.

A `Layout` names the places. Files of one glob stand behind each other, sorted by name, numbers as numbers. Where x has
m times as many rows as theta, each theta is a universe with m realisations: row i belongs to universe i // m, which
becomes its group. A row of x with a number that is not finite counts as failed.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import Field, field_validator

from sbi_dgm import priors
from sbi_dgm.coordinates import snap
from sbi_dgm.data.columns import Column, Finite, Handle, Padded, Repeated, chunk_rows, joined
from sbi_dgm.data.native import Header, cast
from sbi_dgm.data.places import Seen, is_place, leaves, merged, observables, padded, stored, table, vector
from sbi_dgm.data.tables import SUFFIXES, Table, beside
from sbi_dgm.errors import DataError, FileError, OptionError, PriorError, first_line
from sbi_dgm.files import matching
from sbi_dgm.options import Options
from sbi_dgm.parameters import Observable, Parameter
from sbi_dgm.priors import Prior

WEIGHTS = ("proposal", "event")
UNREADABLE = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, EOFError, NotImplementedError)


class Layout(Options):
    """Where a foreign file keeps what.

    Attributes:
        theta: places of the parameters: datasets (N,) or (N, D), fields of a compound one, a group of columns; or a
            table in a file beside (.txt, .csv, .dat, .tsv, .npy), or columns of it. Text by commas, or a list; in the
            file also `name=place`.
        x: places of the observables, by name; text by commas, `name=place` or `place`; a word with "=" is a place
            where the file has one so called, else split at the first "=". A group with `values` and `offsets` holds
            sets of varying size, complex numbers become pairs of real ones.
        weight: {"event": place} for weights of Monte Carlo events, {"proposal": place} for p(theta) / p~(theta).
        group: place of integers or names whose equal rows stay in one split.
        prior: what the parameters were opened with, as JSON, so that they come in the same order again.

    >>> Layout(theta="a,b", x="maps/kappa").x
    {'kappa': 'maps/kappa'}

    """

    theta: tuple[str, ...]
    x: dict[str, str]
    weight: dict[str, str] = Field(default_factory=dict)
    group: str | None = None
    prior: dict[str, Any] | None = None

    @field_validator("theta", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return tuple(_words(value)) or _nothing("theta")

    @field_validator("x", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return value or _nothing("x")
        words = _words(value)
        named = {word if "=" in word else _last(word): word for word in words}
        if len(named) < len(words):
            raise OptionError(f"x = {value!r}: two places end alike; name them, such as a=first/x,b=second/x.")
        return named or _nothing("x")

    @field_validator("weight", mode="before")
    @classmethod
    def _kinds(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or not set(value) <= set(WEIGHTS):
            raise OptionError(
                f"weight = {value!r}: say which kind, {{'event': place}} for weights of Monte Carlo events or "
                "{'proposal': place} for p(theta) / p~(theta) (--event-weight, --proposal-weight)."
            )
        return value


def _words(value: Any) -> list[str]:
    words = value.split(",") if isinstance(value, str) else value
    if not isinstance(words, Sequence) or not all(isinstance(word, str) for word in words):
        raise OptionError(f"{value!r} is no place in a file: give text, by commas, or a list of it.")
    return [word.strip() for word in words if word.strip()]


def _last(place: str) -> str:
    return place.strip("/").rpartition("/")[2]


def _title_and_place(handle: Handle, title: str, place: str) -> tuple[str, str]:
    """Resolve a word with "=", kept as both title and place: a place if it is one, else `name=place`."""
    if title != place or "=" not in place:
        return title, place
    if is_place(handle, place):
        return _last(place), place
    name, _, rest = place.partition("=")
    return name or _last(rest), rest


def _nothing(name: str) -> Any:
    raise OptionError(f"{name} names no place in the file.")


def read(
    pattern: str | Path, layout: Layout, prior: Prior | None = None
) -> tuple[Header, dict[str, Column], Prior | None]:
    """Open foreign files: header, columns, which stay on the disk, and the prior, also where the files tell it.

    Raises:
        FileError: missing or no readable HDF5.
        DataError: a place that is not there, holds no numbers, or does not fit the others.
        PriorError: a prior of other parameters.

    """
    files = matching(pattern)
    try:
        parts = [_part(Handle(path), layout) for path in files]
        theta = _theta(parts, layout)
        seen = _observables(parts)
        prior = prior or _told(parts[0].handle, layout)
        extra = {name: np.concatenate([part.extra[name] for part in parts]) for name in parts[0].extra}
    except UNREADABLE as error:
        raise FileError(f"{pattern} cannot be read: {first_line(error)}.") from None
    rows = sum(part.rows for part in parts)
    universes = theta.column.shape[0]
    times = _times(pattern, universes, rows)
    theta = named(theta, prior)
    column = theta.column if times == 1 else Repeated(theta.column, times)
    columns: dict[str, Column] = {"theta": column} | {f"x/{name}": s.column for name, s in seen.items()}
    columns |= {"valid": Finite({name: s.column for name, s in seen.items()})}
    columns |= {"group": np.arange(rows) // times} if times > 1 else {}
    columns |= {name: _numbers(name, _each(pattern, name, a, universes, times)) for name, a in extra.items()}
    parameters = prior.parameters if prior else tuple(Parameter(name) for name in theta.names)
    described = prior.describe() if prior else None
    return Header(parameters, {name: s.observable for name, s in seen.items()}, described), columns, prior


def observed(path: str | Path, layout: Layout) -> dict[str, Column]:
    """The observables of a foreign file, by name; its parameters may be unknown."""
    return {name: s.column for name, s in _observables([_part(Handle(Path(path)), layout, bare=True)]).items()}


class Part(NamedTuple):
    """What one file holds: its theta (None where that lies in a table beside), observables, weights and groups."""

    handle: Handle
    theta: Table | None
    seen: Mapping[str, Seen]
    extra: Mapping[str, np.ndarray]

    @property
    def rows(self) -> int:
        """Of the observables."""
        return next(iter(self.seen.values())).column.shape[0]


def _part(handle: Handle, layout: Layout, *, bare: bool = False) -> Part:
    pairs = [_title_and_place(handle, *pair) for pair in layout.x.items()]
    seen = merged(handle, (observables(handle, *pair) for pair in pairs))
    _require_pairs(handle, seen)
    if bare:
        return Part(handle, None, seen, {})
    theta = None if _outside(layout) else _parameters(handle, layout)
    part = Part(handle, theta, seen, _extra(handle, layout))
    if theta is not None:
        universes = theta.column.shape[0]
        times = _times(handle.path, universes, part.rows)
        extra = {name: _each(handle.path, name, values, universes, times) for name, values in part.extra.items()}
        return part._replace(extra=extra)
    return part


def _parameters(handle: Handle, layout: Layout) -> Table:
    """The numbers at theta's places, under the names that are given to some of them."""
    pairs = [_title_and_place(handle, word, word) for word in layout.theta]
    places = [place for _, place in pairs]
    _require_apart(handle, places, [_title_and_place(handle, *pair)[1] for pair in layout.x.items()])
    found = table(handle, places)
    titles = {i: title for i, (title, place) in enumerate(pairs) if title != place}
    if not titles:
        return found
    if len(found.names) != len(places):
        raise OptionError(f"theta = {', '.join(layout.theta)}: name single columns, each with its own place.")
    return Table(tuple(titles.get(i, name) for i, name in enumerate(found.names)), found.column)


def _require_apart(handle: Handle, *places: Iterable[str]) -> None:
    """`DataError` where a parameter stands among the observables, from which it would be read off."""
    theta, x = (set().union(*(leaves(handle, place) for place in of)) for of in places)
    if theta & x:
        rest = ",".join(sorted(x - theta)) or "..."
        raise DataError(f"{handle.path}: {min(theta & x)!r} is theta and among x: name what else x is (--x {rest}).")


def _outside(layout: Layout) -> tuple[str, list[str]] | None:
    """The table beside that holds theta, and the columns of it that are meant (none: all); None where it is inside."""
    split = [_table_and_column(place) for place in layout.theta]
    tables, columns = {name for name, _ in split}, [column for _, column in split if column]
    if tables == {""}:
        return None
    if len(tables) > 1 or len(columns) not in (0, len(split)) or (len(split) > 1 and not columns):
        raise OptionError(
            f"theta = {', '.join(layout.theta)}: give one table beside the file, columns of it (params.txt/omega_m), "
            "or places within the file."
        )
    return tables.pop(), columns


def _table_and_column(place: str) -> tuple[str, str]:
    """Name of a table beside and of its column; both may be empty."""
    if Path(place).suffix in SUFFIXES:
        return place, ""
    parent, _, column = place.rpartition("/")
    return (parent, column) if Path(parent).suffix in SUFFIXES else ("", "")


def _theta(parts: Sequence[Part], layout: Layout) -> Table:
    outside, first = _outside(layout), parts[0]
    if outside is not None:
        name, columns = outside
        return beside(name, first.handle.path.parent, columns)
    tables = [part.theta for part in parts if part.theta is not None]
    for part, other in zip(parts, tables, strict=True):
        if (other.names, other.column.shape[1:]) != (tables[0].names, tables[0].column.shape[1:]):
            raise DataError(
                f"{part.handle.path} has theta {list(other.names)} {other.column.shape}, but {first.handle.path} has "
                f"{list(tables[0].names)} {tables[0].column.shape}: files of one glob must agree."
            )
        universes = tables[0].column.shape[0]
        if part.rows * universes != first.rows * other.column.shape[0]:
            raise DataError(
                f"{part.handle.path} has {part.rows} of x for {other.column.shape[0]} of theta, but "
                f"{first.handle.path} {first.rows} for {universes}: each theta needs equally many in all files."
            )
    return Table(tables[0].names, joined([t.column for t in tables]))


def _observables(parts: Sequence[Part]) -> dict[str, Seen]:
    handles = [part.handle for part in parts]
    for part in parts:
        for name in part.seen.keys() ^ parts[0].seen.keys():
            raise DataError(f"of {part.handle.path} and {handles[0].path} only one has an observable {name!r}.")
    return {name: _alike(name, handles, [part.seen[name] for part in parts]) for name in parts[0].seen}


def _alike(name: str, handles: Sequence[Handle], parts: Sequence[Seen]) -> Seen:
    """One observable behind each other from all files; sets are padded to the largest of any file."""
    wanted = parts[0].observable
    for handle, part in zip(handles, parts, strict=True):
        found = part.observable
        if not _fits(wanted, found):
            raise DataError(
                f"{handle.path}: observable {name!r} is {found.kind} {found.shape} {list(found.names)}, but in "
                f"{handles[0].path} {wanted.kind} {wanted.shape} {list(wanted.names)}: files of one glob must agree."
            )
    sets = [part.column for part in parts if isinstance(part.column, Padded)]
    if not sets:
        return Seen(wanted, joined([part.column for part in parts]))
    members = max(column.shape[1] for column in sets)
    grown = [Padded(column.values, column.offsets, members) for column in sets]
    return padded(wanted.names[:-1], grown[0])._replace(column=joined(grown))


def _fits(one: Observable, other: Observable) -> bool:
    free = int(one.kind == "set")
    return (one.kind, one.names, one.shape[free:]) == (other.kind, other.names, other.shape[free:])


def _extra(handle: Handle, layout: Layout) -> dict[str, np.ndarray]:
    found = {f"{kind}_weight": vector(handle, place, f"{kind}_weight") for kind, place in layout.weight.items()}
    return found if layout.group is None else found | {"group": _labels(handle, layout.group)}


def _each(pattern: str | Path, name: str, values: np.ndarray, universes: int, times: int) -> np.ndarray:
    """One value for each row of x; those of a universe count for all its rows."""
    if len(values) not in (universes, universes * times):
        raise DataError(f"{pattern}: {name} has {len(values)} rows and x {universes * times}: they must pair up.")
    return values if len(values) == universes * times else np.repeat(values, times)


def _numbers(name: str, values: np.ndarray) -> np.ndarray:
    return np.unique(values, return_inverse=True)[1].astype(np.int64) if name == "group" else cast(name, values)


def _labels(handle: Handle, place: str) -> np.ndarray:
    labels = np.asarray(stored(handle, place)[:])
    if labels.ndim != 1 or labels.dtype.kind not in "iubSO":
        raise DataError(f"{handle.path}: group {place!r} has {labels.dtype} {labels.shape}: give one label a row.")
    return labels.astype(bytes) if labels.dtype.kind == "O" else labels


def _told(handle: Handle, layout: Layout) -> Prior | None:
    """The prior as JSON in an attribute `prior` of the file or of theta's place, if there is one."""
    file = handle.open()
    owners = [file, *(file[place] for place in layout.theta if place in file)]
    text = next((owner.attrs["prior"] for owner in owners if "prior" in owner.attrs), None)
    try:
        content = json.loads(text) if isinstance(text, str | bytes) else None
    except json.JSONDecodeError:
        return None
    if not isinstance(content, Mapping):
        return None
    return priors.known(content)


class Theta:
    """Parameters in float64, in the prior's order; narrower floats that round across its edges lie on them."""

    def __init__(self, column: Column, entries: Sequence[int], prior: Prior | None) -> None:
        self.column, self.entries, self.prior = column, list(entries), prior
        self.shape, self.dtype, self.chunk = column.shape, np.dtype(np.float64), chunk_rows(column)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return widen(self.column[rows][:, self.entries], self.prior)


def widen(theta: np.ndarray, prior: Prior | None) -> np.ndarray:
    """Theta in float64; narrower floats that round across an edge of the prior are put onto it."""
    narrow = theta.dtype.kind == "f" and theta.dtype.itemsize < 8
    wide = theta.astype(np.float64, copy=False)
    return snap(wide, prior.coordinates, theta.dtype) if narrow and prior is not None else wide


def named(theta: Table, prior: Prior | None) -> Table:
    """Theta with names: the file's, in the order of the prior; or the prior's; or made up."""
    number = theta.column.shape[1]
    found = theta.names or (tuple(f"theta_{i}" for i in range(number)) if prior is None else prior.names)
    names = found if prior is None else prior.names
    if len(set(found)) < len(found):
        raise DataError(
            f"theta has columns {list(found)}: each name may stand only once; name them, such as a=first/x,b=second/x."
        )
    if set(found) != set(names) or number != len(names):
        raise PriorError(f"the prior is of {list(names)}, but theta has {list(theta.names) or number} columns.")
    return Table(names, Theta(theta.column, [found.index(name) for name in names], prior))


def _require_pairs(handle: Handle, seen: Mapping[str, Seen]) -> None:
    (first, one), *others = seen.items()
    for name, other in others:
        if other.column.shape[0] != one.column.shape[0]:
            raise DataError(
                f"{handle.path}: {first!r} has {one.column.shape[0]} rows and {name!r} {other.column.shape[0]}: "
                "observables of one simulation must pair up."
            )


def _times(pattern: str | Path, universes: int, rows: int) -> int:
    """How many of x belong to each of theta."""
    if not universes or not rows or rows % universes:
        raise DataError(
            f"{pattern}: theta has {universes} rows and x {rows}: give one of theta for each of x, or for m of x."
        )
    return rows // universes
