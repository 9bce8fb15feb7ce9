r"""Normals restricted to an interval: masses and draws that keep their digits however far away the interval lies.

With the interval mirrored into the lower half where that is nearer, everything is a logarithm of \Phi:

.. math::
    \ln \big(\Phi(b) - \Phi(a)\big) = \ln \Phi(b) + \ln \big(1 - e^{\ln \Phi(a) - \ln \Phi(b)}\big), \qquad
    z = \Phi^{-1}\big(\Phi(a) + u\, (\Phi(b) - \Phi(a))\big), \quad u \sim U(0, 1) .
"""

import numpy as np
from scipy.special import log_ndtr, ndtri_exp

from sbi_dgm.errors import ObservationError

Numbers = np.ndarray | float
FARTHEST = 1e6  # standard deviations: there, one part in a thousand of the tail's length is float64's last digit


def log_mass(mean: Numbers, sd: Numbers, low: Numbers, high: Numbers) -> np.ndarray:
    """ln of the probability of [low, high] under N(mean, sd^2); arrays broadcast."""
    far, near, _ = _mirrored(mean, sd, low, high)
    return log_ndtr(near) + np.log1p(-np.exp(log_ndtr(far) - log_ndtr(near)))


def within(mean: Numbers, sd: Numbers, low: Numbers, high: Numbers, rng: np.random.Generator) -> np.ndarray:
    """Independent draws of N(mean, sd^2) in [low, high], of the shape that the arguments broadcast to."""
    far, near, mirrored = _mirrored(mean, sd, low, high)
    log_u = np.logaddexp(log_ndtr(far), log_mass(mean, sd, low, high) + np.log(1 - rng.random(np.shape(near))))
    z = np.clip(ndtri_exp(np.minimum(log_u, 0)), far, near)
    return np.clip(mean + sd * np.where(mirrored, -z, z), low, high)


def check_reach(x: np.ndarray, sd: float, edge: float) -> np.ndarray:
    """`x` as numbers; `ObservationError` where it is farther from [-edge, edge] than draws can resolve."""
    x = np.asarray(x, dtype=np.float64)
    away = (np.abs(x) - edge) / sd
    if not (away < FARTHEST).all():
        i = int(np.argmin(away < FARTHEST))
        raise ObservationError(
            f"x[{i}] = {x.flat[i]:g} is impossible under the prior: it lies {away.flat[i]:.3g} standard deviations of"
            f" the noise outside [-{edge:g}, {edge:g}], and draws can be told apart up to {FARTHEST:g}."
        )
    return x


def _mirrored(mean: Numbers, sd: Numbers, low: Numbers, high: Numbers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The standardised interval on the side where a + b <= 0, and whether that took a mirror."""
    a, b = np.asarray((low - mean) / sd), np.asarray((high - mean) / sd)
    mirrored = a + b > 0
    return np.where(mirrored, -b, a), np.where(mirrored, -a, b), mirrored
