r"""What moduli of supernovae, and linear summaries of them, tell of flat wCDM: theta = (Omega_m, w_0, M).

x is normal, and its mean is linear in the moduli mu at some redshifts z_j, and in the offset M [mag] of them all:

.. math::
    x \sim N(b + B\, (\mu(z_j; \Omega_m, w_0) + M), C) .

With the Cholesky factor L of C and L^{-1} B = Q R, the part of x that theta rules is y = Q^T L^{-1} (x - b), no more
numbers than there are z_j, of unit covariance and mean R (mu + M): however long x is, a theta costs little. For given
(Omega_m, w_0) the likelihood is Gaussian in M, of precision p = \|v\|^2 with v = R (1, ..., 1) and mean
v . (y - R mu) / p.
"""

from functools import cached_property
from typing import Any

import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import log_ndtr

from sbi_dgm.distributions import Uniform
from sbi_dgm.parameters import Parameter
from sbi_dgm.priors import Prior
from simulators.cosmology.background import distance_modulus

Array = np.ndarray


def prior_of(low: float, high: float) -> Prior:
    """Flat in Omega_m from 0.05 to 0.6, in w_0 from -2 to -0.3, and in M [mag] between these edges."""
    return Prior(
        [
            Parameter("omega_m", Uniform(0.05, 0.6), r"\Omega_m"),
            Parameter("w0", Uniform(-2.0, -0.3), "w_0"),
            Parameter("M", Uniform(low, high), "M", "mag"),
        ]
    )


class Moduli:
    """A simulator of such x (K,), its likelihood and its exact posterior.

    A subclass gives these, as attributes or properties, beside `name` and `observables`.

    Attributes:
        prior: of omega_m, w0 and M.
        nodes: the redshifts z_j (J,).
        design: B (K, J).
        offset: b (K,), or a number.
        covariance: C (K, K).

    """

    prior: Prior
    nodes: Any
    design: Any
    offset: Any
    covariance: Any

    @cached_property
    def factor(self) -> Array:
        return np.linalg.cholesky(self.covariance)

    @cached_property
    def rotated(self) -> tuple[Array, Array]:
        """Q (K, Y) and R (Y, J), Y the lesser of J and K."""
        q, r = np.linalg.qr(solve_triangular(self.factor, self.design, lower=True))
        return q, r

    def __call__(self, theta: Array, rng: np.random.Generator) -> Array:
        noise = rng.standard_normal((len(theta), len(self.factor))) @ self.factor.T
        return self.mean(theta) + noise

    def mean(self, theta: Array) -> Array:
        """Of x: (B, 3) -> (B, K)."""
        mu = distance_modulus(self.nodes, theta[:, 0], theta[:, 1]) + theta[:, 2:]
        return mu @ self.design.T + self.offset

    def log_likelihood(self, theta: Array, x: Array) -> Array:
        """ln p(x | theta): (B, 3), (K,) -> (B,)."""
        y, rest = self._reduced(x)
        away = y - (distance_modulus(self.nodes, theta[:, 0], theta[:, 1]) + theta[:, 2:]) @ self.rotated[1].T
        log_det = 2 * np.log(np.diag(self.factor)).sum()
        return -0.5 * ((away**2).sum(-1) + rest + log_det + len(x) * np.log(2 * np.pi))

    def reference_posterior(self, x: Array, n: int, rng: np.random.Generator, cells: int = 400) -> Array:
        """n draws (n, 3) of the posterior, exact up to the grid in (omega_m, w0).

        On the grid M is integrated over its prior's range in closed form, a cell is drawn, (omega_m, w0) is uniform
        within it, and M is drawn from its truncated normal there.
        """
        from scipy.stats import truncnorm  # slow to import

        low, high = (np.asarray(edge) for edge in (self.prior.coordinates.low, self.prior.coordinates.high))
        width = (high[:2] - low[:2]) / cells
        centres = [low[i] + width[i] * (np.arange(cells) + 0.5) for i in range(2)]
        grid = np.stack(np.meshgrid(*centres, indexing="ij"), axis=-1).reshape(-1, 2)
        log_weight, *_ = self._marginal(grid, x, low[2], high[2])
        weight = np.exp(log_weight - log_weight.max())
        pick = rng.choice(len(grid), n, p=weight / weight.sum())
        shape = grid[pick] + rng.uniform(-0.5, 0.5, (n, 2)) * width
        _, mean, scale = self._marginal(shape, x, low[2], high[2])
        left, right = (low[2] - mean) / scale, (high[2] - mean) / scale
        offset = mean + scale * truncnorm.ppf(rng.uniform(size=n), left, right)
        return np.column_stack([shape, np.clip(offset, low[2], high[2])])

    def _reduced(self, x: Array) -> tuple[Array, float]:
        """y (Y,), and the chi^2 of what no theta changes."""
        white = solve_triangular(self.factor, np.asarray(x, float) - self.offset, lower=True)
        y = self.rotated[0].T @ white
        return y, white @ white - y @ y

    def _marginal(self, shape: Array, x: Array, low: float, high: float) -> tuple[Array, ...]:
        """ln of the integral of the likelihood over M (up to a constant), and the mean and sd of M."""
        r = self.rotated[1]
        v = r.sum(1)
        away = self._reduced(x)[0] - distance_modulus(self.nodes, shape[:, 0], shape[:, 1]) @ r.T
        precision = v @ v
        mean, scale = away @ v / precision, precision**-0.5
        chi2 = (away**2).sum(-1) - precision * mean**2
        a, b = (low - mean) / scale, (high - mean) / scale
        a, b = np.where(a > 0, -b, a), np.where(a > 0, -a, b)  # the lower tail keeps its digits
        log_mass = log_ndtr(b) + np.log1p(-np.exp(log_ndtr(a) - log_ndtr(b)))
        return -0.5 * chi2 + log_mass, mean, scale
