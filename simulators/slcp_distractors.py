r"""Simple likelihood, complex posterior, among distractors: the eight numbers of "slcp" hidden in ninety-two of noise.

As fixed by sbibm (Lueckmann et al. 2021, arXiv:2101.04653), after Greenberg et al. 2019 (arXiv:1905.07488):

.. math::
    x = (y, e)_{\pi}, \qquad y \,|\, \theta \sim \text{slcp}, \qquad
    e = m_k + L_k\, z \big/ \sqrt{c / 2}, \quad k \sim U\{1..20\},\ z \sim N(0, I_{92}),\ c \sim \chi^2_2 ,

a mixture of Student-t distributions with two degrees of freedom, which has no variance. All that is fixed comes from
the legacy stream of seed 42, in this order: m_k = 15 n with n standard normals; L_k = 3 (T + diag e^n) with T the lower
triangle, diagonal included, of 92 x 92 standard normals; the permutation. The noise knows nothing of theta: the
posterior is that of "slcp" at y.
"""

from functools import cache

import numpy as np

from sbi_dgm.parameters import Observable
from simulators.slcp import POINTS, SLCP

SIGNAL, NOISE, COMPONENTS, FREEDOM = 2 * POINTS, 92, 20, 2


class SLCPDistractors(SLCP):
    """The task "slcp_distractors"."""

    name = "slcp_distractors"
    version = "1"

    def __init__(self) -> None:
        super().__init__()
        self.observables = {"x": Observable((SIGNAL + NOISE,))}

    def __call__(self, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        signal = super().__call__(theta, rng)
        return np.concatenate([signal, distractors(len(theta), rng)], axis=1)[:, fixed()[2]]

    def log_likelihood(self, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        """ln p(x | theta) but for the noise's density, which theta does not change: (..., 5), (100,) -> (...)."""
        return super().log_likelihood(theta, split(x)[0])

    def reference_posterior(self, x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draws (n, 5) as of "slcp", exact in the limit of many proposals, for any x."""
        return super().reference_posterior(split(x)[0], n, rng)


def split(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the permutation mixed: x (..., 100) -> the signal (..., 8) and the noise (..., 92)."""
    whole = np.asarray(x)[..., np.argsort(fixed()[2])]
    return whole[..., :SIGNAL], whole[..., SIGNAL:]


def distractors(n: int, rng: np.random.Generator) -> np.ndarray:
    """Draws (n, 92) of the noise."""
    mean, factor, _ = fixed()
    component = rng.integers(COMPONENTS, size=n)
    z = rng.standard_normal((n, NOISE)) / np.sqrt(rng.chisquare(FREEDOM, (n, 1)) / FREEDOM)
    for k in range(COMPONENTS):
        rows = component == k
        z[rows] = mean[k] + z[rows] @ factor[k].T
    return z


@cache
def fixed() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What seed 42 fixes: means (20, 92), factors (20, 92, 92), permutation (100,)."""
    stream = np.random.RandomState(42)
    mean = 15 * stream.normal(size=(COMPONENTS, NOISE))
    factor = [np.tril(stream.normal(size=(NOISE, NOISE))) + np.diag(np.exp(stream.normal(size=NOISE))) for _ in mean]
    return mean, 3 * np.array(factor), stream.permutation(SIGNAL + NOISE)
