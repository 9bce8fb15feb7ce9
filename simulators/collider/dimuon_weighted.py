r"""Muon pairs one by one, with weights of either sign.

Generators at next-to-leading order subtract what their showers count twice, and their events carry weights +w and -w
(MC@NLO: Frixione and Webber 2002, hep-ph/0204244). Here it is known what that does. A row is one event (c, M) of
`dimuon`, at either beam energy with probability one half and inside |c| < 0.95, with theta = (s_W^2, C):

.. math::
    p(c \,|\, s, \theta) \propto F (1 + c)^2 + B (1 - c)^2 .

Events are drawn from q(c) proportional to 1 + c^2, whatever theta, and weigh +2 with probability (1 + r / 2) / 2, else
-2,

.. math::
    r = \frac{p(c)}{q(c)} = \frac{F (1 + c)^2 + B (1 - c)^2}{(F + B) (1 + c^2)} , \qquad 0 \le r \le 2 .

For (1 + c)^2, (1 - c)^2 and 1 + c^2 have the same integral over |c| < a. As E[w | theta, c] = r, weighted events have
the density p exactly, and a quarter of them counts negative. Their mean weight is one at every theta, so that they tilt
no prior: train with `rate=True`.
"""

import numpy as np

from sbi_dgm.parameters import Observable
from sbi_dgm.priors import Prior
from simulators.collider.dimuon import CONTACT, EDGE, ENERGIES, SIN2, log_mass_density, measured, reconstructed
from simulators.collider.electroweak import strengths, total

SIZE = 2.0  # of a weight; the largest p / q


class DimuonWeighted:
    """The problem "dimuon_weighted"."""

    name = "dimuon_weighted"
    version = "1"
    weighted = True
    fiducial = np.array([0.231, 0.0])

    def __init__(self) -> None:
        self.prior = Prior([SIN2, CONTACT])
        self.observables = {"event": Observable((2,), names=("cosine", "mass"))}

    def __call__(self, theta: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        stages = self.stages(theta, rng)
        return {name: stages[name] for name in ("event", "event_weight")}

    def stages(self, theta: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        r"""The stages of one draw.

        "parton" (B, 2): true c, \sqrt s [GeV]; "detector" (B, 6): measured momenta of mu- and mu+ [GeV];
        "event_weight" (B,); "event" (B, 2): c, M [GeV].
        """
        energy = rng.choice(ENERGIES, len(theta))
        cosine = _drawn(len(theta), rng)
        positive = rng.random(len(theta)) < (1 + ratio(energy, cosine, theta) / SIZE) / 2
        pairs = measured(energy, cosine, rng)
        return {
            "parton": np.stack([cosine, energy], axis=1),
            "detector": np.concatenate([pairs.minus, pairs.plus], axis=1),
            "event_weight": np.where(positive, SIZE, -SIZE),
            "event": np.stack(reconstructed(pairs), axis=1),
        }

    def log_likelihood(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """ln p(x | theta) of weighted events: (..., 2), (2,) -> (...)."""
        cosine, mass = np.asarray(x, np.float64)
        if np.abs(cosine) > EDGE + 1e-6:
            return np.full(np.shape(theta)[:-1], -np.inf)
        density = ratio(ENERGIES, cosine, np.asarray(theta, np.float64)[..., None, :]) * (1 + cosine**2) / total(EDGE)
        of_mass = np.exp(log_mass_density(np.array([mass]), np.array([cosine])))[:, 0]
        return np.log((density * of_mass).mean(-1))


def ratio(energy: np.ndarray, cosine: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """r, the density of cosines over that which they are drawn from: (...), (...), (..., 2) -> (...)."""
    forward, backward = strengths(energy, theta[..., 0], theta[..., 1])
    share = forward / (forward + backward)
    return (share * (1 + cosine) ** 2 + (1 - share) * (1 - cosine) ** 2) / (1 + cosine**2)


def _drawn(n: int, rng: np.random.Generator) -> np.ndarray:
    """Cosines of density proportional to 1 + c^2 in |c| < a: the sizes of a mixture of u and u^(1/3), times a."""
    flat = rng.random(n) < 1 / (1 + EDGE**2 / 3)
    return EDGE * rng.choice([-1.0, 1.0], n) * rng.random(n) ** np.where(flat, 1, 1 / 3)
