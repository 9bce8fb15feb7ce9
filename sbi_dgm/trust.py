r"""Trust at an observation: whether it is like the simulations that a posterior was trained on.

A posterior says something of any x, also of one that its simulator cannot make, where nothing vouches for it. A `Gate`
compares an observation with training simulations twice: in the numbers of x, and in the context that the embedding
makes of them, for an embedding is blind to what it discards, and x as a cloud of numbers shows little of what is not
linear in them. Its score is s = max_k -ln p_k over the statistics of `sbi_dgm.outliers`. With the scores of n
validation simulations, which took no part in any of this,

.. math::  p = \frac{1 + \#\{i : s_i \ge s\}}{n + 1} .

For an observation that is exchangeable with those simulations P(p <= a) <= a, whatever the statistics are worth (Vovk,
Gammerman and Shafer 2005, Algorithmic Learning in a Random World; conformal p-values). The population is that of
the simulations in the file, without their weights.

Where an observable may be absent, each has a cloud of its own, and what is absent takes no part: its statistics are 0,
and the context is judged where nothing is absent. Of an observation with less than the validation simulations have, s
is a greatest of fewer statistics, so that its p is at most too large.
"""

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from itertools import chain
from typing import Any

import numpy as np
import scipy

from sbi_dgm.data.vectors import CURVE, View
from sbi_dgm.errors import ObservationError, TrustError, TrustWarning
from sbi_dgm.outliers import Cloud
from sbi_dgm.parameters import Observable
from sbi_dgm.univariate import Array

LEVEL = 0.01  # the share of observations like the simulations that are flagged
SURE = 0.001  # that more of a stack are flagged than here by chance speaks for all of it
BLOCK = 2**22  # numbers at once
FEWEST = 50  # rows in which nothing is absent, for a cloud of their contexts
REMEDY = "check it, or widen the simulations, before you rely on this posterior (strict refuses; see docs/trust.md)"
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Trust:
    """Whether observations are like the simulations.

    Attributes:
        p_value: of one observation a number, of a stack (B,): the share of simulations that are at least as strange.
        level: flagged is what has a p-value of that or less: so many of the observations that are like the simulations.
        simulations: n, the validation simulations that were compared with.
        reason: a sentence where flagged, empty elsewhere: one, or a tuple of B.

    >>> trust = Trust(np.array([0.3, 0.002]), 0.01, 999, ("", "mu[3] is 6.1 sd from what the other numbers say"))
    >>> trust.flagged, trust.observation(1).flagged
    (array([False,  True]), True)

    """

    p_value: Array | float
    level: float
    simulations: int
    reason: str | tuple[str, ...]

    @property
    def flagged(self) -> np.ndarray | bool:
        """Whether an observation is unlike the simulations; (B,) for a stack."""
        return self.p_value <= self.level

    def __str__(self) -> str:
        if isinstance(self.p_value, np.ndarray):
            return f"{np.sum(self.flagged)} of {len(self.p_value)} observations are flagged at p <= {self.level:.2g}"
        verdict = f"flagged: {self.reason}" if self.flagged else "not flagged"
        return f"p = {self.p_value:.2g} among {self.simulations} simulations, {verdict}"

    def observation(self, index: int) -> "Trust":
        """That of one of a stack."""
        if not isinstance(self.p_value, np.ndarray):
            raise ObservationError("this is the trust at one observation already.")
        return Trust(float(self.p_value[index]), self.level, self.simulations, self.reason[index])

    @property
    def concern(self) -> str:
        """A sentence with its remedy where there is something to be warned of, else empty.

        Of a stack of two or more, where so many are flagged that by chance they are less than one time in a thousand:
        their number then follows a beta-binomial distribution, since all are compared with the same simulations.
        """
        stack = np.atleast_1d(self.p_value)
        flagged = np.flatnonzero(stack <= self.level)
        if len(flagged) == 0 or (len(stack) > 1 and self._by_chance(len(flagged), len(stack)) > SURE):
            return ""
        first = flagged[np.argmin(stack[flagged])]
        why = self.reason if isinstance(self.reason, str) else self.reason[first]
        if len(stack) == 1:
            return f"the observation is unlike the simulations (p = {stack[0]:.2g}): {why}; {REMEDY}."
        return (
            f"{len(flagged)} of {len(stack)} observations are unlike the simulations, where by chance "
            f"{self.level * len(stack):.3g} are; of observation {first} {why}; {REMEDY}."
        )

    def _by_chance(self, flagged: int, observations: int) -> float:
        """How probable it is that at least so many are flagged of observations that are like the simulations."""
        below = round(self.level * (self.simulations + 1))
        return float(scipy.stats.betabinom.sf(flagged - 1, observations, below, self.simulations + 1 - below))


def told(trust: Trust | None, strict: bool, stacklevel: int = 3) -> None:
    """Warn of what a trust is concerned about, or raise where `strict`; by default as from the caller's caller."""
    if trust is None and strict:
        raise TrustError("this posterior has no simulations to compare x with: train it again, or leave out strict.")
    concern = "" if trust is None else trust.concern
    if concern and strict:
        raise TrustError(concern)
    if concern:
        warnings.warn(concern, TrustWarning, stacklevel=stacklevel)


class Gate:
    """What judges an observation: fitted at the end of training, kept in the posterior's file.

    Args:
        views: of the observables.
        clouds: "x", or where observables may be absent "x0", "x1", ..., one for each; and "context" where the embedding
            makes something else of x.
        scores: (n,), ascending, of validation simulations.

    """

    def __init__(self, views: Sequence[View], clouds: Mapping[str, Cloud], scores: Array) -> None:
        self.views, self.clouds, self.scores = list(views), dict(clouds), scores
        self.groups = _groups(self.views)
        self._flagged = max(1, math.floor(LEVEL * (len(scores) + 1)))

    @property
    def level(self) -> float:
        """The share of observations like the simulations that are flagged: 0.01, or 1 / (n + 1) where that is more."""
        return self._flagged / (len(self.scores) + 1)

    @classmethod
    def fit(
        cls,
        views: Sequence[View],
        training: tuple[Array, Array | None],
        validation: Iterable[tuple[Arrays, Array]],
    ) -> "Gate":
        """From simulations.

        Args:
            views: of the observables.
            training: vectors of x (n, L) in random order, NaN where an observable is absent, and their contexts (n, C),
                or None where these say no more.
            validation: observables by name and contexts, block by block.

        """
        x, context = training
        clouds, first = {}, 0
        for name, part in _groups(views).items():
            v = x[:, first : (first := first + sum(view.size for view in part))]
            clouds[name] = Cloud.fit(v[~np.isnan(v[:, 0])])
        complete = ~np.isnan(x).any(1)
        if context is not None and (complete.all() or complete.sum() >= FEWEST):
            clouds["context"] = Cloud.fit(context[complete], entries=False)
        gate = cls(views, clouds, np.empty(0))
        scores = [reduce(np.maximum, gate.surprises(*block)) for block in validation]
        return cls(views, clouds, np.sort(np.concatenate(scores)))

    def vector(self, x: Arrays) -> Array:
        """All numbers of x: observables by name (B, ...) -> (B, L)."""
        return _vector(self.views, x)

    def surprises(self, x: Arrays, context: Array) -> list[Array]:
        """-ln p of all statistics, each (B,)."""
        found, complete = [], np.ones(len(context), bool)
        for name, views in self.groups.items():
            v = _vector(views, x)
            there = ~np.isnan(v[:, 0])
            found += [np.where(there, s, 0.0) for s in self.clouds[name].surprise(v)]
            complete &= there
        if "context" in self.clouds:
            found += [np.where(complete, s, 0.0) for s in self.clouds["context"].surprise(context)]
        return found

    def __call__(self, x: Arrays, context: Array) -> Trust:
        """Of a stack: observables by name (B, ...), and what the embedding made of them (B, C)."""
        step = max(1, BLOCK // sum(view.size for view in self.views))
        blocks = [slice(first, first + step) for first in range(0, len(context), step)]
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite counts as beyond all
            p_value, reasons = zip(*(self._judged(*_part(x, context, rows)) for rows in blocks), strict=True)
        return Trust(np.concatenate(p_value), self.level, len(self.scores), tuple(chain.from_iterable(reasons)))

    def _judged(self, x: Arrays, context: Array) -> tuple[Array, list[str]]:
        found = self.surprises(x, context)
        score = reduce(np.maximum, found)
        beyond = len(self.scores) - np.searchsorted(self.scores, score)
        reasons = [""] * len(score)
        for i in np.flatnonzero(beyond < self._flagged):
            which = int(np.argmax([one[i] for one in found]))
            reasons[i] = self._reason(*_part(x, context, slice(i, i + 1)), which)
        return (1 + beyond) / (len(self.scores) + 1), reasons

    def _reason(self, x: Arrays, context: Array, which: int) -> str:
        for name, views in self.groups.items():
            v, cloud = _vector(views, x), self.clouds[name]
            count = len(cloud.surprise(v))
            if which < count:
                whole = "x" if name == "x" else views[0].name
                return cloud.sentence(v[0], which, partial(_label, views), f"{whole} as a whole")
            which -= count
        return self.clouds["context"].sentence(context[0], which, "context[{}]".format, "what the embedding makes of x")

    def describe(self) -> dict[str, Any]:
        """What there is to say about it, as JSON."""
        compared = ["x"] if "x" in self.groups else [view.name for view in self.views]
        compared += ["context"] if "context" in self.clouds else []
        return {"level": self.level, "simulations": len(self.scores), "compares": compared}

    def arrays(self) -> dict[str, np.ndarray]:
        """All numbers, by name."""
        found = {"scores": self.scores}
        for name, cloud in self.clouds.items():
            found |= {f"{name}.{key}": values for key, values in cloud.arrays.items()}
        for i, view in enumerate(self.views):
            found |= {f"views.{i}.{key}": getattr(view, key) for key in CURVE}
        return found

    @classmethod
    def restore(cls, observables: Mapping[str, Observable], arrays: Arrays) -> "Gate":
        """The inverse of `arrays`."""
        views = [
            View(name, observable, *(arrays[f"views.{i}.{key}"] for key in CURVE))
            for i, (name, observable) in enumerate(observables.items())
        ]
        parts = {name: _below(arrays, f"{name}.") for name in (*_groups(views), "context")}
        return cls(views, {name: Cloud(part) for name, part in parts.items() if part}, arrays["scores"])


def _groups(views: Sequence[View]) -> dict[str, list[View]]:
    """The views that share a cloud, by its name."""
    if any(view.observable.optional for view in views):
        return {f"x{i}": [view] for i, view in enumerate(views)}
    return {"x": list(views)}


def _vector(views: Sequence[View], x: Arrays) -> Array:
    """All numbers of some observables: by name (B, ...) -> (B, L)."""
    parts = [view(x[view.name]) for view in views]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _label(views: Sequence[View], entry: int) -> str:
    starts = np.cumsum([0, *(view.size for view in views)])
    which = int(np.searchsorted(starts, entry, "right")) - 1
    return views[which].label(entry - int(starts[which]))


def _part(x: Arrays, context: Array, rows: slice) -> tuple[Arrays, Array]:
    return {name: values[rows] for name, values in x.items()}, context[rows]


def _below(arrays: Arrays, prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}
