"""Campaigns that simulate each theta several times: same file whatever the engine, and universes that stay together."""

import h5py
import numpy as np
import pytest
from campaign_toys import Interrupted, Toy, content, left_over, run

from sbi_dgm import Simulations
from sbi_dgm.cli import main
from sbi_dgm.data.splits import SplitRule, split_rows
from sbi_dgm.errors import FileError, OptionError

MAPS = 5  # of each universe; a shard of 40 rows holds 8 universes


def check_universes(data, shard_rows=40):
    """MAPS rows share one theta and one number; all else is drawn anew; universes are all different."""
    theta, group, x = data.theta, data.columns["group"][:], data.x(np.arange(len(data)))["x"]
    assert group.dtype == np.int64
    assert group.tolist() == [row // MAPS for row in range(len(data))]
    assert len(np.unique(theta, axis=0)) == len(data) // MAPS
    np.testing.assert_array_equal(theta, theta[::MAPS].repeat(MAPS, axis=0))
    assert len(np.unique(x)) == x.size
    assert data.columns["seed"][:].tolist() == [row // shard_rows for row in range(len(data))]


def test_maps_of_a_universe_share_theta_and_group(tmp_path):
    check_universes(run(tmp_path / "a.h5", repeats=MAPS))


def test_without_repeats_there_are_no_universes(tmp_path):
    with pytest.raises((AssertionError, KeyError)):
        check_universes(run(tmp_path / "a.h5"))


def test_the_noise_of_repeated_rows_is_independent(tmp_path):
    data = run(tmp_path / "a.h5", 4000, shard_rows=500, repeats=2)
    noise = (data.x(np.arange(4000))["x"] - data.theta[:, :1]).reshape(2000, 2, 3)
    assert abs((noise[:, 0] * noise[:, 1]).mean()) < 4 / 6000**0.5


def test_one_row_for_each_theta_leaves_the_file_as_it_was(tmp_path):
    one, other = run(tmp_path / "a.h5"), run(tmp_path / "b.h5", repeats=1)
    assert "group" not in one.columns
    assert one.header.simulator == {"name": "toy", "version": "1", "seed": 1, "shard_rows": 40}
    assert content(one.path) == content(other.path)
    assert run(tmp_path / "c.h5", repeats=2).header.simulator == one.header.simulator | {"repeats": 2}


@pytest.mark.filterwarnings("ignore:.*simulations failed")
@pytest.mark.parametrize("mood", ["well", "raises", "nan"])
def test_the_file_is_the_same_for_one_worker_and_two_and_after_an_interruption(tmp_path, mood):
    run(tmp_path / "one.h5", simulator=Toy(mood), repeats=MAPS)
    run(tmp_path / "two.h5", simulator=Toy(mood), workers=2, repeats=MAPS)
    assert content(tmp_path / "one.h5") == content(tmp_path / "two.h5")
    if mood == "well":
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "a.h5", simulator=Interrupted(3), repeats=MAPS)
        run(tmp_path / "a.h5", simulator=(rest := Interrupted(4)), repeats=MAPS)
        assert rest.left == 0
        assert content(tmp_path / "a.h5") == content(tmp_path / "one.h5")


@pytest.mark.parametrize(("first", "then"), [(250, 400), (80, 85), (5, 10)])
def test_an_extension_equals_a_longer_run(tmp_path, first, then):
    run(tmp_path / "fresh.h5", then, repeats=MAPS)
    run(tmp_path / "grown.h5", first, repeats=MAPS)
    data = run(tmp_path / "grown.h5", then, repeats=MAPS)
    check_universes(data)
    assert content(tmp_path / "grown.h5") == content(tmp_path / "fresh.h5")
    assert left_over(tmp_path / "grown.h5") == ["fresh.h5"]


@pytest.mark.parametrize(("before", "after"), [(MAPS, 2), (MAPS, 1), (1, MAPS)])
def test_another_number_of_repeats_is_another_campaign(tmp_path, before, after):
    run(tmp_path / "a.h5", 200, repeats=before)
    kept = content(tmp_path / "a.h5")
    with pytest.raises(FileError, match=r"a.h5 holds another campaign: its simulator is .*repeats"):
        run(tmp_path / "a.h5", 400, repeats=after)
    assert content(tmp_path / "a.h5") == kept
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b.h5", 200, simulator=Interrupted(2), repeats=before)
    with pytest.raises(FileError, match=r"b.h5.shards holds another campaign"):
        run(tmp_path / "b.h5", 200, repeats=after)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"n": 251}, "n = 251 is no multiple of repeats = 5: 250 or 255 would be"),
        ({"n": 3}, "n = 3 is no multiple of repeats = 5: 5 would be"),
        ({"shard_rows": 42}, "shard_rows = 42 is no multiple of repeats = 5: 40 or 45 would be"),
        ({"repeats": 0}, "repeats = 0: a whole number, at least 1, is needed"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_before_anything_is_drawn(tmp_path, wrong, told):
    with pytest.raises(OptionError, match=told):
        run(tmp_path / "a.h5", **{"repeats": MAPS} | wrong)
    assert list(tmp_path.iterdir()) == []


def test_a_universe_stays_in_one_split(tmp_path):
    data = run(tmp_path / "a.h5", 400, repeats=MAPS)
    split = split_rows(SplitRule(validation=0.2, test=0.2), data.columns["group"][:], data.valid[:].astype(bool))
    universes = [set(data.theta[rows, 0]) for rows in (split.train, split.validation, split.test)]
    assert [len(rows) for rows in (split.train, split.validation, split.test)] == [240, 80, 80]
    assert [len(one) for one in universes] == [48, 16, 16]


def test_the_command_line_repeats(tmp_path, capsys):
    words = ["simulate", "campaign_toys:Toy", "-n", "200", "--shard-rows", "40", "--seed", "1", "--repeats", "5"]
    assert main([*words, "-o", str(tmp_path / "a.h5")]) in (0, None)
    run(tmp_path / "b.h5", 200, repeats=MAPS)
    assert content(tmp_path / "a.h5") == content(tmp_path / "b.h5")
    assert main([*words[:-1], "3", "-o", str(tmp_path / "c.h5")]) == 2
    assert "n = 200 is no multiple of repeats = 3: 198 or 201 would be" in capsys.readouterr().err
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["group"].fletcher32
    assert len(Simulations.open(tmp_path / "a.h5")) == 200
