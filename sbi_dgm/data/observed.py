"""Observations from files: a row of a simulation file, `.npy`, `.npz`, CSV or plain text."""

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from sbi_dgm.data.columns import Column
from sbi_dgm.data.foreign import Layout, observed
from sbi_dgm.data.format import is_ours
from sbi_dgm.data.simulations import Simulations
from sbi_dgm.errors import FileError, ObservationError
from sbi_dgm.files import require_file
from sbi_dgm.parameters import Observable

HDF5 = (".h5", ".hdf5", ".hdf")


def read_observation(
    path: str | Path,
    observables: Mapping[str, Observable],
    row: int | None = None,
    layout: Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    """The observables in `path`, by name.

    Args:
        path: a simulation file, `.npy`, `.npz` (one array an observable), or numbers as text or CSV.
        observables: what is expected; text is brought to the shape of the only one.
        row: which row of a simulation file.
        layout: of a foreign simulation file, as of `Simulations.open`.

    """
    path = require_file(path)
    if path.suffix in HDF5:
        return _from_simulations(path, row, layout)
    if row is not None:
        raise ObservationError(f"--row chooses a row of a simulation file; {path} is none.")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        array = np.load(path, allow_pickle=False) if path.suffix == ".npy" else _text(path)
    except (ValueError, OSError, EOFError, BadZipFile, zlib.error) as error:
        raise FileError(f"{path} holds no array of numbers: {str(error).splitlines()[0].rstrip('.')}.") from None
    if len(observables) != 1:
        raise ObservationError(
            f"{path} holds one array, but {len(observables)} observables are needed: give an .npz by name."
        )
    ((name, observable),) = observables.items()
    text_of_one = path.suffix != ".npy" and array.size == observable.size
    return {name: array.reshape(observable.shape) if text_of_one else array}


def _from_simulations(path: Path, row: int | None, layout: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
    columns = _ours(path) if layout is None or is_ours(path) else observed(path, Layout(**layout))
    rows = next(iter(columns.values())).shape[0]
    if row is None or not 0 <= row < rows:
        raise ObservationError(f"{path} has rows 0 to {rows - 1}: choose one with --row (given: {row}).")
    return {name: column[row : row + 1][0] for name, column in columns.items()}


def _ours(path: Path) -> dict[str, Column]:
    data = Simulations.open(path)
    return {name: data.columns[f"x/{name}"] for name in data.observables}


def _text(path: Path) -> np.ndarray:
    text = path.read_text(encoding="utf-8")
    if not text.strip():
        raise ValueError("it is empty")
    return np.loadtxt(text.splitlines(), delimiter="," if path.suffix == ".csv" else None)
