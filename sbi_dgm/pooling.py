r"""The logarithmic pool of a posterior and a likelihood: each has the say that simulations give it.

A learned posterior q(theta | x) and a learned likelihood L(theta) = q(x | theta) err each in its own way. Their
logarithmic pool (Genest and Zidek 1986, doi:10.1214/ss/1177013825), with the *power* beta of the likelihood, is

.. math::
    r_\beta(\theta | x) = \frac{q^{1 - \beta}\, (L p)^\beta}{C_\beta(x)}, \qquad
    C_\beta(x) = \int q^{1 - \beta}\, (L p)^\beta\, d\theta ,

for beta = 0 the posterior alone, for beta = 1 what the likelihood makes of the prior p. Which is best is told by R
simulations that neither was trained on: the gain in the log-density of their truths over that of q,

.. math::
    G(\beta) = \frac{1}{R} \sum_{i=1}^R \big[\beta\, t_i(\theta_i^*) - \ln C_\beta(x_i)\big],
    \qquad t = \ln \frac{L p}{q} .

Since C = E_q e^{beta t}, ln C is the cumulant generating function of t and G is concave: it has one maximum, which is
nowhere below G(0) = 0. C is the mean of q^{1 - beta} (L p)^beta / g over M draws of g, the mixture of q with a
twentieth of the prior, and the truth among them. Where draws miss what lies about the truth, C is told rather too
large, and so the gain too small: r at the truth is never told above (M + 1) g. But where L p has mass elsewhere, which
neither q nor the prior hits, C is told too small: of a spurious mode of the likelihood only what draws hit is seen.
"""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import scipy

from sbi_dgm import heldout
from sbi_dgm.data.batches import Noise
from sbi_dgm.data.simulations import Simulations
from sbi_dgm.errors import DataError, OptionError
from sbi_dgm.importance import SHARE_OF_PRIOR
from sbi_dgm.kinds import is_a, whole
from sbi_dgm.progress import Bar
from sbi_dgm.seeds import numpy_generator
from sbi_dgm.univariate import Array

MIN_ROWS, MIN_DRAWS = 10, 100
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
        told = f"the likelihood has a power of {self.power:g}"
        whole = f"with a power of 1: {self.whole:.3f} +- {self.whole_error:.3f}"
        if self.power == 0:
            return f"{told}: on {self.rows} held-out simulations it brings nothing ({whole} nats)"
        return (
            f"{told}: {self.gain:.3f} +- {self.error:.3f} nats better than the posterior alone, on {self.rows} "
            f"held-out simulations ({whole})"
        )


class Evaluated(NamedTuple):
    """At the M draws of each of R simulations, and last at its truth, each (R, M + 1): ln L p, ln q and ln g."""

    log_joint: Array
    log_q: Array
    log_g: Array


def mixed(log_joint: Array, log_q: Array, power: float) -> Array:
    """Ln of q^{1 - power} (L p)^power, not normalised; what has no power may be zero."""
    if power in (0, 1):
        return log_joint if power == 1 else log_q
    return power * log_joint + (1 - power) * log_q


def pooled(
    refined: P,
    data: Simulations,
    *,
    noise: Noise | None = None,
    draws: int = 512,
    max_rows: int = 256,
    seed: int = 0,
    progress: bool = True,
) -> P:
    """The same posterior and likelihood with the power that held-out simulations find best.

    Used are rows that trained neither: of a file that they were trained on those that validated both, of any other all
    valid ones. Weights and groups count as in `calibrate`. Since validation rows decided when each training ended (and,
    of a repaired posterior, its scales), gains on them are told a little too large; on other simulations they are not.

    Args:
        data: simulations.
        noise: the model of noise that the posterior was trained with.
        draws: M, for each simulation.
        max_rows: R at most, chosen by the seed.
        seed: of draws and choice.
        progress: show a progress bar.

    Returns:
        another refined posterior; `record["pool"]` has what is found, a `Pool`'s fields.

    Raises:
        OptionError: the posterior's density is not exact; fewer than 100 draws.
        DataError: fewer than 10 rows; a truth to which the posterior, its prior or the likelihood gives no density.
        ExternalError: the posterior was trained with another model of noise.

    Example::

        better = posterior.refined(likelihood).pooled(data)
        print(better.pool)

    """
    require_exact(refined.proposal)
    is_a("data", data, Simulations, "sbi_dgm.Simulations, opened or made")
    if whole("draws", draws) < MIN_DRAWS or whole("max_rows", max_rows) < MIN_ROWS:
        raise OptionError(f"draws = {draws}, max_rows = {max_rows}: at least {MIN_DRAWS} and {MIN_ROWS} are needed.")
    began, rng = time.perf_counter(), numpy_generator(seed)
    theta, x = heldout.pairs(refined, data, noise, max_rows, rng, seed, fewest=MIN_ROWS, purpose="tell the power")
    seen = Bar(refined.proposal.observations(x)[0], unit="row", desc="pooling", disable=not progress)
    parts = [_evaluated(refined, *pair, draws, rng) for pair in zip(theta, seen, strict=True)]
    found = best(Evaluated(*map(np.stack, zip(*parts, strict=True))), round(time.perf_counter() - began, 1))
    options = {"effective": refined.effective, "cap": refined.cap, "power": found.power}
    return type(refined)(refined.proposal, refined.likelihood, **options, pool=found)


def require_exact(posterior: Any) -> None:
    """`OptionError` where its density is not one of theta alone, to the last digit."""
    if posterior.density != "exact":
        raise OptionError(
            f"a density of kind {posterior.density!r} cannot be pooled with a likelihood, which has a power of 1 then: "
            "give a flow."
        )


def _evaluated(refined: Any, truth: Array, x: Any, draws: int, rng: np.random.Generator) -> Evaluated:
    posterior, (first, second) = refined.proposal, (int(s) for s in rng.integers(2**63, size=2))
    wide = refined.prior.draw(round(SHARE_OF_PRIOR * draws), rng)
    near, log_near = posterior.proposals(draws - len(wide), x, first)
    other = np.concatenate([wide, truth[None]])
    theta = np.concatenate([near, other])
    log_q = np.concatenate([log_near, posterior.proposal_density(other, x, second)])
    log_p, share = refined.prior.log_prob(theta), len(wide) / draws
    log_l = refined.evaluate(theta, x)
    _require_density(refined.names, truth, posterior=log_q, prior=log_p, likelihood=log_l)
    return Evaluated(log_l + log_p, log_q, np.logaddexp(np.log1p(-share) + log_q, np.log(share) + log_p))


def _require_density(names: Sequence[str], truth: Array, **values: Array) -> None:
    """`DataError` where one is NaN, or zero at the truth, which is last."""
    for name, value in values.items():
        if np.isnan(value).any() or value[-1] == -np.inf:
            at = ", ".join(f"{n} = {v:g}" for n, v in zip(names, truth, strict=True))
            raise DataError(f"the {name} gives no density to a held-out simulation of {at}: it cannot be pooled.")


def gains(power: float, at: Evaluated) -> Array:
    """Ln r - ln q at each truth (R,)."""
    log_r = mixed(at.log_joint, at.log_q, power)
    log_c = np.logaddexp.reduce(log_r - at.log_g, axis=1) - np.log(log_r.shape[1])
    return log_r[:, -1] - log_c - at.log_q[:, -1] if power else np.zeros(len(log_c))


def best(at: Evaluated, seconds: float = 0.0) -> Pool:
    """The power from 0 to 1 with the largest mean gain, and what it gains."""
    search = scipy.optimize.minimize_scalar(
        lambda power: -gains(power, at).mean(), bounds=(0, 1), method="bounded", options={"xatol": 1e-3}
    )
    power = max((0.0, 1.0, round(float(search.x), 3)), key=lambda one: gains(one, at).mean())
    some, whole = gains(power, at), gains(1.0, at)
    root = np.sqrt(len(some))
    figures = some.mean(), some.std() / root, whole.mean(), whole.std() / root
    gain, error, whole_gain, whole_error = (round(float(value), 4) for value in figures)
    return Pool(power, gain, error, whole_gain, whole_error, len(some), seconds)
