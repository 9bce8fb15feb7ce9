r"""A distribution of one number as a bijection between its support and the real line.

With F the distribution's CDF and Phi the standard normal's,

.. math::  z = \Phi^{-1}(F(v)), \qquad v = F^{-1}(\Phi(z)),

so v ~ F exactly where z ~ N(0, 1). The upper half goes through the survival function 1 - F, which
keeps its digits where F rounds to one. A closed edge of the support maps to `|z| = 8.2`, where Phi leaves
float64's resolution.
"""

from abc import ABC, abstractmethod
from math import log, pi
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from sbi_dgm.errors import PriorError

Array = NDArray[np.float64]

EDGE = 8.2  # |z| of a closed edge
FAR = 1e-200  # the smallest tail asked of a `ppf` (|z| = 30): an open edge is never reached
LOG_ROOT_2PI = 0.5 * log(2 * pi)


class Distribution(ABC):
    """A distribution of one number v with support [low, high]; arrays of any shape in and out."""

    low: float
    high: float

    @abstractmethod
    def log_prob(self, v: Array) -> Array:
        """ln of the density at v inside the support."""

    @abstractmethod
    def cdf(self, v: Array) -> Array:
        """F(v)."""

    @abstractmethod
    def sf(self, v: Array) -> Array:
        """1 - F(v), with its own digits."""

    @abstractmethod
    def ppf(self, p: Array) -> Array:
        """The inverse of `cdf`."""

    @abstractmethod
    def isf(self, p: Array) -> Array:
        """The inverse of `sf`."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """This distribution as JSON; `restore` is the inverse."""

    def to_normal(self, v: Array) -> Array:
        """z of v in the support, within [-8.2, 8.2]."""
        below, above = self.cdf(v), self.sf(v)
        return np.clip(np.where(below < above, scipy.special.ndtri(below), -scipy.special.ndtri(above)), -EDGE, EDGE)

    def from_normal(self, z: Array) -> Array:
        """v of z: the inverse of `to_normal`, never outside the support."""
        tail = np.maximum(scipy.special.ndtr(-np.abs(z)), FAR)
        return np.clip(np.where(z < 0, self.ppf(tail), self.isf(tail)), self.low, self.high)


def require(condition: bool, sentence: str) -> None:
    """Raise `PriorError` with the sentence unless the condition holds."""
    if not condition:
        raise PriorError(sentence)


def standard_normal_log_prob(z: Array) -> Array:
    """ln N(z; 0, I), summed over the last axis."""
    return -0.5 * (z**2).sum(-1) - z.shape[-1] * LOG_ROOT_2PI
