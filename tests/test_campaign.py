"""Campaigns: one file whatever the engine, the length asked for first, the kill or the failure on the way."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest

from sbi_dgm import Normal, Observable, Parameter, Prior, Simulations, Uniform, campaign, simulate, unbatched
from sbi_dgm.errors import DataError, FileError, OptionError, SbiError

OBSERVABLES = {"x": Observable((3,), "mag"), "n": Observable(())}


class Toy:
    """Vectors and counts from two parameters; `mood` says what goes wrong."""

    name, version = "toy", "1"

    def __init__(self, mood="well"):
        self.mood, self.observables = mood, OBSERVABLES
        self.prior = Prior([Parameter("a", Uniform(0, 1)), Parameter("b", Normal(0, 1))])

    def __call__(self, theta, rng):
        x = theta[:, :1] + rng.normal(size=(len(theta), 3))
        n = rng.poisson(10 * theta[:, 0])
        return getattr(self, f"_{self.mood}")(theta, x, n)

    def _well(self, theta, x, n):
        return {"x": x, "n": n}

    def _raises(self, theta, x, n):
        if (theta[:, 0] > 0.9).any():
            raise ZeroDivisionError(f"no solution at {theta[theta[:, 0] > 0.9][0, 0]:.4f}")
        return {"x": x, "n": n}

    def _nan(self, theta, x, n):
        return {"x": np.where(theta[:, :1] > 0.9, np.nan, x), "n": n}

    def _hopeless(self, theta, x, n):
        raise ZeroDivisionError("boom in line 7")

    def _empty(self, theta, x, n):
        return {"x": np.full_like(x, np.inf), "n": n}

    def _wide(self, theta, x, n):
        return {"x": np.repeat(x, 2, 1), "n": n}

    def _short(self, theta, x, n):
        return {"x": x[:-1], "n": n}

    def _lone(self, theta, x, n):
        return {"x": x}

    def _bare(self, theta, x, n):
        return x

    def _dies(self, theta, x, n):
        if theta[0, 0] > 0.5:
            os._exit(9)
        return {"x": x, "n": n}


class Interrupted(Toy):
    """Stops with Ctrl-C after so many shards."""

    def __init__(self, shards):
        super().__init__()
        self.left = shards

    def __call__(self, theta, rng):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().__call__(theta, rng)


def content(path):
    """All of a file but the time of its creation."""
    found = {}
    with h5py.File(path) as file:
        found["/"] = {name: value for name, value in file.attrs.items() if name != "created"}
        file.visititems(lambda name, item: found.update({name: describe(item)}))
    return found


def describe(item):
    if isinstance(item, h5py.Group):
        return sorted(item), dict(item.attrs)
    return item.dtype.str, item.shape, item.chunks, item.fletcher32, item[()].tobytes(), dict(item.attrs)


def run(out, n=250, simulator=None, seed=1, shard_rows=40, **options):
    return simulate(simulator or Toy(), n, out=out, seed=seed, shard_rows=shard_rows, progress=False, **options)


def left_over(out):
    return sorted(p.name for p in out.parent.iterdir() if p != out)


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
    assert {name for name in one if one[name] != other[name]} == {"/", "theta", "x/x", "x/n"}


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


SCRIPT = """
import sys
import time
import numpy as np
from sbi_dgm import Observable, Parameter, Prior, Uniform, simulate

class Slow:
    name, version = "slow", "1"
    observables = {"x": Observable((50,))}
    prior = Prior([Parameter("a", Uniform(0, 1))])
    pause = 0.03

    def __call__(self, theta, rng):
        time.sleep(self.pause)
        return theta + rng.normal(size=(len(theta), 50))

def go(out, workers):
    return simulate(Slow(), 470, out=out, seed=5, workers=workers, shard_rows=20, progress=False)

if __name__ == "__main__":
    go(sys.argv[1], 2)
"""


def script(folder):
    """The script as a file, and its uninterrupted result."""
    path = folder / "slow.py"
    path.write_text(SCRIPT)
    spec = importlib.util.spec_from_file_location("slow", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.Slow.pause = 0
    module.go(folder / "whole.h5", 1)
    return path


def kill_when(path, out, shards, delay):
    """Start the script, and SIGKILL it with its workers once so many shards are there; say whether it was running."""
    process = subprocess.Popen([sys.executable, str(path), str(out)], start_new_session=True)
    folder, end = out.with_name(out.name + ".shards"), time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end and len(list(folder.glob("[0-9]*.h5"))) < shards:
        time.sleep(0.002)
    time.sleep(delay)
    running = process.poll() is None
    os.killpg(process.pid, signal.SIGKILL) if running else None
    process.wait()
    return running


def test_a_campaign_killed_and_started_again_gives_the_uninterrupted_file(tmp_path):
    path, out = script(tmp_path), tmp_path / "killed.h5"
    delays = np.random.default_rng(0).uniform(0, 0.05, 4)
    killed = [kill_when(path, out, n, delay) for n, delay in zip((0, 2, 8, 14), delays, strict=True)]
    assert sum(killed) >= 2
    if not out.exists():
        assert subprocess.run([sys.executable, str(path), str(out)], check=False).returncode == 0
    assert content(out) == content(tmp_path / "whole.h5")
    assert not out.with_name("killed.h5.shards").exists()


def interrupted(out, shards=3):
    """Leave a campaign that has come so far."""
    with pytest.raises(KeyboardInterrupt):
        run(out, simulator=Interrupted(shards))
    assert not out.exists()
    return out.with_name(out.name + ".shards")


@pytest.mark.parametrize("damage", ["none", "cut", "empty", "lost", "part"])
def test_shards_left_behind_are_used_where_whole_and_redone_where_not(tmp_path, damage):
    run(tmp_path / "whole.h5")
    folder = interrupted(tmp_path / "a.h5")
    shard = folder / "000001.h5"
    raw = shard.read_bytes()
    if damage == "lost":
        shard.unlink()
    elif damage == "part":
        (folder / ".000003.h5.123.part").write_bytes(raw[:100])
    elif damage != "none":
        shard.write_bytes(raw[: len(raw) // 2 if damage == "cut" else 0])
    missing = Interrupted(5 if damage in ("cut", "empty", "lost") else 4)
    run(tmp_path / "a.h5", simulator=missing)
    assert missing.left == 0
    assert content(tmp_path / "a.h5") == content(tmp_path / "whole.h5")
    assert left_over(tmp_path / "a.h5") == ["whole.h5"]


def test_a_campaign_stopped_while_it_joins_its_shards_runs_none_of_them_again(tmp_path, monkeypatch):
    run(tmp_path / "whole.h5")
    write = campaign.layout.write

    def stop(path, *rest):
        if path == tmp_path / "a.h5":
            raise KeyboardInterrupt
        write(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(campaign.layout, "write", stop)
        interrupted(tmp_path / "a.h5", 9)
    run(tmp_path / "a.h5", simulator=Interrupted(0))
    assert content(tmp_path / "a.h5") == content(tmp_path / "whole.h5")


def test_shards_left_beside_a_finished_file_do_no_harm(tmp_path, monkeypatch):
    run(tmp_path / "whole.h5", 500)
    with monkeypatch.context() as patch:
        patch.setattr(campaign.shutil, "rmtree", lambda path: None)
        run(tmp_path / "a.h5")
    assert left_over(tmp_path / "a.h5") == ["a.h5.shards", "whole.h5"]
    run(tmp_path / "a.h5", 500)
    assert content(tmp_path / "a.h5") == content(tmp_path / "whole.h5")
    assert left_over(tmp_path / "a.h5") == ["whole.h5"]


def test_asking_for_less_leaves_an_unfinished_extension_alone(tmp_path):
    run(tmp_path / "whole.h5", 500)
    run(tmp_path / "a.h5", 100)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a.h5", 500, simulator=Interrupted(6))
    with pytest.raises(FileError, match="exists already, with 100 rows"):
        run(tmp_path / "a.h5", 100)
    rest = Interrupted(5)
    run(tmp_path / "a.h5", 500, simulator=rest)
    assert rest.left == 0
    assert content(tmp_path / "a.h5") == content(tmp_path / "whole.h5")


def test_shards_left_beside_a_finished_file_go_when_it_is_asked_for_again(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(campaign.shutil, "rmtree", lambda path: None)
        run(tmp_path / "a.h5")
    assert left_over(tmp_path / "a.h5") == ["a.h5.shards"]
    with pytest.raises(FileError, match="exists already"):
        run(tmp_path / "a.h5")
    assert left_over(tmp_path / "a.h5") == []


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


@pytest.mark.parametrize("shard", [0, 3])
def test_a_shard_that_fails_as_a_whole_changes_no_type_and_no_other_shard(tmp_path, shard):
    well, data = run(tmp_path / "well.h5"), run(tmp_path / "a.h5", simulator=Patchy(shard))
    failed = np.arange(250) // 40 == shard
    assert {n: c.dtype for n, c in data.columns.items()} == {n: c.dtype for n, c in well.columns.items()}
    np.testing.assert_array_equal(data.valid, ~failed)
    rows = np.arange(250)
    assert (data.x(rows)["n"][failed] == 0).all()
    assert np.isnan(data.x(rows)["x"][failed]).all()
    for name in OBSERVABLES:
        np.testing.assert_array_equal(data.x(rows[~failed])[name], well.x(rows[~failed])[name])


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
                        ("empty", "all 250 simulations failed: their output is not finite")]
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
        ("wide", r"simulator 'toy': observable 'x' has shape \(40, 6\), expected \(40, 3\)"),
        ("short", r"observable 'x' has shape \(39, 3\), expected \(40, 3\)"),
        ("lone", r"gave \['x'\], without its observable 'n'"),
        ("bare", "without its observable 'n'"),
    ],
)
def test_output_that_does_not_fit_is_refused_with_expected_and_given(tmp_path, mood, words, workers):
    with pytest.raises(DataError, match=words):
        run(tmp_path / "a.h5", simulator=Toy(mood), workers=workers)
    assert not (tmp_path / "a.h5").exists()


def test_a_worker_that_dies_is_told_and_the_same_call_goes_on(tmp_path):
    run(tmp_path / "whole.h5")
    with pytest.raises(SbiError, match=r"a worker died.*goes on"):
        run(tmp_path / "a.h5", simulator=Toy("dies"), workers=2)
    run(tmp_path / "a.h5", workers=2)
    assert content(tmp_path / "a.h5") == content(tmp_path / "whole.h5")


@pytest.mark.parametrize("name", ["n", "workers", "shard_rows"])
@pytest.mark.parametrize("value", [0, -3])
def test_numbers_below_one_are_refused(tmp_path, name, value):
    with pytest.raises(OptionError, match=f"{name} = {value}: at least 1"):
        run(tmp_path / "a.h5", **{name: value})
    assert list(tmp_path.iterdir()) == []


def test_a_function_of_one_theta_is_lifted_to_batches(tmp_path):
    class Single(Toy):
        name = "single"

        def __call__(self, theta, rng):
            return unbatched(lambda one, rng: {"x": one[0] + rng.normal(size=3), "n": int(10 * one[0])})(theta, rng)

    data = run(tmp_path / "a.h5", simulator=Single())
    np.testing.assert_array_equal(data.x(np.arange(250))["n"], (10 * data.theta[:, 0]).astype(int))
