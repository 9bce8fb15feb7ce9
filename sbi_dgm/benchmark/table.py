"""From cells to tables: means and medians over observations, standard errors over seeds, published figures beside."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sbi_dgm.benchmark import cells
from sbi_dgm.files import write_json, write_text

KEY = ["task", "method", "budget"]
PUBLISHED = {  # columns of the file, and how a table calls them
    "num_simulations": "budget",
    "npe_sbibm": "published NPE",
    "best_amortized": "published amortized",
    "best_sequential": "published sequential",
}
PUBLISHED_DRAWS = 10_000
FORMAT = "sbi_dgm/benchmark"


@dataclass(frozen=True)
class Results:
    """The cells of a benchmark.

    Attributes:
        cells: their contents, as in their files.

    """

    cells: Sequence[Mapping[str, Any]]

    @property
    def failed(self) -> list[Mapping[str, Any]]:
        """The cells that failed."""
        return [cell for cell in self.cells if "error" in cell]

    def scores(self) -> pd.DataFrame:
        """One row a cell and observation."""
        rows = []
        for cell in self.cells:
            for i, number in enumerate(cell.get("observations", [])):
                values = {name: values[i] for name, values in cell["scores"].items()}
                rows.append({**_title(cell), "observation": number, **values})
        return pd.DataFrame(rows)

    def per_seed(self) -> pd.DataFrame:
        """One row a cell: means over observations, `c2st_median`, scores of fresh truths, seconds of training."""
        return pd.DataFrame([_title(cell) | _averaged(cell) for cell in self.cells])

    def table(self) -> pd.DataFrame:
        """One row a task, method and budget: means over seeds, `c2st_error` their standard error, published C2ST.

        Published figures are of 10,000 draws; fewer are harder to tell apart, so that nothing is set beside those.
        """
        comparable = all(cell["draws"] == PUBLISHED_DRAWS for cell in self.cells if "error" not in cell)
        known = published() if comparable else published()[:0]
        return tabulated(self.per_seed()).merge(known, how="left", on=["task", "budget"])

    def summary(self) -> dict[str, Any]:
        """What a later run is compared with: the score of each seed, by task, method and budget."""
        entries = []
        for key, rows in self.per_seed().groupby(KEY, sort=False):
            done = rows[rows["c2st"].notna()] if "c2st" in rows else rows[:0]
            values = [round(float(v), 6) for v in done["c2st"]] if len(done) else []
            entries.append({**dict(zip(KEY, _plain(key), strict=True)), "seeds": done["seed"].tolist(), "c2st": values})
        good = next((cell for cell in self.cells if "error" not in cell), {})
        made = {name: good.get(name) for name in ("observations", "draws", "versions", "commit")}
        return {"format": FORMAT, "format_version": 1, **made, "entries": entries}

    def save(self, folder: str | Path) -> None:
        """Write table.csv, table.md, scores.csv, summary.json, scores.png and index.html."""
        from sbi_dgm import plots
        from sbi_dgm.benchmark import page

        folder, table = Path(folder), self.table()
        write_text(folder / "table.csv", table.to_csv(index=False))
        write_text(folder / "scores.csv", self.scores().to_csv(index=False))
        write_text(folder / "table.md", page.markdown(table))
        write_json(folder / "summary.json", self.summary())
        plots.save(page.figure(table), folder / "scores.png", dpi=110)
        write_text(folder / "index.html", page.html(self, table, folder / "scores.png"))


def gathered(folder: str | Path) -> Results:
    """All cells that lie in the folder of a benchmark.

    Warns:
        some cannot be read; the next run measures them again.

    """
    found = {path.name: cells.read(path) for path in sorted((Path(folder) / "cells").glob("*.json"))}
    if bad := [name for name, content in found.items() if content is None]:
        warnings.warn(f"{len(bad)} cells of {folder} are damaged or of another version: {bad[0]}.", stacklevel=2)
    return Results([content for content in found.values() if content is not None])


def published() -> pd.DataFrame:
    """Published mean C2ST of sbibm's tasks, with their methods; the source is in the file's first line."""
    text = files("sbi_dgm").joinpath("benchmark/data/published_c2st.csv").read_text(encoding="utf-8")
    return pd.read_csv(StringIO(text), comment="#").rename(columns=PUBLISHED)


def tabulated(per_seed: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds, their number, the standard error of the C2ST where there are two or more; task by task."""
    rows = []
    for key, group in per_seed.groupby(KEY, sort=False):
        done = group[group["error"].isna()] if "error" in group else group
        row = dict(zip(KEY, _plain(key), strict=True)) | {"seeds": len(done)}
        numbers = done.drop(columns=[*KEY, "seed", "error"], errors="ignore")
        row |= numbers.mean().to_dict()
        if "c2st" in done:
            row["c2st_error"] = done["c2st"].std() / len(done) ** 0.5 if len(done) > 1 else np.nan
        row["error"] = "; ".join(group["error"].dropna().unique()) if "error" in group else ""
        rows.append(row)
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    return pd.DataFrame(sorted(rows, key=lambda row: (tasks.index(row["task"]), row["budget"])))


def _title(cell: Mapping[str, Any]) -> dict[str, Any]:
    return {name: cell[name] for name in (*KEY, "seed")}


def _averaged(cell: Mapping[str, Any]) -> dict[str, Any]:
    if "error" in cell:
        return {"error": cell["error"]}
    scores = {name: np.array(values, float) for name, values in cell["scores"].items()}
    means = {name: float(values.mean()) for name, values in scores.items()}
    median = {"c2st_median": float(np.median(scores["c2st"]))} if "c2st" in scores else {}
    truths = {name: value for name, value in cell["truths"].items() if name != "truths"}
    seconds = {f"{name}_seconds": value for name, value in cell["seconds"].items()}
    return means | median | truths | seconds


def _plain(key: Any) -> list[Any]:
    return [value.item() if isinstance(value, np.generic) else value for value in key]
