"""The proposals of a refinement, and what each might have come from: the posterior, the prior, fitted mixtures.

The formula is that of `sbi_dgm.refinement`.
"""

import numpy as np

from sbi_dgm import pooling
from sbi_dgm.importance import SHARE_OF_PRIOR
from sbi_dgm.mixtures import FITTED, Mixture, fit_mixture
from sbi_dgm.priors import Prior
from sbi_dgm.univariate import EDGE, Array

BLOCK = 2**14  # proposals between two looks at the effective size
SHARE_OF_MIXTURE = 0.5  # of a block, once a mixture is fitted
FEWEST = 40  # proposals that a mixture needs for each dimension, and one more


class Proposals:
    """Proposals for one observation, with the density of each under all that it might have come from.

    Attributes:
        theta: (M, D).
        log_target: (M,), ln of L p, or of the pool.
        counts: proposals that came from q, from the prior, and from each mixture.

    """

    def __init__(self, prior: Prior, power: float) -> None:
        self.prior, self.power = prior, power
        self.theta = self._z = np.empty((0, len(prior)))
        self._log_det, self.log_target = np.empty(0), np.empty(0)
        self._parts = np.empty((2, 0))  # ln of q, of the prior, and of each mixture
        self._mixtures: list[Mixture] = []
        self.counts = [0, 0]

    def draw(self, rng: np.random.Generator) -> tuple[Array, Array, np.ndarray]:
        """What a block takes of the prior, of the last mixture, if any, and which of those have |z| below 8.2.

        The others, where float64 has no prior left, are the prior's median; they weigh nothing.
        """
        z = np.empty((0, len(self.prior)))
        if self._mixtures:
            z = self._mixtures[-1].sample(round(SHARE_OF_MIXTURE * BLOCK), rng)
        inside = np.all(np.abs(z) < EDGE, axis=1)
        fitted = self.prior.coordinates.inverse(np.where(inside[:, None], z, 0.0))
        return self.prior.draw(round(SHARE_OF_PRIOR * BLOCK), rng), fitted, inside

    def add(self, theta: Array, counts: list[int], log_q: Array, log_likelihood: Array) -> None:
        """More proposals; `counts` of q, the prior and the last mixture, in this order."""
        z, log_det = self.prior.coordinates.forward(theta)
        log_prior = self.prior.log_prob(theta)
        parts = [log_q, log_prior, *(_reached(mixture, z) + log_det for mixture in self._mixtures)]
        self.theta, self._z = np.concatenate([self.theta, theta]), np.concatenate([self._z, z])
        self._log_det = np.concatenate([self._log_det, log_det])
        with np.errstate(invalid="ignore"):
            target = pooling.mixed(log_likelihood + log_prior, log_q, self.power)
        target[log_prior == np.inf] = -np.inf  # at an edge where the density has no bound, and no mass
        self.log_target = np.concatenate([self.log_target, target])
        self._parts = np.concatenate([self._parts, parts], axis=1)
        for part, count in zip((0, 1, -1), counts, strict=True):
            self.counts[part] += count

    def fit(self, rng: np.random.Generator) -> None:
        """Another mixture, fitted to the heaviest proposals; none where too few have a weight at all."""
        log_weight = self.log_weight()
        rows = np.argsort(log_weight)[-FITTED:]
        if np.isfinite(log_weight[rows]).sum() < FEWEST * (1 + len(self.prior)):
            return
        mixture = fit_mixture(self._z[rows], log_weight[rows], rng)
        self._mixtures.append(mixture)
        self._parts = np.concatenate([self._parts, [_reached(mixture, self._z) + self._log_det]])
        self.counts.append(0)

    def log_weight(self) -> Array:
        """(M,), ln of L p, or the pool, over the mixture of all parts, in the shares that they have."""
        with np.errstate(divide="ignore"):
            share = np.log(np.array(self.counts) / len(self.theta))
        return self.log_target - np.logaddexp.reduce(self._parts + share[:, None], axis=0)


def _reached(mixture: Mixture, z: Array) -> Array:
    """Ln of a mixture's density, of whose draws only those with |z| below 8.2 are used."""
    return np.where(np.all(np.abs(z) < EDGE, axis=1), mixture.log_prob(z), -np.inf)
