r"""Predictive checks: is the next observation like those that the posterior predicts?

Of the x that a posterior was conditioned on, its own predictions know too much. A *replication* x' ~ p(x' | theta*) of
the same truth, and x^s ~ p(x' | theta^s) with theta^s ~ q(theta | x), are exchangeable given x if q is the posterior,
so that any number made of x' ranks uniformly among the same of the x^s. Unlike ranks of parameters this judges the
posterior where it matters to data: what is wrong in it and changes no prediction is passed over.

Where the simulator fails at any of the truth and the draws of a row, that row is left out: all of them count alike, so
that those of the others stay exchangeable.

The numbers are the leading principal components of all simulated x, scaled alike (`sbi_dgm.diagnostics.tarp.features`).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sbi_dgm.data.batches import Noise
from sbi_dgm.data.columns import usable_rows
from sbi_dgm.diagnostics import tarp
from sbi_dgm.diagnostics.bins import principal
from sbi_dgm.diagnostics.evidence import Evidence, side_by_side
from sbi_dgm.errors import DataError, OptionError
from sbi_dgm.heldout import noised
from sbi_dgm.simulator import Simulator, attempted, is_weighted, narrowed, reason
from sbi_dgm.univariate import Array

ROWS, FEWEST, REPLICATIONS = 200, 20, 20


class Predicted(NamedTuple):
    """Replications of R' rows: x' of the truth first, then those of the draws.

    Attributes:
        rows: (R',), their numbers.
        failed: why others are left out, in a sentence; empty where none is.
        x: (R', 1 + S', C), all numbers of x side by side.
        components: (R', 1 + S', k), the principal ones.

    """

    rows: np.ndarray
    failed: str
    x: Array
    components: Array


def predicted(evidence: Evidence, simulator: Simulator, noise: Noise | None, rng: np.random.Generator) -> Predicted:
    """Replications of at most `ROWS` rows, by one simulation of the truth and `REPLICATIONS` of draws.

    Raises:
        OptionError: the simulator has other parameters or observables, or its events are weighted.
        DataError: it failed, or gave numbers that are not finite, so that fewer than `FEWEST` rows are left.

    """
    order = _columns(evidence.names, simulator)
    _require_shapes(evidence.x, simulator)
    if is_weighted(simulator):
        raise OptionError(f"predictive checks compare events as they are, and {simulator.name} weighs its own.")
    rows = np.sort(rng.permutation(len(evidence.theta))[:ROWS])
    theta = np.concatenate([evidence.theta[rows, None], evidence.draws[rows, :REPLICATIONS]], axis=1)[..., order]
    flat = theta.reshape(-1, theta.shape[-1])
    drawn, errors = attempted(simulator, flat, rng, lambda _: rng.spawn(1)[0])
    x = narrowed(drawn)
    if noise is not None:
        x = noised(x, flat, noise, int(rng.integers(2**62)))
    good = np.all([usable_rows(a, simulator.observables[name].optional) for name, a in x.items()], axis=0)
    good[list(errors)] = False
    failed, kept = _failed(simulator, flat, good, errors), good.reshape(theta.shape[:2]).all(1)
    if kept.sum() < FEWEST:
        raise DataError(f"{failed}: {kept.sum()} rows are left, and {FEWEST} are needed; leave out simulator.")
    numbers = side_by_side({name: a[kept.repeat(theta.shape[1])] for name, a in x.items()})
    components = principal(tarp.features(numbers))
    shape = kept.sum(), theta.shape[1], -1
    return Predicted(rows[kept], failed, numbers.reshape(shape), components.reshape(shape))


def _failed(simulator: Simulator, theta: Array, good: np.ndarray, errors: Mapping[int, BaseException]) -> str:
    """A sentence on what failed; empty where nothing did."""
    for first in np.flatnonzero(~good)[:1]:
        why = f" ({reason(errors[first])})" if first in errors else " (a number that is not finite)"
        at = np.array2string(theta[first], precision=4)
        return f"{simulator.name} failed at {(~good).sum()} of {len(good)} draws of the posterior, first at {at}{why}"
    return ""


def _columns(names: Sequence[str], simulator: Simulator) -> list[int]:
    """Where the simulator's parameters stand among the posterior's."""
    if set(names) != set(simulator.prior.names):
        raise OptionError(
            f"predictive checks simulate at draws of {', '.join(names)}, and {simulator.name} has the parameters "
            f"{', '.join(simulator.prior.names)}: they need a posterior of all of them."
        )
    return [list(names).index(name) for name in simulator.prior.names]


def _require_shapes(x: Mapping[str, np.ndarray], simulator: Simulator) -> None:
    """Another simulator of the same parameters; names may differ, as those of a file that others wrote."""
    seen, given = ({name: a.shape[1:] for name, a in x.items()}, {n: o.shape for n, o in simulator.observables.items()})
    if sorted(seen.values()) != sorted(given.values()):
        raise OptionError(
            f"{simulator.name} simulates {given}, and the simulations are of {seen}: it did not make them."
        )
