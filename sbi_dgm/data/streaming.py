"""Shuffled batches of data that stay on the disk, in bounded memory, each a pure function of (seed, step).

An epoch visits chunk-aligned blocks in a new order. So many blocks as fill a window, one from each of as many strata of
the file (which may be sorted by theta), are read together, their rows shuffled, and handed out; meanwhile a thread
reads the next window (reading and decompressing let Python run). Order and windows follow from the seed and the epoch
alone, so that a run resumes anywhere by its step number, to the bit.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from sbi_dgm.data.batches import Batch, Rows, together
from sbi_dgm.data.columns import span_rows
from sbi_dgm.data.source import Source
from sbi_dgm.errors import OptionError
from sbi_dgm.seeds import numpy_generator

BLOCK_BYTES = 2**20
IN_FLIGHT = 4  # windows: two under a batch that crosses from one to the next, one being read, one being shuffled


class Plan(NamedTuple):
    """One epoch: the blocks of each window, and how many rows come before it."""

    windows: list[np.ndarray]
    starts: np.ndarray


class Streamed:
    """Batches of equal size from windows of blocks; every epoch leaves out the remainder.

    Args:
        source: where rows come from.
        rows: (N,), ascending row numbers to visit.
        size: rows of a batch; all rows where there are fewer.
        seed: of the order, with the keys of its stream.
        buffer: bytes that rows may take at any time.
        device: where batches go.
        shard: (rank, ranks): every ranks-th block only, so that ranks share an epoch.

    """

    def __init__(
        self,
        source: Source,
        rows: np.ndarray,
        size: int,
        *seed: int,
        buffer: int,
        device: torch.device | str = "cpu",
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        rank, ranks = shard
        self.source, self.seed, self.device = source, seed, torch.device(device)
        blocks = source.blocks(rows, BLOCK_BYTES)
        least = min(sum(map(len, blocks[r::ranks])) for r in range(ranks))
        if not least:
            raise OptionError(f"{len(blocks)} blocks of rows cannot be shared by {ranks} ranks: use fewer.")
        self.blocks, self.size = blocks[rank::ranks], min(size, least)
        self.per_epoch = least // self.size
        self.step = span_rows(source.columns, BLOCK_BYTES)
        self.per_window = max(1, buffer // IN_FLIGHT // source.bytes(max(map(len, self.blocks))))
        self._plans: dict[int, Plan] = {}
        self._reader = ThreadPoolExecutor(1, "window")
        self._windows: dict[tuple[int, int], Future[Rows]] = {}

    def plan(self, epoch: int) -> Plan:
        """What an epoch reads; the last two asked for are kept."""
        if epoch not in self._plans:
            self._plans = {**dict(list(self._plans.items())[-1:]), epoch: self._plan(epoch)}
        return self._plans[epoch]

    def _plan(self, epoch: int) -> Plan:
        """Stratified by place: of any `number` neighbouring blocks in the file, each window gets one."""
        rng, number = numpy_generator(*self.seed, epoch), -(-len(self.blocks) // self.per_window)
        window = np.concatenate([rng.permutation(number) for _ in range(-(-len(self.blocks) // number))])
        windows = [np.flatnonzero(window[: len(self.blocks)] == w) for w in range(number)]
        counts = [sum(len(self.blocks[i]) for i in window) for window in windows]
        return Plan(windows, np.concatenate([[0], np.cumsum(counts)]))

    def __getitem__(self, step: int) -> Batch:
        epoch, position = divmod(step, self.per_epoch)
        first = position * self.size
        parts = [self._window(epoch, w)[inside] for w, inside in self._covering(epoch, first, first + self.size)]
        return Rows(*together(parts)).to(self.device)[:]

    def _covering(self, epoch: int, first: int, last: int) -> Iterator[tuple[int, slice]]:
        """The windows under the rows [first, last) of an epoch, and the part of each."""
        starts = self.plan(epoch).starts
        window = int(np.searchsorted(starts, first, "right")) - 1
        while starts[window] < last:
            yield window, slice(max(0, first - int(starts[window])), last - int(starts[window]))
            window += 1

    def _window(self, epoch: int, window: int) -> Rows:
        """A window's rows; the one after it is being read from now on."""
        last = len(self.plan(epoch).windows) - 1
        wanted = [(epoch, window), (epoch, window + 1) if window < last else (epoch + 1, 0)]
        self._windows = {key: self._windows.get(key) or self._submitted(*key) for key in wanted}
        return self._windows[wanted[0]].result()

    def _submitted(self, epoch: int, window: int) -> "Future[Rows]":
        return self._reader.submit(self._read, epoch, window, self.plan(epoch).windows[window])

    def _read(self, epoch: int, window: int, blocks: np.ndarray) -> Rows:
        rows = self.source.take(np.concatenate([self.blocks[i] for i in blocks]), self.step)
        order = numpy_generator(*self.seed, epoch, window).permutation(len(rows))
        return Rows(*rows[torch.as_tensor(order)])
