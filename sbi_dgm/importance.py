r"""Posteriors by importance resampling: exact in the limit of many proposals, wherever the likelihood is known.

In the prior's coordinates z the prior is N(0, I), and the posterior is pi(z) = L(z) N(z; 0, I) / Z.

1. *Tempering* (Del Moral, Doucet and Jasra 2006, doi:10.1111/j.1467-9868.2006.00553.x; Chopin and Papaspiliopoulos
   2020, ch. 17) leads particles through L^lambda N, lambda from 0 to 1. Each lambda is the largest that keeps half
   of the particles effective; they are resampled, then moved by Metropolis steps along differences of two others
   (ter Braak 2006, doi:10.1007/s11222-006-8769-1). Where this is rough, what follows is not biased by it; but a
   mode that neither the particles nor the prior's share of the proposals ever hit is lost unnoticed.
2. *The proposal* q is 95 % a mixture of Student's t fitted to weighted points (`sbi_dgm.mixtures`), and 5 % the
   prior, which keeps the weights below 20 L. Fitting to the last round's weighted proposals lowers KL(pi | q):
   population Monte Carlo (Cappe et al. 2004, doi:10.1198/106186004X12803; 2008, arXiv:0710.4242).
3. *Weights* w_i = L(z_i) N(z_i) / q(z_i) of many proposals give the evidence Z = mean of w, and the effective size.
4. *Draws* are n different proposals, i among them with probability n w_i / sum w (`sbi_dgm.resampling`). Where that
   is above 1 it is cut to 1: the mass lost so is told, and bounded.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sbi_dgm.errors import ObservationError
from sbi_dgm.mixtures import COMPONENTS, Mixture, fit_mixture
from sbi_dgm.priors import Prior
from sbi_dgm.resampling import distinct, effective_size, largest_power, relative, systematic
from sbi_dgm.univariate import EDGE, Array, standard_normal_log_prob

PARTICLES, MOVES, STAGES = 1000, 8, 200  # of the tempering
SHARE_OF_PRIOR = 0.05  # of the proposal: it guards the tails
PROPOSALS, FEWEST, ROUNDS = 14, 4000, 3  # for each draw, at least, and how often at most
PILOTS, PILOT = 2, 6000  # rounds that adapt the proposal, and their proposals
CAPPED = 1e-3  # the largest share of the posterior that may be cut from weights above 1 / n

Function = Callable[[Array], Array]


@dataclass(frozen=True)
class Record:
    """How well draws represent their posterior.

    Args:
        effective: effective size of the weighted proposals.
        proposals: how many they were.
        log_evidence: ln Z, Z the integral of the likelihood over the prior.
        log_evidence_error: its standard error.
        capped: share of the posterior lost because no proposal may be drawn twice.

    """

    effective: float
    proposals: int
    log_evidence: float
    log_evidence_error: float
    capped: float


def posterior_draws(
    log_likelihood: Callable[[Array, Array], Array],
    prior: Prior,
    x: Array,
    n: int,
    rng: np.random.Generator,
    *,
    rough: Callable[[Array, Array], Array] | None = None,
    least: float = 0.25,
) -> tuple[Array, Record]:
    """n distinct draws (n, D) of the posterior of any x, and how good they are.

    The draws come from 14 n weighted proposals, of which `least` must be effective: 3.5 for each draw.

    Args:
        log_likelihood: ln p(x | theta): (B, D), x -> (B,); -inf where x is impossible.
        prior: with coordinates under which it is N(0, I).
        x: the observation.
        n: number of draws.
        rng: the only source of randomness.
        rough: a quicker likelihood that leads to the posterior; weights always come from `log_likelihood`.
        least: smallest effective share of the proposals.

    Raises:
        ObservationError: x is not finite, or no parameters under the prior explain it, or those that do lie beyond
            eight of its sd, or the proposals do not reach `least` after they were adapted again.

    """
    if not np.isfinite(x).all():
        raise ObservationError(f"x = {x} is not finite: give numbers.")
    exact, quick = (_in_coordinates(f, prior, x) for f in (log_likelihood, rough or log_likelihood))
    z = _temper(quick, len(prior), x, rng)
    proposal = fit_mixture(z, np.zeros(len(z)), rng)
    for _ in range(PILOTS):
        proposal = fit_mixture(*_weighted(quick, proposal, PILOT, rng), rng)
    for _ in range(ROUNDS):
        z, log_weight = _weighted(exact, proposal, max(PROPOSALS * n, FEWEST), rng)
        record = _judge(log_weight, n)
        if record.effective >= least * record.proposals and record.capped <= CAPPED:
            chosen = z[distinct(log_weight, n, rng)]
            _require_within(chosen, x)
            return prior.coordinates.inverse(chosen), record
        proposal = fit_mixture(z, log_weight, rng)
    raise ObservationError(
        f"x = {x}: {record.effective:.0f} of {record.proposals} proposals are effective, a share of {least:g} is"
        f" needed, and {record.capped:.1e} of the posterior is cut, {CAPPED:g} may be: the posterior is no mixture of"
        f" up to {COMPONENTS[-1]} Student's t. Lower `least`, or sample it by other means."
    )


def _require_within(z: Array, x: Array) -> None:
    """`ObservationError` where draws pile up at the |z| beyond which there are no proposals."""
    share = float((np.abs(z) > EDGE - 0.1).any(1).mean())
    if share > CAPPED:
        raise ObservationError(
            f"x = {x}: {share:.1%} of its posterior lie {EDGE - 0.1:.1f} sd and more from the middle of the prior, "
            "whose tails end there: give it a wider prior, or check x."
        )


def _judge(log_weight: Array, n: int) -> Record:
    size, total, effective = len(log_weight), np.logaddexp.reduce(log_weight), effective_size(relative(log_weight))
    error = np.sqrt(max(1 / effective - 1 / size, 0))
    capped = np.maximum(np.exp(log_weight - total) - 1 / n, 0).sum()
    return Record(effective, size, float(total - np.log(size)), float(error), float(capped))


def _weighted(f: Function, mixture: Mixture, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """n proposals (n, D), one in twenty from the prior, and the logarithms (n,) of their weights."""
    few = int(np.ceil(SHARE_OF_PRIOR * n))
    z = np.concatenate([mixture.sample(n - few, rng), rng.standard_normal((few, mixture.mean.shape[1]))])
    prior = standard_normal_log_prob(z)
    proposal = np.logaddexp(np.log1p(-few / n) + mixture.log_prob(z), np.log(few / n) + prior)
    return z, f(z) + prior - proposal


def _in_coordinates(log_likelihood: Callable[[Array, Array], Array], prior: Prior, x: Array) -> Function:
    """ln L at z (B, D) instead of theta; -inf where |z| > 8.2, where float64 has no prior left."""

    def at(z: Array) -> Array:
        result, inside = np.full(len(z), -np.inf), (np.abs(z) <= EDGE).all(-1)
        theta = prior.coordinates.inverse(z[inside])
        result[inside] = value = log_likelihood(theta, x)
        if not (value < np.inf).all():
            bad = int(np.argmin(value < np.inf))
            raise ObservationError(f"x = {x}: ln p(x | theta) is {value[bad]} at theta = {theta[bad]}: check both.")
        return result

    return at


def _temper(log_likelihood: Function, dimension: int, x: Array, rng: np.random.Generator) -> Array:
    """Particles (P, D) near the posterior."""
    z, value, power = *_possible(log_likelihood, dimension, x, rng), 0.0
    for _ in range(STAGES):
        step = largest_power(value, 1 - power, len(z) / 2)
        power += step
        rows = systematic(relative(step * value), len(z), rng)
        z, value = _move(z[rows], value[rows], power, log_likelihood, rng)
        if power >= 1:
            return z
    raise ObservationError(f"x = {x}: tempering came to {power:.1e} of the likelihood in {STAGES} stages: check x.")


def _possible(log_likelihood: Function, dimension: int, x: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Particles of the prior, all with finite likelihood, and its logarithm."""
    count = max(PARTICLES, 50 * (dimension + 1))
    z = rng.standard_normal((count, dimension))
    value = log_likelihood(z)
    for _ in range(50):
        if (finite := np.isfinite(value)).sum() >= count // 20:
            rows = rng.choice(np.flatnonzero(finite), count)
            return (z, value) if finite.all() else (z[rows], value[rows])
        more = rng.standard_normal((count, dimension))
        z, value = np.concatenate([z[finite], more]), np.concatenate([value[finite], log_likelihood(more)])
    raise ObservationError(
        f"x = {x} is (nearly) impossible under the prior: {finite.sum()} of {50 * count} draws allow it."
    )


def _move(
    z: Array, value: Array, power: float, log_likelihood: Function, rng: np.random.Generator
) -> tuple[Array, Array]:
    """Metropolis steps along differences of other particles, until each has moved once on average."""
    accepted = 0.0
    for _ in range(MOVES):
        first, second = rng.integers(len(z), size=(2, len(z)))
        length = np.where(rng.random(len(z)) < 0.1, 1.0, 2.38 / np.sqrt(2 * z.shape[1]))[:, None]
        jitter = 1e-3 * z.std(0) * rng.standard_normal(z.shape)
        to = z + length * (z[first] - z[second]) + jitter
        new = log_likelihood(to)
        log_ratio = power * (new - value) - 0.5 * (to**2 - z**2).sum(-1)
        take = np.log(rng.random(len(z))) < log_ratio
        z, value = np.where(take[:, None], to, z), np.where(take, new, value)
        accepted += take.mean()
        if accepted >= 1:
            break
    return z, value
