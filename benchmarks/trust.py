"""What the gate at an observation costs, how often it flags what it should not, and how small a fault it sees.

    python benchmarks/trust.py [--tasks supernovae] [--rows 10000] [--seeds 0,1]
    python benchmarks/trust.py --table

For each task and seed a flow with default settings is trained on `--rows` simulations. Then

- cost: seconds of the gate at one observation over those of 1,000 draws there, checks of x and the context included in
  the draws; the medians over 15 rounds that take turns, one thread;
- false: the share of 4,000 fresh simulations that are flagged, beside the stated rate;
- seen: of fresh simulations, those that are flagged once one number of theirs, each in turn, is shifted by 3, 4 or 5 sd
  of its noise, and in how many of those the sentence names that number. The noise of supernovae is known; elsewhere it
  is the sd of 1,000 simulations at the theta of the observation;
- observed: the same of the real data, up and down (supernovae).

Results go to `benchmarks/results/trust.json`, cell by cell; the same command goes on where it was stopped.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import sbi_dgm
from sbi_dgm.benchmark.tasks import task_named
from sbi_dgm.trust import Trust

RESULTS = Path(__file__).parent / "results" / "trust.json"
TASKS = ("supernovae", "slcp", "two_moons")
FRESH, SHIFTED, ROUNDS = 4000, 1000, 15
SHIFTS = (3, 4, 5)


def trained(task: Any, rows: int, seed: int) -> sbi_dgm.Posterior:
    """A default flow."""
    theta = task.prior.sample(rows, seed)
    x = np.asarray(task(theta, np.random.default_rng([seed, 1])))
    data = sbi_dgm.Simulations.from_arrays(theta, x, prior=task.prior)
    split = sbi_dgm.SplitRule(validation=0.1, test=0.0)
    return sbi_dgm.fit(data, split=split, seed=seed, device="cpu")


def seconds(call: Callable[[], object], times: int) -> float:
    """Of one call, the mean of so many."""
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def cost(posterior: sbi_dgm.Posterior, x: np.ndarray) -> dict[str, float]:
    """Seconds of 1,000 draws, of the gate alone, and their ratio."""
    arrays, single = posterior._seen(x)
    context = posterior._context(arrays)
    rounds = [
        (
            seconds(lambda: posterior.sample(1000, x, seed=0), 5),
            seconds(lambda: posterior._trust(arrays, context, single), 200),
        )
        for _ in range(ROUNDS)
    ]
    draws, gate = np.median(rounds, axis=0)
    return {"draws": float(draws), "gate": float(gate), "share": float(gate / draws)}


def noise(task: Any, theta: np.ndarray, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The sd of each number of x (B, L) at its theta."""
    if hasattr(task, "covariance"):
        return np.broadcast_to(np.sqrt(np.diag(task.covariance)), x.shape)
    repeated = np.asarray(task(np.repeat(theta, 1000, axis=0), rng)).reshape(len(theta), 1000, -1)
    return repeated.std(1)


def moved(x: np.ndarray, by: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows with one number shifted, each in turn, and which."""
    entry = np.arange(len(x)) % x.shape[1]
    shifted = x.copy()
    shifted[np.arange(len(x)), entry] += by[np.arange(len(x)), entry]
    return shifted, entry


def found(trust: Trust, entry: np.ndarray) -> dict[str, float]:
    """The share that is flagged, and of those the share in which the number is named."""
    named = [f"[{i}] is " in why for i, why in zip(entry, trust.reason, strict=True) if why]
    return {"flagged": float(np.mean(trust.flagged)), "named": float(np.mean(named)) if named else 0.0}


def cell(name: str, rows: int, seed: int) -> dict[str, Any]:
    """All figures of one trained posterior."""
    task = task_named(name)
    posterior, rng = trained(task, rows, seed), np.random.default_rng([seed, 2])
    theta = task.prior.sample(FRESH, 10_000 + seed)
    x = np.asarray(task(theta, rng))
    fresh = posterior.trust(x)
    entry: dict[str, Any] = {"cost": cost(posterior, x[0]), "level": fresh.level, "compared": fresh.simulations}
    entry["false"] = float(np.mean(fresh.flagged))
    sd = noise(task, theta[:SHIFTED], x[:SHIFTED], rng)
    shifted = {k: moved(x[:SHIFTED], k * sd) for k in SHIFTS}
    entry["seen"] = {str(k): found(posterior.trust(values), which) for k, (values, which) in shifted.items()}
    if hasattr(task, "observed"):
        real = next(iter(task.observed.values()))
        entry["observed"] = {"p": posterior.trust(real).p_value}
        for k in SHIFTS:
            both = [moved(np.repeat(real[None], len(real), 0), sign * k * sd[: len(real)]) for sign in (-1, 1)]
            values, which = (np.concatenate(part) for part in zip(*both, strict=True))
            entry["observed"][str(k)] = found(posterior.trust(values), which)
    return entry


def results() -> dict[str, Any]:
    """What has been measured so far."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def table() -> str:
    """Markdown, a row each cell."""
    lines = ["| task; simulations; seed | cost | false | of | 3 sd | 4 sd | 5 sd | named at 5 sd |", "|---" * 8 + "|"]
    for key, e in results().items():
        seen = [f"{e['seen'][str(k)]['flagged']:.1%}" for k in SHIFTS]
        figures = [f"{e['cost']['share']:.2%}", f"{e['false']:.2%}", f"{e['level']:.2%}", *seen]
        lines.append(f"| {key} | {' | '.join(figures)} | {e['seen'][str(SHIFTS[-1])]['named']:.1%} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--table", action="store_true")
    a = parser.parse_args()
    if a.table:
        print(table())
        return
    for seed in map(int, a.seeds.split(",")):
        for name in a.tasks.split(","):
            key = f"{name}; {a.rows}; {seed}"
            if key in results():
                continue
            entry = cell(name, a.rows, seed)
            RESULTS.write_text(json.dumps(results() | {key: entry}, indent=1) + "\n")
            print(key, json.dumps(entry), flush=True)


if __name__ == "__main__":
    main()
