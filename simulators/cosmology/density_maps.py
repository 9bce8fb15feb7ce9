r"""Maps of the density contrast in two slices of the universe, Gaussian and lognormal, of 64 x 64 pixels each.

theta = (Omega_m, sigma_8, w_0), all else as in `linear_power.Universes`. A slice is a periodic square of side
512 Mpc/h, 64 Mpc/h thick, whose power P_2 is the projected linear one (`slices`). There is one today and one at
redshift 2, independent of each other, each with white noise of known variance in its pixels. From one slice alone
w_0 could not be told from sigma_8, because it enters by sigma_8 D(z); two redshifts tell it by D(2) / D(0).

`DensityMaps` are Gaussian. With lambda_k = n^2 / L^2 P_2(k) + sigma^2, the eigenvalues of the pixels' covariance,
and the Fourier transform x_k = sum_j x_j e^{-ikj} of the n^2 pixels,

.. math::
    \ln p(x | \theta) = -\frac12 \sum_k \Big[ \frac{|x_k|^2}{n^2 \lambda_k} + \ln 2 \pi \lambda_k \Big]

is exact: the sum goes over all n^2 wavevectors, in which a pair k, -k stands for the two real numbers of its complex
mode, and a wavevector that is its own negative for its one. Since lambda depends on \|k\| alone, sums of \|x_k\|^2
over modes of equal \|k\| are sufficient: 457 numbers for each slice.

`LognormalMaps` have the same power and another shape (Coles and Jones 1991, doi:10.1093/mnras/248.1.1): empty regions
and rare peaks. With xi the correlation function of a slice,

.. math::
    \delta = e^{g - \mathrm{var}(g) / 2} - 1, \qquad \langle g g' \rangle = \ln (1 + \xi), \qquad
    \langle \delta \delta' \rangle = \xi ,

and the noise added after. Their likelihood is not known in closed form, so there is no exact posterior. What the
power alone tells is not all: a posterior from maps may be narrower than one from power spectra.
"""

from functools import cached_property

import numpy as np
from numpy.polynomial import chebyshev

from sbi_dgm.distributions import Uniform
from sbi_dgm.importance import posterior_draws
from sbi_dgm.parameters import Observable, Parameter
from sbi_dgm.priors import Prior
from simulators.cosmology.background import growth
from simulators.cosmology.linear_power import Universes
from simulators.cosmology.slices import Slice

PIXELS, SIDE, THICKNESS = 64, 512.0, 64.0  # of a slice; lengths in Mpc/h
REDSHIFTS = np.array([0.0, 2.0])
NOISE = 0.1  # standard deviation of the noise in a pixel
DEGREE = 24  # of the polynomial in omega_m that ln P_2 is

Array = np.ndarray


class Slices:
    """What both problems share: the prior, the geometry, and the power of the two slices."""

    fiducial = np.array([0.3, 0.8, -1.0])

    def __init__(self) -> None:
        self.prior = Prior(
            [
                Parameter("omega_m", Uniform(0.15, 0.5), r"\Omega_m"),
                Parameter("sigma_8", Uniform(0.6, 1.0), r"\sigma_8"),
                Parameter("w0", Uniform(-1.6, -0.4), "w_0"),
            ]
        )
        self.observables = {"delta": Observable((len(REDSHIFTS), PIXELS, PIXELS), "", r"\delta")}
        self.slice = Slice(PIXELS, SIDE, THICKNESS)

    @cached_property
    def _polynomial(self) -> Array:
        """Chebyshev coefficients (DEGREE + 1, K) in omega_m of the eigenvalues' logarithms, for sigma_8 D = 1."""
        nodes = chebyshev.chebpts1(DEGREE + 1)
        low, high = self._edges
        one = np.ones(1)
        values = [self.slice.eigenvalues(Universes(low + (high - low) * (node + one) / 2, one))[0] for node in nodes]
        return chebyshev.chebfit(nodes, np.log(values), DEGREE)

    @property
    def _edges(self) -> tuple[float, float]:
        return self.prior.coordinates.low[0], self.prior.coordinates.high[0]

    def signal(self, theta: Array) -> Array:
        """Eigenvalues (B, 2, K) of the pixels' covariance without noise, for each distinct wavenumber: (B, 3).

        Raises:
            PriorError: theta lies outside the prior, where the polynomial in omega_m means nothing.

        """
        theta, (low, high) = self.prior.check(theta), self._edges
        node = 2 * (theta[:, 0] - low) / (high - low) - 1
        shape = np.exp(chebyshev.chebvander(node, DEGREE) @ self._polynomial)
        amplitude = theta[:, 1:2] * growth(REDSHIFTS, theta[:, 0], theta[:, 2])
        return amplitude[:, :, None] ** 2 * shape[:, None]


class DensityMaps(Slices):
    """The problem "density_maps": theta = (omega_m, sigma_8, w0), x = Gaussian maps (2, 64, 64)."""

    name = "density_maps"
    version = "1"

    def __call__(self, theta: Array, rng: np.random.Generator) -> Array:
        return self.slice.filtered((self.signal(theta) + NOISE**2)[..., self.slice.quadrant], rng)

    def log_likelihood(self, theta: Array, x: Array) -> Array:
        """ln p(x | theta): (B, 3), (2, 64, 64) -> (B,)."""
        return self._log_likelihood(theta, self.slice.pooled(x))

    def _log_likelihood(self, theta: Array, squares: Array) -> Array:
        total = self.signal(theta) + NOISE**2
        return -0.5 * (squares / total + self.slice.modes * np.log(2 * np.pi * total)).sum((1, 2))

    def reference_posterior(self, x: Array, n: int, rng: np.random.Generator) -> Array:
        """Draws (n, 3) for any x, by importance resampling."""
        return posterior_draws(self._log_likelihood, self.prior, self.slice.pooled(x), n, rng)[0]


class LognormalMaps(Slices):
    """The problem "lognormal_maps": theta as for `DensityMaps`, x = lognormal maps (2, 64, 64)."""

    name = "lognormal_maps"
    version = "1"

    def __call__(self, theta: Array, rng: np.random.Generator) -> Array:
        gaussian, variance = self.slice.lognormal(self.signal(theta)[..., self.slice.quadrant])
        field = np.expm1(self.slice.filtered(gaussian, rng) - (variance / 2)[..., None, None].astype(np.float32))
        return field + np.float32(NOISE) * rng.standard_normal(field.shape, dtype=np.float32)
