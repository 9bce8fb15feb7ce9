"""Campaigns: a simulator run over many draws of its prior, into one simulation file.

One task fills one shard, an atomic file of a fixed number of rows whose random numbers follow from (seed,
shard number) alone. So any number of workers gives the same file, to the bit; a killed campaign goes on with
the shards that are missing; and a longer one repeats a shorter one's rows, because the last shard is drawn
whole and then cut.
"""

import json
import pickle
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from sbi_dgm import simulator as simulators
from sbi_dgm.data import format as layout
from sbi_dgm.data.format import Block, Header
from sbi_dgm.data.simulations import Simulations
from sbi_dgm.errors import DataError, FileError, OptionError, SbiError
from sbi_dgm.files import write_json
from sbi_dgm.seeds import numpy_generator
from sbi_dgm.simulator import Simulator


class Plan(NamedTuple):
    """What makes a campaign's rows, apart from their number."""

    simulator: Simulator
    seed: int
    shard_rows: int

    def header(self) -> Header:
        """The header of its files; two plans with one header make the same rows."""
        made_by = {
            "name": self.simulator.name,
            "version": str(getattr(self.simulator, "version", "")),
            "seed": self.seed,
            "shard_rows": self.shard_rows,
        }
        prior = self.simulator.prior
        return Header(prior.parameters, self.simulator.observables, prior.describe(), made_by)


class Report(NamedTuple):
    """What a shard's worker says: its rows, how many failed, and the first failure's message."""

    rows: int
    failed: int
    message: str


def simulate(  # noqa: PLR0913  (the one door to campaigns)
    simulator: str | Simulator,
    n: int,
    *,
    out: str | Path,
    seed: int = 0,
    workers: int = 1,
    executor: Executor | None = None,
    shard_rows: int = 1000,
    overwrite: bool = False,
    progress: bool = True,
) -> Simulations:
    """Draw theta from the prior, run the simulator, and write both to `out`.

    A killed call made again goes on where it stopped; a larger `n` extends a finished file. Failed rows (an
    exception, a number that is not finite) stay in the file with `valid = 0`.

    Args:
        simulator: name of an installed one, or the object.
        n: rows in all.
        out: the simulation file; while running, shards lie in `<out>.shards/`.
        seed: with the shard's number it decides every random number.
        workers: processes of our own pool; 1 runs in this process.
        executor: any `concurrent.futures.Executor` instead.
        shard_rows: rows of one task.
        overwrite: replace `out` and whatever an earlier campaign left behind.
        progress: show a progress bar.

    Raises:
        FileError: `out` exists, or holds another campaign.
        DataError: the simulator's output does not fit its observables, or no row succeeded.

    Example::

        data = sbi_dgm.simulate("supernovae", 20_000, out="sn.h5", workers=2)

    """
    for name, value in (("n", n), ("workers", workers), ("shard_rows", shard_rows)):
        if value < 1:
            raise OptionError(f"{name} = {value}: at least 1 is needed.")
    found = simulators.find(simulator) if isinstance(simulator, str) else simulator
    plan, out = Plan(found, seed, shard_rows), Path(out)
    folder = out.with_name(out.name + ".shards")
    kept = _prepare(out, folder, plan, n, overwrite)
    shards = range(kept // shard_rows, -(-n // shard_rows))
    failures = _run(plan, [i for i in shards if not _complete(_shard(folder, i))], folder, workers, executor, progress)
    layout.write(out, plan.header(), n, _assembled(out, kept, [_shard(folder, i) for i in shards], n))
    shutil.rmtree(folder)
    data = Simulations.open(out, prior=found.prior)
    if not data.valid.any():
        out.unlink()
        raise DataError(f"all {n} simulations failed: {failures or 'their output is not finite'}.")
    return data


def _prepare(out: Path, folder: Path, plan: Plan, n: int, overwrite: bool) -> int:
    """Check what lies there already; return how many finished rows to keep (whole shards)."""
    if overwrite:
        out.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
    spec, note = plan.header().attributes(), folder / "campaign.json"
    kept = 0
    if out.exists():
        done = Simulations.open(out, prior=plan.simulator.prior)
        _require_same(out, spec, done.header.attributes())
        if len(done) >= n:
            if not any(int(p.stem) * plan.shard_rows >= len(done) for p in folder.glob("[0-9]*.h5")):
                shutil.rmtree(folder, ignore_errors=True)
            raise FileError(
                f"{out} exists already, with {len(done)} rows: ask for more, or pass overwrite=True (--overwrite)."
            )
        kept = len(done) // plan.shard_rows * plan.shard_rows
    if note.exists():
        _require_same(folder, spec, json.loads(note.read_text()))
    write_json(note, spec)
    return kept


def _require_same(path: Path, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    for key in ("simulator", "prior", "observables"):
        if wanted[key] != found.get(key):
            raise FileError(
                f"{path} holds another campaign: its {key} is {found.get(key)}, not {wanted[key]}. "
                "Name another file, or pass overwrite=True (--overwrite)."
            )


def _shard(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.h5"


def _complete(path: Path) -> bool:
    try:
        return path.exists() and layout.read(path) is not None
    except FileError:
        return False


def _run(plan: Plan, missing: list[int], folder: Path, workers: int, executor: Executor | None, progress: bool) -> str:
    """Fill the missing shards; return the first failure's message."""
    message, failed = "", 0
    with ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=len(missing) * plan.shard_rows, unit="sim", disable=not progress))
        bar.set_description(f"simulating {plan.simulator.name}")
        if executor is None and workers > 1:
            _require_picklable(plan)
            executor = stack.enter_context(ProcessPoolExecutor(workers))
        for report in _reports(plan, missing, folder, executor):
            bar.update(report.rows)
            message, failed = message or report.message, failed + report.failed
            if failed:
                bar.set_postfix(failed=failed)
    return message


def _require_picklable(plan: Plan) -> None:
    try:
        pickle.dumps(plan)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise OptionError(
            f"simulator {plan.simulator.name!r} cannot be sent to other processes ({error}): define its class at the "
            "top level of a module, or use workers=1."
        ) from None


def _reports(plan: Plan, missing: list[int], folder: Path, executor: Executor | None) -> Iterator[Report]:
    if executor is None:
        yield from (fill(plan, index, _shard(folder, index)) for index in missing)
        return
    tasks = [executor.submit(fill, plan, index, _shard(folder, index)) for index in missing]
    try:
        yield from (task.result() for task in as_completed(tasks))
    except BrokenExecutor:
        raise SbiError(
            "a worker died (killed, or out of memory): the finished shards are kept; the same call again goes on."
        ) from None
    finally:
        for task in tasks:
            task.cancel()


def fill(plan: Plan, index: int, path: Path) -> Report:
    """Draw one shard and write it."""
    rng = numpy_generator(plan.seed, index)
    theta = plan.simulator.prior.draw(plan.shard_rows, rng)
    x, message = _call(plan, theta, rng, index)
    valid = np.all([np.isfinite(a).reshape(len(a), -1).all(-1) for a in x.values()], axis=0)
    if message:
        valid &= ~np.isin(np.arange(len(theta)), list(message))
    columns = {f"x/{name}": _blank(a, valid) for name, a in x.items()}
    shard = np.full(len(theta), index, np.uint64)
    block = {"theta": theta, **columns, "valid": valid.astype(np.uint8), "seed": shard}
    layout.write(path, plan.header(), len(theta), [block])
    return Report(len(theta), int((~valid).sum()), next(iter(message.values()), ""))


def _blank(a: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Failed rows hold NaN, or 0 for integers."""
    a = a.copy()
    a[~valid] = np.nan if a.dtype.kind == "f" else 0
    return a


def _call(
    plan: Plan, theta: np.ndarray, rng: np.random.Generator, index: int
) -> tuple[dict[str, np.ndarray], dict[int, str]]:
    """The shard's observables, and the message of each row that raised."""
    try:
        return _observables(plan.simulator, plan.simulator(theta, rng), len(theta)), {}
    except DataError:
        raise
    except Exception:  # noqa: BLE001  (a simulator may raise anything; find the rows that do)
        return _one_by_one(plan, theta, index)


def _one_by_one(plan: Plan, theta: np.ndarray, index: int) -> tuple[dict[str, np.ndarray], dict[int, str]]:
    rows: list[dict[str, np.ndarray] | None] = []
    messages: dict[int, str] = {}
    for i, one in enumerate(theta):
        try:
            output = plan.simulator(one[None], numpy_generator(plan.seed, index, i))
            rows.append(_observables(plan.simulator, output, 1))
        except Exception as error:  # noqa: BLE001
            rows.append(None)
            messages[i] = f"{type(error).__name__}: {error}"
    model = next((row for row in rows if row is not None), None)
    if model is None:
        model = {n: np.full((1, *o.shape), np.nan, np.float32) for n, o in plan.simulator.observables.items()}
    filled = [model if row is None else row for row in rows]
    return {name: np.concatenate([row[name] for row in filled]) for name in model}, messages


def _observables(simulator: Simulator, output: Any, rows: int) -> dict[str, np.ndarray]:
    """The output as a dict of arrays, floats in float32, checked against the declared shapes."""
    declared = simulator.observables
    arrays = output if isinstance(output, Mapping) else {next(iter(declared)): output}
    result = {}
    for name, observable in declared.items():
        if name not in arrays:
            raise DataError(f"simulator {simulator.name!r} gave {sorted(arrays)}, without its observable {name!r}.")
        a, shape = np.asarray(arrays[name]), (rows, *observable.shape)
        if a.shape != shape:
            raise DataError(f"simulator {simulator.name!r}: observable {name!r} has shape {a.shape}, expected {shape}.")
        result[name] = a.astype(np.float32) if a.dtype.kind == "f" else a
    return result


def _assembled(out: Path, kept: int, shards: list[Path], n: int) -> Iterator[Block]:
    """The rows to keep, then the shards', cut at n."""
    dtypes = _dtypes([out, *shards] if kept else shards)
    if kept:
        yield from layout.blocks(layout.read(out)[1], 0, kept)
    for path in shards:
        columns = layout.read(path)[1]
        rows = min(n - kept, columns["theta"].shape[0])
        yield {name: _typed(column[:rows], dtypes.get(name)) for name, column in columns.items()}
        kept += rows


def _dtypes(paths: list[Path]) -> dict[str, np.dtype]:
    """Of the columns, by the first file with a success."""
    for path in paths:
        columns = layout.read(path)[1]
        if columns["valid"][:].any():
            return {name: column.dtype for name, column in columns.items()}
    return {}


def _typed(a: np.ndarray, dtype: np.dtype | None) -> np.ndarray:
    """A shard without a success knows of no integers: its NaN become their 0."""
    integers = dtype is not None and dtype.kind in "iub" and a.dtype.kind == "f"
    return np.zeros(a.shape, dtype) if integers and np.isnan(a).all() else a
