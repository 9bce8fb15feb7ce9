r"""One-dimensional priors: uniform, normal, what bends into them, and frozen ones of scipy."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import erfc, inf, log, nan, sqrt
from sys import float_info
from typing import Any, ClassVar

import numpy as np
import scipy

from sbi_dgm.errors import PriorError, unknown
from sbi_dgm.kinds import number
from sbi_dgm.univariate import LOG_ROOT_2PI, Array, Distribution, require


class _Named(Distribution):
    """A distribution that is its name and its numbers, the fields of a dataclass."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if type(value) is not float:
                vars(self)[name] = number(f"prior {type(self).__name__.lower()}: {name}", value, PriorError)
        self._check()

    @abstractmethod
    def _check(self) -> None:
        """`PriorError` for numbers that are no distribution."""

    def describe(self) -> dict[str, Any]:
        name = next(name for name, kind in DISTRIBUTIONS.items() if kind is type(self))
        return {name: list(vars(self).values())}


@dataclass(frozen=True)
class Uniform(_Named):
    """Constant density 1 / (high - low) on [low, high].

    >>> Uniform(0.1, 0.5).to_normal(np.array([0.1, 0.5])).tolist()
    [-8.2, 8.2]
    """

    low: float
    high: float

    def _check(self) -> None:
        ordered = -inf < self.low < self.high < inf
        require(ordered, f"Uniform({self.low}, {self.high}): give finite bounds with low < high.")

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

    def _check(self) -> None:
        ordered = 0 < self.low < self.high < inf
        require(ordered, f"LogUniform({self.low}, {self.high}): give finite bounds with 0 < low < high.")

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

    def _check(self) -> None:
        proper = -inf < self.mean < inf and 0 < self.sd < inf
        require(proper, f"Normal({self.mean}, {self.sd}): give a finite mean and 0 < sd.")

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


class _Curved(_Named):
    """t(v) is normal, for an increasing curve t: z = (t(v) - mean) / sd."""

    mean: float
    sd: float

    def _check(self) -> None:
        self._normal  # noqa: B018  (its own checks)

    @property
    def _normal(self) -> Normal:
        return Normal(self.mean, self.sd)

    @abstractmethod
    def _bent(self, v: Array) -> Array:
        """The curve t(v)."""

    @abstractmethod
    def _straight(self, t: Array) -> Array:
        """The inverse of t, finite and in the support for any t."""

    @abstractmethod
    def _log_slope(self, v: Array) -> Array:
        """ln dt/dv."""

    def log_prob(self, v: Array) -> Array:
        return self._normal.log_prob(self._bent(v)) + self._log_slope(v)

    def to_normal(self, v: Array) -> Array:
        return self._normal.to_normal(self._bent(v))

    def from_normal(self, z: Array) -> Array:
        return self._straight(self._normal.from_normal(z))

    def cdf(self, v: Array) -> Array:
        return self._normal.cdf(self._bent(v))

    def sf(self, v: Array) -> Array:
        return self._normal.sf(self._bent(v))

    def ppf(self, p: Array) -> Array:
        return self._straight(self._normal.ppf(p))

    def isf(self, p: Array) -> Array:
        return self._straight(self._normal.isf(p))


@dataclass(frozen=True)
class LogNormal(_Curved):
    """ln v is normal with the given mean and standard deviation (of ln v): z = (ln v - mean) / sd."""

    mean: float
    sd: float
    low: ClassVar[float] = float(np.nextafter(0, 1))
    high: ClassVar[float] = inf

    def _bent(self, v: Array) -> Array:
        return np.log(v)

    def _straight(self, t: Array) -> Array:
        return np.exp(np.clip(t, log(self.low), log(float_info.max)))

    def _log_slope(self, v: Array) -> Array:
        return -np.log(v)


@dataclass(frozen=True)
class SoftplusNormal(_Curved):
    """ln(e^v - 1) is normal with the given mean and sd: v is positive, and straight from some units on."""

    mean: float
    sd: float
    low: ClassVar[float] = float(np.nextafter(0, 1))
    high: ClassVar[float] = inf

    def _bent(self, v: Array) -> Array:
        return v - self._log_slope(v)

    def _straight(self, t: Array) -> Array:
        return np.maximum(np.logaddexp(0, t), self.low)

    def _log_slope(self, v: Array) -> Array:
        return -np.log(-np.expm1(-v))


@dataclass(frozen=True)
class JohnsonSU(_Curved):
    """arcsinh((v - median) / width) is normal of a given mean and sd (Johnson 1949): heavy tails on both sides."""

    median: float
    width: float
    mean: float
    sd: float
    low: ClassVar[float] = -inf
    high: ClassVar[float] = inf

    def _check(self) -> None:
        super()._check()
        proper = -inf < self.median < inf and 0 < self.width < inf
        require(proper, f"JohnsonSU({self.median}, {self.width}, ...): give a finite median and 0 < width.")

    def _bent(self, v: Array) -> Array:
        return np.arcsinh((v - self.median) / self.width)

    def _straight(self, t: Array) -> Array:
        return self.median + self.width * np.sinh(np.clip(t, -600, 600))

    def _log_slope(self, v: Array) -> Array:
        return -np.log(np.hypot(v - self.median, self.width))


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

    def _check(self) -> None:
        proper = -inf < self.mean < inf and 0 < self.sd < inf and self.low < self.high
        require(proper, f"TruncatedNormal({self.mean}, {self.sd}, {self.low}, {self.high}): give sd > 0, low < high.")
        low, high = ((edge - self.mean) / self.sd / sqrt(2) for edge in (self.low, self.high))
        mass = 0.5 * (erfc(low) - erfc(high))
        require(mass > 1e-12, f"TruncatedNormal: [{self.low}, {self.high}] holds only {mass:.1e} of the normal's mass.")

    @property
    def frozen(self) -> Any:  # type: ignore[override]
        low, high = (self.low - self.mean) / self.sd, (self.high - self.mean) / self.sd
        return scipy.stats.truncnorm(low, high, self.mean, self.sd)


@dataclass(frozen=True)
class HalfNormal(_Named, _Frozen):
    """`|v|` of a normal with mean 0 and scale sd: support [0, inf)."""

    sd: float
    low: ClassVar[float] = 0.0
    high: ClassVar[float] = inf

    def _check(self) -> None:
        require(0 < self.sd < inf, f"HalfNormal({self.sd}): give 0 < sd.")

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

    def _check(self) -> None:
        proper = self.a > 0 and self.b > 0 and -inf < self.low < self.high < inf
        require(proper, f"Beta({self.a}, {self.b}, {self.low}, {self.high}): give a, b > 0 and low < high.")

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
        require(
            isinstance(kind, stats.rv_continuous) and type(kind) is type(getattr(stats, kind.name, None)),
            f"{frozen!r} is no prior: give one of this library, or a frozen continuous distribution of scipy.stats.",
        )
        try:
            low, high = (number("an edge", edge, PriorError) for edge in frozen.support())
        except (TypeError, ValueError, PriorError):
            low = high = nan
        whole = low < high and bool(np.all(np.abs(frozen.cdf(np.clip([low, high], -1e6, 1e6)) - 0.5) <= 0.5))
        numbers = f"{frozen.args}, {frozen.kwds}"
        require(whole, f"prior scipy.stats.{frozen.dist.name} with {numbers} is no distribution of one number.")
        self.frozen, self.low, self.high = frozen, float(low), float(high)

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
    "johnson_su": JohnsonSU,
    "softplus_normal": SoftplusNormal,
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
    if not isinstance(numbers, list | tuple):
        raise PriorError(f"prior {name} with {numbers!r}: give a list of its numbers, such as {{'uniform': [0, 1]}}.")
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
