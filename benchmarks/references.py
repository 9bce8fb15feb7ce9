"""The tasks' own reference posteriors against the published draws of sbibm: C2ST, means, deviations.

    python benchmarks/references.py --reference sbibm_reference.h5 [--tasks two_moons,slcp]

The file holds sbibm's draws (Lueckmann et al. 2021, arXiv:2101.04653): `<task>/reference_posterior` (5, 10000, D) for
observations 1 to 5. Ours are as many, of `reference_posterior(x, n, rng)`. C2ST is `sbi_dgm.diagnostics.c2st.c2st` at
all five observations, at the first two where theta has ten dimensions (minutes each); and at observation 1 that of a
wrong twin, which it must accuse. Two sets of one posterior give 0.5 +- 0.0035. Each cell is kept at once in
`benchmarks/results/references.json`: the same command goes on where it was stopped. Needs the extra `benchmark`.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import h5py
import numpy as np

from sbi_dgm.diagnostics.c2st import c2st
from sbi_dgm.simulator import find
from simulators.slcp import SLCP

RESULTS = Path(__file__).parent / "results" / "references.json"
TOLERANCE = 0.015  # of the C2ST
SAME_POSTERIOR = {"slcp_distractors": "slcp", "bernoulli_glm_raw": "bernoulli_glm"}  # published once


def one_moon(task, x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """One of two modes dropped: theta_1 + theta_2 > 0 alone."""
    theta = task.reference_posterior(x, n, rng)
    return np.where(theta.sum(-1, keepdims=True) > 0, theta, -theta[:, ::-1])


def one_sign(task, x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Two of four modes dropped: theta_3 > 0 alone."""
    theta = task.reference_posterior(x, n, rng)
    theta[:, 2] = np.abs(theta[:, 2])
    return theta


def unpermuted(task, x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """The first eight numbers taken for the signal."""
    return SLCP.reference_posterior(task, x[:8], n, rng)


def without_prior(task, x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """The prior left out: with noise that is symmetric, draws of x's own scatter around theta = x."""
    return task(np.tile(x, (n, 1)), rng)


def prior_twice(task, x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """The prior counted twice: the posterior's draws, kept in proportion to it."""
    theta = task.reference_posterior(x, 10 * n, rng)
    log_weight = task.prior.log_prob(theta)
    return theta[np.argsort(rng.gumbel(size=len(theta)) + log_weight)[-n:]]  # without replacement


def narrow(task, x: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """All deviations a fifth too small."""
    theta = task.reference_posterior(x, n, rng)
    return theta.mean(0) + 0.8 * (theta - theta.mean(0))


WRONG: dict[str, Callable[..., np.ndarray]] = {
    "gaussian_mixture": without_prior,
    "two_moons": one_moon,
    "slcp": one_sign,
    "slcp_distractors": unpermuted,
    "sir": narrow,
    "lotka_volterra": narrow,
    "gaussian_linear": without_prior,
    "gaussian_linear_uniform": without_prior,
    "bernoulli_glm": prior_twice,
    "bernoulli_glm_raw": prior_twice,
}


def results() -> dict[str, dict]:
    """What has been measured so far."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def keep(key: str, found: dict) -> None:
    """Add a measurement."""
    RESULTS.parent.mkdir(exist_ok=True)
    part = RESULTS.with_suffix(".part")
    part.write_text(json.dumps(results() | {key: found}, indent=2) + "\n", encoding="utf-8")
    part.replace(RESULTS)
    print(key, json.dumps(found), flush=True)


def compared(known: np.ndarray, ours: np.ndarray, classifier: bool) -> dict:
    """How far our draws are from the published ones, all (S, D)."""
    sd, started = known.std(0), time.perf_counter()
    found: dict = {
        "largest mean difference (sd)": round(float(np.abs((ours.mean(0) - known.mean(0)) / sd).max()), 4),
        "sd ratios": [round(float(edge), 4) for edge in ((ours.std(0) / sd).min(), (ours.std(0) / sd).max())],
        "distinct": [len(np.unique(draws, axis=0)) for draws in (known, ours)],
    }
    if classifier:
        found |= {"c2st": round(c2st(known, ours), 4), "seconds": round(time.perf_counter() - started)}
    return found


def cells(task: str, known: np.ndarray) -> Iterable[tuple[str, int, bool]]:
    """Keys, observations and whether the draws are the wrong twin's."""
    yield from ((f"{task}, observation {i}", i, False) for i in range(1, len(known) + 1))
    yield f"{task}, observation 1, wrong: {WRONG[task].__name__}", 1, True


def run(task: str, known: np.ndarray) -> None:
    """Every cell of a task that is not there yet; `known` is (observation, S, D)."""
    simulator = find(task)
    for key, i, wrong in cells(task, known):
        if key in results():
            continue
        draw = WRONG[task] if wrong else type(simulator).reference_posterior  # type: ignore[attr-defined]
        x, rng = simulator.observations[i - 1], np.random.default_rng((i, wrong))  # type: ignore[attr-defined]
        ours = draw(simulator, x, known.shape[1], rng)
        keep(key, compared(known[i - 1], ours, classifier=known.shape[2] < 10 or i <= 2))


def failures(tasks: Iterable[str]) -> list[str]:
    """Measured references that C2ST tells from the published draws, and wrong twins that it does not."""
    own = {k: v["c2st"] for k, v in results().items() if "c2st" in v and k.split(",")[0] in set(tasks)}
    return [f"{k}: {v}" for k, v in own.items() if (abs(v - 0.5) <= TOLERANCE) == ("wrong" in k)]


def main() -> None:
    """Compare the tasks asked for; exit code 1 where one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, help="the published draws, HDF5")
    parser.add_argument("--tasks", default=",".join(WRONG), help="comma-separated")
    arguments = parser.parse_args()
    tasks = arguments.tasks.split(",")
    for task in tasks:
        with h5py.File(arguments.reference) as file:
            published = np.asarray(file[f"{SAME_POSTERIOR.get(task, task)}/reference_posterior"], np.float64)
        run(task, published)
    failed = failures(tasks)
    print("\n".join(failed) or f"all within 0.5 +- {TOLERANCE}, every wrong twin outside")
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
