"""Atomic writes: the old content or the new, never a part."""

import errno
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest

from sbi_dgm import files
from sbi_dgm.errors import FileError
from sbi_dgm.files import atomic, held, read_json, refuse_existing, require_file, write_json, write_text

OLD, NEW = "the old content", "the new content, longer than the old"
ATOMIC = """
import sys, time
from sbi_dgm.files import atomic
with atomic(sys.argv[1]) as temporary, open(temporary, "w") as file:
    file.write("half of the")
    file.flush()
    print("writing", flush=True)
    time.sleep(60)
"""
IN_PLACE = """
import sys, time
with open(sys.argv[1], "w") as file:
    file.write("half of the")
    file.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


def fail_half_way(path, error):
    with atomic(path) as temporary:
        temporary.write_text("half of the")
        raise error


def check_survives_a_kill(path, writer):
    path.write_text(OLD)
    with subprocess.Popen([sys.executable, "-c", writer, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(signal.SIGKILL)
    assert path.read_text() == OLD


def test_a_killed_writer_leaves_the_old_file(tmp_path):
    check_survives_a_kill(tmp_path / "file.txt", ATOMIC)


def test_a_killed_writer_in_place_does_not(tmp_path):
    with pytest.raises(AssertionError):
        check_survives_a_kill(tmp_path / "file.txt", IN_PLACE)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_old_file_and_no_other(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text(OLD)
    with pytest.raises(error):
        fail_half_way(path, error)
    assert path.read_text() == OLD
    assert list(tmp_path.iterdir()) == [path]


def test_the_old_file_stands_until_the_block_ends(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text(OLD)
    with atomic(path) as temporary:
        temporary.write_text(NEW)
        assert path.read_text() == OLD
    assert path.read_text() == NEW
    assert list(tmp_path.iterdir()) == [path]


def test_the_temporary_lies_in_the_same_folder_which_is_made(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    with atomic(path) as temporary:
        assert temporary.parent == path.parent
        temporary.write_text(NEW)
    assert path.read_text() == NEW


def test_text_and_json_read_back(tmp_path):
    write_text(tmp_path / "text", "Ωₘ = 0.3")
    assert (tmp_path / "text").read_text(encoding="utf-8") == "Ωₘ = 0.3"
    write_json(tmp_path / "json", {"b": 1, "a": [2.5]})
    assert (tmp_path / "json").read_text() == '{\n  "b": 1,\n  "a": [\n    2.5\n  ]\n}\n'


def test_json_that_fails_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "json", {"a": object()})
    assert '"a": 1' in (tmp_path / "json").read_text()


def test_an_existing_file_is_replaced_only_on_demand(tmp_path):
    path = tmp_path / "file.txt"
    refuse_existing(path, overwrite=False)
    path.write_text(OLD)
    refuse_existing(path, overwrite=True)
    with pytest.raises(FileError, match=r"file\.txt exists already.*overwrite"):
        refuse_existing(path, overwrite=False)


def test_a_missing_file_is_named(tmp_path):
    (tmp_path / "there").write_text("")
    assert require_file(tmp_path / "there") == tmp_path / "there"
    for absent in (tmp_path / "absent", tmp_path):
        with pytest.raises(FileError, match=str(absent)):
            require_file(absent)


def test_threads_that_write_one_file_take_turns(tmp_path):
    path, contents = tmp_path / "a.json", [{"n": [k] * 500} for k in range(4)]

    def write(content):
        for _ in range(30):
            write_json(path, content)
            assert read_json(path) in contents

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, contents))
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_link_stays_one(tmp_path):
    (tmp_path / "there.txt").write_text(OLD)
    (tmp_path / "link.txt").symlink_to(tmp_path / "there.txt")
    write_text(tmp_path / "link.txt", NEW)
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "there.txt").read_text() == NEW


def test_what_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text(OLD)
    for path, why in (
        (tmp_path / "file" / "a.txt", "Not a directory|File exists"),
        (tmp_path / ("n" * 300), "too long"),
    ):
        with pytest.raises(FileError, match=rf"cannot be written: .*({why})"):
            write_text(path, NEW)


def test_one_holds_a_folder_at_a_time_and_leaves_no_trace(tmp_path):
    with held(tmp_path / "new" / "run"):
        with (
            pytest.raises(FileError, match="run is being written by another process: let it end"),
            held(tmp_path / "new" / "run"),
        ):
            pass
        code = (
            "import sys; from pathlib import Path; from sbi_dgm.files import held; held(Path(sys.argv[1])).__enter__()"
        )
        other = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "new" / "run")], capture_output=True, text=True, check=False
        )
        assert "is being written by another process" in other.stderr
    with held(tmp_path / "new" / "run"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [NotImplementedError(), OSError(errno.ENOLCK, "No locks available")])
def test_a_file_system_without_locks_is_said_and_written_to(tmp_path, monkeypatch, error):
    monkeypatch.setattr(files.FileLock, "acquire", mock.Mock(side_effect=error))
    with pytest.warns(UserWarning, match="a is on a file system without locks"), held(tmp_path / "a"):
        pass
    monkeypatch.setattr(files.FileLock, "acquire", mock.Mock(side_effect=OSError(errno.EACCES, "Permission denied")))
    with pytest.raises(FileError, match="a cannot be written: Permission denied"), held(tmp_path / "a"):
        pass


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff", "[" * 100_000])
def test_json_that_is_no_table_is_damaged(tmp_path, text):
    (tmp_path / "a.json").write_text(text, encoding="latin-1")
    with pytest.raises(FileError, match=r"a\.json is damaged"):
        read_json(tmp_path / "a.json")
