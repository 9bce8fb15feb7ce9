r"""The score of a Gaussian at a fiducial point: as many numbers as parameters, from all numbers of x.

Where x ~ N(mu(theta), C) with a covariance that is the same for all theta, the gradient of ln p(x | theta) at theta_*,
and the Fisher matrix,

.. math::
    t = J^T C^{-1} (x - \mu_*), \qquad F = J^T C^{-1} J, \qquad J = \frac{\partial \mu}{\partial \theta},
    \qquad \hat\theta = \theta_* + F^{-1} t ,

hold all that x says of theta to first order about theta_* (Heavens, Jimenez and Lahav 2000, astro-ph/9911102, whose
ordered vectors span the same space; Alsing and Wandelt 2018, arXiv:1712.00012). hat theta is the estimate
by quasi-maximum likelihood; its covariance at theta_* is F^{-1}.

Derivatives are central differences of *matched* simulations (Charnock, Lavaux and Wandelt 2018, arXiv:1802.03537):
x(theta_* + h) and x(theta_* - h) from the same random numbers, so that the noise which they share cancels. The
simulator gets the generator of a stream for `BATCH` rows at a time; one that draws more numbers at one theta than at
another is matched from there on by chance only. What noise is left in J has no mean, but J^T C^{-1} J squares it, which
would make F too large and draw hat theta towards theta_* (Coulton and Wandelt 2023, arXiv:2305.08994). Hence

.. math::  F_{ab} = J_a^T C^{-1} J_b - \mathrm{tr}\left(C^{-1} \mathrm{Cov}(J_a, J_b)\right) ,

with the covariance of the means J told by the pairs that they are the means of.

C is estimated from n simulations of L numbers. Its inverse is too large on average, F therefore is multiplied by
(n - L - 2) / (n - 1) (Hartlap, Simon and Schneider 2007, astro-ph/0608064); in hat theta that factor cancels. An
estimated C weights x a little wrong, which loses about L / n of the information (Reed, Mallett and Brennan 1974,
doi:10.1109/TAES.1974.307893): n has to be `MARGIN` times L at least.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sbi_dgm.errors import DataError, OptionError, PriorError, unknown
from sbi_dgm.parameters import total_size
from sbi_dgm.seeds import numpy_generator
from sbi_dgm.simulator import Simulator, is_weighted, shaped
from sbi_dgm.univariate import Array

BATCH = 100  # simulations from one stream
MARGIN = 5
STEP = 0.1  # in units of the prior's sd about the fiducial point
MOMENTS, MATCHED = 13, 14  # streams of random numbers
NOISY = 0.25  # the greatest share of J^T C^{-1} J, along any direction of theta, that may be noise
SINGULAR = 1e-12  # the least eigenvalue of a correlation matrix, in units of the greatest
Point = Sequence[float] | Mapping[str, float] | np.ndarray


class Score(NamedTuple):
    """What a compression is made of, for L numbers and D parameters.

    Attributes:
        fiducial: theta_* (D,).
        mean: mu_* (L,).
        maps: F^{-1} J^T C^{-1}, (D, L).
        fisher: F (D, D).

    """

    fiducial: Array
    mean: Array
    maps: Array
    fisher: Array

    def __call__(self, x: Array) -> Array:
        """hat theta of vectors: (..., L) -> (..., D)."""
        return self.fiducial + (x - self.mean) @ self.maps.T


def numbers(x: Mapping[str, np.ndarray], log: Collection[str] = ()) -> Array:
    """All numbers of observables (B, ...) by name, side by side in float64, of those in `log` their logarithms."""
    for name in log:
        a = x[name].reshape(len(x[name]), -1)
        for row, entry in np.argwhere(~(a > 0))[:1]:
            raise DataError(
                f"observable {name!r}, row {row}: entry {entry} is {a[row, entry]:g} and has no logarithm: leave "
                f"{name!r} out of log."
            )
    parts = [np.log(a.astype(np.float64)) if name in log else a.astype(np.float64) for name, a in x.items()]
    return np.concatenate([a.reshape(len(a), -1) for a in parts], axis=1)


def score(
    simulator: Simulator,
    fiducial: Point | None = None,
    steps: Point | None = None,
    *,
    simulations: int = 2000,
    seed: int = 0,
    log: Collection[str] = (),
) -> Score:
    """The score compression of a simulator; arguments as of `sbi_dgm.moped`."""
    _require_vectors(simulator, log)
    theta = _fiducial(simulator, fiducial)
    h = _steps(simulator, theta, steps)
    size = total_size(simulator.observables)
    if simulations < MARGIN * size:
        raise OptionError(
            f"simulations = {simulations} for {size} numbers of x: their covariance needs {MARGIN} times as many, "
            f"{MARGIN * size}; take more, or compress by 'pca'."
        )
    x = _drawn(simulator, theta, simulations, (seed, MOMENTS), log)
    pairs = max(2, -(-simulations // (2 * len(theta))))
    slopes = np.stack([_slopes(simulator, theta, i, h[i], pairs, seed, log) for i in range(len(theta))])
    maps, fisher = _weights(x, slopes, simulator.prior.names)
    return Score(theta, x.mean(0), maps, fisher)


def _require_vectors(simulator: Simulator, log: Collection[str]) -> None:
    for name in log:
        if name not in simulator.observables:
            raise OptionError(unknown("observable", name, simulator.observables))
    if is_weighted(simulator):
        raise OptionError(f"{simulator.name} gives weighted events: a score is of simulations that all count alike.")
    for name, observable in simulator.observables.items():
        if observable.kind == "set":
            raise OptionError(f"observable {name!r} is a set: a score is linear in vectors; use 'deep_sets'.")
        if observable.optional:
            raise OptionError(f"observable {name!r} may be absent: a score is of all numbers; use 'fusion'.")


def _fiducial(simulator: Simulator, given: Point | None) -> Array:
    """theta_* (D,), inside of the prior."""
    given = getattr(simulator, "fiducial", None) if given is None else given
    if given is None:
        raise OptionError(
            f"{simulator.name} has no fiducial point: pass fiducial=(...), one number for each parameter."
        )
    theta = _point(simulator, "fiducial", given)
    _require_inside(simulator, theta[None], "the fiducial point")
    return theta


def _steps(simulator: Simulator, theta: Array, given: Point | None) -> Array:
    """h (D,): theta_* +- h is inside of the prior."""
    if given is None:
        coordinates = simulator.prior.coordinates
        z = coordinates.forward(theta)[0]
        away = STEP * np.eye(len(theta))
        h = np.linalg.norm(coordinates.inverse(z + away) - coordinates.inverse(z - away), axis=0) / 2
    else:
        h = _point(simulator, "steps", given)
    for name, step in zip(simulator.prior.names, h, strict=True):
        if not 0 < step < np.inf:
            raise OptionError(f"the step of {name} is {step:g}: it must be positive.")
    _require_inside(simulator, theta + np.concatenate([np.diag(h), -np.diag(h)]), "a step from the fiducial point")
    return h


def _point(simulator: Simulator, what: str, given: Point) -> Array:
    """One number for each parameter (D,)."""
    names = simulator.prior.names
    if isinstance(given, Mapping):
        for name in {*given, *names}:
            if name not in names or name not in given:
                raise OptionError(f"{what} names {sorted(given)}, and the parameters are {', '.join(names)}.")
        given = [given[name] for name in names]
    found = np.asarray(given, np.float64)
    if found.shape != (len(names),):
        raise OptionError(f"{what} has shape {found.shape}: give one number for each of {', '.join(names)}.")
    return found


def _require_inside(simulator: Simulator, theta: Array, what: str) -> None:
    for row, column in np.argwhere(~simulator.prior.coordinates.inside(theta))[:1]:
        raise PriorError(
            f"{what}: {simulator.prior.outside(theta[row], column)}: move the fiducial point, or pass smaller "
            "steps=(...)."
        )


def _drawn(simulator: Simulator, theta: Array, count: int, stream: tuple[int, ...], log: Collection[str] = ()) -> Array:
    """Vectors of simulations at one theta: (count, L)."""
    found = []
    for batch, first in enumerate(range(0, count, BATCH)):
        rows = min(BATCH, count - first)
        output: Any = simulator(np.tile(theta, (rows, 1)), numpy_generator(*stream, batch))
        found.append(numbers(shaped(simulator.observables, output, rows), log))
    x = np.concatenate(found)
    bad = np.flatnonzero(~np.isfinite(x).all(1))
    if len(bad):
        raise DataError(
            f"{simulator.name} failed in {len(bad)} of {count} simulations at theta = "
            f"{np.array2string(theta, precision=6)}: choose a fiducial point, or steps, where it does not."
        )
    return x


def _slopes(
    simulator: Simulator, theta: Array, i: int, step: float, pairs: int, seed: int, log: Collection[str]
) -> Array:
    """d x / d theta_i of each pair (pairs, L)."""
    away = step * np.eye(len(theta))[i]
    stream = (seed, MATCHED)
    above, below = (_drawn(simulator, theta + side, pairs, stream, log) for side in (away, -away))
    return (above - below) / (2 * step)


def _weights(x: Array, slopes: Array, names: Sequence[str]) -> tuple[Array, Array]:
    """F^{-1} J^T C^{-1} (D, L), and F, of simulations (n, L) and the slopes of pairs (D, pairs, L)."""
    (count, size), jacobian = x.shape, slopes.mean(1).T
    sd = x.std(0, ddof=1)
    fixed = sd <= 1e-12 * np.abs(x).max(0)
    for entry in np.flatnonzero(fixed & jacobian.any(1))[:1]:
        which = names[int(np.argmax(np.abs(jacobian[entry])))]
        raise DataError(f"number {entry} of x has no noise and depends on {which}: it has no Gaussian score.")
    weight = np.where(fixed, 0.0, 1 / np.where(fixed, 1.0, sd))
    y = (x - x.mean(0)) * weight
    correlation = y.T @ y / (count - 1) + np.diag(fixed.astype(float))
    _require_regular(correlation, "the covariance of the numbers of x", "leave out those that follow from others")
    scaled = jacobian * weight[:, None]
    towards = np.linalg.solve(correlation, scaled)
    information = scaled.T @ towards
    size_of = np.sqrt(np.diag(information))
    for i in np.flatnonzero(size_of == 0)[:1]:
        raise DataError(f"the mean of x does not change with {names[i]} at the fiducial point: it has no linear score.")
    _require_regular(information / np.outer(size_of, size_of), "the Fisher matrix", "x does not tell parameters apart")
    information -= _noise(slopes * weight, correlation, information)
    maps = np.linalg.solve(information, towards.T) * weight
    return maps, information * (count - size - 2) / (count - 1)


def _noise(slopes: Array, covariance: Array, information: Array) -> Array:
    """tr(C^{-1} Cov(J_a, J_b)) of the means J of slopes (D, pairs, L): (D, D), a small part of J^T C^{-1} J."""
    parameters, pairs, size = slopes.shape
    off = (slopes - slopes.mean(1, keepdims=True)).reshape(-1, size).T
    towards = np.linalg.solve(covariance, off).reshape(size, parameters, pairs)
    noise = np.einsum("lap,lbp->ab", towards, off.reshape(towards.shape)) / (pairs * (pairs - 1))
    share = np.linalg.eigvals(np.linalg.solve(information, noise)).real.max()
    if share > NOISY:
        raise DataError(
            f"derivatives of x are lost in noise: along one direction of theta it is {share:.0%} of the Fisher matrix "
            f"(at most {NOISY:.0%}). Take more simulations or larger steps, and the same random numbers at every theta."
        )
    return noise


def _require_regular(matrix: Array, what: str, why: str) -> None:
    values = np.linalg.eigvalsh(matrix)
    if values[0] < SINGULAR * values[-1]:
        raise DataError(f"{what} is singular (eigenvalues {values[0]:.2g} to {values[-1]:.2g}): {why}.")
