"""What each choice of the recipe brings: held-out ln q of the default flow against the same with one thing changed.

    python benchmarks/recipe.py [--problems slcp,sir] [--variants located] [--budgets 1000] [--seeds 0,1,2]
        [--folder recipe_runs]

Of `--budgets` simulations 0.9 are trained on; ln q is that of the true parameters of 4,000 fresh simulations (500 for
diffusion, whose densities take long), the same for all variants, so that differences are paired. A cell is one
problem, budget, seed and variant; its ln q are kept in `--folder`, its figures in `benchmarks/results/recipe.json`, and
the same command goes on where it was stopped. With `--table` the results for these problems and budgets are printed as
Markdown: the mean over seeds of (loss of the variant minus loss of the default), in nats, and the larger of its
standard errors over seeds and over rows.

Of the problems in `HELD_OUT`, weinberg and rotated_slcp took no part in choosing anything; supernovae and mg1 were
looked at when the scaling of observables was chosen.
"""

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sbi_dgm
from sbi_dgm import Diffusion, Flow, FlowMatching, Located, PriorTransform, Training
from sbi_dgm.data import scaling
from sbi_dgm.simulator import find

RESULTS = Path(__file__).parent / "results" / "recipe.json"
SPLIT = sbi_dgm.SplitRule(validation=0.1, test=0.0)
FRESH, FEW = 4000, 500
CHOSEN_ON = ("slcp", "two_moons", "sir", "lotka_volterra", "gaussian_linear_uniform", "bernoulli_glm_raw")
HELD_OUT = ("supernovae", "weinberg", "mg1", "rotated_slcp")
STRAIGHT = {"CLEAR": np.inf, "BEND": np.inf}  # of observables, but for heavy tails
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "untuned": {"estimator": Flow(dropout=0.0), "scaling": STRAIGHT},
    "without dropout": {"estimator": Flow(dropout=0.0)},
    "dropout 0.2 and width 128": {"estimator": Flow(dropout=0.2, hidden=128)},
    "no logarithms": {"scaling": {"CLEAR": np.inf}},
    "no bend": {"scaling": {"BEND": np.inf}},
    "located": {"estimator": Located(Flow())},
    "affine": {"estimator": Flow(map="affine")},
    "five transforms": {"estimator": Flow(transforms=5)},
    "without averaged weights": {"training": Training(ema=0.0)},
    "without the fall of the rate": {"training": Training(decay=0.0)},
    "constant rate 5e-4": {"training": Training(decay=0.0, learning_rate=5e-4, ema=0.0)},
    "batches of 32": {"training": Training(batch_size=32)},
    "no weight decay": {"training": Training(weight_decay=0.0)},
    "four members": {"members": 4, "workers": 1},
    "diffusion": {"estimator": Diffusion()},
    "diffusion without dropout": {"estimator": Diffusion(dropout=0.0)},
    "flow matching": {"estimator": FlowMatching()},
    "flow matching without dropout": {"estimator": FlowMatching(dropout=0.0)},
}


class RotatedSLCP:
    """The task slcp in other words: x turned and spread over four decades, theta turned."""

    name = "rotated_slcp"

    def __init__(self) -> None:
        self.task, rng = find("slcp"), np.random.default_rng(2026)
        self.turn_x, self.turn_theta = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (8, 5))
        self.spread = np.logspace(-2, 2, 8)
        self.prior = PriorTransform(
            [f"theta_{i}" for i in range(1, 6)],
            lambda u: (6 * u - 3) @ self.turn_theta.T,
            lambda theta: (theta @ self.turn_theta + 3) / 6,
        )
        self.observables = self.task.observables

    def __call__(self, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return self.task(theta @ self.turn_theta, rng) @ self.turn_x.T * self.spread


def problem(name: str) -> Any:
    """A simulator by name."""
    return RotatedSLCP() if name == "rotated_slcp" else find(name)


def drawn(of: Any, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of theta and x."""
    theta = of.prior.sample(rows, seed)
    x = of(theta, np.random.default_rng([seed, 1]))
    return theta, next(iter(x.values())) if isinstance(x, dict) else x


@contextmanager
def scaled(constants: dict[str, float]) -> Iterator[None]:
    """Observables scaled with other constants of `sbi_dgm.data.scaling`."""
    before = {name: getattr(scaling, name) for name in constants}
    vars(scaling).update(constants)
    try:
        yield
    finally:
        vars(scaling).update(before)


def measured(name: str, budget: int, seed: int, variant: str, folder: Path) -> dict[str, Any]:
    """Train, and keep ln q of fresh simulations."""
    of, how = problem(name), dict(VARIANTS[variant])
    theta, x = drawn(of, budget, seed)
    data = sbi_dgm.Simulations.from_arrays(theta, {next(iter(of.observables)): x}, prior=of.prior)
    start = time.perf_counter()
    with scaled(how.pop("scaling", {})):
        posterior = sbi_dgm.fit(data, **how, split=SPLIT, seed=seed, progress=False, device="cpu")
        seconds = time.perf_counter() - start
        fresh = FRESH if posterior.density == "exact" else FEW
        theta, x = (array[:fresh] for array in drawn(of, FRESH, 10**6 + seed))
        log_q = posterior.log_prob(theta, x)
    np.save(folder / f"{key(name, budget, seed, variant)}.npy", log_q)
    return {"loss": float(-log_q.mean()), "seconds": round(seconds, 1), "steps": posterior.record["steps"]}


def key(*parts: Any) -> str:
    """The name of a cell."""
    return "; ".join(map(str, parts))


def results() -> dict[str, Any]:
    """What has been measured so far."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def paired(name: str, budget: int, seed: int, variant: str, folder: Path) -> dict[str, float]:
    """Loss minus that of the default on the same rows, and the standard error of their mean."""
    mine, default = (np.load(folder / f"{key(name, budget, seed, v)}.npy") for v in (variant, "default"))
    gap = default[: len(mine)] - mine
    return {"more": round(float(gap.mean()), 4), "error": round(float(gap.std() / len(gap) ** 0.5), 4)}


def table(names: list[str], budgets: list[str]) -> str:
    """The differences as Markdown, mean over seeds; standard errors over rows or over seeds, the larger."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for title, cell in results().items():
        name, budget, _, variant = title.split("; ")
        found.setdefault((variant, name, budget), []).append(cell)
    known = {(name, budget) for _, name, budget in found}
    columns = [pair for pair in product(names, budgets) if pair in known]
    lines = ["| variant | " + " | ".join(f"{name}, {budget}" for name, budget in columns) + " |"]
    lines.append("| --- |" + " --- |" * len(columns))
    for variant in VARIANTS:
        cells = [_told(found.get((variant, *column), [])) for column in columns]
        if any(cells):
            lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _told(cells: list[dict[str, Any]]) -> str:
    if not cells or "more" not in cells[0]:
        return ""
    gaps = np.array([cell["more"] for cell in cells])
    rows = np.sqrt(np.square([cell["error"] for cell in cells]).mean() / len(cells))
    seeds = gaps.std(ddof=1) / len(gaps) ** 0.5 if len(gaps) > 1 else 0.0
    return f"{gaps.mean():+.3f} ± {max(rows, seeds):.3f}"


def main() -> None:
    """Measure what is not there yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--problems", default=",".join((*CHOSEN_ON, *HELD_OUT)))
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--budgets", default="1000")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--folder", type=Path, default=Path("recipe_runs"))
    parser.add_argument("--table", action="store_true")
    a = parser.parse_args()
    if a.table:
        print(table(a.problems.split(","), a.budgets.split(",")))
        return
    torch.set_num_threads(1)
    a.folder.mkdir(parents=True, exist_ok=True)
    variants = dict.fromkeys(("default", *a.variants.split(",")))
    given = product(a.budgets.split(","), a.seeds.split(","), a.problems.split(","), variants)
    for budget, seed, name, variant in ((int(b), int(s), n, v) for b, s, n, v in given):
        title = key(name, budget, seed, variant)
        if title in results() and (a.folder / f"{title}.npy").exists():
            continue
        cell = measured(name, budget, seed, variant, a.folder)
        if variant != "default":
            cell |= paired(name, budget, seed, variant, a.folder)
        RESULTS.write_text(json.dumps(results() | {title: cell}, indent=2) + "\n")
        print(title, json.dumps(cell), flush=True)


if __name__ == "__main__":
    main()
