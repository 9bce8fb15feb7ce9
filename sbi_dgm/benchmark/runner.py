"""A benchmark from its suite to its tables: cells that are missing are run, on any executor, and kept one by one."""

import sys
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from sbi_dgm.benchmark import cells
from sbi_dgm.benchmark.cells import Cell
from sbi_dgm.benchmark.suite import Suite
from sbi_dgm.benchmark.table import Results
from sbi_dgm.executors import ended, engine, require_picklable, require_timeout
from sbi_dgm.kinds import is_a, whole
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
    require_timeout(timeout, workers, executor)
    folder, wanted = Path(out).absolute(), suite.cells(device)
    found = {cell.path(folder): content for cell in wanted if (content := cell.found(folder)) is not None}
    missing = [cell for cell in wanted if cell.path(folder) not in found]
    with (
        engine(executor, workers, len(missing), timeout) as pool,
        Bar(desc="benchmark", total=len(wanted), initial=len(found), unit="cell", disable=not progress) as bar,
    ):
        for cell in missing if pool is not None else ():
            require_picklable(cell, f"{cell.name} {cell.method.label}")
        for cell, result in ended(pool, partial(cells.run, folder=folder), missing):
            found[cell.path(folder)] = content = _outcome(cell, result, folder)
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


def _outcome(cell: Cell, result: Callable[[], dict[str, Any]], folder: Path) -> dict[str, Any]:
    try:
        return result()
    except Exception as error:  # noqa: BLE001  (its process died or hung: a red cell; the others go on)
        return cells.failed(cell, error, folder)
