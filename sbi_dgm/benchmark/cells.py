"""One cell of a benchmark: a method, trained on one budget of simulations of a task, and what it scores."""

import hashlib
import json
import subprocess
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from threading import Lock
from typing import Any

import torch

from sbi_dgm.benchmark.methods import Method
from sbi_dgm.benchmark.scores import Evidence, at_observations, at_truths
from sbi_dgm.benchmark.tasks import observed, references, task_named
from sbi_dgm.campaign import simulate
from sbi_dgm.data.simulations import Simulations
from sbi_dgm.errors import FileError
from sbi_dgm.files import read_json, understood, write_json
from sbi_dgm.simulator import Simulator, reason

FORMAT = "sbi_dgm/benchmark_cell"
FORMAT_VERSION = 1
PACKAGES = ("sbi_dgm", "torch", "nflows", "numpy", "scipy")


@dataclass(frozen=True)
class Judging:
    """How posteriors are judged, the same for all cells of a table.

    Attributes:
        observations: their numbers, from 1.
        draws: of the exact and of the judged posterior at each.
        scores: names in `SCORES`.
        truths: fresh simulations for the expected log-probability and calibration; 0 for none.

    """

    observations: tuple[int, ...]
    draws: int
    scores: tuple[str, ...]
    truths: int


@dataclass(frozen=True)
class Cell:
    """One entry of a table.

    Attributes:
        task: the simulator, or how to find it.
        name: of the task, in tables.
        method: what is trained.
        budget: simulations.
        seed: of the simulations and of everything after.
        judging: how it is judged.
        device: where networks run.

    """

    task: "str | Simulator"
    name: str
    method: Method
    budget: int
    seed: int
    judging: Judging
    device: str = "cpu"

    @property
    def title(self) -> dict[str, Any]:
        """Task, method, budget, seed."""
        return {"task": self.name, "method": self.method.label, "budget": self.budget, "seed": self.seed}

    def path(self, folder: Path) -> Path:
        """Its file: what decides its numbers is in the name, in words or by a digest."""
        version = str(getattr(task_named(self.task), "version", "1"))
        decides = [self.method.describe(), vars(self.judging), *([version] if version != "1" else [])]
        decides = json.dumps(decides, sort_keys=True, default=str)
        digest = hashlib.sha256(decides.encode()).hexdigest()[:12]
        return folder / "cells" / f"{self.name}-{self.method.label}-{self.budget}-{self.seed}-{digest}.json"

    def found(self, folder: Path) -> dict[str, Any] | None:
        """What was measured before; None where nothing was, where it failed, or where its file is damaged."""
        content = read(self.path(folder))
        return content if content and "error" not in content and content | self.title == content else None


def read(path: Path) -> dict[str, Any] | None:
    """The content of a cell's file; None where there is none, or it is damaged or of another version."""
    try:
        content = read_json(path)
        with understood(path):
            return content if _is_whole(content) else None
    except FileError:
        return None


def _is_whole(content: Mapping[str, Any]) -> bool:
    """Whether all is there that tables are made of."""
    kinds = {"format": str, "format_version": int, "task": str, "method": str, "budget": int, "seed": int}
    known = all(isinstance(content[name], kind) for name, kind in kinds.items())
    if not known or (content["format"], content["format_version"]) != (FORMAT, FORMAT_VERSION):
        return False
    if "error" in content:
        return isinstance(content["error"], str)
    scores = list(content["scores"].values())
    numbers = [content["draws"], *content["truths"].values(), *content["seconds"].values(), *chain(*scores)]
    complete = {len(content["observations"])} == {len(values) for values in scores}
    return complete and all(isinstance(value, int | float | None) for value in numbers)


def run(cell: Cell, folder: Path) -> dict[str, Any]:
    """Measure a cell and keep it as one atomic file; whatever it raises becomes its `error`.

    A cell that another run has measured in the meantime is taken from its file.
    """
    if (done := cell.found(folder)) is not None:
        return done
    header = {"format": FORMAT, "format_version": FORMAT_VERSION, **cell.title}
    header |= {"settings": cell.method.describe(), "versions": versions(), "commit": commit()}
    try:
        with _one_thread():
            content = header | _measured(cell, folder)
    except Exception as error:  # noqa: BLE001  (a red cell; the others go on)
        content = header | {"error": reason(error), "traceback": traceback.format_exc()}
    write_json(cell.path(folder), content)
    return content


def failed(cell: Cell, error: BaseException, folder: Path) -> dict[str, Any]:
    """A cell whose process did not come back."""
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, **cell.title, "error": reason(error)}
    write_json(cell.path(folder), content)
    return content


def _measured(cell: Cell, folder: Path) -> dict[str, Any]:
    task, clock, how = task_named(cell.task), _Clock(), cell.judging
    data = _simulated(task, cell, folder / "simulations")
    clock.lap("simulate")
    posterior = cell.method.train(task, data, cell.seed, cell.device, folder / "runs")
    record = getattr(posterior, "record", {})
    clock.lap("train", trained_for(record))
    at = observed(task, how.observations)
    exact = references(task, at, how.draws, folder / "references")
    clock.lap("reference")
    draws = posterior.sample(how.draws, at.x, seed=cell.seed).array
    clock.lap("sample")
    scores = at_observations(Evidence(task, at, posterior, exact, draws, cell.seed, cell.device), how.scores)
    truths = at_truths(task, posterior, how.truths, cell.seed) if how.truths else {}
    clock.lap("score")
    told = {"pool": record["pool"]} if "pool" in record else {}
    return told | {
        "observations": list(how.observations),
        "draws": how.draws,
        "dimension": len(task.prior),
        "simulations": int(data.valid.sum()),
        "scores": scores,
        "truths": truths,
        "seconds": clock.laps,
    }


def trained_for(record: Mapping[str, Any]) -> float | None:
    """Seconds of training by a record, of all members and of all parts; None where it says nothing."""
    inner = [part for part in record.values() if isinstance(part, Mapping) and "seconds" not in record]
    parts = record.get("members") or [part for part in inner if "seconds" in part]
    return sum(trained_for(part) or 0.0 for part in parts) if parts else record.get("seconds")


class _Clock:
    """Seconds by what they were spent on."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str, seconds: float | None = None) -> None:
        """Book the time since the last lap, or the seconds that are known better."""
        now = time.perf_counter()
        self.laps[name] = round(now - self._last if seconds is None else seconds, 2)
        self._last = now


def _simulated(task: Any, cell: Cell, folder: Path) -> Simulations:
    """The cell's simulations, shared by all methods: whoever needs them first draws them."""
    path = folder / f"{task.name}-{getattr(task, 'version', '')}-{cell.budget}-{cell.seed}.h5"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        private = Path(mkdtemp(dir=folder))
        simulate(task, cell.budget, out=private / path.name, seed=cell.seed, progress=False)
        (private / path.name).replace(path)
        rmtree(private, ignore_errors=True)
    return Simulations.open(path, prior=task.prior)


class _Threads:
    """Who has torch on one thread, and how many it had before."""

    def __init__(self) -> None:
        self.lock, self.users, self.before = Lock(), 0, 1


_threads = _Threads()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch on one thread, as it was afterwards: small networks are fastest so, and any number of workers agrees.

    Cells may overlap in threads of one process: what was before is what the first of them found.
    """
    with _threads.lock:
        before = torch.get_num_threads()  # asked in any case: a thread takes the number of others when it first asks
        _threads.before = _threads.before if _threads.users else before
        _threads.users += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _threads.lock:
            _threads.users -= 1
            torch.set_num_threads(_threads.before)


def versions() -> dict[str, str]:
    """Of the packages that decide numbers."""
    return {name: version(name) for name in PACKAGES}


def commit() -> str | None:
    """The library's commit, where it runs from a git checkout."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return None
