r"""What a benchmark measures of a posterior, given draws of the exact one.

Each score of `SCORES` takes the `Evidence` at all observations, draws p of the exact posterior and q of the judged
one, (B, S, D), and gives a number for each observation, or None where the task or the method cannot give it. Lower is
better, 0.5 perfect for `c2st`, 0 for distances, 1 for `width`; `log_prob` is the density's own.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from sbi_dgm.benchmark.tasks import Observed, stream
from sbi_dgm.data.columns import usable_rows
from sbi_dgm.diagnostics import calibration, distances
from sbi_dgm.diagnostics.c2st import c2st, c2st_forest
from sbi_dgm.diagnostics.c2st_batched import c2st_batched
from sbi_dgm.simulator import fitted
from sbi_dgm.univariate import Array

TRUTHS, PREDICTED, PROJECTED = 2, 3, 4  # streams of random numbers
DENSITIES, FEW = 1000, 100  # draws of p at which a Kullback-Leibler divergence is taken; FEW where ln q is no formula
KERNEL = 2000  # draws of each that a kernel compares
PREDICTIVE = 1000  # draws of q at which to simulate
RANKED = 100  # draws that rank a truth


class Evidence(NamedTuple):
    """What there is to judge by: the task, its observations, the posterior, and draws (B, S, D) of both."""

    task: Any
    at: Observed
    posterior: Any
    reference: Array
    draws: Array
    seed: int
    device: str


def has_density(posterior: Any) -> bool:
    """Whether its `log_prob` is there, normalised, and costs less than draws."""
    return hasattr(posterior, "log_prob") and getattr(posterior, "density", "exact") in ("exact", "ode", "bound")


def _each(function: Callable[[Array, Array], float], evidence: Evidence, draws: int | None = None) -> Array:
    pairs = zip(evidence.reference[:, :draws], evidence.draws[:, :draws], strict=True)
    return np.array([function(p, q) for p, q in pairs])


def _batched(evidence: Evidence) -> Array:
    return c2st_batched(evidence.reference, evidence.draws, device=evidence.device)


def _sliced(evidence: Evidence) -> Array:
    rng = stream(PROJECTED, seed=evidence.seed)
    return _each(lambda p, q: distances.sliced_wasserstein(p, q, rng=rng), evidence)


def _width(evidence: Evidence) -> Array:
    return _each(lambda p, q: float(np.sqrt(distances.variance_ratio(p, q)).mean()), evidence)


def _divergence(evidence: Evidence) -> Array | None:
    if not (hasattr(evidence.task, "posterior_log_prob") and has_density(evidence.posterior)):
        return None
    exact = getattr(evidence.posterior, "density", "exact") == "exact"
    theta = evidence.reference[:, : DENSITIES if exact else FEW]
    log_p = np.stack([evidence.task.posterior_log_prob(t, evidence.at.plain(i)) for i, t in enumerate(theta)])
    log_q = evidence.posterior.log_prob(theta, evidence.at.x)
    return np.array([distances.kl_divergence(p, q)[0] for p, q in zip(log_p, log_q, strict=True)])


def _log_prob(evidence: Evidence) -> Array | None:
    if not has_density(evidence.posterior):
        return None
    return evidence.posterior.log_prob(evidence.at.theta[:, None], evidence.at.x)[:, 0]


def _predicted(evidence: Evidence) -> Array:
    rng = stream(PREDICTED, seed=evidence.seed)
    return np.array([_distance(evidence, i, rng) for i in range(len(evidence.draws))])


def _distance(evidence: Evidence, i: int, rng: np.random.Generator) -> float:
    theta = evidence.draws[i, :PREDICTIVE]
    x = fitted(evidence.task.observables, evidence.task(theta, rng), len(theta))
    seen = [np.ravel(values[i]) for values in evidence.at.x.values()]
    flat = np.concatenate([values.reshape(len(theta), -1) for values in x.values()], axis=1)
    return distances.predictive_distance(flat, np.concatenate(seen))


SCORES: Mapping[str, Callable[[Evidence], Array | None]] = MappingProxyType(
    {
        "c2st": _batched,
        "c2st_sklearn": partial(_each, c2st),
        "c2st_forest": partial(_each, c2st_forest),
        "mmd": partial(_each, distances.mmd, draws=KERNEL),
        "sliced_wasserstein": _sliced,
        "mean_error": partial(_each, distances.mean_error),
        "width": _width,
        "kl": _divergence,
        "log_prob": _log_prob,
        "predictive_distance": _predicted,
    }
)
USUAL = tuple(name for name in SCORES if name not in ("c2st_sklearn", "c2st_forest"))


def at_observations(evidence: Evidence, names: tuple[str, ...]) -> dict[str, list[float | None]]:
    """The scores, and how many draws of either set are distinct and how many they are worth (Kish)."""
    found = {name: SCORES[name](evidence) for name in names}
    for kind, sets in (("reference", evidence.reference), ("drawn", evidence.draws)):
        counts = [distances.effective_draws(draws) for draws in sets]
        found[f"{kind}_distinct"], found[f"{kind}_effective"] = np.array(counts, float).T
    return {name: [_plain(v) for v in values] for name, values in found.items() if values is not None}


def _plain(value: float) -> float | None:
    """A number as JSON has it; None where it is not finite."""
    return float(value) if np.isfinite(value) else None


def at_truths(task: Any, posterior: Any, rows: int, seed: int) -> dict[str, float]:
    """Scores of fresh simulations: mean ln q(theta | x) of the truth with its standard error, error of the ranks.

    Simulations that fail are left out; `truths` says how many are left.
    """
    rng = stream(TRUTHS, seed=seed)
    theta = task.prior.draw(rows, rng)
    x = fitted(task.observables, task(theta, rng), rows)
    valid = np.all([usable_rows(values, task.observables[name].optional) for name, values in x.items()], axis=0)
    theta, x = theta[valid], {name: values[valid] for name, values in x.items()}
    draws = posterior.sample(RANKED, x, seed=seed).array
    ranks = calibration.ranks(theta, draws, rng)
    found = {"calibration_error": float(np.mean([calibration.calibration_error(u) for u in ranks.T]))}
    if has_density(posterior):
        log_q = posterior.log_prob(theta[:, None], x)[:, 0]
        found |= {
            "expected_log_prob": float(log_q.mean()),
            "expected_log_prob_error": float(log_q.std() / len(log_q) ** 0.5),
        }
    return found | {"truths": len(theta)}
