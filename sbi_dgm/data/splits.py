"""Which rows train, which validate, which test: by group, reproducible, kept in the artefact."""

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from sbi_dgm.errors import OptionError
from sbi_dgm.options import Options
from sbi_dgm.seeds import numpy_generator


class SplitRule(Options):
    """How rows are shared out; what remains of 1 trains.

    Attributes:
        validation: fraction that decides when to stop.
        test: fraction kept for calibration.
        seed: of the shuffle of groups.

    """

    validation: float = Field(default=0.10, gt=0, lt=1)
    test: float = Field(default=0.05, ge=0, lt=1)
    seed: int = 0


@dataclass(frozen=True)
class Split:
    """Row numbers, ascending."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split_rows(rule: SplitRule, groups: np.ndarray, valid: np.ndarray) -> Split:
    """Share out the groups, then drop the rows that are not valid.

    Args:
        groups: (N,), rows of one group stay together; `arange(N)` where each row stands alone.
        valid: (N,), bool.

    >>> rule = SplitRule(validation=0.2, test=0.2)
    >>> [len(part) for part in vars(split_rows(rule, np.arange(10), np.ones(10, bool))).values()]
    [6, 2, 2]

    """
    if rule.validation + rule.test >= 1:
        raise OptionError(f"validation {rule.validation} and test {rule.test} leave nothing to train on.")
    members, index = np.unique(groups, return_inverse=True)
    order = numpy_generator(rule.seed).permutation(len(members))
    validation, test = (round(fraction * len(members)) for fraction in (rule.validation, rule.test))
    part = np.zeros(len(members), np.uint8)
    part[order[:validation]] = 1
    part[order[validation : validation + test]] = 2
    return by_label(part[index], valid)


def by_label(label: np.ndarray, valid: np.ndarray) -> Split:
    """The split that a column of 0 (train), 1 (validation), 2 (test) says."""
    return Split(*(np.flatnonzero((label == part) & valid) for part in range(3)))
