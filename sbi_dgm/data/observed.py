"""Observations: checked arrays, and what files hold, a row of a simulation file, `.npy`, `.npz`, CSV or plain text."""

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import h5py
import numpy as np
from numpy.typing import ArrayLike

from sbi_dgm.data.columns import Column, absent_rows
from sbi_dgm.data.foreign import Layout, observed
from sbi_dgm.data.given import array, framed, titles
from sbi_dgm.data.native import is_ours
from sbi_dgm.data.simulations import Simulations
from sbi_dgm.errors import DataError, FileError, ObservationError, first_line
from sbi_dgm.files import require_file
from sbi_dgm.parameters import Observable
from sbi_dgm.simulator import reason
from sbi_dgm.univariate import Array

HDF5 = (".h5", ".hdf5", ".hdf")
Observation = ArrayLike | Mapping[str, ArrayLike | None]


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
    if path.suffix in HDF5 or h5py.is_hdf5(path):
        return _from_simulations(path, row, layout)
    if row is not None:
        raise ObservationError(f"--row chooses a row of a simulation file; {path} is none.")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        array = np.load(path, allow_pickle=False) if path.suffix == ".npy" else _text(path)
    except (ValueError, OSError, EOFError, BadZipFile, zlib.error) as error:
        raise FileError(f"{path} holds no array of numbers: {first_line(error)}.") from None
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


def observed_arrays(
    x: Observation, known: Mapping[str, Observable], dtypes: Mapping[str, str]
) -> tuple[dict[str, np.ndarray], bool]:
    """Observations as stacks (B, ...) by name, checked, and whether x was one without its axis.

    What is absent, None or NaN throughout, is NaN, in float64 where the observable is of whole numbers.
    """
    given = dict(x) if isinstance(x, Mapping) else {next(iter(known)): x}
    if set(given) != set(known):
        raise ObservationError(f"the observation has {sorted(given)}; expected the observables {sorted(known)}.")
    arrays, single = {}, set()
    for name, observable in known.items():
        if given[name] is None:
            _require_optional(name, observable)
            continue
        a = _as_real(_array(_by_name(given[name], observable.names), name))
        single.add(a.shape == observable.shape)
        if observable.shape not in (a.shape, a.shape[1:]):
            expected = f"{observable.shape} for one observation or {('B', *observable.shape)} for a stack"
            raise ObservationError(f"observable {name!r} has shape {a.shape}; expected {expected}.")
        arrays[name] = _cast(name, a if a.ndim > len(observable.shape) else a[None], dtypes[name], observable)
    if len(single) > 1 or len({len(a) for a in arrays.values()}) > 1:
        raise ObservationError("the observables disagree on the number of observations.")
    rows = len(next(iter(arrays.values()), [None]))
    gone = {
        name: np.full((rows, *known[name].shape), np.nan, _floats(dtypes[name])) for name in set(known) - set(arrays)
    }
    return {name: (arrays | gone)[name] for name in known}, single.pop() if single else True


def _by_name(values: Any, names: Sequence[str]) -> Any:
    """A frame or series of pandas with its numbers in the order of `names`; anything else as it comes."""
    labels = titles(values)
    if not names or not labels:
        return values
    if set(labels) != set(names):
        raise ObservationError(f"the observation has columns {list(labels)}; expected {list(names)}.")
    return values.to_numpy()[..., [labels.index(name) for name in names]]


def _array(values: Any, name: str) -> np.ndarray:
    try:
        return array(values, f"the observable {name!r}")
    except DataError as error:
        raise ObservationError(str(error)) from None


def parameters_of(theta: Any, names: Sequence[str]) -> Array:
    """Theta (..., D) in the order of `names`: by name what has columns or is a `Samples`, else as it comes."""
    if hasattr(theta, "columns") and hasattr(theta, "to_numpy"):
        theta = framed(theta, names)[0]
    elif hasattr(theta, "array") and hasattr(theta, "names"):
        theta = np.stack([theta[name] for name in names], axis=-1)
    try:
        return np.asarray(theta, np.float64)
    except (ValueError, TypeError) as error:
        raise ObservationError(f"theta is no array of numbers: {reason(error)}.") from None


def stacked(theta: Array, observations: int, single: bool, size: int) -> Array:
    """Theta as (B, S, D), or `ObservationError`; for a single observation it comes as (D,) or (S, D)."""
    stack = theta.reshape(1, -1, theta.shape[-1]) if single and 0 < theta.ndim <= 2 else theta
    stack = stack[:, None] if not single and stack.ndim == 2 else stack
    if stack.ndim != 3 or stack.shape[::2] != (observations, size):
        axes = "(D,) or (S, D)" if single else f"({observations}, D) or ({observations}, S, D)"
        raise ObservationError(f"theta has shape {theta.shape}; expected {axes} with D = {size}.")
    return stack


def widest(dtypes: Mapping[str, str]) -> dict[str, str]:
    """The same with float64 for every floating type."""
    return {name: "<f8" if np.dtype(dtype).kind == "f" else dtype for name, dtype in dtypes.items()}


def _require_optional(name: str, observable: Observable) -> None:
    if not observable.optional:
        raise ObservationError(
            f"observable {name!r} is absent (None or NaN) and has to be there: for a posterior that goes without it, "
            "train with the embedding 'fusion' and its option absent=0.2, or on simulations in which it is optional."
        )


def _floats(dtype: str) -> np.dtype:
    """A type with NaN for numbers of this one."""
    found = np.dtype(dtype)
    return found if found.kind == "f" else np.dtype(np.float64)


def _as_real(a: np.ndarray) -> np.ndarray:
    """Complex numbers as pairs of real ones, as in the training data."""
    return np.stack([np.real(a), np.imag(a)], -1) if a.dtype.kind == "c" else a


def _cast(name: str, stack: np.ndarray, dtype: str, observable: Observable) -> np.ndarray:
    """The observable in the dtype of the training data; what that cannot hold is refused."""
    if stack.dtype.kind not in "fiub":
        raise ObservationError(f"observable {name!r} has dtype {stack.dtype}: give real numbers.")
    with np.errstate(over="ignore", invalid="ignore"):
        cast = stack.astype(dtype)
    bad, absent = ~(np.isfinite(stack) & np.isfinite(cast)), absent_rows(stack)
    if cast.dtype.kind != "f":
        bad |= cast != stack
    if absent.any():
        _require_optional(name, observable)
        bad[absent], cast = False, np.where(_beside(absent, stack), np.nan, cast).astype(_floats(dtype))
    if bad.any():
        where = np.argwhere(bad)[0].tolist()
        raise ObservationError(
            f"observable {name!r} has an entry that is no finite number in {np.dtype(dtype)} "
            f"(observation {where[0]}, entry {where[1:]}: {stack[tuple(where)]}): repair it"
            f"{', or make all of its entries NaN where it is absent' if observable.optional else ''}."
        )
    return cast


def _beside(rows: np.ndarray, stack: np.ndarray) -> np.ndarray:
    """(B,) with as many axes as a stack."""
    return rows.reshape(-1, *(1 for _ in stack.shape[1:]))
