"""Campaigns: a simulator run over many draws of its prior, into one simulation file.

One task fills one shard, an atomic file of a fixed number of rows whose random numbers follow from (seed,
shard number) alone. So any number of workers of any engine gives the same file, to the bit; a killed campaign goes
on with the shards that are missing; and a longer one repeats a shorter one's rows, because the last shard is drawn
whole and then cut.
"""

import re
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, Executor
from contextlib import closing, contextmanager
from functools import partial
from glob import escape
from pathlib import Path
from typing import Any

from sbi_dgm import shards
from sbi_dgm import simulator as simulators
from sbi_dgm.data import native
from sbi_dgm.data.columns import blocks
from sbi_dgm.data.simulations import Simulations
from sbi_dgm.errors import FileError, OptionError, SbiError
from sbi_dgm.executors import ended, engine, require_picklable, require_timeout
from sbi_dgm.files import held, path_of, read_json, write_json
from sbi_dgm.kinds import is_a, whole
from sbi_dgm.progress import Bar
from sbi_dgm.shards import KEPT, SAME, NoSuccessError, Part, Plan, shard
from sbi_dgm.simulator import Simulator, reason

NOT_SHARED = "it is said to be done, but there is no file: do the workers share this file system?"
TOLD = 3


def simulate(  # noqa: PLR0913  (the one door to campaigns)
    simulator: str | Simulator,
    n: int,
    *,
    out: str | Path,
    seed: int = 0,
    workers: int = 1,
    executor: Executor | None = None,
    timeout: float | None = None,
    shard_rows: int = 1000,
    repeats: int = 1,
    overwrite: bool = False,
    progress: bool = True,
) -> Simulations:
    """Draw theta from the prior, run the simulator, and write both to `out`.

    A killed call made again goes on where it stopped; a larger `n` extends a finished file. Failed rows (an
    exception, a number that is not finite, a wrong shape) stay in the file with `valid = 0`, and why in `failure`.

    Args:
        simulator: name of an installed one, `package.module:Object`, or the object.
        n: rows in all.
        out: the simulation file; while running, shards lie in `<out>.shards/`.
        seed: with the shard's number it decides every random number.
        workers: processes of our own pool; 1 runs in this process.
        executor: any `concurrent.futures.Executor` instead, whose workers share the file system of `out`.
        timeout: seconds for one shard, after which its worker is replaced; for two workers or more.
        shard_rows: rows of one task.
        repeats: rows for each theta, simulated one by one: maps of one universe. They stand behind each other and
            share a number in `group`, by which they stay in one split. `n` and `shard_rows` are multiples of it.
        overwrite: draw anew, whatever an earlier campaign left behind, and replace `out` at the end. Killed, it
            goes on by a call without it.
        progress: show a progress bar.

    Raises:
        OptionError: a number is too small, or no multiple of `repeats`.
        FileError: `out` exists, holds another campaign, or cannot be written.
        DataError: the simulator's output does not fit its observables, or no row succeeded.
        SbiError: shards did not come back; the others are kept, and the same call goes on.

    Example::

        data = sbi_dgm.simulate("supernovae", 20_000, out="sn.h5", workers=2)

    """
    n, workers, shard_rows = whole("n", n, 1), whole("workers", workers, 1), whole("shard_rows", shard_rows, 1)
    seed, repeats = whole("seed", seed, 0), whole("repeats", repeats, 1)
    is_a("executor", executor, Executor | None, "a concurrent.futures.Executor")
    require_timeout(timeout, workers, executor)
    _check_repeats(n, shard_rows, repeats)
    found = simulators.find(simulator)
    plan, out = Plan(found, seed, shard_rows, repeats), path_of(out)
    if executor is None and workers > 1:
        require_picklable(plan, f"simulator {found.name!r}")
    folder = out.with_name(out.name + ".shards")
    with held(folder):
        kept = _prepare(out, folder, plan, n, overwrite)
        if progress and n < shard_rows:
            Bar.write(
                f"{shard_rows} rows are simulated, of which {n} are kept: shard_rows={n} makes no others.", sys.stderr
            )
        numbers = range(kept // plan.shard_rows, -(-n // plan.shard_rows))
        missing = _missing(plan, folder, numbers)
        with engine(executor, workers, len(missing), timeout) as pool:
            _run(plan, missing, len(numbers) - len(missing), folder, pool, progress)
        _write(out, kept, n, plan, folder, numbers)
    data = Simulations.open(out, prior=found.prior)
    _tell_failures(data, out)
    return data


def _write(out: Path, kept: int, n: int, plan: Plan, folder: Path, numbers: range) -> None:
    """The file of n rows, from what is kept of it and the shards, which are removed."""
    parts = [Part(out, kept)] if kept else []
    parts += [Part(shard(folder, i), min(plan.shard_rows, n - i * plan.shard_rows)) for i in numbers]
    try:
        with _disk():
            native.write(out, plan.header(), n, shards.joined(parts))
    except NoSuccessError:
        shutil.rmtree(folder)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _check_repeats(n: int, shard_rows: int, repeats: int) -> None:
    for name, value in (("n", n), ("shard_rows", shard_rows)):
        if value % repeats:
            below = value // repeats * repeats
            near = f"{below} or {below + repeats}" if below else repeats
            raise OptionError(f"{name} = {value} is no multiple of repeats = {repeats}: {near} would be.")


@contextmanager
def _disk() -> Iterator[None]:
    """Where files are written: what of a full disk, and the like, is not lost."""
    try:
        yield
    except FileError as error:
        raise FileError(f"{error} {KEPT}") from None


def _prepare(out: Path, folder: Path, plan: Plan, n: int, overwrite: bool) -> int:
    """Check what lies there already, and sweep; return how many finished rows to keep (whole shards)."""
    if overwrite:
        for path in folder.glob("[!.]*"):
            path.unlink()
    spec, note = plan.header().attributes(), folder / "campaign.json"
    noted = read_json(note) if note.exists() else None
    replacing = overwrite or (noted or {}).get("overwrite", False)
    kept = 0 if replacing or not out.exists() else _kept(out, folder, plan, n)
    if noted is not None:
        _require_same(folder, spec, noted)
    strangers = [] if noted else folder.glob("[0-9]*.h5")
    for path in (*strangers, *folder.glob(".*.part"), *out.parent.glob(f".{escape(out.name)}.*.part")):
        path.unlink(missing_ok=True)
    with _disk():
        write_json(note, spec | {"overwrite": replacing})
    return kept


def _kept(out: Path, folder: Path, plan: Plan, n: int) -> int:
    _require_same(out, plan.header().attributes(), native.read(out)[0].attributes())
    done = Simulations.open(out, prior=plan.simulator.prior)
    if len(done) >= n:
        if not any(int(p.stem) * plan.shard_rows >= len(done) for p in folder.glob("[0-9]*.h5")):
            shutil.rmtree(folder, ignore_errors=True)
        raise FileError(
            f"{out} exists already, with {len(done)} rows: ask for more, or pass overwrite=True (--overwrite)."
        )
    return len(done) // plan.shard_rows * plan.shard_rows


def _require_same(path: Path, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    for key in SAME:
        if wanted[key] != found.get(key):
            raise FileError(
                f"{path} holds another campaign: its {key} is {found.get(key)}, not {wanted[key]}. "
                "Name another file, or pass overwrite=True (--overwrite)."
            )


def _missing(plan: Plan, folder: Path, numbers: range) -> list[int]:
    """The shards to draw: those that are not there, or whose checksums fail."""
    there = {path.name for path in folder.iterdir()}
    missing = []
    for index in numbers:
        path = shard(folder, index)
        if path.name in there and shards.whole(path, plan):
            continue
        if path.name in there:
            warnings.warn(f"{path} is damaged, or of another campaign: it is drawn again.", stacklevel=3)
        missing.append(index)
    return missing


def _run(plan: Plan, missing: list[int], done: int, folder: Path, pool: Executor | None, progress: bool) -> None:
    """Fill the missing shards, here where there is no pool; tell which did not come back."""
    rows, failed, lost = plan.shard_rows, 0, dict[int, str]()
    fill = partial(shards.fill, plan, folder=folder.absolute())
    title, total = f"simulating {plan.simulator.name}", (done + len(missing)) * rows
    with (
        Bar(desc=title, total=total, initial=done * rows, unit="sim", disable=not progress) as bar,
        closing(ended(pool, fill, missing)) as results,
    ):
        for index, result in results:
            outcome = result() if pool is None else _outcome(plan.rows(index), result)
            if isinstance(outcome, Exception):
                lost[index] = reason(outcome)
                continue
            failed += outcome
            bar.set_postfix({"failed": failed} if failed else {}, refresh=False)
            bar.update(rows)
    there = {path.name for path in folder.iterdir()}
    lost |= {i: NOT_SHARED for i in missing if i not in lost and shard(folder, i).name not in there}
    if lost:
        told = "; ".join(f"{plan.rows(i)}: {why}" for i, why in sorted(lost.items())[:TOLD])
        more = f"; and {len(lost) - TOLD} more" if len(lost) > TOLD else ""
        raise SbiError(f"{len(lost)} of {len(missing)} shards did not come back: {told}{more}. {KEPT}")


def _outcome(rows: str, result: Callable[[], int]) -> int | Exception:
    """How many of the rows failed, or what became of the task."""
    try:
        return result()
    except SbiError:
        raise
    except BrokenExecutor as error:
        raise SbiError(f"{rows} did not come back: {error}. {KEPT}") from None
    except Exception as error:  # noqa: BLE001  (whatever became of it, the others go on)
        return error


def _tell_failures(data: Simulations, path: Path) -> None:
    """Warn how many rows failed, and of what the most; messages that differ by numbers alone are one."""
    failed = len(data) - int(data.valid.sum())
    if not failed:
        return
    counts, example = Counter[str](), dict[str, str]()
    column = {name: c for name, c in data.columns.items() if name == "failure"}
    for block in blocks(column, 0, len(data)) if column else []:
        for message in block["failure"][block["failure"] != b""]:
            kind = re.sub(r"[-+.\d]*\d", "#", message.decode())
            counts[kind] += 1
            example.setdefault(kind, message.decode())
    often = f" (most often: {example[counts.most_common(1)[0][0]]})" if counts else ""
    warnings.warn(f"{path}: {failed} of {len(data)} simulations failed{often}.", stacklevel=3)
