"""The simulation file: exact, self-describing, checksummed, and refused in words where it is not whole."""

import hashlib
import json

import h5py
import numpy as np
import pytest

from sbi_dgm import Normal, Observable, Parameter, Prior, Simulations, Uniform
from sbi_dgm.data import native
from sbi_dgm.data.columns import blocks
from sbi_dgm.errors import DataError, FileError, SbiError

ROWS = 200
PRIOR = Prior([Parameter("a", Uniform(0, 2), r"\alpha", "km"), Parameter("b", Normal(0, 1), unit="mag")])


def arrays(rows=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    x = {
        "vector": rng.normal(size=(rows, 3)).astype(np.float32),
        "field": rng.normal(size=(rows, 4, 5)),
        "count": rng.poisson(5, rows),
    }
    columns = {
        "proposal_weight": rng.uniform(0.5, 2, rows),
        "event_weight": rng.normal(size=rows),
        "group": rng.integers(0, 50, rows),
        "split": rng.integers(0, 3, rows),
    }
    return PRIOR.sample(rows, seed), x, columns


@pytest.fixture
def path(tmp_path):
    theta, x, columns = arrays()
    observables = {"vector": Observable((3,), "Jy", "S", ("u", "v", "w"))}
    Simulations.create(tmp_path / "a.h5", theta, x, prior=PRIOR, observables=observables, **columns)
    return tmp_path / "a.h5"


def differences(columns, expected):
    """Names of the columns that are not equal to the bit."""
    names = set(columns) | set(expected)
    return {n for n in names if n not in columns or n not in expected or not identical(columns[n][:], expected[n][:])}


def identical(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def test_what_was_written_is_read_to_the_bit(path):
    theta, x, columns = arrays()
    expected = {"theta": theta, "valid": np.ones(ROWS, np.uint8)} | {f"x/{n}": a for n, a in x.items()}
    expected |= columns | {"split": columns["split"].astype(np.uint8)}
    data = Simulations.open(path)
    assert differences(data.columns, expected) == set()
    one_ulp_off = expected | {"theta": np.nextafter(theta, np.inf)}
    assert differences(data.columns, one_ulp_off) == {"theta"}


def test_names_labels_units_and_prior_come_back(path):
    data = Simulations.open(path)
    assert data.prior == PRIOR
    assert [(p.name, p.label, p.unit) for p in data.parameters] == [("a", r"\alpha", "km"), ("b", "", "mag")]
    assert data.observables["vector"] == Observable((3,), "Jy", "S", ("u", "v", "w"))
    assert {name: o.shape for name, o in data.observables.items()} == {"vector": (3,), "field": (4, 5), "count": ()}


def test_root_attributes_describe_the_file_without_the_library(path):
    with h5py.File(path) as file:
        attributes = dict(file.attrs)
    assert attributes["format"] == "sbi_dgm/simulations"
    assert attributes["format_version"] == 1
    assert json.loads(attributes["names"]) == ["a", "b"]
    assert json.loads(attributes["labels"]) == [r"\alpha", ""]
    assert json.loads(attributes["units"]) == ["km", "mag"]
    assert json.loads(attributes["prior"]) == PRIOR.describe()
    assert json.loads(attributes["observables"])["field"]["shape"] == [4, 5]
    assert json.loads(attributes["simulator"]) == {}
    assert {"sbi_dgm", "numpy", "h5py"} <= set(json.loads(attributes["versions"]))
    assert attributes["created"].startswith("20")
    assert bool(attributes["complete"]) is True
    signed = {k: v for k, v in attributes.items() if k not in ("created", "sha256", "complete")}
    text = json.dumps(signed, sort_keys=True, default=int)
    assert attributes["sha256"] == hashlib.sha256(text.encode()).hexdigest()


def test_every_dataset_has_a_checksum(path):
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item.fletcher32}) if hasattr(item, "shape") else None)
    assert len(found) == 10
    assert all(found.values())


@pytest.mark.parametrize(("rows", "shape"), [(5000, ()), (40_000, (9,)), (300, (64, 64)), (3, (600, 600))])
def test_chunks_are_whole_rows_of_half_to_one_mebibyte(tmp_path, rows, shape):
    x = np.zeros((rows, *shape), np.float32)
    Simulations.create(tmp_path / "a.h5", np.arange(2.0 * rows).reshape(rows, 2), x)
    with h5py.File(tmp_path / "a.h5") as file:
        dataset = file["x/x"]
        chunk, row = dataset.chunks, dataset[:1].nbytes
    assert chunk[1:] == shape
    assert chunk[0] == 1 or chunk[0] * row <= 2**20
    assert chunk[0] == rows or chunk[0] * row >= 2**19


def test_older_readers_open_the_file(path, tmp_path):
    with h5py.File(tmp_path / "latest.h5", "w", libver="latest"):
        pass
    superblock = [p.read_bytes()[8] for p in (path, tmp_path / "latest.h5")]
    assert superblock == [0, 3]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("units", '["m", "mag"]'),
        ("prior", "null"),
        ("simulator", "{"),
        ("note", "mine"),
        ("note", np.arange(3)),
        ("note", h5py.Empty("f4")),
        ("format_version", 0),
        ("format_version", "1"),
        ("sha256", "0" * 64),
    ],
)
def test_attributes_changed_after_writing_are_refused(path, name, value):
    with h5py.File(path, "r+") as file:
        file.attrs[name] = value
    with pytest.raises(FileError, match=r"a\.h5"):
        Simulations.open(path)


@pytest.mark.parametrize("name", ["names", "labels", "units", "prior", "observables", "simulator", "sha256"])
def test_attributes_taken_away_are_refused(path, name):
    with h5py.File(path, "r+") as file:
        del file.attrs[name]
    with pytest.raises(FileError, match=r"a\.h5"):
        Simulations.open(path)


def test_the_time_of_creation_is_outside_the_hash(path):
    with h5py.File(path, "r+") as file:
        file.attrs["created"] = "2001-01-01"
    assert len(Simulations.open(path)) == ROWS


@pytest.mark.parametrize("name", ["theta", "valid", "x/vector", "x/field", "x/count", "group", "event_weight"])
def test_a_flipped_byte_in_a_dataset_is_reported_with_dataset_and_rows(path, name):
    with h5py.File(path) as file:
        place = file[name].id.get_chunk_info(0).byte_offset
    raw = bytearray(path.read_bytes())
    raw[place + 11] ^= 0x10
    path.write_bytes(raw)
    data = Simulations.open(path)
    with pytest.raises(DataError, match=rf"dataset '{name}', rows 0 to 199,.*Restore"):
        data.columns[name][20:30]
    healthy = next(n for n in data.columns if n != name)
    assert len(data.columns[healthy][:]) == ROWS


def test_a_byte_flipped_anywhere_is_reported_or_harmless(path):
    whole = Simulations.open(path)
    expected = {n: c[:] for n, c in whole.columns.items()}
    raw, rng = path.read_bytes(), np.random.default_rng(1)
    reported = 0
    for place in rng.choice(len(raw), 150, replace=False):
        flipped = bytearray(raw)
        flipped[place] ^= int(rng.integers(1, 256))
        copy = path.with_name(f"{place}.h5")
        copy.write_bytes(flipped)
        try:
            data = Simulations.open(copy)
            assert differences(data.columns, expected) == set(), place
            assert data.header == whole.header, place
        except SbiError:
            reported += 1
    assert reported > 0


def spoil(path, how):
    """A file that is no whole simulation file, in one of several ways."""
    raw = path.read_bytes()
    cuts = {"empty": 0, "signature": 4, "header": 100, "half": len(raw) // 2, "tail": len(raw) // 10 * 9}
    if how in cuts:
        path.write_bytes(raw[: cuts[how]])
    elif how == "text":
        path.write_text("omega_m, w0\n0.3, -1\n")
    elif how == "missing":
        path.unlink()
    elif how == "folder":
        path.unlink()
        path.mkdir()
    else:
        _spoil_content(path, how)


def _spoil_content(path, how):
    with h5py.File(path, "r+") as file:
        if how == "foreign":
            file.attrs["format"] = "astro/catalogue"
        elif how == "plain":
            file.attrs.clear()
        elif how == "newer":
            file.attrs["format_version"] = 7
        elif how == "incomplete":
            del file.attrs["complete"]
        elif how == "no x":
            del file["x"]
        elif how == "no valid":
            del file["valid"]
        elif how == "group as folder":
            del file["group"]
            file.create_group("group")
        else:
            values = file[how][:-1]
            del file[how]
            file[how] = values


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing", "there is no file"),
        ("folder", "there is no file"),
        ("empty", "no readable"),
        ("signature", "no readable"),
        ("header", "no readable"),
        ("half", "truncated"),
        ("tail", "truncated"),
        ("text", "no readable"),
        ("plain", "is HDF5 but no simulation file"),
        ("foreign", "'astro/catalogue', not 'sbi_dgm/simulations'"),
        ("newer", "version 7; .* up to 1"),
        ("incomplete", "never completed"),
        ("no x", "'x' doesn't exist"),
        ("no valid", "'valid' doesn't exist"),
        ("group as folder", "no readable"),
        ("theta", r"'theta' has shape \(199, 2\), expected \(200, 2\)"),
        ("x/vector", r"'x/vector' has shape \(199, 3\), expected \(200, 3\)"),
        ("valid", r"'valid' has shape \(199,\), expected \(200,\)"),
        ("split", r"'split' has shape \(199,\), expected \(200,\)"),
    ],
)
def test_a_file_that_is_not_whole_is_refused_in_one_sentence(path, how, words):
    spoil(path, how)
    with pytest.raises(FileError, match=words) as caught:
        Simulations.open(path)
    assert "a.h5" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(path):
    before = path.read_bytes()
    header = Simulations.open(path).header

    def stream():
        yield {"theta": np.zeros((10, 2)), "valid": np.ones(10, np.uint8)}
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        native.write(path, header, 20, stream())
    assert [p.name for p in path.parent.iterdir()] == ["a.h5"]
    assert path.read_bytes() == before


def test_fewer_rows_than_announced_are_no_file(tmp_path):
    header = Simulations.from_arrays(np.ones((10, 2)), np.ones(10)).header
    block = {"theta": np.zeros((10, 2)), "valid": np.ones(10, np.uint8), "x/x": np.zeros(10)}
    with pytest.raises(DataError, match="30 rows were announced and 20 came"):
        native.write(tmp_path / "a.h5", header, 30, [block, block])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [1, 500, 2**23])
def test_blocks_cover_the_rows_once_and_in_order(path, size):
    columns = Simulations.open(path).columns
    parts = list(blocks(columns, 17, 123, size))
    assert (
        differences(
            {n: np.concatenate([p[n] for p in parts]) for n in columns}, {n: c[17:123] for n, c in columns.items()}
        )
        == set()
    )
