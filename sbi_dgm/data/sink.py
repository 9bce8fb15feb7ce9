"""Writing HDF5 onto a disk that may be full.

HDF5 does not survive a failed write: what it could not flush it tries again when the file is closed, and it ends the
process. So it writes through a file that keeps its first error to itself until HDF5 is done.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py


class Sink(io.FileIO):
    """A file whose first failed write is kept in `error`; whatever is written after it is dropped."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of `data`, or keep the error; how many bytes there were."""
        view, done = memoryview(data), 0
        try:
            while self.error is None and done < len(view):
                done += super().write(view[done:]) or 0
        except OSError as error:
            self.error = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """As for any file, but an error is kept."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return self.tell()


@contextmanager
def writing(path: str | Path) -> Iterator[h5py.File]:
    """A new HDF5 file; `OSError` at its end where the disk had no room for it.

    >>> import tempfile
    >>> with writing(Path(tempfile.mkdtemp()) / "a.h5") as file:
    ...     file["x"] = [1.0, 2.0]
    """
    with Sink(path, "w+b") as sink:
        try:
            with h5py.File(sink, "w") as file:
                yield file
        finally:
            if sink.error is not None:
                raise sink.error
