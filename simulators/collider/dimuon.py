r"""Muon pairs at an electron-positron collider: the weak mixing angle, and what lies beyond it.

d sigma / d c of `electroweak`, with theta = (s_W^2, C, kappa), at two beam energies, 88 and 250 GeV. Their luminosities
L are known but for a common factor kappa of prior N(1, 0.05^2), cut at 4 sd. The number of events is Poisson's. Muons
are seen where |c| < 0.95, in their true directions and with momenta p exp(r e), e ~ N(0, 1) for each of the two and
r^2 = 0.02^2 + (0.0005 p_T / GeV)^2. x is the set of (c, M), M the mass of the pair. As ln M ~ N(ln \sqrt s, r^2 / 2),
the likelihood of n events, in an order that means nothing, is

.. math::
    p(x \,|\, \theta) = \frac{e^{-\mu}}{n!} \prod_k \sum_s \kappa L_s \frac{d\sigma_s}{dc}(c_k)\, p(M_k \,|\, s, c_k),
    \qquad \mu = \sum_s \kappa L_s \int \frac{d\sigma_s}{dc}\, dc .
"""

from typing import NamedTuple

import numpy as np
from scipy.special import gammaln
from scipy.stats import poisson

from sbi_dgm.distributions import TruncatedNormal, Uniform
from sbi_dgm.importance import posterior_draws
from sbi_dgm.parameters import Observable, Parameter
from sbi_dgm.priors import Prior
from sbi_dgm.univariate import LOG_ROOT_2PI
from simulators.collider.electroweak import strengths, total
from simulators.collider.members import padded

ENERGIES, LUMINOSITIES = np.array([88.0, 250.0]), np.array([0.5, 70.0])  # sqrt s [GeV], L [1/pb]
EDGE = 0.95  # of |c|
FLAT, RISE = 0.02, 0.0005  # of the resolution r
OVERFLOW = 1e-10  # the largest chance that a row has no room
TERMS = 2**18  # of the likelihood in memory at once

SIN2 = Parameter("sin2_theta", Uniform(0.18, 0.28), r"\sin^2\theta_W")
CONTACT = Parameter("contact", Uniform(-1, 1), r"C_{LL} / \Lambda^2", "TeV^-2")


class Pairs(NamedTuple):
    """Pairs of muons behind each other: (n,), momenta (n, 3) [GeV] of mu- and mu+ as measured."""

    energy: np.ndarray
    cosine: np.ndarray
    minus: np.ndarray
    plus: np.ndarray


class Dimuon:
    """The problem "dimuon"."""

    name = "dimuon"
    version = "1"
    fiducial = np.array([0.231, 0.0, 1.0])

    def __init__(self) -> None:
        factor = Parameter("luminosity", TruncatedNormal(1, 0.05, 0.8, 1.2), r"\kappa")
        self.prior = Prior([SIN2, CONTACT, factor])
        most = self._produced(np.array([[0.18, -1.0, 1.2], [0.18, 1.0, 1.2]])).sum(1).max()
        self.room = int(poisson(most).isf(OVERFLOW))
        self.observables = {"events": Observable((self.room, 3), names=("cosine", "mass", "there"), kind="set")}

    def __call__(self, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self._seen(*self._pairs(theta, rng), len(theta))

    def stages(self, theta: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        r"""The stages of one draw, sets of events.

        "parton" (B, M, 3): true c, \sqrt s [GeV], there; "detector" (B, M, 7): measured momenta of mu- and mu+ [GeV],
        there, of the same events; "events" (B, M, 3): c, M [GeV], there, of those with |c| < 0.95.
        """
        (row, pairs), size = self._pairs(theta, rng), (len(theta), self.room)
        return {
            "parton": padded(row, (pairs.cosine, pairs.energy), size),
            "detector": padded(row, (*pairs.minus.T, *pairs.plus.T), size),
            "events": self._seen(row, pairs, len(theta)),
        }

    def log_likelihood(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """ln p(x | theta): (..., 3), (M, 3) -> (...); -inf where an event is outside the acceptance."""
        theta = np.asarray(theta, np.float64)
        cosine, mass = x[x[:, 2] > 0, :2].astype(np.float64).T
        if (np.abs(cosine) > EDGE + 1e-6).any():
            return np.full(theta.shape[:-1], -np.inf)
        near = np.exp(log_mass_density(mass, cosine)) * LUMINOSITIES[:, None]
        shapes = near * (1 + cosine) ** 2, near * (1 - cosine) ** 2
        parts = np.array_split(theta.reshape(-1, 3), max(1, theta.size // 3 * len(mass) // TERMS))
        log_density = np.concatenate([self._log_intensity(part, *shapes).sum(1) for part in parts])
        expected = self._produced(theta.reshape(-1, 3)).sum(1) * total(EDGE) / total()
        return (log_density - expected).reshape(theta.shape[:-1]) - gammaln(len(mass) + 1)

    def reference_posterior(self, x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draws (n, 3) for any x, by importance resampling."""
        return posterior_draws(self.log_likelihood, self.prior, x, n, rng)[0]

    def _log_intensity(self, theta: np.ndarray, ahead: np.ndarray, astern: np.ndarray) -> np.ndarray:
        """ln of the expected events for each GeV and unit of c: (B, 3), (2, n), (2, n) -> (B, n)."""
        forward, backward = strengths(ENERGIES, theta[:, :1], theta[:, 1:2])
        return np.log(theta[:, 2:] * (forward @ ahead + backward @ astern))

    def _produced(self, theta: np.ndarray) -> np.ndarray:
        """Expected events (B, 2) at each energy, seen or not."""
        return theta[:, 2:] * LUMINOSITIES * total() * sum(strengths(ENERGIES, theta[:, :1], theta[:, 1:2]))

    def _pairs(self, theta: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, Pairs]:
        """Rows (n,) of pairs, and the pairs."""
        expected = self._produced(theta)
        row = np.repeat(np.arange(len(theta)), rng.poisson(expected.sum(1)))
        energy = ENERGIES[(rng.random(len(row)) > (expected[:, 0] / expected.sum(1))[row]).astype(int)]
        forward, backward = strengths(energy, *theta[row, :2].T)
        ahead = rng.random(len(row)) < forward / (forward + backward)
        size = np.cbrt(8 * rng.random(len(row))) - 1
        return row, measured(energy, np.where(ahead, size, -size), rng)

    def _seen(self, row: np.ndarray, pairs: Pairs, rows: int) -> np.ndarray:
        cosine, mass = reconstructed(pairs)
        inside = np.abs(cosine) < EDGE
        return padded(row[inside], (cosine[inside], mass[inside]), (rows, self.room))


def resolution(energy: np.ndarray, cosine: np.ndarray) -> np.ndarray:
    """The r of muons of half the energy [GeV] at an angle of that cosine."""
    return np.hypot(FLAT, RISE * energy / 2 * np.sqrt(1 - cosine**2))


def measured(energy: np.ndarray, cosine: np.ndarray, rng: np.random.Generator) -> Pairs:
    """Pairs at any azimuth, the sizes of their momenta smeared: (n,), (n,)."""
    azimuth, sine = rng.uniform(0, 2 * np.pi, len(cosine)), np.sqrt(1 - cosine**2)
    direction = np.stack([sine * np.cos(azimuth), sine * np.sin(azimuth), cosine], axis=1)
    noise = resolution(energy, cosine)[:, None] * rng.standard_normal((len(cosine), 2))
    minus, plus = np.moveaxis((energy / 2)[:, None] * np.exp(noise), 1, 0)[..., None] * direction
    return Pairs(energy, cosine, minus, -plus)


def reconstructed(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """The cosine of mu- and the mass of the pair [GeV], from momenta as measured: (n,), (n,)."""
    minus, plus = (np.linalg.norm(p, axis=1) for p in (pairs.minus, pairs.plus))
    return pairs.minus[:, 2] / minus, np.sqrt(2 * (minus * plus - (pairs.minus * pairs.plus).sum(1)))


def log_mass_density(mass: np.ndarray, cosine: np.ndarray) -> np.ndarray:
    """ln p(M | s, c) [1/GeV] at each of the energies: (n,), (n,) -> (2, n)."""
    sd = resolution(ENERGIES[:, None], cosine) / np.sqrt(2)
    return -0.5 * (np.log(mass / ENERGIES[:, None]) / sd) ** 2 - LOG_ROOT_2PI - np.log(sd) - np.log(mass)
