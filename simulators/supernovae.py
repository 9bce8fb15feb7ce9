r"""The expansion history from type-Ia supernovae: 31 distance moduli of the JLA compilation, flat wCDM.

For matter density Omega_m and dark energy of constant equation of state w_0, with h = 0.7 and no radiation,

.. math::
    E^2(z) = \Omega_m (1+z)^3 + (1 - \Omega_m) (1+z)^{3 (1 + w_0)}, \qquad
    d_L(z) = (1 + z) \frac{c}{H_0} \int_0^z \frac{dz'}{E(z')}, \qquad
    \mu(z) = 5 \log_{10} \frac{d_L}{10\,\mathrm{pc}} + M ,

and the observed moduli are normal around mu with the compilation's 31 x 31 covariance. M [mag] takes up the
supernovae's absolute magnitude and the true h.

Data: Betoule et al. 2014 (arXiv:1401.4064), compressed by Ma, Corasaniti and Bassett 2016
(arXiv:1603.08519): tables A1 and A2 of libsncompress 0.0.7 (BSD), in `simulators/data/`.
"""

from functools import cached_property
from importlib.resources import files

import numpy as np
from scipy.linalg import cho_solve
from scipy.special import log_ndtr

from sbi_dgm.distributions import Uniform
from sbi_dgm.parameters import Observable, Parameter
from sbi_dgm.priors import Prior

HUBBLE_DISTANCE = 299792.458 / 70.0  # c / H_0 [Mpc]
NUISANCE = 3  # rows of the covariance for alpha, beta and Delta_M
NODES, WEIGHTS = np.polynomial.legendre.leggauss(24)


class Supernovae:
    """The problem "supernovae": theta = (omega_m, w0, M), x = 31 distance moduli [mag]."""

    name = "supernovae"
    version = "1"

    def __init__(self) -> None:
        self.prior = Prior(
            [
                Parameter("omega_m", Uniform(0.05, 0.6), r"\Omega_m"),
                Parameter("w0", Uniform(-2.0, -0.3), "w_0"),
                Parameter("M", Uniform(-0.3, 0.3), "M", "mag"),
            ]
        )
        self.redshift, moduli = np.loadtxt(_table("jla_distance_moduli.txt"), unpack=True)
        self.covariance = np.loadtxt(_table("jla_covariance.txt"))[NUISANCE:, NUISANCE:]
        self.observables = {"mu": Observable((len(moduli),), "mag", r"\mu")}
        self.observed = {"mu": moduli}

    @cached_property
    def _factor(self) -> np.ndarray:
        return np.linalg.cholesky(self.covariance)

    def __call__(self, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        noise = rng.standard_normal((len(theta), len(self.redshift))) @ self._factor.T
        return distance_modulus(self.redshift, theta[:, 0], theta[:, 1]) + theta[:, 2:] + noise

    def log_likelihood(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """ln p(x | theta): (B, 3), (31,) -> (B,)."""
        residual = x - distance_modulus(self.redshift, theta[:, 0], theta[:, 1]) - theta[:, 2:]
        chi2 = (residual * cho_solve((self._factor, True), residual.T).T).sum(-1)
        log_det = 2 * np.log(np.diag(self._factor)).sum()
        return -0.5 * (chi2 + log_det + len(x) * np.log(2 * np.pi))

    def reference_posterior(self, x: np.ndarray, n: int, rng: np.random.Generator, cells: int = 400) -> np.ndarray:
        """n draws (n, 3) of the posterior, exact up to the grid in (omega_m, w0).

        The likelihood is Gaussian in M with mean m and width s that follow from (omega_m, w0); on the grid M is
        integrated over its prior's range in closed form, a cell is drawn, theta is uniform within it, and M
        is drawn from its truncated normal there.
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

    def _marginal(self, shape: np.ndarray, x: np.ndarray, low: float, high: float) -> tuple[np.ndarray, ...]:
        """ln of the integral of the likelihood over M (up to a constant), and the mean and sd of M."""
        residual = x - distance_modulus(self.redshift, shape[:, 0], shape[:, 1])
        ones = cho_solve((self._factor, True), np.ones(len(x)))
        precision = ones.sum()
        mean, scale = residual @ ones / precision, precision**-0.5
        chi2 = (residual * cho_solve((self._factor, True), residual.T).T).sum(-1) - precision * mean**2
        a, b = (low - mean) / scale, (high - mean) / scale
        a, b = np.where(a > 0, -b, a), np.where(a > 0, -a, b)  # the lower tail keeps its digits
        log_mass = log_ndtr(b) + np.log1p(-np.exp(log_ndtr(a) - log_ndtr(b)))
        return -0.5 * chi2 + log_mass, mean, scale


def distance_modulus(redshift: np.ndarray, omega_m: np.ndarray, w0: np.ndarray) -> np.ndarray:
    """mu(z) without M [mag]: (K,), (B,), (B,) -> (B, K), by 24-point Gauss-Legendre quadrature in ln(1 + z)."""
    half = 0.5 * np.log1p(redshift)[:, None]
    stretch = np.exp(half * (NODES + 1))  # 1 + z' at the nodes, (K, nodes)
    cube = stretch**3
    dark = 3 * (1 + w0)
    distance = np.empty((len(omega_m), len(redshift)))
    for k in range(len(redshift)):
        e2 = omega_m[:, None] * cube[k] + (1 - omega_m)[:, None] * stretch[k] ** dark[:, None]
        distance[:, k] = (stretch[k] / np.sqrt(e2)) @ (WEIGHTS * half[k])
    return 5 * np.log10((1 + redshift) * HUBBLE_DISTANCE * distance) + 25


def _table(name: str) -> list[str]:
    return (files("simulators") / "data" / name).read_text().splitlines()
