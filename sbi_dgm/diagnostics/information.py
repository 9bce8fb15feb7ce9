r"""What was learned: how the posterior's mean and width compare with the truth and with the prior.

Of each row and parameter, with the posterior's mean mu and sd s, and the prior's sd s_0 (that of the truths):

.. math::  z = (\mu - \theta^*) / s, \qquad \text{contraction} = 1 - s^2 / s_0^2

(Schad, Betancourt and Vasishth 2021, arXiv:1904.12765). Over rows, z has mean 0 and variance 1 where calibrated; the
mean contraction is the share of the prior's variance that x explains. Of two modes far apart x may tell much and the
variance nothing: whether a posterior equals the prior is told by Kolmogorov's distance from all draws together, which
the prior is the distribution of, if the posterior is calibrated.
"""

from typing import NamedTuple

import numpy as np

from sbi_dgm.diagnostics.evidence import Evidence
from sbi_dgm.samples import NEAR
from sbi_dgm.univariate import Array

UNINFORMED = 0.1  # distance, beside that of few draws, below which a posterior is said to equal the prior
PILED = 0.08  # share of draws at an edge where they pile up: of a uniform posterior's there are 0.06
OFTEN = 0.5  # share of rows whose draws pile up at an edge, above which that is said


class Information(NamedTuple):
    """Of R rows and D parameters.

    Attributes:
        mean, sd: of the draws, (R, D).
        truth: (R, D).
        prior_sd: (D,), of the truths.
        distance: (R, D), Kolmogorov's, of the draws from those of all rows.
        edges: (2, D), the share of rows whose draws pile up at the prior's lower and upper edge.

    """

    mean: Array
    sd: Array
    truth: Array
    prior_sd: Array
    distance: Array
    edges: Array

    @property
    def z(self) -> Array:
        """(mu - theta*) / s, (R, D)."""
        return (self.mean - self.truth) / self.sd

    @property
    def contraction(self) -> Array:
        """1 - s^2 / s_0^2, (R, D)."""
        return 1 - (self.sd / self.prior_sd) ** 2

    def describe(self, names: list[str]) -> dict[str, dict[str, float]]:
        """Numbers of each parameter by name."""
        recovery = [float(np.corrcoef(a, b)[0, 1]) for a, b in zip(self.mean.T, self.truth.T, strict=True)]
        columns = {
            "prior_sd": self.prior_sd,
            "median_sd": np.median(self.sd, axis=0),
            "contraction": self.contraction.mean(0),
            "distance": np.median(self.distance, axis=0),
            "recovery": np.nan_to_num(recovery),
            "z_mean": self.z.mean(0),
            "z_sd": self.z.std(0),
            "at_low_edge": self.edges[0],
            "at_high_edge": self.edges[1],
        }
        return {name: {key: float(column[j]) for key, column in columns.items()} for j, name in enumerate(names)}


def information(evidence: Evidence) -> Information:
    """Of all rows."""
    draws, tiny = evidence.draws, np.finfo(float).tiny
    sd, prior_sd = np.maximum(draws.std(1), tiny), np.maximum(evidence.theta.std(0), tiny)
    bounds = np.full((2, draws.shape[-1]), np.inf) if evidence.bounds is None else evidence.bounds
    at = np.stack([(np.abs(draws - edge) < NEAR * sd[:, None]).mean(1) > PILED for edge in bounds])
    return Information(draws.mean(1), sd, evidence.theta, prior_sd, _distance(draws), at.mean(1))


def _distance(draws: Array) -> Array:
    """Of draws (R, S, D) from the pooled: sup |F_r - F|, (R, D)."""
    rows, count, size = draws.shape
    steps, found = np.arange(1, count + 1) / count, np.empty((rows, size))
    for j in range(size):
        pooled = np.sort(draws[..., j], axis=None)
        below = np.searchsorted(pooled, np.sort(draws[..., j], axis=1)) / pooled.size
        found[:, j] = np.abs(steps - below).max(1)
    return found


def warned(described: dict[str, dict[str, float]], draws: int) -> list[str]:
    """What a reader should know though no test accuses: parameters of which x tells nothing, and edges that decide.

    Args:
        described: numbers of each parameter.
        draws: of each row.

    """
    found = []
    for name, of in described.items():
        if of["distance"] < UNINFORMED + draws**-0.5:
            found.append(
                f"The posterior of {name} equals the prior, whatever x is: half of the rows differ from all together "
                f"by less than {of['distance']:.3f} in probability (Kolmogorov's distance)."
            )
        found += [
            f"The posterior of {name} piles up at the prior's {side} edge in {of[f'at_{side}_edge']:.0%} of rows: "
            "there the prior decides, not x."
            for side in ("low", "high")
            if of[f"at_{side}_edge"] > OFTEN
        ]
    return found
