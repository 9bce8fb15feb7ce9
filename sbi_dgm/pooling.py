r"""The logarithmic pool of a posterior and a likelihood: each has the say that simulations give it.

A learned posterior q(theta | x) and a learned likelihood L(theta) = q(x | theta) err each in its own way. Their
logarithmic pool (Genest and Zidek 1986, doi:10.1214/ss/1177013825), with the *power* beta of the likelihood, is

.. math::
    r_\beta(\theta | x) = \frac{q^{1 - \beta}\, (L p)^\beta}{C_\beta(x)}, \qquad
    C_\beta(x) = \int q^{1 - \beta}\, (L p)^\beta\, d\theta ,

for beta = 0 the posterior alone, for beta = 1 what the likelihood makes of the prior p. Which is best is told by R
simulations that neither was trained on: the gain in the log-density of their truths over that of q,

.. math::
    G(\beta) = \frac{1}{R} \sum_{i=1}^R \beta\, t_i(\theta_i^*) - \ln C_\beta(x_i), \qquad t = \ln \frac{L p}{q} .

Since C = E_q e^{beta t}, ln C is the cumulant generating function of t and G is concave: it has one maximum, which is
nowhere below G(0) = 0. C is the mean of q^{1 - beta} (L p)^beta / g over M draws of g, the mixture of q with a
twentieth of the prior, and the truth among them: where draws miss the posterior, C is told rather too large than too
small, and so the gain too small; r at the truth is never told above (M + 1) g.
"""

import time
import warnings
from typing import Any, NamedTuple, TypeVar

import numpy as np
import scipy
from tqdm import tqdm

from sbi_dgm import heldout
from sbi_dgm.data.simulations import Simulations
from sbi_dgm.errors import DataError, OptionError
from sbi_dgm.importance import SHARE_OF_PRIOR
from sbi_dgm.seeds import numpy_generator
from sbi_dgm.univariate import Array

POOLED = ("exact", "ode")  # densities of one theta; others are known only jointly with hidden numbers
MIN_ROWS = 10
LEAST = 0.01  # power
P = TypeVar("P", bound=Any)


class Pool(NamedTuple):
    """What was found best.

    Attributes:
        power: beta, of the likelihood.
        gain: mean of ln r - ln q of the truth [nats a simulation].
        error: its standard error.
        whole: the gain with a power of 1.
        whole_error: its standard error.
        rows: simulations that tell so.
        seconds: that it took.

    """

    power: float
    gain: float
    error: float
    whole: float
    whole_error: float
    rows: int
    seconds: float

    def __str__(self) -> str:
        told = (
            f"the likelihood has a power of {self.power:g}: {self.gain:.3f} +- {self.error:.3f} nats better than the "
            f"posterior alone, on {self.rows} held-out simulations (with a power of 1: {self.whole:.3f} +- "
            f"{self.whole_error:.3f})"
        )
        return told if self.gain > 2 * self.error else f"{told}; it brings nothing that these could show"


class Evaluated(NamedTuple):
    """At the M draws of each of R simulations, and last at its truth, each (R, M + 1): ln L p, ln q and ln g."""

    log_joint: Array
    log_q: Array
    log_g: Array


def mixed(log_joint: Array, log_q: Array, power: float) -> Array:
    """Ln of q^{1 - power} (L p)^power, not normalised."""
    return log_joint if power == 1 else power * log_joint + (1 - power) * log_q


def pooled(
    refined: P,
    data: Simulations,
    *,
    draws: int = 512,
    max_rows: int = 256,
    seed: int = 0,
    progress: bool = True,
) -> P:
    """The same posterior and likelihood with the power that held-out simulations find best.

    Used are, on the file that the posterior was trained on, the rows that validated it; of any other file all valid
    ones. Weights and groups count as in `calibrate`.

    Args:
        data: simulations. The likelihood must not have been trained on the rows that are used either: it is not where
            both were trained on this file with the same split.
        draws: M, for each simulation.
        max_rows: R at most, chosen by the seed.
        seed: of draws and choice.
        progress: show a progress bar.

    Returns:
        another refined posterior; `record["pool"]` has what is found, a `Pool`'s fields.

    Raises:
        OptionError: the posterior's density is not one of theta alone; the likelihood had another split of this file.
        DataError: fewer than 10 rows, or one to which the likelihood gives no density.

    Example::

        better = posterior.refined(likelihood).pooled(data)
        print(better.power)

    """
    posterior, began, rng = refined.proposal, time.perf_counter(), numpy_generator(seed)
    require_density(posterior)
    _refuse_other_split(refined, data)
    theta, x = heldout.spare(posterior, data, None, max_rows, rng, seed, fewest=MIN_ROWS, purpose="tell the power")
    seen = tqdm(posterior.observations(x)[0], unit="row", desc="pooling", disable=not progress)
    parts = [_evaluated(refined, *pair, draws, rng) for pair in zip(theta, seen, strict=True)]
    at = Evaluated(*map(np.stack, zip(*parts, strict=True)))
    found = best(at, seconds=round(time.perf_counter() - began, 1))
    return type(refined)(
        posterior, refined.likelihood, effective=refined.effective, cap=refined.cap, power=found.power, pool=found
    )


def pooled_where_possible(refined: P, data: Simulations, *, seed: int = 0, progress: bool = True) -> P:
    """`pooled`; where nothing can tell the power, `refined` itself and a warning that says why."""
    try:
        return refined.pooled(data, seed=seed, progress=progress)
    except (DataError, OptionError) as error:
        warnings.warn(f"the likelihood keeps a power of {refined.power:g}: {error}", stacklevel=3)
        return refined


def require_density(posterior: Any) -> None:
    """`OptionError` where its density is not one of theta alone."""
    density = getattr(posterior, "density", "exact")
    if density not in POOLED:
        raise OptionError(
            f"a density of kind {density!r} cannot be pooled with a likelihood: its power is 1, or train a flow."
        )


def _refuse_other_split(refined: Any, data: Simulations) -> None:
    """`OptionError` where rows that validated the posterior may have trained the likelihood."""
    if heldout.trained_on(refined.proposal, data) is None:
        return
    records = [getattr(part, "record", {}) for part in (refined.proposal, refined.likelihood)]
    mine, other = ((record.get("split"), record.get("data", {}).get("rows")) for record in records)
    if other[0] is not None and other != mine:
        raise OptionError(
            f"posterior and likelihood were trained by different splits, {mine} and {other} (with rows): what "
            "validated the one may have trained the other. Train both alike (--refine)."
        )


def _evaluated(refined: Any, truth: Array, x: Any, draws: int, rng: np.random.Generator) -> Evaluated:
    posterior, (first, second) = refined.proposal, (int(s) for s in rng.integers(2**63, size=2))
    wide = refined.prior.draw(round(SHARE_OF_PRIOR * draws), rng)
    near, log_near = posterior.proposals(draws - len(wide), x, first)
    other = np.concatenate([wide, truth[None]])
    theta = np.concatenate([near, other])
    log_q = np.concatenate([log_near, posterior.proposal_density(other, x, second)])
    log_p, share = refined.prior.log_prob(theta), len(wide) / draws
    log_joint = refined.evaluate(theta, x) + log_p
    if not np.isfinite(log_joint[-1]):
        named = ", ".join(f"{n} = {v:g}" for n, v in zip(refined.names, truth, strict=True))
        raise DataError(f"the likelihood gives no density to a held-out simulation of {named}: sample without it.")
    return Evaluated(log_joint, log_q, np.logaddexp(np.log1p(-share) + log_q, np.log(share) + log_p))


def gains(power: float, at: Evaluated) -> Array:
    """Ln r - ln q at each truth (R,)."""
    log_r = mixed(at.log_joint, at.log_q, power)
    log_c = np.logaddexp.reduce(log_r - at.log_g, axis=1) - np.log(log_r.shape[1])
    return log_r[:, -1] - log_c - at.log_q[:, -1]


def best(at: Evaluated, seconds: float = 0.0) -> Pool:
    """The power between 0.01 and 1 with the largest mean gain, and what it gains."""
    search = scipy.optimize.minimize_scalar(
        lambda power: -gains(power, at).mean(), bounds=(LEAST, 1.0), method="bounded", options={"xatol": 1e-3}
    )
    power = max((1.0, round(float(search.x), 3)), key=lambda one: gains(one, at).mean())
    some, whole = gains(power, at), gains(1.0, at)
    root = np.sqrt(len(some))
    figures = some.mean(), some.std() / root, whole.mean(), whole.std() / root
    gain, error, whole_gain, whole_error = (round(float(value), 4) for value in figures)
    return Pool(power, gain, error, whole_gain, whole_error, len(some), seconds)
