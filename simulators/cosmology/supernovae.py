"""The expansion history from type-Ia supernovae: 31 distance moduli of the JLA compilation, flat wCDM.

The moduli are normal around mu(z) + M (`background`, h = 0.7), with the compilation's 31 x 31 covariance. M [mag]
takes up the supernovae's absolute magnitude and the true h.

Data: Betoule et al. 2014 (arXiv:1401.4064), compressed by Ma, Corasaniti and Bassett 2016
(arXiv:1603.08519): tables A1 and A2 of libsncompress 0.0.7 (BSD), in `simulators/data/`.
"""

from importlib.resources import files

import numpy as np

from sbi_dgm.parameters import Observable
from simulators.cosmology.moduli import Moduli, prior_of

NUISANCE = 3  # rows of the covariance for alpha, beta and Delta_M


class Supernovae(Moduli):
    """The problem "supernovae": theta = (omega_m, w0, M), x = 31 distance moduli [mag]."""

    name = "supernovae"
    version = "1"

    def __init__(self) -> None:
        self.prior = prior_of(-0.3, 0.3)
        self.redshift, moduli = np.loadtxt(_table("jla_distance_moduli.txt"), unpack=True)
        self.nodes, self.design, self.offset = self.redshift, np.eye(len(moduli)), 0.0
        self.covariance = np.loadtxt(_table("jla_covariance.txt"))[NUISANCE:, NUISANCE:]
        self.observables = {"mu": Observable((len(moduli),), "mag", r"\mu")}
        self.observed = {"mu": moduli}


def _table(name: str) -> list[str]:
    return (files("simulators") / "data" / name).read_text().splitlines()
