"""Joint priors over named parameters.

A prior is its parameters and its coordinates: under them it is N(0, I) itself, so that drawing is mapping
normal draws back, and ln p(theta) = ln N(z; 0, I) + ln |det dz/dtheta|.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import scipy
from numpy.typing import ArrayLike, DTypeLike

from sbi_dgm import distributions
from sbi_dgm.coordinates import Affine, Coordinates, Cube, Independent, snap
from sbi_dgm.distributions import Uniform
from sbi_dgm.errors import ExternalError, PriorError, unknown
from sbi_dgm.kinds import floats, is_a, several, shown, texts, whole
from sbi_dgm.parameters import Parameter
from sbi_dgm.seeds import fresh, numpy_generator
from sbi_dgm.univariate import Array, standard_normal_log_prob

DRAWS = 14  # stream of random numbers: that of numpy.random.default_rng(seed) is left to noise of the user's


class Prior:
    """Independent parameters, each with a prior of its own.

    Args:
        parameters: with unique names; at least one.

    >>> from sbi_dgm.distributions import Normal, Uniform
    >>> prior = Prior([Parameter("a", Uniform(0, 2)), Parameter("b", Normal(0, 1))])
    >>> prior.sample(3, seed=0).shape
    (3, 2)
    >>> round(float(prior.log_prob(np.array([1.0, 0.0]))), 4)
    -1.6121

    """

    coordinates: Coordinates

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self._name(parameters)
        for parameter in self.parameters:
            if parameter.prior is None:
                raise PriorError(f"parameter {parameter.name!r} has no prior: give it one.")
        self.coordinates = Independent([p.prior for p in self.parameters])

    def _name(self, parameters: Sequence[Parameter | str]) -> None:
        given = several("parameters", parameters, "parameters", PriorError)
        named = [Parameter(p) if isinstance(p, str) else p for p in given]
        self.parameters = tuple(is_a("an entry of parameters", p, Parameter, "a Parameter", PriorError) for p in named)
        self.names = tuple(p.name for p in self.parameters)
        if not self.names or len(set(self.names)) < len(self.names):
            raise PriorError(f"a prior needs parameters with unique names; got {list(self.names)}.")

    def __len__(self) -> int:
        return len(self.parameters)

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        """n draws (n, D) from the given generator."""
        return self.coordinates.inverse(rng.standard_normal((n, len(self))))

    def sample(self, n: int, seed: int | None = None) -> Array:
        """n draws (n, D)."""
        return self.draw(whole("n", n, 0), numpy_generator(fresh(seed), DRAWS))

    def log_prob(self, theta: ArrayLike) -> Array:
        """ln p(theta): (..., D) -> (...); -inf outside the support."""
        theta = self._array(theta)
        within = np.asarray(self.coordinates.inside(theta).all(-1))
        anchored = np.where(within[..., None], theta, self.coordinates.inverse(np.zeros(len(self))))
        z, log_det = self.coordinates.forward(anchored)
        return np.where(within, standard_normal_log_prob(z) + log_det, -np.inf)

    def standardise(self, theta: ArrayLike, dtype: DTypeLike = np.float64) -> Array:
        """z of theta (N, D), or `PriorError` naming the first row outside.

        Args:
            dtype: of the file that theta comes from; within 4 ulp of it an edge counts as reached (`|z| = 8.2`).

        """
        return self.coordinates.forward(self.check(self._array(theta), dtype))[0]

    def check(self, theta: Array, dtype: DTypeLike = np.float64, first: int = 0) -> Array:
        """Theta (N, D), snapped to edges within reach; `PriorError` where an entry is outside its bounds.

        Args:
            first: number of the first row, for the sentence.

        """
        theta = snap(theta, self.coordinates, dtype)
        bad = ~self.coordinates.inside(theta).reshape(-1, len(self))
        for row, column in np.argwhere(bad)[:1]:
            raise PriorError(
                f"theta row {first + row}: {self.outside(theta.reshape(bad.shape)[row], column)} "
                f"({int(bad.any(-1).sum())} of {len(bad)} rows are): correct the prior or drop them."
            )
        return theta

    def outside(self, theta: Array, column: int) -> str:
        """Words for an entry of theta (D,) outside of the support: name, value, bounds."""
        low, high = self.coordinates.low[column], self.coordinates.high[column]
        where = "'s support" if isinstance(self.coordinates, Cube) else f" [{low:g}, {high:g}]"
        return f"{self.names[column]} = {float(theta[column])} is outside its prior{where}"

    def _array(self, theta: ArrayLike) -> Array:
        theta = floats("theta", theta, PriorError)
        if theta.ndim == 0 or theta.shape[-1] != len(self):
            raise PriorError(f"theta has shape {theta.shape}: its last axis must hold the {len(self)} parameters.")
        return theta

    def marginal(self, names: Sequence[str]) -> "Prior | None":
        """The prior of some of the parameters; None where it has no closed form."""
        return Prior([self.parameters[i] for i in self._positions(names)])

    def _positions(self, names: Sequence[str]) -> list[int]:
        names = texts("names", names, PriorError)
        for name in names:
            if name not in self.names:
                raise PriorError(unknown("parameter", name, self.names))
        return [self.names.index(name) for name in names]

    def describe(self) -> dict[str, Any]:
        """This prior as JSON; `restore` is the inverse."""
        return {"kind": "independent", "parameters": [p.describe() for p in self.parameters]}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Prior) and self.describe() == other.describe()

    def __hash__(self) -> int:
        return hash(self.names)


class MultivariateNormal(Prior):
    """A correlated normal prior.

    Args:
        parameters: parameters or names, D of them.
        mean: (D,).
        covariance: (D, D), positive definite.

    """

    def __init__(self, parameters: Sequence[Parameter | str], mean: ArrayLike, covariance: ArrayLike) -> None:
        self._name(parameters)
        self.mean, self.covariance = floats("mean", mean, PriorError), floats("covariance", covariance, PriorError)
        d = len(self)
        if self.mean.shape != (d,) or self.covariance.shape != (d, d):
            raise PriorError(
                f"{d} parameters need mean ({d},) and covariance ({d}, {d}); "
                f"got {self.mean.shape} and {self.covariance.shape}."
            )
        finite = np.isfinite(self.mean).all() and np.isfinite(self.covariance).all()
        if not (finite and np.allclose(self.covariance, self.covariance.T, atol=1e-12 * np.abs(self.covariance).max())):
            raise PriorError("a multivariate normal needs a finite mean and a finite, symmetric covariance.")
        self.coordinates = Affine(self.mean, self.covariance)

    def marginal(self, names: Sequence[str]) -> Prior:
        keep = self._positions(names)
        parameters = [self.parameters[i] for i in keep]
        return MultivariateNormal(parameters, self.mean[keep], self.covariance[np.ix_(keep, keep)])

    def describe(self) -> dict[str, Any]:
        moments = {"mean": self.mean.tolist(), "covariance": self.covariance.tolist()}
        return {"kind": "multivariate_normal", "parameters": [p.describe() for p in self.parameters], **moments}


class PriorTransform(Prior):
    """Any joint prior, given as a bijection with the unit cube (the nested samplers' convention).

    Args:
        parameters: parameters or names.
        from_cube: u (..., D) in [0, 1]^D -> theta (..., D), such that uniform u give draws of the prior.
        to_cube: its inverse; outside the support it is outside the open cube, or not a number.

    """

    def __init__(
        self,
        parameters: Sequence[Parameter | str],
        from_cube: Callable[[Array], Array],
        to_cube: Callable[[Array], Array],
    ) -> None:
        self._name(parameters)
        for name, function in (("from_cube", from_cube), ("to_cube", to_cube)):
            is_a(name, function, Callable, "a function", PriorError)
        self.coordinates = Cube(from_cube, to_cube, len(self))
        probe = _probe(len(self))
        error = np.abs(self.coordinates.forward(self.coordinates.inverse(probe))[0] - probe).max()
        if not error < 1e-6:
            raise PriorError(f"to_cube is not the inverse of from_cube: z -> theta -> z is off by {error:.1e}.")

    def marginal(self, names: Sequence[str]) -> Prior | None:
        return _whole(self, names)

    def describe(self) -> dict[str, Any]:
        names = [p.describe() for p in self.parameters]
        return {"kind": "external", "parameters": names, "fingerprint": fingerprint(self.coordinates, len(self))}


class Density(Protocol):
    """A joint distribution that only draws and evaluates."""

    def sample(self, n: int, rng: np.random.Generator) -> ArrayLike:
        """n draws (n, D)."""
        ...

    def log_prob(self, theta: Array) -> ArrayLike:
        """ln p(theta): (..., D) -> (...)."""
        ...


class BoundedPrior(Prior):
    """Any joint prior within finite bounds, given by its draws and its density.

    Its coordinates are those of the uniform distribution between the bounds, so that draws stay between
    them; where the prior's support is smaller than the box, give a `PriorTransform` instead.

    Args:
        parameters: parameters or names.
        density: an object with `sample(n, rng)` and `log_prob(theta)`.
        low, high: (D,), finite.
    """

    def __init__(
        self, parameters: Sequence[Parameter | str], density: Density, low: Sequence[float], high: Sequence[float]
    ) -> None:
        self._name(parameters)
        least, most = floats("low", low, PriorError), floats("high", high, PriorError)
        if not least.shape == most.shape == (len(self),):
            raise PriorError(f"{len(self)} parameters need as many bounds; got {least.shape} and {most.shape}.")
        if not (callable(getattr(density, "sample", None)) and callable(getattr(density, "log_prob", None))):
            raise PriorError(f"density = {shown(density)}: give an object with sample(n, rng) and log_prob(theta).")
        self.density = density
        self.coordinates = Independent([Uniform(*edges) for edges in zip(least.tolist(), most.tolist(), strict=True)])

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        return self._array(self.density.sample(n, rng))

    def log_prob(self, theta: ArrayLike) -> Array:
        theta = self._array(theta)
        within = np.asarray(self.coordinates.inside(theta).all(-1))
        centre = self.coordinates.inverse(np.zeros(len(self)))
        return np.where(within, self.density.log_prob(np.where(within[..., None], theta, centre)), -np.inf)

    def marginal(self, names: Sequence[str]) -> Prior | None:
        return _whole(self, names)

    def describe(self) -> dict[str, Any]:
        names, probe = [p.describe() for p in self.parameters], self.coordinates.inverse(_probe(len(self)))
        told = fingerprint(self.coordinates, len(self), *np.ravel(self.density.log_prob(probe)))
        return {"kind": "external", "parameters": names, "fingerprint": told}


def _probe(dimension: int) -> Array:
    levels = (np.arange(1, 17)[:, None] * np.sqrt([2.0 + 3 * k for k in range(dimension)])) % 1
    return scipy.special.ndtri(0.02 + 0.96 * levels)


def _whole(prior: Prior, names: Sequence[str]) -> Prior | None:
    """The prior itself for all of its parameters, None for some of them; of a function the order is fixed."""
    asked = texts("names", names, PriorError)
    if asked != prior.names and set(asked) == set(prior.names):
        raise PriorError(f"a prior that is a function keeps the order of its parameters: {', '.join(prior.names)}.")
    return prior if asked == prior.names else None


def fingerprint(coordinates: Coordinates, dimension: int, *more: float) -> str:
    """A short hash of where the coordinates take sixteen fixed points, and of more numbers, to nine digits."""
    values = [f"{value:.9g}" for value in (*coordinates.inverse(_probe(dimension)).ravel(), *more)]
    return hashlib.sha256(" ".join(values).encode()).hexdigest()[:16]


def restore(description: dict[str, Any], external: Prior | None = None) -> Prior:
    """The inverse of `Prior.describe`.

    Args:
        external: the prior itself, where the description only has its fingerprint.

    """
    parameters = [Parameter.restore(p) for p in description["parameters"]]
    kind = description["kind"]
    if kind == "independent":
        return Prior(parameters)
    if kind == "multivariate_normal":
        return MultivariateNormal(parameters, description["mean"], description["covariance"])
    if kind != "external":
        raise PriorError(f"a prior of kind {kind!r} is unknown to this version: update sbi_dgm.")
    if external is None:
        raise ExternalError("the prior is a function that no file can hold: pass it as prior=...")
    is_a("prior", external, Prior, "the prior of the file", ExternalError)
    if external.describe().get("fingerprint") != description["fingerprint"]:
        raise ExternalError("the prior passed is not the one of the file: they map the unit cube differently.")
    return external


def same(description: Mapping[str, Any], prior: Prior) -> bool:
    """Whether a prior is the one that `Prior.describe` told, whatever its labels and units."""

    def bare(told: Mapping[str, Any]) -> dict[str, Any]:
        return {**told, "parameters": [(p["name"], p["prior"]) for p in told["parameters"]]}

    return json.dumps(bare(description)) == json.dumps(bare(prior.describe()))


def known(table: Mapping[str, Any]) -> Prior:
    """A prior from what `Prior.describe` gives, or from a table as `tabulated` reads it."""
    return restore(dict(table)) if isinstance(table.get("kind"), str) else tabulated(table)


def tabulated(table: Mapping[str, Any]) -> Prior:
    r"""Independent priors from a table, as a TOML file's `[prior]` holds it.

    Args:
        table: parameter's name -> its distribution, with `label` and `unit` where wanted; in order.

    >>> tabulated({"omega_m": {"uniform": [0.1, 0.5], "label": "\\\\Omega_m"}, "h": {"normal": [0.7, 0.1]}}).names
    ('omega_m', 'h')

    """
    return Prior([_tabulated(name, entry) for name, entry in table.items()])


def _tabulated(name: str, entry: Any) -> Parameter:
    if not isinstance(entry, Mapping):
        raise PriorError(f"prior of {name!r}: {entry!r} is no table; write {{uniform = [0, 1]}}.")
    described = {key: str(entry[key]) for key in ("label", "unit") if key in entry}
    distribution = {key: value for key, value in entry.items() if key not in described}
    try:
        return Parameter(name, distributions.restore(distribution), **described)
    except PriorError as error:
        raise PriorError(f"prior of {name!r}: {error}") from None
