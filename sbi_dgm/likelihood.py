r"""The likelihood: the posterior's machinery with the roles exchanged, ln q(x | theta) and draws of x.

.. math::  \ln q(x | \theta) = \ln q(z | c(\theta)) + \ln |\det \partial z / \partial x|

Whole numbers were dequantised (`sbi_dgm.data.exchanged`): their probability is the mean of the density over the unit
cube above them, by `OFFSETS` fixed points of it; of more than `FEW` numbers it is the density at the cube's centre,
which a mean over so few points of so many dimensions is no better than.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from numpy.typing import ArrayLike
from torch import nn

from sbi_dgm.data.exchanged import GIVEN, Roles
from sbi_dgm.data.observed import Observation, observed_arrays, parameters_of, stacked
from sbi_dgm.errors import FileError, ObservationError
from sbi_dgm.parameters import Observable
from sbi_dgm.posterior import Posterior, opened
from sbi_dgm.priors import Prior
from sbi_dgm.seeds import fresh, numpy_generator
from sbi_dgm.univariate import Array

OFFSETS, FEW = 16, 32  # points of the unit cube for the probability of up to so many whole numbers
AT_ONCE = 2**24  # numbers of the matrices L(c) of a located flow in memory


class Likelihood:
    """A learned likelihood q(x | theta), a surrogate of its simulator; made by `fit(data, learn="likelihood")`.

    Attributes:
        inner: the same as a density of the vector v of all numbers of x, given theta.
        roles: what x and theta are.

    Example::

        likelihood = sbi_dgm.fit(data, learn="likelihood", out="runs/likelihood")
        likelihood.log_prob(x, theta)
        likelihood.sample(theta, 1000)

    """

    def __init__(self, inner: Posterior, prior: Prior | None = None) -> None:
        self.inner, self.roles = inner, Roles.restore(inner.record["roles"], prior)

    def __repr__(self) -> str:
        family = self.inner.model.estimator["name"]
        return f"Likelihood({', '.join(self.roles.observables)} | {', '.join(self.names)}; {family})"

    @property
    def names(self) -> list[str]:
        """Names of the parameters."""
        return list(self.roles.names)

    @property
    def prior(self) -> Prior | None:
        """Of the parameters, or None."""
        return self.roles.prior

    @property
    def observables(self) -> Mapping[str, Observable]:
        """What is drawn, by name."""
        return self.roles.observables

    @property
    def density(self) -> str:
        """What `log_prob` is, as for a posterior."""
        return self.inner.density

    @property
    def record(self) -> dict[str, Any]:
        """How it was trained."""
        return self.inner.record

    def fingerprint(self) -> str:
        """Of what it is made of and its weights, as `Posterior.fingerprint`."""
        return self.inner.fingerprint()

    def using(self, **options: Any) -> "Likelihood":
        """The same weights with other options of use, as `Posterior.using`."""
        return Likelihood(self.inner.using(**options), self.prior)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write it to one `.safetensors` file, atomically; `Likelihood.load` reads it."""
        self.inner.save(path, overwrite=overwrite)

    @classmethod
    def load(
        cls, path: str | Path, *, prior: Prior | None = None, embedding: nn.Module | None = None, device: str = "cpu"
    ) -> "Likelihood":
        """Read a likelihood.

        Args:
            prior: needed only where the prior is a function.
            embedding: needed only where theta's embedding is a module of yours.
            device: "cpu", "cuda", ..., or "auto".

        Raises:
            FileError: missing, foreign, newer, corrupted, or a posterior.
            ExternalError: an object is needed that the file cannot hold.

        """
        inner = opened(path, embedding=embedding, device=device)
        if "roles" not in inner.record:
            raise FileError(f"{path} holds a posterior: load() reads it.")
        return cls(inner, prior)

    def log_prob(self, x: Observation, theta: ArrayLike) -> Array:
        """ln q(x | theta), of whole numbers their log-probability; -inf where x cannot be.

        Args:
            x: one observation or a stack of B, an array or a dict by name.
            theta: for one observation (D,) or (S, D); for B of them (B, D), one each, or (B, S, D).

        Returns:
            the shape of theta without its last axis.

        """
        theta = parameters_of(theta, self.names)
        arrays, single = observed_arrays(x, self.observables, self.roles.dtypes)
        v = self.roles.vector(arrays)
        given = stacked(theta, len(v), single, len(self.names))
        seen = self.roles.given(given.reshape(-1, len(self.names)))
        return self._averaged(np.repeat(v, given.shape[1], axis=0), seen).reshape(theta.shape[:-1])

    def _averaged(self, v: Array, seen: Array) -> Array:
        """ln of the mean density over the unit cube above whole numbers: v (N, L), theta as seen (N, D) -> (N,)."""
        offsets = self._offsets()
        values = [self.inner.log_prob(v[part, None] + offsets, {GIVEN: seen[part]}) for part in self._parts(len(v))]
        return np.logaddexp.reduce(np.concatenate([np.empty((0, len(offsets))), *values]), axis=1) - np.log(
            len(offsets)
        )

    def _parts(self, rows: int) -> Iterator[slice]:
        """So many rows of theta at once that the matrices L(c) of a located flow fit into memory."""
        step = max(1, AT_ONCE // len(self.roles.entries) ** 2)
        return (slice(first, first + step) for first in range(0, rows, step))

    def _offsets(self) -> Array:
        """Points of the unit cube (K, L), zero where numbers are not whole; its centre where none or very many are."""
        whole = self.roles.whole
        if not 0 < whole.sum() <= FEW:
            return 0.5 * whole[None]
        offsets = np.zeros((OFFSETS, len(whole)))
        offsets[:, whole] = scipy.stats.qmc.Sobol(int(whole.sum()), rng=0).random(OFFSETS)
        return offsets

    def log_likelihood(self, theta: ArrayLike, x: Observation) -> Array:
        """`log_prob` in the order of a simulator's `log_likelihood`."""
        return self.log_prob(x, theta)

    def sample(self, theta: ArrayLike, n: int, *, seed: int | None = None) -> np.ndarray | dict[str, np.ndarray]:
        """Draws of x: the simulator's surrogate.

        Args:
            theta: (D,), or a stack (B, D).
            n: draws for each theta.
            seed: None draws a fresh one.

        Returns:
            (n, ...) for one theta, (B, n, ...) for a stack; a dict by name where there are several observables.

        """
        theta = parameters_of(theta, self.names)
        if theta.ndim not in (1, 2) or not theta.size:
            raise ObservationError(
                f"theta has shape {theta.shape}; expected (D,) or (B, D) with D = {len(self.names)}."
            )
        given, rng = self.roles.given(np.atleast_2d(theta)), numpy_generator(fresh(seed))
        seeds = ((part, int(rng.integers(2**63))) for part in self._parts(len(given)))
        v = np.concatenate([self.inner.sample(n, {GIVEN: given[part]}, seed=own).array for part, own in seeds])
        drawn = self.roles.observed(v if theta.ndim > 1 else v[0])
        return drawn if len(drawn) > 1 else next(iter(drawn.values()))
