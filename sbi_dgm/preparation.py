"""What training needs of simulations: batches, validation rows and scalers, from memory or as a stream."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sbi_dgm.data.batches import Batch, Batches, Noise, Noisy, Rows, Shuffled, noisy, together
from sbi_dgm.data.reading import Reading
from sbi_dgm.data.scaling import Standardise, scalers
from sbi_dgm.data.source import Source
from sbi_dgm.data.splits import Split
from sbi_dgm.data.streaming import Streamed
from sbi_dgm.loop import ORDER, Training
from sbi_dgm.parameters import total_size
from sbi_dgm.seeds import numpy_generator

TRAINING, VALIDATION, SCALING = 5, 6, 7  # streams of a noise model
CHOICE = 8  # stream that chooses validation rows
PIECE_BYTES = 2**23


Stream = Callable[[], Iterator[tuple[np.ndarray, Batch]]]


@dataclass(frozen=True)
class Prepared:
    """Ready to train on.

    Attributes:
        batches: of the training rows.
        held_out: validation rows, with noise that stays.
        scalers: by observable, from training rows alone.
        dtypes: of the observables as a network sees them: a model of noise may turn integers into fractions.
        stream: all training rows in order, with their numbers, read when called.

    """

    batches: Batches
    held_out: Rows
    scalers: Mapping[str, Standardise]
    dtypes: Mapping[str, np.dtype]
    stream: Stream

    def shown(self) -> Iterator[Mapping[str, Tensor]]:
        """The observables of all training rows, batch after batch."""
        return (part.x for _, part in self.stream())


def prepare(
    source: Source,
    parts: Split,
    reading: Reading,
    training: Training,
    *,
    seed: int,
    device: torch.device,
    noise: Noise | None = None,
) -> Prepared:
    """Read what has to be in memory, and set up the rest.

    Args:
        source: the rows.
        parts: which of them train and which validate.
        reading: memory or stream, resolved.
        training: for the size of a batch.
        noise: a model of noise on the observables, fresh at every step and the same in every validation.

    """
    batches, held_out, stream = read(source, parts, reading, training, seed=seed, device=device, noise=noise)
    dtypes = {name: np.dtype(column.dtype) for name, column in source.columns.items()}
    if noise is not None:
        dtypes = {name: values[:1].cpu().numpy().dtype for name, values in held_out.x.items()}
    seen: Iterator[tuple[np.ndarray, Mapping[str, Tensor]]] = ((rows, part.x) for rows, part in stream())
    scaled = scalers(source.data.observables, dtypes, len(parts.train), seen)
    return Prepared(batches, held_out, scaled, dtypes, stream)


def read(
    source: Source,
    parts: Split,
    reading: Reading,
    training: Training,
    *,
    seed: int,
    device: torch.device,
    noise: Noise | None = None,
) -> tuple[Batches, Rows, Stream]:
    """Batches of training rows, validation rows, and all training rows in order."""
    held_out = source.take(_validation(source, parts.validation, reading, seed)).to(device)
    size = training.batch(len(parts.train), total_size(source.data.observables))
    if reading.mode == "memory":
        train = source.take(parts.train).to(device)
        batches: Batches = Shuffled(train, size, seed, ORDER)

        def stream() -> Iterator[tuple[np.ndarray, Batch]]:
            return _pieces(train, source.blocks(parts.train, PIECE_BYTES))
    else:
        buffer = reading.buffer_mib * 2**20
        batches = Streamed(source, parts.train, size, seed, ORDER, buffer=buffer, device=device)

        def stream() -> Iterator[tuple[np.ndarray, Batch]]:
            return ((rows, part.to(device)[:]) for rows, part in source.stream(parts.train, PIECE_BYTES))

    if noise is not None:
        batches = Noisy(batches, noise, seed, TRAINING)
        pieces = [noisy(piece, noise, seed, VALIDATION, i) for i, piece in enumerate(held_out.pieces())]
        held_out = Rows(*together(pieces))
        return (
            batches,
            held_out,
            lambda: ((rows, noisy(part, noise, seed, SCALING, int(rows[0]))) for rows, part in stream()),
        )
    return batches, held_out, stream


def _pieces(rows: Rows, blocks: list[np.ndarray]) -> Iterator[tuple[np.ndarray, Batch]]:
    """Row numbers and rows in memory, in the pieces that a stream would read."""
    ends = np.cumsum([len(block) for block in blocks])
    return ((block, rows[slice(end - len(block), end)]) for block, end in zip(blocks, ends, strict=True))


def _validation(source: Source, rows: np.ndarray, reading: Reading, seed: int) -> np.ndarray:
    """All validation rows, or a fixed choice of as many as a stream has memory for."""
    limit = max(1, reading.validation_mib * 2**20 // source.bytes(1))
    if reading.mode == "memory" or len(rows) <= limit:
        return rows
    return np.sort(numpy_generator(seed, CHOICE).choice(rows, limit, replace=False))
