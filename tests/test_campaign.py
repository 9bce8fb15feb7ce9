"""Campaigns: one file whatever the engine and the length asked for first; nothing of another's is touched."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from campaign_toys import OBSERVABLES, Toy, content, interrupted, left_over, run

from sbi_dgm import Normal, Parameter, Prior, Simulations, Uniform
from sbi_dgm.errors import FileError, OptionError


@pytest.mark.filterwarnings("ignore:.*simulations failed")
@pytest.mark.parametrize("mood", ["well", "raises", "nan"])
def test_the_file_is_the_same_for_every_engine(tmp_path, mood):
    run(tmp_path / "one.h5", simulator=Toy(mood))
    run(tmp_path / "two.h5", simulator=Toy(mood), workers=2)
    with ThreadPoolExecutor(3) as pool:
        run(tmp_path / "threads.h5", simulator=Toy(mood), executor=pool)
    files = [content(tmp_path / f"{name}.h5") for name in ("one", "two", "threads")]
    assert files[0] == files[1] == files[2]
    assert left_over(tmp_path / "one.h5") == ["threads.h5", "two.h5"]


def test_another_seed_gives_another_file(tmp_path):
    run(tmp_path / "a.h5")
    run(tmp_path / "b.h5", seed=2)
    one, other = content(tmp_path / "a.h5"), content(tmp_path / "b.h5")
    assert {name for name in one if one[name] != other[name]} == {"/", "theta", "x/x", "x/n", "crc32"}


def test_theta_follows_the_prior_and_x_follows_theta(tmp_path):
    data = run(tmp_path / "a.h5", 4000, shard_rows=500)
    theta, x = data.theta, data.x(np.arange(4000))
    assert len(np.unique(theta[:, 0])) == 4000
    for column, mean, sd in zip(theta.T, (0.5, 0), (12**-0.5, 1), strict=True):
        assert abs(column.mean() - mean) < 5 * sd / 4000**0.5
    noise = x["x"] - theta[:, :1]
    assert abs(noise.mean()) < 5 / 12_000**0.5
    assert abs(noise.std() - 1) < 5 / 24_000**0.5
    assert abs((x["n"] - 10 * theta[:, 0]).mean()) < 5 * (5 / 4000) ** 0.5


def test_a_campaign_describes_itself(tmp_path):
    header = run(tmp_path / "a.h5").header
    assert header.simulator == {"name": "toy", "version": "1", "seed": 1, "shard_rows": 40}
    assert header.restore_prior() == Toy().prior
    data = Simulations.open(tmp_path / "a.h5")
    assert data.observables == OBSERVABLES
    assert {name: str(c.dtype) for name, c in data.columns.items()} == {
        "theta": "float64", "valid": "uint8", "x/x": "float32", "x/n": "int64", "seed": "uint64"
    }  # fmt: skip
    assert data.columns["seed"][:].tolist() == [row // 40 for row in range(250)]


@pytest.mark.parametrize(("first", "then"), [(2500, 4000), (1000, 1001), (999, 3000), (1, 2)])
def test_an_extension_equals_a_longer_run(tmp_path, first, then):
    run(tmp_path / "fresh.h5", then, shard_rows=1000)
    run(tmp_path / "grown.h5", first, shard_rows=1000)
    data = run(tmp_path / "grown.h5", then, shard_rows=1000)
    assert len(data) == then
    assert content(tmp_path / "grown.h5") == content(tmp_path / "fresh.h5")
    assert left_over(tmp_path / "fresh.h5") == ["grown.h5"]


class Renamed(Toy):
    name = "tea"


class Newer(Toy):
    version = "2"


class Wider(Toy):
    def __init__(self):
        super().__init__()
        self.prior = Prior([Parameter("a", Uniform(0, 2)), Parameter("b", Normal(0, 1))])


OTHERS = [{"seed": 2}, {"shard_rows": 20}, {"simulator": Renamed()}, {"simulator": Newer()}, {"simulator": Wider()}]


NAMES = ["seed", "shard_rows", "name", "version", "prior"]


@pytest.mark.parametrize("other", OTHERS, ids=NAMES)
def test_another_campaigns_shards_are_refused_and_kept(tmp_path, other):
    folder = interrupted(tmp_path / "a.h5")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(FileError, match=r"a\.h5\.shards holds another campaign: .*--overwrite"):
        run(tmp_path / "a.h5", **other)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert len(run(tmp_path / "a.h5", overwrite=True, **other)) == 250


@pytest.mark.parametrize("other", OTHERS, ids=NAMES)
def test_another_campaigns_file_is_not_extended(tmp_path, other):
    run(tmp_path / "a.h5")
    before = (tmp_path / "a.h5").read_bytes()
    with pytest.raises(FileError, match=r"a\.h5 holds another campaign"):
        run(tmp_path / "a.h5", 500, **other)
    assert (tmp_path / "a.h5").read_bytes() == before
    assert left_over(tmp_path / "a.h5") == []


@pytest.mark.parametrize("n", [250, 100])
def test_an_existing_file_is_replaced_only_when_asked(tmp_path, n):
    run(tmp_path / "a.h5")
    before = (tmp_path / "a.h5").read_bytes()
    with pytest.raises(FileError, match=r"exists already, with 250 rows.*--overwrite"):
        run(tmp_path / "a.h5", n)
    assert (tmp_path / "a.h5").read_bytes() == before
    assert len(run(tmp_path / "a.h5", n, overwrite=True)) == n


def test_a_file_of_something_else_is_not_touched(tmp_path):
    (tmp_path / "a.h5").write_text("thesis, chapter 1")
    with pytest.raises(FileError):
        run(tmp_path / "a.h5")
    assert (tmp_path / "a.h5").read_text() == "thesis, chapter 1"
    assert left_over(tmp_path / "a.h5") == []


@pytest.mark.parametrize("name", ["n", "workers", "shard_rows"])
@pytest.mark.parametrize("value", [0, -3])
def test_numbers_below_one_are_refused(tmp_path, name, value):
    with pytest.raises(OptionError, match=f"{name} = {value}: a whole number, at least 1"):
        run(tmp_path / "a.h5", **{name: value})
    assert list(tmp_path.iterdir()) == []
