"""What a fresh interpreter loads: nothing heavy before it is used."""

import subprocess
import sys

import pytest

import sbi_dgm

HEAVY = {"jinja2", "matplotlib", "pandas", "scipy.linalg", "scipy.optimize", "scipy.special", "scipy.stats", "sklearn"}
HEAVY |= {"torch._dynamo"}
HELP = """
from sbi_dgm import cli
try:
    cli.main({words})
except SystemExit as end:
    assert end.code == 0
"""


def loaded(program: str) -> set[str]:
    """Names of the modules that a fresh interpreter holds after `program`."""
    program += "\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def used(names: list[str]) -> str:
    return "import sbi_dgm\n" + "\n".join(f"sbi_dgm.{name}" for name in names)


def test_public_names_load_nothing_heavy():
    found = loaded(used([name for name in sbi_dgm.__all__ if name != "run_benchmark"]))
    assert {"torch", "sbi_dgm.training", "sbi_dgm.report"} <= found
    assert found & HEAVY == set()


def test_what_is_heavy_is_seen():
    assert loaded("\n".join(f"import {name}" for name in HEAVY)) >= HEAVY
    assert "pandas" in loaded(used(["run_benchmark"]))
    assert "scipy.special" in loaded("import sbi_dgm\nsbi_dgm.Normal(0, 1).cdf(0.0)")


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"]])
def test_help_loads_neither_torch_nor_numpy(words):
    found = loaded(HELP.format(words=words))
    assert "sbi_dgm.arguments" in found
    assert found & {"torch", "numpy", "scipy", "h5py", "pydantic", *HEAVY} == set()
    assert loaded("import sbi_dgm") & {"torch", "numpy"} == set()


def test_what_help_avoids_is_seen():
    assert loaded(used(["fit"])) >= {"torch", "numpy", "scipy", "h5py", "pydantic"}
