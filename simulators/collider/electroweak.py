r"""The cross section of e- e+ -> mu- mu+ by a photon, a Z and a contact of left-handed currents.

For helicities i, j in {L, R} of electron and muon, both without mass, and C = C_LL / Lambda^2 (Eichten, Lane and Peskin
1983, doi:10.1103/PhysRevLett.50.811),

.. math::
    A_{ij} = \frac{e^2 Q_e Q_\mu}{s} + \frac{g_Z^2\, g_i g_j}{s - M_Z^2 + i M_Z \Gamma_Z} + \delta_{iL} \delta_{jL}\, C,
    \qquad g_L = -\tfrac12 + s_W^2, \quad g_R = s_W^2, \quad g_Z^2 = \frac{e^2}{s_W^2 (1 - s_W^2)} ,

with c the cosine of the angle between e- and mu- (Particle Data Group 2022, doi:10.1093/ptep/ptac097),

.. math::
    \frac{d\sigma}{dc} = F (1 + c)^2 + B (1 - c)^2, \qquad
    F = \frac{s}{128 \pi} \big(|A_{LL}|^2 + |A_{RR}|^2\big), \quad
    B = \frac{s}{128 \pi} \big(|A_{LR}|^2 + |A_{RL}|^2\big) .

So the cross section is 8 (F + B) / 3, which for photons alone is 4 pi alpha^2 / (3 s), and the asymmetry of forward and
backward is 3 (F - B) / (4 (F + B)).
"""

import numpy as np

ALPHA = 1 / 128  # at the mass of the Z
Z_MASS, Z_WIDTH = 91.1876, 2.4952  # GeV
PICOBARN = 0.3893793721e9  # (hbar c)^2 in pb GeV^2
PER_TEV2 = 1e-6  # in GeV^-2


def strengths(
    energy: np.ndarray, sin2: np.ndarray, contact: np.ndarray, alpha: float = ALPHA
) -> tuple[np.ndarray, np.ndarray]:
    """F and B in pb, of arrays that broadcast.

    Args:
        energy: the square root of s [GeV].
        sin2: s_W^2.
        contact: C [TeV^-2].
        alpha: e^2 / (4 pi).

    """
    s, charge2 = energy**2, 4 * np.pi * alpha
    left, right = sin2 - 0.5, sin2
    photon = charge2 / s
    z = charge2 / (sin2 * (1 - sin2)) / (s - Z_MASS**2 + 1j * Z_MASS * Z_WIDTH)
    equal = np.abs(photon + z * left**2 + PER_TEV2 * contact) ** 2 + np.abs(photon + z * right**2) ** 2
    opposite = 2 * np.abs(photon + z * left * right) ** 2
    scale = PICOBARN * s / (128 * np.pi)
    return scale * equal, scale * opposite


def total(edge: float = 1.0) -> float:
    """The integral of (1 + c)^2, or of (1 - c)^2, over |c| < edge."""
    return 2 * edge + 2 * edge**3 / 3
