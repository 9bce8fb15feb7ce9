"""A benchmark from its suite to its tables: cells that are missing are run, on any executor, and kept one by one."""

import sys
from collections.abc import Iterator
from concurrent.futures import Executor, Future, as_completed
from contextlib import AbstractContextManager, nullcontext
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from sbi_dgm.benchmark import cells
from sbi_dgm.benchmark.cells import Cell
from sbi_dgm.benchmark.suite import Suite
from sbi_dgm.benchmark.table import Results
from sbi_dgm.errors import OptionError
from sbi_dgm.executors import Pool, require_picklable
from sbi_dgm.kinds import is_a, number, whole
from sbi_dgm.progress import Bar


def run_benchmark(
    suite: Suite,
    *,
    out: str | Path,
    workers: int = 1,
    executor: Executor | None = None,
    timeout: float | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> Results:
    """Run a suite, or what is missing of it, and write its tables.

    Every cell (task, method, budget, seed) is one atomic file in `out/cells/`; a killed call made again goes on, and
    one more finds everything done and gives the same table. A cell that fails is kept as such, and tried again by the
    next call; training goes on from its checkpoint. Simulations, runs and exact draws lie in `out` too, for other
    suites.

    Args:
        suite: what to run.
        out: folder.
        workers: processes of this machine; each cell has one thread.
        executor: any `concurrent.futures.Executor` instead, whose workers share the file system of `out`.
        timeout: seconds for a cell, for two workers or more.
        device: where networks run: "cpu", "cuda", ...
        progress: show a progress bar with the time left, and a line for each cell.

    Example::

        suite = Suite(tasks=["two_moons", MyTask()], estimators=["flow", my_method], budgets=[1000, 10_000])
        results = sbi_dgm.run_benchmark(suite, out="results", workers=2)
        print(results.table())

    """
    is_a("suite", suite, Suite, "a Suite")
    is_a("out", out, (str, PathLike), "a folder")
    workers = whole("workers", workers, 1)
    if timeout is not None and not number("timeout", timeout) > 0:
        raise OptionError(f"timeout = {timeout}: give seconds above 0.")
    if timeout is not None and (executor is not None or workers < 2):
        raise OptionError("timeout holds for our own pool alone: pass workers=2 or more, and no executor.")
    folder, wanted = Path(out).absolute(), suite.cells(device)
    found = {cell.path(folder): content for cell in wanted if (content := cell.found(folder)) is not None}
    missing = [cell for cell in wanted if cell.path(folder) not in found]
    with (
        _engine(executor, min(workers, len(missing)), timeout) as engine,
        Bar(desc="benchmark", total=len(wanted), initial=len(found), unit="cell", disable=not progress) as bar,
    ):
        for cell, content in _outcomes(missing, folder, engine):
            found[cell.path(folder)] = content
            if progress:
                bar.write(told(content), file=sys.stderr)
            bar.update()
    results = Results([found[cell.path(folder)] for cell in wanted])
    results.save(out)
    return results


def told(content: dict[str, Any]) -> str:
    """A cell in one line."""
    title = f"{content['task']} {content['method']} {content['budget']} seed {content['seed']}"
    if "error" in content:
        return f"{title}: FAILED: {content['error']}"
    score = next(iter(content["scores"]))
    mean = np.mean(np.array(content["scores"][score], float))
    return f"{title}: {score} {mean:.3f} ({sum(content['seconds'].values()):.0f} s)"


def _engine(executor: Executor | None, workers: int, timeout: float | None) -> AbstractContextManager[Any]:
    return nullcontext(executor) if executor is not None or workers < 2 else Pool(workers, timeout)


def _outcomes(missing: list[Cell], folder: Path, engine: Executor | None) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Cells as they end."""
    if engine is None:
        yield from ((cell, cells.run(cell, folder)) for cell in missing)
        return
    for cell in missing:
        require_picklable(cell, f"{cell.name} {cell.method.label}")
    tasks = {engine.submit(cells.run, cell, folder): cell for cell in missing}
    try:
        yield from ((tasks[task], _outcome(tasks[task], task, folder)) for task in as_completed(tasks))
    finally:
        for task in tasks:
            task.cancel()


def _outcome(cell: Cell, task: "Future[dict[str, Any]]", folder: Path) -> dict[str, Any]:
    try:
        return task.result()
    except Exception as error:  # noqa: BLE001  (its process died or hung: a red cell; the others go on)
        return cells.failed(cell, error, folder)
