r"""Band powers of a Gaussian density field in a box: theta = (Omega_m, h, sigma_8), x = 24 powers [(Mpc/h)^3].

A survey at redshift 0.5, a box of side 700 Mpc/h with 5e-4 unbiased tracers per (Mpc/h)^3, measures the power in
shells of wavenumbers 0.01 h/Mpc wide. Of the modes of a real field in a shell,

.. math::
    N_b = \frac{1}{2} \frac{4 \pi k_b^2\, \Delta k\, V}{(2 \pi)^3}

are independent complex numbers, and the square of each is exponential about P(k_b) + 1 / n, shot noise included. So
their mean is a Gamma variable, and bands are independent (Feldman, Kaiser and Peacock 1994, astro-ph/9304022):

.. math::
    x_b \sim \mathrm{Gamma}\Big( N_b, \frac{P(k_b, z; \theta) + 1 / n}{N_b} \Big), \qquad
    \ln p(x | \theta) = \sum_b \Big[ N_b \ln \frac{N_b x_b}{P_b} - \frac{N_b x_b}{P_b} - \ln x_b - \ln \Gamma(N_b)
    \Big] .

The lowest band has 9 modes and is far from normal, the highest 5004. P is the linear power (`linear_power`, w_0 = -1)
at the band's middle. Its bend tells little more than Omega_m h; what baryons do to it tells h.
"""

import numpy as np
from scipy.special import gammaln

from sbi_dgm.distributions import Uniform
from sbi_dgm.importance import posterior_draws
from sbi_dgm.parameters import Observable, Parameter
from sbi_dgm.priors import Prior
from simulators.cosmology.linear_power import Universes, linear_power

SIDE, DENSITY, REDSHIFT = 700.0, 5e-4, 0.5  # of the box [Mpc/h], of tracers [(h/Mpc)^3]
WIDTH, BANDS = 0.01, 24  # of a shell [h/Mpc]
WAVENUMBERS = WIDTH * (np.arange(BANDS) + 1.0)
MODES = np.round(WAVENUMBERS**2 * WIDTH * SIDE**3 / (2 * np.pi) ** 2)


class PowerSpectrum:
    """The problem "power_spectrum"."""

    name = "power_spectrum"
    version = "1"
    fiducial = np.array([0.3, 0.67, 0.8])

    def __init__(self) -> None:
        self.prior = Prior(
            [
                Parameter("omega_m", Uniform(0.15, 0.5), r"\Omega_m"),
                Parameter("h", Uniform(0.5, 0.9), "h"),
                Parameter("sigma_8", Uniform(0.6, 1.0), r"\sigma_8"),
            ]
        )
        self.observables = {"power": Observable((BANDS,), "(Mpc/h)^3", "P")}

    def mean(self, theta: np.ndarray) -> np.ndarray:
        """Expected band powers [(Mpc/h)^3], shot noise included: (B, 3) -> (B, 24)."""
        omega_m, h, sigma_8 = theta.T
        return linear_power(WAVENUMBERS, REDSHIFT, Universes(omega_m, sigma_8, h=h)) + 1 / DENSITY

    def __call__(self, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self.mean(theta) * rng.standard_gamma(MODES, (len(theta), BANDS)) / MODES

    def log_likelihood(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """ln p(x | theta): (B, 3), (24,) -> (B,); -inf where a power is not positive."""
        if not (x > 0).all():
            return np.full(len(theta), -np.inf)
        ratio = MODES * x / self.mean(theta)
        return (MODES * np.log(ratio) - ratio).sum(-1) - (np.log(x) + gammaln(MODES)).sum()

    def reference_posterior(self, x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draws (n, 3) for any x, by importance resampling."""
        return posterior_draws(self.log_likelihood, self.prior, x, n, rng)[0]
