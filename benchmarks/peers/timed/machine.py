"""This machine: what it is, how fast it multiplies matrices of these sizes, how fast it moves bytes.

OMP_NUM_THREADS=1 python -m timed.machine
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from timed.problem import BATCH, HIDDEN

BULK = 2**13  # rows of a large batch of draws, still in the cache
COPIED = 2**26  # float32 numbers, far beyond it
REPEATS, SECONDS = 5, 0.1


def description() -> dict[str, Any]:
    """Processor, cores, memory, system, date and commit."""
    here = Path(__file__).parent
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git(here, "rev-parse", "--short", "HEAD"),
        "changed_files": len((_git(here, "status", "--short", "--untracked-files=no") or "").splitlines()),
        "load": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _git(folder: Path, *words: str) -> str | None:
    run = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603, S607
    return run.stdout.strip() if run.returncode == 0 else None


def rates(python: str, threads: int) -> dict[str, float]:
    """`measured` in a process with so many threads."""
    place = {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(Path(__file__).parents[1])}
    words = [python, "-m", "timed.machine"]
    run = subprocess.run(words, env=os.environ | place, capture_output=True, text=True, check=True)  # noqa: S603
    return json.loads(run.stdout)


def measured() -> dict[str, float]:
    """GFLOP/s of (rows, H) times (H, H), for a training step's rows and for many; GB/s read and written by a copy."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    gflops = {}
    for name, rows in (("step", BATCH), ("bulk", BULK)):
        a, b, c = torch.randn(rows, HIDDEN), torch.randn(HIDDEN, HIDDEN), torch.empty(rows, HIDDEN)
        gflops[f"gflops_{name}"] = 2e-9 * rows * HIDDEN**2 / _fastest(lambda: torch.mm(a, b, out=c))  # noqa: B023
    source, target = torch.zeros(COPIED), torch.zeros(COPIED)
    return gflops | {"gb_per_second": 8e-9 * COPIED / _fastest(lambda: target.copy_(source))}


def _fastest(call: Callable[[], Any]) -> float:
    """Seconds of a call: the least over repeats of the mean over a tenth of a second."""
    call()
    best = float("inf")
    for _ in range(REPEATS):
        calls, started = 0, time.perf_counter()
        while calls == 0 or time.perf_counter() - started < SECONDS:
            call()
            calls += 1
        best = min(best, (time.perf_counter() - started) / calls)
    return best


if __name__ == "__main__":
    json.dump(measured(), sys.stdout)
