r"""The least time that the arithmetic and the bytes of a measure take on this machine.

With W numbers in the weight matrices, A outputs of layers for each row (as many as there are biases) and P parameters:

.. math::
    \text{a training step of } B \text{ rows:} \quad & 6 W B \text{ FLOP}, \quad 4\,(4 A B + 8 P) \text{ bytes} \\
    \text{a draw or a density:} \quad & 2 W \text{ FLOP}, \quad 4 \cdot 2 A \text{ bytes}

An output is written and read once forward, its gradient once backward; the optimiser reads weight, gradient and two
moments, and writes them. The floor is the larger of FLOP over the measured matrix rate and bytes over the measured
bandwidth (the roofline of Williams, Waterman and Patterson 2009). Splines and noise are left out, masked weights count
whole, and an autoregressive draw counts one pass: with its work shared out well it needs no more.
"""

from collections.abc import Mapping
from typing import NamedTuple

from timed.problem import BATCH, TRAIN, VALIDATION


class Work(NamedTuple):
    """Arithmetic and traffic of one unit of a measure, and which matrix rate counts."""

    flop: float
    moved: float
    rate: str


def work(measure: str, network: Mapping[str, int]) -> Work | None:
    """Of a step, an epoch, a draw, a density or a draw of calibration; None where matrices do not rule."""
    weights, parameters = network["weights"], network["parameters"]
    outputs = parameters - weights
    step = Work(6.0 * weights * BATCH, 4.0 * (4 * outputs * BATCH + 8 * parameters), "gflops_step")
    row = Work(2.0 * weights, 8.0 * outputs, "gflops_bulk")
    if measure == "step":
        return step
    if measure == "epoch":
        steps = TRAIN // BATCH
        flop, moved = (steps * a + VALIDATION * b for a, b in zip(step[:2], row[:2], strict=True))
        return Work(flop, moved, "gflops_step")
    return row if measure.startswith(("sample", "log_prob", "sbc")) else None


def seconds(needed: Work, machine: Mapping[str, float]) -> dict[str, float]:
    """Seconds of the arithmetic, of the bytes, and the larger."""
    arithmetic = needed.flop / (1e9 * machine[needed.rate])
    traffic = needed.moved / (1e9 * machine["gb_per_second"])
    return {"arithmetic": arithmetic, "bytes": traffic, "seconds": max(arithmetic, traffic)}
