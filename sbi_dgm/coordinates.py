r"""Coordinates: bijections v -> z in R^D with their log-determinant, in float64.

The coordinates of a *reference* distribution r make r itself the standard normal, so that

.. math::  \ln |\det \partial z / \partial v| = \ln r(v) - \ln N(z; 0, I).

With the prior as reference, no z leaves the prior's support, and an estimator that has learned that x says nothing
gives the prior. Without a prior the reference is a stand-in: normals with the mean and standard deviation of the
training rows. One formula serves all.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import scipy
from numpy.typing import DTypeLike

from sbi_dgm.errors import PriorError
from sbi_dgm.univariate import EDGE, Array, Distribution, standard_normal_log_prob

ULP = 2.0**-52


class Coordinates(Protocol):
    """v (..., D) <-> z (..., D)."""

    low: Array
    high: Array

    def forward(self, v: Array) -> tuple[Array, Array]:
        """z (..., D) and ln |det dz/dv| (...), for v in the support."""
        ...

    def inverse(self, z: Array) -> Array:
        """v (..., D), always in the support."""
        ...

    def inside(self, v: Array) -> np.ndarray:
        """Which entries (..., D) are finite and in the support."""
        ...


class _Box:
    """A support that is a product of closed intervals."""

    low: Array
    high: Array

    def inside(self, v: Array) -> np.ndarray:
        return np.isfinite(v) & (v >= self.low) & (v <= self.high)


class Independent(_Box):
    """One distribution per column: z_i = Phi^{-1}(F_i(v_i))."""

    def __init__(self, distributions: Sequence[Distribution]) -> None:
        self.distributions = tuple(distributions)
        self.low = np.array([d.low for d in distributions])
        self.high = np.array([d.high for d in distributions])

    def forward(self, v: Array) -> tuple[Array, Array]:
        columns = list(zip(self.distributions, np.moveaxis(v, -1, 0), strict=True))
        z = np.stack([d.to_normal(column) for d, column in columns], axis=-1)
        log_reference = np.sum([d.log_prob(column) for d, column in columns], axis=0)
        return z, log_reference - standard_normal_log_prob(z)

    def inverse(self, z: Array) -> Array:
        columns = zip(self.distributions, np.moveaxis(z, -1, 0), strict=True)
        return np.stack([d.from_normal(column) for d, column in columns], axis=-1)


class Affine(_Box):
    """v = mean + L z with L the Cholesky factor of a covariance: the coordinates of a multivariate normal."""

    def __init__(self, mean: Array, covariance: Array) -> None:
        try:
            self.factor = np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError:
            raise PriorError("the covariance is not positive definite: its Cholesky factor does not exist.") from None
        self.mean = mean
        self.low, self.high = np.full(len(mean), -np.inf), np.full(len(mean), np.inf)
        self._log_det = -np.log(np.diag(self.factor)).sum()

    def forward(self, v: Array) -> tuple[Array, Array]:
        flat = (v - self.mean).reshape(-1, len(self.mean))
        z = scipy.linalg.solve_triangular(self.factor, flat.T, lower=True).T.reshape(v.shape)
        return z, np.full(v.shape[:-1], self._log_det)

    def inverse(self, z: Array) -> Array:
        return self.mean + z @ self.factor.T


class Cube:
    """v = from_cube(Phi(z)): a user's map between the unit cube and the support (nested samplers' convention).

    The log-determinant comes from differences of `from_cube` over a share (eps / q)^(1/3) of the distance q to the
    nearer face of the cube, where truncation and rounding err alike: by about 1e-10 at q = 1/2, 1e-5 at q = 1e-8.
    """

    def __init__(self, from_cube: Callable[[Array], Array], to_cube: Callable[[Array], Array], dimension: int) -> None:
        self.from_cube, self.to_cube = from_cube, to_cube
        self.low, self.high = np.full(dimension, -np.inf), np.full(dimension, np.inf)

    def forward(self, v: Array) -> tuple[Array, Array]:
        z = np.clip(scipy.special.ndtri(self.to_cube(v)), -EDGE, EDGE)
        u = scipy.special.ndtr(z)
        distance = np.minimum(u, 1 - u)
        step = distance * np.minimum((ULP / distance) ** (1 / 3), 0.1) + 2 * ULP * u
        ahead, behind = np.minimum(u + step, 1 - ULP / 2), np.maximum(u - step, u / 2)
        one = np.eye(v.shape[-1], dtype=bool)
        above, below = (self.from_cube(np.where(one, at[..., None], u[..., None, :])) for at in (ahead, behind))
        _, log_det = np.linalg.slogdet((above - below) / (ahead - behind)[..., None])
        return z, -log_det - standard_normal_log_prob(z)

    def inverse(self, z: Array) -> Array:
        return self.from_cube(scipy.special.ndtr(z))

    def inside(self, v: Array) -> np.ndarray:
        with np.errstate(invalid="ignore", divide="ignore"):
            u = self.to_cube(v)
        return np.isfinite(v) & (u > 0) & (u < 1)


def snap(v: Array, coordinates: Coordinates, dtype: DTypeLike) -> Array:
    """v with entries within 4 ulp (of `dtype`) of a finite edge put onto it, from either side."""
    for edge in (coordinates.low, coordinates.high):
        finite = np.where(np.isfinite(edge), edge, 0.0)
        ulp = np.spacing(np.abs(finite).astype(dtype)).astype(float)
        reach = np.where(finite == 0, 4 * ulp, np.minimum(4 * ulp, np.abs(finite) / 2))  # the least number > 0 is not 0
        near = np.abs(v - finite) <= reach
        v = np.where(np.isfinite(edge) & near, finite, v)
    return v
