"""Tables of numbers in text, CSV or `.npy` files, with or without a line of names above them."""

from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sbi_dgm.data.columns import Column, plain_dtype
from sbi_dgm.errors import DataError, FileError, first_line, unknown
from sbi_dgm.files import require_file

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".txt", ".csv", ".dat", ".tsv", ".npy")
INDEX = ("", "index")  # titles that pandas gives to a column of row numbers


class Table(NamedTuple):
    """Columns of numbers (N, D) and their names, empty where the file has none."""

    names: tuple[str, ...]
    column: Column


def beside(name: str, folder: Path, columns: Sequence[str] = ()) -> Table:
    """A table of numbers in a file of its own, with or without a line of names above; `folder` is searched too.

    Args:
        name: of the file.
        folder: searched where the file is not at hand.
        columns: which are wanted, in this order, by name; only these need be numbers. All where none are given.

    """
    path = require_file(folder / name if not Path(name).is_file() and (folder / name).is_file() else name)
    try:
        found = _array(path) if path.suffix == ".npy" else _text(path)
        return _numbers(_chosen(name, found, columns))
    except (ValueError, TypeError, OSError, EOFError) as error:
        raise FileError(f"{path} holds no table of numbers: {first_line(error)}.") from None


def neighbours(path: Path) -> dict[str, Table]:
    """Tables of numbers in the folder of a file."""
    found = {}
    for place in sorted(path.parent.iterdir()):
        if place.suffix in SUFFIXES and place.is_file():
            try:
                found[place.name] = beside(str(place), path.parent)
            except FileError:
                continue
    return found


def _array(path: Path) -> Table:
    values = np.load(path, allow_pickle=False)
    if values.dtype.kind not in "fiub" or values.ndim not in (1, 2) or not values.size:
        raise ValueError(f"it has shape {values.shape} and dtype {values.dtype}, and rows of numbers are needed")
    return Table((), np.atleast_2d(values.astype(plain_dtype(values.dtype), copy=False).T).T)


def _chosen(name: str, found: Table, columns: Sequence[str]) -> Table:
    """Some columns of a table, in the order given; all where none are."""
    for column in columns:
        if column not in found.names:
            raise DataError(f"{name}: {unknown('column', column, found.names)}")
    entries = [found.names.index(column) for column in columns]
    return Table(tuple(columns), np.asarray(found.column[:])[:, entries]) if columns else found


def _numbers(found: Table) -> Table:
    """The same table with its text as numbers."""
    cells = np.asarray(found.column[:])
    if cells.dtype.kind != "U":
        return found
    try:
        return Table(found.names, cells.astype(np.float64))
    except ValueError:
        row, column = next(place for place in np.ndindex(*cells.shape) if not _is_number(str(cells[place])))
        raise ValueError(_no_number(found.names, row, column, str(cells[row, column]))) from None


def _no_number(names: Sequence[str], row: int, column: int, word: str) -> str:
    title = repr(names[column]) if names else column
    if _is_number(word.replace(",", ".")):
        return f"row {row} of column {title} is {word!r}: write decimals with a point"
    hint = "; list the columns wanted, such as params.csv/a,params.csv/b" if len(names) > 1 else ""
    return f"row {row} of column {title} is {word!r}, which is no number{hint}"


def _text(path: Path) -> Table:
    """The cells of a table as text, with their names."""
    import pandas as pd

    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    body = [line for line in lines if not line.startswith("#")]
    separator = _separator(body)
    words = _cells((body or [""])[0], separator)
    titled = any(not _is_number(word) for word in words[1:] or words)
    notes = [_cells(line.lstrip("# "), separator) for line in reversed(lines) if line.startswith("#")]
    text = StringIO("\n".join(body[titled:]))
    frame = pd.read_csv(text, sep=separator or r"\s+", header=None, dtype=str)
    return _titled(frame, [words] if titled else notes, titled)


def _titled(frame: "pd.DataFrame", titles: list[list[str]], certain: bool) -> Table:
    """The cells under the first title that fits; a column of row names or numbers may stand in front."""
    width = frame.shape[1]
    title = next((title for title in titles if len(title) in (width, width - 1)), [])
    if certain and not title:
        raise ValueError(f"{len(titles[0])} names stand above {width} columns")
    numbered = (certain and len(title) == width - 1) or title[:1] in [[word] for word in INDEX]
    named = not all(_is_number(str(word).replace(",", ".")) for word in frame[0])
    cells = frame.iloc[:, int(width > 1 and (numbered or named)) :].to_numpy(str)
    names = title[-cells.shape[1] :] if len(title) >= cells.shape[1] else []
    return Table(tuple(names), cells)


def _separator(body: list[str]) -> str:
    """What stands between the cells: a semicolon, a comma, or "" for blanks."""
    if body and all(";" in line for line in (body[0], body[-1])):
        return ";"
    return "," if body and "," in body[-1] else ""


def _cells(line: str, separator: str) -> list[str]:
    return [cell.strip(' "\t') for cell in line.split(separator)] if separator else line.split()


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
