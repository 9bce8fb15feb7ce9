r"""The likelihood: the posterior's machinery with the roles exchanged, ln q(x | theta) and draws of x.

.. math::  \ln q(x | \theta) = \ln q(z | c(\theta)) + \ln |\det \partial z / \partial x|

Whole numbers were dequantised (`sbi_dgm.data.exchanged`): their probability is the mean of the density over the unit
cube above them, by `OFFSETS` fixed points of it.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from numpy.typing import ArrayLike
from torch import nn

from sbi_dgm import artifact
from sbi_dgm.data.exchanged import GIVEN, Roles
from sbi_dgm.data.observed import Observation, observed_arrays
from sbi_dgm.errors import FileError, OptionError
from sbi_dgm.files import write_json
from sbi_dgm.parameters import Observable
from sbi_dgm.pooling import Pool
from sbi_dgm.posterior import Posterior, load, opened, stacked
from sbi_dgm.priors import Prior
from sbi_dgm.refinement import Refined
from sbi_dgm.univariate import Array

OFFSETS = 16  # points of the unit cube for the probability of whole numbers
REFINING = "likelihood"  # in a posterior's folder: the run of the likelihood that was learned with it
POOL = "pool.json"  # there: the power that the likelihood was given, and whose


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
        theta = np.asarray(theta, np.float64)
        arrays, single = observed_arrays(x, self.observables, self.roles.dtypes)
        v = self.roles.vector(arrays)
        given = stacked(theta, len(v), single, len(self.names))
        pairs = np.repeat(v, given.shape[1], axis=0), {GIVEN: self.roles.given(given.reshape(-1, len(self.names)))}
        return self._averaged(*pairs).reshape(theta.shape[:-1])

    def _averaged(self, v: Array, given: Mapping[str, Array]) -> Array:
        """ln of the mean density over the unit cube above whole numbers: (N, L) -> (N,)."""
        whole = self.roles.whole
        if not whole.any():
            return self.inner.log_prob(v, given)
        cube = scipy.stats.qmc.Sobol(int(whole.sum()), rng=0).random(OFFSETS)
        offsets = np.zeros((OFFSETS, len(whole)))
        offsets[:, whole] = cube
        values = [self.inner.log_prob(v + offset, given) for offset in offsets]
        return np.logaddexp.reduce(values, axis=0) - np.log(OFFSETS)

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
        theta = np.asarray(theta, np.float64)
        given = self.roles.given(np.atleast_2d(theta))
        v = self.inner.sample(n, {GIVEN: given}, seed=seed).array
        drawn = self.roles.observed(v if theta.ndim > 1 else v[0])
        return drawn if len(drawn) > 1 else next(iter(drawn.values()))


def load_refined(
    folder: str | Path,
    *,
    posterior: Posterior | None = None,
    effective: float = 10_000,
    prior: Prior | None = None,
    device: str = "cpu",
) -> Refined:
    """What `fit(data, learn="refined", out=folder)` learned: posterior, likelihood and the power of the latter.

    Args:
        folder: the run.
        posterior: the one of this run, where it was loaded already (its embedding may be a module of yours).
        effective: effective size of the weighted proposals, for each observation.
        prior: needed only where the prior is a function.
        device: "cpu", "cuda", ..., or "auto".

    Raises:
        FileError: no likelihood was learned there.
        OptionError: its power was found for another posterior.

    Example::

        refined = sbi_dgm.load_refined("runs/sn")
        refined.sample(1000, x)

    """
    beside = Path(folder) / REFINING
    if not (beside / "likelihood.safetensors").exists():
        raise FileError(f"no likelihood was learned with it ({beside}): train --refine does, or name one.")
    posterior = posterior or load(Path(folder) / "posterior.safetensors", prior=prior, device=device)
    likelihood = Likelihood.load(beside / "likelihood.safetensors", prior=prior, device=device)
    found = _pool(beside / POOL, posterior, likelihood)
    power = 1.0 if found is None else found.power
    return Refined(posterior, likelihood, effective=effective, power=power, pool=found)


def keep_pool(refined: Refined, folder: Path) -> None:
    """Write what told the power to the folder of the likelihood's run, for `load_refined`."""
    found = None if refined.pool is None else refined.pool._asdict()
    write_json(folder / POOL, {"pool": found, "weights": _weights(refined.proposal, refined.likelihood)})


def _pool(path: Path, posterior: Posterior, likelihood: Likelihood) -> Pool | None:
    """What told the power, or None where it is 1."""
    if not path.exists():
        missing = f"{path} is missing: the likelihood has a power of 1; train --refine --resume finds the best."
        warnings.warn(missing, stacklevel=3)
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    if kept["weights"] != _weights(posterior, likelihood):
        raise OptionError(
            f"{path} tells the power of a likelihood for another posterior or likelihood: name the likelihood "
            f"({path.parent / 'likelihood.safetensors'}) to use it with a power of 1."
        )
    return None if kept["pool"] is None else Pool(**kept["pool"])


def _weights(posterior: Any, likelihood: Any) -> dict[str, str]:
    """A digest of the weights of each."""
    networks = {"posterior": posterior.network, "likelihood": likelihood.inner.network}
    states = {name: network.state_dict().items() for name, network in networks.items()}
    return {
        name: artifact.digest("", {key: v.cpu().contiguous() for key, v in state}) for name, state in states.items()
    }
