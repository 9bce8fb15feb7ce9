"""Diffusion and flow matching with default settings: C2ST, exact moments, steps of the sampler, speed beside sbi.

    python benchmarks/diffusion.py [--tasks two_moons,slcp,gaussian_linear] [--families diffusion,flow_matching]
        [--seeds 0] [--reference sbibm_reference.h5]
    python benchmarks/diffusion.py --speed [--sbi path/to/python]    # an environment with sbi, for its NPSE

10,000 simulations, of which 0.9 are trained on. Each cell (task, family, seed) is trained once, kept in `--folder`, and
measured once: results go to `benchmarks/results/diffusion.json`, so that the same command goes on where it was
stopped. References are each task's own exact sampler at sbibm's observations 1 to 5, and sbibm's draws where their file
is given. Needs the extra `benchmark`.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import h5py
import numpy as np
from first_light import DRAWS, SBIBM_OBSERVATIONS

import sbi_dgm
from sbi_dgm.diagnostics.c2st import c2st
from simulators.gaussian_linear import VARIANCE, GaussianLinear
from simulators.slcp import SLCP
from simulators.two_moons import TwoMoons

RESULTS = Path(__file__).parent / "results" / "diffusion.json"
SLCP_OBSERVATIONS = np.array(  # observations 1 to 5 (sbibm 1.1.0, MIT)
    [
        [2.3718784, 0.49947417, 9.931435, 1.7136912, -10.436423, -1.9067793, -1.2343777, -0.09735],
        [-0.66452104, -2.9279308, -16.49147, 4.06107, 4.232153, -4.652277, -4.9924355, -1.5655216],
        [3.5023372, 5.254722, 8.685451, 9.995327, 0.40782332, -5.7111573, 10.605566, 12.695774],
        [-1.6371447, -0.037302777, -1.5622597, 0.031204943, -3.683134, 0.09953671, -1.7389069, 0.0309663],
        [-8.801672, 8.726709, -10.484016, 6.857725, -6.769688, 7.574161, 3.804308, 2.7593615],
    ]
)
TASKS = {"two_moons": (TwoMoons(), SBIBM_OBSERVATIONS), "slcp": (SLCP(), SLCP_OBSERVATIONS)}
MANY, FEW = 500, 14  # steps: converged, and with one evaluation for the start 15


def results() -> dict:
    """What has been measured so far."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def keep(key: str, found: dict) -> None:
    """Add a measurement."""
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results() | {key: found}, indent=2) + "\n")
    print(key, json.dumps(found), flush=True)


def trained(task: str, family: str, seed: int, folder: Path) -> sbi_dgm.Posterior:
    """The posterior of a cell, from `folder` if it is there."""
    path = folder / f"{task}_{family}_{seed}.safetensors"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory() as place:
            data = sbi_dgm.simulate(task, 10_000, out=Path(place) / "data.h5", seed=seed, progress=False)
            split = sbi_dgm.SplitRule(validation=0.1, test=0.0)
            sbi_dgm.fit(data, family, split=split, seed=seed, progress=False).save(path)
    return sbi_dgm.load(path)


def references(task: str, seed: int, file: Path | None) -> dict[str, np.ndarray]:
    """Reference draws (5, n, D) by source."""
    problem, observations = TASKS[task]
    rng = np.random.default_rng(seed)
    found = {"exact sampler": np.stack([problem.reference_posterior(x, DRAWS, rng) for x in observations])}
    if file is not None:
        with h5py.File(file) as stored:
            found["sbibm"] = np.asarray(stored[f"{task}/reference_posterior"], float)  # type: ignore[arg-type]
    return found


def scores(posterior: sbi_dgm.Posterior, x: np.ndarray, reference: np.ndarray, seed: int) -> list[float]:
    """C2ST at each observation."""
    draws = posterior.sample(DRAWS, x, seed=seed).array
    return [round(float(c2st(r, q)), 4) for r, q in zip(reference, draws, strict=True)]


def classified(a: argparse.Namespace, task: str, family: str, seed: int) -> None:
    """C2ST of a cell, by default settings; for the first seed, with few steps and with many."""
    key, settings = f"{task} {family} seed {seed}", {"": {}}
    if seed == 0:
        settings |= {f", {steps} steps": {"steps": steps} for steps in (FEW, MANY)}
    names = [f"{key}, {kind}{label}" for label in settings for kind in ("exact sampler", "sbibm")]
    wanted = [name for name in names if name not in results() and (a.reference or "sbibm" not in name)]
    if not wanted:
        return
    posterior, sets = trained(task, family, seed, a.folder), references(task, seed, a.reference)
    for label, options in settings.items():
        for kind, reference in sets.items():
            if (name := f"{key}, {kind}{label}") in wanted and (kind == "sbibm" or not label or not a.reference):
                found = scores(posterior.using(**options) if options else posterior, TASKS[task][1], reference, seed)
                keep(name, {"c2st": found, "mean": round(float(np.mean(found)), 4)} | training(posterior))


def training(posterior: sbi_dgm.Posterior) -> dict:
    """What the training of a cell took."""
    return {name: posterior.record[name] for name in ("seconds", "steps", "best_validation_loss")}


def gaussian(a: argparse.Namespace, family: str, seed: int) -> None:
    """Mean and standard deviation against the exact posterior, over 20 fresh observations."""
    key = f"gaussian_linear {family} seed {seed}"
    if key in results():
        return
    posterior, problem = trained("gaussian_linear", family, seed, a.folder), GaussianLinear()
    rng = np.random.default_rng(1000 + seed)
    x = problem(problem.prior.draw(20, rng), rng)
    draws, sd = posterior.sample(DRAWS, x, seed=seed).array, (VARIANCE / 2) ** 0.5
    ratio, shift = draws.std(1) / sd, (draws.mean(1) - x / 2) / sd
    found = {
        "sd ratio by parameter": ratio.mean(0).round(3).tolist(),
        "sd ratio, all": [round(float(ratio.min()), 3), round(float(ratio.max()), 3)],
        "mean - exact [sd] by parameter": shift.mean(0).round(3).tolist(),
        "mean - exact [sd], rms of all": round(float(np.sqrt((shift**2).mean())), 3),
    }
    keep(key, found | training(posterior))


def speed(a: argparse.Namespace) -> None:
    """Seconds for 10,000 draws at one observation, ours and those of sbi's NPSE alternating, each a process."""
    trained("two_moons", "diffusion", 0, a.folder)
    here, file = Path(__file__).resolve(), a.folder.resolve() / "two_moons.h5"
    if a.sbi and not file.exists():
        sbi_dgm.simulate("two_moons", DRAWS, out=file, seed=0, progress=False)
    ours = [sys.executable, str(here), "--folder", str(a.folder.resolve()), "--child"]
    commands = {"default": [*ours, "24"], f"{FEW} steps": [*ours, str(FEW)]}
    if a.sbi:
        commands["sbi"] = [a.sbi, str(here.with_name("sbi_npse.py")), str(file), str(DRAWS)]
    for repeat in range(3):
        for name, words in commands.items():
            if (key := f"speed {name} #{repeat}") not in results():
                with TemporaryDirectory() as place:  # sbi leaves logs where it runs
                    run = subprocess.run(words, capture_output=True, text=True, check=True, cwd=place)  # noqa: S603
                keep(key, json.loads(run.stdout.splitlines()[-1]))


def child(steps: int, folder: Path) -> None:
    """Seconds for 10,000 draws, printed as JSON."""
    import torch

    torch.set_num_threads(1)
    posterior = trained("two_moons", "diffusion", 0, folder).using(steps=steps)
    posterior.sample(10, SBIBM_OBSERVATIONS[0], seed=0)
    started = time.perf_counter()
    posterior.sample(DRAWS, SBIBM_OBSERVATIONS[0], seed=0)
    print(json.dumps({"seconds": round(time.perf_counter() - started, 3)}))


def main() -> None:
    """Measure what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, help="sbibm_reference.h5")
    parser.add_argument("--tasks", default="gaussian_linear,two_moons,slcp")
    parser.add_argument("--families", default="diffusion,flow_matching")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--folder", type=Path, default=Path("diffusion_posteriors"))
    parser.add_argument("--speed", action="store_true", help="time the samplers alone")
    parser.add_argument("--sbi", help="python of an environment with sbi")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        return child(a.child, a.folder)
    if a.speed:
        return speed(a)
    for seed in map(int, a.seeds.split(",")):
        for task in a.tasks.split(","):
            for family in a.families.split(","):
                classified(a, task, family, seed) if task in TASKS else gaussian(a, family, seed)
    return None


if __name__ == "__main__":
    main()
