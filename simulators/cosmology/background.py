r"""Expansion and linear growth of flat wCDM: matter, and dark energy of constant equation of state w_0.

Without radiation, with a = 1 / (1 + z), and the comoving distance in units of c / H_0,

.. math::
    E^2(z) = \Omega_m (1+z)^3 + (1 - \Omega_m) (1+z)^{3 (1 + w_0)}, \qquad
    D_M(z) = \int_0^z \frac{dz'}{E(z')}, \qquad
    \mu = 5 \log_{10} \frac{(1 + z) D_M\, c / H_0}{10\,\mathrm{pc}} .

Matter that dark energy does not cluster with grows as D'' + (3 + dln E / dln a) D' = 3/2 Omega_m(a) D, in
derivatives by ln a, Omega_m(a) = Omega_m a^-3 / E^2. The growing mode is (Silveira and Waga 1994,
doi:10.1103/PhysRevD.50.4890; Padmanabhan 2003, hep-th/0212290)

.. math::
    D(a) = a \; {}_2F_1 \Big( -\frac{1}{3 w_0}, \frac{w_0 - 1}{2 w_0}; 1 - \frac{5}{6 w_0};
    - \frac{1 - \Omega_m}{\Omega_m} a^{-3 w_0} \Big)
    = a\, \Omega_m(a)^{\alpha} \; {}_2F_1 \Big( \alpha, \alpha + \tfrac12; 1 + \tfrac52 \alpha; 1 - \Omega_m(a) \Big),
    \quad \alpha = -\frac{1}{3 w_0} ,

the second form by Pfaff's transformation: its argument lies between 0 and 1, where the series is well behaved.
"""

import numpy as np
from scipy.special import hyp2f1

HUBBLE_DISTANCE = 299792.458 / 70.0  # c / H_0 [Mpc] for h = 0.7
NODES, WEIGHTS = np.polynomial.legendre.leggauss(24)


def expansion_squared(stretch: np.ndarray, omega_m: np.ndarray, w0: np.ndarray) -> np.ndarray:
    """E^2 where lengths were `stretch` = 1 + z times shorter; arrays that broadcast."""
    return omega_m * stretch**3 + (1 - omega_m) * stretch ** (3 * (1 + w0))


def comoving_distance(redshift: np.ndarray, omega_m: np.ndarray, w0: np.ndarray) -> np.ndarray:
    """D_M(z) [c / H_0]: (K,), (B,), (B,) -> (B, K), by 24-point Gauss-Legendre quadrature in ln(1 + z)."""
    half = 0.5 * np.log1p(redshift)[:, None]
    stretch = np.exp(half * (NODES + 1))  # 1 + z' at the nodes, (K, nodes)
    distance = np.empty((len(omega_m), len(redshift)))
    for k in range(len(redshift)):
        e2 = expansion_squared(stretch[k], omega_m[:, None], w0[:, None])
        distance[:, k] = (stretch[k] / np.sqrt(e2)) @ (WEIGHTS * half[k])
    return distance


def distance_modulus(redshift: np.ndarray, omega_m: np.ndarray, w0: np.ndarray) -> np.ndarray:
    """mu(z) for h = 0.7 [mag]: (K,), (B,), (B,) -> (B, K)."""
    return 5 * np.log10((1 + redshift) * HUBBLE_DISTANCE * comoving_distance(redshift, omega_m, w0)) + 25


def growth(redshift: np.ndarray, omega_m: np.ndarray, w0: np.ndarray) -> np.ndarray:
    """D(z) / D(0): (K,), (B,), (B,) -> (B, K), for w_0 < 0."""
    alpha = -1 / (3 * w0)
    today = _growing(np.ones(1), omega_m[:, None], w0[:, None], alpha[:, None])
    return _growing(1 + redshift, omega_m[:, None], w0[:, None], alpha[:, None]) / today


def _growing(stretch: np.ndarray, omega_m: np.ndarray, w0: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    matter = omega_m * stretch**3 / expansion_squared(stretch, omega_m, w0)
    return matter**alpha * hyp2f1(alpha, alpha + 0.5, 1 + 2.5 * alpha, 1 - matter) / stretch
