"""How often each check of `sbi_dgm.calibrate` accuses exact posteriors, and posteriors that are wrong in a known way.

    python benchmarks/detection.py [--tasks two_moons] [--repetitions 100]
    python benchmarks/detection.py --table

Posteriors are the tasks' own exact draws, with one thing wrong: `narrow` and `wide` by 10 % about their mean, `shifted`
by 0.2 of their sd in all parameters, the `prior` itself, a `dropped` mode (two_moons) or component (gaussian_mixture),
correlations removed (`shuffled`: every parameter's draws in an order of their own, ln q by kernel estimates of the
marginals). Each repetition has 1,000 fresh rows with 200 draws each, of which the first 50, 100, 200, 500 and all are
judged; all faults are made of the same draws. `exact` has 200 repetitions. Where sbi is installed, its checks see the
same ranks and draws: Kolmogorov and Smirnov's test of each parameter's ranks (the smallest p-value times the number of
parameters) and that of its expected coverage with random points. All at the level 0.01.

Results go to `benchmarks/results/detection.json`, repetition by repetition; the same command goes on where it was
stopped.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from tqdm import tqdm

from sbi_dgm.benchmark.tasks import task_named
from sbi_dgm.diagnostics.bins import binned, quantities, worst
from sbi_dgm.diagnostics.checks import checks
from sbi_dgm.diagnostics.evidence import Evidence
from sbi_dgm.files import write_json
from sbi_dgm.report import LEVEL

RESULTS = Path(__file__).parent / "results" / "detection.json"
TASKS = ("gaussian_linear", "gaussian_linear_uniform", "gaussian_mixture", "two_moons")
ROWS, DRAWS, MOMENTS, EXACT = (50, 100, 200, 500, 1000), 200, 500, 200
SEEN = 0.2  # share above which a check is said to see a fault
Density = Callable[[np.ndarray], np.ndarray]


class Row:
    """One observation of a task: draws, and ln q up to a constant, which ranks do not ask for."""

    def __init__(self, task: Any, x: np.ndarray, rng: np.random.Generator) -> None:
        self.task, self.x, self.rng = task, x, rng
        self.draws = task.reference_posterior(x, DRAWS, rng)
        self.others = task.reference_posterior(x, MOMENTS, rng)

    def log_prob(self, theta: np.ndarray) -> np.ndarray:
        """Of the exact posterior."""
        return self.task.log_likelihood(theta, self.x) + self.task.prior.log_prob(theta)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and sd of the exact posterior, by draws of their own."""
        return self.others.mean(0), self.others.std(0)


def exact(row: Row) -> tuple[np.ndarray, Density]:
    """As it is."""
    return row.draws, row.log_prob


def scaled(factor: float) -> Callable[[Row], tuple[np.ndarray, Density]]:
    """About its mean."""

    def fault(row: Row) -> tuple[np.ndarray, Density]:
        mean, _ = row.moments()
        return mean + factor * (row.draws - mean), lambda theta: row.log_prob(mean + (theta - mean) / factor)

    return fault


def shifted(row: Row) -> tuple[np.ndarray, Density]:
    """In all parameters."""
    _, sd = row.moments()
    return row.draws + 0.2 * sd, lambda theta: row.log_prob(theta - 0.2 * sd)


def prior(row: Row) -> tuple[np.ndarray, Density]:
    """Whatever x is."""
    return row.task.prior.draw(DRAWS, row.rng), row.task.prior.log_prob


def dropped(row: Row) -> tuple[np.ndarray, Density]:
    """two_moons keeps the crescent of positive theta_1 + theta_2; gaussian_mixture the narrow normal about x."""
    if row.task.name == "two_moons":
        total = row.draws.sum(1, keepdims=True)
        return np.where(total > 0, row.draws, row.draws - total), lambda theta: np.where(
            theta.sum(-1) > 0, row.log_prob(theta), -1e9
        )
    draws = row.x + 0.1 * row.rng.standard_normal((DRAWS, 2))
    return draws, lambda theta: -0.5 * ((theta - row.x) ** 2).sum(-1) / 0.01


def shuffled(row: Row) -> tuple[np.ndarray, Density]:
    """Each parameter alone is right."""
    draws = row.rng.permuted(row.draws, axis=0)
    marginals = [scipy.stats.gaussian_kde(column) for column in row.draws.T]
    return draws, lambda theta: sum(k.logpdf(theta[..., i].ravel()) for i, k in enumerate(marginals))


FAULTS: dict[str, Callable[[Row], tuple[np.ndarray, Density]]] = {
    "exact": exact,
    "narrow": scaled(0.9),
    "wide": scaled(1.1),
    "shifted": shifted,
    "prior": prior,
    "dropped": dropped,
    "shuffled": shuffled,
}
OF_TWO = ("dropped", "shuffled")  # of tasks whose posterior has modes or correlations: the last two


def evidence(task: Any, seed: int, faults: list[str]) -> Iterator[tuple[str, Evidence]]:
    """Fresh pairs of a task, and what posteriors with those faults say of them."""
    rng = np.random.default_rng([seed, sum(map(ord, task.name))])
    theta = task.prior.draw(ROWS[-1], rng)
    x = np.asarray(task(theta, rng))
    rows = [Row(task, one, rng) for one in x]
    for fault in faults:
        said = [FAULTS[fault](row) for row in rows]
        truths = [float(np.squeeze(log_prob(truth[None]))) for truth, (_, log_prob) in zip(theta, said, strict=True)]
        own = np.stack([log_prob(draws) for draws, log_prob in said])
        draws = np.stack([draws for draws, _ in said])
        yield (
            fault,
            Evidence(list(task.prior.names), theta, {"x": x}, draws, np.maximum(truths, -1e9), np.maximum(own, -1e9)),
        )


def first(found: Evidence, rows: int) -> Evidence:
    """Those of so many rows."""
    return found._replace(
        theta=found.theta[:rows],
        x={"x": found.x["x"][:rows]},
        draws=found.draws[:rows],
        log_prob=found.log_prob[:rows],
        drawn_log_prob=found.drawn_log_prob[:rows],
    )


def accusing(found: Evidence, seed: int) -> dict[str, bool]:
    """Which checks accuse; "any" is the verdict, by the corrected level."""
    ranked = checks(found, {}, np.random.default_rng(seed))
    tests = {name: check.test(1.0).p_value for name, check in ranked.items()}
    u = np.column_stack([ranked[name].ranks for name in found.names])
    parts = {name: binned(u, quantity) for name, quantity in quantities(found).items()}
    somewhere = worst({name: one for name, one in parts.items() if one is not None})
    tests |= {"bins": 1.0 if somewhere is None else somewhere.p_value}
    level, own = LEVEL / len(tests), set(found.names)
    kinds = {"parameters": min(tests[name] for name in own) < level}
    kinds |= {name: p < level for name, p in tests.items() if name not in own}
    return {"any": any(kinds.values())} | kinds | sbis(found, u, seed)


def sbis(found: Evidence, u: np.ndarray, seed: int) -> dict[str, bool]:
    """sbi's checks, where it is installed."""
    try:
        import torch
        from sbi.diagnostics.tarp import _run_tarp, check_tarp, get_tarp_references
    except ImportError:
        return {}
    smallest = min(float(scipy.stats.kstest(column, "uniform").pvalue) for column in u.T)
    torch.manual_seed(seed)
    theta, draws = torch.as_tensor(found.theta), torch.as_tensor(found.draws).transpose(0, 1)
    coverage, alpha = _run_tarp(draws, theta, get_tarp_references(theta))
    tarp = check_tarp(coverage, alpha)[1]
    return {"sbi ranks": smallest * u.shape[1] < LEVEL, "sbi tarp": float(tarp) < LEVEL}


def faults_of(task: str) -> list[str]:
    """Those that make sense."""
    return [fault for fault in FAULTS if fault not in OF_TWO or task in TASKS[2:]]


def results() -> dict[str, dict[str, Any]]:
    """Repetitions and accusations by "task; fault; rows"."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


OWN = ("parameters", "regions", "points anywhere", "points predicted", "bins")
SBI = ("sbi ranks", "sbi tarp")


def table() -> str:
    """Markdown: how often our verdict accuses, in brackets the better of sbi's checks, and which of ours sees it."""
    stored = results()
    lines = [
        f"| posterior | task | {' | '.join(map(str, ROWS))} rows | at 200 rows by |",
        "|---" * (3 + len(ROWS)) + "|",
    ]
    for fault, task in product(FAULTS, TASKS):
        cells = [stored.get(f"{task}; {fault}; {rows}") for rows in ROWS]
        if all(cells):
            digits = 3 if fault == "exact" else 2
            texts = [f"{_share(c, ('any',)):.{digits}f} ({_share(c, SBI):.{digits}f})" for c in cells]
            seen = {kind: _share(stored[f"{task}; {fault}; 200"], (kind,)) for kind in OWN}
            by = ", ".join(f"{kind} {share:.2f}" for kind, share in seen.items() if share >= SEEN)
            lines.append(f"| {fault} | {task} | {' | '.join(texts)} | {by} |")
    return "\n".join(lines)


def _share(cell: dict[str, Any], kinds: tuple[str, ...]) -> float:
    """Of repetitions in which the best of these checks accuses; NaN where none was made."""
    return (
        max((cell["accused"][kind] for kind in kinds if kind in cell["accused"]), default=np.nan) / cell["repetitions"]
    )


def repeat(task: str, seed: int, faults: list[str]) -> None:
    """One repetition, added to the results."""
    stored = results()
    for fault, found in evidence(task_named(task), seed, faults):
        for rows in ROWS:
            entry = stored.setdefault(f"{task}; {fault}; {rows}", {"repetitions": 0, "accused": {}})
            entry["repetitions"] += 1
            for kind, accuses in accusing(first(found, rows), seed).items():
                entry["accused"][kind] = entry["accused"].get(kind, 0) + bool(accuses)
    write_json(RESULTS, stored)


def main() -> None:
    """Measure what is missing, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument("--table", action="store_true")
    a = parser.parse_args()
    if a.table:
        print(table())
        return
    for task in a.tasks.split(","):
        done = results().get(f"{task}; exact; {ROWS[-1]}", {"repetitions": 0})["repetitions"]
        for seed in tqdm(range(done, max(a.repetitions, EXACT)), desc=task, initial=done, total=EXACT):
            repeat(task, seed, faults_of(task) if seed < a.repetitions else ["exact"])


if __name__ == "__main__":
    main()
