"""The rows and the architecture that every library gets. numpy alone, so that any environment can read it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

TRAIN, VALIDATION, TEST = 9_000, 1_000, 1_000  # rows: a budget of 10,000, and fresh ones to use a posterior on
BATCH, TRANSFORMS, HIDDEN, BLOCKS, BINS = 200, 5, 50, 2, 10
LOW, HIGH, DIMENSION = -3.0, 3.0, 5  # the prior of slcp is uniform
JITTER = 1e-6

Pair = tuple[np.ndarray, np.ndarray]  # theta (N, D), x (N, L)


def slcp(theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The simulator `simulators/slcp.py`, to the bit, for environments without it: (N, 5) -> (N, 8)."""
    s1, s2 = theta[:, 2:3] ** 2, theta[:, 3:4] ** 2
    a = np.sqrt(s1**2 + JITTER)
    b = np.tanh(theta[:, 4:5]) * s1 * s2 / a
    c = np.sqrt(s2**2 + JITTER - b**2)
    first, second = np.moveaxis(rng.standard_normal((len(theta), 4, 2)), -1, 0)
    x = np.stack([theta[:, :1] + a * first, theta[:, 1:2] + b * first + c * second], axis=-1)
    return x.reshape(len(theta), 8)


@dataclass(frozen=True)
class Problem:
    """Rows (theta, x) to train on, to validate, and to use a posterior on."""

    train: Pair
    validation: Pair
    test: Pair

    @classmethod
    def drawn(cls, seed: int = 0) -> "Problem":
        """Draws of slcp."""
        rng = np.random.default_rng(seed)
        theta = rng.uniform(LOW, HIGH, (TRAIN + VALIDATION + TEST, DIMENSION))
        x, ends = slcp(theta, rng), [TRAIN, TRAIN + VALIDATION]
        return cls(*zip(np.split(theta, ends), np.split(x, ends), strict=True))

    @classmethod
    def load(cls, path: str | Path) -> "Problem":
        """The rows that `save` wrote."""
        with np.load(path) as file:
            return cls(*((file[f"{part}_theta"], file[f"{part}_x"]) for part in cls.__dataclass_fields__))

    def save(self, path: str | Path) -> None:
        """Write all rows to one .npz."""
        parts = vars(self).items()
        np.savez(path, **{f"{part}_{name}": a for part, pair in parts for name, a in zip(("theta", "x"), pair)})  # noqa: B905

    def before_test(self) -> Pair:
        """Training rows, and behind them the validation rows."""
        theta, x = (np.concatenate(both) for both in zip(self.train, self.validation, strict=True))
        return theta, x
