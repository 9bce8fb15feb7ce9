r"""Where a posterior is wrong: ranks of the truth in bins of what x tells.

Ranks are uniform whatever x is, and so in every part of the observations. Given theta* they are not: of truths that lie
high, an exact posterior's draws lie low, by regression to the mean; bins of theta* would accuse it. The parts are those
of the posterior's mean of each parameter, and of the leading principal components of x. The mean is taken over the
truth and its draws alike, so that given it each of them ranks as any other.

In each bin the normal scores of n ranks are tested for place and width, as in `sbi_dgm.diagnostics.calibration`. The
smallest of all p-values times their number counts: a bound, since bins of different quantities share rows.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import NDArray

from sbi_dgm.diagnostics import tarp
from sbi_dgm.diagnostics.checks import OF_VALUES
from sbi_dgm.diagnostics.evidence import Evidence
from sbi_dgm.univariate import Array

BINS, COMPONENTS, CENTRAL = 5, 3, 0.68


class Binned(NamedTuple):
    """Ranks in K bins of one quantity.

    Attributes:
        edges: (K + 1,) of the bins.
        rows: (K,) in each.
        place: (K, D), sum of normal scores over sqrt(n): N(0, 1) where calibrated.
        width: (K, D), probability below the sum of their squares by chi^2 with n degrees of freedom.
        covered: (K, D), share of truths within the central 68 % of their draws.

    """

    edges: Array
    rows: NDArray[np.intp]
    place: Array
    width: Array
    covered: Array

    @property
    def p_values(self) -> Array:
        """Two-sided, of place and width: (2, K, D)."""
        return 2 * np.stack([scipy.special.ndtr(-np.abs(self.place)), np.minimum(self.width, 1 - self.width)])


def quantities(evidence: Evidence) -> dict[str, Array]:
    """What x tells of each row (R,), by name: means of parameters, then principal components of x."""
    total = evidence.draws.sum(1) + evidence.theta
    means = total / (evidence.draws.shape[1] + 1)
    components = principal(tarp.features(evidence.flat))
    named = {f"mean of {name}": column for name, column in zip(evidence.names, means.T, strict=True)}
    return named | {f"component {k + 1} of x": column for k, column in enumerate(components.T)}


def principal(values: Array, count: int = COMPONENTS) -> Array:
    """The leading principal components (R, k) of values (R, C), k <= `count`, in units of their sd.

    >>> principal(np.array([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]])).shape
    (3, 1)
    """
    centred = values - values.mean(0)
    inner = centred @ centred.T if len(centred) < centred.shape[1] else None
    variance, vectors = np.linalg.eigh(centred.T @ centred if inner is None else inner)
    kept = np.flatnonzero(variance > 1e-9 * variance[-1])[::-1][:count]
    found = centred @ vectors[:, kept] if inner is None else vectors[:, kept]
    return found / found.std(0)


def binned(ranks: Array, quantity: Array) -> Binned | None:
    """Ranks (R, D) in `BINS` bins of a quantity (R,) with as many rows each; None where it has one value alone."""
    edges = np.unique(np.quantile(quantity, np.linspace(0, 1, BINS + 1)))
    if len(edges) < 3:
        return None
    number = np.clip(np.searchsorted(edges, quantity, side="right") - 1, 0, len(edges) - 2)
    scores, inside = scipy.special.ndtri(ranks), np.abs(2 * ranks - 1) <= CENTRAL
    rows = np.bincount(number)
    sums, squares, covered = (_sums(values, number) for values in (scores, scores**2, inside))
    width = scipy.special.chdtr(rows[:, None], squares)
    return Binned(edges, rows, sums / rows[:, None] ** 0.5, width, covered / rows[:, None])


def _sums(values: np.ndarray, number: np.ndarray) -> Array:
    columns = values.astype(np.float64).T
    return np.stack([np.bincount(number, column) for column in columns], axis=1).astype(np.float64)


class Worst(NamedTuple):
    """The bin that deviates most: p-value after correction for all, parameter's number, quantity, and its range."""

    p_value: float
    parameter: int
    quantity: str
    low: float
    high: float
    finding: str


def worst(found: Mapping[str, Binned]) -> Worst | None:
    """Of all bins; None where there are none."""
    if not found:
        return None
    tests = sum(one.p_values.size for one in found.values())
    name = min(found, key=lambda name: found[name].p_values.min())
    one = found[name]
    kind, k, j = np.unravel_index(one.p_values.argmin(), one.p_values.shape)
    side = one.place[k, j] > 0 if kind == 0 else one.width[k, j] > 0.5
    p_value = min(1.0, tests * float(one.p_values[kind, k, j]))
    low, high = map(float, one.edges[k : k + 2])
    return Worst(p_value, int(j), name, low, high, OF_VALUES[2 * int(kind) + int(not side)])
