r"""Simulations with their roles exchanged, for learning p(x | theta): x is what is learned, theta what is given.

All numbers of x stand behind each other in one vector v, in float64. Where there is a prior, theta goes by its
cumulative distribution u = F(theta) between finite bounds, else by Phi^{-1}(u): networks take even spacing best.
Whole numbers n, in files often of a floating type, are *dequantised*: v = n + u with u ~ U(0, 1), so that P(n | theta)
is the integral of p(v | theta) over [n, n + 1) (Theis, van den Oord and Bethge 2016, arXiv:1511.01844, section 3.1).

Numbers that were the same in all rows have no density; v is without them, and an observation must agree with them.

Each entry of v has its own coordinate, z = (v - m) / s, or the same of ln v, or, where tails are as heavy as
`sbi_dgm.data.scaling` says, of arcsinh((v - median) / width) (Johnson 1949, doi:10.1093/biomet/36.1-2.149): the one
whose normal makes the training rows most likely. Lighter tails stay straight: behind a sinh, draws a little too wide in
z are far too wide. Counts are bent at zero, ln(e^v - 1), so that none is drawn below it; zeros and ones are uniform on
[0, 2), so that a shift of z is a probit.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import scipy
from numpy.typing import ArrayLike

from sbi_dgm.data.scaling import HEAVY, LEVELS
from sbi_dgm.data.simulations import Simulations
from sbi_dgm.data.splits import Split
from sbi_dgm.distributions import JohnsonSU, LogNormal, Normal, SoftplusNormal, Uniform
from sbi_dgm.errors import DataError, ObservationError
from sbi_dgm.parameters import RESERVED, Observable, Parameter, total_size
from sbi_dgm.priors import Prior, restore
from sbi_dgm.seeds import numpy_generator
from sbi_dgm.univariate import Array, Distribution

LARGEST = 512  # numbers of x
GAIN = 0.05  # nats a row by which a curved coordinate must be better than a straight one
WIDTHS = 0.5 / 2.0 ** np.arange(4)  # of Johnson's S_U, in units of the central 68 %
EXACT = 2.0**24  # below it a float32 need not be whole
SEEN, OFTEN = 100_000, 0.02  # rows among which a value of this share is held for a probability, not a density
DEQUANTISE = 11  # stream of random numbers
GIVEN = "theta"  # the observable of exchanged simulations


class Roles(NamedTuple):
    """What x and theta were before they changed places.

    Attributes:
        observables: of x, by name.
        dtypes: of x in the simulations, by name.
        names: of the parameters.
        prior: of the parameters, or None.
        fixed: numbers of x that were the same in all rows, by name; v is without them.
        counts: names of the numbers of x that were whole in all rows.

    """

    observables: Mapping[str, Observable]
    dtypes: Mapping[str, str]
    names: Sequence[str]
    prior: Prior | None
    fixed: Mapping[str, float] = MappingProxyType({})
    counts: Sequence[str] = ()

    @classmethod
    def of(cls, data: Simulations) -> "Roles":
        """Those of simulations, or `DataError` where x is no vector of up to 512 numbers."""
        for name, observable in data.observables.items():
            if observable.kind == "set":
                raise DataError(f"observable {name!r} is a set: a likelihood needs vectors.")
            if observable.optional:
                raise DataError(f"observable {name!r} may be absent: a likelihood needs all of x in every simulation.")
        size = total_size(data.observables)
        if size > LARGEST:
            raise DataError(f"x has {size} numbers: a likelihood takes up to {LARGEST}; summarise x first.")
        return cls(data.observables, data.dtypes, data.names, data.prior)

    def describe(self) -> dict[str, Any]:
        """These roles as JSON."""
        return {
            "observables": {name: o.describe() for name, o in self.observables.items()},
            "dtypes": dict(self.dtypes),
            "names": list(self.names),
            "prior": None if self.prior is None else self.prior.describe(),
            "fixed": dict(self.fixed),
            "counts": list(self.counts),
        }

    @classmethod
    def restore(cls, description: Mapping[str, Any], prior: Prior | None = None) -> "Roles":
        """The inverse of `describe`; `prior` where it is a function."""
        d = description
        observables = {name: Observable.restore(o) for name, o in d["observables"].items()}
        found = None if d["prior"] is None else restore(d["prior"], prior)
        return cls(observables, d["dtypes"], d["names"], found, d["fixed"], d["counts"])

    @property
    def numbers(self) -> list[str]:
        """Names of the numbers of x: mu[0], mu[1], ..., or mu where it is a single one."""
        names: list[str] = []
        for name, observable in self.observables.items():
            names += [f"{name}[{i}]" for i in range(observable.size)] if observable.shape else [name]
        return names

    @property
    def free(self) -> np.ndarray:
        """Which numbers of x are in v."""
        return np.array([name not in self.fixed for name in self.numbers])

    @property
    def entries(self) -> list[str]:
        """Names of the numbers of v."""
        return [name for name in self.numbers if name not in self.fixed]

    @property
    def whole(self) -> np.ndarray:
        """Which entries of v are whole numbers."""
        return np.isin(self.entries, list(self.counts))

    @property
    def integers(self) -> np.ndarray:
        """Which numbers of x are of an integer type."""
        kinds = {name: np.dtype(dtype).kind in "biu" for name, dtype in self.dtypes.items()}
        return np.concatenate([np.full(o.size, kinds[name]) for name, o in self.observables.items()])

    def given(self, theta: ArrayLike) -> Array:
        """Theta (N, D) as the network sees it: u, or z where the prior has no bounds; itself without a prior."""
        theta = np.asarray(theta, np.float64)
        if theta.shape[-1:] != (len(self.names),):
            raise ObservationError(f"theta has shape {theta.shape}: its last axis must hold {list(self.names)}.")
        if self.prior is None:
            return theta
        z, bounds = self.prior.standardise(theta), (self.prior.coordinates.low, self.prior.coordinates.high)
        return np.where(np.isfinite(bounds).all(0), scipy.special.ndtr(z), z)

    def vector(self, x: Mapping[str, np.ndarray]) -> Array:
        """Observables (N, ...) by name as v (N, L), or `ObservationError` for what is impossible by all simulations.

        That is another value of a fixed number, and a fraction where numbers are whole.
        """
        flat, free = flattened(x), self.free
        counts = np.isin(self.numbers, list(self.counts))
        for row, place in np.argwhere(counts & (flat != np.floor(flat)))[:1]:
            raise ObservationError(
                f"observation {row}: {self.numbers[place]} is {flat[row, place]:g}, and whole in all simulations: "
                "check x, or its rounding in the simulations."
            )
        values = np.array([self.fixed[name] for name in self.numbers if name in self.fixed])
        for row, place in np.argwhere(flat[:, ~free] != values)[:1]:
            name, value = list(self.fixed)[place], values[place]
            raise ObservationError(
                f"observation {row}: {name} is {flat[row, ~free][place]:g}, and {value:g} in all simulations, from "
                "which nothing is learned of its likelihood: simulate more, or leave it out of x."
            )
        return flat[:, free]

    def observed(self, v: Array) -> dict[str, np.ndarray]:
        """The inverse of `vector`, (..., L) -> (..., *shape) by name; whole numbers are rounded down, to int64."""
        ends = np.cumsum([observable.size for observable in self.observables.values()])[:-1]
        flat = np.empty((*v.shape[:-1], len(self.numbers)))
        flat[..., self.free] = np.where(self.whole, np.floor(v), v)
        flat[..., ~self.free] = list(self.fixed.values())
        parts = np.split(flat, ends, axis=-1)
        named = zip(self.observables.items(), parts, strict=True)
        dtypes = {n: np.dtype(d) if np.dtype(d).kind == "f" else np.dtype(np.int64) for n, d in self.dtypes.items()}
        return {n: a.reshape(*v.shape[:-1], *o.shape).astype(dtypes[n]) for (n, o), a in named}


class Exchanged(Simulations):
    """Rows (x, theta): their "theta" is v, their one observable the parameters. Made by `exchanged` of `source`."""

    roles: Roles
    source: Simulations

    def reference(self, names: Sequence[str], rows: np.ndarray) -> tuple[Prior, bool]:
        found = []
        for v, whole, name in zip(self.theta.T, self.roles.whole, self.roles.entries, strict=True):
            if np.ptp(v[rows]) == 0:
                raise DataError(
                    f"{name} is {v[rows[0]]:g} in all training rows, and not in all others: simulate more, or leave it "
                    "out of x."
                )
            if whole and v.min() >= 0:
                found.append(counted(v[rows], binary=bool(v.max() < 2)))
            else:
                found.append(fitted(v[rows], positive=bool(v.min() > 0)))
        return Prior([Parameter(name, f) for name, f in zip(self.names, found, strict=True)]), False


def exchanged(data: Simulations, parts: Split, seed: int) -> Exchanged:
    """The valid rows of simulations with their roles exchanged, in memory; each stays in its part of the split."""
    rows = np.flatnonzero(data.valid)
    x = data.x(rows)
    flat = flattened(x)
    roles = _fixing(_counting(Roles.of(data), flat), flat)
    v = roles.vector(x)
    v = v + roles.whole * numpy_generator(seed, DEQUANTISE).random(v.shape)
    label = np.zeros(len(data), int)
    label[parts.validation], label[parts.test] = 1, 2
    event = data.column("event_weight")
    found = Exchanged.from_arrays(
        v,
        {GIVEN: roles.given(data.theta[rows])},
        names=[f"x.{name}" if name in RESERVED else name for name in roles.entries],
        split=label[rows],
        event_weight=None if event is None else event[rows],
    )
    found.roles, found.source = roles, data
    return found


def flattened(x: Mapping[str, np.ndarray]) -> Array:
    """All numbers of observables (N, ...) by name, behind each other (N, L)."""
    return np.concatenate(
        [np.asarray(a, np.float64).reshape(len(a), math.prod(a.shape[1:])) for a in x.values()], axis=1
    )


def _counting(roles: Roles, flat: Array) -> Roles:
    """The roles with what is whole in all rows as counts; a warning names what repeats itself and is not whole."""
    varies = np.ptp(flat, axis=0) > 0
    whole = roles.integers | (varies & (flat == np.floor(flat)).all(0) & (np.abs(flat).max(0) < EXACT))
    other = np.flatnonzero(varies & ~whole)
    found = [(roles.numbers[i], *_commonest(flat[:SEEN, i])) for i in other]
    told = [f"{name} = {value:g} ({share:.0%} of rows)" for name, value, share in found if share > OFTEN]
    if told:
        warnings.warn(
            f"{', '.join(told)}: a value that comes so often has a probability and no density, which training will "
            "raise without end: leave such numbers out of x, or add noise to them.",
            stacklevel=2,
        )
    return roles._replace(counts=[name for name, one in zip(roles.numbers, whole, strict=True) if one])


def _commonest(v: Array) -> tuple[float, float]:
    """The value that comes most often, and its share; 0 where it comes once."""
    values, counts = np.unique(v, return_counts=True)
    return float(values[counts.argmax()]), float(counts.max() / len(v)) if counts.max() > 1 else 0.0


def _fixing(roles: Roles, flat: Array) -> Roles:
    """The roles with what is the same in all rows fixed, counts excepted; a warning names it."""
    same = (np.ptp(flat, axis=0) == 0) & ~np.isin(roles.numbers, list(roles.counts))
    fixed = {name: float(flat[0, i]) for i, name in enumerate(roles.numbers) if same[i]}
    if len(fixed) == len(roles.numbers):
        raise DataError(f"{', '.join(fixed)}: the same in all rows: x has no density.")
    if fixed:
        named = ", ".join(f"{name} = {value:g}" for name, value in fixed.items())
        warnings.warn(f"{named} in all rows: the likelihood holds for such x alone.", stacklevel=2)
    return roles._replace(fixed=fixed)


def fitted(v: Array, positive: bool) -> Distribution:
    """The normal, log-normal or, of heavy tails, Johnson's S_U under which v (N,) is most likely.

    The normal unless it is clearly worse.

    Args:
        v: numbers.
        positive: whether they are positive in all rows, so that a log-normal may be.

    >>> rng = np.random.default_rng(0)
    >>> [type(fitted(f(rng.normal(size=5000)), True)).__name__ for f in (lambda z: 9 + z, np.exp)]
    ['Normal', 'LogNormal']

    """
    normal, curved = Normal(*_moments(v)), [LogNormal(*_moments(np.log(v)))] if positive else []
    lowest, low, median, high, highest = np.quantile(v, LEVELS).tolist()
    heavy = highest - lowest > HEAVY * (high - low) > 0
    widths = (WIDTHS * (high - low)).tolist() if heavy else []
    bent = [JohnsonSU(median, width, *_moments(np.arcsinh((v - median) / width))) for width in widths]
    return _likeliest(v, normal, [*curved, *bent])


def counted(v: Array, binary: bool) -> Distribution:
    """Of dequantised n >= 0 (N,): uniform for zeros and ones, else normal but for a bend at zero, or log-normal.

    The latter where none is zero: else its tail is the noise between zero and one.

    Args:
        v: numbers.
        binary: whether n is zero or one in all rows, these or not.

    """
    if binary:
        return Uniform(0, float(np.nextafter(2, 0)))
    bent = SoftplusNormal(0, 1).to_normal(v)
    curved = [LogNormal(*_moments(np.log(v)))] if v.min() >= 1 else []
    return _likeliest(v, SoftplusNormal(*_moments(bent)), curved)


def _likeliest(v: Array, straight: Distribution, curved: Sequence[Distribution]) -> Distribution:
    return max([straight, *curved], key=lambda d: float(d.log_prob(v).mean()) - GAIN * (d is not straight))


def _moments(v: Array) -> tuple[float, float]:
    return float(v.mean()), float(v.std())
