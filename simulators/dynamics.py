r"""Ordinary differential equations for many parameters at once: the classical Runge-Kutta method of order four.

Kutta 1901; Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, table II.1.2:

.. math::
    k_1 = f(y), \quad k_2 = f(y + \tfrac h2 k_1), \quad k_3 = f(y + \tfrac h2 k_2), \quad k_4 = f(y + h k_3), \quad
    y(t + h) = y + \tfrac h6 (k_1 + 2 k_2 + 2 k_3 + k_4) + O(h^5) .

Steps are of one length for a row, halved until they resolve the fastest rate that the row is known to reach.
Populations are integrated as logarithms: they stay positive, and constant rates of growth are solved exactly.
"""

from collections.abc import Callable

import numpy as np

Field = Callable[[np.ndarray], Callable[[np.ndarray], np.ndarray]]
BLOCK = 2048  # rows that are integrated together: their state stays in the processor's cache


def trajectories(
    field: Field,
    theta: np.ndarray,
    start: np.ndarray,
    *,
    interval: float,
    saves: int,
    steps: int,
    rate: np.ndarray,
    reach: float = 0.1,
) -> np.ndarray:
    """State (B, saves, K) at the times 0, interval, 2 interval, ...

    Args:
        field: what makes of parameters (D, b) a function that gives dy/dt (K, b) at y (K, b).
        theta: parameters (B, D).
        start: state (K,) at time 0.
        interval: between two saved states.
        saves: how many states are saved, the start among them.
        steps: the fewest steps for an interval.
        rate: (B,), a bound on how fast the logarithms change along each trajectory.
        reach: steps are halved until rate times step is below it.

    """
    halvings = np.ceil(np.log2(np.maximum(rate * interval / (steps * reach), 1))).astype(int)
    result = np.empty((len(theta), saves, len(start)))
    for level in np.unique(halvings):
        rows = np.flatnonzero(halvings == level)
        for block in np.array_split(rows, -(-len(rows) // BLOCK)):
            y = np.repeat(start[:, None], len(block), axis=1)
            saved = runge_kutta(field(theta[block].T), y, interval, steps * 2**level, saves)
            result[block] = np.moveaxis(saved, -1, 0)
    return result


def runge_kutta(
    f: Callable[[np.ndarray], np.ndarray], y: np.ndarray, interval: float, steps: int, saves: int
) -> np.ndarray:
    """States (saves, ...) of dy/dt = f(y) from y (...) on: y itself, then after every `steps` steps of an interval."""
    h, saved = interval / steps, [y]
    for _ in range(saves - 1):
        for _ in range(steps):
            k1 = f(y)
            k2 = f(y + h / 2 * k1)
            k3 = f(y + h / 2 * k2)
            k4 = f(y + h * k3)
            y = y + h / 6 * (k1 + 2 * (k2 + k3) + k4)
        saved.append(y)
    return np.stack(saved)
