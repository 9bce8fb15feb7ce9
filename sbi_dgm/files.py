"""Files: written whole, held by a lock, found by a path or a glob, and what is wrong with them told in a sentence.

A reader sees the old content or the new, never a part, whatever kills the writer: the content goes to a temporary name
in the same folder, is flushed to the disk, and takes the final name by a rename, which POSIX makes atomic; then the
folder itself is flushed, so that the name survives a power cut as well.
"""

import errno
import json
import os
import re
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout
from safetensors import SafetensorError

from sbi_dgm.errors import FileError, SbiError, first_line
from sbi_dgm.kinds import is_a

DAMAGED = "{path} is damaged or of another version: {why}."
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path`, on failure it is removed.

    Where `path` is a link, what it points to is replaced.

    Raises:
        FileError: the disk is full, the folder is read-only, and the like.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with atomic(folder / "note.txt") as temporary:
    ...     _ = temporary.write_text("all or nothing")
    >>> [p.name for p in folder.iterdir()]
    ['note.txt']
    """
    with _told(path):
        target = Path(path).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
        try:
            yield temporary
            _flush(temporary)
            temporary.replace(target)
            _flush(target.parent)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextmanager
def _told(path: str | Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise FileError(f"{path} cannot be written: {why}.") from None


@contextmanager
def held(what: Path) -> Iterator[None]:
    """Hold a file or folder that is written to, by a lock beside it, so that no other process or thread writes there.

    Raises:
        FileError: another one holds it.

    """
    place = what.resolve()
    lock = place.with_name(f".{place.name}.lock")
    made = not lock.parent.exists()
    with _told(what):
        lock.parent.mkdir(parents=True, exist_ok=True)
        ours = FileLock(lock, timeout=0)
        _acquire(ours, what)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        ours.release()
        if made:
            with suppress(OSError):
                lock.parent.rmdir()  # where nothing came of it


def _acquire(lock: BaseFileLock, what: Path) -> None:
    try:
        lock.acquire()
    except Timeout:
        raise FileError(f"{what} is being written by another process: let it end, or name another.") from None
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in NO_LOCKS:
            raise
        warnings.warn(f"{what} is on a file system without locks: let no other process write there.", stacklevel=5)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path`, atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically; keys keep their order."""
    write_text(path, json.dumps(content, indent=2) + "\n")


@contextmanager
def understood(path: str | Path, sentence: str = DAMAGED) -> Iterator[None]:
    """`FileError` where what a file holds makes the code within fail; errors of ours stay as they are.

    Args:
        path: of the file.
        sentence: with `{path}` and `{why}`.

    >>> with understood("a.json"):
    ...     {}["names"]
    Traceback (most recent call last):
    sbi_dgm.errors.FileError: a.json is damaged or of another version: KeyError 'names'.
    """
    try:
        yield
    except SbiError:
        raise
    except Exception as error:  # noqa: BLE001  (a file can hold anything)
        kind = "" if isinstance(error, OSError) or " " in (str(error) or " ") else f"{type(error).__name__} "
        raise FileError(sentence.format(path=path, why=kind + first_line(error))) from None


def read_json(path: str | Path) -> dict[str, Any]:
    """The table that a JSON file of ours holds, or `FileError`."""
    try:
        content = json.loads(require_file(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(f"{path} is damaged, no JSON can be read from it: {error}.") from None
    if not isinstance(content, dict):
        raise FileError(f"{path} is damaged: it holds no table but a {type(content).__name__}.")
    return content


def refuse_existing(path: str | Path, overwrite: bool) -> None:
    """Raise `FileError` where `path` exists and may not be replaced."""
    if path_of(path).exists() and not overwrite:
        raise FileError(f"{path} exists already: pass overwrite=True (--overwrite) to replace it, or name another.")


def path_of(path: str | Path) -> Path:
    """The same as a `Path`, or `FileError` where it is none."""
    return Path(is_a("path", path, str | os.PathLike, "the path of a file or folder, as a text", FileError))


def require_file(path: str | Path) -> Path:
    """Return `path` as a `Path`, or raise `FileError` where there is no such file."""
    path = path_of(path)
    if not path.is_file():
        raise FileError(f"there is no file {str(path)!r} (working folder: {Path.cwd()}).")
    return path


def matching(pattern: str | Path) -> list[Path]:
    """The files that a path or a glob means, sorted by name with numbers as numbers (2 before 10); at least one."""
    if not has_magic(str(pattern)) or path_of(pattern).exists():
        return [require_file(pattern)]
    found = [Path(name) for name in glob(str(pattern), recursive=True)]  # noqa: PTH207  (absolute patterns)
    if not found:
        raise FileError(f"no file matches {str(pattern)!r} (working folder: {Path.cwd()}).")
    return [require_file(path) for path in sorted(found, key=_natural)]


def _natural(path: Path) -> tuple[list[str | int], str]:
    words = re.split(r"(\d+)", str(path))
    return [int(word) if word.isdecimal() else word for word in words], str(path)
