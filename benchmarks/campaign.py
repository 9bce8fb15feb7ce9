"""What a campaign costs beside its simulator, and whether it survives being killed.

    python benchmarks/campaign.py [--rows 20000] [--workers 2] [--kill 100]

Overhead: wall time x workers / time inside the simulator - 1, everything included: processes, shards, fsync, assembly.
Kills: a campaign of 1,000 shards whose whole process group gets SIGKILL at random moments, between shards, inside them
and while they are joined; then it is let finish, and its file compared with that of a campaign left alone. Both go into
`benchmarks/results/campaign.json`.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np

from sbi_dgm import Observable, Parameter, Prior, Uniform, simulate
from sbi_dgm.files import write_json

RESULTS = Path(__file__).parent / "results" / "campaign.json"
SHARDS, SHARD_ROWS = 1000, 10


class Sleeper:
    """A vector of 100 numbers after so many seconds a row; it notes how long it took."""

    name, version = "sleeper", "1"

    def __init__(self, seconds: float, notes: Path | None = None) -> None:
        self.seconds, self.notes = seconds, notes
        self.prior = Prior([Parameter("a", Uniform(0, 1)), Parameter("b", Uniform(0, 1))])
        self.observables = {"x": Observable((100,))}

    def __call__(self, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        start = time.perf_counter()
        x = theta[:, :1] + rng.normal(size=(len(theta), 100))
        for done in range(1, len(theta) + 1):
            time.sleep(max(0.0, start + done * self.seconds - time.perf_counter()))
        if self.notes is not None:
            with self.notes.open("a") as file:
                file.write(f"{time.perf_counter() - start}\n")
        return x


def overhead(rows: int, workers: int, shard_rows: int) -> dict[str, float]:
    """One campaign at 1 ms a row."""
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder, "notes")
        start = time.perf_counter()
        simulate(
            Sleeper(1e-3, notes), rows, out=Path(folder, "a.h5"), workers=workers, shard_rows=shard_rows, progress=False
        )
        wall = time.perf_counter() - start
        inside = sum(map(float, notes.read_text().split()))
    figures = {"wall_s": wall, "simulator_s": inside, "overhead": wall * workers / inside - 1}
    return {"rows": rows, "workers": workers, "shard_rows": shard_rows} | {k: round(v, 4) for k, v in figures.items()}


def campaign(out: str) -> None:
    """The campaign to be killed; `<out>.begun` says that it is on its way."""
    Path(out + ".begun").touch()
    simulate(Sleeper(1e-4), SHARDS * SHARD_ROWS, out=out, workers=2, shard_rows=SHARD_ROWS, progress=False)


def killed(folder: Path, kills: int, seed: int = 0) -> dict[str, object]:
    """Kill a campaign so many times, let it finish, compare."""
    out, begun, rng = folder / "killed.h5", folder / "killed.h5.begun", np.random.default_rng(seed)
    start, shards_at_kill, rounds = time.perf_counter(), [], 0
    command = [sys.executable, __file__, "--campaign", str(out)]
    while len(shards_at_kill) < kills:
        begun.unlink(missing_ok=True)
        process = subprocess.Popen(command, start_new_session=True)  # noqa: S603
        while process.poll() is None and not begun.exists():
            time.sleep(0.001)
        goal = min(SHARDS, count(folder) + int(rng.integers(20)))
        while process.poll() is None and count(folder) < goal:
            time.sleep(0.001)
        if not wait(process, float(rng.uniform(0, 3 if goal == SHARDS else 0.05))):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            shards_at_kill.append(count(folder))
        else:
            rounds += 1
            compare(out, folder / "whole.h5")
            out.unlink()
        print(f"\r{len(shards_at_kill)} kills, {rounds} files finished", end="", flush=True)
    subprocess.run(command, check=True)  # noqa: S603
    compare(out, folder / "whole.h5")
    left = [
        path.name for path in folder.iterdir() if path not in (out, folder / "whole.h5") and path.suffix != ".begun"
    ]
    return {
        "shards": SHARDS,
        "kills": kills,
        "files": rounds + 1,
        "identical": True,
        "left_behind": left,
        "shards_at_kill": shards_at_kill,
        "seconds": round(time.perf_counter() - start, 1),
    }


def count(folder: Path) -> int:
    """Shards that are there."""
    return len(list(folder.glob("killed.h5.shards/[0-9]*.h5")))


def wait(process: "subprocess.Popen[bytes]", seconds: float) -> bool:
    """Whether the process ends within so many seconds."""
    try:
        return process.wait(seconds) is not None
    except subprocess.TimeoutExpired:
        return False


def compare(one: Path, other: Path) -> None:
    """Raise where the files differ in more than the time of their making."""
    if content(one) != content(other):
        raise RuntimeError(f"{one} differs from {other}.")


def content(path: Path) -> dict[str, object]:
    """Attributes and raw bytes of a file."""
    with h5py.File(path) as file:
        found: dict[str, object] = {k: str(v) for k, v in file.attrs.items() if k != "created"}
        file.visititems(lambda name, item: found.update({name: getattr(item, "dtype", None) and item[()].tobytes()}))
    return found


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kill", type=int, default=0, metavar="TIMES")
    parser.add_argument("--campaign", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.campaign:
        campaign(a.campaign)
        return
    result = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if a.kill:
        with tempfile.TemporaryDirectory() as folder:
            campaign(str(Path(folder, "whole.h5")))
            result["kill"] = killed(Path(folder), a.kill)
        print(f"\n{result['kill']}")
    else:
        result["overhead"] = [overhead(a.rows, a.workers, shard_rows) for shard_rows in (100, 500, 1000)]
        for row in result["overhead"]:
            print("  ".join(f"{name} {value:<8}" for name, value in row.items()))
    RESULTS.parent.mkdir(exist_ok=True)
    write_json(RESULTS, result)


if __name__ == "__main__":
    main()
