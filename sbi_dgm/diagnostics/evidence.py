"""What a posterior is judged by: one set of draws at held-out observations, from which everything else follows.

Draws are kept in a file with the fingerprint of all that decides them (weights, rows, numbers, seed), and taken from
there where it is the same.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import h5py
import numpy as np

from sbi_dgm.data.columns import absent_rows
from sbi_dgm.data.frame import require_whole
from sbi_dgm.data.sink import writing
from sbi_dgm.files import atomic, understood
from sbi_dgm.progress import Bar
from sbi_dgm.samples import Samples
from sbi_dgm.seeds import numpy_generator
from sbi_dgm.univariate import Array

BLOCK_DRAWS = 2**17  # of a step of the progress bar
UNREADABLE = "{path} holds no draws that can be read ({why}): remove it."
KNOWN, FEW = ("exact", "estimated"), 20  # densities that come with the draws; draws with ln q of others


@runtime_checkable
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


class Drawn(NamedTuple):
    """Draws at R observations.

    Attributes:
        draws: (R, S, D).
        log_prob: (R,), ln q of the truths.
        drawn_log_prob: (R, S'), ln q of draws: of all, or, where a density solves an equation, of `FEW` others.

    """

    draws: Array
    log_prob: Array
    drawn_log_prob: Array


class Evidence(NamedTuple):
    """R truths, their observations, and draws of q(theta | x) at each.

    Attributes:
        names: of the parameters.
        theta: (R, D), the truths.
        x: observables by name (R, ...).
        draws, log_prob, drawn_log_prob: those of `Drawn`.
        bounds: (2, D), the edges of the prior, or None where they are not known.

    """

    names: Sequence[str]
    theta: Array
    x: Mapping[str, np.ndarray]
    draws: Array
    log_prob: Array
    drawn_log_prob: Array
    bounds: Array | None = None

    def columns(self, values: Array) -> dict[str, Array]:
        """Values (..., D) of parameters by name."""
        return dict(zip(self.names, np.moveaxis(values, -1, 0), strict=True))

    @property
    def flat(self) -> Array:
        """All numbers of x, (R, C), as `side_by_side` gives them."""
        return side_by_side(self.x)


def side_by_side(x: Mapping[str, np.ndarray]) -> Array:
    """All numbers of observables (R, ...) by name: (R, C).

    Of an observable that is absent in some rows the medians of the others stand there, and a column more says where:
    what tests make of x may be any function of it.
    """
    parts = []
    for values in x.values():
        part, gone = values.reshape(len(values), -1).astype(np.float64), absent_rows(values)
        if gone.any():
            part[gone] = np.median(part[~gone], axis=0) if not gone.all() else 0.0
            part = np.column_stack([part, gone])
        parts.append(part)
    return np.concatenate(parts, axis=1)


def gathered(
    posterior: Judged,
    theta: Array,
    x: Mapping[str, np.ndarray],
    draws: int,
    seed: int,
    *,
    path: Path | None = None,
    progress: bool = False,
) -> Evidence:
    """Draws of the posterior at the observations (R, ...) of truths (R, D), or those in the file at `path`.

    Args:
        posterior: to be judged.
        theta: (R, D).
        x: by observable's name (R, ...).
        draws: of each observation.
        seed: of the draws.
        path: where they are kept, and taken from if they are those.
        progress: show a bar.

    """
    key = fingerprint(posterior, theta, x, draws, seed)
    drawn = None if path is None else _kept(path, key)
    if drawn is None:
        drawn = _drawn(posterior, theta, x, draws, seed, progress)
        if path is not None:
            _keep(path, drawn, key)
    prior = getattr(posterior, "prior", None)
    bounds = None if prior is None else np.stack([prior.coordinates.low, prior.coordinates.high])
    return Evidence(list(posterior.names), theta, x, *drawn, bounds)


def _drawn(
    posterior: Judged, theta: Array, x: Mapping[str, np.ndarray], draws: int, seed: int, progress: bool
) -> Drawn:
    densities = draws if getattr(posterior, "density", "exact") in KNOWN else FEW
    rng, step, parts = numpy_generator(seed), max(1, BLOCK_DRAWS // draws), []
    with Bar(total=len(theta), unit="row", desc="calibrating", disable=not progress) as bar:
        for first in range(0, len(theta), step):
            rows = slice(first, first + step)
            seen = {name: values[rows] for name, values in x.items()}
            dense = posterior.sample(densities, seen, seed=int(rng.integers(2**62)), log_prob=True)
            samples = dense if densities >= draws else posterior.sample(draws, seen, seed=int(rng.integers(2**62)))
            parts.append((samples.array, posterior.log_prob(theta[rows], seen), _density(posterior, dense, seen)))
            bar.update(len(theta[rows]))
    return Drawn(*map(np.concatenate, zip(*parts, strict=True)))


def _density(posterior: Judged, draws: Samples, x: Mapping[str, np.ndarray]) -> Array:
    """Ln q of draws (B, S), as the truths have it: a bound of draws with their own latents would lie above theirs."""
    if getattr(posterior, "density", "exact") == "bound":
        return np.asarray(posterior.log_prob(draws.array, x))
    return cast("Array", draws.log_prob)


def fingerprint(posterior: Judged, theta: Array, x: Mapping[str, np.ndarray], draws: int, seed: int) -> str | None:
    """Of all that decides the draws; None for a posterior that has no fingerprint of its own."""
    own = getattr(posterior, "fingerprint", lambda: None)()
    if own is None:
        return None
    digest = hashlib.sha256(f"{own} {draws} {seed}".encode())
    for values in (theta, *x.values()):
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _keep(path: Path, drawn: Drawn, key: str | None) -> None:
    with atomic(path) as temporary, writing(temporary) as file:
        file.attrs["fingerprint"] = key or ""
        for name, values in drawn._asdict().items():
            file.create_dataset(name, data=values, fletcher32=True, chunks=True)


def _kept(path: Path, key: str | None) -> Drawn | None:
    if key is None or not path.exists():
        return None
    with understood(path, UNREADABLE), h5py.File(path, "r") as file:
        require_whole(path, file)
        if file.attrs["fingerprint"] != key:
            return None
        found = Drawn(*(np.asarray(file[name], float) for name in Drawn._fields))
        (rows, _, _), _, (others, _) = found.draws.shape, found.log_prob.shape, found.drawn_log_prob.shape
        if not rows == len(found.log_prob) == others:
            raise ValueError("its rows differ in number")
        return found
