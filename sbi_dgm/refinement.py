r"""Importance refinement: a posterior that is nearly right, made right by a likelihood, without MCMC.

Proposals come from an amortized posterior q, a twentieth of them from the prior p, and, after the first block, half of
them from a mixture t of Student's t that is fitted to the weighted proposals so far (`sbi_dgm.mixtures`), in the
prior's coordinates. Each is weighed by all that it might have come from, in the shares of the whole:

.. math::
    w_i = \frac{L(\theta_i)\, p(\theta_i)}{\alpha_q q(\theta_i) + \alpha_p p(\theta_i)
    + \sum_r \alpha_r t_r(\theta_i)}, \qquad
    \hat Z = \frac{1}{M} \sum_i w_i, \qquad
    \mathrm{ESS} = \frac{(\sum_i w_i)^2}{\sum_i w_i^2}

(the balance heuristic: Veach and Guibas 1995, doi:10.1145/218380.218498; with fitted parts Cornuet et al. 2012,
arXiv:0907.1254; for amortized posteriors Dax et al. 2023, arXiv:2210.05686). The prior's share keeps weights below 20 L
and hits now and then what q has missed; `sbi_dgm.pareto` sees it by the weights' tail. ln Z has the standard error
sqrt(1 / ESS - 1 / M). Draws are proposals, drawn again in proportion to their weights: i comes n w_i / sum w times,
rounded up or down (Madow 1949), so that two equal draws appear only where a weight is above 1 / n.

A proposal that knows its density only jointly with a hidden h, q(theta, h), serves as well: with s(h | theta) any
density, L p s over the mixture of q(theta, h) with the other parts times s has, on the larger space, the same evidence
and, for theta alone, the same posterior.

A learned likelihood need not have the whole say: with a power below 1, q^{1 - power} (L p)^power stands for L p
(`sbi_dgm.pooling`), and the constant is no evidence.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from sbi_dgm import pareto, pooling
from sbi_dgm.data.observed import parameters_of, stacked
from sbi_dgm.errors import ObservationError, OptionError
from sbi_dgm.kinds import floats, is_a, number, whole
from sbi_dgm.priors import Prior
from sbi_dgm.progress import Bar
from sbi_dgm.proposals import BLOCK, Proposals
from sbi_dgm.resampling import effective_size, relative, systematic
from sbi_dgm.samples import Samples
from sbi_dgm.seeds import fresh, numpy_generator
from sbi_dgm.simulator import Simulator
from sbi_dgm.trust import Trust, told
from sbi_dgm.univariate import Array

CAP = 2**20  # proposals at most, for each observation
LogLikelihood = Callable[[Array, Any], ArrayLike]


class Proposal(Protocol):
    """What is refined: a posterior with a density."""

    @property
    def names(self) -> list[str]:
        """Of the parameters."""
        ...

    def require_prior(self, purpose: str) -> Prior:
        """The prior, or `PriorError`."""
        ...

    @property
    def density(self) -> str:
        """What `proposals` gives of it, as an estimator's `density`; only "exact" ones have powers below 1."""
        ...

    def proposals(self, n: int, x: Any, seed: int) -> tuple[Array, Array]:
        """n draws (n, D) of one observation, and ln q of each (n,)."""
        ...

    def proposal_density(self, theta: Array, x: Any, seed: int) -> Array:
        """ln q (n,) of given theta (n, D), of the same kind as that of `proposals`."""
        ...

    def observations(self, x: Any) -> tuple[list[Any], bool]:
        """Single observations, and whether x was one without its axis."""
        ...

    def trust(self, x: Any) -> Trust | None:
        """Whether x is like the simulations."""
        ...


@dataclass(frozen=True, eq=False)
class Weighted:
    """Weighted proposals for one observation, and how far they can be trusted.

    Attributes:
        theta: (M, D).
        log_weight: (M,), ln of L p / g; with a power below 1 of the pool over g.
        log_target: (M,), ln of L p, or of the pool.
        asked: the effective size that was asked for.
        k_alone: Pareto's k of the first block, before any mixture was fitted: it judges the posterior itself.
        power: of the likelihood.

    """

    theta: Array
    log_weight: Array
    log_target: Array
    asked: float
    k_alone: float
    power: float = 1.0

    @property
    def effective(self) -> float:
        """(sum w)^2 / sum w^2, the number of equal weights that would be as good."""
        return effective_size(relative(self.log_weight))

    @property
    def log_constant(self) -> float:
        """ln of the integral of exp(log_target) over theta, which makes it a density."""
        return float(np.logaddexp.reduce(self.log_weight) - np.log(len(self.log_weight)))

    @property
    def log_evidence(self) -> float:
        """ln Z, Z the integral of likelihood times prior; `OptionError` where the likelihood's power is below 1."""
        if self.power < 1:
            raise OptionError(f"a likelihood with a power of {self.power:g} has no evidence: refine with power=1.")
        return self.log_constant

    @property
    def log_evidence_error(self) -> float:
        """Standard error of `log_evidence`, and of `log_constant`."""
        return float(np.sqrt(max(1 / self.effective - 1 / len(self.log_weight), 0.0)))

    @property
    def pareto_k(self) -> float:
        """The shape of the weights' tail; see `verdict`."""
        return pareto.shape(self.log_weight)

    @property
    def reached(self) -> bool:
        """Whether the effective size is what was asked for."""
        return self.effective >= self.asked

    @property
    def verdict(self) -> str:
        """A sentence on effective size, proposals, whether that is enough, and what Pareto's k means."""
        count, k = len(self.log_weight), self.pareto_k
        end = "as asked for" if self.reached else f"{self.asked:.0f} were asked for: the cap of proposals was reached"
        alone = pareto.meaning(self.k_alone, BLOCK).split(":")[0]
        return (
            f"{self.effective:.0f} of {count} proposals effective ({end}); Pareto k = {k:.2f}, "
            f"{pareto.meaning(k, count)} (of the posterior alone: k = {self.k_alone:.2f}, {alone}); {self._constant}."
        )

    @property
    def _constant(self) -> str:
        if self.power < 1:
            return f"the likelihood has a power of {self.power:g}"
        return f"ln Z = {self.log_evidence:.3f} +- {self.log_evidence_error:.3f}"

    @property
    def trusted(self) -> bool:
        """Whether the effective size was reached and Pareto's k is that of weights of use."""
        return self.reached and not self.pareto_k > pareto.bound(len(self.log_weight))

    def distinct(self, n: int) -> float:
        """How many of n draws are expected to be different proposals: the sum of min(1, n w_i / sum w)."""
        share = np.exp(self.log_weight - np.logaddexp.reduce(self.log_weight))
        return float(np.minimum(1, n * share).sum())

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """n proposals (n, D) in proportion to their weights, and the ln of their density (n,)."""
        rows = systematic(relative(self.log_weight), n, rng)
        return self.theta[rows], self.log_target[rows] - self.log_constant


class Refined:
    """A posterior refined by a likelihood: amortized still, each observation costs its proposals. Made by `refined`.

    Attributes:
        proposal: the posterior that is refined.
        likelihood: what it is refined by.
        power: of the likelihood; below 1 the posterior keeps a say (`sbi_dgm.pooling`).
        pool: what told the power; None where it was given.
        density: "estimated": the constant that makes `log_target` a density comes from the weights.

    """

    density = "estimated"
    pooled = pooling.pooled  # a method, told of there

    def __init__(
        self,
        proposal: Proposal,
        likelihood: Any,
        *,
        effective: float,
        cap: int = CAP,
        power: float = 1.0,
        pool: pooling.Pool | None = None,
    ) -> None:
        effective, cap, power = number("effective", effective), whole("cap", cap), number("power", power)
        if not (0 < effective <= 1e9 and cap >= BLOCK and 0 <= power <= 1):
            given = f"effective = {effective:g}, cap = {cap}, power = {power:g}"
            raise OptionError(f"{given}: give effective > 0, cap >= {BLOCK}, and for power give a number from 0 to 1.")
        if power < 1:
            pooling.require_exact(proposal)
        self.proposal, self.likelihood, self.effective, self.cap = proposal, likelihood, effective, cap
        self.power, self.pool = power, pool
        self.log_likelihood, self._order = _function(likelihood), _order(proposal.names, likelihood)
        self.prior = proposal.require_prior("refinement")

    @property
    def names(self) -> list[str]:
        """Names of the parameters."""
        return self.proposal.names

    @property
    def record(self) -> dict[str, Any]:
        """How the posterior and the likelihood were trained, where that is known, and what told the power."""
        parts = {"posterior": self.proposal, "likelihood": self.likelihood}
        known = {name: part.record for name, part in parts.items() if hasattr(part, "record")}
        return known if self.pool is None else known | {"pool": self.pool._asdict()}

    def weigh(self, x: Any, *, seed: int | None = None) -> Weighted:
        """Weighted proposals for one observation, until enough are effective or the cap is reached.

        Raises:
            ObservationError: the likelihood is NaN or +inf somewhere, or zero at all proposals.

        """
        return self._weigh(self._one(x), numpy_generator(fresh(seed)))

    def _one(self, x: Any) -> Any:
        rows, single = self.proposal.observations(x)
        if not single:
            raise ObservationError(f"x holds {len(rows)} observations: weigh them one by one.")
        return rows[0]

    def _weigh(self, x: Any, rng: np.random.Generator) -> Weighted:
        pool, blocks, k_alone = Proposals(self.prior, self.power), 0, float("nan")
        while True:
            pool.add(*self._block(pool, x, rng))
            blocks, log_weight = blocks + 1, pool.log_weight()
            k_alone = pareto.shape(log_weight) if blocks == 1 else k_alone
            found = Weighted(pool.theta, log_weight, pool.log_target, self.effective, k_alone, self.power)
            if not np.isfinite(found.log_weight.max()):
                raise ObservationError(f"the likelihood of x is zero at all {len(found.theta)} proposals: check x.")
            if found.reached or len(found.theta) + BLOCK > self.cap:
                return found
            if blocks & (blocks - 1) == 0:
                pool.fit(rng)

    def _block(self, pool: "Proposals", x: Any, rng: np.random.Generator) -> tuple[Array, list[int], Array, Array]:
        """BLOCK proposals, how many come from q, the prior and the last mixture, their ln q, and ln L."""
        first, second = (int(s) for s in rng.integers(2**63, size=2))
        wide, fitted, inside = pool.draw(rng)
        near, log_near = self.proposal.proposals(BLOCK - len(wide) - len(fitted), x, first)
        other = np.concatenate([wide, fitted])
        theta = np.concatenate([near, other])
        log_q = np.concatenate([log_near, self.proposal.proposal_density(other, x, second)])
        value = self.evaluate(theta, x)
        value[BLOCK - len(fitted) :][~inside] = -np.inf
        return theta, [len(near), len(wide), len(fitted)], log_q, value

    def evaluate(self, theta: Array, x: Any) -> Array:
        """Ln L at theta (S, D) for one observation (S,), or `ObservationError` where it is NaN or +inf."""
        value = floats("the log-likelihood", self.log_likelihood(theta[:, self._order], x), ObservationError).copy()
        if value.shape != theta.shape[:1]:
            raise ObservationError(f"the likelihood gave shape {value.shape} for {len(theta)} theta: one number each.")
        for where in np.flatnonzero(~(value < np.inf))[:1]:
            named = ", ".join(f"{n} = {v:g}" for n, v in zip(self.names, theta[where], strict=True))
            raise ObservationError(f"the log-likelihood is {value[where]} at {named}: repair it, or check x.")
        return value

    def sample(
        self,
        n: int,
        x: Any,
        *,
        seed: int | None = None,
        log_prob: bool = False,
        progress: bool = False,
        report: Callable[[str], object] | None = None,
        strict: bool = False,
    ) -> Samples:
        """Draws of the refined posterior: (n, D) for one observation, (B, n, D) for a stack.

        Args:
            n: draws for each observation; two are equal where a proposal weighs more than 1 / n.
            x: as for the posterior.
            seed: None draws a fresh one.
            log_prob: keep the ln of each draw's density too.
            progress: show a progress bar.
            report: gets a sentence for each observation: effective size, Pareto's k, evidence.
            strict: refuse x where it is unlike the simulations of the posterior, as `Posterior.sample`.

        Warns:
            where the effective size was not reached, or Pareto's k says that weights are of no use: of a stack how
                often, and the first.

        """
        n = whole("n", n, 0)
        is_a("report", report, (Callable, type(None)), "a function of a sentence, or None")
        (rows, single), trust = self.proposal.observations(x), self.proposal.trust(x)
        told(trust, strict)
        rng, drawn, poor = numpy_generator(fresh(seed)), [], []
        for i, row in enumerate(Bar(rows, desc="refining", disable=not progress)):
            found = self._weigh(row, rng)
            drawn.append(found.draw(n, rng))
            sentence = f"observation {i}: {found.distinct(n):.0f} of {n} draws are different; {found.verdict}"
            if report is not None:
                report(sentence)
            if not found.trusted:
                poor.append(sentence)
        if poor:
            share = "" if single else f"the weights of {len(poor)} of {len(rows)} observations are of little use: "
            warnings.warn(share + poor[0], stacklevel=2)
        theta, log_q = drawn[0] if single else map(np.stack, zip(*drawn, strict=True))
        return Samples.of(self.prior, theta, log_q if log_prob else None, trust)

    def log_prob(self, theta: ArrayLike, x: Any, *, seed: int = 0) -> Array:
        """Ln of the density at theta, the constant of each observation estimated as `sample` does; -inf outside.

        Args:
            theta: for one observation (D,) or (S, D); for B of them (B, D), one each, or (B, S, D).
            x: as in `sample`.
            seed: of the proposals; the standard error that they leave is sqrt(1 / effective - 1 / M), 0.01 as it is.

        Returns:
            the shape of theta without its last axis.

        """
        (rows, single), theta = self.proposal.observations(x), parameters_of(theta, self.names)
        rng, points = numpy_generator(seed), stacked(theta, len(rows), single, len(self.names))
        log_constant = np.array([self._weigh(row, rng).log_constant for row in rows])
        log_target = np.stack([self._log_target(at, row) for at, row in zip(points, rows, strict=True)])
        return (log_target - log_constant[:, None]).reshape(theta.shape[:-1])

    def log_target(self, theta: ArrayLike, x: Any) -> Array:
        """ln L(theta) + ln p(theta) for one observation, or of the pool: (S, D) -> (S,), without any proposals.

        It is `log_prob` but for a constant, which is ln of the evidence where the likelihood has a power of 1.
        """
        x = self._one(x)
        return self._log_target(stacked(parameters_of(theta, self.names), 1, True, len(self.names))[0], x)

    def _log_target(self, theta: Array, x: Any) -> Array:
        log_prior, result = self.prior.log_prob(theta), np.full(len(theta), -np.inf)
        inside = np.isfinite(log_prior)
        log_joint = self.evaluate(theta[inside], x) + log_prior[inside]
        result[inside] = log_joint
        if self.power < 1 and inside.any():
            log_q = self.proposal.proposal_density(theta[inside], x, 0)
            result[inside] = pooling.mixed(log_joint, log_q, self.power)
        return result

    def fingerprint(self) -> str | None:
        """Of all that decides its draws; None where the likelihood is a function that has none."""
        parts = [getattr(part, "fingerprint", lambda: None)() for part in (self.proposal, self.likelihood)]
        return None if None in parts else f"{parts} {self.effective} {self.cap} {self.power}"


def _order(names: list[str], likelihood: Any) -> list[int]:
    """The places among a posterior's parameters of those that a likelihood takes; its own order if it names none."""
    known = list(getattr(likelihood, "names", getattr(getattr(likelihood, "prior", None), "names", names)))
    if set(known) != set(names):
        raise OptionError(
            f"the likelihood is of {known}, the posterior of {names}: refine a posterior of the same parameters, "
            "or, where only their names differ, give a function (theta, x) -> ln p."
        )
    return [names.index(name) for name in known]


def _function(likelihood: Any) -> LogLikelihood:
    """Its `log_likelihood(theta, x)`, or such a function itself."""
    function: LogLikelihood = getattr(likelihood, "log_likelihood", likelihood)
    if isinstance(function, Simulator):
        raise OptionError(f"the simulator {function.name!r} has no log_likelihood: learn one (learn='likelihood').")
    if not callable(function):
        raise OptionError(f"{likelihood!r} is no likelihood: give a function (theta, x) -> ln p, or a Likelihood.")
    return function
