"""Simulations: named draws (theta, x), in memory or in a file that stays on the disk."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from sbi_dgm.coordinates import snap
from sbi_dgm.data import format as layout
from sbi_dgm.data.format import Column, Header
from sbi_dgm.data.splits import Split, SplitRule, by_label, split_rows
from sbi_dgm.distributions import Array
from sbi_dgm.errors import DataError, OptionError, unknown
from sbi_dgm.files import refuse_existing
from sbi_dgm.parameters import Observable, Parameter
from sbi_dgm.priors import Prior

MIN_ROWS = 50


class Simulations:
    """N rows of parameters and observables, with what is known about them.

    Made by `open` (a file), `from_arrays` (memory) or `create` (memory into a file). Reading is lazy.

    Attributes:
        columns: dataset name -> rows, such as "theta", "x/mu", "valid".
        prior: the prior that theta was drawn from, or None.
        path: of the file, or None.

    >>> rng = np.random.default_rng(0)
    >>> theta = rng.normal(size=(100, 2))
    >>> data = Simulations.from_arrays(theta, theta + rng.normal(size=(100, 2)), names=["a", "b"])
    >>> len(data), data.names, dict(data.observables)["x"].shape
    (100, ['a', 'b'], (2,))

    """

    def __init__(
        self, header: Header, columns: Mapping[str, Column], prior: Prior | None = None, path: Path | None = None
    ) -> None:
        self.header, self.columns, self.prior, self.path = header, dict(columns), prior, path

    @classmethod
    def open(cls, path: str | Path, *, prior: Prior | None = None) -> "Simulations":
        """Open a simulation file.

        Args:
            prior: needed only where the file's prior is a function, which no file can hold.

        """
        header, columns = layout.read(path)
        return cls(header, columns, header.restore_prior(prior), Path(path))

    @classmethod
    def from_arrays(
        cls,
        theta: ArrayLike,
        x: ArrayLike | Mapping[str, ArrayLike],
        *,
        prior: Prior | None = None,
        names: Sequence[str] | None = None,
        observables: Mapping[str, Observable] | None = None,
        valid: ArrayLike | None = None,
        **columns: ArrayLike | None,
    ) -> "Simulations":
        """Simulations from arrays.

        Args:
            theta: (N, D).
            x: (N, ...), or several by name.
            prior: of theta; gives the names too.
            names: of the parameters, where there is no prior.
            observables: units and labels by name; shapes are taken from x where absent.
            valid: (N,), False where the simulation failed; a row with a non-finite x counts as failed.
            columns: more about each row, (N,): `proposal_weight`, p(theta) / p~(theta) > 0, where theta was drawn
                from another p~; `event_weight` of Monte Carlo events; `group`, integers, whose rows stay in one
                split; `split`, 0 to train, 1 to validate, 2 to test.

        """
        arrays = {name: np.asarray(a) for name, a in (x.items() if isinstance(x, Mapping) else [("x", x)])}
        given = {"theta": np.asarray(theta)} | {f"x/{name}": a for name, a in arrays.items()}
        given |= {name: np.asarray(a) for name, a in {"valid": valid, **columns}.items() if a is not None}
        for name in columns:
            if name not in _DTYPES:
                raise OptionError(unknown("column", name, _DTYPES))
        _check_columns(given)
        parameters = prior.parameters if prior else tuple(Parameter(n) for n in _names(names, given["theta"].shape[1]))
        shapes = {name: Observable(a.shape[1:]) for name, a in arrays.items()} | dict(observables or {})
        header = Header(parameters, shapes, prior.describe() if prior else None)
        _check_shapes(header, given)
        finite = np.all([_finite_rows(a) for a in arrays.values()], axis=0)
        table = {name: _cast(name, a) if name in columns else a for name, a in given.items()}
        table["theta"] = _widen(given["theta"], prior)
        table["valid"] = (finite & given["valid"].astype(bool) if "valid" in given else finite).astype(np.uint8)
        return cls(header, table, prior).checked()

    @classmethod
    def create(
        cls,
        path: str | Path,
        theta: ArrayLike,
        x: ArrayLike | Mapping[str, ArrayLike],
        *,
        overwrite: bool = False,
        **described: object,
    ) -> "Simulations":
        """Write arrays to a new simulation file; `described` as the keywords of `from_arrays`."""
        refuse_existing(path, overwrite)
        return cls.from_arrays(theta, x, **described).save(path, overwrite=overwrite)  # type: ignore[arg-type]

    def save(self, path: str | Path, *, overwrite: bool = False) -> "Simulations":
        """Write all rows to `path`, atomically, and return them opened from there."""
        refuse_existing(path, overwrite)
        layout.write(path, self.header, len(self), layout.blocks(self.columns, 0, len(self)))
        return type(self).open(path, prior=self.prior)

    def append(self, theta: ArrayLike, x: ArrayLike | Mapping[str, ArrayLike], **described: object) -> "Simulations":
        """Simulations with more rows behind these; where these are a file, the file grows, atomically."""
        described = {"prior": self.prior, "names": self.names, "observables": self.observables, **described}
        more = type(self).from_arrays(theta, x, **described)  # type: ignore[arg-type]
        strange = set(self.columns) ^ set(more.columns)
        if strange:
            raise DataError(f"rows to append must have the same columns: only one side has {sorted(strange)}.")
        for name, column in self.columns.items():
            dtype = more.columns[name].dtype
            if not np.can_cast(dtype, column.dtype, "same_kind"):
                raise DataError(f"rows to append: {name} has dtype {dtype}, expected {column.dtype}.")
        if self.path is None:
            joined = {n: np.concatenate([c[:], more.columns[n][:]], dtype=c.dtype) for n, c in self.columns.items()}
            return type(self)(self.header, joined, self.prior).checked()
        both = chain(*(layout.blocks(part.columns, 0, len(part)) for part in (self, more)))
        layout.write(self.path, self.header, len(self) + len(more), both)
        return type(self).open(self.path, prior=self.prior)

    def __len__(self) -> int:
        return self.columns["theta"].shape[0]

    def __repr__(self) -> str:
        where = self.path or "memory"
        return f"Simulations({where}: {len(self)} rows, theta {self.names}, x {list(self.observables)})"

    @property
    def names(self) -> list[str]:
        """Names of the parameters."""
        return self.header.names

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters, in the order of theta's columns."""
        return self.header.parameters

    @property
    def observables(self) -> Mapping[str, Observable]:
        """What was observed, by name."""
        return self.header.observables

    @property
    def theta(self) -> Array:
        """All parameters (N, D)."""
        return np.asarray(self.columns["theta"][:], np.float64)

    @property
    def valid(self) -> np.ndarray:
        """(N,), True where the simulation succeeded."""
        return np.asarray(self.columns["valid"][:], bool)

    @property
    def weight(self) -> Array | None:
        """(N,), the product of proposal and event weights, or None where there are none."""
        present = [self.columns[n][:] for n in ("proposal_weight", "event_weight") if n in self.columns]
        return np.prod(present, axis=0) if present else None

    def x(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The observables of the given rows (ascending), by name."""
        return {name: gather(self.columns[f"x/{name}"], rows) for name in self.observables}

    def split(self, rule: SplitRule, rows: int | None = None) -> Split:
        """Train, validation and test rows among the first `rows`; the file's own `split` column rules."""
        valid = self.valid[:rows]
        if "split" in self.columns:
            return by_label(self.columns["split"][: len(valid)], valid)
        group = self.columns["group"][: len(valid)] if "group" in self.columns else np.arange(len(valid))
        return split_rows(rule, group, valid)

    def fingerprint(self, rows: int | None = None) -> str:
        """sha256 of the names and the first `rows` rows of theta: the same for the same draws."""
        digest = hashlib.sha256(json.dumps(self.names).encode())
        digest.update(np.ascontiguousarray(self.theta[:rows]).tobytes())
        return digest.hexdigest()

    def checked(self) -> "Simulations":
        """Self, or `DataError` / `PriorError` where the parameters cannot be learned from."""
        theta = self.theta
        bad = ~np.isfinite(theta)
        if bad.any():
            row, column = np.argwhere(bad)[0]
            raise DataError(
                f"theta row {row}: {self.names[column]} is {theta[row, column]}: parameters must be finite."
            )
        if self.prior is not None:
            self.prior.standardise(theta, self.columns["theta"].dtype)
        return self

    def require_rows(self, names: Sequence[str] | None = None) -> None:
        """Raise where valid rows are too few, theta is bad, or one of `names` (None: all) never changes."""
        valid = self.valid
        if valid.sum() < MIN_ROWS:
            raise DataError(f"{int(valid.sum())} of {len(self)} rows are valid: at least {MIN_ROWS} are needed.")
        constant = np.ptp(self.checked().theta[valid], axis=0) == 0
        for name, same in zip(self.names, constant, strict=True):
            if same and (names is None or name in names):
                raise DataError(f"parameter {name!r} is the same in all rows: leave it out with parameters=[...].")


_DTYPES = {"proposal_weight": np.float64, "event_weight": np.float64, "group": np.int64, "split": np.uint8}


def gather(column: Column, rows: np.ndarray) -> np.ndarray:
    """The given ascending rows, read in contiguous blocks, never one by one."""
    if isinstance(column, np.ndarray):
        return column[rows]
    if not len(rows):
        return np.empty((0, *column.shape[1:]), column.dtype)
    pieces = [block["c"] for block in layout.blocks({"c": column}, int(rows[0]), int(rows[-1]) + 1)]
    return np.concatenate(pieces)[rows - rows[0]]


def _finite_rows(a: np.ndarray) -> np.ndarray:
    return np.asarray(np.isfinite(a).all(axis=tuple(range(1, a.ndim))))


def _names(names: Sequence[str] | None, dimension: int) -> list[str]:
    return [f"theta_{i}" for i in range(dimension)] if names is None else list(names)


def _widen(theta: np.ndarray, prior: Prior | None) -> Array:
    """Theta in float64, where narrower floats that round across an edge of the prior lie on that edge."""
    narrow = theta.dtype.kind == "f" and theta.dtype.itemsize < 8
    wide = theta.astype(np.float64, copy=False)
    return snap(wide, prior.coordinates, theta.dtype) if narrow and prior is not None else wide


def _cast(name: str, values: np.ndarray) -> np.ndarray:
    """A column in its dtype, where every row survives that."""
    with np.errstate(invalid="ignore"):
        cast = values.astype(_DTYPES[name])
    bad = (cast != values) | ~np.isfinite(cast) | (cast > 2 if name == "split" else False)
    if bad.any():
        row = int(np.argmax(bad))
        wanted = "0 (train), 1 (validation) or 2 (test)" if name == "split" else f"a finite {cast.dtype}"
        raise DataError(f"{name} row {row} is {values[row]}: it must be {wanted}.")
    return cast


def _check_columns(columns: Mapping[str, np.ndarray]) -> None:
    theta = columns["theta"]
    if theta.ndim != 2 or not theta.size:
        raise DataError(f"theta has shape {theta.shape}: give rows of parameters, (N, D).")
    for name, column in columns.items():
        if column.shape[:1] != theta.shape[:1]:
            raise DataError(f"theta has {len(theta)} rows and {name} has shape {column.shape}: they must pair up.")
        if column.dtype.kind not in "fiub":
            raise DataError(f"{name} has dtype {column.dtype}: give real numbers.")
    weight = columns.get("proposal_weight")
    if weight is not None and not (weight > 0).all():
        row = int(np.argmin(weight > 0))
        raise DataError(f"proposal_weight row {row} is {weight[row]}: a ratio of densities is positive.")


def _check_shapes(header: Header, columns: Mapping[str, np.ndarray]) -> None:
    if not header.observables:
        raise DataError("there is no observable: give x, (N, ...), or several by name.")
    expected = {"theta": (len(header.names),)} | {f"x/{name}": o.shape for name, o in header.observables.items()}
    for name, shape in expected.items():
        if name not in columns:
            raise DataError(f"{name} is described but not given.")
        if columns[name].shape[1:] != shape:
            raise DataError(f"each row of {name} has shape {columns[name].shape[1:]}, expected {shape}.")
