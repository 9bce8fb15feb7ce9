"""Campaigns that are killed, damaged or out of room: the same call goes on to the uninterrupted file."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import h5py
import numpy as np
import pytest
from campaign_toys import Interrupted, content, interrupted, left_over, run, script

from sbi_dgm import Simulations, campaign
from sbi_dgm.errors import FileError


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
    delays = np.random.default_rng(0).uniform(0, 0.05, 3)
    killed = [kill_when(path, out, n, delay) for n, delay in zip((0, 4, 14), delays, strict=True)]
    assert sum(killed) >= 2
    if not out.exists():
        assert subprocess.run([sys.executable, str(path), str(out)], check=False).returncode == 0
    assert content(out) == content(tmp_path / "whole.h5")
    assert not out.with_name("killed.h5.shards").exists()


@pytest.mark.filterwarnings("ignore:.*is damaged")
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
    write = campaign.native.write

    def stop(path, *rest):
        if path == tmp_path / "a.h5":
            raise KeyboardInterrupt
        write(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(campaign.native, "write", stop)
        interrupted(tmp_path / "a.h5", 9)
    run(tmp_path / "a.h5", simulator=Interrupted(0))
    assert content(tmp_path / "a.h5") == content(tmp_path / "whole.h5")


def test_shards_left_beside_a_finished_file_do_no_harm(tmp_path, monkeypatch):
    run(tmp_path / "whole.h5", 500)
    with monkeypatch.context() as patch:
        patch.setattr(campaign.shutil, "rmtree", lambda *_, **__: None)
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
        patch.setattr(campaign.shutil, "rmtree", lambda *_, **__: None)
        run(tmp_path / "a.h5")
    assert left_over(tmp_path / "a.h5") == ["a.h5.shards"]
    with pytest.raises(FileError, match="exists already"):
        run(tmp_path / "a.h5")
    assert left_over(tmp_path / "a.h5") == []


def flip(path, dataset):
    """Change one byte in the middle of a dataset's only chunk."""
    with h5py.File(path) as file:
        chunk = file[dataset].id.get_chunk_info(0)
    raw = bytearray(path.read_bytes())
    raw[chunk.byte_offset + chunk.size // 2] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("dataset", ["theta", "x/x", "x/n", "valid", "seed"])
def test_a_shard_with_one_wrong_bit_is_told_and_drawn_again(tmp_path, dataset):
    run(tmp_path / "whole.h5")
    shard = interrupted(tmp_path / "a.h5") / "000001.h5"
    flip(shard, dataset)
    missing = Interrupted(5)
    with pytest.warns(UserWarning, match=r"000001\.h5 is damaged, or of another campaign: it is drawn again"):
        run(tmp_path / "a.h5", simulator=missing)
    assert missing.left == 0
    assert content(tmp_path / "a.h5") == content(tmp_path / "whole.h5")


def test_what_killed_writers_left_is_swept(tmp_path):
    folder = interrupted(tmp_path / "a.h5")
    (folder / ".000003.h5.123.part").write_bytes(b"half")
    (tmp_path / ".a.h5.123.part").write_bytes(b"half")
    (tmp_path / ".b.h5.123.part").write_bytes(b"of another")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a.h5", simulator=Interrupted(1))
    assert not list(folder.glob(".*.part"))
    assert [p.name for p in tmp_path.glob(".*.part")] == [".b.h5.123.part"]


def test_shards_without_their_campaigns_note_are_not_trusted(tmp_path):
    run(tmp_path / "whole.h5")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a.h5", simulator=Interrupted(3), seed=2)
    (tmp_path / "a.h5.shards" / "campaign.json").unlink()
    run(tmp_path / "a.h5")
    assert content(tmp_path / "a.h5") == content(tmp_path / "whole.h5")


def test_a_killed_overwrite_leaves_the_old_file_and_goes_on_without_the_word(tmp_path):
    run(tmp_path / "new.h5", seed=2)
    run(tmp_path / "a.h5")
    before = (tmp_path / "a.h5").read_bytes()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a.h5", simulator=Interrupted(3), seed=2, overwrite=True)
    assert (tmp_path / "a.h5").read_bytes() == before
    rest = Interrupted(4)
    run(tmp_path / "a.h5", simulator=rest, seed=2)
    assert rest.left == 0
    assert content(tmp_path / "a.h5") == content(tmp_path / "new.h5")
    with pytest.raises(FileError, match="exists already"):
        run(tmp_path / "a.h5", seed=2)


def test_overwriting_draws_anew_even_what_an_overwrite_had_drawn(tmp_path):
    run(tmp_path / "a.h5")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "a.h5", simulator=Interrupted(3), overwrite=True)
    whole = Interrupted(7)
    run(tmp_path / "a.h5", simulator=whole, overwrite=True)
    assert whole.left == 0


@contextmanager
def no_file_over(size):
    """For the disk, a limit that this process can set: no file longer than so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("size", "words"), [(10_000, r"shard \d \(rows .*\): .* cannot be written"),
                                             (100_000, r"a\.h5 cannot be written")])  # fmt: skip
def test_a_file_that_finds_no_room_is_told_and_the_same_call_goes_on(tmp_path, workers, size, words):
    run(tmp_path / "whole.h5", 4000, shard_rows=500)
    with no_file_over(size), pytest.raises(FileError, match=words + r".*File too large.*kept.*goes on"):
        run(tmp_path / "a.h5", 4000, shard_rows=500, workers=workers)
    assert not (tmp_path / "a.h5").exists()
    assert not list(tmp_path.rglob(".*.part"))
    rest = Interrupted(0 if size > 50_000 else 8)
    run(tmp_path / "a.h5", 4000, rest, shard_rows=500)
    assert rest.left == 0
    assert content(tmp_path / "a.h5") == content(tmp_path / "whole.h5")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 kB, where we may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("occupied", [240_000, 150_000])
def test_a_full_disk_is_told_and_the_same_call_goes_on(tmp_path, small_disk, workers, occupied):
    run(tmp_path / "whole.h5", 1000, shard_rows=250)
    (small_disk / "ballast").write_bytes(bytes(occupied))
    with pytest.raises(FileError, match=r"cannot be written.*No space left on device.*goes on"):
        run(small_disk / "a.h5", 1000, shard_rows=250, workers=workers)
    there = list((small_disk / "a.h5.shards").glob("[0-9]*.h5"))
    assert all(len(Simulations.open(path)) == 250 for path in there)
    assert (len(there) == 4) == (occupied == 150_000)
    (small_disk / "ballast").unlink()
    rest = Interrupted(4 - len(there))
    run(small_disk / "a.h5", 1000, rest, shard_rows=250)
    assert rest.left == 0
    assert content(small_disk / "a.h5") == content(tmp_path / "whole.h5")
