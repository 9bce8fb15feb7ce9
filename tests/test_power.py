"""What so many rows can see: closed forms against how often the tests accuse."""

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import binom

from sbi_dgm.diagnostics.checks import OF_VALUES, Check
from sbi_dgm.diagnostics.power import POWER, visible

LEVEL, REPETITIONS = 0.003, 600


def check_power(width: float, shift: float, rows: int, word: str) -> None:
    """A posterior of that width and place is accused of the word with probability `POWER`."""
    z = (np.random.default_rng(rows).normal(size=(REPETITIONS, rows)) - shift) / width
    found = [Check(ndtr(row), OF_VALUES).test(3 * LEVEL).shape for row in z]
    assert binom.ppf(0.001, REPETITIONS, POWER) <= found.count(word) <= binom.ppf(0.999, REPETITIONS, POWER + 0.03)


@pytest.mark.parametrize("rows", [100, 1000])
def test_errors_of_that_size_are_seen_nine_times_in_ten(rows):
    """The level of one test is a third of that of all three, whose others may accuse now and then too."""
    seen = visible(rows, LEVEL)
    check_power(1 - seen.narrow, 0.0, rows, "overconfident")
    check_power(1 + seen.wide, 0.0, rows, "underconfident")
    check_power(1.0, seen.shift, rows, "biased high")
    with pytest.raises(AssertionError):
        check_power(1 - 0.7 * seen.narrow, 0.0, rows, "overconfident")


def test_more_rows_see_smaller_errors():
    found = np.array([visible(rows, LEVEL) for rows in (50, 200, 1000, 5000)])
    assert (np.diff(found, axis=0) < 0).all()
    assert found[-1] == pytest.approx(found[0] / 10, rel=0.45), "as one over the root"
