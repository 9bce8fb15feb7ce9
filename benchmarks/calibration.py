"""Seconds of a whole calibration report, beside sbi's `run_sbc` and `run_tarp`, in one run, interleaved.

    python benchmarks/calibration.py [--task slcp] [--rows 1000] [--draws 1000] [--rounds 3] [--threads 2]

Ours is `sbi_dgm.calibrate(posterior, data, out=...)` with the default flow: draws, all checks, all figures as PNG and
PDF, and the page. sbi's is `run_sbc` and `run_tarp` with the same numbers of rows and draws of a spline flow of as many
transforms, units and bins, no figures. Both are trained on the same 2,000 simulations before the clock starts. Without
sbi, ours alone is timed. Results go to `benchmarks/results/calibration.json`.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

import sbi_dgm
from sbi_dgm.estimators.flow import Flow
from sbi_dgm.files import write_json
from sbi_dgm.simulator import find

RESULTS = Path(__file__).parent / "results" / "calibration.json"
SIMULATIONS = 2000


def simulations(task: str, rows: int, seed: int) -> sbi_dgm.Simulations:
    """Of an installed simulator."""
    simulator = find(task)
    theta = simulator.prior.sample(rows, seed)
    return sbi_dgm.Simulations.from_arrays(
        theta, simulator(theta, np.random.default_rng(seed + 1)), prior=simulator.prior
    )


def ours(train: sbi_dgm.Simulations, test: sbi_dgm.Simulations, draws: int) -> Callable[[], str]:
    """A call that makes the whole report."""
    posterior = sbi_dgm.fit(train, progress=False)

    def report() -> str:
        with TemporaryDirectory() as folder:
            return sbi_dgm.calibrate(posterior, test, out=folder, draws=draws, max_rows=len(test)).verdict

    return report


def theirs(train: sbi_dgm.Simulations, test: sbi_dgm.Simulations, draws: int) -> Callable[[], str] | None:
    """A call of sbi's two checks, or None where it is not installed."""
    try:
        from sbi.diagnostics import run_sbc, run_tarp
        from sbi.inference import NPE
        from sbi.neural_nets import posterior_nn
        from sbi.utils import BoxUniform
    except ImportError:
        return None
    size = Flow()
    net = posterior_nn("nsf", hidden_features=size.hidden, num_transforms=size.transforms, num_bins=size.bins)
    bounds = train.prior.coordinates
    prior = BoxUniform(torch.tensor(bounds.low).float(), torch.tensor(bounds.high).float())
    theta, x, held_theta, held_x = (torch.tensor(values).float() for one in (train, test) for values in _arrays(one))
    inference = NPE(prior=prior, density_estimator=net, show_progress_bars=False)
    inference.append_simulations(theta, x).train()
    posterior = inference.build_posterior()

    def checks() -> str:
        ranks, _ = run_sbc(held_theta, held_x, posterior, num_posterior_samples=draws)
        coverage, _ = run_tarp(held_theta, held_x, posterior, num_posterior_samples=draws)
        return f"{tuple(ranks.shape)}, {tuple(coverage.shape)}"

    return checks


def _arrays(data: sbi_dgm.Simulations) -> tuple[np.ndarray, np.ndarray]:
    rows = np.arange(len(data))
    return data.columns["theta"][:], data.x(rows)[next(iter(data.observables))]


def timed(call: Callable[[], Any]) -> float:
    """Seconds of a call."""
    began = time.perf_counter()
    print(call(), flush=True)
    return round(time.perf_counter() - began, 2)


def main() -> None:
    """Time both by turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="slcp")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    train, test = simulations(a.task, SIMULATIONS, 1), simulations(a.task, a.rows, 2)
    calls = {"sbi_dgm": ours(train, test, a.draws), "sbi": theirs(train, test, a.draws)}
    seconds: dict[str, list[float]] = {name: [] for name, call in calls.items() if call is not None}
    for _ in range(a.rounds):
        for name in seconds:
            seconds[name].append(timed(calls[name]))  # type: ignore[arg-type]
            print(name, seconds[name], flush=True)
        found = vars(a) | {"seconds": seconds, "load": round(os.getloadavg()[0], 1)}
        if "sbi" in seconds:
            found["ratio"] = [round(b / a, 1) for a, b in zip(seconds["sbi_dgm"], seconds["sbi"], strict=True)]
        write_json(RESULTS, found)


if __name__ == "__main__":
    main()
