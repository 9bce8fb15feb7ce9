"""Curves of a run for TensorBoard, an extra of the package."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sbi_dgm.errors import OptionError
from sbi_dgm.loop import Log


@contextmanager
def curves(step: int, folder: Path) -> Iterator[Log]:
    """A writer of history rows to `folder/tensorboard`, from `step` on: one curve for each figure and phase.

    Raises:
        OptionError: TensorBoard is not installed.

    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise OptionError("TensorBoard is not installed: pip install 'sbi_dgm[tensorboard]'.") from None

    def write(row: Mapping[str, Any]) -> None:
        for name, value in row.items():
            if isinstance(value, float):
                writer.add_scalar(f"{name}/{row['phase']}", value, row["step"])
        writer.flush()

    with SummaryWriter(folder / "tensorboard", purge_step=step + 1) as writer:
        yield write
