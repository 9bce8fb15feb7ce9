"""A guess at where theta and x are in a foreign HDF5 file, and beside it.

Names that the field uses decide; without them, theta is the only narrow table and x the widest dataset of as many rows.
Where two guesses are equally good there is none.
"""

import math
import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from sbi_dgm.data.foreign import Layout
from sbi_dgm.data.places import INDEX, walk
from sbi_dgm.data.tables import SUFFIXES, neighbours


def _all(words: str) -> frozenset[str]:
    return frozenset(words.split())


THETA = _all("theta thetas parameters params parameter param labels y cosmology cosmologies cosmo")
X = _all(
    "x data observables observable observations observation obs maps map images image spectra spectrum pk cl cls "
    "signal signals strain samples events sims"
)
SINGLE = _all("omega sigma sigma8 h0 hubble")  # a parameter alone: no x, and not the whole of theta
ROWS = _all("seed seeds id ids index indices idx")  # number rows
NEITHER = ROWS | _all("cov covariance weight weights count counts offset offsets")
TRAIN, TEST = {"train", "training"}, {"test", "testing", "val", "valid", "validation"}
MANY = 10**5  # pairs: none of so many stands out
EVENT_WEIGHTS = ("weights", "weight", "event_weight", "event_weights", "mc_weight")
GROUPS = ("group", "groups", "universe", "simulation_id", "sim_id")


class Place(NamedTuple):
    """Rows of numbers, numbers a row, the names of the columns that are meant, and whether it is a file beside."""

    rows: int
    width: int
    columns: tuple[str, ...] = ()
    outside: bool = False


def guess(path: Path, file: h5py.File, files: int = 1) -> Layout | None:
    """The likeliest layout, or None where none is better than all others; theta may lie beside the file.

    Args:
        files: how many files like this one stand behind each other; a table beside is for all of them.

    """
    rows = _candidates(file)
    xs = {name: place for name, place in rows.items() if _may_be(name, "x")}
    thetas = {name: place for name, place in (rows | _tables(path)).items() if _may_be(name, "theta")}
    if len(xs) * len(thetas) > MANY:
        return None
    scores: dict[tuple[str, str], tuple[int, ...]] = {}
    for t, theta in thetas.items():
        for x, seen in xs.items():
            if score := _score((t, theta), (x, seen), files):
                pair = t, _family(x, xs, file)
                scores[pair] = max(score, scores.get(pair, score))
    top = max(scores.values(), default=())
    best = [pair for pair, score in scores.items() if score == top]
    return _layout(*best[0], thetas[best[0][0]], rows, xs) if len(best) == 1 else None


def _layout(theta: str, x: str, place: Place, rows: dict[str, Place], xs: dict[str, Place]) -> Layout:
    """The layout of a pair, with weights and groups that pair up, those beside x first."""
    counts = {place.rows, next(p.rows for name, p in xs.items() if name == x or name.startswith(f"{x}/"))}
    near = x.rpartition("/")[0]
    extra = sorted((n for n, p in rows.items() if p.width == 1 and p.rows in counts), key=lambda n: not _in(n, near))
    weight, group = _named(extra, EVENT_WEIGHTS), _named(extra, GROUPS)
    places = tuple(f"{theta}/{column}" for column in place.columns) or (theta,)
    return Layout(theta=places, x=x, weight={} if weight is None else {"event": weight}, group=group)  # type: ignore[arg-type]


def _score(theta: tuple[str, Place], x: tuple[str, Place], files: int) -> tuple[int, ...]:
    """How well two places go together, the first number first; empty where they cannot."""
    (t, one), (s, other) = theta, x
    rows = other.rows * (files if one.outside else 1)
    known, seen = _rank(t), _rank(s)
    apart = t != s and not _in(t, s) and not _in(s, t)
    convincing = (known or 1 < one.width <= 30) and (seen or other.width > 1)
    if not apart or rows % one.rows or not convincing or not (known or seen or other.width >= 2 * one.width):
        return ()
    words = _words(t) + _words(s)
    trains = sum(word in TRAIN for word in words) - sum(word in TEST for word in words)
    same = int(rows == one.rows)
    return int(known > 0), int(seen > 0), trains, same, int(not one.outside), known, seen, 0 if seen else other.width


def _in(place: str, group: str) -> bool:
    return place.startswith(f"{group}/")


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[\W_]+", name.lower()) if word]


def _last(place: str) -> str:
    """The name without its groups and the ending of a table beside."""
    last = place.rpartition("/")[2]
    return Path(last).stem if Path(last).suffix in SUFFIXES else last


def _role(place: str) -> str:
    """What a name says of a place, its last telling word first: theta, x, neither, or nothing ("")."""
    roles = {"theta": THETA | SINGLE, "x": X, "neither": NEITHER}
    return next((role for w in reversed(_words(_last(place))) for role, known in roles.items() if w in known), "")


def _may_be(place: str, role: str) -> bool:
    return _role(place) in ("", role)


def _rank(place: str) -> int:
    """2 for a name that the field uses, 1 where it is a word of the name, 0 for others."""
    known = THETA | X
    return 2 if _last(place).lower() in known else int(any(word in known for word in _words(_last(place))))


def _tables(path: Path) -> dict[str, Place]:
    """Tables beside that may be theta, without columns that number the rows; such a column needs a name."""
    found = {}
    for name, table in neighbours(path).items():
        values = np.asarray(table.column[:])
        names = table.names or ("",) * values.shape[1]
        kept = [i for i, title in enumerate(names) if not _numbers_rows(title, values[:, i])]
        if len(values) > 1 and kept and (len(kept) == values.shape[1] or table.names):
            chosen = () if len(kept) == values.shape[1] else tuple(table.names[i] for i in kept)
            found[name] = Place(len(values), len(kept), chosen, outside=True)
    return found


def _numbers_rows(name: str, values: np.ndarray) -> bool:
    """Whether a column is of seeds or row numbers, by its name or as integers of constant stride."""
    steps = np.unique(np.diff(values))
    return bool(ROWS & set(_words(name))) or (len(values) > 2 and len(steps) == 1 and not np.any(values % 1))


def _family(place: str, rest: dict[str, Place], file: h5py.File) -> str:
    """The group of a place where all its other datasets are as good."""
    parent = place.rpartition("/")[0]
    item = file.get(parent) if parent else None
    siblings = [f"{parent}/{name}" for name in item] if isinstance(item, h5py.Group) else []
    alike = len(siblings) > 1 and all(rest.get(s) == rest[place] for s in siblings)
    return parent if alike and not any(_rank(s) for s in siblings) else place


def _candidates(file: h5py.File) -> dict[str, Place]:
    """Places of numbers; a group counts as the table of its columns, or as a set, in their stead."""
    found: dict[str, Place] = {}
    whole: set[str] = set()
    for name, item in walk(file):
        if isinstance(item, h5py.Dataset) and item.ndim and item.shape[0] > 1 and item.dtype.kind in "fiubcV":
            fields = [f for f in item.dtype.names or () if f != INDEX]
            square = item.ndim == 2 and item.shape[0] == item.shape[1]
            if not square or _rank(name):
                found[name] = Place(item.shape[0], max(1, len(fields)) * math.prod(item.shape[1:]))
        elif isinstance(item, h5py.Group) and len(item):
            children: list[Any] = [item.get(child) for child in item]
            if all(getattr(item.get(part), "ndim", 0) for part in ("values", "offsets")):
                found[name] = Place(_sets(item), 10**6)
                whole.add(name)
            elif _is_table(name, list(item), children):
                found[name] = Place(children[0].shape[0], len(children))
                whole.add(name)
    return {name: place for name, place in found.items() if name.rpartition("/")[0] not in whole}


def _is_table(name: str, names: list[str], children: list[Any]) -> bool:
    """Whether a group is one table of columns: of equal length, and none of them theta, x or neither by itself."""
    columns = all(isinstance(c, h5py.Dataset) and c.ndim == 1 and c.dtype.kind in "fiub" for c in children)
    role = _role(name)
    fits = all(_role(n) in ("", role) or (not role and _role(n) == "theta" and not _rank(n)) for n in names)
    return columns and fits and len({c.shape for c in children}) == 1 and children[0].shape[0] > 1


def _sets(group: Any) -> int:
    """How many sets a group of `values` and `offsets` holds."""
    values, offsets = group["values"], group["offsets"]
    return max(1, offsets.size - int(offsets.size > 0 and offsets[-1] == len(values)))


def _named(places: list[str], names: tuple[str, ...]) -> str | None:
    """The first place whose last word is the first of the names that any has."""
    found = (place for name in names for place in places if place.rpartition("/")[2].lower() == name)
    return next(found, None)


def command(path: Any, layout: Layout) -> str:
    """The command that trains on a file of this layout."""
    words = ["--theta", ",".join(layout.theta), "--x", ",".join(layout.x.values())]
    words += [word for kind, place in layout.weight.items() for word in (f"--{kind}-weight", place)]
    words += [] if layout.group is None else ["--group", layout.group]
    return shlex.join(["sbi-dgm", "train", str(path), *words, "-o", "run"])
