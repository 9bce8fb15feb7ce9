"""From rounds to medians, ratios and shares of the floor; and those as Markdown."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from timed import floor

OURS = "sbi_dgm"


class Line(NamedTuple):
    """How a measure is shown: costs are seconds (or MiB, or nats) for one; a rate is the inverse."""

    title: str
    unit: str
    scale: float = 1.0
    rate: bool = False

    def shown(self, cost: float) -> float:
        """The number in the table."""
        return 1 / cost if self.rate else self.scale * cost


LINES = {
    "step": Line("training step", "ms", 1e3),
    "epoch": Line("epoch of 9,000 rows, with validation", "s"),
    "level": Line("training until as good as sbi's", "s"),
    "stop": Line("training to the library's own end", "s"),
    "loss": Line("validation loss at the end", "nats"),
    "sample_many": Line("draws, 1,000 observations x 1,000", "1/s", rate=True),
    "sample_one": Line("draws, 1 observation x 10,000", "1/s", rate=True),
    "log_prob_pairs": Line("normalised ln q, 1,000 pairs", "1/s", rate=True),
    "log_prob_one": Line("normalised ln q, 1 observation x 1,000", "1/s", rate=True),
    "sbc": Line("calibration, 1,000 x 1,000", "s"),
    "simulate": Line("simulations", "rows/s", rate=True),
    "import": Line("import, beyond torch's", "s"),
    "help": Line("sbi-dgm --help", "s"),
    "memory_training": Line("peak memory after training", "MiB"),
    "memory_sampling": Line("peak memory after bulk sampling", "MiB"),
}
RATIOS = set(LINES) - {"loss", "help"}


def entry(measure: str, costs: Sequence[float], ours: Sequence[float]) -> dict[str, Any]:
    """Rounds, median, and the median of the rounds' ratios to ours: above one, ours is better."""
    found: dict[str, Any] = {"unit": LINES[measure].unit, "rounds": [LINES[measure].shown(cost) for cost in costs]}
    found["median"] = LINES[measure].shown(median(costs))
    if measure in RATIOS and ours:
        found["times_sbi_dgm"] = median(cost / own for cost, own in zip(costs, ours, strict=False) if own > 0)
    return found


def floored(measure: str, cost: float, network: Mapping[str, int], machine: Mapping[str, float]) -> dict[str, Any]:
    """The floor of a measure and the share of it that was reached; empty where there is none.

    Args:
        measure: its name.
        cost: seconds for one step, epoch, draw or density.
        network: sizes of the library's.
        machine: its rates.

    """
    needed = floor.work(measure, network)
    if needed is None or cost <= 0:
        return {}
    least = floor.seconds(needed, machine)
    return {"floor": {"flop": needed.flop, "bytes": needed.moved, **least}, "share_of_floor": least["seconds"] / cost}


def number(value: float) -> str:
    """Three digits, thousands apart.

    >>> number(0.01234), number(1.5), number(34567.8)
    ('0.0123', '1.5', '34,568')
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def cell(found: Mapping[str, Any] | None) -> str:
    """Median, and in brackets the ratio to ours."""
    if found is None or found.get("median") is None:
        return "-"
    ratio = f" ({number(found['times_sbi_dgm'])}x)" if "times_sbi_dgm" in found else ""
    return number(found["median"]) + ratio


def share(found: Mapping[str, Any] | None) -> str:
    """How many times the floor a measure takes."""
    return f"{number(1 / found['share_of_floor'])}x" if found and "share_of_floor" in found else "-"


def page(result: Mapping[str, Any]) -> str:
    """Tables for each number of threads, and beneath them why a cell is empty and what differs."""
    machine, names = result["machine"], list(result["libraries"])
    lines = [f"{machine['processor']}, {machine['cores']} cores, {machine['date']}, commit {machine['commit']}", ""]
    if result["settings"]["quick"]:
        lines += ["A quick run: counts and trainings are far smaller than the rows say.", ""]
    for threads, part in result["threads"].items():
        rates = ", ".join(f"{name} {number(value)}" for name, value in part["machine"].items())
        lines += [f"**{threads} thread{'s' * (int(threads) > 1)}** ({rates})", "", _table(part, names, cell), ""]
        lines += ["Times the floor (arithmetic or bytes at this machine's rates):", "", _table(part, names, share), ""]
        for measure, row in part["measures"].items():
            lines += [
                f"- {measure}, {name}: {row[name]['reason']}" for name in names if row.get(name, {}).get("reason")
            ]
    return "\n".join([*lines, "", *(f"- {n}: {known.get('differs', '')}" for n, known in result["libraries"].items())])


def _table(part: Mapping[str, Any], names: Sequence[str], shown: Any) -> str:
    rows = [["", *names], ["---"] * (len(names) + 1)]
    for measure, row in part["measures"].items():
        cells = [shown(row.get(name)) for name in names]
        if set(cells) != {"-"}:
            rows.append([f"{LINES[measure].title} [{LINES[measure].unit}]", *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
