"""The tables of a benchmark for people: terminal, Markdown, and one HTML page with its figure inside."""

import base64
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PUBLISHED = {
    "published NPE": "NPE as published by sbibm",
    "published amortized": "lowest published of amortized methods",
    "published sequential": "lowest published of sequential methods",
}


def grid(table: pd.DataFrame) -> pd.DataFrame:
    """Task and budget down, methods across, "mean (median) ± error" of the C2ST in each place; published ones last."""
    rows: dict[tuple[Any, Any], dict[str, str]] = {}
    for one in table.to_dict("records"):
        row = rows.setdefault((one["task"], one["budget"]), {"task": one["task"], "budget": str(one["budget"])})
        row[one["method"]] = cell_text(one)
    for one in table.to_dict("records"):
        rows[one["task"], one["budget"]] |= {name: _number(one[name]) for name in PUBLISHED if pd.notna(one[name])}
    return pd.DataFrame(list(rows.values())).fillna("")


def cell_text(row: Mapping[Any, Any]) -> str:
    """One place of the grid."""
    if row["error"]:
        return "FAILED"
    error = row.get("c2st_error", math.nan)
    spread = "" if math.isnan(error) else f" ± {error:.3f}"
    return f"{_number(row.get('c2st', math.nan))} ({_number(row.get('c2st_median', math.nan))}){spread}"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"


def terminal(table: pd.DataFrame) -> str:
    """The grid as text."""
    return grid(table).to_string(index=False)


def markdown(table: pd.DataFrame) -> str:
    """The grid, what trained how long, and what failed, in Markdown."""
    lines = ["C2ST, mean over observations (median) ± standard error over seeds; 0.5 is perfect.", ""]
    lines += [*_piped(grid(table)), ""]
    if "train_seconds" in table:
        seconds = table.pivot_table(index=["task", "budget"], columns="method", values="train_seconds", sort=False)
        lines += ["Seconds of training, mean over seeds.", "", *_piped(seconds.round(0).reset_index()), ""]
    lines += [f"- {' '.join(map(str, row[:3]))}: {row[3]}" for row in failures(table)]
    return "\n".join(lines).rstrip() + "\n"


def failures(table: pd.DataFrame) -> list[list[Any]]:
    """Task, method, budget and reason of what failed."""
    return table.loc[table["error"] != "", ["task", "method", "budget", "error"]].to_numpy().tolist()


def _piped(frame: pd.DataFrame) -> list[str]:
    rows: list[Sequence[Any]] = [list(frame.columns), ["---"] * len(frame.columns), *frame.to_numpy().tolist()]
    return ["| " + " | ".join(_text(value) for value in row) + " |" for row in rows]


def _text(value: Any) -> str:
    text = (
        "" if isinstance(value, float) and pd.isna(value) else f"{value:g}" if isinstance(value, float) else str(value)
    )
    return text.replace("|", "\\|")


def figure(table: pd.DataFrame) -> "Figure":
    """Score against budget: one panel a task, the methods in front, published lines behind."""
    from sbi_dgm import plots

    ours, theirs = {}, {}
    for task, group in table.groupby("task", sort=False):
        lines = group.sort_values("budget").groupby("method", sort=False)
        ours[str(task)] = {str(m): _line(rows, "c2st", "c2st_error") for m, rows in lines}
        known = group.drop_duplicates("budget").sort_values("budget")
        theirs[str(task)] = {
            title: _line(known, name) for name, title in PUBLISHED.items() if known[name].notna().to_numpy().any()
        }
    return plots.against_budget(ours, theirs, "C2ST")


def _line(rows: pd.DataFrame, name: str, error: str | None = None) -> tuple[list[float], list[float], list[float]]:
    if name not in rows:
        return [], [], []
    spread = np.zeros(len(rows)) if error not in rows else np.nan_to_num(rows[error].to_numpy(float))
    return rows["budget"].tolist(), rows[name].tolist(), spread.tolist()


def html(results: Any, table: pd.DataFrame, picture: Path) -> str:
    """The page, one file."""
    from jinja2 import Environment

    source = files("sbi_dgm").joinpath("benchmark/data/page.html").read_text(encoding="utf-8")
    image = base64.b64encode(picture.read_bytes()).decode()
    front = grid(table)
    whole = table.drop(columns=list(PUBLISHED)).set_index(["task", "method", "budget"]).reset_index()
    return (
        Environment(autoescape=True)
        .from_string(source)
        .render(
            image=image,
            columns=list(front.columns),
            rows=front.to_numpy().tolist(),
            failures=failures(table),
            whole_columns=list(whole.columns),
            whole=[[_text(_rounded(value)) for value in row] for row in whole.to_numpy().tolist()],
            made=results.summary(),
            titles=PUBLISHED,
        )
    )


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value
