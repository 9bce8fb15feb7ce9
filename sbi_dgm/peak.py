"""The maximum of a density that is known at any point, without its gradient."""

import warnings
from collections.abc import Callable

import numpy as np
import scipy

from sbi_dgm.priors import Prior
from sbi_dgm.univariate import Array


def highest(theta: Array, log_q: Array, log_prob: Callable[[Array], Array], reference: Prior) -> Array:
    """The maximum (D,) within the box of draws, in the coordinates of `reference`, climbing from the best of them.

    Args:
        theta: draws (S, D).
        log_q: their ln q (S,).
        log_prob: ln q of any theta (N, D) -> (N,).
        reference: whose coordinates.

    Warns:
        where it lies on the box, with the parameters' names.

    """
    coordinates, names = reference.coordinates, reference.names
    z = coordinates.forward(theta)[0]
    low, high = z.min(0), z.max(0)
    step = 1e-2 * (high - low)
    stencil = np.concatenate([np.zeros((1, len(low))), np.diag(step), -np.diag(step)])

    def objective(u: Array) -> tuple[float, Array]:
        values = log_prob(coordinates.inverse(u + stencil))
        ahead, behind = np.split(values[1:], 2)
        return -float(values[0]), -(ahead - behind) / (2 * step)

    start = z[np.argmax(log_q)]
    best = scipy.optimize.minimize(objective, start, jac=True, method="L-BFGS-B", bounds=np.column_stack([low, high])).x
    stuck = [n for n, a, b, c in zip(names, best - low, high - best, step, strict=True) if min(a, b) < 0.1 * c]
    if stuck:
        warnings.warn(f"the maximum lies at the edge of the draws for {', '.join(stuck)}.", stacklevel=3)
    return coordinates.inverse(best)
