"""Random numbers without global state: every generator is made here, from a seed and a path of integers.

A stream is named by (seed, key_1, key_2, ...): NumPy's `SeedSequence` with `spawn_key` makes streams
statistically independent for different keys and identical for equal ones, so that a batch, a shard or a
row can be drawn again without replaying what came before it.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import TYPE_CHECKING

import numpy as np

from sbi_dgm.kinds import whole

if TYPE_CHECKING:
    import torch


_lent = RLock()  # torch's global generator serves one thread at a time
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lent.acquire, after_in_parent=_lent.release, after_in_child=_lent.release)


def fresh(seed: int | None) -> int:
    """Return `seed`, or one from the operating system's entropy where it is None."""
    return secrets.randbits(63) if seed is None else seed


def sequence(seed: int, *keys: int) -> np.random.SeedSequence:
    """The seed sequence of the stream (seed, *keys), or `OptionError` for what is no seed."""
    return np.random.SeedSequence(whole("seed", seed, 0), spawn_key=keys)


def numpy_generator(seed: int, *keys: int) -> np.random.Generator:
    """NumPy's generator of the stream (seed, *keys).

    >>> float(numpy_generator(1, 2).random()) == float(numpy_generator(1, 2).random())
    True
    """
    return np.random.default_rng(sequence(seed, *keys))


def torch_generator(seed: int, *keys: int, device: "torch.device | str" = "cpu") -> "torch.Generator":
    """Torch's generator of the stream (seed, *keys) on `device`."""
    import torch

    return torch.Generator(device=device).manual_seed(_state(seed, *keys))


@contextmanager
def lending(seed: int, *keys: int, device: "torch.device | str" = "cpu") -> Iterator[None]:
    """Let torch's layers draw from (seed, *keys); the global state is as before afterwards.

    `torch.nn` knows only the global generator, for initial weights and for dropout (a user's embedding may have
    some): this is the one place that lends it, to one thread at a time.
    """
    import torch

    place = torch.device(device)
    with _lent, torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        state = _state(seed, *keys)
        torch.default_generator.manual_seed(state)  # torch.manual_seed would touch every device
        if place.type == "cuda":
            with torch.cuda.device(place):
                torch.cuda.manual_seed(state)
        yield


def _state(seed: int, *keys: int) -> int:
    return int(sequence(seed, *keys).generate_state(1, np.uint64)[0]) >> 1
