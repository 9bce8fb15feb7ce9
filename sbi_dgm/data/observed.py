"""Observations from files: a row of a simulation file, `.npy`, `.npz`, CSV or plain text."""

import zlib
from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from sbi_dgm.data.simulations import Simulations
from sbi_dgm.errors import FileError, ObservationError
from sbi_dgm.files import require_file
from sbi_dgm.parameters import Observable

HDF5 = (".h5", ".hdf5", ".hdf")


def read_observation(
    path: str | Path, observables: Mapping[str, Observable], row: int | None = None
) -> dict[str, np.ndarray]:
    """The observables in `path`, by name.

    Args:
        path: a simulation file, `.npy`, `.npz` (one array an observable), or numbers as text or CSV.
        observables: what is expected; text is brought to the shape of the only one.
        row: which row of a simulation file.

    """
    path = require_file(path)
    if path.suffix in HDF5:
        return _from_simulations(path, row)
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


def _from_simulations(path: Path, row: int | None) -> dict[str, np.ndarray]:
    data = Simulations.open(path)
    if row is None or not 0 <= row < len(data):
        raise ObservationError(f"{path} has rows 0 to {len(data) - 1}: choose one with --row (given: {row}).")
    return {name: values[0] for name, values in data.x(np.array([row])).items()}


def _text(path: Path) -> np.ndarray:
    text = path.read_text(encoding="utf-8")
    if not text.strip():
        raise ValueError("it is empty")
    return np.loadtxt(text.splitlines(), delimiter="," if path.suffix == ".csv" else None)
