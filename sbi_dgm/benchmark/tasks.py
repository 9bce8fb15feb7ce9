"""What a benchmark asks of a task: observations with their true parameters, and draws of their exact posteriors.

A task is a `Simulator` with `reference_posterior(x, n, rng)`. Its published observations, where it has some
(`observations` (K, ...), `true_parameters` (K, D)), are numbers 1 to K; every number beyond is a fresh draw of
theta from the prior and of x from the simulator, the same on every machine.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sbi_dgm import simulator as simulators
from sbi_dgm.errors import OptionError, SbiError
from sbi_dgm.files import atomic
from sbi_dgm.seeds import numpy_generator
from sbi_dgm.simulator import Simulator, fitted
from sbi_dgm.univariate import Array

BENCHMARK = 2**32 - 1  # no shard of a campaign has this number, whose streams are (seed, shard)
FRESH, REFERENCE = 0, 1  # streams of random numbers


def stream(kind: int, *keys: int, seed: int = 0) -> np.random.Generator:
    """Random numbers of the benchmark's own: none that simulations to train on are drawn with."""
    return numpy_generator(seed, BENCHMARK, kind, *keys)


class Observed(NamedTuple):
    """Observations of a task: number (B,), theta (B, D) that made them, x by observable's name (B, ...)."""

    numbers: tuple[int, ...]
    theta: Array
    x: dict[str, np.ndarray]

    def plain(self, row: int) -> Any:
        """One observation as the task itself speaks: an array, or a dict where there are several observables."""
        return plain({name: values[row] for name, values in self.x.items()})


def plain(x: dict[str, np.ndarray]) -> Any:
    """The array, where there is only one observable."""
    return next(iter(x.values())) if len(x) == 1 else x


def task_named(task: "str | Simulator") -> Any:
    """The task itself, by the name of an installed simulator or as `package.module:Object`.

    Raises:
        OptionError: it has no reference posterior.

    """
    found = simulators.find(task)
    if not hasattr(found, "reference_posterior"):
        raise OptionError(f"{found.name!r} is no task of a benchmark: it needs reference_posterior(x, n, rng).")
    return found


def observed(task: Any, numbers: Sequence[int]) -> Observed:
    """The observations of these numbers, counted from 1."""
    if not numbers or min(numbers) < 1:
        raise OptionError(f"observations {list(numbers)}: they are counted from 1.")
    known = len(getattr(task, "true_parameters", ()))
    found = [_published(task, i) if i <= known else _fresh(task, i) for i in numbers]
    x = {name: np.stack([one[name] for _, one in found]) for name in task.observables}
    return Observed(tuple(numbers), np.stack([theta for theta, _ in found]), x)


def _published(task: Any, number: int) -> tuple[Array, dict[str, np.ndarray]]:
    x = task.observations if isinstance(task.observations, dict) else {next(iter(task.observables)): task.observations}
    return task.true_parameters[number - 1], {name: values[number - 1] for name, values in x.items()}


def _fresh(task: Any, number: int) -> tuple[Array, dict[str, np.ndarray]]:
    rng = stream(FRESH, number)
    theta = task.prior.draw(1, rng)
    x = fitted(task.observables, task(theta, rng), 1)
    return theta[0], {name: values[0] for name, values in x.items()}


def references(task: Any, at: Observed, draws: int, folder: Path) -> Array:
    """Draws (B, draws, D) of the exact posterior at each observation; those drawn before lie in `folder`."""
    return np.stack([_reference(task, at, row, draws, folder) for row in range(len(at.numbers))])


def _reference(task: Any, at: Observed, row: int, draws: int, folder: Path) -> Array:
    key = hashlib.sha256(repr((getattr(task, "version", ""), draws)).encode())
    for name, values in at.x.items():
        key.update(name.encode() + np.ascontiguousarray(values[row], np.float64).tobytes())
    path = folder / f"{task.name}-{at.numbers[row]}-{key.hexdigest()[:12]}.npy"
    if not path.exists():
        drawn = np.asarray(task.reference_posterior(at.plain(row), draws, stream(REFERENCE, at.numbers[row])))
        if drawn.shape != (draws, len(task.prior)) or not np.isfinite(drawn).all():
            raise SbiError(
                f"reference_posterior of {task.name!r} gave {drawn.shape} at observation {at.numbers[row]}: "
                f"{draws} finite draws of {len(task.prior)} parameters are needed."
            )
        with atomic(path) as temporary, temporary.open("wb") as file:
            np.save(file, drawn, allow_pickle=False)
    return np.load(path, allow_pickle=False)
