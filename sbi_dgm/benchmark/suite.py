"""Suites: which tasks, methods, budgets, observations and seeds make a table."""

from itertools import product
from typing import Any

from pydantic import Field, field_validator

from sbi_dgm.benchmark.cells import Cell, Judging
from sbi_dgm.benchmark.methods import method
from sbi_dgm.benchmark.scores import SCORES, USUAL
from sbi_dgm.benchmark.tasks import task_named
from sbi_dgm.errors import OptionError, unknown
from sbi_dgm.options import Options


class Suite(Options):
    """What a benchmark runs: every method on every task, budget and seed.

    Attributes:
        tasks: names of installed simulators, `package.module:Object`, or simulators; each with `reference_posterior`.
        estimators: names of families, their options, `package.module:callable`, or callables (theta, x) -> posterior.
        budgets: numbers of simulations.
        observations: their numbers, counted from 1, or a text such as "1-5,8".
        seeds: of simulations and training.
        draws: of the exact and the judged posterior at each observation.
        scores: see `sbi_dgm.benchmark.scores`.
        truths: fresh simulations for the expected log-probability and the calibration error.

    >>> Suite(tasks=["two_moons"], observations="1-3,7").observations
    (1, 2, 3, 7)

    """

    tasks: tuple[Any, ...]
    estimators: tuple[Any, ...] = ("flow",)
    budgets: tuple[int, ...] = (1000,)
    observations: tuple[int, ...] = tuple(range(1, 11))
    seeds: tuple[int, ...] = (0,)
    draws: int = Field(default=10_000, ge=100)
    scores: tuple[str, ...] = USUAL
    truths: int = Field(default=500, ge=0)

    @field_validator("observations", "budgets", "seeds", mode="before")
    @classmethod
    def _counted(cls, value: Any) -> Any:
        return numbers(value) if isinstance(value, str) else value

    @field_validator("scores")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in SCORES:
                raise OptionError(unknown("score", name, SCORES))
        if "c2st" not in value:
            raise OptionError(f"scores {', '.join(value) or 'none'}: c2st is what tables are made of, name it too.")
        return value

    def cells(self, device: str = "cpu") -> list[Cell]:
        """The cells, small budgets first.

        Raises:
            OptionError: a task or a method that cannot be used; two of one name.

        """
        tasks = [(task, task_named(task).name) for task in self.tasks]
        methods = [method(given) for given in self.estimators]
        judging = Judging(self.observations, self.draws, self.scores, self.truths)
        order = product(self.budgets, self.seeds, methods, tasks)
        cells = [Cell(*task, chosen, budget, seed, judging, device) for budget, seed, chosen, task in order]
        _require_distinct([tuple(cell.title.values()) for cell in cells])
        return cells


def _require_distinct(titles: list[tuple[Any, ...]]) -> None:
    if not titles:
        raise OptionError("the suite is empty: it needs a task, an estimator, a budget and a seed at least.")
    for title in titles:
        if titles.count(title) > 1:
            raise OptionError(f"{title} stands twice in the suite: give methods labels of their own.")


def numbers(text: str) -> tuple[int, ...]:
    """Numbers from a text.

    >>> numbers("1-3,8,1000")
    (1, 2, 3, 8, 1000)
    """
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()) or int(last or first) < int(first):
            raise OptionError(f"{text!r}: write numbers as 1-5,8.")
        found += range(int(first), int(last or first) + 1)
    return tuple(found)
