"""Where the time of a training step goes: torch's profiler over sbi_dgm's own loop, as text.

    python benchmarks/peers/profile_step.py [--layout coupling] [--threads 1] [-o profile.txt]

The rows, architecture and batch of `speed.py`. Two epochs are trained first, then one is profiled, with its validation
and what `fit` does around it. The table counts operations of all steps together; the head says how many fall on a step,
and what share of the time multiplies matrices. A profiled step is slower than another: read shares, not seconds.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from timed import machine
from timed.problem import BATCH, TRAIN, Problem

RESULTS = Path(__file__).parents[1] / "results" / "speed" / "profile.txt"
MATRICES = (
    "aten::addmm",
    "aten::mm",
    "aten::bmm",
    "aten::baddbmm",
    "aten::linear",
    "aten::matmul",
    "aten::_addmm_activation",
)
STEPS, ROWS = TRAIN // BATCH, 40  # steps that are profiled; rows of the table


def profiled(layout: str) -> Any:
    """The profile of an epoch of training, started and warm."""
    from timed.ours import Ours
    from torch.profiler import ProfilerActivity, profile

    from sbi_dgm import Training

    side = Ours(Problem.drawn(), layout)
    training = Training(batch_size=BATCH, max_rounds=2, decay=0.0)
    side._fitted(training)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        side._fitted(training.model_copy(update={"max_rounds": 1}))
    return found.key_averages()


def head(averages: Any, layout: str, threads: int, seconds: float) -> str:
    """What was profiled, where, and the figures of a step."""
    place = machine.description()
    operations = [event for event in averages if event.key.startswith("aten::")]
    total = sum(event.self_cpu_time_total for event in averages)
    matrices = sum(event.self_cpu_time_total for event in operations if event.key in MATRICES)
    return "\n".join(
        [
            f"Training step of a spline flow, {layout} layout, {BATCH} rows, {threads} thread(s), {STEPS} steps.",
            f"{place['processor']}, {place['cores']} cores, {place['date']}, commit {place['commit']},",
            f"of which {place['changed_files']} files were changed.",
            f"{sum(event.count for event in operations) / STEPS:,.0f} calls of torch a step, with those within others.",
            f"{total / STEPS / 1e3:.2f} ms a step under the profiler, {matrices / total:.1%} of it in matrix products.",
            f"{seconds:.1f} s in all.",
        ]
    )


def main() -> None:
    """Profile, write, print the head."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", default="coupling", choices=["coupling", "autoregressive"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--out", type=Path, default=RESULTS)
    a = parser.parse_args()
    out = a.out.resolve()
    import torch

    torch.set_num_threads(a.threads)
    started = time.perf_counter()
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        averages = profiled(a.layout)
        os.chdir(out.anchor)
    said = head(averages, a.layout, a.threads, time.perf_counter() - started)
    out.parent.mkdir(parents=True, exist_ok=True)
    table = averages.table(sort_by="self_cpu_time_total", row_limit=ROWS, max_name_column_width=60)
    out.write_text(f"{said}\n\n{table}\n")
    print(said)


if __name__ == "__main__":
    main()
