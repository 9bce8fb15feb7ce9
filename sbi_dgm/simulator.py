"""What a simulator is, and how one is found by name.

A plug-in is one file and one line in its package's metadata, under the entry-point group
`sbi_dgm.simulators`; the library itself imports none.
"""

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sbi_dgm.errors import OptionError, unknown
from sbi_dgm.parameters import Observable
from sbi_dgm.priors import Prior

GROUP = "sbi_dgm.simulators"


@runtime_checkable
class Simulator(Protocol):
    """A sampler of p(x | theta), batched, numpy only.

    Where the mathematics allows, it also offers `log_likelihood(theta, x)`, `reference_posterior(x, n, rng)`
    (exact or asymptotically exact draws for any x) and `observed` (real data by observable's name).
    """

    name: str
    prior: Prior
    observables: Mapping[str, Observable]

    def __call__(self, theta: np.ndarray, rng: np.random.Generator) -> "np.ndarray | dict[str, np.ndarray]":
        """Theta (B, D) -> x (B, ...), or a dict of them by observable's name."""
        ...


def available() -> dict[str, Any]:
    """The installed simulators: name -> entry point."""
    return {point.name: point for point in entry_points(group=GROUP)}


def find(name: str) -> Simulator:
    """The installed simulator called `name`, made anew."""
    known = available()
    if name not in known:
        raise OptionError(unknown("simulator", name, known))
    return known[name].load()()


def unbatched(function: Callable[..., Any]) -> Callable[..., Any]:
    """Lift f(theta (D,), rng) -> x to batches: theta (B, D) -> x (B, ...), row after row.

    >>> f = unbatched(lambda theta, rng: theta.sum())
    >>> f(np.ones((3, 2)), np.random.default_rng(0)).tolist()
    [2.0, 2.0, 2.0]
    """

    def batched(theta: np.ndarray, rng: np.random.Generator) -> "np.ndarray | dict[str, np.ndarray]":
        rows = [function(row, rng) for row in theta]
        if rows and isinstance(rows[0], Mapping):
            return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        return np.stack([np.asarray(row) for row in rows])

    return batched
