r"""Muon pairs at an electron-positron collider near the Z: forward against backward, and what that says.

The toy of Louppe, Hermans and Cranmer 2019 (arXiv:1707.07113): beams of energy E, a coupling G in units of Fermi's, and
20 events, of which the muon's cos(angle) c is seen,

.. math::
    p(c \,|\, E, G) = \tfrac38 \big(1 + c^2 + a\, c\big), \qquad
    a = 2\, G \tanh\!\Big(10\, \frac{2E - M_Z}{M_Z}\Big), \qquad M_Z = 90\ \mathrm{GeV} .

E ~ U(40, 50) GeV and G ~ U(0.5, 1.2), for which p is nowhere negative. The events know the asymmetry a alone, so the
posterior is a curved ridge along which a is constant.
"""

import numpy as np

from sbi_dgm.distributions import Uniform
from sbi_dgm.parameters import Observable, Parameter
from sbi_dgm.priors import Prior

EVENTS, Z_MASS = 20, 90.0


class Weinberg:
    """The problem "weinberg"."""

    name = "weinberg"
    version = "1"

    def __init__(self) -> None:
        self.prior = Prior(
            [Parameter("energy", Uniform(40, 50), "E", "GeV"), Parameter("coupling", Uniform(0.5, 1.2), "G")]
        )
        self.observables = {"cosine": Observable((EVENTS,))}

    def __call__(self, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """|c| of 3 (1 + c^2) / 4, a mixture of u and u^(1/3); its sign by the asymmetry."""
        shape = (len(theta), EVENTS)
        size = rng.random(shape) ** rng.choice([1.0, 1 / 3], shape, p=[0.75, 0.25])
        forward = 0.5 * (1 + asymmetry(theta)[:, None] * size / (1 + size**2))
        return np.where(rng.random(shape) < forward, size, -size)

    def log_likelihood(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """ln p(x | theta): (..., 2), (20,) -> (...)."""
        return _log_density(asymmetry(theta), x)

    def reference_posterior(self, x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        """n exact draws (n, 2) for any x: of the prior's, those that the likelihood keeps."""
        most = _log_density(np.linspace(-2, 2, 4001), x).max() + 1e-4  # concave in a, so that the grid's error is less
        kept: list[np.ndarray] = []
        while sum(map(len, kept)) < n:
            theta = self.prior.draw(4 * n, rng)
            kept.append(theta[np.log(rng.random(4 * n)) < self.log_likelihood(theta, x) - most])
        return np.concatenate(kept)[:n]


def asymmetry(theta: np.ndarray) -> np.ndarray:
    """a, below 2 in size: (..., 2) -> (...)."""
    return 2 * theta[..., 1] * np.tanh(10 * (2 * theta[..., 0] - Z_MASS) / Z_MASS)


def _log_density(a: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.log(0.375 * (1 + x**2 + a[..., None] * x)).sum(-1)
