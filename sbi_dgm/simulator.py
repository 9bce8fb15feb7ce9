"""What a simulator is, how it says that rows failed, and how one is found by name.

A plug-in is one file and one line in its package's metadata, under the entry-point group
`sbi_dgm.simulators`; the library itself imports none.
"""

from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import entry_points
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sbi_dgm.errors import DataError, OptionError, SbiError, unknown
from sbi_dgm.parameters import Observable
from sbi_dgm.priors import Prior

GROUP = "sbi_dgm.simulators"
WEIGHT = "event_weight"
TINIEST = float(np.finfo(np.float32).tiny)
Outcome = tuple[dict[str, np.ndarray], dict[int, BaseException]]  # what was given; why rows failed, by their numbers
TELLING, CLOSE = 10, 2.0**-18  # rows that show whether float32 tells them apart, and how close such values lie


@runtime_checkable
class Simulator(Protocol):
    """A sampler of p(x | theta), batched, numpy only. Campaigns keep floats of x to seven digits (float32).

    Where the mathematics allows, it also offers `log_likelihood(theta, x)`, `reference_posterior(x, n, rng)`
    (exact or asymptotically exact draws for any x) and `observed` (real data by observable's name).

    A row fails by a number that is not finite. A batch that raises is run again, row by row; a simulator that knows
    which rows failed raises `FailedRowsError` instead, and nothing is run twice.

    A simulator of weighted events says so by an attribute `weighted = True`. Its output is a dict that holds
    `event_weight` (B,) beside the observables, finite numbers of either sign; a row with another number fails.

    Attributes:
        name: as the command line calls it.
        prior: of theta.
        observables: what x has, by name.

    """

    name: str
    prior: Prior
    observables: Mapping[str, Observable]

    def __call__(self, theta: np.ndarray, rng: np.random.Generator) -> "np.ndarray | dict[str, np.ndarray]":
        """Theta (B, D) -> x (B, ...), or a dict of them by observable's name."""
        ...


class FailedRowsError(SbiError):
    """Some rows of a batch failed, each with its own exception; the others are there.

    Attributes:
        x: the whole batch, with anything in the failed rows; None where no row succeeded.
        errors: the exception of each failed row, by its number.

    """

    def __init__(self, x: Any, errors: Mapping[int, BaseException]) -> None:
        self.x, self.errors = x, dict(errors)
        if not self.errors:
            raise OptionError("no row is said to have failed: return x instead of FailedRowsError.")
        row, error = next(iter(self.errors.items()))
        super().__init__(f"{len(self.errors)} rows failed, first row {row}: {reason(error)}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.x, self.errors)


class MisfitError(DataError):
    """What no other theta will cure: an output of the wrong shape, a program that is not there.

    A shard of nothing else ends its campaign.
    """


def reason(error: BaseException) -> str:
    """Why a row failed, in one line."""
    text = str(error) if isinstance(error, SbiError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())


def one_by_one(function: Callable[[int], Any], rows: int) -> Any:
    """The batch whose row i is function(i), an array or a dict of them.

    Raises:
        FailedRowsError: some of the calls raised.

    """
    found: dict[int, Any] = {}
    errors: dict[int, BaseException] = {}
    for i in range(rows):
        try:
            found[i] = function(i)
        except (Exception, SystemExit) as error:  # noqa: BLE001  (a simulator may raise anything)
            errors[i] = error
    model = next(iter(found.values()), None)
    x = None if model is None else _stacked([found.get(i, model) for i in range(rows)])
    if errors:
        raise FailedRowsError(x, errors)
    return x


def _stacked(rows: list[Any]) -> Any:
    if isinstance(rows[0], Mapping):
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return np.stack([np.asarray(row) for row in rows])


def is_weighted(simulator: Simulator) -> bool:
    """Whether it gives weighted events."""
    return bool(getattr(simulator, "weighted", False))


def event_weight(simulator: Simulator, output: Any, rows: int) -> dict[str, np.ndarray]:
    """The weights (B,) that a simulator of weighted events gave, in float64; nothing of any other simulator.

    Raises:
        MisfitError: they are missing, are no numbers, have another shape, or were not announced.

    """
    given, observed = output if isinstance(output, Mapping) else {}, WEIGHT in simulator.observables
    if not is_weighted(simulator):
        if WEIGHT in given and not observed:
            raise MisfitError(f"gave {WEIGHT!r}, and has no attribute weighted = True to say so")
        return {}
    if observed:
        raise MisfitError(f"has an observable called {WEIGHT!r}, as its weights are: call it something else")
    fitted({WEIGHT: Observable(())}, given, rows)
    return {WEIGHT: np.asarray(given[WEIGHT], np.float64)}


def attempted(
    simulator: Simulator, theta: np.ndarray, rng: np.random.Generator, alone: Callable[[int], np.random.Generator]
) -> Outcome:
    """What a simulator gives for a batch, and why rows failed, by their numbers.

    Where it raises for the batch it is run for each row, with the random numbers that `alone` has for it.

    Raises:
        DataError: no row fits the observables, as no row at another theta will.

    """
    rows = len(theta)

    def one(row: int) -> dict[str, np.ndarray]:
        x, errors = _tried(simulator, partial(simulator, theta[row : row + 1], alone(row)), 1)
        for error in errors.values():
            raise error
        return {name: a[0] for name, a in x.items()}

    try:
        x, errors = _tried(simulator, partial(simulator, theta, rng), rows)
    except (Exception, SystemExit):  # noqa: BLE001  (a simulator may raise anything; find the rows that do)
        x, errors = _tried(simulator, partial(one_by_one, one, rows), rows)
    if len(errors) == rows and all(isinstance(error, MisfitError) for error in errors.values()):
        raise DataError(f"simulator {simulator.name!r}: {reason(errors[0])}.")
    return x, errors


def _tried(simulator: Simulator, run: Callable[[], Any], rows: int) -> Outcome:
    try:
        output, errors = run(), {}
    except FailedRowsError as some:
        output, errors = some.x, some.errors
    if output is None:
        nothing = {n: np.full((rows, *o.shape), np.nan, np.float32) for n, o in simulator.observables.items()}
        return nothing | ({WEIGHT: np.full(rows, np.nan)} if is_weighted(simulator) else {}), errors
    return shaped(simulator.observables, output, rows) | event_weight(simulator, output, rows), errors


def fitted(observables: Mapping[str, Observable], output: Any, rows: int) -> dict[str, np.ndarray]:
    """A simulator's output as a dict of arrays, floats in float32; `MisfitError` by `shaped` or `narrowed`."""
    return narrowed(shaped(observables, output, rows))


def narrowed(x: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same (B, ...), floats in float32: seven digits of each number, from 1e-38 on.

    Raises:
        MisfitError: that makes equal what differs from row to row, such as hours of Julian dates, or all of it 0.

    """
    with np.errstate(over="ignore"):
        narrow = {name: a.astype(np.float32) if a.dtype.kind == "f" else a for name, a in x.items()}
    for name, a in x.items():
        if a.dtype.kind == "f" and len(a) >= TELLING:
            _require_told_apart(name, a.reshape(len(a), -1), narrow[name].reshape(len(a), -1))
    return narrow


def _require_told_apart(name: str, wide: np.ndarray, narrow: np.ndarray) -> None:
    low, high = (end.reduce(wide, axis=0) for end in (np.fmin, np.fmax))
    for entry in np.flatnonzero((np.maximum(-low, high) > 0) & (np.maximum(-low, high) < TINIEST))[:1]:
        raise MisfitError(
            f"observable {name!r}, entry {entry}: all its values lie between {low[entry]:.17g} and {high[entry]:.17g}, "
            f"and float32 begins at {TINIEST:.1g}: give it in another unit"
        )
    with np.errstate(invalid="ignore"):
        close = high - low < CLOSE * np.maximum(abs(low), abs(high))
    for entry in np.flatnonzero(close):
        before, after = (len(np.unique(a[np.isfinite(a[:, entry]), entry])) for a in (wide, narrow))
        if before > max(TELLING, len(wide)) / 2 and after < before / 2:
            raise MisfitError(
                f"observable {name!r}, entry {entry}: its values lie between {low[entry]:.17g} and {high[entry]:.17g}, "
                f"and of {before} different ones float32 keeps {after}: give it less a constant"
            )


def shaped(observables: Mapping[str, Observable], output: Any, rows: int) -> dict[str, np.ndarray]:
    """A simulator's output as a dict of arrays, as it is.

    Raises:
        MisfitError: an observable is missing, is no numbers, or has another shape than declared.

    """
    arrays = output if isinstance(output, Mapping) else {next(iter(observables)): output}
    result = {}
    for name, observable in observables.items():
        if name not in arrays:
            raise MisfitError(f"gave {sorted(arrays)}, without its observable {name!r}")
        a = np.asarray(arrays[name])
        if a.shape[:1] != (rows,):
            raise MisfitError(f"observable {name!r} has shape {a.shape}, expected {(rows, *observable.shape)}")
        if a.shape[1:] != observable.shape:
            raise MisfitError(f"observable {name!r} has shape {a.shape[1:]}, expected {observable.shape}")
        if a.dtype.kind not in "biuf":
            raise MisfitError(f"observable {name!r} is of type {a.dtype}, not of real numbers")
        if observable.optional and a.dtype.kind != "f":
            raise MisfitError(f"observable {name!r} may be absent and is of type {a.dtype}, without NaN: give floats")
        result[name] = a
    return result


def available() -> dict[str, Any]:
    """The installed simulators: name -> entry point."""
    return {point.name: point for point in entry_points(group=GROUP)}


def find(name: "str | Simulator") -> Simulator:
    """The installed simulator called `name`, made anew; what `package.module:Object` means; or the object.

    Raises:
        OptionError: there is none of that name, or it is no simulator.

    """
    if not isinstance(name, str):
        return require(name)
    if ":" in name:
        return _imported(name)
    known = available()
    if name not in known:
        raise OptionError(unknown("simulator", name, known))
    return known[name].load()()


def _imported(place: str) -> Simulator:
    from sbi_dgm.options import imported

    thing = imported(place)
    return require(thing() if isinstance(thing, type) else thing, repr(place))


def require(thing: Any, name: str = "") -> Simulator:
    """The thing, or `OptionError` where it is no simulator."""
    if isinstance(thing, type) or not isinstance(thing, Simulator):
        raise OptionError(
            f"{name or repr(thing)} is no simulator: it needs name, prior, observables and __call__(theta, rng)."
        )
    return thing


def unbatched(function: Callable[..., Any]) -> Callable[..., Any]:
    """Lift f(theta (D,), rng) -> x to batches: theta (B, D) -> x (B, ...), row after row.

    A row that raises costs only itself: the others come with `FailedRowsError`.

    >>> f = unbatched(lambda theta, rng: theta.sum())
    >>> f(np.ones((3, 2)), np.random.default_rng(0)).tolist()
    [2.0, 2.0, 2.0]
    """

    def batched(theta: np.ndarray, rng: np.random.Generator) -> "np.ndarray | dict[str, np.ndarray]":
        return one_by_one(lambda i: function(theta[i], rng), len(theta))

    return batched
