"""Memory or stream: how the rows of a training run are read."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field

from sbi_dgm.options import Options

MEMORY, OWN, CGROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
VERSIONS = {2: ("memory.max", "memory.current"), 1: ("memory.limit_in_bytes", "memory.usage_in_bytes")}


class Reading(Options):
    """How rows are read.

    Attributes:
        mode: "memory", "stream", or "auto": memory where the rows fit in half of what is free.
        buffer_mib: memory for the rows of a stream, in MiB, validation rows apart.
        validation_mib: memory for the validation rows of a stream; where they take more, a fixed choice of them serves.

    """

    mode: Literal["auto", "memory", "stream"] = "auto"
    buffer_mib: int = Field(default=256, ge=1)
    validation_mib: int = Field(default=64, ge=1)

    def resolved(self, size: int, device: torch.device) -> "Reading":
        """With "auto" replaced by what serves rows of `size` bytes."""
        if self.mode != "auto":
            return self
        mode = "memory" if size <= free_memory(device) // 2 else "stream"
        return self.model_copy(update={"mode": mode})


def free_memory(device: torch.device) -> int:
    """Bytes free to this process, on the host and on its device."""
    free = [_host(), *_groups()]
    if device.type == "cuda":
        free.append(torch.cuda.mem_get_info(device)[0])
    return min(free)


def _host() -> int:
    if MEMORY.exists():
        lines = dict(line.split(":") for line in MEMORY.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # no count of free pages: half of all


def _groups() -> Iterator[int]:
    """What the control groups of this process and those around them leave, droppable page cache included."""
    for line in OWN.read_text().splitlines() if OWN.exists() else ():
        _, controllers, name = line.split(":", 2)
        version, root = (2, CGROUPS) if not controllers else (1, CGROUPS / controllers)
        inner = Path(name.lstrip("/"))
        for folder in (root / inner, *(root / outer for outer in inner.parents)):
            limit, used = (_number(folder / file) for file in VERSIONS[version])
            if limit is not None and used is not None:
                yield limit - used + _dropped(folder / "memory.stat")


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such group, or "max"
        return None


def _dropped(path: Path) -> int:
    words = path.read_text().split() if path.exists() else []
    counts = dict(zip(words[::2], words[1::2], strict=False))
    return int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))
