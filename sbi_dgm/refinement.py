r"""Importance refinement: a posterior that is nearly right, made right by a likelihood, without MCMC.

With draws of an amortized posterior q and, as a twentieth of them, of the prior p, the mixture that they come from is
g = 0.95 q + 0.05 p, and their weights for the posterior L p / Z are

.. math::
    w_i = \frac{L(\theta_i)\, p(\theta_i)}{g(\theta_i)}, \qquad
    \hat Z = \frac{1}{M} \sum_i w_i, \qquad
    \mathrm{ESS} = \frac{(\sum_i w_i)^2}{\sum_i w_i^2}

(Hesterberg 1995, doi:10.1080/00401706.1995.10484303; Owen 2013, "Monte Carlo theory, methods and examples", ch. 9; for
amortized posteriors Dax et al. 2023, arXiv:2210.05686). The prior's share keeps weights below 20 L, and hits now and
then what q has missed; `sbi_dgm.pareto` sees it by the weights' tail. Z is unbiased, and ln Z has the standard error
sqrt(1 / ESS - 1 / M). Draws are proposals, drawn again in proportion to their weights: i comes n w_i / sum w times,
rounded up or down (Madow 1949), so that two equal draws appear only where a weight is above 1 / n.

A proposal that knows its density only jointly with a hidden w, q(theta, w), serves as well: with r(w | theta) any
density, L p r / g on the larger space has the same evidence and, theta alone, the same posterior.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike
from tqdm import tqdm

from sbi_dgm import pareto
from sbi_dgm.errors import ObservationError, OptionError
from sbi_dgm.importance import SHARE_OF_PRIOR, effective_size, systematic
from sbi_dgm.priors import Prior
from sbi_dgm.samples import Samples
from sbi_dgm.seeds import fresh, numpy_generator
from sbi_dgm.simulator import Simulator
from sbi_dgm.univariate import Array

BLOCK = 2**14  # proposals between two looks at the effective size
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

    def proposals(self, n: int, x: Any, seed: int) -> tuple[Array, Array]:
        """n draws (n, D) of one observation, and ln q of each (n,)."""
        ...

    def proposal_density(self, theta: Array, x: Any, seed: int) -> Array:
        """ln q (n,) of given theta (n, D), of the same kind as that of `proposals`."""
        ...

    def observations(self, x: Any) -> tuple[list[Any], bool]:
        """Single observations, and whether x was one without its axis."""
        ...


@dataclass(frozen=True, eq=False)
class Weighted:
    """Weighted proposals for one observation, and how far they can be trusted.

    Attributes:
        theta: (M, D).
        log_weight: (M,), ln of L p / g.
        asked: the effective size that was asked for.

    """

    theta: Array
    log_weight: Array
    asked: float

    @property
    def effective(self) -> float:
        """(sum w)^2 / sum w^2: equal weights that would be as good."""
        return effective_size(np.exp(self.log_weight - self.log_weight.max()))

    @property
    def log_evidence(self) -> float:
        """ln Z, Z the integral of likelihood times prior."""
        return float(np.logaddexp.reduce(self.log_weight) - np.log(len(self.log_weight)))

    @property
    def log_evidence_error(self) -> float:
        """Standard error of `log_evidence`."""
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
        """One sentence: effective size, proposals, whether that is enough, and what Pareto's k means."""
        count, k = len(self.log_weight), self.pareto_k
        end = "as asked for" if self.reached else f"{self.asked:.0f} were asked for: the cap of proposals was reached"
        return (
            f"{self.effective:.0f} of {count} proposals effective ({end}); Pareto k = {k:.2f}, "
            f"{pareto.meaning(k, count)}; ln Z = {self.log_evidence:.3f} +- {self.log_evidence_error:.3f}."
        )

    @property
    def trusted(self) -> bool:
        """Whether the effective size was reached and Pareto's k is that of weights of use."""
        return self.reached and not self.pareto_k > pareto.bound(len(self.log_weight))

    def distinct(self, n: int) -> float:
        """How many of n draws are expected to be different proposals: the sum of min(1, n w_i / sum w)."""
        share = np.exp(self.log_weight - np.logaddexp.reduce(self.log_weight))
        return float(np.minimum(1, n * share).sum())

    def draw(self, n: int, rng: np.random.Generator) -> Array:
        """n proposals (n, D) in proportion to their weights."""
        return self.theta[systematic(np.exp(self.log_weight - self.log_weight.max()), n, rng)]


class Refined:
    """A posterior refined by a likelihood: amortized still, each observation costs its proposals. Made by `refined`.

    Attributes:
        density: "unnormalised": `log_prob` is ln L + ln p, which lacks the evidence that `weigh` estimates.

    """

    density = "unnormalised"

    def __init__(self, proposal: Proposal, log_likelihood: LogLikelihood, *, effective: float, cap: int) -> None:
        if not 0 < effective <= 1e9 or cap < BLOCK:
            raise OptionError(f"effective = {effective:g}, cap = {cap}: give effective > 0 and cap >= {BLOCK}.")
        self.proposal, self.log_likelihood, self.effective, self.cap = proposal, log_likelihood, effective, cap
        self.prior = proposal.require_prior("refinement")

    @property
    def names(self) -> list[str]:
        """Names of the parameters."""
        return self.proposal.names

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
        theta, log_weight = [], []
        while True:
            more = self._proposals(x, rng)
            theta.append(more[0])
            log_weight.append(more[1])
            found = Weighted(np.concatenate(theta), np.concatenate(log_weight), self.effective)
            if not np.isfinite(found.log_weight.max()):
                raise ObservationError(f"the likelihood of x is zero at all {len(found.theta)} proposals: check x.")
            if found.reached or len(found.theta) + BLOCK > self.cap:
                return found

    def _proposals(self, x: Any, rng: np.random.Generator) -> tuple[Array, Array]:
        """BLOCK proposals and ln of their weights."""
        few = round(SHARE_OF_PRIOR * BLOCK)
        first, second = (int(s) for s in rng.integers(2**63, size=2))
        near, log_near = self.proposal.proposals(BLOCK - few, x, first)
        wide = self.prior.draw(few, rng)
        log_q = np.concatenate([log_near, self.proposal.proposal_density(wide, x, second)])
        theta = np.concatenate([near, wide])
        log_prior = self.prior.log_prob(theta)
        log_g = np.logaddexp(np.log(1 - few / BLOCK) + log_q, np.log(few / BLOCK) + log_prior)
        return theta, self._likelihood(theta, x) + log_prior - log_g

    def _likelihood(self, theta: Array, x: Any) -> Array:
        value = np.asarray(self.log_likelihood(theta, x), np.float64)
        if value.shape != theta.shape[:1]:
            raise ObservationError(f"the likelihood gave shape {value.shape} for {len(theta)} theta: one number each.")
        bad = ~(value < np.inf)
        if bad.any():
            where = int(np.argmax(bad))
            named = ", ".join(f"{n} = {v:g}" for n, v in zip(self.names, theta[where], strict=True))
            raise ObservationError(f"the log-likelihood is {value[where]} at {named}: repair it, or check x.")
        return value

    def sample(
        self,
        n: int,
        x: Any,
        *,
        seed: int | None = None,
        progress: bool = False,
        report: Callable[[str], object] | None = None,
    ) -> Samples:
        """Draws of the refined posterior: (n, D) for one observation, (B, n, D) for a stack.

        Args:
            n: draws for each observation; two are equal where a proposal weighs more than 1 / n.
            x: as for the posterior.
            seed: None draws a fresh one.
            progress: show a progress bar.
            report: gets a sentence for each observation: effective size, Pareto's k, evidence.

        Warns:
            where the effective size was not reached, or Pareto's k says that weights are of no use.

        """
        rows, single = self.proposal.observations(x)
        rng, drawn = numpy_generator(fresh(seed)), []
        for i, row in enumerate(tqdm(rows, desc="refining", disable=not progress)):
            found = self._weigh(row, rng)
            drawn.append(found.draw(n, rng))
            sentence = f"observation {i}: {found.distinct(n):.0f} of {n} draws are different; {found.verdict}"
            if report is not None:
                report(sentence)
            if not found.trusted:
                warnings.warn(sentence, stacklevel=2)
        return Samples.of(self.prior, drawn[0] if single else np.stack(drawn))

    def log_prob(self, theta: ArrayLike, x: Any) -> Array:
        """ln L(theta) + ln p(theta) for one observation, (S, D) -> (S,): the posterior's, but for `log_evidence`."""
        theta = np.atleast_2d(np.asarray(theta, np.float64))
        log_prior, result = self.prior.log_prob(theta), np.full(len(theta), -np.inf)
        inside = np.isfinite(log_prior)
        result[inside] = self._likelihood(theta[inside], self._one(x)) + log_prior[inside]
        return result


def refined(proposal: Proposal, likelihood: Any, *, effective: float, cap: int = CAP) -> Refined:
    """A posterior refined by something with `log_likelihood(theta, x)`, or by such a function."""
    function: LogLikelihood = getattr(likelihood, "log_likelihood", likelihood)
    if isinstance(function, Simulator):
        raise OptionError(f"the simulator {function.name!r} has no log_likelihood: learn one (learn='likelihood').")
    if not callable(function):
        raise OptionError(f"{likelihood!r} is no likelihood: give a function (theta, x) -> ln p, or a Likelihood.")
    return Refined(proposal, function, effective=effective, cap=cap)
