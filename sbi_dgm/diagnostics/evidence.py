"""What a posterior is judged by: one set of draws at held-out observations, from which everything else follows."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from tqdm import tqdm

from sbi_dgm.univariate import Array

BLOCK_DRAWS = 2**17  # of a step of the progress bar
FEW = 20  # draws with ln q, where each solves an equation


class Judged(Protocol):
    """All that a diagnostic needs of a posterior."""

    @property
    def names(self) -> Sequence[str]:
        """Of the parameters."""
        ...

    def sample(self, n: int, x: Any, *, seed: int | None = None, log_prob: bool = False) -> Any:
        """Draws with `array` (B, n, D) and `log_prob` (B, n)."""
        ...

    def log_prob(self, theta: Any, x: Any) -> Array:
        """ln q of theta (B, D) at x, (B,)."""
        ...


class Evidence(NamedTuple):
    """R truths, their observations, and draws of q(theta | x) at each.

    Attributes:
        names: of the parameters.
        theta: (R, D), the truths.
        x: observables by name (R, ...).
        draws: (R, S, D).
        log_prob: (R,), ln q of the truths.
        drawn_log_prob: (R, S'), ln q of draws: of all, or, where a density solves an equation, of `FEW` others.

    """

    names: Sequence[str]
    theta: Array
    x: Mapping[str, np.ndarray]
    draws: Array
    log_prob: Array
    drawn_log_prob: Array

    def columns(self, values: Array) -> dict[str, Array]:
        """Values (..., D) of parameters by name."""
        return dict(zip(self.names, np.moveaxis(values, -1, 0), strict=True))


def gathered(
    posterior: Judged,
    theta: Array,
    x: Mapping[str, np.ndarray],
    draws: int,
    rng: np.random.Generator,
    progress: bool = False,
) -> Evidence:
    """Draw `draws` times at each of the observations (R, ...) of truths (R, D)."""
    densities = draws if getattr(posterior, "density", "exact") == "exact" else FEW
    step, parts = max(1, BLOCK_DRAWS // draws), []
    with tqdm(total=len(theta), unit="row", desc="calibrating", disable=not progress) as bar:
        for first in range(0, len(theta), step):
            rows = slice(first, first + step)
            seen = {name: values[rows] for name, values in x.items()}
            dense = posterior.sample(densities, seen, seed=int(rng.integers(2**62)), log_prob=True)
            samples = dense if densities >= draws else posterior.sample(draws, seen, seed=int(rng.integers(2**62)))
            parts.append((samples.array, posterior.log_prob(theta[rows], seen), dense.log_prob))
            bar.update(len(theta[rows]))
    return Evidence(list(posterior.names), theta, x, *map(np.concatenate, zip(*parts, strict=True)))
