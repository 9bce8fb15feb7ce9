"""Workers that die, hang, outlive their parent or lose what they had to do."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from campaign_toys import Interrupted, Toy, content, run, script

from sbi_dgm import shards
from sbi_dgm.errors import FileError, OptionError, SbiError


class Once(Toy):
    """Meets a fate the first time that it draws shard 1, whose first a is 0.99."""

    def __init__(self, mark, fate, times=1):
        super().__init__()
        self.mark, self.fate, self.times = mark, fate, times

    def __call__(self, theta, rng):
        if theta[0, 0] > 0.97:
            with self.mark.open("a") as file:
                file.write("x")
            if len(self.mark.read_text()) <= self.times:
                FATES[self.fate]()
        return super().__call__(theta, rng)


FATES = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "ended": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "exit": lambda: os._exit(0),
    "hangs": lambda: time.sleep(60),
}


@pytest.mark.parametrize("fate", FATES)
def test_a_dead_or_hanging_worker_is_replaced_and_its_shard_drawn_again(tmp_path, fate):
    run(tmp_path / "whole.h5", 400)
    timeout, words = (1.0, "took longer than 1 s") if fate == "hangs" else (None, "a worker died")
    with pytest.warns(UserWarning, match=f"{words}.*: its task is given to another"):
        run(tmp_path / "a.h5", 400, Once(tmp_path / "mark", fate), workers=2, timeout=timeout)
    assert (tmp_path / "mark").read_text() == "xx"
    assert content(tmp_path / "a.h5") == content(tmp_path / "whole.h5")


@pytest.mark.filterwarnings("ignore:.*given to another")
@pytest.mark.parametrize("fate", ["killed", "hangs"])
def test_a_shard_that_ends_three_workers_ends_the_campaign_and_the_same_call_goes_on(tmp_path, fate):
    run(tmp_path / "whole.h5", 400)
    timeout, words = (0.5, "a worker took longer than 0.5 s") if fate == "hangs" else (None, "a worker died .*")
    fatal = Once(tmp_path / "mark", fate, times=3)
    pattern = rf"shard 1 \(rows 40 to 79\) did not come back: {words}, 3 times.*are kept; the same call again goes on"
    with pytest.raises(SbiError, match=pattern):
        run(tmp_path / "a.h5", 400, fatal, workers=2, timeout=timeout)
    there = {p.stem for p in (tmp_path / "a.h5.shards").glob("[0-9]*.h5")}
    assert "000001" not in there
    assert "000000" in there
    run(tmp_path / "a.h5", 400, fatal, workers=2)
    assert content(tmp_path / "a.h5") == content(tmp_path / "whole.h5")


@pytest.mark.parametrize(("workers", "timeout"), [(1, 5.0), (2, 0.0), (2, -1.0)])
def test_a_time_limit_that_cannot_hold_is_refused(tmp_path, workers, timeout):
    with pytest.raises(OptionError, match="timeout"):
        run(tmp_path / "a.h5", workers=workers, timeout=timeout)
    assert list(tmp_path.iterdir()) == []


def children(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid):
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def eventually(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are found by /proc")
def test_workers_do_not_outlive_their_parent(tmp_path):
    path, out = script(tmp_path), tmp_path / "orphans.h5"
    with subprocess.Popen([sys.executable, str(path), str(out)]) as parent:
        folder = out.with_name("orphans.h5.shards")
        assert eventually(lambda: list(folder.glob("[0-9]*.h5")))
        workers = children(parent.pid)
        assert len(workers) == 2
        parent.kill()
    assert eventually(lambda: not any(map(alive, workers)), 10)
    assert subprocess.run([sys.executable, str(path), str(out)], check=False).returncode == 0
    assert content(out) == content(tmp_path / "whole.h5")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are found by /proc")
def test_ctrl_c_ends_in_one_sentence_and_no_process_is_left(tmp_path):
    script(tmp_path)
    words = ["simulate", "slow:Slow", "-n", "470", "--seed", "5", "--shard-rows", "20", "-o", "a.h5"]
    command = [sys.executable, "-m", "sbi_dgm", *words, "--workers", "2"]
    folder = tmp_path / "a.h5.shards"
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        assert eventually(lambda: list(folder.glob("[0-9]*.h5")))
        workers = children(parent.pid)
        os.killpg(parent.pid, signal.SIGINT)
        told = parent.communicate(timeout=30)[1]
    assert parent.returncode == 130
    assert told.split("\n")[-2].startswith("sbi-dgm: interrupted; what was finished is kept")
    assert "Traceback" not in told
    assert not any(map(alive, workers))
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0
    assert content(tmp_path / "a.h5") == content(tmp_path / "whole.h5")


class Lossy(ThreadPoolExecutor):
    """Loses, or only pretends to do, the tasks of given numbers."""

    def __init__(self, lost, how):
        super().__init__(2)
        self.lost, self.how = lost, how

    def submit(self, function, /, index):
        if index not in self.lost:
            return super().submit(function, index)
        return super().submit(self.pretend)

    def pretend(self):
        if self.how == "raised":
            raise ConnectionError("node 7 is gone")
        return 0


@pytest.mark.parametrize(
    ("how", "words"),
    [("raised", "ConnectionError: node 7 is gone"), ("silent", "do the workers share this file system")],
)
def test_shards_that_another_engine_loses_are_told_and_the_others_kept(tmp_path, how, words):
    run(tmp_path / "whole.h5")
    pattern = rf"2 of 7 shards did not come back: shard 2 \(rows 80 to 119\): .*{words}.*; shard 5 .*goes on"
    with Lossy({2, 5}, how) as engine, pytest.raises(SbiError, match=pattern):
        run(tmp_path / "a.h5", executor=engine)
    rest = Interrupted(2)
    run(tmp_path / "a.h5", simulator=rest)
    assert rest.left == 0
    assert content(tmp_path / "a.h5") == content(tmp_path / "whole.h5")


def test_many_lost_shards_are_counted_and_some_named(tmp_path):
    with Lossy(set(range(12)), "raised") as engine, pytest.raises(SbiError, match=r"12 of 13 .*shard 2 .*; and 9 more"):
        run(tmp_path / "a.h5", 500, executor=engine)


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path):
    with pytest.raises(FileError, match="all workers must share the file system"):
        shards.fill(shards.Plan(Toy(), 1, 40), 0, tmp_path / "elsewhere")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("handler", "silent"), [("executors._stop", True), ("signal.default_int_handler", False)])
def test_a_worker_that_is_ended_while_hdf5_writes_prints_nothing(handler, silent):
    """A signal within a callback, here a destructor, where what is raised can only be printed."""
    code = f"""
import os, signal
from sbi_dgm import executors
class Writing:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
executors._stop = {handler}
executors._interruptible(lambda: None if Writing() else None)
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr
    assert (told == "") == silent, told
