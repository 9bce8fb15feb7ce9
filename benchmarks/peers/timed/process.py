"""The other end of `worker.py`: a library in its own interpreter, and fresh interpreters for imports."""

import json
import os
import subprocess
import time
from pathlib import Path
from threading import Timer
from typing import Any

PEERS = Path(__file__).parents[1]
GRACE = 10  # seconds to end in


def surroundings(threads: int) -> dict[str, str]:
    """Environment variables of a process with so many threads."""
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    paths = os.pathsep.join([str(PEERS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | limits | {"PYTHONPATH": paths, "KERAS_BACKEND": "torch", "CUDA_VISIBLE_DEVICES": ""}


class Process:
    """A worker that answers one request after another.

    Args:
        name: of the library.
        python: its interpreter.
        threads: of its arithmetic.
        rows: the .npz of the problem.
        folder: where it runs, and leaves what its library leaves; `errors.txt` is what it said.
        limit: seconds that an answer may take.

    """

    def __init__(self, name: str, python: str, threads: int, rows: Path, folder: Path, limit: float) -> None:
        folder.mkdir(parents=True)
        words = [python, "-m", "timed.worker", name, str(rows)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": (folder / "errors.txt").open("w")}
        self.child = subprocess.Popen(words, cwd=folder, env=surroundings(threads), text=True, **pipes)  # noqa: S603
        self.limit, self.folder, self.ended = limit, folder, ""
        self.known = self._answer("starting")
        if "failed" in self.known:
            self.ended = self.known["failed"]

    def ask(self, measure: str, **arguments: Any) -> dict[str, Any]:
        """The answer to a request, or `failed`."""
        if self.ended:
            return {"failed": self.ended}
        self.child.stdin.write(json.dumps({"measure": measure, **arguments}) + "\n")  # type: ignore[union-attr]
        self.child.stdin.flush()  # type: ignore[union-attr]
        return self._answer(measure)

    def _answer(self, measure: str) -> dict[str, Any]:
        started = time.monotonic()
        guard = Timer(self.limit, self.child.kill)
        guard.start()
        line = self.child.stdout.readline()  # type: ignore[union-attr]
        guard.cancel()
        if line:
            return json.loads(line)
        late = f", after the {self.limit:g} s that it had" if time.monotonic() - started >= self.limit else ""
        last = ((self.folder / "errors.txt").read_text().strip().splitlines() or [""])[-1]
        self.ended = f"its process ended in {measure!r} with code {self.child.wait()}{late}: {last}"
        return {"failed": self.ended}

    def close(self) -> None:
        """No more requests; what is still being answered is given up."""
        self.child.stdin.close()  # type: ignore[union-attr]
        try:
            self.child.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.child.kill()


CLOCK = """
import time; a = time.perf_counter()
import torch; b = time.perf_counter()
{statement}; c = time.perf_counter()
print(b - a, c - b)
"""


def imported(python: str, statement: str, threads: int, folder: Path) -> dict[str, Any]:
    """Seconds of an import after torch's, in a fresh interpreter."""
    words = [python, "-c", CLOCK.format(statement=statement)]
    run = subprocess.run(words, cwd=folder, env=surroundings(threads), capture_output=True, text=True, check=False)  # noqa: S603
    if run.returncode:
        return {"failed": (run.stderr.strip().splitlines() or [""])[-1]}
    torch, library = map(float, run.stdout.split()[-2:])
    return {"seconds": library, "torch": torch}


def helped(python: str, folder: Path) -> dict[str, Any]:
    """Seconds of `sbi-dgm --help`."""
    words, started = [python, "-m", "sbi_dgm", "--help"], time.perf_counter()
    run = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603
    failed = {"failed": (run.stderr.strip().splitlines() or [""])[-1]}
    return failed if run.returncode else {"seconds": time.perf_counter() - started}
