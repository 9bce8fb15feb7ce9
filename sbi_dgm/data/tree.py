"""A foreign HDF5 file in words: its tree, and the tables beside it."""

from pathlib import Path
from typing import Any

import h5py

from sbi_dgm.data.places import target, walk
from sbi_dgm.data.tables import neighbours


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


def beside(path: Path) -> list[str]:
    """One line for each table beside a file, the first twenty: rows and columns."""
    lines = [
        f"  {name:<18} {table.column.shape[0]} rows, columns {', '.join(table.names) or table.column.shape[1]}"
        for name, table in neighbours(path).items()
    ]
    more = [f"  and {len(lines) - 20} more"] if len(lines) > 20 else []
    return ["tables beside:", *lines[:20], *more] if lines else []
