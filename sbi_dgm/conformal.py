r"""Regions and intervals that hold the truth as often as they say, whatever is wrong with the posterior.

Of n rows (theta_i, x_i) that nothing was fitted to, let m_i be how many of S draws of q(theta | x_i) have a higher ln q
than the truth: m_i / S is the credibility of the smallest highest-density region that holds it. If a further row is
exchangeable with these (drawn from the same prior and simulator), so is its m, and with k = ceil((n + 1) level)

.. math::  P\left(m \le m_{(k)}\right) \ge \frac{k}{n + 1} \ge \mathrm{level},

m_(k) the k-th smallest (Vovk, Gammerman and Shafer 2005; with highest-density regions HPD-split of Izbicki, Shimizu and
Stern 2022, arXiv:2007.12778). So the region {theta: m <= m_(k)}, whose edge is the draw with the (m_(k) + 1)-th highest
ln q, covers with at least that probability, on average over x and over the n rows: not at each x, which no method can
promise. A posterior that is well calibrated makes it small; one that is not makes it large, but true.

For one parameter the same is done with the truth's depth, how many draws lie on that side of it where there are fewer;
the interval goes from the d-th lowest draw to the d-th highest, d the k-th largest depth of the rows. It asks for no
density.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sbi_dgm.errors import OptionError
from sbi_dgm.progress import Bar
from sbi_dgm.univariate import Array

BLOCK_DRAWS = 2**17
SOLVED = 100  # draws with ln q, where each takes the solution of an equation, or a sum


@dataclass(frozen=True, eq=False)
class Regions:
    """The region of each observation; made by `Posterior.regions`.

    Attributes:
        posterior: whose region it is.
        x: at which observations.
        level: the probability with which it holds the truth, at least.
        credibility: of the highest-density region that it is, by the posterior itself; the level, were it calibrated.
        threshold: ln q at its edge: () for one observation, (B,) for a stack.

    """

    posterior: Any
    x: Any
    level: float
    credibility: float
    threshold: Array

    def contains(self, theta: ArrayLike) -> np.ndarray:
        """Whether theta lies inside: shapes as for `Posterior.log_prob`."""
        log_prob = np.asarray(self.posterior.log_prob(theta, self.x))
        several = self.threshold.ndim == 1 and log_prob.ndim == 2
        return log_prob >= (self.threshold[:, None] if several else self.threshold)


def regions(posterior: Any, level: float, x: Any, *, seed: int = 0) -> Regions:
    """Regions that hold the truth with a probability of at least `level`, of a repaired posterior.

    The probability is over rows like those that it was repaired by: theta from their prior, x from their simulator.

    Args:
        level: such as 0.9.
        x: one observation or a stack, as for `sample`.
        seed: of the draws that find the edge; their number is that of the repair, since the guarantee is for that.

    Raises:
        OptionError: not repaired; no density; a level that so few rows cannot promise.

    Example::

        region = posterior.repaired(data).regions(0.9, x)
        region.contains(theta)
        print(region.credibility, region.threshold)

    """
    kept = _kept(posterior)["regions"]
    if kept is None:
        raise OptionError(f"a density of kind {posterior.density!r} has no regions: ask for intervals.")
    above, draws = kept["above"], kept["draws"]
    count = above[_order(level, len(above)) - 1]
    if count >= draws:
        raise OptionError(f"level = {level}: {_beyond(above.count(draws), len(above), draws)}")
    log_prob = np.asarray(posterior.sample(draws, x, seed=seed, log_prob=True).log_prob)
    return Regions(posterior, x, level, count / draws, np.sort(log_prob, axis=-1)[..., draws - 1 - count])


def intervals(posterior: Any, level: float, x: Any, *, seed: int = 0) -> Array:
    """Central intervals, each of which holds its parameter with a probability of at least `level`.

    Args:
        level, x, seed: as for `regions`.

    Returns:
        their ends, (D, 2) for one observation, (B, D, 2) for a stack.

    Raises:
        OptionError: not repaired; a level that so few rows cannot promise.

    Example::

        low, high = posterior.repaired(data).intervals(0.9, x).T

    """
    kept = _kept(posterior)["intervals"]
    draws, edges = kept["draws"], []
    array = np.sort(posterior.sample(draws, x, seed=seed).array, axis=-2)
    for i, (name, depths) in enumerate(kept["depth"].items()):
        depth = depths[_order(level, len(depths)) - 1]
        if depth < 1:
            raise OptionError(f"level = {level}, {name}: {_beyond(depths.count(0), len(depths), draws)}")
        edges.append(array[..., [depth - 1, draws - depth], i])
    return np.stack(edges, axis=-2)


def _kept(posterior: Any) -> dict[str, Any]:
    """What a repair stored."""
    if "repaired" not in posterior.record:
        raise OptionError("regions and intervals are of a repaired posterior: posterior.repaired(data) makes one.")
    return posterior.record["repaired"]


def _order(level: float, rows: int) -> int:
    """k = ceil((n + 1) level), or `OptionError`."""
    if not 0 < level < 1:
        raise OptionError(f"level = {level}: give a probability between 0 and 1.")
    order = math.ceil((rows + 1) * level - 1e-9)
    if order > rows:
        raise OptionError(
            f"level = {level}: the {rows} rows kept for regions can promise {rows / (rows + 1):.4g} at most: ask for "
            f"less, or repair by rows enough to keep {math.ceil(level / (1 - level) - 1e-9)}."
        )
    return order


def _beyond(beyond: int, rows: int, draws: int) -> str:
    return (
        f"in {beyond} of {rows} rows the truth lies beyond all {draws} draws, so that nothing less than the whole "
        "support has this level: ask for less, or repair with more draws."
    )


def scores(
    posterior: Any, theta: Array, x: Mapping[str, np.ndarray], draws: int, rng: np.random.Generator, bar: Bar
) -> dict[str, Any]:
    """What regions and intervals rest on, of rows (n, D) that nothing was fitted to, as JSON."""
    dense = {"none": 0, "exact": draws}.get(posterior.density, min(draws, SOLVED))
    above, depth = [], []
    for rows, seen in blocks(theta, x, draws):
        truth, seeds = theta[rows], [int(seed) for seed in rng.integers(2**62, size=2)]
        samples = posterior.sample(dense, seen, seed=seeds[0], log_prob=True) if dense else None
        if samples is not None:
            above.append((samples.log_prob > posterior.log_prob(truth, seen)[:, None]).sum(1))
        array = samples.array if samples is not None and dense == draws else None
        array = posterior.sample(draws, seen, seed=seeds[1]).array if array is None else array
        below, over = (array < truth[:, None]).sum(1), (array > truth[:, None]).sum(1)
        depth.append(np.minimum(below, over))
        bar.update(len(truth))
    deepest = -np.sort(-np.concatenate(depth), axis=0)
    found = {"draws": dense, "above": np.sort(np.concatenate(above)).tolist()} if dense else None
    named = {name: column.tolist() for name, column in zip(posterior.names, deepest.T, strict=True)}
    return {"regions": found, "intervals": {"draws": draws, "depth": named}}


def blocks(theta: Array, x: Mapping[str, np.ndarray], draws: int) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
    """Rows of which so many draws fit in memory, with their observables."""
    step = max(1, BLOCK_DRAWS // draws)
    for first in range(0, len(theta), step):
        rows = slice(first, first + step)
        yield rows, {name: values[rows] for name, values in x.items()}
