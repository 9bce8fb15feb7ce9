"""The order of a comparison: what is asked, of whom, and what becomes of the answers."""

import sys
from collections import defaultdict
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from timed import machine, table
from timed.process import Process, helped, imported
from timed.worker import LIBRARIES

Costs = dict[str, dict[str, list[float]]]  # measure -> library -> rounds


ASKED_BY = {  # measures that come with the answer to another request
    "epoch": "step",
    "memory_training": "step",
    "level": "train",
    "stop": "train",
    "loss": "train",
    "memory_sampling": "sample_many",
}


class Request(NamedTuple):
    """What is asked of all libraries in one round; the group is a word for --only."""

    group: str
    name: str
    ask: str
    arguments: dict[str, Any]


def requests(quick: bool, epochs: int, limit: int | None) -> list[Request]:
    """All of them, in an order in which trainings come first."""
    many, one = ((20, 50), (1, 500)) if quick else ((1000, 1000), (1, 10_000))
    pairs, thetas = (4, 100) if quick else (1000, 1000)
    sbc, rows = ((60, 50), 3000) if quick else ((1000, 1000), 100_000)
    stop = {"epochs": 3 if quick else limit}
    return [
        Request("step", "step", "step", {"epochs": 2 if quick else epochs}),
        Request("train", "train", "train", stop),
        Request("sample", "sample_many", "sample", {"observations": many[0], "draws": many[1], **stop}),
        Request("sample", "sample_one", "sample", {"observations": one[0], "draws": one[1], **stop}),
        Request("log_prob", "log_prob_pairs", "log_prob", {"observations": pairs, "each": 1, **stop}),
        Request("log_prob", "log_prob_one", "log_prob", {"observations": 1, "each": thetas, **stop}),
        Request("sbc", "sbc", "sbc", {"observations": sbc[0], "draws": sbc[1], **stop}),
        Request("simulate", "simulate", "simulate", {"rows": rows}),
        Request("import", "import", "import", {}),
        Request("import", "help", "help", {}),
    ]


def costs(name: str, found: dict[str, Any]) -> dict[str, float]:
    """The measures in an answer: seconds for one, MiB, nats."""
    peak = {"step": "memory_training", "sample_many": "memory_sampling"}
    more = {peak[name]: found["peak_mib"]} if name in peak else {}
    if name == "step":
        return {"step": found["step"], "epoch": found["epoch"]} | more
    if name == "train":
        return {"stop": found["seconds"], "loss": found["loss"]}
    if name == "sbc":
        return {"sbc": found["seconds"]}
    return {name: found["seconds"] / found.get("count", 1)} | more


class Comparison:
    """All measures with one number of threads.

    Args:
        pythons: interpreter of each library.
        threads: of every library.
        folder: holds `rows.npz`, and gets what the libraries write.
        limit: seconds for one answer.
        level: the validation loss to reach; None is sbi's.

    """

    def __init__(
        self, pythons: dict[str, str], threads: int, folder: Path, *, limit: float, level: float | None
    ) -> None:
        self.pythons, self.threads, self.folder, self.limit, self.level = pythons, threads, folder, limit, level
        self.costs: Costs = defaultdict(lambda: defaultdict(list))
        self.reasons: dict[str, dict[str, str]] = defaultdict(dict)
        self.traces: dict[str, list] = {}
        self.networks: dict[str, dict[str, int]] = {}
        self.counts: dict[str, dict[str, int]] = defaultdict(dict)
        self.machine = machine.rates(sys.executable, threads)
        self.processes = {name: self._started(name) for name in pythons}

    def _started(self, name: str) -> Process:
        place = self.folder / f"{name}_{self.threads}"
        return Process(name, self.pythons[name], self.threads, self.folder / "rows.npz", place, self.limit)

    def round(self, request: Request) -> None:
        """One request to all libraries."""
        for name in self.pythons:
            if name in self.reasons[request.name]:
                continue
            found = self._answer(request, name)
            print(f"  {request.name} {name}: {_short(found)}", file=sys.stderr, flush=True)
            if "failed" in found:
                self.reasons[request.name][name] = found["failed"]
            else:
                self._keep(request.name, name, found)

    def _answer(self, request: Request, name: str) -> dict[str, Any]:
        if request.ask == "help":
            return helped(self.pythons[name], self.folder) if name == "sbi_dgm" else {"failed": "no such command."}
        if request.ask == "import":
            statement = LIBRARIES[name][2]
            same = {"failed": "the same package as sbi_dgm."}
            return imported(self.pythons[name], statement, self.threads, self.folder) if statement else same
        return self.processes[name].ask(request.ask, **request.arguments)

    def _keep(self, request: str, name: str, found: dict[str, Any]) -> None:
        for measure, cost in costs(request, found).items():
            self.costs[measure][name].append(cost)
        if request == "train":
            self.traces[name] = found["trace"]
            self._levels()
        if "weights" in found:
            self.networks[name] = {key: found[key] for key in ("weights", "parameters")}
        if "count" in found:
            self.counts[request][name] = found["count"]

    def _levels(self) -> None:
        """Seconds until each library's last training was as good as sbi's at its end."""
        goal = self.level if self.level is not None else min(self.costs["loss"].get("sbi", [inf]))
        for name, trace in self.traces.items():
            reached = [seconds for seconds, loss in trace if loss <= goal < inf][:1]
            self.costs["level"][name] = reached
            best = min(loss for _, loss in trace)
            known = f"the level is {goal:.3f} nats, and this ended at {best:.3f}."
            self.reasons["level"][name] = known if goal < inf else "sbi was not trained, and no level was given."

    def result(self) -> dict[str, Any]:
        """Everything so far."""
        measures: dict[str, Any] = {}
        for measure in table.LINES:
            found = {name: self._entry(measure, name) for name in self.pythons}
            if any(found.values()):
                measures[measure] = found
        return {"machine": self.machine, "measures": measures, "traces": self.traces}

    def _entry(self, measure: str, name: str) -> dict[str, Any]:
        rounds = self.costs[measure].get(name, [])
        if not rounds:
            reason = (self.reasons[measure] | self.reasons[ASKED_BY.get(measure, "")]).get(name)
            return {"median": None, "reason": reason} if reason else {}
        entry = table.entry(measure, rounds, self.costs[measure].get(table.OURS, []))
        if name in self.networks:
            each = entry["median"] / table.LINES[measure].scale
            cost = 1 / each if table.LINES[measure].rate else each / self.counts[measure].get(name, 1)
            entry |= table.floored(measure, cost, self.networks[name], self.machine)
        if name in self.counts[measure]:
            entry["count"] = self.counts[measure][name]
        return entry

    def libraries(self) -> dict[str, Any]:
        """What each library is."""
        return {n: {**p.known, **self.networks.get(n, {})} for n, p in self.processes.items()}

    def close(self) -> None:
        """End all processes."""
        for process in self.processes.values():
            process.close()


def _short(found: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items() if k != "trace")
