"""The table of the default settings: four columns on ten tasks, beside published figures.

    sbi-dgm benchmark benchmarks/suites/defaults.toml -o results --workers 2          # hours; goes on where it stopped
    sbi-dgm benchmark benchmarks/suites/defaults.toml -o results --workers 2 --seeds 1,2 --tasks SMALL
    sbi-dgm benchmark benchmarks/suites/defaults.toml -o results --workers 2 --budgets 100000 --tasks two_moons,slcp
    python benchmarks/defaults.py results [--methods flow,diffusion,flow_x4,refined,sbi_npe.npe] [--refinement]
    python benchmarks/defaults.py results --figure defaults.png

SMALL are the six tasks of fewer than ten parameters. The table says, for each method, the mean C2ST of observations 1
to 5, which helped to choose, and of 6 to 10, which did not; the median of all, and seconds of training; all averaged
over seeds. Below it stand the counts of cells in which our best is below a published figure, by all ten observations.

With `--refinement` another table: what the power of the learned likelihood is, what held-out rows say that it gains in
nats, and the mean C2ST before and after; beside it that by a power of 1, of cells measured before powers were found,
which lie in `results/power_of_1/cells`.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sbi_dgm.benchmark.page import figure
from sbi_dgm.benchmark.table import gathered, published

COLUMNS = ("flow", "diffusion", "flow_x4", "refined")
PLAIN = ("flow", "diffusion")
PUBLISHED = ("published NPE", "published amortized", "published sequential")


def judged(folder: str) -> pd.DataFrame:
    """One row a task, budget and method: first, last, mean, median, seconds, seeds."""
    results = gathered(folder)
    scores = results.scores()
    seconds = results.per_seed().groupby(["task", "budget", "method"])["train_seconds"].mean()
    rows = []
    for place, group in scores.groupby(["task", "budget", "method"], sort=False):
        first = group["observation"] <= 5
        rows.append(
            dict(zip(("task", "budget", "method"), place, strict=True))
            | {"first": group.loc[first, "c2st"].mean(), "last": group.loc[~first, "c2st"].mean()}
            | {"mean": group["c2st"].mean(), "median": group.groupby("seed")["c2st"].median().mean()}
            | {"seconds": seconds[place], "seeds": group["seed"].nunique(), "error": _error(group)}
        )
    return pd.DataFrame(rows)


def _error(group: pd.DataFrame) -> float:
    """Standard error of the mean over seeds; NaN for one."""
    means = group.groupby("seed")["c2st"].mean()
    return float(means.std() / len(means) ** 0.5) if len(means) > 1 else np.nan


def markdown(found: pd.DataFrame, methods: list[str]) -> str:
    """The table."""
    known = published().set_index(["task", "budget"])
    lines = ["| task | budget | seeds | " + " | ".join([*methods, *PUBLISHED]) + " |"]
    lines.append("| --- " * (3 + len(methods) + len(PUBLISHED)) + "|")
    order = {task: i for i, task in enumerate(dict.fromkeys(known.index.get_level_values(0)))}
    for (task, budget), group in sorted(
        found.groupby(["task", "budget"]), key=lambda pair: (order[pair[0][0]], *pair[0])
    ):
        cells = group.set_index("method")
        seeds = sorted(set(cells["seeds"]))
        words = [_told(cells.loc[m]) if m in cells.index else "" for m in methods]
        words += [f"{known.loc[(task, budget), name]:.3f}" for name in PUBLISHED]
        lines.append(f"| {task} | {budget} | {'-'.join(map(str, seeds))} | " + " | ".join(words) + " |")
    return "\n".join(lines)


def _told(row: pd.Series) -> str:
    error = "" if np.isnan(row["error"]) else f" ± {row['error']:.3f}"
    return f"{row['first']:.3f}, {row['last']:.3f}{error} ({row['median']:.3f}; {row['seconds']:.0f} s)"


def counts(found: pd.DataFrame) -> str:
    """In how many cells of 1,000 and 10,000 simulations our best mean is below a published figure."""
    wide = found[found["budget"] <= 10_000].pivot_table(index=["task", "budget"], columns="method", values="mean")
    wide = wide.join(published().set_index(["task", "budget"])[list(PUBLISHED)])
    plain, best = (wide[[m for m in methods if m in wide]].min(axis=1) for methods in (PLAIN, COLUMNS))
    said = [("the better plain default", plain, PUBLISHED[0]), *(("the best column", best, p) for p in PUBLISHED[1:])]
    lines = []
    for words, ours, name in said:
        above = [" ".join(map(str, at)) for at in wide.index[ours >= wide[name]]]
        lines.append(
            f"- {words} is below {name} in {(ours < wide[name]).sum()} of {len(wide)} cells; not in: "
            + (", ".join(above) or "none")
        )
    flow = found[(found["method"] == "flow") & (found["budget"] == 10_000)]["seconds"]
    lines.append(f"- median training time of the default flow at 10,000 simulations: {flow.median():.0f} s")
    return "\n".join(lines)


def refinement(folder: Path) -> str:
    """The table of `--refinement`: one row a task, budget and seed."""
    plain, whole, refined = (
        _cells(folder, *place) for place in (("flow_x4",), ("refined", "power_of_1"), ("refined",))
    )
    lines = ["| task | budget | seed | power | gain | gain by a power of 1 | flow_x4 | power of 1 | refined |"]
    lines.append("| --- " * 9 + "|")
    for at, cell in sorted(item for item in refined.items() if "pool" in item[1]):
        pool, c2st = cell["pool"], [_mean(cells.get(at)) for cells in (plain, whole, refined)]
        nats = f"{pool['gain']:+.3f} ± {pool['error']:.3f} | {pool['whole']:+.3f} ± {pool['whole_error']:.3f}"
        lines.append(f"| {' | '.join(map(str, at))} | {pool['power']:.2f} | {nats} | {' | '.join(c2st)} |")
    return "\n".join(lines)


def _cells(folder: Path, method: str, below: str = "") -> dict[tuple[str, int, int], dict[str, Any]]:
    """Cells of a method by task, budget and seed."""
    found = [json.loads(path.read_text()) for path in (folder / below / "cells").glob(f"*-{method}-*.json")]
    return {(c["task"], c["budget"], c["seed"]): c for c in found if "error" not in c}


def _mean(cell: dict[str, Any] | None) -> str:
    return "" if cell is None else f"{np.mean(cell['scores']['c2st']):.3f}"


def main() -> None:
    """Print table and counts, or draw them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--methods", default=",".join(COLUMNS))
    parser.add_argument("--refinement", action="store_true")
    parser.add_argument("--figure", help="where to draw scores against budgets")
    a = parser.parse_args()
    if a.figure:
        figure(gathered(a.folder).table()).savefig(a.figure, dpi=90)
        return
    if a.refinement:
        print(refinement(Path(a.folder)))
        return
    found = judged(a.folder)
    print(markdown(found, a.methods.split(",")), counts(found), sep="\n\n")


if __name__ == "__main__":
    main()
