"""The learned likelihood against known ones, and posteriors refined by true and by learned likelihoods.

    python benchmarks/likelihood.py [--only surrogate,slcp,true,learned] [--likelihoods flow,dropout,located]
        [--posterior dropout] [--folder runs] [--seeds 0]

10,000 simulations, of which 0.9 are trained on. Likelihoods and posteriors are a flow without dropout ("flow"), with
one of 0.1 ("dropout"), that one behind a learned location and scale ("located"), or one affine layer ("affine");
"affine x 4" is an ensemble of four; all else is default. Each run is trained once and kept in `--folder`, each cell
measured once: results go to `benchmarks/results/likelihood.json`, so that the same command goes on where it was
stopped. C2ST is sbibm's, by the batched twin, 10,000 draws against the task's own exact sampler, at the published
observations 1 to 5 (supernovae: the real data and four simulations). Needs the extra `benchmark`.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import sbi_dgm
from sbi_dgm import Flow, Likelihood, Located, Posterior
from sbi_dgm.benchmark.tasks import observed, task_named
from sbi_dgm.diagnostics.c2st_batched import c2st_batched
from sbi_dgm.simulator import find

RESULTS = Path(__file__).parent / "results" / "likelihood.json"
ESTIMATORS = {
    "flow": Flow(dropout=0.0),
    "dropout": Flow(dropout=0.1),
    "located": Located(Flow(dropout=0.1), dropout=0.0),
    "affine": Flow(map="affine", transforms=1, dropout=0.2),
}
SIMULATIONS, DRAWS, HELD_OUT, POINTS, COPIES = 10_000, 10_000, 10_000, 20, 100_000


def results() -> dict:
    """What has been measured so far."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def measured(key: str, measure: Callable[[], dict]) -> None:
    """Measure a cell that is not there yet."""
    if key in results():
        return
    start = time.perf_counter()
    found = measure() | {"seconds": round(time.perf_counter() - start, 1)}
    RESULTS.write_text(json.dumps(results() | {key: found}, indent=2) + "\n")
    print(key, json.dumps(found), flush=True)


def drawn(task: Any, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """n pairs (theta, x)."""
    theta = task.prior.sample(n, seed)
    x = task(theta, np.random.default_rng([seed, 1]))
    return theta, next(iter(x.values())) if isinstance(x, dict) else x


def trained(name: str, learn: str, estimator: str, seed: int, folder: Path) -> Any:
    """The posterior or likelihood of a task, from `folder` if it is there."""
    out = folder / f"{name}_{learn}_{estimator.replace(' ', '')}_{seed}"
    path, task = out / f"{learn}.safetensors", find(name)
    if not path.exists():
        theta, x = drawn(task, SIMULATIONS, seed)
        observable = next(iter(task.observables))
        data = sbi_dgm.Simulations.from_arrays(theta, {observable: x}, prior=task.prior)
        split = sbi_dgm.SplitRule(validation=0.1, test=0.0)
        chosen, _, members = estimator.partition(" x ")
        return sbi_dgm.fit(
            data,
            ESTIMATORS[chosen],
            learn=learn,  # type: ignore[call-overload]
            members=int(members or 1),
            split=split,
            seed=seed,
            out=out,
            resume=True,
            progress=False,
            device="cpu",
        )
    return Likelihood.load(path) if learn == "likelihood" else sbi_dgm.load(path)


def surrogate(name: str, likelihood: Likelihood) -> dict:
    """ln p - ln q at fresh pairs, and mean and covariance of draws at fresh theta beside the simulator's."""
    task = find(name)
    theta, x = drawn(task, HELD_OUT, 10**6)
    truth = np.array([float(task.log_likelihood(t[None], v)[0]) for t, v in zip(theta, x, strict=True)])
    gap = truth - likelihood.log_prob(x, theta)
    log_sd = float(np.log(x.std(0)).sum())
    moments = [compared(task, likelihood, t) for t in task.prior.sample(POINTS, 10**6 + 1)]
    found = {key: np.stack([m[key] for m in moments]) for key in moments[0]}
    return {
        "nats": round(float(gap.mean()), 4),
        "nats_error": round(float(gap.std() / np.sqrt(len(gap))), 4),
        "loss_standardised": round(float((gap - truth).mean()) - log_sd, 4),
        "truth_standardised": round(float(-truth.mean()) - log_sd, 4),
        "mean_off_in_sd": spread(found["mean"]),
        "sd_ratio": spread(found["sd"]),
        "sd_ratio_by_entry": spread(found["sd"].mean(0)),
        "covariance_off": spread(found["covariance"]),
        "mean_off_by_norm": spread(found["mean_by_norm"]),
        "covariance_off_by_norm": spread(found["covariance_by_norm"]),
    }


def compared(task: Any, likelihood: Likelihood, theta: np.ndarray) -> dict[str, Any]:
    """Moments of 100,000 draws of x each way: means in sd, ratios of sd, covariances in units of the sds' products."""
    rng = np.random.default_rng(0)
    exact = task(np.repeat(theta[None], COPIES, 0), rng)
    ours = np.asarray(likelihood.sample(theta, COPIES, seed=0))
    sd = exact.std(0)
    off = np.abs(np.cov(ours.T) - np.cov(exact.T)) / np.outer(sd, sd)
    return {
        "mean": np.abs(ours.mean(0) - exact.mean(0)) / sd,
        "sd": ours.std(0) / sd,
        "covariance": off,
        "mean_by_norm": np.linalg.norm(ours.mean(0) - exact.mean(0)) / np.linalg.norm(exact.mean(0)),
        "covariance_by_norm": np.linalg.norm(np.cov(ours.T) - np.cov(exact.T)) / np.linalg.norm(np.cov(exact.T)),
    }


def spread(values: np.ndarray) -> dict[str, float]:
    """Median and extremes."""
    return {
        name: round(float(f(values)), 3) for name, f in (("least", np.min), ("median", np.median), ("most", np.max))
    }


def observations(name: str) -> list[np.ndarray]:
    """The five of a task."""
    if name == "supernovae":
        task = find(name)
        return [task.observed["mu"], *drawn(task, 4, 5)[1]]
    at = observed(task_named(name), range(1, 6))
    return [np.asarray(at.plain(i)) for i in range(5)]


def refined(name: str, posterior: Posterior, likelihood: Any) -> dict:
    """C2ST before and after, and what the weights say."""
    task, xs = find(name), observations(name)
    better = posterior.refined(likelihood)
    found = [better.weigh(x, seed=i) for i, x in enumerate(xs)]
    exact = [task.reference_posterior(x, DRAWS, np.random.default_rng(i)) for i, x in enumerate(xs)]
    after = [w.draw(DRAWS, np.random.default_rng(i)) for i, w in enumerate(found)]
    before = [posterior.sample(DRAWS, x, seed=i).array for i, x in enumerate(xs)]
    scores = {
        when: [round(float(s), 4) for s in c2st_batched(np.stack(exact), np.stack(draws))]
        for when, draws in (("before", before), ("after", after))
    }
    return {
        **scores,
        **{f"mean_{when}": round(float(np.mean(s)), 4) for when, s in scores.items()},
        "effective": [round(w.effective) for w in found],
        "proposals": [len(w.theta) for w in found],
        "pareto_k": [round(w.pareto_k, 2) for w in found],
        "log_evidence": [round(w.log_evidence, 4) for w in found],
        "log_evidence_error": [round(w.log_evidence_error, 4) for w in found],
        "log_evidence_quadrature": [round(quadrature(task, x), 4) for x in xs] if name == "supernovae" else None,
    }


def quadrature(task: Any, x: np.ndarray, nodes: int = 60) -> float:
    """ln of the evidence of three parameters by Gauss and Legendre in panels around the posterior."""
    draws = task.reference_posterior(x, 4000, np.random.default_rng(9))
    low, high = np.array([[p.prior.low, p.prior.high] for p in task.prior.parameters]).T
    width = np.ptp(draws, axis=0)
    ends = np.maximum(draws.min(0) - width, low), np.minimum(draws.max(0) + width, high)
    at, weight = np.polynomial.legendre.leggauss(nodes)
    axes = [a + (b - a) * (at + 1) / 2 for a, b in zip(*ends, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    mass = np.log(np.einsum("i,j,k->ijk", weight, weight, weight).ravel() * np.prod((ends[1] - ends[0]) / 2))
    return float(np.logaddexp.reduce(task.log_likelihood(grid, x) + task.prior.log_prob(grid) + mass))


def main() -> None:
    """Measure what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="surrogate,slcp,true,learned")
    parser.add_argument("--likelihoods", default="flow,dropout,located")
    parser.add_argument("--posterior", default="dropout")
    parser.add_argument("--folder", type=Path, default=Path("likelihood_runs"))
    parser.add_argument("--seeds", default="0")
    a = parser.parse_args()
    for seed in map(int, a.seeds.split(",")):
        for part in a.only.split(","):
            PARTS[part](a, seed)


def _surrogates(name: str) -> Callable[[argparse.Namespace, int], None]:
    def run(a: argparse.Namespace, seed: int) -> None:
        for chosen in a.likelihoods.split(","):
            measured(
                f"likelihood of {name}, {chosen}, seed {seed}",
                lambda chosen=chosen: surrogate(name, trained(name, "likelihood", chosen, seed, a.folder)),
            )

    return run


def _true(a: argparse.Namespace, seed: int) -> None:
    for name in ("slcp", "supernovae"):
        measured(
            f"{name}, {a.posterior}, refined by the true likelihood, seed {seed}",
            lambda name=name: refined(name, trained(name, "posterior", a.posterior, seed, a.folder), find(name)),
        )


def _learned(a: argparse.Namespace, seed: int) -> None:
    for chosen in a.likelihoods.split(","):
        measured(
            f"slcp, {a.posterior}, refined by a learned likelihood, {chosen}, seed {seed}",
            lambda chosen=chosen: refined(
                "slcp",
                trained("slcp", "posterior", a.posterior, seed, a.folder),
                trained("slcp", "likelihood", chosen, seed, a.folder),
            ),
        )


PARTS = {
    "surrogate": _surrogates("gaussian_linear"),
    "slcp": _surrogates("slcp"),
    "true": _true,
    "learned": _learned,
}

if __name__ == "__main__":
    main()
