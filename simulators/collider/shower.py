r"""A gluon's shower, ordered in angle, for many jets at once.

A gluon of energy E with opening angle theta radiates by the coherent branching of Bassetto, Ciafaloni and Marchesini
1983 (doi:10.1016/0370-1573(83)90083-2; Ellis, Stirling and Webber 1996, ch. 5),

.. math::
    dP = \frac{\alpha_s}{2 \pi} \frac{d\theta^2}{\theta^2} \tfrac12 P_{gg}(z)\, dz
       = \bar\alpha\, d \ln \theta\, k(z)\, dz, \qquad
    \bar\alpha = \frac{\alpha_s C_A}{\pi}, \quad k(z) = \frac{2 (1 - z)}{z} + z (1 - z) ,

as long as k_T = z (1 - z) E theta > Q_0, at fixed coupling. The half is for two equal gluons, and z <-> 1 - z turned
the 1 / (1 - z) of P_gg into 1 / z. The daughters have energies z E and (1 - z) E and radiate within theta. So all
depends on q = E theta / Q_0 > 4 alone, or on y, with q = 2 + 2 cosh y, for which 1 / (1 + e^y) < z < 1 / (1 + e^-y).
Nothing is radiated between q and q' < q with probability exp(-abar [g(y) - g(y')]), where with t = tanh(y / 2)

.. math::
    g(y) = \int_4^q \frac{dq'}{q'} \int k\, dz = \int_0^y \Big(2 y - \frac74 t - \frac1{12} t^3\Big)\, t\, dy
         = y^2 - \frac{\pi^2}{3} + 4 y \ln(1 + e^{-y}) - 4\, \mathrm{Li}_2(-e^{-y}) - \frac{11}{6} (y - 2 t)
           + \frac{t^3}{18} .

The next y' solves g(y') = g(y) + ln(u) / abar, u uniform; where that is negative, the gluon is final. g has no
parameter, so that one table serves all jets. z is drawn from 1 / z and kept with probability (1 - z)(1 + z^2 / 2).

Momenta are light-cone components p+ = E + p_z along the jet's axis, p_T, and p- = E - p_z. A splitting shares p+ as
z : 1 - z, and p_T the same way but for +-k_T at a random azimuth, where E stands for p+ / 2. Final gluons are massless,
p- = p_T^2 / p+, and p- is conserved, for a gluon that splits has the virtuality

.. math::  m^2 = \frac{m_1^2 + k_T^2}{z} + \frac{m_2^2 + k_T^2}{1 - z} .
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.special import spence

CELLS = 1000  # of the table of g, for each unit of y


class Gluons(NamedTuple):
    """Gluons of all jets, (n,) each.

    Attributes:
        jet: the jet that each belongs to.
        plus: p+ [GeV].
        x: the first component of p_T [GeV].
        y: the second [GeV].

    """

    jet: np.ndarray
    plus: np.ndarray
    x: np.ndarray
    y: np.ndarray

    def rows(self, chosen: np.ndarray) -> "Gluons":
        """Some of them."""
        return Gluons(*(a[chosen] for a in self))


class Generation(NamedTuple):
    """Gluons that come from equally many splittings, and how the s of them split that do.

    The first s of the next generation are their first daughters, in order, and the others their second.

    Attributes:
        gluons: all of them.
        splits: (n,), whether each splits.
        q: (s,), E theta / Q_0 of the splittings, theta their angle.
        z: (s,), share of the first daughter.
        kt: (s,), k_T [GeV].

    """

    gluons: Gluons
    splits: np.ndarray
    q: np.ndarray
    z: np.ndarray
    kt: np.ndarray


def shower(
    plus: np.ndarray, q: np.ndarray, coupling: np.ndarray, cutoff: np.ndarray, rng: np.random.Generator
) -> list[Generation]:
    """The generations of B jets, the first of one gluon each; the last does not split.

    Args:
        plus: (B,), p+ [GeV].
        q: (B,), E theta / Q_0, theta the largest angle.
        coupling: (B,), alpha_s C_A / pi.
        cutoff: (B,), Q_0 [GeV].
        rng: the only source of randomness.

    """
    gluons, generations = Gluons(np.arange(len(q)), plus, np.zeros(len(q)), np.zeros(len(q))), list[Generation]()
    while len(q):
        y, splits = _radiate(q, coupling[gluons.jet], rng)
        z, q = _share(y, rng), 2 + 2 * np.cosh(y)
        mothers = gluons.rows(splits)
        kt = cutoff[mothers.jet] * z * (1 - z) * q
        generations.append(Generation(gluons, splits, q, z, kt))
        gluons, q = _daughters(mothers, z, kt, rng), np.concatenate([z * q, (1 - z) * q])
    return generations


def final(generations: list[Generation], rng: np.random.Generator) -> Gluons:
    """The gluons that do not split, jet after jet, those of a jet in random order."""
    parts = [g.gluons.rows(~g.splits) for g in generations]
    found = Gluons(*map(np.concatenate, zip(*parts, strict=True)))
    order = rng.permutation(len(found.jet))
    number = found.jet[order].astype(np.min_scalar_type(len(generations[0].splits)))  # 16 bits are sorted by radix
    return found.rows(order[np.argsort(number, kind="stable")])


def virtualities(generations: list[Generation]) -> np.ndarray:
    """m^2 [GeV^2] of each jet's first gluon, (B,), from the last generation upwards."""
    below = np.zeros(0)
    for g in reversed(generations):
        first, second = np.split(below, 2)
        below = np.zeros(len(g.splits))
        below[g.splits] = (first + g.kt**2) / g.z + (second + g.kt**2) / (1 - g.z)
    return below


def exponent(y: np.ndarray) -> np.ndarray:
    """g(y), minus the logarithm of the chance of no splitting, in units of alpha_s C_A / pi."""
    t, small = np.tanh(y / 2), np.exp(-y)
    soft = y**2 - np.pi**2 / 3 + 4 * y * np.log1p(small) - 4 * spence(1 + small)
    return soft - 11 / 6 * (y - 2 * t) + t**3 / 18


@cache
def _table(top: int) -> tuple[np.ndarray, np.ndarray]:
    y = np.arange(top * CELLS + 1) / CELLS
    return y, np.maximum.accumulate(exponent(y))


def _radiate(q: np.ndarray, coupling: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """y (s,) of the next splittings, and which of the gluons (n,) split."""
    able = np.flatnonzero(q > 4)
    y = np.arccosh(q[able] / 2 - 1)
    known, at = _table(int(np.ceil(y.max(initial=1))))
    left = np.interp(y, known, at) - rng.standard_exponential(len(able)) / coupling[able]
    splits = np.zeros(len(q), bool)
    splits[able[left > 0]] = True
    return np.interp(left[left > 0], at, known), splits


def _share(y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Z for each y, from k(z) between its limits."""
    z, open_ = np.empty(len(y)), np.arange(len(y))
    while len(open_):
        trial = np.exp(y[open_] * rng.random(len(open_))) / (1 + np.exp(y[open_]))
        z[open_] = trial
        open_ = open_[rng.random(len(open_)) >= (1 - trial) * (1 + trial**2 / 2)]
    return z


def _daughters(mothers: Gluons, z: np.ndarray, kt: np.ndarray, rng: np.random.Generator) -> Gluons:
    azimuth = rng.uniform(0, 2 * np.pi, len(z))
    kx, ky = kt * np.cos(azimuth), kt * np.sin(azimuth)
    jet, plus, x, y = mothers
    first, second = (jet, z * plus, z * x + kx, z * y + ky), (jet, (1 - z) * plus, (1 - z) * x - kx, (1 - z) * y - ky)
    return Gluons(*map(np.concatenate, zip(first, second, strict=True)))
