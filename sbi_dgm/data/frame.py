"""The frame of an HDF5 file, all of it but the numbers, sealed by a checksum behind its end.

Damage to its structure makes HDF5 return other numbers, loop for ever or end the process, so it is compared before
HDF5 sees it. HDF5 ignores what stands behind the end that its superblock names (at byte 40); a file that is opened for
writing loses the seal with its next change, and is then read without it.
"""

import json
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import h5py

from sbi_dgm.errors import FileError
from sbi_dgm.files import understood

MAGIC = b"sbi_dgm\n"
TAIL = struct.Struct("<II8s")  # length of the JSON before it, its CRC-32, MAGIC
SUPERBLOCK = struct.Struct("<8sB31xQ")  # signature, version, end of the file
HDF5 = b"\x89HDF\r\n\x1a\n"
PARTS = 512  # at the front and at the end of the file; between them an index of very many chunks goes unsealed

Extents = list[tuple[int, int]]


def require_whole(path: str | Path, file: h5py.File) -> None:
    """`FileError` where an HDF5 file leads to other files: one of ours holds all that is its own."""
    links: dict[str, Any] = {}
    file.visititems_links(links.__setitem__)
    for name, link in links.items():
        dataset: Any = file.get(name) if isinstance(link, h5py.HardLink) else None
        elsewhere = isinstance(dataset, h5py.Dataset) and (dataset.external or dataset.is_virtual)
        if not isinstance(link, h5py.HardLink) or elsewhere:
            raise FileError(f"{path} is damaged: {name!r} leads to another place, which no file of ours does.")


def chunks(dataset: Any) -> Extents:
    """First and last byte (exclusive) of each chunk of a dataset (h5py's) on the disk, after a flush."""
    found: Extents = []
    if dataset.chunks:
        dataset.id.chunk_iter(lambda c: found.append((c.byte_offset, c.byte_offset + c.size)))
    return found


def seal(path: Path, numbers: Iterable[tuple[int, int]]) -> None:
    """Write the checksum of all of a closed file but the `numbers` behind its end."""
    with path.open("r+b") as file:
        gaps = _gaps(sorted(numbers), file.seek(0, 2))
        kept = gaps if len(gaps) <= 2 * PARTS else gaps[:PARTS] + gaps[-PARTS:]
        note = json.dumps({"parts": kept, "crc32": _sum(file, kept)}).encode()
        file.seek(0, 2)
        file.write(note + TAIL.pack(len(note), zlib.crc32(note), MAGIC))


def check(path: Path) -> None:
    """Raise `FileError` where a seal says that the frame was changed, or is itself damaged."""
    with path.open("rb") as file:
        size, end = file.seek(0, 2), _end(file)
        if size - TAIL.size < (end or size):
            return
        file.seek(size - TAIL.size)
        length, total, magic = TAIL.unpack(file.read(TAIL.size))
        start = size - TAIL.size - length
        if magic == MAGIC and start == end and _sum(file, [(start, start + length)]) == total:
            file.seek(start)
            with understood(path):
                note = json.loads(file.read(length))
                if _within(note["parts"], start) and _sum(file, note["parts"]) == note["crc32"]:
                    return
    raise FileError(f"{path}: its structure is not what was written: its checksum fails. Restore the file from a copy.")


def _gaps(numbers: Extents, size: int) -> Extents:
    edges = [0, *(edge for extent in numbers for edge in extent), size]
    return [(a, b) for a, b in zip(edges[::2], edges[1::2], strict=True) if b > a]


def _within(parts: Iterable[tuple[int, int]], size: int) -> bool:
    """Whether parts come one after the other, all before `size`."""
    edges = [0, *(edge for first, last in parts for edge in (first, last)), size]
    return edges == sorted(edges)


def _sum(file: BinaryIO, parts: Iterable[tuple[int, int]]) -> int:
    found = 0
    for first, last in parts:
        file.seek(first)
        found = zlib.crc32(file.read(last - first), found)
    return found


def _end(file: BinaryIO) -> int | None:
    """The end that the superblock names; None where that is none of ours."""
    file.seek(0)
    head = file.read(SUPERBLOCK.size)
    if len(head) < SUPERBLOCK.size:
        return None
    signature, version, end = SUPERBLOCK.unpack(head)
    return end if (signature, version) == (HDF5, 0) else None
