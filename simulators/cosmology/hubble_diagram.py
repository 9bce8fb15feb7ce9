r"""Magnitudes of many supernovae at their own redshifts, and linear summaries of them, each with its exact posterior.

A supernova whose host recedes with z_hel, and would with z without peculiar velocities, has the magnitude

.. math::
    m = 5 \log_{10} \frac{(1 + z_\mathrm{hel}) D_M(z)\, c / H_0}{10\,\mathrm{pc}} + M + \mathrm{noise} ,

M being the absolute magnitude for h = 0.7. The difference mu(z) - 5 log10(z (1 + z)) is smooth: it is a polynomial
of degree 15 in ln(1 + z) through Chebyshev points, to 1e-7 mag, which makes m linear in moduli at 16 redshifts
(`moduli`).

A linear summary s = W m has mean W (b + B (mu + M)) and covariance W C W^T, so its posterior is as exact as that of
m. Of two summaries here,

- *bins* of equally many supernovae, in order of redshift, each the mean of its magnitudes by inverse covariance,
  W_b = 1^T C_b^{-1} / (1^T C_b^{-1} 1). Of what theta changes within a bin nothing is left.
- *modes*: the projections U^T L^{-1} m, C = L L^T, on the direction L^{-1} 1 of M, then on the leading principal
  directions of L^{-1} mean(m) over the prior of (Omega_m, w_0). They lose nothing but the last, small directions
  (Tegmark, Taylor and Heavens 1997, astro-ph/9603021; Heavens, Jimenez and Lahav 2000, astro-ph/9911102).
"""

from collections.abc import Callable
from functools import cached_property

import numpy as np
from numpy.polynomial import chebyshev
from scipy.linalg import solve_triangular

from sbi_dgm.parameters import Observable
from simulators.cosmology.background import distance_modulus
from simulators.cosmology.moduli import Moduli, prior_of

Array = np.ndarray
NODES = 16  # redshifts that all others are interpolated from
POINTS = 12  # of the prior of omega_m, and of w0, that modes are made from


class HubbleDiagram(Moduli):
    """A sample of supernovae: x = their magnitudes m.

    Args:
        redshift: z (K,), corrected for peculiar velocities.
        heliocentric: z_hel (K,).
        magnitude: the observed m (K,).
        covariance: a function that gives C (K, K) [mag^2] when it is first needed.

    """

    def __init__(
        self, redshift: Array, heliocentric: Array, magnitude: Array, *, covariance: Callable[[], Array]
    ) -> None:
        self.prior = prior_of(-19.7, -19.0)
        self.redshift, self._covariance = redshift, covariance
        stretch = np.log1p(redshift)
        low, high = stretch.min(), stretch.max()
        points = chebyshev.chebpts1(NODES)
        self.nodes = np.expm1(low + (high - low) * (points + 1) / 2)
        at = chebyshev.chebvander(2 * (stretch - low) / (high - low) - 1, NODES - 1)
        self.design = at @ np.linalg.inv(chebyshev.chebvander(points, NODES - 1))
        smooth = 5 * np.log10(self.nodes * (1 + self.nodes))
        self.offset = 5 * np.log10(redshift * (1 + heliocentric)) - self.design @ smooth
        self.observables, self.observed = {"m": Observable((len(redshift),), "mag", "m")}, {"m": magnitude}

    @cached_property
    def covariance(self) -> Array:
        """C (K, K) [mag^2]."""
        return self._covariance()


class Summary(Moduli):
    """Linear summaries W m of a sample: another problem, with the same theta.

    Args:
        sample: whose magnitudes are summarised.
        size: how many numbers are left of them.

    """

    def __init__(self, sample: HubbleDiagram, size: int) -> None:
        self.sample, self.size = sample, size
        self.prior, self.nodes = sample.prior, sample.nodes
        self.observables = {"s": Observable((size,))}

    @property
    def matrix(self) -> Array:
        """W (S, K)."""
        raise NotImplementedError

    @cached_property
    def observed(self) -> dict[str, Array]:
        """The summaries (S,) of the sample's own magnitudes."""
        return {"s": self.matrix @ self.sample.observed["m"]}

    @cached_property
    def design(self) -> Array:
        """W B (S, J)."""
        return self.matrix @ self.sample.design

    @cached_property
    def offset(self) -> Array:
        """W b (S,)."""
        return self.matrix @ self.sample.offset

    @cached_property
    def covariance(self) -> Array:
        """W C W^T (S, S)."""
        return self.matrix @ self.sample.covariance @ self.matrix.T


class Bins(Summary):
    """Means in bins of equally many supernovae (to one), in order of redshift [mag]."""

    @cached_property
    def matrix(self) -> Array:
        """W (S, K)."""
        w = np.zeros((self.size, len(self.sample.redshift)))
        for row, members in zip(w, np.array_split(np.argsort(self.sample.redshift), self.size), strict=True):
            weight = np.linalg.solve(self.sample.covariance[np.ix_(members, members)], np.ones(len(members)))
            row[members] = weight / weight.sum()
        return w


class Modes(Summary):
    """Projections of the whitened magnitudes on what M, omega_m and w0 change of them; their covariance is 1."""

    @cached_property
    def matrix(self) -> Array:
        """W (S, K)."""
        q, r = self.sample.rotated
        directions = np.linalg.qr(np.column_stack([r.sum(1), self.principal[0]]))[0][:, : self.size]
        return solve_triangular(self.sample.factor, q @ directions, lower=True, trans=1).T

    @cached_property
    def principal(self) -> tuple[Array, Array]:
        """Principal directions (J, J) of the mean over the prior, orthogonal to that of M, and their rms [sd of x]."""
        quantiles = (np.arange(POINTS) + 0.5) / POINTS
        low, high = (np.asarray(edge)[:2] for edge in (self.prior.coordinates.low, self.prior.coordinates.high))
        at = low + (high - low) * np.stack(np.meshgrid(quantiles, quantiles), -1).reshape(-1, 2)
        r = self.sample.rotated[1]
        mean = distance_modulus(self.nodes, at[:, 0], at[:, 1]) @ r.T
        v = r.sum(1) / np.linalg.norm(r.sum(1))
        away = mean - mean.mean(0)
        away -= np.outer(away @ v, v)
        _, size, directions = np.linalg.svd(away, full_matrices=False)
        return directions.T, size / np.sqrt(len(at))
