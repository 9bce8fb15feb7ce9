"""Rows that fail: kept, with why; what no row survives ends the campaign."""

import numpy as np
import pytest
from campaign_toys import OBSERVABLES, Toy, content, run

from sbi_dgm import Observable, Simulations, unbatched
from sbi_dgm.errors import DataError
from sbi_dgm.shards import MESSAGE_BYTES
from sbi_dgm.simulator import FailedRowsError

pytestmark = pytest.mark.filterwarnings("ignore:.*simulations failed")


class Patchy(Toy):
    """Fails for one whole shard."""

    def __init__(self, shard):
        super().__init__()
        self.shard, self.now = shard, -1

    def __call__(self, theta, rng):
        self.now += len(theta) > 1
        if self.now == self.shard:
            raise OSError("disk full")
        return super().__call__(theta, rng)


class Dated(Toy):
    """x is a day and the first parameter's share of it; or that day alone, in sums that round it differently."""

    def __init__(self, day, rounding=False, part=1.0):
        super().__init__()
        self.observables, self.day, self.rounding, self.part = {"x": Observable(())}, day, rounding, part

    def __call__(self, theta, rng):
        part = theta[:, 0] / 3
        return part + (self.day - part) if self.rounding else self.day + self.part * theta[:, 0]


@pytest.mark.parametrize("shard", [0, 3])
def test_a_shard_that_fails_as_a_whole_changes_no_type_and_no_other_shard(tmp_path, shard):
    well, data = run(tmp_path / "well.h5"), run(tmp_path / "a.h5", simulator=Patchy(shard))
    failed = np.arange(250) // 40 == shard
    assert {n: c.dtype for n, c in data.columns.items() if n in well.columns} == {
        n: c.dtype for n, c in well.columns.items()
    }
    np.testing.assert_array_equal(data.valid, ~failed)
    rows = np.arange(250)
    assert (data.x(rows)["n"][failed] == 0).all()
    assert np.isnan(data.x(rows)["x"][failed]).all()
    for name in OBSERVABLES:
        np.testing.assert_array_equal(data.x(rows[~failed])[name], well.x(rows[~failed])[name])


@pytest.mark.parametrize("workers", [1, 2])
def test_what_float32_would_make_equal_is_refused(tmp_path, workers):
    """Times of one day, as Julian dates: float32 knows quarters of a day; less their offset they are kept."""
    message = (
        r"simulator 'toy': observable 'x', entry 0: its values lie between 2459000\.\d+ and 2459000\.\d+, and of 40 "
    )
    with pytest.raises(DataError, match=message + "different ones float32 keeps [3-5]: give it less a constant"):
        run(tmp_path / "a.h5", simulator=Dated(2459000.0), workers=workers)
    assert len(np.unique(run(tmp_path / "b.h5", simulator=Dated(0.0)).x(np.arange(250))["x"])) == 250


def test_what_float32_would_make_zero_is_refused(tmp_path):
    with pytest.raises(
        DataError, match=r"'x', entry 0: all its values lie between .*float32 begins at 1e-38: give it in"
    ):
        run(tmp_path / "a.h5", simulator=Dated(1e-47, part=1e-47))
    assert (run(tmp_path / "b.h5", simulator=Dated(0.0, part=0.0)).x(np.arange(250))["x"] == 0).all()


def test_rounding_of_a_constant_is_no_variation(tmp_path):
    data = run(tmp_path / "a.h5", simulator=Dated(1.0, rounding=True))
    assert np.unique(data.x(np.arange(250))["x"]).tolist() == [1.0]


@pytest.mark.parametrize("mood", ["raises", "nan"])
def test_rows_that_fail_are_kept_and_marked(tmp_path, mood):
    well, data = run(tmp_path / "well.h5"), run(tmp_path / "a.h5", simulator=Toy(mood))
    failed = well.theta[:, 0] > 0.9
    assert 5 < failed.sum() < 60
    np.testing.assert_array_equal(data.theta, well.theta)
    np.testing.assert_array_equal(data.valid, ~failed)
    x = data.x(np.arange(250))
    assert np.isnan(x["x"][failed]).all()
    assert (x["n"][failed] == 0).all()
    assert np.isfinite(x["x"][~failed]).all()


def test_rows_beside_a_nan_are_what_they_were(tmp_path):
    well, data = run(tmp_path / "well.h5"), run(tmp_path / "a.h5", simulator=Toy("nan"))
    good = np.flatnonzero(data.valid)
    for name in OBSERVABLES:
        np.testing.assert_array_equal(data.x(good)[name], well.x(good)[name])


def test_rows_beside_one_that_raises_still_follow_the_model(tmp_path):
    data = run(tmp_path / "a.h5", 4000, simulator=Toy("raises"), shard_rows=500)
    good = np.flatnonzero(data.valid)
    noise = data.x(good)["x"] - data.theta[good, :1]
    assert abs(noise.mean()) < 5 / noise.size**0.5
    assert abs(noise.std() - 1) < 5 / (2 * noise.size) ** 0.5
    assert len(np.unique(noise)) > 0.99 * noise.size


@pytest.mark.parametrize(
    ("mood", "words"), [("hopeless", "all 250 simulations failed: ZeroDivisionError: boom in line 7"),
                        ("empty", "all 250 simulations failed: x: entry 0 is inf")]
)  # fmt: skip
@pytest.mark.parametrize("workers", [1, 2])
def test_when_all_rows_fail_the_reason_is_told_and_nothing_is_left(tmp_path, mood, words, workers):
    with pytest.raises(DataError, match=words):
        run(tmp_path / "a.h5", simulator=Toy(mood), workers=workers)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("mood", "words"),
    [
        ("wide", r"simulator 'toy': observable 'x' has shape \(6,\), expected \(3,\)"),
        ("short", r"observable 'x' has shape \(0, 3\), expected \(1, 3\)"),
        ("lone", r"gave \['x'\], without its observable 'n'"),
        ("bare", "without its observable 'n'"),
        ("worded", "observable 'x' is of type <U[0-9]+, not of real numbers"),
    ],
)
def test_output_that_does_not_fit_is_refused_with_expected_and_given(tmp_path, mood, words, workers):
    with pytest.raises(DataError, match=words):
        run(tmp_path / "a.h5", simulator=Toy(mood), workers=workers)
    assert not (tmp_path / "a.h5").exists()


def test_a_function_of_one_theta_is_lifted_to_batches(tmp_path):
    class Single(Toy):
        name = "single"

        def __call__(self, theta, rng):
            return unbatched(lambda one, rng: {"x": one[0] + rng.normal(size=3), "n": int(10 * one[0])})(theta, rng)

    data = run(tmp_path / "a.h5", simulator=Single())
    np.testing.assert_array_equal(data.x(np.arange(250))["n"], (10 * data.theta[:, 0]).astype(int))


def messages(data):
    return [text.decode() for text in data.columns["failure"][:]]


@pytest.mark.parametrize(
    ("mood", "words"),
    [
        ("raises", "ZeroDivisionError: no solution at {:.4f}"),
        ("nan", "x: entry 0 is nan"),
        ("ragged", "observable 'x' has shape (2,), expected (3,)"),
        ("quits", "SystemExit: licence expired"),
    ],
)
def test_a_failed_row_keeps_its_reason(tmp_path, mood, words):
    data = run(tmp_path / "a.h5", simulator=Toy(mood))
    expected = ["" if a <= 0.9 else words.format(a) for a in data.theta[:, 0]]
    assert messages(data) == expected
    assert sum(map(bool, expected)) == 250 - data.valid.sum() > 5


def test_without_failures_there_are_no_reasons_to_keep(tmp_path):
    assert "failure" not in run(tmp_path / "a.h5").columns


def test_a_copy_keeps_the_reasons(tmp_path):
    data = run(tmp_path / "a.h5", simulator=Toy("raises"))
    assert messages(data.save(tmp_path / "b.h5")) == messages(Simulations.open(tmp_path / "a.h5"))


@pytest.mark.parametrize("character", ["e", "é", "√", "𝛀"])
@pytest.mark.parametrize("offset", [0, 3])
def test_a_long_reason_is_cut_at_a_character(tmp_path, character, offset):
    class Wordy(Toy):
        def __call__(self, theta, rng):
            if len(theta) > 1 or theta[0, 0] > 0.9:
                raise DataError("-" * offset + character * 200)
            return super().__call__(theta, rng)

    found = messages(run(tmp_path / "a.h5", simulator=Wordy()))
    (cut,) = {text for text in found if text}
    assert cut == ("-" * offset + character * 200)[: len(cut)]
    assert MESSAGE_BYTES - len(character.encode()) < len(cut.encode()) <= MESSAGE_BYTES


class Rare(Toy):
    """Fails for one row in two hundred."""

    def __call__(self, theta, rng):
        x = super().__call__(theta, rng)
        x["x"][theta[:, 0] > 0.995] = np.inf
        return x


@pytest.mark.parametrize("n", [120, 200, 215, 228, 229, 399])
def test_files_grow_the_same_with_and_without_failures(tmp_path, n):
    fresh = run(tmp_path / "fresh.h5", 400, Rare())
    assert np.flatnonzero(~fresh.valid).tolist() == [228]
    short = run(tmp_path / "a.h5", n, Rare())
    assert ("failure" in short.columns) == (n > 228)
    run(tmp_path / "a.h5", 400, Rare())
    assert content(tmp_path / "a.h5") == content(tmp_path / "fresh.h5")


def test_what_failed_most_often_is_told_whatever_the_numbers_in_it(tmp_path):
    class Mixed(Toy):
        def __call__(self, theta, rng):
            if len(theta) > 1 or theta[0, 0] > 0.8:
                raise ValueError(f"no root near {theta[0, 0]:.3f}" if theta[0, 0] < 0.95 else "too large")
            return super().__call__(theta, rng)

    with pytest.warns(
        UserWarning, match=r"a\.h5: (\d+) of 250 simulations failed \(most often: ValueError: no root near"
    ):
        run(tmp_path / "a.h5", simulator=Mixed())


class Counting(Toy):
    """Simulates one theta after the other, and counts."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def __call__(self, theta, rng):
        return unbatched(self.one)(theta, rng)

    def one(self, theta, rng):
        self.calls += 1
        if theta[0] > 0.9:
            raise ArithmeticError(f"diverged at {theta[0]:.4f}")
        return {"x": theta[0] + rng.normal(size=3), "n": 7}


def test_a_row_that_fails_alone_costs_no_other_row(tmp_path):
    simulator = Counting()
    data = run(tmp_path / "a.h5", 240, simulator)
    assert simulator.calls == 240
    expected = ["" if a <= 0.9 else f"ArithmeticError: diverged at {a:.4f}" for a in data.theta[:, 0]]
    assert messages(data) == expected
    noise = data.x(np.flatnonzero(data.valid))["x"] - data.theta[data.valid, :1]
    assert abs(noise.mean()) < 5 / noise.size**0.5
    assert len(np.unique(noise)) > 0.99 * noise.size


def test_called_by_hand_a_lifted_function_gives_the_good_rows_with_the_error():
    theta = np.array([[0.5], [0.95], [0.1]])
    with pytest.raises(
        FailedRowsError, match=r"1 rows failed, first row 1: ArithmeticError: diverged at 0\.9500"
    ) as told:
        Counting()(theta, np.random.default_rng(0))
    good = np.random.default_rng(0).normal(size=(2, 3))
    np.testing.assert_allclose(told.value.x["x"][[0, 2]], theta[[0, 2]] + good, rtol=1e-12)


def test_an_observable_that_changes_its_type_is_refused_and_the_shards_are_kept(tmp_path):
    with pytest.raises(DataError, match=r"x/n is of type .*, and of .* before"):
        run(tmp_path / "a.h5", simulator=Toy("fickle"))
    assert len(list((tmp_path / "a.h5.shards").glob("[0-9]*.h5"))) == 7
    assert not (tmp_path / "a.h5").exists()
