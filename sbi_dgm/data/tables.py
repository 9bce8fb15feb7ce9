"""Tables of numbers in text, CSV or `.npy` files, with or without a line of names above them."""

from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from sbi_dgm.data.columns import Column, native
from sbi_dgm.errors import FileError
from sbi_dgm.files import require_file

SUFFIXES = (".txt", ".csv", ".dat", ".tsv", ".npy")
INDEX = ("", "index")  # titles that pandas gives to a column of row numbers


class Table(NamedTuple):
    """Columns of numbers (N, D) and their names, empty where the file has none."""

    names: tuple[str, ...]
    column: Column


def beside(name: str, folder: Path) -> Table:
    """A table of numbers in a file of its own, with or without a line of names above; `folder` is searched too."""
    path = require_file(folder / name if not Path(name).is_file() and (folder / name).is_file() else name)
    try:
        return _array(path) if path.suffix == ".npy" else _text(path)
    except (ValueError, TypeError, OSError, EOFError) as error:
        raise FileError(f"{path} holds no table of numbers: {str(error).splitlines()[0].rstrip('.')}.") from None


def _array(path: Path) -> Table:
    values = np.load(path, allow_pickle=False)
    if values.dtype.kind not in "fiub" or values.ndim not in (1, 2) or not values.size:
        raise ValueError(f"it has shape {values.shape} and dtype {values.dtype}, and rows of numbers are needed")
    return Table((), np.atleast_2d(values.astype(native(values.dtype), copy=False).T).T)


def _text(path: Path) -> Table:
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    body = [line for line in lines if not line.startswith("#")]
    comma = "," in (body or [""])[-1]
    words = _cells((body or [""])[0], comma)
    titled = any(not _is_number(word) for word in words[1:] or words)
    notes = [_cells(line.lstrip("# "), comma) for line in reversed(lines) if line.startswith("#")]
    text = StringIO("\n".join(body[titled:]))
    frame = pd.read_csv(text, sep="," if comma else r"\s+", header=None, dtype=str)
    return _titled(frame, [words] if titled else notes, titled)


def _titled(frame: pd.DataFrame, titles: list[list[str]], certain: bool) -> Table:
    """The numbers under the first title that fits; a column of row names or numbers may stand in front."""
    width = frame.shape[1]
    title = next((title for title in titles if len(title) in (width, width - 1)), [])
    if certain and not title:
        raise ValueError(f"{len(titles[0])} names stand above {width} columns")
    numbered = (certain and len(title) == width - 1) or title[:1] in [[word] for word in INDEX]
    named = not all(_is_number(word) for word in frame[0].astype(str))
    cells = frame.iloc[:, int(width > 1 and (numbered or named)) :].to_numpy(str)
    names = title[-cells.shape[1] :] if len(title) >= cells.shape[1] else []
    return Table(tuple(names), cells.astype(np.float64))


def _cells(line: str, comma: bool) -> list[str]:
    return [cell.strip(' "\t') for cell in line.split(",")] if comma else line.split()


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
