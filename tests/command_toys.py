"""The command line in this process, and what it leaves in a folder."""

import pytest

from sbi_dgm.cli import main

TINY = ["training.max_rounds=2", "training.round=5", "estimator.transforms=1", "estimator.hidden=8"]
SMALL = [word for setting in TINY for word in ("--set", setting)] + ["--device", "cpu"]


def command(*words):
    """Run the command line in this process; its exit code."""
    try:
        return main([str(word) for word in words])
    except SystemExit as end:
        return end.code


def everything(folder):
    """Bytes and time of every file in the folder."""
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.iterdir()) if p.is_file()}


def check_matches(pattern, text):
    """The text fits the pattern as the message of an exception would."""
    with pytest.raises(RuntimeError, match=pattern):
        raise RuntimeError(text)
