"""Classifier two-sample tests beside each other: scikit-learn's perceptron, its batched twin, and the forest.

    python benchmarks/classifiers.py [--cases two_moons,width] [--speed] [--print]

30 pairs of sets of 10,000 draws whose scores span 0.5 to 0.95. Each cell is measured once and kept in
`benchmarks/results/classifiers.json`, so that the same command goes on where it was stopped; `--speed` measures the
twin's time for one and for ten observations. Seconds are of one core's own time (OMP_NUM_THREADS=1, set before Python
starts), whatever else the machine does. Needs the extra `benchmark`.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from sbi_dgm.diagnostics.c2st import c2st, c2st_forest
from sbi_dgm.diagnostics.c2st_batched import c2st_batched
from simulators.two_moons import TwoMoons

RESULTS = Path(__file__).parent / "results" / "classifiers.json"
DRAWS = 10_000
Pair = tuple[np.ndarray, np.ndarray]
FOREST = {"d=10 width 1.1", "d=10 width 0.9"}  # where the forest is asked too
EXACT = 4  # parameters up to which the twin runs in float64 too


def normal(dims: int, rng: np.random.Generator, shift: float = 0.0, width: float = 1.0, rho: float = 0.0) -> Pair:
    """N(0, I) against normals moved, widened or equicorrelated."""
    covariance = rho + (1 - rho) * np.eye(dims)
    noise = rng.normal(size=(DRAWS, dims)) @ np.linalg.cholesky(covariance).T
    return rng.normal(size=(DRAWS, dims)), shift + width * noise


def student(dims: int, rng: np.random.Generator, freedom: float = 3.0) -> Pair:
    """Normals against Student's t in each parameter."""
    return rng.normal(size=(DRAWS, dims)), rng.standard_t(freedom, size=(DRAWS, dims))


def modes(dims: int, rng: np.random.Generator, share: float = 0.5, distance: float = 2.0) -> Pair:
    """Two equal modes against two with a given share of the first; share = -1: a normal of their moments."""
    centre = np.zeros(dims)
    centre[0] = distance

    def mixture(first: float) -> np.ndarray:
        return rng.normal(size=(DRAWS, dims)) + np.where(rng.uniform(size=(DRAWS, 1)) < first, centre, -centre)

    if share < 0:
        return mixture(0.5), rng.normal(size=(DRAWS, dims)) * np.sqrt(1 + centre**2)
    return mixture(0.5), mixture(share)


def moons(_: int, rng: np.random.Generator, blur: float = 0.0) -> Pair:
    """Two moons at x = 0, against draws blurred by a normal of this sd; a negative blur: a normal of their moments."""
    reference, draws = (TwoMoons().reference_posterior(np.zeros(2), DRAWS, rng) for _ in range(2))
    if blur < 0:
        return reference, rng.multivariate_normal(reference.mean(0), np.cov(reference.T), DRAWS)
    return reference, draws + blur * rng.normal(size=draws.shape)


CASES: dict[str, Callable[[np.random.Generator], Pair]] = {
    "d=2 same": partial(normal, 2),
    "d=2 shift 0.3": partial(normal, 2, shift=0.3),
    "d=2 shift 1": partial(normal, 2, shift=1.0),
    "d=2 width 1.1": partial(normal, 2, width=1.1),
    "d=2 width 2": partial(normal, 2, width=2.0),
    "d=2 correlation 0.5": partial(normal, 2, rho=0.5),
    "d=2 correlation 0.9": partial(normal, 2, rho=0.9),
    "d=2 modes 0.7": partial(modes, 2, share=0.7),
    "d=2 modes joined": partial(modes, 2, share=-1.0),
    "two_moons same": partial(moons, 2),
    "two_moons blur 0.01": partial(moons, 2, blur=0.01),
    "two_moons blur 0.05": partial(moons, 2, blur=0.05),
    "two_moons normal": partial(moons, 2, blur=-1.0),
    "d=4 shift 0.2": partial(normal, 4, shift=0.2),
    "d=4 width 1.1": partial(normal, 4, width=1.1),
    "d=4 width 1.5": partial(normal, 4, width=1.5),
    "d=4 correlation 0.5": partial(normal, 4, rho=0.5),
    "d=4 student": partial(student, 4),
    "d=4 mode lost": partial(modes, 4, share=1.0),
    "d=5 same": partial(normal, 5),
    "d=5 shift 0.1": partial(normal, 5, shift=0.1),
    "d=5 shift 1.4": partial(normal, 5, shift=1.4),
    "d=5 width 1.25": partial(normal, 5, width=1.25),
    "d=5 correlation 0.3": partial(normal, 5, rho=0.3),
    "d=5 correlation 0.8": partial(normal, 5, rho=0.8),
    "d=5 modes joined": partial(modes, 5, share=-1.0),
    "d=10 width 1.1": partial(normal, 10, width=1.1),
    "d=10 width 0.9": partial(normal, 10, width=0.9),
    "d=10 correlation 0.5": partial(normal, 10, rho=0.5),
    "d=10 shift 0.7": partial(normal, 10, shift=0.7),
}


def results() -> dict:
    """What has been measured so far."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def keep(key: str, found: dict) -> None:
    """Add a measurement."""
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results() | {key: found}, indent=2) + "\n")
    print(key, json.dumps(found), flush=True)


def timed(score: Callable[[], float]) -> tuple[float, float]:
    """A score and the seconds that it took of this process."""
    start = time.process_time()
    return round(float(score()), 5), round(time.process_time() - start, 2)


def measure(name: str) -> dict:
    """All scores of one case."""
    reference, draws = CASES[name](np.random.default_rng(list(CASES).index(name)))
    one, other = reference[None], draws[None]
    scores = {"batched": timed(lambda: c2st_batched(one, other)[0])}
    if reference.shape[1] <= EXACT:
        scores["exact"] = timed(lambda: c2st_batched(one, other, exact=True)[0])
    scores["sklearn"] = timed(lambda: c2st(reference, draws))
    if name in FOREST:
        scores["forest"] = timed(lambda: c2st_forest(reference, draws))
    return {key: {"score": score, "seconds": seconds} for key, (score, seconds) in scores.items()}


def speed(dims: int) -> dict:
    """Seconds an observation at a shift of 0.3 in one parameter, alone and in ten."""
    rng, found = np.random.default_rng(dims), {}
    reference, draws = rng.normal(size=(2, 10, DRAWS, dims))
    draws[..., 0] += 0.3
    for count in (1, 10):
        _, seconds = timed(lambda: c2st_batched(reference[:count], draws[:count]).mean())  # noqa: B023
        found[f"batched, {count}"] = round(seconds / count, 2)
    found["sklearn"] = timed(lambda: c2st(reference[0], draws[0]))[1]
    return found


def summary() -> None:
    """Differences between twin and original over the cases so far."""
    cells = {name: cell for name, cell in results().items() if name in CASES}
    for kind in ("batched", "exact"):
        both = [(cell[kind]["score"], cell["sklearn"]["score"]) for cell in cells.values() if kind in cell]
        if both:
            gap = np.subtract(*np.transpose(both))
            print(f"{kind}: {len(gap)} cases, mean difference {gap.mean():+.5f}, largest {np.abs(gap).max():.5f}")
    spent = {kind: sum(cell[kind]["seconds"] for cell in cells.values()) for kind in ("batched", "sklearn")}
    print("seconds of one core:", json.dumps({kind: round(seconds) for kind, seconds in spent.items()}))


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="", help="parts of names, separated by commas")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--print", action="store_true", dest="only_print")
    chosen = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":
        print("OMP_NUM_THREADS is not 1: seconds count all cores.")
    wanted = [name for name in CASES if any(part in name for part in chosen.cases.split(","))]
    todo = [f"speed d={dims}" for dims in (2, 5, 10)] if chosen.speed else wanted
    for name in todo if not chosen.only_print else []:
        if name not in results():
            keep(name, speed(int(name.split("=")[1])) if chosen.speed else measure(name))
    summary()


if __name__ == "__main__":
    main()
