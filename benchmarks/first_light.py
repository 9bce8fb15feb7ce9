"""The figures of the first release: two_moons by C2ST, gaussian_linear by exact KL, supernovae by its grid.

    python benchmarks/first_light.py [--reference sbibm_reference.h5] [--tasks two_moons,...] [--seeds 0,1]

Default settings throughout, 10,000 simulations (supernovae: 20,000). The two_moons reference is the task's own
exact sampler at sbibm's observations 1 to 5, and sbibm's published draws too where their file is given
(`/two_moons/reference_posterior` (5, 10000, 2), `/two_moons/observations` (10, 2)). Needs the extra `benchmark`.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

import sbi_dgm
from sbi_dgm.diagnostics.c2st import c2st
from simulators.cosmology.supernovae import Supernovae
from simulators.gaussian_linear import VARIANCE, GaussianLinear
from simulators.two_moons import TwoMoons

SBIBM_OBSERVATIONS = np.array(  # two_moons, observations 1 to 5 (sbibm 1.1.0, MIT)
    [
        [-0.6396706104278564, 0.16234657168388367],
        [-0.5676687955856323, -0.33194833993911743],
        [0.003010958433151245, -0.6457661986351013],
        [-0.2504938840866089, 0.6330549716949463],
        [-0.6646358370780945, -0.42604532837867737],
    ]
)
DRAWS = 10_000


def trained(task: str, rows: int, seed: int) -> tuple[sbi_dgm.Posterior, float]:
    """A posterior with default settings, and the seconds that training took."""
    with tempfile.TemporaryDirectory() as folder:
        data = sbi_dgm.simulate(task, rows, out=Path(folder) / "data.h5", seed=seed, progress=False)
        start = time.perf_counter()
        split = sbi_dgm.SplitRule(validation=0.1, test=0.0)
        return sbi_dgm.fit(data, split=split, seed=seed, progress=False), time.perf_counter() - start


def two_moons(seed: int, reference: Path | None) -> dict[str, object]:
    """C2ST at observations 1 to 5, and the mass of q on a grid."""
    posterior, seconds = trained("two_moons", 10_000, seed)
    result: dict[str, object] = {"seconds": round(seconds, 1), "mass": mass(posterior, SBIBM_OBSERVATIONS[0])}
    ours = posterior.sample(DRAWS, SBIBM_OBSERVATIONS, seed=seed).array
    rng = np.random.default_rng(seed)
    exact = np.stack([TwoMoons().reference_posterior(x, DRAWS, rng) for x in SBIBM_OBSERVATIONS])
    sets = {"exact sampler": exact}
    if reference is not None:
        with h5py.File(reference) as file:
            sets["sbibm"] = np.asarray(file["two_moons/reference_posterior"], float)  # type: ignore[arg-type]
    for name, draws in sets.items():
        scores = [c2st(r, q) for r, q in zip(draws, ours, strict=True)]
        result[f"C2ST, {name}"] = [round(score, 4) for score in scores]
        result[f"C2ST, {name}, mean (must <= 0.55, goal <= 0.52)"] = round(float(np.mean(scores)), 4)
    return result


def mass(posterior: sbi_dgm.Posterior, x: np.ndarray, cells: int = 1000) -> float:
    """The integral of q(theta | x) over the prior's box, by the midpoint rule."""
    centres = -1 + 2 * (np.arange(cells) + 0.5) / cells
    grid = np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)
    return float(np.exp(posterior.log_prob(grid, x)).sum() * (2 / cells) ** 2)


def gaussian_linear(seed: int, _: Path | None) -> dict[str, object]:
    """KL(p || q) and the ratio of standard deviations, over 20 fresh observations."""
    posterior, seconds = trained("gaussian_linear", 10_000, seed)
    problem, rng = GaussianLinear(), np.random.default_rng(1000 + seed)
    x = problem(problem.prior.draw(20, rng), rng)
    exact = np.stack([problem.reference_posterior(one, DRAWS, rng) for one in x])
    log_p = np.stack([problem.posterior_log_prob(draws, one) for draws, one in zip(exact, x, strict=True)])
    kl = (log_p - posterior.log_prob(exact, x)).mean(1)
    ours = posterior.sample(DRAWS, x, seed=seed).array
    ratio = ours.std(1) / (VARIANCE / 2) ** 0.5
    return {
        "seconds": round(seconds, 1),
        "KL, mean (must <= 0.30, goal <= 0.10) [nats]": round(float(kl.mean()), 4),
        "sd ratio of each parameter, mean over observations (must: within 7 %)": ratio.mean(0).round(3).tolist(),
        "sd ratio, least and largest of all": [round(float(ratio.min()), 3), round(float(ratio.max()), 3)],
    }


def supernovae(seed: int, _: Path | None) -> dict[str, object]:
    """Mean and sd against the grid, for the real data."""
    posterior, seconds = trained("supernovae", 20_000, seed)
    problem = Supernovae()
    exact = problem.reference_posterior(problem.observed["mu"], 200_000, np.random.default_rng(seed))
    ours = posterior.sample(50_000, problem.observed, seed=seed).array
    return {
        "seconds": round(seconds, 1),
        "mean - exact [sd] (must: within 0.15)": ((ours.mean(0) - exact.mean(0)) / exact.std(0)).round(3).tolist(),
        "sd ratio (must: within 15 %)": (ours.std(0) / exact.std(0)).round(3).tolist(),
    }


TASKS: dict[str, Callable[[int, Path | None], dict[str, object]]] = {
    "two_moons": two_moons,
    "gaussian_linear": gaussian_linear,
    "supernovae": supernovae,
}


def main() -> None:
    """Print one JSON object a task and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, help="sbibm_reference.h5")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--seeds", default="0")
    arguments = parser.parse_args()
    for task in arguments.tasks.split(","):
        for seed in map(int, arguments.seeds.split(",")):
            figures = TASKS[task](seed, arguments.reference)
            print(json.dumps({"task": task, "seed": seed, **figures}, indent=2), flush=True)


if __name__ == "__main__":
    main()
