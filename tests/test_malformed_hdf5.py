"""HDF5 files of ours that were changed with all their checksums made anew: refused in a sentence, or read."""

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
from posterior_toys import BOX
from test_malformed import DEEP, LONG, VALUES, changed, places, refused
from training_toys import simulations

import sbi_dgm
from sbi_dgm.data import frame, native
from sbi_dgm.diagnostics import evidence
from sbi_dgm.errors import FileError
from sbi_dgm.samples import Samples

DRAWS = Samples.of(BOX, np.ones((2, 5, 2)), np.zeros((2, 5)))


@contextmanager
def edited(path):
    with h5py.File(path, "r+") as file:
        yield file


@pytest.mark.parametrize("name", ["format", "format_version", "names", "bounds"])
@pytest.mark.parametrize("value", [None, -1, "x", [1.0, 2.0], np.nan], ids=str)
def test_samples_with_a_malformed_attribute_are_refused_or_load(tmp_path, name, value):
    DRAWS.save(tmp_path / "s.h5")
    with edited(tmp_path / "s.h5") as file:
        del file["posterior"].attrs[name]
        if value is not None:
            file["posterior"].attrs[name] = value
    found = refused(Samples.load, tmp_path / "s.h5")
    assert found or (name, value) == ("format_version", -1)


def test_samples_of_another_shape_or_format_are_refused(tmp_path):
    for value in (np.zeros(()), np.zeros(3), np.zeros((1, 5, 3)), b"text", None):
        DRAWS.save(tmp_path / "s.h5", overwrite=True)
        with edited(tmp_path / "s.h5") as file:
            del file["posterior/a"]
            if value is not None:
                file["posterior/a"] = value
                file["posterior/a"].attrs.update({"label": "", "units": ""})
        assert refused(Samples.load, tmp_path / "s.h5")
    with edited(tmp_path / "s.h5") as file:
        file["posterior"].attrs["format"] = "another's"
    with pytest.raises(FileError, match=r"s\.h5 is no file of samples: it holds \"another's\""):
        Samples.load(tmp_path / "s.h5")


FULL = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_malformed_hdf5 import DRAWS, drawn, FileError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))
for write in (DRAWS.save, drawn):
    try:
        write(Path({path!r}))
    except FileError as error:
        print(error)
"""


def drawn(path):
    numbers = np.random.default_rng(0).normal(size=(100, 100, 2))
    evidence._keep(path, evidence.Drawn(numbers, numbers[:, 0, 0], numbers[..., 0]), "key")


def test_a_full_disk_is_told_and_the_process_lives(tmp_path):
    code = FULL.format(tests=str(Path(__file__).parent), path=str(tmp_path / "a.h5"))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("a.h5 cannot be written") == 2
    assert not list(tmp_path.iterdir())


def test_kept_draws_that_are_malformed_are_refused(tmp_path):
    path = tmp_path / "draws.h5"
    for name, value in {"draws": np.zeros(3), "log_prob": np.zeros(7), "drawn_log_prob": b"text"}.items():
        drawn(path)
        with edited(path) as file:
            del file[name]
            file[name] = value
        with pytest.raises(FileError, match=r"holds no draws that can be read .*: remove it"):
            evidence._kept(path, "key")


@pytest.fixture
def simulated(tmp_path):
    simulations(40).save(tmp_path / "s.h5")
    return tmp_path / "s.h5"


def described(path, change):
    """The attributes changed, and signed again."""
    with edited(path) as file:
        change(file.attrs)
        file.attrs["sha256"] = native._hash({key: native._plain(value) for key, value in file.attrs.items()})


@pytest.mark.parametrize("value", [None, 3, 1.5, "x", "[]", "{}", "null", DEEP, LONG], ids=lambda v: str(v)[:9])
def test_simulations_with_a_malformed_attribute_are_refused_or_open(simulated, value):
    raw, count = simulated.read_bytes(), 0
    names = ("format", "format_version", "names", "labels", "units", "prior", "observables", "simulator", "datasets")
    for name in (*names, "complete", "crc32"):
        simulated.write_bytes(raw)
        described(simulated, lambda attrs, n=name: attrs.pop(n) if value is None else attrs.__setitem__(n, value))
        count += refused(sbi_dgm.Simulations.open, simulated)
    assert count >= 7


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_malformed_descriptions_of_datasets_priors_and_observables_are_refused_or_open(simulated, value):
    raw = simulated.read_bytes()
    for name in ("datasets", "prior", "observables"):
        with h5py.File(simulated) as file:
            content = json.loads(file.attrs[name])
        for at in places(content):
            simulated.write_bytes(raw)
            text = json.dumps(changed(content, at, value))
            described(simulated, lambda attrs, n=name, t=text: attrs.__setitem__(n, t))
            refused(sbi_dgm.Simulations.open, simulated)
    simulated.write_bytes(raw)
    assert len(sbi_dgm.Simulations.open(simulated)) == 40


def test_blocks_of_no_rows_are_refused(simulated):
    with h5py.File(simulated) as file:
        content = json.loads(file.attrs["datasets"])
    content["theta"]["block"] = 0
    described(simulated, lambda attrs: attrs.__setitem__("datasets", json.dumps(content)))
    with pytest.raises(FileError, match="no readable simulation file"):
        sbi_dgm.Simulations.open(simulated)


@pytest.mark.parametrize("kind", ["external link", "soft link", "external storage", "virtual"])
def test_what_leads_out_of_the_file_is_refused(simulated, kind, tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["theta"] = np.zeros((40, 3))
    (tmp_path / "raw").write_bytes(bytes(960))
    with edited(simulated) as file:
        del file["theta"]
        if kind == "external storage":
            file.create_dataset("theta", (40, 3), "f8", external=[(str(tmp_path / "raw"), 0, 960)])
        elif kind == "virtual":
            virtual = h5py.VirtualLayout((40, 3), "f8")
            virtual[:] = h5py.VirtualSource(tmp_path / "other.h5", "theta", (40, 3))
            file.create_virtual_dataset("theta", virtual)
        else:
            file["theta"] = h5py.ExternalLink("other.h5", "theta") if kind[0] == "e" else h5py.SoftLink("/x/x")
    with pytest.raises(FileError, match="'theta' leads to another place"):
        sbi_dgm.Simulations.open(simulated)


@pytest.mark.parametrize("parts", [[[0, 10**12]], [[5, 1]], [[-3, 4]], [[0, 4], [0, 4]], [3], [["a", 1]], None])
def test_a_seal_of_parts_that_cannot_be_is_refused(simulated, parts):
    raw = simulated.read_bytes()
    length, _, magic = frame.TAIL.unpack(raw[-frame.TAIL.size :])
    note = json.dumps({"parts": parts, "crc32": 0}).encode()
    tail = note + frame.TAIL.pack(len(note), frame.zlib.crc32(note), magic)
    simulated.write_bytes(raw[: -frame.TAIL.size - length] + tail)
    for read in (frame.check, sbi_dgm.Simulations.open):
        with pytest.raises(FileError, match=r"checksum fails|damaged or of another version"):
            read(simulated)
