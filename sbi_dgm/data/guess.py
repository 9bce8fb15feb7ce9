"""What a foreign HDF5 file may hold: its tree in words, and a guess at where theta and x are.

Names that the field uses decide; without them, theta is the narrowest table of floats among datasets of equal length
and x the widest of the rest.
"""

import math
import shlex
from pathlib import Path
from typing import Any

import h5py

from sbi_dgm.data.foreign import Layout
from sbi_dgm.data.places import INDEX, target, walk
from sbi_dgm.data.tables import SUFFIXES, beside
from sbi_dgm.errors import FileError

THETA = ("theta", "thetas", "parameters", "params", "parameter", "param", "labels", "y", "cosmology")
X = (
    "x",
    "data",
    "observables",
    "observations",
    "maps",
    "map",
    "images",
    "spectra",
    "spectrum",
    "samples",
    "events",
    "sims",
)
EVENT_WEIGHTS = ("weights", "weight", "event_weight", "event_weights", "mc_weight")
GROUPS = ("group", "groups", "universe", "simulation_id", "sim_id")


def tree(file: h5py.File) -> list[str]:
    """One line for each group, dataset and attribute: shape, dtype, chunks, compression; and where links lead."""
    lines = [f"  @{key} = {_short(value)}" for key, value in file.attrs.items()]
    for place, item in walk(file):
        indent, leads = "  " * (place.count("/") + 1), target(file, place)
        lines.append(f"{indent}{_line(place.rpartition('/')[2], item)}{f' -> {leads}' if leads else ''}")
        attributes = {} if item is None else item.attrs
        lines.extend(f"{indent}  @{key} = {_short(value)}" for key, value in attributes.items())
    return lines


def _line(label: str, item: Any) -> str:
    if isinstance(item, h5py.Dataset):
        return f"{label:<18} {_dataset(item)}"
    return f"{label}/" if isinstance(item, h5py.Group) else f"{label:<18} leads nowhere"


def _dataset(item: h5py.Dataset) -> str:
    fields = item.dtype.names
    kind = str(item.dtype) if fields is None else "{" + ", ".join(f"{f}: {item.dtype[f]}" for f in fields) + "}"
    parts = [f"{item.shape} {kind}", f"chunks {item.chunks}" if item.chunks else "contiguous"]
    return ", ".join(
        [*parts, *(word for word in (item.compression, "fletcher32" if item.fletcher32 else None) if word)]
    )


def _short(value: Any) -> str:
    text = repr(value.tolist() if hasattr(value, "tolist") else value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def guess(path: Path, file: h5py.File) -> Layout | None:
    """The likeliest layout, or None where no two places look like theta and x; theta may lie beside the file."""
    rows = _candidates(file)
    theta = _named(rows, THETA) or _beside(path, rows) or _narrowest(rows)
    if theta is None:
        return None
    count = rows[theta][0] if theta in rows else _length(path.parent / theta)
    rest = {n: k for n, k in rows.items() if n != theta and not n.startswith(f"{theta}/") and k[0] % count == 0}
    weight, group = _named(rest, EVENT_WEIGHTS), _named(rest, GROUPS)
    rest = {name: kind for name, kind in rest.items() if name not in (weight, group)}
    x = _named(rest, X) or max(rest, key=lambda name: rest[name][1], default=None)
    if x is None:
        return None
    weights = {} if weight is None or rows[weight][1] > 1 else {"event": weight}
    return Layout(theta=theta, x=_family(x, rest, file), weight=weights, group=group)  # type: ignore[arg-type]


def _beside(path: Path, rows: dict[str, tuple[int, int]]) -> str | None:
    """A table beside the file whose rows pair up with the widest dataset."""
    widest = max(rows.values(), key=lambda kind: kind[1], default=(0, 0))[0]
    tables = [p for p in sorted(path.parent.iterdir()) if p.suffix in SUFFIXES and p.is_file()]
    return next((p.name for p in tables if (count := _length(p)) > 1 and widest and widest % count == 0), None)


def _length(path: Path) -> int:
    """Rows of a table, 0 where the file holds none."""
    try:
        return beside(str(path), path.parent).column.shape[0]
    except FileError:
        return 0


def _family(place: str, rest: dict[str, tuple[int, int]], file: h5py.File) -> str:
    """The group of a place where all its other datasets are as good."""
    parent = place.rpartition("/")[0]
    item = file.get(parent) if parent else None
    siblings = [f"{parent}/{name}" for name in item] if isinstance(item, h5py.Group) else []
    alike = len(siblings) > 1 and all(rest.get(s, (0, 0)) == rest[place] for s in siblings)
    return parent if alike else place


def _candidates(file: h5py.File) -> dict[str, tuple[int, int]]:
    """Places of numbers: rows, and numbers a row; a group counts as the table of its columns, or as a set."""
    found: dict[str, tuple[int, int]] = {}

    for name, item in walk(file):
        if isinstance(item, h5py.Dataset) and item.ndim and item.shape[0] > 1 and item.dtype.kind in "fiubcV":
            fields = [f for f in item.dtype.names or () if f != INDEX]
            found[name] = (item.shape[0], max(1, len(fields)) * math.prod(item.shape[1:]))
        elif isinstance(item, h5py.Group) and len(item):
            children: list[Any] = [item.get(child) for child in item]
            if all(getattr(item.get(part), "ndim", 0) for part in ("values", "offsets")):
                found[name] = (_sets(item), 10**6)
            elif all(isinstance(c, h5py.Dataset) and c.ndim == 1 and c.dtype.kind in "fiub" for c in children):
                found[name] = (children[0].shape[0], len(children))
    sets = [name for name in found if f"{name}/offsets" in found]
    return {n: kind for n, kind in found.items() if n.rpartition("/")[0] not in sets}


def _sets(group: Any) -> int:
    """How many sets a group of `values` and `offsets` holds."""
    values, offsets = group["values"], group["offsets"]
    return max(1, offsets.size - int(offsets.size > 0 and offsets[-1] == len(values)))


def _named(rows: dict[str, tuple[int, int]], names: tuple[str, ...]) -> str | None:
    """The first place whose last word, or a word of it, is one of the names."""
    for name in names:
        for place in rows:
            if place.rpartition("/")[2].lower() == name:
                return place
    return None


def _narrowest(rows: dict[str, tuple[int, int]]) -> str | None:
    tables = {place: kind for place, kind in rows.items() if 1 < kind[1] <= 30}
    return min(tables, key=lambda place: tables[place][1], default=None)


def command(path: Any, layout: Layout) -> str:
    """The command that trains on a file of this layout."""
    words = ["--theta", ",".join(layout.theta), "--x", ",".join(layout.x.values())]
    words += [word for kind, place in layout.weight.items() for word in (f"--{kind}-weight", place)]
    words += [] if layout.group is None else ["--group", layout.group]
    return shlex.join(["sbi-dgm", "train", str(path), *words, "-o", "run"])
