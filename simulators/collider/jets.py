r"""Jets of gluons: how strong is the coupling, and where does the shower end?

A gluon of transverse momentum p_T, density proportional to p_T^-5 between 500 and 1000 GeV, in a direction (eta, phi),
showers within the angle R = 0.8 as `shower` says, with theta = (alpha_s, Q_0). Its final gluons are the particles, as
if each became one hadron (local parton-hadron duality, Azimov et al. 1985, doi:10.1007/BF01642482). The shower is made
where eta = 0, with p+ = 2 p_T along the jet's axis, and boosted along the beam, which changes neither p_T nor distances
in rapidity and phi.

The calorimeter smears energies by N(0, sigma^2), sigma^2 = 0.3^2 E + 0.03^2 E^2 with E in GeV, and eta and phi by 0.01
each; particles with p_T > 0.5 GeV are seen. x is a set: ln(p_T / GeV), and the distances of eta and phi from rapidity
and azimuth of the sum of what is seen.
"""

from typing import NamedTuple

import numpy as np

from sbi_dgm.distributions import LogUniform, Uniform
from sbi_dgm.parameters import Observable, Parameter
from sbi_dgm.priors import Prior
from simulators.collider.members import padded
from simulators.collider.shower import final, shower

SOFTEST, HARDEST, SLOPE = 500.0, 1000.0, 5.0  # of the jet's p_T [GeV] and its power
RADIUS, CENTRAL = 0.8, 1.5  # the largest angle; the largest |eta| of a jet
STOCHASTIC, CONSTANT, GRANULARITY = 0.3, 0.03, 0.01  # of the calorimeter
THRESHOLD = 0.5  # GeV
ROOM = 500  # particles


class Particles(NamedTuple):
    """Massless particles of all rows, row after row, (n,) each; momenta in GeV."""

    row: np.ndarray
    energy: np.ndarray
    x: np.ndarray
    y: np.ndarray
    z: np.ndarray


class Seen(NamedTuple):
    """What the calorimeter says of particles, (n,) each; p_T in GeV."""

    row: np.ndarray
    pt: np.ndarray
    eta: np.ndarray
    phi: np.ndarray


class Jets:
    """The problem "jets"."""

    name = "jets"
    version = "1"
    fiducial = np.array([0.4, 0.8])
    colour = 3.0  # C_A

    def __init__(self) -> None:
        self.prior = Prior(
            [
                Parameter("alpha_s", Uniform(0.1, 0.8), r"\alpha_s"),
                Parameter("cutoff", LogUniform(0.1, 4), "Q_0", "GeV"),
            ]
        )
        names = ("log_pt", "delta_eta", "delta_phi", "there")
        self.observables = {"particles": Observable((ROOM, 4), names=names, kind="set")}

    def __call__(self, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        seen = calorimeter(self._particles(theta, self._jets(len(theta), rng), rng), rng)
        return padded(seen.row, about_axis(seen), (len(theta), ROOM))

    def stages(self, theta: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The stages of one draw.

        "parton" (B, 3): p_T [GeV], eta, phi of the first gluon; "shower" (B, M, 5): E, p_x, p_y, p_z [GeV] of
        particles, there; "detector" (B, M, 4): p_T [GeV], eta, phi of those seen, there; "particles" (B, M, 4).
        """
        jets = self._jets(len(theta), rng)
        particles = self._particles(theta, jets, rng)
        seen = calorimeter(particles, rng)
        sets = {"shower": particles, "detector": seen, "particles": (seen.row, *about_axis(seen))}
        return {"parton": jets} | {k: padded(row, tuple(of), (len(theta), ROOM)) for k, (row, *of) in sets.items()}

    def _jets(self, rows: int, rng: np.random.Generator) -> np.ndarray:
        power = 1 - SLOPE
        pt = (SOFTEST**power + (HARDEST**power - SOFTEST**power) * rng.random(rows)) ** (1 / power)
        return np.stack([pt, rng.uniform(-CENTRAL, CENTRAL, rows), rng.uniform(-np.pi, np.pi, rows)], axis=1)

    def _particles(self, theta: np.ndarray, jets: np.ndarray, rng: np.random.Generator) -> Particles:
        """Final gluons, turned from the jet's axis to the beam's."""
        (coupling, cutoff), (pt, eta, phi) = theta.T, jets.T
        tree = shower(2 * pt, pt * RADIUS / cutoff, self.colour / np.pi * coupling, cutoff, rng)
        row, plus, along, across = final(tree, rng)
        minus = (along**2 + across**2) / plus
        energy, forward = (plus + minus) / 2, (plus - minus) / 2
        cosh, sinh, cos, sin = (f(a)[row] for f, a in ((np.cosh, eta), (np.sinh, eta), (np.cos, phi), (np.sin, phi)))
        x, y = cos * forward - sin * across, sin * forward + cos * across
        return Particles(row, cosh * energy + sinh * along, x, y, sinh * energy + cosh * along)


def calorimeter(particles: Particles, rng: np.random.Generator) -> Seen:
    """Smeared energies and directions, above the threshold."""
    row, energy, x, y, z = particles
    noise = rng.standard_normal((3, len(row)))
    scale = 1 + noise[0] * np.sqrt(STOCHASTIC**2 / energy + CONSTANT**2)
    pt = np.hypot(x, y)
    eta, phi = np.arcsinh(z / pt) + GRANULARITY * noise[1], np.arctan2(y, x) + GRANULARITY * noise[2]
    pt = scale * energy / np.cosh(eta)
    above = pt > THRESHOLD
    return Seen(row[above], pt[above], eta[above], phi[above])


def about_axis(seen: Seen) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ln(p_T / GeV), and the distances of eta and phi from rapidity and azimuth of the sum of all of a jet."""
    row, pt, eta, phi = seen
    energy, x, y, z = (np.bincount(row, pt * f) for f in (np.cosh(eta), np.cos(phi), np.sin(phi), np.sinh(eta)))
    rapidity, azimuth = np.arctanh(z / energy), np.arctan2(y, x)
    return np.log(pt), eta - rapidity[row], (phi - azimuth[row] + np.pi) % (2 * np.pi) - np.pi
