"""One task of a campaign: a shard, drawn, written, and read back.

A shard is an atomic file of a fixed number of rows whose random numbers follow from (seed, shard number) alone.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from sbi_dgm.data import native
from sbi_dgm.data.columns import absent_rows, blocks
from sbi_dgm.data.native import Block, Header
from sbi_dgm.errors import DataError, FileError
from sbi_dgm.parameters import Observable
from sbi_dgm.seeds import numpy_generator
from sbi_dgm.simulator import (
    WEIGHT,
    MisfitError,
    Simulator,
    attempted,
    is_weighted,
    narrowed,
    reason,
)

SAME = ("simulator", "prior", "observables")  # of a header, in all shards of a campaign
KEPT = "The finished shards are kept; the same call again goes on."
MESSAGE_BYTES = 120
MESSAGE = h5py.string_dtype("utf-8", MESSAGE_BYTES)
BLOCK_BYTES = 2**23


class Plan(NamedTuple):
    """What makes a campaign's rows, apart from their number; so many rows behind each other share their theta."""

    simulator: Simulator
    seed: int
    shard_rows: int
    repeats: int = 1

    def header(self) -> Header:
        """The header of its files; two plans with one header make the same rows."""
        made_by = {
            "name": self.simulator.name,
            "version": str(getattr(self.simulator, "version", "")),
            "seed": self.seed,
            "shard_rows": self.shard_rows,
        }
        made_by |= {"weighted": True} if is_weighted(self.simulator) else {}
        made_by |= {"repeats": self.repeats} if self.repeats > 1 else {}
        prior = self.simulator.prior
        return Header(prior.parameters, self.simulator.observables, prior.describe(), made_by)

    def rows(self, index: int) -> str:
        """Shard `index` in words."""
        return f"shard {index} (rows {index * self.shard_rows} to {(index + 1) * self.shard_rows - 1})"


def shard(folder: Path, index: int) -> Path:
    """Where shard `index` lies."""
    return folder / f"{index:06d}.h5"


def fill(plan: Plan, index: int, folder: Path) -> int:
    """Draw shard `index` and write it into `folder`; how many of its rows failed.

    Raises:
        DataError: no row fits the observables, as no row of any shard will.
        FileError: the shard cannot be written.

    """
    if not folder.is_dir():
        raise FileError(f"{folder} is not there for a worker: all workers must share the file system that it lies on.")
    block = draw(plan, index)
    try:
        native.write(shard(folder, index), plan.header(), plan.shard_rows, [block])
    except FileError as error:
        raise FileError(f"{plan.rows(index)}: {error} {KEPT}") from None
    return int((block["valid"] == 0).sum())


def draw(plan: Plan, index: int) -> Block:
    """The columns of shard `index`; `failure` is among them only where rows failed, `group` where rows share theta."""
    rng = numpy_generator(plan.seed, index)
    drawn = plan.simulator.prior.draw(plan.shard_rows // plan.repeats, rng)
    theta = drawn.repeat(plan.repeats, axis=0)
    x, errors = attempted(plan.simulator, theta, rng, lambda row: numpy_generator(plan.seed, index, row))
    x |= _narrowed(plan.simulator, x)
    errors = _not_finite(x, plan.simulator.observables) | errors
    valid = ~np.isin(np.arange(len(theta)), list(errors))
    weight = {WEIGHT: np.where(valid, x.pop(WEIGHT), 0.0)} if is_weighted(plan.simulator) else {}
    columns = {f"x/{name}": _blank(a, valid) for name, a in x.items()}
    number = np.full(len(theta), index, np.uint64)
    block = {"theta": theta, **columns, "valid": valid.astype(np.uint8), "seed": number, **weight}
    if plan.repeats > 1:
        block["group"] = (index * len(drawn) + np.arange(len(drawn))).repeat(plan.repeats)
    return block | {"failure": _messages(errors, len(theta))} if errors else block


def _narrowed(simulator: Simulator, x: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    try:
        return narrowed({name: x[name] for name in simulator.observables})
    except MisfitError as error:
        raise DataError(f"simulator {simulator.name!r}: {error}.") from None


def _not_finite(x: dict[str, np.ndarray], observables: Mapping[str, Observable]) -> dict[int, BaseException]:
    """The rows with a number that is not finite, and where it stands; what is optional may be absent."""
    errors: dict[int, BaseException] = {}
    for name, a in x.items():
        bad = ~np.isfinite(a).reshape(len(a), -1)
        if name in observables and observables[name].optional:
            bad[absent_rows(a)] = False
        for row in np.flatnonzero(bad.any(1)):
            entry = np.unravel_index(int(np.argmax(bad[row])), a.shape[1:])
            place = ", ".join(str(i) for i in entry)
            where = f"{name}: entry {place}" if place else name
            errors.setdefault(int(row), DataError(f"{where} is {a[row][entry]}"))
    return errors


def _blank(a: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Failed rows hold NaN, or 0 for integers."""
    a = a.copy()
    a[~valid] = np.nan if a.dtype.kind == "f" else 0
    return a


def _messages(errors: dict[int, BaseException], rows: int) -> np.ndarray:
    """(rows,) of UTF-8 bytes, empty for a success, cut at a whole character."""
    messages = np.zeros(rows, MESSAGE)
    for row, error in errors.items():
        whole = reason(error).encode(errors="replace")[:MESSAGE_BYTES]
        messages[row] = whole.decode(errors="ignore").encode()
    return messages


def whole(path: Path, plan: Plan) -> bool:
    """Whether a shard is of the plan and can be read, every checksum included."""
    try:
        header, columns = native.read(path)
        found, wanted = header.attributes(), plan.header().attributes()
        same = all(found.get(key) == wanted[key] for key in SAME)
        return same and all(len(column[:]) == plan.shard_rows for column in columns.values())
    except (FileError, DataError):
        return False


class NoSuccessError(DataError):
    """All rows of a campaign failed."""


class Part(NamedTuple):
    """The first rows of a file, as a part of a longer one."""

    path: Path
    rows: int

    def columns(self) -> dict[str, Any]:
        """Its columns, on the disk."""
        return dict(native.read(self.path)[1])


def joined(parts: list[Part]) -> Iterator[Block]:
    """Blocks of all rows of the parts, behind each other.

    The messages of failures are among the columns where a row failed. A part without a success knows of no integers:
    its NaN become their 0.

    Raises:
        NoSuccessError: all rows failed.
        DataError: an observable changes its type.

    """
    dtypes = _dtypes(parts)
    waiting, size = [], 0
    for part in parts:
        for block in blocks(part.columns(), 0, part.rows):
            waiting.append({name: _typed(part, block, name, dtype) for name, dtype in dtypes.items()})
            size += sum(a.nbytes for a in waiting[-1].values())
            if size >= BLOCK_BYTES:
                yield _stacked(waiting)
                waiting, size = [], 0
    if waiting:
        yield _stacked(waiting)


def _stacked(blocks: list[dict[str, np.ndarray]]) -> Block:
    return {name: np.concatenate([block[name] for block in blocks], dtype=a.dtype) for name, a in blocks[0].items()}


def _dtypes(parts: list[Part]) -> dict[str, np.dtype]:
    """Of the columns, by the first part with a success; `failure` where a row failed."""
    dtypes: dict[str, np.dtype] = {}
    failed: list[bytes] = []
    for part in parts:
        columns = part.columns()
        valid = columns["valid"][: part.rows].astype(bool)
        if not valid.all() and not failed:
            failed = _told(columns, valid)
        if valid.any() and not dtypes:
            dtypes = {name: column.dtype for name, column in columns.items() if name != "failure"}
    if not dtypes:
        raise NoSuccessError(f"all {sum(part.rows for part in parts)} simulations failed: {failed[0].decode()}.")
    return dtypes | {"failure": MESSAGE} if failed else dtypes


def _told(columns: dict[str, Any], valid: np.ndarray) -> list[bytes]:
    messages = columns["failure"][: len(valid)] if "failure" in columns else np.full(len(valid), b"unknown")
    return messages[~valid].tolist()


def _typed(part: Part, block: Block, name: str, dtype: np.dtype) -> np.ndarray:
    if name == "failure":
        return np.asarray(block.get(name, np.zeros(len(block["theta"]), MESSAGE))).astype(dtype)
    a = block[name]
    if a.dtype.kind == "f" and dtype.kind in "iub" and np.isnan(a).all():
        return np.zeros(a.shape, dtype)
    if not np.can_cast(a.dtype, dtype):
        raise DataError(f"{part.path}: {name} is of type {a.dtype}, and of {dtype} before: a simulator keeps to one.")
    return a.astype(dtype, copy=False)
