r"""Does theta look like draws from its prior, and do failed simulations leave it so?

Under the prior's coordinates its draws are N(0, I). Each coordinate is compared with N(0, 1) by the Kolmogorov-Smirnov
test (one-sided in effect: points that are spread more evenly than draws, such as a Latin hypercube, pass), each pair by
the correlation r, for which \sqrt{n - 3} artanh r is nearly N(0, 1) (Fisher 1921). Failed rows are compared with valid
ones by the two-sample test: a simulator that fails in a corner cuts that corner out of the prior. Rows of equal theta
count once: the maps of one universe are one draw of its parameters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import scipy

from sbi_dgm.errors import PriorError
from sbi_dgm.priors import BoundedPrior, Prior
from sbi_dgm.univariate import Array

LEVEL = 1e-4  # probability of a false alarm, over all tests of one kind together
ROWS = 20_000


@dataclass(frozen=True)
class Agreement:
    """What was found.

    Attributes:
        theta: p-value by parameter, and by pair "a, b"; empty where draws of another proposal carry weights.
        failures: p-value by parameter, of failed against valid rows.

    """

    theta: Mapping[str, float] = field(default_factory=dict)
    failures: Mapping[str, float] = field(default_factory=dict)

    @property
    def differs(self) -> list[str]:
        """Parameters, or pairs, whose draws are not the prior's."""
        return _low(self.theta)

    @property
    def fails(self) -> list[str]:
        """Parameters on which failures depend."""
        return _low(self.failures)

    def describe(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "differs": self.differs,
            "fails": self.fails,
            "p_values": dict(self.theta),
            "failures": dict(self.failures),
        }


def require_drawn(purpose: str, differs: Sequence[str]) -> None:
    """`PriorError` for what rests on a prior from which some parameters were not drawn."""
    if differs:
        raise PriorError(
            f"{purpose} needs theta drawn from its prior, and by {'; '.join(differs)} it was not: correct the prior, "
            "or give the simulations proposal weights p(theta) / p~(theta)."
        )


def _low(p_values: Mapping[str, float]) -> list[str]:
    return [name for name, p in p_values.items() if p < LEVEL / len(p_values)]


def against_prior(prior: Prior, theta: Array) -> dict[str, float]:
    """p-values of theta (N, D), each distinct row once, against the prior.

    >>> from sbi_dgm.distributions import Uniform
    >>> from sbi_dgm.parameters import Parameter
    >>> prior = Prior([Parameter("a", Uniform(0, 1)), Parameter("b", Uniform(0, 1))])
    >>> draws = np.random.default_rng(0).random((1000, 2))
    >>> _low(against_prior(prior, draws)), _low(against_prior(prior, draws**[1, 1.5]))
    ([], ['b'])

    """
    z = prior.standardise(_distinct(theta))
    if isinstance(prior, BoundedPrior):
        return _against_draws(prior, z)
    found = {name: float(scipy.stats.kstest(column, "norm")[1]) for name, column in zip(prior.names, z.T, strict=True)}
    for i, j in combinations(range(len(prior)), 2):
        if len(z) > 3 and np.ptp(z[:, i]) and np.ptp(z[:, j]):
            r = np.clip(np.corrcoef(z[:, i], z[:, j])[0, 1], -1 + 1e-15, 1 - 1e-15)
            distance = np.sqrt(len(z) - 3) * np.arctanh(r)
            found[f"{prior.names[i]}, {prior.names[j]}"] = float(2 * scipy.special.ndtr(-abs(distance)))
    return found


def _against_draws(prior: Prior, z: Array) -> dict[str, float]:
    """Of a prior whose coordinates do not make it N(0, I): against its own draws, pairs by their sums."""
    drawn = prior.standardise(prior.sample(ROWS, seed=0))
    found = {name: _same(z[:, i], drawn[:, i]) for i, name in enumerate(prior.names)}
    for i, j in combinations(range(len(prior)), 2):
        pair = f"{prior.names[i]}, {prior.names[j]}"
        found[pair] = _same(z[:, i] + z[:, j], drawn[:, i] + drawn[:, j])
    return found


def against_failures(names: list[str], theta: Array, valid: np.ndarray) -> dict[str, float]:
    """p-values of the failed rows of theta (N, D) against the valid ones; empty where none failed, or all."""
    if valid.all() or not valid.any():
        return {}
    failed, good = _distinct(theta[~valid]), _distinct(theta[valid])
    return {n: _same(a, b) for n, a, b in zip(names, failed.T, good.T, strict=True)}


def _same(a: Array, b: Array) -> float:
    return float(np.asarray(scipy.stats.ks_2samp(a, b))[1])


def _distinct(theta: Array) -> Array:
    """Each distinct row once, of at most ROWS rows, evenly spaced."""
    return np.unique(theta[np.unique(np.linspace(0, len(theta) - 1, ROWS).astype(int))], axis=0)
