"""What a library has to answer, in the words of the comparison, and what the sides share."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

PIECE = 2**16  # rows that a network takes at once, where a library leaves that to its user


class Unable(Exception):  # noqa: N818  (an answer rather than an accident)
    """The library cannot do that; the text says why."""


class Side(Protocol):
    """One library on the problem's rows."""

    differs: str  # from the architecture and the training asked for, in words
    packages: tuple[str, ...]  # whose versions matter

    def steps(self, epochs: int) -> dict[str, float]:
        """Seconds for a step, and for an epoch with its validation, in the library's own training loop."""
        ...

    def train(self, epochs: int | None) -> list[tuple[float, float]]:
        """Train to the library's own end, or for `epochs` at most, and keep the posterior.

        Returns (seconds since the call, mean -ln q(theta | x) on the validation rows) after each epoch.
        """
        ...

    def network(self) -> dict[str, int]:
        """Numbers in the weight matrices of the network trained last (`weights`), and in all of it (`parameters`)."""
        ...

    def sample(self, observations: int, draws: int) -> None:
        """Draws inside the prior, of the first test rows."""
        ...

    def log_prob(self, observations: int, each: int) -> int:
        """Densities normalised within the prior, `each` at as many observations; how many were done."""
        ...

    def sbc(self, observations: int, draws: int) -> None:
        """Simulation-based calibration by the library's own call."""
        ...

    def simulate(self, rows: int) -> None:
        """Draws of theta from the prior and of x, by the library's own call, in one process."""
        ...


def pairs(theta: np.ndarray, x: np.ndarray, observations: int, each: int) -> tuple[np.ndarray, np.ndarray]:
    """Theta (B, S, D) for the first B observations x (B, L): at a single one all, otherwise each its own."""
    if observations == 1:
        return theta[None, :each], x[:1]
    return theta[:observations, None], x[:observations]


def sizes(shapes: Sequence[Sequence[int]]) -> dict[str, int]:
    """`Side.network` of the shapes of all trainable arrays; biases may be columns."""
    numbers = [int(np.prod(shape)) for shape in shapes]
    matrices = sum(n for n, shape in zip(numbers, shapes, strict=True) if len(shape) > 1 and shape[-1] > 1)
    return {"weights": matrices, "parameters": sum(numbers)}


class Stamps:
    """Moments at which steps and epochs ended.

    >>> stamps = Stamps(steps=2)
    >>> for moment in (0.0, 1.0, 5.0, 6.0):
    ...     stamps.step(moment)
    >>> stamps.seconds()
    {'step': 1.0, 'epoch': 5.0}

    """

    def __init__(self, steps: int) -> None:
        self.steps, self.moments = steps, np.empty(0)

    def step(self, moment: float) -> None:
        """A step has ended."""
        self.moments = np.append(self.moments, moment)

    def seconds(self) -> dict[str, Any]:
        """For a step, without what lies between epochs, and from one epoch's end to the next's, where there are two."""
        epochs = self.moments[: len(self.moments) // self.steps * self.steps].reshape(-1, self.steps)
        between = np.diff(epochs[:, -1]).mean() if len(epochs) > 1 else None
        return {"step": float(np.diff(epochs).mean()), "epoch": None if between is None else float(between)}
