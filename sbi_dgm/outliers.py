r"""How far vectors lie from a sample of them, by statistics that are fast and say which entry is unusual.

For a sample with mean mu and covariance C (of entries in units of their sd, plus `RIDGE`), and P = C^{-1},

.. math::
    d^2 = (v - \mu)^T P (v - \mu), \qquad
    r_i = \frac{(P (v - \mu))_i}{\sqrt{P_{ii}}} .

d is Mahalanobis' distance (1936). r_i is by how many of its sd entry i differs from what all others say of it, exactly
so for normals (Rue and Held 2005, Gaussian Markov Random Fields, theorem 2.3): among correlated entries one that is off
shows there, though it is nothing special by itself. Vectors of more than `LARGEST` numbers, or of more than a fifth of
the rows, are parted into their leading principal components, which give d, and what these leave, whose entries in units
of their sd are r and whose mean square is a third statistic, the remainder. Of entries that were the same in all rows
those that differ are counted.

Each statistic t is turned into -ln p(t), with p the share of rows beyond it: by quantiles of rows that took no part in
mu and C, and beyond the last by an exponential. That makes statistics comparable; it is no probability to rely on.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from sbi_dgm.seeds import numpy_generator
from sbi_dgm.univariate import Array

RIDGE = 1e-6  # a variance: what is finer than a thousandth of an entry's sd is not judged
LARGEST = 128  # numbers of which the whole covariance is inverted; principal components at most
ROWS_EACH = 5  # rows for each number or component, at least
WEIGHTS = 2**20  # numbers in all components together, at most
MOMENTS = 0.8  # of the rows make mean and covariance, the others the quantiles
KNOTS, TAIL = 64, 10  # quantiles; rows beyond the last
SAME = 1e-6  # relative: numbers nearer to each other count as the same
SKETCH, PASSES = 10, 2  # of the randomised search for components


class Tail(NamedTuple):
    """-ln of the share of rows beyond a statistic t.

    Attributes:
        knots: (Q,), ascending quantiles of t.
        levels: (Q,), -ln of the share beyond each.
        excess: the mean of t beyond the last.

    >>> tail = Tail.of(np.random.default_rng(0).exponential(size=100_000))
    >>> tail(np.array([0.7, 3.0, 7.0])).round()
    array([1., 3., 7.])

    """

    knots: Array
    levels: Array
    excess: float

    @classmethod
    def of(cls, t: Array) -> "Tail":
        """From the statistics (n,) of rows."""
        levels = np.linspace(0.0, np.log(max(len(t) / TAIL, 1.0)), KNOTS)
        knots = np.quantile(t, -np.expm1(-levels))
        beyond = float((t[t >= knots[-1]] - knots[-1]).mean())
        return cls(knots, levels, max(beyond, SAME * abs(float(knots[-1])), SAME))

    def __call__(self, t: Array) -> Array:
        return np.interp(t, self.knots, self.levels) + np.maximum(t - self.knots[-1], 0.0) / self.excess


class Whole:
    """Distance and residuals by the whole inverse of the covariance.

    Args:
        maps: (L, L), with d = |y maps| for entries y in units of their sd; where entries are judged too, (L, 2 L): the
            other half gives r.

    """

    names = ("distance", "entry")

    def __init__(self, maps: Array) -> None:
        self.maps, self.rank = maps, len(maps)

    @classmethod
    def fit(cls, y: Array, entries: bool) -> dict[str, np.ndarray]:
        """The argument, from rows (n, L)."""
        precision = np.linalg.inv(y.T @ y / len(y) + RIDGE * np.eye(y.shape[1]))
        distance = np.linalg.cholesky((precision + precision.T) / 2)
        return {"maps": np.hstack([distance, precision / np.sqrt(np.diag(precision))] if entries else [distance])}

    def __call__(self, y: Array) -> tuple[list[Array], Array]:
        """Statistics (B,), each a square, and r (B, L), with no columns where entries are not judged."""
        mapped = y @ self.maps
        near, r = mapped[:, : self.rank], mapped[:, self.rank :]
        return [np.einsum("ij,ij->i", near, near)] + ([np.abs(r).max(1) ** 2] if r.shape[1] else []), r


class Leading:
    """Distance by principal components, residuals by what they leave.

    Args:
        loadings: (L, k), orthonormal columns.
        width: (k,), the sd of each component.
        left: (L,), the sd of what they leave of each entry.

    """

    names = ("distance", "entry", "remainder")

    def __init__(self, loadings: Array, width: Array, left: Array) -> None:
        self.loadings, self.width, self.left, self.rank = loadings, width, left, len(width)

    @classmethod
    def fit(cls, y: Array, rest: Array) -> dict[str, Array]:
        """The arguments, from rows (n, L), and from others (m, L) for `left`, since the n fit themselves too well."""
        count = min(LARGEST, len(y) // ROWS_EACH, WEIGHTS // y.shape[1])
        loadings, width = components(y, count)
        left = rest - rest @ loadings @ loadings.T
        return {"loadings": loadings, "width": width, "left": np.sqrt((left**2).mean(0) + RIDGE)}

    def __call__(self, y: Array) -> tuple[list[Array], Array]:
        """Statistics (B,), and r (B, L)."""
        found = y @ self.loadings
        r = (y - found @ self.loadings.T) / self.left
        return [((found / self.width) ** 2).sum(1), np.abs(r).max(1) ** 2, (r**2).mean(1)], r


def components(y: Array, count: int) -> tuple[Array, Array]:
    """The leading principal components of rows (n, L), and their sd: (L, count), (count,).

    By a randomised search (Halko, Martinsson and Tropp 2011, arXiv:0909.4061, algorithm 4.4), with a fixed seed.
    """
    sketch = min(count + SKETCH, *y.shape)
    basis = numpy_generator(0).standard_normal((y.shape[1], sketch))
    for _ in range(PASSES + 1):
        basis = np.linalg.qr(y.T @ np.linalg.qr(y @ basis)[0])[0]
    _, width, turned = np.linalg.svd(y @ basis / np.sqrt(len(y)), full_matrices=False)
    return basis @ turned[:count].T, np.sqrt(width[:count] ** 2 + RIDGE)


class Cloud:
    """A sample of vectors (n, L), as a measure of how unusual others are.

    Args:
        arrays: what `fit` found, by name.

    """

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays = a = dict(arrays)
        self.free, self.fixed = np.flatnonzero(a["sd"] > 0), np.flatnonzero(a["sd"] == 0)
        self._chosen = self.free if len(self.fixed) else slice(None)
        self._mean, self._scale = a["centre"][self._chosen], 1 / a["sd"][self._chosen]
        self._shape = Whole(a["maps"]) if "maps" in a else Leading(a["loadings"], a["width"], a["left"])
        tails = zip(a.get("knots", ()), a.get("levels", ()), a.get("excess", ()), strict=True)
        self._tails = [Tail(knots, levels, float(excess)) for knots, levels, excess in tails]

    @classmethod
    def fit(cls, v: Array, *, entries: bool = True) -> "Cloud":
        """From a sample (n, L) in random order; `entries`: judge single ones too, not their distance alone."""
        first, rest = np.split(v, [max(1, round(MOMENTS * len(v)))])
        rest = rest if len(rest) else first
        varies = first.max(0) > first.min(0)
        arrays = {"centre": np.where(varies, first.mean(0), first[0]), "sd": np.where(varies, first.std(0), 0.0)}
        y, others = (
            ((part - arrays["centre"]) / np.where(varies, arrays["sd"], 1))[:, varies] for part in (first, rest)
        )
        whole = y.shape[1] <= min(LARGEST, len(y) // ROWS_EACH)
        arrays |= Whole.fit(y, entries) if whole else Leading.fit(y, others)
        tails = [Tail.of(t) for t in cls(arrays).statistics(rest)]
        return cls(arrays | {name: np.array([getattr(tail, name) for tail in tails]) for name in Tail._fields})

    def statistics(self, v: Array) -> list[Array]:
        """Statistics (B,) of vectors (B, L), the larger the stranger."""
        found = self._shape(self._free(v))[0]
        return [*found, self._changed(v).sum(1).astype(float)] if len(self.fixed) else found

    def residuals(self, v: Array) -> Array:
        """The r (B, L') of the entries that vary, of vectors (B, L)."""
        return self._shape(self._free(v))[1]

    def _free(self, v: Array) -> Array:
        """The entries that vary, in units of their sd."""
        return (v[:, self._chosen] - self._mean) * self._scale

    def _changed(self, v: Array) -> np.ndarray:
        """Which of the entries that never varied differ from what they were."""
        value = self.arrays["centre"][self.fixed]
        return np.abs(v[:, self.fixed] - value) > SAME * np.abs(value)

    def surprise(self, v: Array) -> list[Array]:
        """-ln p of each statistic: K arrays (B,), for (B, L)."""
        return [tail(t) for tail, t in zip(self._tails, self.statistics(v), strict=True)]

    def sentence(self, v: Array, which: int, names: Callable[[int], str], whole: str) -> str:
        """What the statistic of that number says of one vector (L,), in words.

        Args:
            names: of entries, by their number.
            whole: what all entries together are called.

        """
        squares, r = self._shape(self._free(v[None]))
        if which == len(squares):
            entry = self.fixed[np.argmax(self._changed(v[None])[0])]
            return f"{names(entry)} is {v[entry]:g}, and was {self.arrays['centre'][entry]:g} in all simulations"
        size, kind = float(np.sqrt(squares[which][0])), self._shape.names[which]
        strangest = names(self.free[np.argmax(np.abs(r[0]))]) if r.size else ""
        if kind == "entry":
            return f"{strangest} is {size:.1f} sd from what the other numbers say"
        typical = float(np.sqrt(np.interp(np.log(2), self._tails[which].levels, self._tails[which].knots)))
        above = f", most of all {strangest}" if strangest else ""
        if kind == "distance":
            return f"{whole} is {size:.1f} sd from the mean of the simulations, where {typical:.1f} is typical{above}"
        parts = f"{self._shape.rank} principal components"
        return f"what {parts} leave of {whole} is of size {size:.2g}, where {typical:.2g} is typical{above}"
