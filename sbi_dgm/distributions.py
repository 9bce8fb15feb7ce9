r"""One-dimensional priors, each a bijection between its support and the real line.

With F the distribution's CDF and Phi the standard normal's,

.. math::  z = \Phi^{-1}(F(v)), \qquad v = F^{-1}(\Phi(z)),

so v ~ F exactly where z ~ N(0, 1). The upper half goes through the survival function 1 - F, which
keeps its digits where F rounds to one. A closed edge of the support maps to |z| = 8.2, where Phi leaves
float64's resolution.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import astuple, dataclass
from math import erfc, inf, log, pi, sqrt
from sys import float_info
from typing import Any, ClassVar

import numpy as np
import scipy
from numpy.typing import NDArray

from sbi_dgm.errors import PriorError, unknown

Array = NDArray[np.float64]

EDGE = 8.2  # |z| of a closed edge
FAR = 1e-200  # the smallest tail asked of a `ppf` (|z| = 30): an open edge is never reached
LOG_ROOT_2PI = 0.5 * log(2 * pi)


class Distribution(ABC):
    """A distribution of one number v with support [low, high]; arrays of any shape in and out."""

    low: float
    high: float

    @abstractmethod
    def log_prob(self, v: Array) -> Array:
        """ln of the density at v inside the support."""

    @abstractmethod
    def cdf(self, v: Array) -> Array:
        """F(v)."""

    @abstractmethod
    def sf(self, v: Array) -> Array:
        """1 - F(v), with its own digits."""

    @abstractmethod
    def ppf(self, p: Array) -> Array:
        """The inverse of `cdf`."""

    @abstractmethod
    def isf(self, p: Array) -> Array:
        """The inverse of `sf`."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """This distribution as JSON; `restore` is the inverse."""

    def to_normal(self, v: Array) -> Array:
        """z of v in the support, within [-8.2, 8.2]."""
        below, above = self.cdf(v), self.sf(v)
        return np.clip(np.where(below < above, scipy.special.ndtri(below), -scipy.special.ndtri(above)), -EDGE, EDGE)

    def from_normal(self, z: Array) -> Array:
        """v of z: the inverse of `to_normal`, never outside the support."""
        tail = np.maximum(scipy.special.ndtr(-np.abs(z)), FAR)
        return np.clip(np.where(z < 0, self.ppf(tail), self.isf(tail)), self.low, self.high)


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise PriorError(sentence)


class _Named(Distribution):
    """A distribution that is its name and its numbers."""

    def describe(self) -> dict[str, Any]:
        name = next(name for name, kind in DISTRIBUTIONS.items() if kind is type(self))
        return {name: list(astuple(self))}  # type: ignore[call-overload]


@dataclass(frozen=True)
class Uniform(_Named):
    """Constant density 1 / (high - low) on [low, high].

    >>> Uniform(0.1, 0.5).to_normal(np.array([0.1, 0.5])).tolist()
    [-8.2, 8.2]
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        ordered = -inf < self.low < self.high < inf
        _require(ordered, f"Uniform({self.low}, {self.high}): give finite bounds with low < high.")

    def log_prob(self, v: Array) -> Array:
        return np.full(np.shape(v), -log(self.high - self.low))

    def cdf(self, v: Array) -> Array:
        return (v - self.low) / (self.high - self.low)

    def sf(self, v: Array) -> Array:
        return (self.high - v) / (self.high - self.low)

    def ppf(self, p: Array) -> Array:
        return self.low + (self.high - self.low) * p

    def isf(self, p: Array) -> Array:
        return self.high - (self.high - self.low) * p


@dataclass(frozen=True)
class LogUniform(_Named):
    """Density proportional to 1 / v on [low, high], low > 0: ln v is uniform."""

    low: float
    high: float

    def __post_init__(self) -> None:
        ordered = 0 < self.low < self.high < inf
        _require(ordered, f"LogUniform({self.low}, {self.high}): give finite bounds with 0 < low < high.")

    @property
    def _log(self) -> Uniform:
        return Uniform(log(self.low), log(self.high))

    def log_prob(self, v: Array) -> Array:
        return self._log.log_prob(v) - np.log(v)

    def cdf(self, v: Array) -> Array:
        return np.log(v / self.low) / log(self.high / self.low)

    def sf(self, v: Array) -> Array:
        return np.log(self.high / v) / log(self.high / self.low)

    def ppf(self, p: Array) -> Array:
        return np.exp(self._log.ppf(p))

    def isf(self, p: Array) -> Array:
        return np.exp(self._log.isf(p))


@dataclass(frozen=True)
class Normal(_Named):
    """Normal with the given mean and standard deviation: z = (v - mean) / sd."""

    mean: float
    sd: float
    low: ClassVar[float] = -inf
    high: ClassVar[float] = inf

    def __post_init__(self) -> None:
        proper = -inf < self.mean < inf and 0 < self.sd < inf
        _require(proper, f"Normal({self.mean}, {self.sd}): give a finite mean and 0 < sd.")

    def log_prob(self, v: Array) -> Array:
        return -0.5 * self.to_normal(v) ** 2 - LOG_ROOT_2PI - log(self.sd)

    def to_normal(self, v: Array) -> Array:
        return (v - self.mean) / self.sd

    def from_normal(self, z: Array) -> Array:
        return self.mean + self.sd * z

    def cdf(self, v: Array) -> Array:
        return scipy.special.ndtr(self.to_normal(v))

    def sf(self, v: Array) -> Array:
        return scipy.special.ndtr(-self.to_normal(v))

    def ppf(self, p: Array) -> Array:
        return self.from_normal(scipy.special.ndtri(p))

    def isf(self, p: Array) -> Array:
        return self.from_normal(-scipy.special.ndtri(p))


@dataclass(frozen=True)
class LogNormal(_Named):
    """ln v is normal with the given mean and standard deviation (of ln v): z = (ln v - mean) / sd."""

    mean: float
    sd: float
    low: ClassVar[float] = float(np.nextafter(0, 1))
    high: ClassVar[float] = inf

    def __post_init__(self) -> None:
        self._log  # noqa: B018  (its own checks)

    @property
    def _log(self) -> Normal:
        return Normal(self.mean, self.sd)

    def log_prob(self, v: Array) -> Array:
        return self._log.log_prob(np.log(v)) - np.log(v)

    def to_normal(self, v: Array) -> Array:
        return self._log.to_normal(np.log(v))

    def from_normal(self, z: Array) -> Array:
        return np.exp(np.clip(self._log.from_normal(z), log(self.low), log(float_info.max)))

    def cdf(self, v: Array) -> Array:
        return self._log.cdf(np.log(v))

    def sf(self, v: Array) -> Array:
        return self._log.sf(np.log(v))

    def ppf(self, p: Array) -> Array:
        return np.exp(self._log.ppf(p))

    def isf(self, p: Array) -> Array:
        return np.exp(self._log.isf(p))


class _Frozen(Distribution):
    """Through a frozen `scipy.stats` distribution in `self.frozen`."""

    frozen: Any

    def log_prob(self, v: Array) -> Array:
        return self.frozen.logpdf(v)

    def cdf(self, v: Array) -> Array:
        return self.frozen.cdf(v)

    def sf(self, v: Array) -> Array:
        return self.frozen.sf(v)

    def ppf(self, p: Array) -> Array:
        return self.frozen.ppf(p)

    def isf(self, p: Array) -> Array:
        return self.frozen.isf(p)


@dataclass(frozen=True)
class TruncatedNormal(_Named, _Frozen):
    """Normal(mean, sd) restricted to [low, high] and renormalised."""

    mean: float
    sd: float
    low: float
    high: float

    def __post_init__(self) -> None:
        proper = -inf < self.mean < inf and 0 < self.sd < inf and self.low < self.high
        _require(proper, f"TruncatedNormal({self.mean}, {self.sd}, {self.low}, {self.high}): give sd > 0, low < high.")
        mass = 0.5 * (
            erfc((self.low - self.mean) / self.sd / sqrt(2)) - erfc((self.high - self.mean) / self.sd / sqrt(2))
        )
        _require(
            mass > 1e-12, f"TruncatedNormal: [{self.low}, {self.high}] holds only {mass:.1e} of the normal's mass."
        )

    @property
    def frozen(self) -> Any:  # type: ignore[override]
        low, high = (self.low - self.mean) / self.sd, (self.high - self.mean) / self.sd
        return scipy.stats.truncnorm(low, high, self.mean, self.sd)


@dataclass(frozen=True)
class HalfNormal(_Named, _Frozen):
    """|v| of a normal with mean 0 and scale sd: support [0, inf)."""

    sd: float
    low: ClassVar[float] = 0.0
    high: ClassVar[float] = inf

    def __post_init__(self) -> None:
        _require(0 < self.sd < inf, f"HalfNormal({self.sd}): give 0 < sd.")

    @property
    def frozen(self) -> Any:  # type: ignore[override]
        return scipy.stats.halfnorm(scale=self.sd)


@dataclass(frozen=True)
class Beta(_Named, _Frozen):
    """Beta(a, b) stretched to [low, high]."""

    a: float
    b: float
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        proper = self.a > 0 and self.b > 0 and -inf < self.low < self.high < inf
        _require(proper, f"Beta({self.a}, {self.b}, {self.low}, {self.high}): give a, b > 0 and low < high.")

    @property
    def frozen(self) -> Any:  # type: ignore[override]
        return scipy.stats.beta(self.a, self.b, self.low, self.high - self.low)


class Scipy(_Frozen):
    """Any frozen continuous distribution of `scipy.stats`.

    >>> from scipy.stats import gamma
    >>> Scipy(gamma(2.0, scale=3.0)).describe()
    {'scipy': ['gamma', 2.0, {'scale': 3.0}]}
    """

    def __init__(self, frozen: Any) -> None:
        from scipy import stats

        kind = getattr(frozen, "dist", None)
        _require(
            isinstance(kind, stats.rv_continuous) and type(kind) is type(getattr(stats, kind.name, None)),
            f"{frozen!r} is no prior: give one of this library, or a frozen continuous distribution of scipy.stats.",
        )
        self.frozen = frozen
        low, high = frozen.support()
        numbers = f"scipy.stats.{frozen.dist.name} with {frozen.args} and {frozen.kwds}"
        _require(np.ndim(low) == 0 and bool(low < high), f"{numbers} is no distribution of one number.")
        self.low, self.high = float(low), float(high)

    def describe(self) -> dict[str, Any]:
        numbers = [float(a) for a in self.frozen.args]
        return {"scipy": [self.frozen.dist.name, *numbers, {k: float(v) for k, v in self.frozen.kwds.items()}]}


DISTRIBUTIONS: dict[str, type[_Named]] = {
    "uniform": Uniform,
    "log_uniform": LogUniform,
    "normal": Normal,
    "log_normal": LogNormal,
    "truncated_normal": TruncatedNormal,
    "half_normal": HalfNormal,
    "beta": Beta,
}


def as_distribution(prior: Any) -> Distribution:
    """`prior` itself, or a frozen scipy distribution wrapped; anything else is refused."""
    return prior if isinstance(prior, Distribution) else Scipy(prior)


def restore(description: dict[str, Any]) -> Distribution:
    """The inverse of `Distribution.describe`: names from an allow-list, numbers, and nothing that runs.

    >>> restore({"uniform": [0.1, 0.5]})
    Uniform(low=0.1, high=0.5)
    """
    if not isinstance(description, dict) or len(description) != 1:
        raise PriorError(f"a prior is one name with its numbers, such as {{'uniform': [0, 1]}}; not {description!r}.")
    ((name, numbers),) = description.items()
    if name == "circular":
        raise PriorError("a circular prior needs a periodic family, and none exists yet: use uniform on one period.")
    if name not in RESTORED:
        raise PriorError(unknown("prior", name, RESTORED))
    try:
        return RESTORED[name](*numbers)
    except TypeError as error:
        raise PriorError(f"prior {name} with {numbers!r}: {error}.") from None


def _restore_scipy(name: str, *numbers: Any) -> Distribution:
    from scipy import stats

    kind = getattr(stats, name, None)
    if not isinstance(kind, stats.rv_continuous):
        raise PriorError(f"scipy.stats has no continuous distribution named {name!r}.")
    arguments, keywords = (numbers[:-1], numbers[-1]) if numbers and isinstance(numbers[-1], dict) else (numbers, {})
    return Scipy(kind(*arguments, **keywords))


RESTORED: dict[str, Callable[..., Distribution]] = {**DISTRIBUTIONS, "scipy": _restore_scipy}


def standard_normal_log_prob(z: Array) -> Array:
    """ln N(z; 0, I), summed over the last axis."""
    return -0.5 * (z**2).sum(-1) - z.shape[-1] * LOG_ROOT_2PI
