r"""MOPED: the quasi-maximum-likelihood estimate of theta as a summary of x, as many numbers as parameters.

.. math::  \hat\theta - \theta_* = F^{-1} J^T C^{-1} (x - \mu_*)

of the numbers of x as they are, or of their logarithms, with all of it from `sbi_dgm.score`: no information is lost to
first order about theta_*, and far from it the network behind corrects what is biased. It comes to the network in
units of its spread over training rows. Nothing of it is trained.
"""

from collections.abc import Collection, Mapping

import numpy as np
import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn

from sbi_dgm.data.observed import Observation, observed_arrays
from sbi_dgm.embeddings.base import Observables
from sbi_dgm.embeddings.stored import Scaled, Stored, digest
from sbi_dgm.embeddings.vectors import side_by_side
from sbi_dgm.errors import ObservationError
from sbi_dgm.kinds import texts, whole
from sbi_dgm.parameters import Observable, total_size
from sbi_dgm.score import Point, Score, numbers, score
from sbi_dgm.simulator import Simulator, find
from sbi_dgm.univariate import Array


class Moped(Stored):
    """A score compression, made by `sbi_dgm.moped`; called with observations, it gives their summaries.

    Attributes:
        features: D, the simulator's parameters.
        log: names of the observables whose logarithms are compressed.

    """

    features: int = Field(default=1, ge=1)
    log: tuple[str, ...] = ()
    _score: Score | None = PrivateAttr(default=None)
    _observables: dict[str, Observable] = PrivateAttr(default_factory=dict)

    def blank(self, observables: Observables) -> nn.Module:
        return _Moped(observables, self.features, self.log)

    @property
    def fisher(self) -> Array:
        """F (D, D) at the fiducial point: F^{-1} is the least covariance of an unbiased estimate there."""
        return self._made().fisher.copy()

    @property
    def fiducial(self) -> Array:
        """theta_* (D,)."""
        return self._made().fiducial.copy()

    def __call__(self, x: Observation) -> Array:
        """Summaries in the units of theta: one observation -> (D,), a stack of B -> (B, D).

        Args:
            x: an array, or a dict by observable's name.

        """
        made = self._made()
        arrays, single = observed_arrays(x, self._observables, dict.fromkeys(self._observables, "<f8"))
        found = made(numbers(arrays, self.log))
        return found[0] if single else found

    def _made(self) -> Score:
        self.require_made()
        return self._score  # type: ignore[return-value]


def moped(
    simulator: str | Simulator,
    fiducial: Point | None = None,
    steps: Point | None = None,
    *,
    simulations: int = 2000,
    seed: int = 0,
    log: Collection[str] = (),
) -> Moped:
    """Make a score compression: the embedding for `fit` that turns x into one number for each parameter.

    Args:
        simulator: the simulator, or its name as for `simulate`, without sets among its observables.
        fiducial: theta_* (D,), or numbers by parameter's name; None is the simulator's own `fiducial`.
        steps: h of the derivatives, alike; None is a tenth of the prior's sd about theta_*.
        simulations: at theta_*, for mean and covariance; as many again are shared by the derivatives.
        seed: of the simulations.
        log: names of observables whose logarithms are compressed, such as spectra.

    Raises:
        OptionError: no fiducial point, or too few simulations for the numbers of x.
        PriorError: the fiducial point or a step is outside of the prior.
        DataError: simulations that fail, a singular covariance, a parameter that the mean of x does not depend on,
            derivatives of which more than a quarter is noise.

    Example::

        compressor = sbi_dgm.moped(simulator, fiducial={"omega_m": 0.3, "w": -1.0})
        print(np.linalg.inv(compressor.fisher))
        posterior = sbi_dgm.fit(data, embedding=compressor)

    """
    simulator, log, simulations = find(simulator), texts("log", log), whole("simulations", simulations, 1)
    found = score(simulator, fiducial, steps, simulations=simulations, seed=seed, log=log)
    state = {"mean": torch.from_numpy(found.mean), "maps": torch.from_numpy(np.ascontiguousarray(found.maps))}
    made = Moped(features=len(found.fiducial), log=log, digest=digest(state))
    made._score, made._observables = found, dict(simulator.observables)
    return made.keep(state, simulator.observables)


class _Moped(nn.Module):
    """hat theta - theta_* of observables as they are, in float64, then scaled: by name -> (B, D)."""

    mean: Tensor
    maps: Tensor

    def __init__(self, observables: Observables, features: int, log: Collection[str]) -> None:
        super().__init__()
        size = total_size(observables)
        self.raw, self.log = frozenset(observables), frozenset(log)
        self.register_buffer("mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("maps", torch.zeros(features, size, dtype=torch.float64))
        self.scale = Scaled(features)

    def forward(self, x: Mapping[str, Tensor]) -> Tensor:
        numbers = side_by_side({name: self._number(name, values.double()) for name, values in x.items()})
        return self.scale((numbers - self.mean) @ self.maps.T)

    def _number(self, name: str, values: Tensor) -> Tensor:
        if name not in self.log:
            return values
        if not self.training and not bool((values > 0).all()):
            raise ObservationError(
                f"observable {name!r} has the entry {float(values.min()):g}, and its logarithm is compressed: repair "
                "it, or make the compression without that logarithm."
            )
        return values.log()
