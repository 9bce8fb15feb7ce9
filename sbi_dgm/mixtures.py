r"""Mixtures of Student's t, fitted to weighted points: proposals with tails that guard importance weights.

For points z_i in R^D with weights w_i, components of nu = 8 degrees of freedom and responsibilities rho_ik, expectation
maximisation is

.. math::
    u_{ik} = \frac{\nu + D}{\nu + (z_i - \mu_k)^T \Sigma_k^{-1} (z_i - \mu_k)}, \quad
    \mu_k = \frac{\sum_i w_i \rho_{ik} u_{ik} z_i}{\sum_i w_i \rho_{ik} u_{ik}}, \quad
    \Sigma_k = \frac{\sum_i w_i \rho_{ik} u_{ik} (z_i - \mu_k)(z_i - \mu_k)^T}{\sum_i w_i \rho_{ik}}

(Peel and McLachlan 2000, doi:10.1023/A:1008981510081). A twentieth of each component is twice as wide.
"""

from dataclasses import dataclass

import numpy as np
import scipy

from sbi_dgm.errors import ObservationError
from sbi_dgm.resampling import effective_size, largest_power, relative
from sbi_dgm.univariate import Array

TAIL, SHARE_OF_SKIRTS = 8.0, 0.05  # nu, and the share that is twice as wide
COMPONENTS, ITERATIONS, FITTED = (1, 2, 4, 8, 16), 30, 20_000  # of the mixture, its fit, and points that it takes


@dataclass(frozen=True)
class Mixture:
    """K Student's t of nu = 8 degrees of freedom in D dimensions.

    Args:
        share: (K,), summing to one.
        mean: (K, D).
        factor: (K, D, D), Cholesky factors of the scale matrices.

    """

    share: Array
    mean: Array
    factor: Array

    def sample(self, n: int, rng: np.random.Generator) -> Array:
        """n draws (n, D), component after component."""
        noise = rng.standard_normal((n, self.mean.shape[1])) * np.sqrt(TAIL / rng.chisquare(TAIL, n))[:, None]
        ends = np.cumsum(rng.multinomial(n, self.share))[:-1]
        parts = zip(self.mean, self.factor, np.split(noise, ends), strict=True)
        return np.concatenate([m + e @ f.T for m, f, e in parts])

    def parts(self, z: Array) -> tuple[Array, Array]:
        """ln of share times density, and the squared distance, under each component: (n, D) -> two of (K, n)."""
        d = z.shape[1]
        away = [
            scipy.linalg.solve_triangular(f, (z - m).T, lower=True) for m, f in zip(self.mean, self.factor, strict=True)
        ]
        distance = np.stack([(a**2).sum(0) for a in away])
        norm = scipy.special.gammaln((TAIL + d) / 2) - scipy.special.gammaln(TAIL / 2) - d / 2 * np.log(TAIL * np.pi)
        volume = np.log(np.diagonal(self.factor, axis1=1, axis2=2)).sum(1)
        log_density = norm - volume[:, None] - (TAIL + d) / 2 * np.log1p(distance / TAIL)
        return np.log(self.share)[:, None] + log_density, distance

    def log_prob(self, z: Array) -> Array:
        """ln of the density: (n, D) -> (n,)."""
        return np.logaddexp.reduce(self.parts(z)[0], axis=0)


def fit_mixture(z: Array, log_weight: Array, rng: np.random.Generator) -> Mixture:
    """The mixture fitted to points (N, D) whose weights' logarithms (N,) are given, of 1, 2, 4, 8 or 16 components.

    Their number is doubled while that raises the likelihood of the half of the points that they are not fitted to.
    Weights of which too few are effective are flattened first, by a power below one (Koblents and Miguez 2015,
    Statistics and Computing 25, 407).
    """
    rows = rng.permutation(np.flatnonzero(np.isfinite(log_weight)))[:FITTED]
    if len(rows) < (enough := 40 * (z.shape[1] + 1)):
        raise ObservationError(f"only {len(rows)} of {len(z)} proposals have a posterior above zero: check x.")
    z, log_weight = z[rows], log_weight[rows]
    weight = relative(largest_power(log_weight, 1.0, enough) * log_weight)
    number, best = 1, -np.inf
    for k in COMPONENTS:
        score = weight[1::2] @ _maximise(z[::2], weight[::2], k, rng).log_prob(z[1::2])
        if score <= best:
            break
        number, best = k, score
    return _with_skirts(_maximise(z, weight, number, rng))


def _with_skirts(m: Mixture) -> Mixture:
    """A share of each component is twice as wide: a guard between the mixture and the prior against large weights."""
    share = np.concatenate([(1 - SHARE_OF_SKIRTS) * m.share, SHARE_OF_SKIRTS * m.share])
    return Mixture(share, np.concatenate([m.mean, m.mean]), np.concatenate([m.factor, 2 * m.factor]))


def _maximise(z: Array, weight: Array, components: int, rng: np.random.Generator) -> Mixture:
    """Expectation maximisation, from the cells around distant points."""
    owner = _nearest(z, weight, components, rng)
    mixture = _updated(z, weight, (owner == np.arange(components)[:, None]).astype(float), np.ones(owner.shape))
    for _ in range(ITERATIONS if components > 1 else ITERATIONS // 3):
        part, distance = mixture.parts(z)
        responsibility = np.exp(part - np.logaddexp.reduce(part, axis=0))
        mixture = _updated(z, weight, responsibility, (TAIL + z.shape[1]) / (TAIL + distance))
    return mixture


def _nearest(z: Array, weight: Array, components: int, rng: np.random.Generator) -> np.ndarray:
    """The nearest (N,) of K points that lie far from each other: drawn by their squared distance to those before."""
    mean = np.average(z, axis=0, weights=weight)
    white = (z - mean) / np.sqrt(np.average((z - mean) ** 2, axis=0, weights=weight))
    distance = np.empty((components, len(z)))
    for k in range(components):
        chance = weight * (distance[:k].min(0) if k else 1.0)
        distance[k] = ((white - white[rng.choice(len(z), p=chance / chance.sum())]) ** 2).sum(-1)
    return distance.argmin(0)


def _updated(z: Array, weight: Array, responsibility: Array, u: Array) -> Mixture:
    """The formulas above; components with too few effective points for a scale matrix are dropped."""
    d, mass = z.shape[1], responsibility @ weight
    keep = (mass / weight.sum() * effective_size(weight) > d + 1) | (mass == mass.max())
    mass, responsibility = mass[keep], responsibility[keep] * weight
    pull = responsibility * np.broadcast_to(u, keep.shape + u.shape[-1:])[keep]
    mean = pull @ z / pull.sum(1, keepdims=True)
    away = z - mean[:, None]
    scale = np.swapaxes(pull[..., None] * away, 1, 2) @ away / mass[:, None, None]
    ridge = 1e-9 * np.diag(np.average((z - z.mean(0)) ** 2, axis=0, weights=weight))
    return Mixture(mass / mass.sum(), mean, np.linalg.cholesky(scale + ridge))
