"""Simulations: named draws (theta, x), in memory or in a file that stays on the disk."""

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from sbi_dgm.data import foreign, native
from sbi_dgm.data.agreement import Agreement, against_failures, against_prior
from sbi_dgm.data.columns import Column, blocks, gather, joined, usable_rows
from sbi_dgm.data.foreign import Layout, widen
from sbi_dgm.data.given import array, check_columns, check_shapes, framed, names_of, numbers_of, suited, titles
from sbi_dgm.data.native import DTYPES, Header, cast
from sbi_dgm.data.splits import Split, SplitRule, by_label, split_rows
from sbi_dgm.data.tables import Table
from sbi_dgm.distributions import Normal
from sbi_dgm.errors import DataError, FileError, OptionError, PriorError, unknown
from sbi_dgm.files import held, matching, refuse_existing
from sbi_dgm.kinds import is_a, texts
from sbi_dgm.parameters import Observable, Parameter
from sbi_dgm.priors import Prior, known, same
from sbi_dgm.univariate import Array

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
        self,
        header: Header,
        columns: Mapping[str, Column],
        prior: Prior | None = None,
        path: Path | None = None,
        layout: Layout | None = None,
    ) -> None:
        self.header, self.columns, self.prior, self.layout = header, dict(columns), prior, layout
        self.path = None if path is None else path.absolute()

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        theta: "str | Sequence[str] | None" = None,
        x: "str | Sequence[str] | Mapping[str, str] | None" = None,
        weight: Mapping[str, str] | None = None,
        group: str | None = None,
        prior: "Prior | Mapping[str, Any] | None" = None,
    ) -> "Simulations":
        """Open a simulation file, or a foreign HDF5 file whose layout is said; nothing is copied.

        Args:
            path: a file, or a glob of files that continue each other in the order of their names.
            theta, x, weight, group: where a foreign file keeps them, as in `data.foreign.Layout`.
            prior: of a foreign file, or where the file's own is a function, which no file can hold; a `Prior`, or a
                table such as `{"omega_m": {"uniform": [0.1, 0.5]}}`.

        Raises:
            FileError: missing, unreadable, or foreign without a layout.
            DataError, PriorError: places, shapes or parameters that do not fit; theta outside its prior.

        Example::

            prior = {"omega_m": {"uniform": [0.1, 0.5]}, "sigma_8": {"uniform": [0.6, 1.0]}}
            Simulations.open("maps_*.h5", theta="params.txt", x="maps/kappa", prior=prior)

        """
        given = known(prior) if isinstance(prior, Mapping) else prior
        said = {"theta": theta, "x": x, "weight": weight, "group": group}
        layout = {key: value for key, value in said.items() if value is not None}
        if not layout:
            header, columns, found = _native(path, given)
            return cls(header, columns, found, Path(path))
        for name in ("theta", "x"):
            if name not in layout:
                raise OptionError(f"{path}: the layout of a foreign file needs {name}={name!r} too (--{name}).")
        places = Layout(**layout)
        header, columns, found = foreign.read(path, places, given)
        places = places.model_copy(update={"prior": header.prior})
        data = cls(header, columns, found, Path(path), places).checked()
        if differs := Agreement(data.against_prior()).differs:
            warnings.warn(f"{path}: theta is not drawn from its prior, by {'; '.join(differs)}.", stacklevel=2)
        return data

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
    ) -> Self:
        """Simulations from arrays.

        Args:
            theta: (N, D); columns of a pandas frame go by their names.
            x: (N, ...), or several by name; columns of a frame name its numbers, as they do in observations.
            prior: of theta; gives the names too.
            names: of the parameters, where there is no prior.
            observables: units and labels by name; shapes are taken from x where absent.
            valid: (N,), False where the simulation failed; a row with a non-finite x counts as failed, but for
                observables that are `optional` and NaN throughout: they are absent.
            columns: more about each row, (N,): `proposal_weight`, p(theta) / p~(theta) > 0, where theta was drawn
                from another p~; `event_weight` of Monte Carlo events; `group`, integers, whose rows stay in one
                split; `split`, 0 to train, 1 to validate, 2 to test.

        """
        is_a("prior", prior, Prior | None, "a Prior")
        names = None if names is None else texts("names", names)
        for name, observable in is_a("observables", observables or {}, Mapping, "Observable by name").items():
            is_a(f"observables[{name!r}]", observable, Observable, "an Observable")
        if hasattr(theta, "columns") and hasattr(theta, "to_numpy"):
            theta, names = framed(theta, names if prior is None else prior.names)
        seen = dict(x) if isinstance(x, Mapping) else {"x": x}
        arrays = {name: array(a) for name, a in seen.items()}
        given = {"theta": array(theta, "theta")} | {f"x/{name}": a for name, a in arrays.items()}
        given |= {name: np.asarray(a) for name, a in {"valid": valid, **columns}.items() if a is not None}
        for name in columns:
            if name not in DTYPES:
                raise OptionError(unknown("column", name, DTYPES))
        check_columns(given)
        parameters = (
            prior.parameters if prior else tuple(Parameter(n) for n in names_of(names, given["theta"].shape[1]))
        )
        shapes = {name: Observable(a.shape[1:], names=titles(seen[name])) for name, a in arrays.items()}
        shapes |= dict(observables or {})
        header = Header(parameters, shapes, prior.describe() if prior else None)
        check_shapes(header, given)
        finite = np.all([usable_rows(a, shapes[name].optional) for name, a in arrays.items()], axis=0)
        table = {name: cast(name, a) if name in columns else a for name, a in given.items()}
        table["theta"] = widen(given["theta"], prior)
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
        native.write(path, self.header, len(self), blocks(self.columns, 0, len(self)))
        return type(self).open(path, prior=self.prior)

    def append(self, theta: ArrayLike, x: ArrayLike | Mapping[str, ArrayLike], **described: object) -> "Simulations":
        """Simulations with more rows behind these; where these are a file, the file as it is now grows, atomically."""
        if self.path is None:
            return self._with(theta, x, described)
        if self.layout is not None or matching(self.path) != [self.path]:
            raise FileError(f"{self.path} is not ours to change: save() the simulations to a file of their own first.")
        with held(self.path):
            now = type(self).open(self.path, prior=self.prior)
            return now._with(theta, x, described).save(self.path, overwrite=True)

    def _with(self, theta: ArrayLike, x: ArrayLike | Mapping[str, ArrayLike], described: dict[str, object]) -> Self:
        """These rows, read when asked for, and more behind them."""
        described = {"prior": self.prior, "names": self.names, "observables": self.observables, **described}
        more = type(self).from_arrays(theta, x, **described)  # type: ignore[arg-type]
        strange = set(self.columns) ^ set(more.columns)
        if "seed" in strange:
            raise DataError("rows of a campaign come from their seeds: ask simulate() for more of them, a larger n.")
        if strange:
            raise DataError(f"rows to append must have the same columns: only one side has {sorted(strange)}.")
        new = {name: suited(name, more.columns[name][:], column.dtype) for name, column in self.columns.items()}
        if self.path is None:
            both = {name: np.concatenate([column[:], new[name]]) for name, column in self.columns.items()}
            return type(self)(self.header, both, self.prior).checked()
        return type(self)(self.header, {name: joined([c, new[name]]) for name, c in self.columns.items()}, self.prior)

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

    def reference(self, names: Sequence[str], rows: np.ndarray) -> tuple[Prior, bool]:
        """The prior of some parameters, and True; without one normals with the moments of `rows`, and False."""
        prior = None if self.prior is None else self.prior.marginal(names)
        if prior is not None:
            return prior, True
        if self.prior is not None:
            warnings.warn(
                f"the prior of {', '.join(names)} alone is not known: draws may leave it, and nothing can rest on it.",
                stacklevel=2,
            )
        theta = gather(self.columns["theta"], rows)
        moments = zip(theta.mean(0).tolist(), theta.std(0).tolist(), self.parameters, strict=True)
        by_name = {p.name: Parameter(p.name, Normal(mean, sd), p.label, p.unit) for mean, sd, p in moments}
        return Prior([by_name[name] for name in names]), False

    def column(self, name: str) -> np.ndarray | None:
        """All rows of a column that not all simulations have, such as "event_weight", or None."""
        return np.asarray(self.columns[name][:]) if name in self.columns else None

    @property
    def groups(self) -> np.ndarray:
        """(N,), equal for rows that belong together; each row's own number where they are independent."""
        group = self.column("group")
        return np.arange(len(self)) if group is None else group

    @property
    def unit(self) -> str:
        """What independent draws are called, "groups" or "rows"."""
        return "groups" if "group" in self.columns else "rows"

    @property
    def dtypes(self) -> dict[str, str]:
        """Of the observables, by name."""
        return {name: np.dtype(self.columns[f"x/{name}"].dtype).str for name in self.observables}

    def x(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The observables of the given rows, by name: ascending numbers, or (N,) of True and False."""
        rows = numbers_of(rows, len(self))
        return {name: gather(self.columns[f"x/{name}"], rows) for name in self.observables}

    def split(self, rule: SplitRule, rows: int | None = None) -> Split:
        """Train, validation and test rows among the first `rows`; the file's own `split` column rules."""
        valid = self.valid[:rows]
        if "split" in self.columns:
            return by_label(self.columns["split"][: len(valid)], valid)
        return split_rows(rule, self.groups[: len(valid)], valid)

    def fingerprint(self, rows: int | None = None) -> str:
        """sha256 of the names and the first `rows` rows of theta: the same for the same draws."""
        digest = hashlib.sha256(json.dumps(self.names).encode())
        for theta in self._theta_blocks(rows):
            digest.update(np.ascontiguousarray(theta).tobytes())
        return digest.hexdigest()

    def glimpse(self, rows: int = 64) -> str:
        """sha256 of x, in single precision, at so many rows spread over all: other x of the same theta differ."""
        found = self.x(np.unique(np.linspace(0, len(self) - 1, rows).astype(int)))
        with np.errstate(over="ignore"):
            singles = [np.ascontiguousarray(values, np.float32).tobytes() for values in found.values()]
        return hashlib.sha256(b"".join(singles)).hexdigest()

    def _theta_blocks(self, rows: int | None = None) -> Iterator[Array]:
        stop = len(self) if rows is None else min(rows, len(self))
        for block in blocks({"theta": self.columns["theta"]}, 0, stop):
            yield np.asarray(block["theta"], np.float64)

    def checked(self) -> Self:
        """Self, or `DataError` / `PriorError` where the parameters cannot be learned from."""
        for name, observable in self.observables.items():
            dtype = self.columns[f"x/{name}"].dtype
            if observable.optional and dtype.kind != "f":
                raise DataError(
                    f"observable {name!r} may be absent and has dtype {dtype}, without NaN: make it floats."
                )
        first = 0
        for theta in self._theta_blocks():
            bad = ~np.isfinite(theta)
            if bad.any():
                row, column = np.argwhere(bad)[0]
                value = theta[row, column]
                raise DataError(f"theta row {first + row}: {self.names[column]} is {value}: parameters must be finite.")
            if self.prior is not None:
                self.prior.check(theta, self.columns["theta"].dtype, first)
            first += len(theta)
        return self

    def agreement(self) -> Agreement:
        """Whether theta, and the rows that succeeded, look like draws from the prior."""
        return Agreement(self.against_prior(), against_failures(self.names, self.theta, self.valid))

    def against_prior(self) -> dict[str, float]:
        """p-values of theta against the prior; none without a prior, and none where proposal weights carry it there."""
        if self.prior is None or "proposal_weight" in self.columns:
            return {}
        return against_prior(self.prior, self.theta)

    def require_rows(self, names: Sequence[str] | None = None) -> None:
        """Raise where valid rows are too few, theta is bad, or one of `names` (None: all) never changes."""
        count = int(self.valid.sum())
        if count < MIN_ROWS:
            turned = f" theta has {len(self.names)} columns: is it transposed?" if len(self.names) > len(self) else ""
            raise DataError(f"{count} of {len(self)} rows are valid: at least {MIN_ROWS} are needed.{turned}")
        for title, observable in self.observables.items():
            if observable.size == 0:
                raise DataError(f"observable {title!r} has shape {observable.shape}: there is no number in it.")
        constant = np.ptp(self.checked().theta[self.valid], axis=0) == 0
        for name, fixed in zip(self.names, constant, strict=True):
            if fixed and (names is None or name in names):
                raise DataError(
                    f"parameter {name!r} is the same in all rows: leave it out of theta "
                    "(of a posterior also by parameters=[...])."
                )


def _native(pattern: str | Path, prior: Prior | None) -> tuple[Header, dict[str, Column], Prior | None]:
    """Simulation files of ours, behind each other; a prior may be given to files that have none."""
    files = matching(pattern)
    parts = [native.read(path) for path in files]
    header, first = parts[0]
    for path, (other, columns) in zip(files, parts, strict=True):
        if _same(header) != _same(other) or not set(columns) ^ set(first) <= {"failure"}:
            raise FileError(f"{path} does not continue {files[0]}: its prior, observables or datasets differ.")
    shared = [name for name in first if all(name in columns for _, columns in parts)]
    table: dict[str, Column] = {name: joined([columns[name] for _, columns in parts]) for name in shared}
    if header.prior is None and prior is not None:
        named = foreign.named(Table(tuple(header.names), table["theta"]), prior)
        header = replace(header, parameters=prior.parameters, prior=prior.describe())
        table["theta"] = named.column
    elif header.prior is not None and prior is not None and not same(header.prior, prior):
        raise PriorError(
            f"{files[0]} has a prior of its own, and another is given: leave it out; to infer under another prior, "
            "write a file with proposal weights p(theta) / p~(theta)."
        )
    return header, table, header.restore_prior(prior)


def _same(header: Header) -> tuple[Any, ...]:
    return header.names, header.prior, {name: o.describe() for name, o in header.observables.items()}
