"""Training on files larger than memory: rows a second and peak memory, streamed and in memory, beside sbi.

Each measurement is a process of its own. The files (spectra of 1,024 numbers, four parameters, uncompressed and gzip)
are written first, and kept. Streamed and in-memory runs alternate, `--repeats` times. Results go to
`benchmarks/results/streaming.json`, measurement by measurement: the same command goes on.

    python benchmarks/streaming.py --gib 4 --folder /tmp/streaming
    python benchmarks/streaming.py --gib 4 --folder /tmp/streaming --sbi path/to/python    # an environment with sbi
    python benchmarks/streaming.py --sorted    # how well blocks of a file sorted by theta mix
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

NUMBERS, BATCH, BLOCK = 1024, 512, 8192
RESULTS = Path(__file__).parent / "results" / "streaming.json"
NAMES = ("a", "b", "c", "d")
CHUNK = (256, NUMBERS)
MODES = ("stream", "memory")


def write(path: Path, gib: float, compression: str | None) -> None:
    """Spectra that depend linearly on four uniform parameters, with noise, rounded to what a detector would keep."""
    import h5py
    import numpy as np

    rows, part = int(gib * 2**30 / (4 * NUMBERS)), path.with_suffix(".part")
    rng = np.random.default_rng(0)
    response = rng.normal(size=(len(NAMES), NUMBERS)).astype("f4")
    with h5py.File(part, "w") as file:
        theta = file.create_dataset("theta", (rows, len(NAMES)), "f8", chunks=(BLOCK, len(NAMES)))
        x = file.create_dataset("x", (rows, NUMBERS), "f4", chunks=CHUNK, compression=compression)
        for first in range(0, rows, BLOCK):
            n = min(BLOCK, rows - first)
            drawn = rng.random((n, len(NAMES)))
            theta[first : first + n] = drawn
            noisy = drawn.astype("f4") @ response + 4 * rng.standard_normal((n, NUMBERS), dtype="f4")
            x[first : first + n] = np.round(noisy * 128) / 128
    part.rename(path)


def ours(path: str, mode: str, steps: int) -> dict[str, float]:
    """Set up as `fit` does and take `steps` steps: rows a second, seconds before the first, peak memory."""
    import torch

    from sbi_dgm import Prior, Simulations, SplitRule, Training
    from sbi_dgm.data.reading import Reading
    from sbi_dgm.data.source import Source
    from sbi_dgm.distributions import Uniform
    from sbi_dgm.embeddings.fusion import Auto
    from sbi_dgm.estimators.base import FAMILIES
    from sbi_dgm.estimators.flow import Flow
    from sbi_dgm.loop import Run
    from sbi_dgm.model import Model, network
    from sbi_dgm.options import describe
    from sbi_dgm.parameters import Parameter
    from sbi_dgm.preparation import prepare

    torch.set_num_threads(1)
    started = time.perf_counter()
    prior = Prior([Parameter(name, Uniform(0, 1)) for name in NAMES])
    data = Simulations.open(path, theta="theta", x="x", prior=prior)
    data.require_rows()
    how, parts, device = Training(batch_size=BATCH), data.split(SplitRule()), torch.device("cpu")
    ready = prepare(Source(data, prior), parts, Reading(mode=mode), how, seed=0, device=device)  # type: ignore[arg-type]
    model = Model(prior, True, data.observables, {}, describe(FAMILIES, Flow()), {})
    run = Run(network(model, ready.scalers, Auto(), 0), ready.batches, ready.held_out, how, 0, None)
    run.validate()
    run._step()
    prepared = time.perf_counter() - started
    steps = min(steps, run.batches.per_epoch)
    started = time.perf_counter()
    for _ in range(steps):
        run._step()
    seconds = time.perf_counter() - started
    return {
        "rows": len(data),
        "rows_per_second": steps * BATCH / seconds,
        "prepared": prepared,
        "epoch": steps / run.batches.per_epoch,
    }


def sbis(path: str, gib: float) -> dict[str, float]:
    """One epoch of sbi's NPE on the first rows of the file: all in memory, as it must be."""
    import h5py
    import torch
    from sbi.inference import NPE
    from sbi.neural_nets import posterior_nn
    from sbi.utils import BoxUniform
    from torch import nn

    torch.set_num_threads(1)
    with h5py.File(path) as file:
        rows = min(len(file["x"]), int(gib * 2**30 / (4 * NUMBERS)))
        theta, x = torch.as_tensor(file["theta"][:rows]).float(), torch.as_tensor(file["x"][:rows])
    summary = nn.Sequential(nn.Linear(NUMBERS, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 8))
    build = posterior_nn("nsf", hidden_features=64, num_transforms=3, num_bins=8, embedding_net=summary)
    started = time.perf_counter()
    inference = NPE(BoxUniform(torch.zeros(len(NAMES)), torch.ones(len(NAMES))), build, show_progress_bars=False)
    inference.append_simulations(theta, x).train(training_batch_size=BATCH, max_num_epochs=1)
    seconds = time.perf_counter() - started
    return {"rows": rows, "rows_per_second": 0.9 * rows / seconds, "seconds": seconds}


def write_sorted(path: Path, rows: int = 50_000, numbers: int = 4096) -> None:
    """Rows in the order of their first parameter, 64 of them in a block, so that a window holds one in twelve."""
    import h5py
    import numpy as np

    rng = np.random.default_rng(1)
    theta = rng.random((rows, 2))
    theta = theta[np.argsort(theta[:, 0])]
    response = rng.normal(size=(2, numbers)).astype("f4")
    with h5py.File(path, "w") as file:
        file["theta"] = theta
        x = file.create_dataset("x", (rows, numbers), "f4", chunks=(64, numbers))
        for first in range(0, rows, 1000):
            part = theta[first : first + 1000].astype("f4")
            x[first : first + 1000] = np.sin(3 * part) @ response + 8 * rng.standard_normal((1000, numbers), dtype="f4")


def mixing(path: str, mode: str, seed: int) -> dict[str, float]:
    """Train to the end on the sorted file: the best validation loss, of all validation rows."""
    import torch

    from sbi_dgm import Simulations, fit
    from sbi_dgm.data.reading import Reading

    torch.set_num_threads(1)
    prior = {name: {"uniform": [0, 1]} for name in ("a", "b")}
    data = Simulations.open(path, theta="theta", x="x", prior=prior)
    reading = Reading(mode=mode, validation_mib=128)  # type: ignore[arg-type]
    record = fit(data, reading=reading, seed=seed, progress=False).record
    return {key: record[key] for key in ("best_validation_loss", "best_step", "steps", "seconds")}


def child(arguments: list[str]) -> None:
    """One measurement, printed as JSON."""
    kind, *rest = arguments
    if kind == "sbi":
        found = sbis(rest[0], float(rest[1]))
    elif kind == "mixing":
        found = mixing(rest[0], rest[1], int(rest[2]))
    else:
        found = ours(rest[0], kind, int(rest[1]))
    found["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(found))


def results() -> dict:
    """What has been measured so far."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def measured(key: str, python: str, *arguments: str) -> dict:
    """A measurement, run in a process of its own unless it is there already."""
    if key not in results():
        print("measuring", key, flush=True)
        words = [python, str(Path(__file__).resolve()), "--child", *arguments]
        with TemporaryDirectory() as folder:  # sbi leaves logs where it runs
            run = subprocess.run(words, capture_output=True, text=True, check=False, cwd=folder)  # noqa: S603
        failed = {"failed": f"exit code {run.returncode}: {(run.stderr.strip().splitlines() or [''])[-1]}"}
        found = json.loads(run.stdout.splitlines()[-1]) if run.returncode == 0 else failed
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results() | {key: found}, indent=2) + "\n")
        print("  ", found, flush=True)
    return results()[key]


def table(done: dict) -> str:
    """The measurements as Markdown."""
    lines = ["| run | rows | rows/s | peak GiB | before the first step, s |", "|---|---|---|---|---|"]
    for key, found in done.items():
        if "rows_per_second" in found:
            before = f"{found['prepared']:.0f}" if "prepared" in found else ""
            lines.append(
                f"| {key} | {found['rows']:,} | {found['rows_per_second']:,.0f} | {found['peak_gib']:.2f} | {before} |"
            )
    for kind, gib in sorted({(k.split()[0], k.split()[2]) for k in done if k.split()[1] == "stream" and "GiB" in k}):
        rates = {
            m: [v["rows_per_second"] for k, v in done.items() if k.startswith(f"{kind} {m} {gib} ")] for m in MODES
        }
        if all(rates.values()):
            ratio = median(rates["stream"]) / median(rates["memory"])
            lines.append(f"\n{kind}, {gib} GiB: streamed / in memory = {ratio:.3f} (medians)")
    losses = {m: [v["best_validation_loss"] for k, v in done.items() if k.startswith(f"sorted {m}")] for m in MODES}
    if all(losses.values()):
        gap = [a - b for a, b in zip(losses["stream"], losses["memory"], strict=False)]
        lines.append(f"\nsorted by theta: streamed - shuffled whole = {sum(gap) / len(gap):+.4f} nats (seeds: {gap})")
    return "\n".join(lines)


def speed(a: argparse.Namespace) -> None:
    """Streamed and in memory, alternating, on files of both kinds."""
    for kind in a.kinds.split(","):
        path = a.folder / f"{kind}_{a.gib:g}.h5"
        if not path.exists():
            print("writing", path, flush=True)
            write(path, a.gib, None if kind == "plain" else kind)
    for repeat in range(a.repeats):
        for kind in a.kinds.split(","):
            for mode in MODES:
                path = str(a.folder / f"{kind}_{a.gib:g}.h5")
                measured(f"{kind} {mode} {a.gib:g} GiB #{repeat}", sys.executable, mode, path, str(a.steps))


def peer(a: argparse.Namespace) -> None:
    """One epoch of sbi's, on half of the file after half until it fits."""
    gib = a.gib
    while "failed" in measured(f"sbi {gib:g} GiB", a.sbi, "sbi", str(a.folder / f"plain_{a.gib:g}.h5"), str(gib)):
        gib /= 2


def order(a: argparse.Namespace) -> None:
    """Trainings on a file sorted by theta."""
    path = a.folder / "sorted.h5"
    if not path.exists():
        write_sorted(path)
    for seed in range(a.repeats):
        for mode in MODES:
            measured(f"sorted {mode} #{seed}", sys.executable, "mixing", str(path), mode, str(seed))


def main() -> None:
    """Measure what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=4.0)
    parser.add_argument("--kinds", default="plain,gzip")
    parser.add_argument("--folder", type=Path, default=Path("streaming_files"))
    parser.add_argument("--steps", type=int, default=10**9, help="at most so many steps of the epoch")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--sbi", help="python of an environment with sbi: measure that alone")
    parser.add_argument("--sorted", action="store_true", help="mixing on a file sorted by theta alone")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        return child(a.child)
    a.folder = a.folder.resolve()
    a.folder.mkdir(parents=True, exist_ok=True)
    (order if a.sorted else peer if a.sbi else speed)(a)
    print(table(results()))
    return None


if __name__ == "__main__":
    main()
