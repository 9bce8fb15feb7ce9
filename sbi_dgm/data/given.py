"""Arrays and frames as users give them: columns of simulations, checked."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sbi_dgm.data.columns import plain_dtype
from sbi_dgm.data.native import Header
from sbi_dgm.errors import DataError, unknown
from sbi_dgm.simulator import reason


def array(values: Any, name: str = "x") -> np.ndarray:
    """An array in this machine's byte order, whose truth values are 0 and 1; what a mask hides is NaN."""
    try:
        found = unmasked(values.detach().cpu().numpy() if hasattr(values, "detach") else values, name)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DataError(f"{name} is no array of numbers: {reason(error)}.") from None
    return found.astype(plain_dtype(found.dtype), copy=False)


def unmasked(values: Any, name: str) -> np.ndarray:
    """The values, NaN where a mask hides them; `DataError` for whole numbers, of which none says so."""
    if not np.ma.is_masked(values):
        return np.asarray(values)
    if values.dtype.kind != "f":
        raise DataError(
            f"{name} has dtype {values.dtype} and hides {int(values.mask.sum())} values by a mask: fill them."
        )
    return np.asarray(values.filled(np.nan))


def numbers_of(rows: Any, count: int) -> np.ndarray:
    """Ascending numbers of rows below `count`, also from (count,) of True and False; else `DataError`."""
    found = np.asarray(rows)
    if found.dtype == bool and found.shape == (count,):
        return np.flatnonzero(found)
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise DataError(
            f"rows of shape {found.shape} and dtype {found.dtype}: give numbers of rows, or ({count},) of bool."
        )
    bad = np.flatnonzero((found < 0) | (found >= count))
    if len(bad):
        raise DataError(f"rows: number {found[bad[0]]} at place {bad[0]} is not among 0 to {count - 1}.")
    if (np.diff(found.astype(np.int64)) < 0).any():
        raise DataError("rows: their numbers must ascend, so that a file is read from front to back: sort them.")
    return found.astype(np.int64)


def suited(name: str, values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Rows to append, as the rows before them are stored; `DataError` for a number that would not survive that."""
    if not np.can_cast(values.dtype, dtype, "same_kind"):
        raise DataError(f"rows to append: {name} has dtype {values.dtype}, expected {dtype}.")
    with np.errstate(over="ignore"):
        found = values.astype(dtype)
    lost = found != values if dtype.kind in "iu" else np.isfinite(values) & ~np.isfinite(found)
    for where in np.argwhere(lost)[:1]:
        raise DataError(f"rows to append: {name} row {where[0]} holds {values[tuple(where)]}, which is no {dtype}.")
    return found


def titles(values: Any) -> tuple[str, ...]:
    """Names of the columns of a frame, or of the entries of a series of pandas; none of anything else."""
    labels = getattr(values, "columns", getattr(values, "index", None)) if hasattr(values, "to_numpy") else None
    return () if labels is None or labels.dtype.kind in "iuf" else tuple(str(label) for label in labels)


def framed(frame: Any, names: Sequence[str] | None) -> tuple[np.ndarray, list[str]]:
    """The columns of a frame that `names` lists, in that order; all of them where it is None."""
    titles = [str(name) for name in frame.columns]
    wanted = titles if names is None else list(names)
    for name in wanted:
        if name not in titles:
            raise DataError(f"theta: {unknown('column', name, titles)}")
    chosen = [frame.columns[titles.index(name)] for name in wanted]
    return frame[chosen].to_numpy(), wanted


def names_of(names: Sequence[str] | None, dimension: int) -> list[str]:
    """The names, or theta_0, theta_1, ... where there are none."""
    return [f"theta_{i}" for i in range(dimension)] if names is None else list(names)


def check_columns(columns: Mapping[str, np.ndarray]) -> None:
    """`DataError` where columns are no numbers or do not pair up."""
    theta = columns["theta"]
    if theta.ndim != 2 or not theta.size:
        raise DataError(f"theta has shape {theta.shape}: give rows of parameters, (N, D).")
    for name, column in columns.items():
        if column.shape[:1] != theta.shape[:1]:
            raise DataError(f"theta has {len(theta)} rows and {name} has shape {column.shape}: they must pair up.")
        if column.dtype.kind not in "fiub":
            raise DataError(f"{name} has dtype {column.dtype}: give real numbers.")
        if column.ndim > 1 and name != "theta" and not name.startswith("x/"):
            raise DataError(f"{name} has shape {column.shape}: give one number for each row, ({len(theta)},).")
    if "valid" in columns and not np.isin(columns["valid"], (0, 1)).all():
        raise DataError("valid must be True (1) or False (0) for each row.")


def check_shapes(header: Header, columns: Mapping[str, np.ndarray]) -> None:
    """`DataError` where columns are not what the header describes."""
    if not header.observables:
        raise DataError("there is no observable: give x, (N, ...), or several by name.")
    if len(set(header.names)) < len(header.names):
        raise DataError(f"theta has columns {header.names}: each name may stand only once.")
    expected = {"theta": (len(header.names),)} | {f"x/{name}": o.shape for name, o in header.observables.items()}
    for name, shape in expected.items():
        if name not in columns:
            raise DataError(f"{name} is described but not given.")
        if columns[name].shape[1:] != shape:
            raise DataError(f"each row of {name} has shape {columns[name].shape[1:]}, expected {shape}.")
