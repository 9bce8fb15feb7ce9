"""Splits: every valid row in one part, groups whole, the same for the same rows."""

import numpy as np
import pytest

from sbi_dgm import Simulations, SplitRule
from sbi_dgm.data.splits import Split, by_label, split_rows
from sbi_dgm.errors import OptionError


def faults(split, groups, valid):
    """What is wrong with a split, in words."""
    parts = list(vars(split).values())
    rows = np.concatenate(parts)
    found = []
    if len(np.unique(rows)) < len(rows):
        found.append("a row twice")
    if set(rows.tolist()) != set(np.flatnonzero(valid).tolist()):
        found.append("not the valid rows")
    if any((np.diff(part) <= 0).any() for part in parts):
        found.append("not ascending")
    members = [set(groups[part].tolist()) for part in parts]
    if any(members[i] & members[j] for i, j in ((0, 1), (0, 2), (1, 2))):
        found.append("a group divided")
    return found


def problem(seed, rows=600):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 150, rows), rng.uniform(size=rows) > 0.1


@pytest.mark.parametrize("seed", range(5))
def test_parts_are_disjoint_cover_the_valid_rows_and_keep_groups_whole(seed):
    groups, valid = problem(seed)
    assert faults(split_rows(SplitRule(seed=seed), groups, valid), groups, valid) == []


def test_the_check_accuses_a_split_by_row():
    groups, valid = problem(0)
    assert faults(split_rows(SplitRule(), np.arange(len(groups)), valid), groups, valid) == ["a group divided"]


def test_the_check_accuses_failed_rows_and_repeated_rows():
    groups, valid = problem(0)
    everything = split_rows(SplitRule(), groups, np.ones_like(valid))
    assert "not the valid rows" in faults(everything, groups, valid)
    half = np.arange(10)
    assert "a row twice" in faults(Split(half, half, half), np.arange(10), np.ones(10, bool))


@pytest.mark.parametrize(("validation", "test"), [(0.1, 0.05), (0.1, 0.0), (0.3, 0.3), (0.001, 0.998)])
def test_fractions_are_of_groups(validation, test):
    groups = np.repeat(np.arange(1000), 3)
    split = split_rows(SplitRule(validation=validation, test=test), groups, np.ones(3000, bool))
    shares = [len(np.unique(groups[part])) / 1000 for part in (split.validation, split.test)]
    assert shares == pytest.approx([validation, test])


def test_the_default_is_85_10_5():
    split = split_rows(SplitRule(), np.arange(1000), np.ones(1000, bool))
    assert [len(part) for part in vars(split).values()] == [850, 100, 50]


def same(one, two):
    return all(np.array_equal(a, b) for a, b in zip(vars(one).values(), vars(two).values(), strict=True))


def test_a_split_follows_from_its_seed():
    groups, valid = problem(3)
    first = split_rows(SplitRule(seed=1), groups, valid)
    assert same(first, split_rows(SplitRule(seed=1), groups, valid))
    assert not same(first, split_rows(SplitRule(seed=2), groups, valid))


def test_a_row_that_fails_moves_no_other_row():
    groups, valid = problem(3)
    before = split_rows(SplitRule(), groups, valid)
    lost = before.train[10]
    after = split_rows(SplitRule(), groups, valid & (np.arange(len(valid)) != lost))
    assert after.train.tolist() == [row for row in before.train if row != lost]
    assert after.validation.tolist() == before.validation.tolist()
    assert after.test.tolist() == before.test.tolist()


def test_rows_are_chosen_without_regard_to_their_order():
    split = split_rows(SplitRule(validation=0.3, test=0.3), np.arange(10_000), np.ones(10_000, bool))
    for part in vars(split).values():
        sigma = 10_000 * (12 * len(part)) ** -0.5
        assert abs(part.mean() - 4999.5) < 5 * sigma


def test_the_column_of_the_file_rules(tmp_path):
    rng = np.random.default_rng(0)
    label, valid = rng.integers(0, 3, 200), rng.uniform(size=200) > 0.2
    data = Simulations.create(
        tmp_path / "a.h5", rng.normal(size=(200, 2)), rng.normal(size=200), split=label, valid=valid
    )
    split = data.split(SplitRule(seed=5))
    for number, part in enumerate(vars(split).values()):
        assert part.tolist() == np.flatnonzero((label == number) & valid).tolist()
    assert same(split, by_label(label, valid))


@pytest.mark.parametrize("column", [{}, {"group": lambda n: np.arange(n) // 3}, {"split": lambda n: np.arange(n) % 3}])
def test_the_first_rows_of_a_grown_file_are_split_as_before(tmp_path, column):
    rng, rule = np.random.default_rng(0), SplitRule(seed=2)
    columns = {name: make(400) for name, make in column.items()}
    theta, x = rng.normal(size=(400, 2)), rng.normal(size=(400, 2))
    data = Simulations.create(tmp_path / "a.h5", theta[:300], x[:300], **{n: c[:300] for n, c in columns.items()})
    before = data.split(rule)
    grown = data.append(theta[300:], x[300:], **{n: c[300:] for n, c in columns.items()})
    assert same(grown.split(rule, rows=300), before)
    assert not same(grown.split(rule), before)


@pytest.mark.parametrize(("options", "words"), [({"validation": 0.5, "test": 0.5}, "nothing to train on")])
def test_fractions_that_leave_nothing_are_refused(options, words):
    with pytest.raises(OptionError, match=words):
        split_rows(SplitRule(**options), np.arange(10), np.ones(10, bool))


@pytest.mark.parametrize("options", [{"validation": 0}, {"validation": 1}, {"test": -0.1}, {"test": 1}, {"tset": 0.1}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        SplitRule(**options)
