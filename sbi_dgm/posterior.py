r"""The posterior: coordinates, a summary of x and a conditional density, spoken in theta, names and units.

.. math::  \ln q(\theta | x) = \ln q(z | c(x)) + \ln |\det \partial z / \partial \theta|

Draws of z are mapped back by the coordinates, so that none can leave the prior's support.
"""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Generator, Tensor, nn

from sbi_dgm import artifact, conformal, repair
from sbi_dgm.coordinates import snap
from sbi_dgm.data.agreement import require_drawn
from sbi_dgm.data.observed import Observation, observed_arrays, parameters_of, stacked, widest
from sbi_dgm.errors import FileError, ObservationError, PriorError, SbiError
from sbi_dgm.estimators.base import FAMILIES, Conditional
from sbi_dgm.files import refuse_existing, understood
from sbi_dgm.kinds import whole
from sbi_dgm.model import Model, device_named, filled, rebuilt, require_same
from sbi_dgm.options import describe, restore
from sbi_dgm.peak import highest
from sbi_dgm.priors import Prior
from sbi_dgm.progress import Bar
from sbi_dgm.refinement import CAP, Refined
from sbi_dgm.samples import Samples
from sbi_dgm.seeds import fresh, torch_generator
from sbi_dgm.trust import Gate, Trust, told
from sbi_dgm.univariate import Array

GATE = "trust."  # before the names of a gate's numbers in a file
BLOCK = 2**16  # rows of z at once, a fixed number: the same seed gives the same draws on any machine


class Posterior:
    """An amortized posterior q(theta | x), made by `fit` or `load`.

    Attributes:
        model: its specification.
        network: its weights.
        record: how it was trained: seed, split, fingerprint of the data, versions, losses.
        gate: what compares observations with the simulations, or None.

    """

    def __init__(self, model: Model, network: Conditional, record: Mapping[str, Any], gate: Gate | None = None) -> None:
        self.model, self.record, self.gate = model, dict(record), gate
        self.network = network.eval().requires_grad_(False)

    def __repr__(self) -> str:
        return (
            f"Posterior({', '.join(self.names)} | {', '.join(self.model.observables)}; {self.model.estimator['name']})"
        )

    @property
    def names(self) -> list[str]:
        """Names of the parameters."""
        return list(self.model.reference.names)

    @property
    def prior(self) -> Prior | None:
        """The prior, or None where training had none."""
        return self.model.reference if self.model.informed else None

    def require_prior(self, purpose: str) -> Prior:
        """The prior, for an inference that rests on it; `PriorError` where theta was not drawn from it."""
        if self.prior is None:
            raise PriorError(f"{purpose} needs the prior, and training had none: give one to the simulations.")
        if self.record.get("tilted"):
            raise PriorError(
                f"{purpose} needs the prior, and rate=True made the cross section part of it: train without."
            )
        require_drawn(purpose, self.record.get("agreement", {}).get("differs", []))
        return self.prior

    @property
    def density(self) -> str:
        """What `log_prob` is, "exact", "ode" (up to a solver's tolerance) or "bound" (on average not above ln q).

        `log_prob_and_error` has the errors of the latter two.
        """
        return self.network.estimator.density

    def using(self, **options: Any) -> "Posterior":
        """The same weights with other options of use, such as a sampler's `steps`: those in the family's `USE`.

        Example::

            posterior.using(sampler="dpm", steps=20).sample(1000, x)

        """
        chosen = restore("estimator", FAMILIES, self.model.estimator).using(**options)
        model = self.model._replace(estimator=describe(FAMILIES, chosen))
        return Posterior(model, rebuilt(model, self.network), self.record, self.gate)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    def to(self, device: str | torch.device) -> "Posterior":
        """Move the weights, in place; returns self."""
        self.network.to(device_named(str(device)))
        return self

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write this posterior to one `.safetensors` file, atomically; `load` reads it."""
        refuse_existing(path, overwrite)
        header, tensors = {**self.model.describe(), "record": self.record}, self.network.state_dict()
        if self.gate is not None:
            header["trust"] = self.gate.describe()
            tensors |= {f"{GATE}{name}": torch.from_numpy(values) for name, values in self.gate.arrays().items()}
        artifact.write(path, header, tensors)

    def trust(self, x: Observation) -> Trust | None:
        """Whether x is like the simulations of the training; None where the posterior has nothing to compare with.

        Args:
            x: one observation or a stack of B, as in `sample`.

        Example::

            trust = posterior.trust(x)
            print(trust.p_value, trust.flagged, trust.reason)

        """
        arrays, single = self._seen(x)
        return self._trust(arrays, self._context(arrays), single)

    def _trust(self, arrays: Mapping[str, np.ndarray], context: Tensor, single: bool) -> Trust | None:
        if self.gate is None:
            return None
        found = self.gate(arrays, _numpy(context))
        return found.observation(0) if single else found

    def fingerprint(self) -> str:
        """Of what it is made of and its weights: posteriors of the same draws have the same."""
        tensors = {name: values.cpu().contiguous() for name, values in self.network.state_dict().items()}
        return artifact.digest(json.dumps(self.model.describe()), tensors)

    def sample(
        self,
        n: int,
        x: Observation,
        *,
        seed: int | None = None,
        log_prob: bool = False,
        progress: bool = False,
        strict: bool = False,
    ) -> Samples:
        """Draw from q(theta | x), having compared x with the simulations (`sbi_dgm.trust`).

        Args:
            n: draws for each observation.
            x: one observation or a stack of B: an array, or a dict by observable's name.
            seed: None draws a fresh one; the same seed gives the same draws on the same device.
            log_prob: keep ln q of each draw too, such that importance weights f / q are right; where the density is a
                bound, they are so on average, with the draw's own latents among those that q is estimated from.
            progress: show a progress bar.
            strict: refuse what there is a warning of.

        Returns:
            draws (n, D) for one observation, (B, n, D) for a stack; their `trust` says how it compares.

        Raises:
            ObservationError: wrong shape, or numbers that are not finite.
            TrustError: with `strict`, x is unlike the simulations, or the posterior has none to compare with.

        Warns:
            TrustWarning: x is unlike the simulations; of a stack, more are than chance explains.

        """
        arrays, single = self._seen(x)
        context = self._context(arrays)
        trust = self._trust(arrays, context, single)
        told(trust, strict)
        theta, log_q = self._draws(n, context, seed, log_prob, progress)
        kept = (theta[0], log_q[0]) if single else (theta, log_q)
        return Samples.of(self.model.reference, kept[0], kept[1] if log_prob else None, trust)

    def _draws(
        self, n: int, context: Tensor, seed: int | None, log_prob: bool, progress: bool = False
    ) -> tuple[Array, Array]:
        """Draws (B, n, D) and their ln q (B, n), which is empty numbers where it is not asked for."""
        n = whole("n", n, 0)
        generator = torch_generator(fresh(seed), device=self.device)
        theta = np.empty((len(context), n, len(self.names)))
        log_q = np.empty((len(context), n))
        with Bar(total=len(context) * n, unit="draw", desc="sampling", disable=not progress) as bar:
            for rows, draws in _blocks(len(context), n):
                count = draws.stop - draws.start
                z, density = self._drawn(count, context[rows], generator, log_prob)
                theta[rows, draws] = self._to_theta(_numpy(z))
                if log_prob:
                    log_det = self.model.reference.coordinates.forward(theta[rows, draws])[1]
                    log_q[rows, draws] = _numpy(density) + log_det
                bar.update(theta[rows, draws].shape[0] * count)
        return theta, log_q

    def log_prob(self, theta: ArrayLike, x: Observation) -> Array:
        """ln q(theta | x), normalised over the prior's support; -inf outside.

        Args:
            theta: for one observation (D,) or (S, D); for B of them (B, D), one each, or (B, S, D).
            x: as in `sample`.

        Returns:
            the shape of theta without its last axis.

        """
        return self.log_prob_and_error(theta, x, error=False)[0]

    def log_prob_and_error(self, theta: ArrayLike, x: Observation, *, error: bool = True) -> tuple[Array, Array]:
        """ln q as `log_prob` gives it, and an estimate of its numerical error, of the same shape.

        The error is that of solving the equation of diffusion, flow matching and continuous flows, the standard error
        of a VAE's bound, zero for exact densities; it says nothing of how well the network was trained. `error=False`
        spares the two further solutions.
        """
        return self._log_prob(theta, x, error, None)

    def _log_prob(
        self, theta: ArrayLike, x: Observation, error: bool, generator: Generator | None
    ) -> tuple[Array, Array]:
        arrays, single = self._seen(x)
        context = self._context(arrays)
        theta = parameters_of(theta, self.names)
        coordinates = self.model.reference.coordinates
        snapped = snap(stacked(theta, len(context), single, len(self.names)), coordinates, np.float64)
        within = np.asarray(coordinates.inside(snapped).all(-1))
        somewhere = coordinates.inverse(np.zeros(len(self.names)))
        z, log_det = coordinates.forward(np.where(within[..., None], snapped, somewhere))
        log_q, errors = np.empty(z.shape[:2]), np.zeros(z.shape[:2])
        for rows, draws in _blocks(*z.shape[:2]):
            tensor = torch.as_tensor(z[rows, draws], dtype=torch.float32, device=self.device)
            with torch.no_grad():
                log_q[rows, draws], errors[rows, draws] = self._density(tensor, context[rows], error, generator)
        log_q, errors = np.where(within, log_q + log_det, -np.inf), np.where(within, errors, 0.0)
        return log_q.reshape(theta.shape[:-1]), errors.reshape(theta.shape[:-1])

    def _density(
        self, z: Tensor, context: Tensor, error: bool, generator: Generator | None
    ) -> tuple[Array, Array | float]:
        estimator = self.network.estimator
        if error:
            log_q, errors = estimator.log_prob_and_error(z, context, generator)
            return _numpy(log_q), _numpy(errors)
        return _numpy(estimator.log_prob(z, context, generator)), 0.0

    def map(self, x: Observation, *, draws: int = 2000, seed: int = 0) -> Array:
        """The maximum of q(theta | x) within the box of its draws: (D,), or (B, D) for a stack.

        The search starts at the best of `draws` draws and stays inside their box in z, because the density at an
        edge of the prior is ruled by tails that no draw has seen. A maximum on the box is warned of by name.
        """
        arrays, single = self._seen(x)
        theta, log_q = self._draws(whole("draws", draws, 2), self._context(arrays), seed, True)
        found = []
        for i, row in enumerate(self.observations(x)[0]):
            found.append(highest(theta[i], log_q[i], partial(self.log_prob, x=row), self.model.reference))
        return found[0] if single else np.stack(found)

    @torch.no_grad()
    def _drawn(self, n: int, context: Tensor, generator: Generator, log_prob: bool) -> tuple[Tensor, Tensor]:
        """Draws, and their ln q where it is asked for."""
        estimator = self.network.estimator
        if log_prob:
            return estimator.sample_and_log_prob(n, context, generator)
        return estimator.sample(n, context, generator), context.new_empty(0)

    def _to_theta(self, z: Array) -> Array:
        bad = ~np.isfinite(z).all(-1)
        if bad.any():
            raise SbiError(
                f"{int(bad.sum())} of {bad.size} draws are not finite: the network diverged at this observation."
            )
        return self.model.reference.coordinates.inverse(z)

    def _seen(self, x: Observation) -> tuple[dict[str, np.ndarray], bool]:
        """Observations as stacks by name, checked, and whether x is one without its axis."""
        arrays, single = observed_arrays(x, self.model.observables, self.model.dtypes)
        if len(next(iter(arrays.values()))) == 0:
            raise ObservationError("the stack of observations is empty.")
        return arrays, single

    @torch.no_grad()
    def _context(self, arrays: Mapping[str, np.ndarray]) -> Tensor:
        """The context (B, C)."""
        size, pieces = len(next(iter(arrays.values()))), []
        for rows in (slice(first, first + 1024) for first in range(0, size, 1024)):
            tensors = {name: torch.as_tensor(a[rows], device=self.device) for name, a in arrays.items()}
            pieces.append(self.network.summary(tensors))
        return torch.cat(pieces)

    def observations(self, x: Observation) -> tuple[list[Any], bool]:
        """x one by one, an array each or a dict by name where there are several, and whether it was a single one.

        Fractions are float64 whatever the simulations were: a likelihood that is known takes what was seen.
        """
        arrays, single = observed_arrays(x, self.model.observables, widest(self.model.dtypes))
        rows = [{name: values[i] for name, values in arrays.items()} for i in range(len(next(iter(arrays.values()))))]
        return [row if len(row) > 1 else next(iter(row.values())) for row in rows], single

    def refined(self, likelihood: Any, *, effective: float = 10_000, cap: int = CAP, power: float = 1.0) -> Refined:
        """This posterior refined by a likelihood: amortized still, by importance weights, without MCMC.

        Args:
            likelihood: a `Likelihood`, a simulator with `log_likelihood(theta, x)`, or such a function: theta (S, D)
                and one observation (a dict by name where there are several observables) -> (S,).
            effective: effective size of the weighted proposals, for each observation.
            cap: proposals at most.
            power: of the likelihood, which below 1 shares the say with this posterior: for learned ones, best found by
                `pooled(data)`.

        Raises:
            OptionError: this posterior has no density.
            PriorError: the prior is not known.

        Example::

            better = posterior.refined(likelihood).pooled(data)
            better.sample(1000, x)
            print(better.weigh(x).verdict)

        """
        return Refined(self, likelihood, effective=effective, cap=cap, power=power)

    repaired, regions, intervals = repair.repaired, conformal.regions, conformal.intervals  # methods, told of there

    def proposals(self, n: int, x: Observation, seed: int) -> tuple[Array, Array]:
        """n draws (n, D) of one observation and their ln q, for `refined`."""
        theta, log_q = self._draws(n, self._context(self._seen(x)[0]), seed, True)
        return theta[0], log_q[0]

    def proposal_density(self, theta: Array, x: Observation, seed: int) -> Array:
        """ln q of theta (n, D), as `proposals` gives it: where it is a bound, with noise of its own for each."""
        return self._log_prob(theta, x, False, torch_generator(seed, device=self.device))[0]


def load(
    path: str | Path, *, prior: Prior | None = None, embedding: nn.Module | None = None, device: str = "cpu"
) -> Posterior:
    """Read a posterior; its draws are those of the one that was saved, to the bit.

    Args:
        prior: needed only where the prior is a function.
        embedding: needed only where the embedding is a module of yours; its weights come from the file.
        device: "cpu", "cuda", ..., or "auto".

    Raises:
        FileError: missing, foreign, newer or corrupted, or a likelihood.
        ExternalError: an object is needed that the file cannot hold.
        PriorError, OptionError: a prior is given that is not the file's, or an embedding that it does not need.
    """
    posterior = opened(path, prior=prior, embedding=embedding, device=device)
    if "roles" in posterior.record:
        raise FileError(f"{path} holds a likelihood: Likelihood.load() reads it.")
    require_same(path, posterior.model, prior)
    return posterior


def opened(
    path: str | Path, *, prior: Prior | None = None, embedding: nn.Module | None = None, device: str = "cpu"
) -> Posterior:
    """What a file holds, be it of theta given x or, for a likelihood, of x given theta."""
    header, tensors = artifact.read(path)
    kept = {name.removeprefix(GATE): values for name, values in tensors.items() if name.startswith(GATE)}
    weights = {name: values for name, values in tensors.items() if not name.startswith(GATE)}
    with understood(path):
        model = Model.restore(header, prior)
        network = filled(model, weights, embedding)
        gate = Gate.restore(model.observables, {name: a.numpy() for name, a in kept.items()}) if kept else None
        posterior = Posterior(model, network, {**header["record"]}, gate)
    return posterior.to(device)


def _numpy(tensor: Tensor) -> Array:
    return tensor.detach().cpu().double().numpy()


def _blocks(observations: int, draws: int) -> Iterator[tuple[slice, slice]]:
    """Slices that cover (observations, draws) with at most BLOCK rows each."""
    columns = max(1, min(draws, BLOCK))
    rows = max(1, BLOCK // columns)
    for first in range(0, observations, rows):
        for start in range(0, draws, columns):
            yield slice(first, min(first + rows, observations)), slice(start, min(start + columns, draws))
