"""One library in a process of its own: a request a line on the standard input, an answer a line, both JSON.

    python -m timed.worker sbi rows.npz

A request names a measure and its arguments. The answer holds what was measured, in seconds, or `failed`: why not.
Whatever the library prints goes to the standard error.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import Any, TextIO

from timed.problem import Problem
from timed.side import Side

LIBRARIES = {  # name -> module of its side, its arguments, what a user imports
    "sbi_dgm": ("timed.ours", {"layout": "coupling"}, "from sbi_dgm import Flow, calibrate, fit, load, simulate"),
    "sbi_dgm_compiled": ("timed.ours", {"layout": "coupling", "compiled": True}, None),
    "sbi_dgm_autoregressive": ("timed.ours", {"layout": "autoregressive"}, None),
    "sbi": ("timed.with_sbi", {}, "from sbi.inference import NPE"),
    "lampe": ("timed.with_lampe", {}, "from lampe.inference import NPE; from zuko.flows import NSF"),
    "bayesflow": ("timed.with_bayesflow", {}, "import bayesflow"),
}
LEAST = 0.5  # seconds that a short call is repeated for


def repeated(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call, the mean over as many as half a second holds, and what it returned."""
    calls, started, found = 0, time.perf_counter(), None
    while calls == 0 or time.perf_counter() - started < LEAST:
        found, calls = call(), calls + 1
    return (time.perf_counter() - started) / calls, found


class Worker:
    """The measures by name; what needs a posterior trains one first, if that has not been done.

    Args:
        side: the library.

    """

    def __init__(self, side: Side) -> None:
        self.side, self.trained = side, False

    def step(self, epochs: int) -> dict[str, Any]:
        """Seconds for a step and for an epoch, and the size of the network."""
        return {**self.side.steps(epochs), **self.side.network()}

    def train(self, epochs: int | None) -> dict[str, Any]:
        """The course of a training, its seconds in all, and its best loss."""
        started = time.perf_counter()
        trace = self.side.train(epochs)
        self.trained, seconds = True, time.perf_counter() - started
        return {"seconds": seconds, "loss": min(loss for _, loss in trace), "trace": trace}

    def _warm(self, epochs: int | None) -> None:
        if not self.trained:
            self.train(epochs)

    def sample(self, observations: int, draws: int, epochs: int | None) -> dict[str, Any]:
        """Seconds for draws at each observation."""
        self._warm(epochs)
        self.side.sample(min(observations, 2), 10)
        seconds, _ = repeated(lambda: self.side.sample(observations, draws))
        return {"seconds": seconds, "count": observations * draws, **self.side.network()}

    def log_prob(self, observations: int, each: int, epochs: int | None) -> dict[str, Any]:
        """Seconds for densities, and how many were done."""
        self._warm(epochs)
        seconds, count = repeated(lambda: self.side.log_prob(observations, each))
        return {"seconds": seconds, "count": count, **self.side.network()}

    def sbc(self, observations: int, draws: int, epochs: int | None) -> dict[str, Any]:
        """Seconds for the library's own calibration test."""
        self._warm(epochs)
        started = time.perf_counter()
        self.side.sbc(observations, draws)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "count": observations * draws, **self.side.network()}

    def simulate(self, rows: int) -> dict[str, Any]:
        """Seconds for simulations."""
        return {"seconds": repeated(lambda: self.side.simulate(rows))[0], "count": rows}


def greeting(name: str, rows: str) -> tuple[Worker, dict[str, Any]]:
    """The worker of a library, and what it is."""
    import torch

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    module, arguments, _ = LIBRARIES[name]
    side: Side = import_module(module).made(Problem.load(rows), **arguments)
    return Worker(side), {"differs": side.differs, "versions": {p: version(p) for p in side.packages}}


def guarded(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a call found, or how it failed; with the largest memory of this process so far."""
    try:
        found = call()
    except Exception as error:  # noqa: BLE001  (whatever a library raises is the answer to the request)
        found = {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}
    return found | {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}


def serve(name: str, rows: str, answers: TextIO) -> None:
    """Answer until the requests end."""
    worker: list[Worker] = []

    def begun() -> dict[str, Any]:
        made, known = greeting(name, rows)
        worker.append(made)
        return known

    print(json.dumps(guarded(begun)), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        measure = getattr(worker[0], request.pop("measure"))
        print(json.dumps(guarded(lambda: measure(**request))), file=answers, flush=True)  # noqa: B023


if __name__ == "__main__":
    own = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.argv[1], sys.argv[2], own)
