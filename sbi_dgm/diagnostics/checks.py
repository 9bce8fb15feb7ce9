"""What of a posterior is checked: quantities whose truth ranks uniformly among the posterior's draws.

If q is the posterior, theta* and its draws are exchangeable given x, and so are f(theta*, x) and f of the draws for any
f. Every check is such an f: a parameter, a quantity of the user's, -ln q (highest-density regions), the distance from a
point anywhere, and that from what x predicts (`sbi_dgm.diagnostics.tarp`).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sbi_dgm.diagnostics import tarp
from sbi_dgm.diagnostics.calibration import Uniformity, ranks, uniformity
from sbi_dgm.diagnostics.evidence import Evidence
from sbi_dgm.errors import OptionError
from sbi_dgm.simulator import reason
from sbi_dgm.univariate import Array

Quantity = Callable[[Mapping[str, Array]], Any]


class Words(NamedTuple):
    """For ranks that are too high, too low, too far out, too central; "" where the shape says it better."""

    high: str
    low: str
    outer: str
    inner: str


OF_VALUES = Words("biased low", "biased high", "overconfident", "underconfident")
OF_REGIONS = Words("overconfident", "underconfident", "", "")
OF_DISTANCES = Words("misplaced", "misplaced", "overconfident", "underconfident")
OF_PREDICTIONS = Words("overconfident", "less informed than x allows", "overconfident", "underconfident")
OF_REPLICATIONS = Words("predicted too low", "predicted too high", "predicted too narrowly", "predicted too broadly")
REGIONS, ANYWHERE, PREDICTED = "regions", "points anywhere", "points predicted"
REPLICATED, EVERYWHERE = "replication, component {}", "worst of all bins"


class Check(NamedTuple):
    """Ranks (R',) in (0, 1), of all rows or some, and words for what is wrong with them."""

    ranks: Array
    words: Words

    def test(self, level: float) -> Uniformity:
        """The p-value, and what is wrong where it is below `level`."""
        return uniformity(self.ranks, *self.words, level)


def checks(evidence: Evidence, quantities: Mapping[str, Quantity], rng: np.random.Generator) -> dict[str, Check]:
    """All checks by name: parameters, quantities, regions, points."""
    _require_functions(quantities)
    require_names(quantities, "test quantity", evidence.names)
    own = ranks(evidence.theta, evidence.draws, rng)
    found = {name: Check(u, OF_VALUES) for name, u in zip(evidence.names, own.T, strict=True)}
    truth, drawn = evidence.columns(evidence.theta), evidence.columns(evidence.draws)
    for name, function in quantities.items():
        found[name] = _ranked(_values(name, function, truth), _values(name, function, drawn), OF_VALUES, rng)
    found[REGIONS] = _ranked(-evidence.log_prob, -evidence.drawn_log_prob, OF_REGIONS, rng)
    return found | _points(evidence, rng)


def require_names(names: Iterable[str], kind: str = "parameter", taken: Sequence[str] = ()) -> None:
    """`OptionError` for the name of a check."""
    for name in names:
        if name in (*taken, REGIONS, ANYWHERE, PREDICTED, EVERYWHERE) or name.startswith(REPLICATED.format("")):
            raise OptionError(f"{kind} {name!r}: that is the name of a check already; call it something else.")


def _require_functions(quantities: Any) -> None:
    if not isinstance(quantities, Mapping) or not all(map(callable, quantities.values())):
        raise OptionError(
            f"test quantities are functions of the parameters by name, such as {{'S8': f}}: this is a "
            f"{type(quantities).__name__}."
        )


def _ranked(truth: Array, draws: Array, words: Words, rng: np.random.Generator) -> Check:
    return Check(ranks(truth[:, None], draws[..., None], rng)[:, 0], words)


def _values(name: str, function: Quantity, theta: Mapping[str, Array]) -> Array:
    """A quantity of parameters by name, each of the same shape, which is also that of what comes out."""
    shape = next(iter(theta.values())).shape
    try:
        found = np.asarray(function(theta), np.float64)
    except Exception as error:
        raise OptionError(f"test quantity {name!r} of a dict of {', '.join(theta)} fails: {reason(error)}.") from error
    if found.shape != shape:
        raise OptionError(f"test quantity {name!r}: {found.shape} came back for parameters of shape {shape}.")
    if not np.isfinite(found).all():
        bad = np.argwhere(~np.isfinite(found))[0]
        at = ", ".join(f"{key} = {values[tuple(bad)]:g}" for key, values in theta.items())
        raise OptionError(f"test quantity {name!r} is {found[tuple(bad)]} at {at}.")
    return found


def _points(evidence: Evidence, rng: np.random.Generator) -> dict[str, Check]:
    """Distances from points anywhere, of all rows, and from predictions, of rows in an order of `rng`."""
    order = rng.permutation(len(evidence.theta))
    predicted, later = tarp.predictions(tarp.features(evidence.flat)[order], evidence.theta[order])
    anywhere = tarp.anywhere(evidence.draws, rng)
    return {
        ANYWHERE: _distant(evidence, np.arange(len(order)), anywhere, OF_DISTANCES, rng),
        PREDICTED: _distant(evidence, order[later], predicted, OF_PREDICTIONS, rng),
    }


def _distant(evidence: Evidence, rows: np.ndarray, point: Array, words: Words, rng: np.random.Generator) -> Check:
    """Distances of some rows' truths and draws from a point each (R', D), in units of the truths' sd."""
    scale = evidence.theta.std(0)
    truth = tarp.distances(evidence.theta[rows], point, scale)
    return _ranked(truth, tarp.distances(evidence.draws[rows], point, scale), words, rng)


def of_replications(components: Array, rng: np.random.Generator) -> dict[str, Check]:
    """Components (R', 1 + S', k) of replicated observations: that of the truth comes first."""
    u = ranks(components[:, 0], components[:, 1:], rng)
    return {REPLICATED.format(k + 1): Check(column, OF_REPLICATIONS) for k, column in enumerate(u.T)}
