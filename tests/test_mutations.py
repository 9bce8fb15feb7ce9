"""Two hundred damaged files: never a traceback; of ours never a silent change, of others at most a refusal.

Each is tried in a process of its own making, because HDF5 may end the process or loop for ever on a damaged structure.
Files of ours are compared with a seal before HDF5 sees them, so that there it must not; of foreign files a few may.
"""

import json

import h5py
import mutants
import numpy as np
import pytest
from mutants import foreign_file, native_file

from sbi_dgm import Simulations
from sbi_dgm.data import frame, native, sums
from sbi_dgm.errors import DataError, FileError

NATIVE, FOREIGN = range(120), range(120)


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ours")
    native_file(folder / "whole.h5")
    return mutants.outcomes("native", folder, ["whole.h5", *mutants.made(folder, "native", NATIVE)])


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("theirs")
    foreign_file(folder / "whole.h5")
    return mutants.outcomes("foreign", folder, ["whole.h5", *mutants.made(folder, "foreign", FOREIGN)])


def faults(outcome: dict) -> list[str]:
    """Commands that neither succeeded nor ended in one sentence."""
    return [what for what in ("inspect", "layout", "train") if what in outcome and not decent(**outcome[what])]


def decent(code: int, stderr: list[str]) -> bool:
    lines = [line for line in stderr if not line.startswith(("sbi-dgm: note: ", "reading: ", "embedding: "))]
    return (code, len(lines)) in ((0, 0), (2, 1)) and all(line.startswith("sbi-dgm: ") for line in lines)


def check_decent(outcomes: list[dict]) -> None:
    assert {o["name"]: [o[what] for what in faults(o)] for o in outcomes if faults(o)} == {}


def test_damage_to_our_files_ends_in_one_sentence_or_does_none(ours):
    assert [o for o in ours if "died" in o] == []
    check_decent(ours)


def test_no_damage_to_our_files_is_silent(ours):
    assert ours[0]["read"] == "same"
    assert ours[0]["train"]["code"] == 0
    assert [o["name"] for o in ours if o["read"] == "different"] == []
    refused = [o for o in ours if o["read"] != "same"]
    assert len(refused) > len(ours) / 2
    assert all("\n" not in o["read"] for o in refused)


def test_damage_to_foreign_files_ends_in_one_sentence_or_is_theirs_to_know(theirs):
    died = [o for o in theirs if "died" in o]
    assert len(died) <= len(FOREIGN) / 50, died
    assert not [o for o in died if not o["name"].startswith("bytes") or o["died"] == 1], "that was no fault of HDF5"
    check_decent([o for o in theirs if "died" not in o])


def test_the_missing_checksum_of_foreign_files_is_said(theirs):
    trained = [o["train"] for o in theirs if "train" in o]
    assert theirs[0]["train"]["code"] == 0
    assert len(trained) > 20
    said = [any("it has no checksums of ours" in line for line in t["stderr"]) for t in trained]
    assert all(said)


def test_structures_that_do_not_fit_are_refused(theirs):
    """Whatever else may be learned from: these may not."""
    read = {o["name"].removesuffix(".h5"): o.get("read", "") for o in theirs}
    wanted = ["params gone", "params short", "params text", "params complex", "params nan", "params inf", "ragged",
              "params links nowhere", "maps_flux links another file", "events_offsets empty", "w deep", "w scalar",
              "id complex", "params empty", "events_values gone", "w long"]  # fmt: skip
    assert {name: read[name] for name in wanted if read[name] in ("same", "different")} == {}


@pytest.mark.parametrize(
    ("code", "stderr", "good"),
    [
        (0, [], True),
        (0, ["sbi-dgm: note: a.", "reading: memory"], True),
        (2, ["sbi-dgm: no."], True),
        (2, ["sbi-dgm: note: a.", "sbi-dgm: no."], True),
        (1, ["KeyError('x')"], False),
        (2, [], False),
        (2, ["sbi-dgm: no.", "and more."], False),
        (2, ["Traceback"], False),
        (0, ["Traceback"], False),
    ],
)
def test_the_check_of_an_outcome_accuses_what_it_should(code, stderr, good):
    assert decent(code, stderr) is good


def test_the_worker_tells_of_a_process_that_ends(tmp_path):
    """Its own mistake serves: there is no number in the first name."""
    native_file(tmp_path / "whole.h5")
    found = mutants.outcomes("native", tmp_path, ["bytes x.h5", "whole.h5"])
    assert found[0] == {"name": "bytes x.h5", "died": 1}
    assert found[1]["read"] == "same"


def test_hdf5_never_sees_a_heap_on_which_it_would_loop_for_ever(path):
    raw = path.read_bytes()
    heap = raw.index(b"GCOL") + 16
    path.write_bytes(raw[:heap] + bytes(2048) + raw[heap + 2048 :])
    assert native.is_ours(path)
    with pytest.raises(FileError, match="its structure is not what was written"):
        Simulations.open(path)


def unsealed(path):
    """As after a change by another program, which cuts the file at the end that HDF5 knows."""
    with h5py.File(path, "r+") as file:
        file.attrs["created"] = "2001-01-01"


@pytest.fixture
def path(tmp_path):
    return native_file(tmp_path / "a.h5")


def rewritten(path, change):
    raw = bytearray(path.read_bytes())
    change(raw)
    path.write_bytes(raw)


def test_a_chunk_of_zeros_is_seen_although_its_fletcher32_is_zero(path):
    """As a disk leaves it that lost a block; HDF5 itself sees nothing wrong."""
    with h5py.File(path) as file:
        place = file["theta"].id.get_chunk_info(1)
    zeros = slice(place.byte_offset, place.byte_offset + place.size)
    rewritten(path, lambda raw: raw.__setitem__(zeros, bytes(place.size)))
    with h5py.File(path) as file:
        assert (file["theta"][32:64] == 0).all()
    with pytest.raises(DataError, match=r"dataset 'theta', rows 32 to 63, are not what was written: .*Restore"):
        Simulations.open(path).columns["theta"][:]
    assert len(Simulations.open(path).columns["x/u"][:]) == mutants.ROWS


def test_chunks_that_changed_places_are_seen(path):
    with h5py.File(path) as file:
        one, two = (file["x/u"].id.get_chunk_info(i) for i in (0, 1))
    raw = path.read_bytes()
    parts = [raw[c.byte_offset : c.byte_offset + c.size] for c in (one, two)]
    content = bytearray(raw)
    content[one.byte_offset : one.byte_offset + one.size] = parts[1]
    content[two.byte_offset : two.byte_offset + two.size] = parts[0]
    path.write_bytes(content)
    with pytest.raises(DataError, match="dataset 'x/u', rows 0 to 41, are not"):
        Simulations.open(path).columns["x/u"][:]


@pytest.mark.parametrize(
    "rows", [slice(0, 5), slice(30, 34), slice(31, 120), slice(None), slice(7, 7), slice(3, 90, 4)]
)
def test_any_rows_are_read_as_from_hdf5(path, rows):
    column = Simulations.open(path).columns["theta"]
    with h5py.File(path) as file:
        expected = file["theta"][rows]
    for _ in range(2):
        assert np.array_equal(column[rows], expected)
    assert column._good.sum() == len(np.unique(np.arange(120)[rows] // 32)) or rows.step


def test_a_block_is_compared_once(path, monkeypatch):
    column, counted = Simulations.open(path).columns["theta"], []
    monkeypatch.setattr(sums, "checksum", lambda values: counted.append(len(values)) or checksum(values))
    column[40:50], column[:], column[:]
    assert counted == [32, 32, 32, 24]


checksum = sums.checksum


def test_the_byte_order_of_a_dataset_is_sealed(path):
    """One bit of its type, which has no checksum of HDF5's, and the numbers are others."""
    with h5py.File(path) as file:
        expected, place = file["theta"][:], file["theta"].id.get_offset()
    assert place is None
    raw = path.read_bytes()
    types = [i for i in range(len(raw)) if raw[i : i + 8] == b"\x11\x20\x3f\x00\x08\x00\x00\x00"]
    silent = 0
    for i in types:
        copy = path.with_name(f"{i}.h5")
        copy.write_bytes(raw[: i + 1] + b"\x21" + raw[i + 2 :])
        with h5py.File(copy) as file:
            silent += not np.array_equal(file["theta"][:], expected)
        with pytest.raises(FileError, match="its structure is not what was written"):
            Simulations.open(copy)
        unsealed(copy)
        with pytest.raises((DataError, FileError), match=r"not what was written|'crc32', is damaged"):
            [column[:] for column in Simulations.open(copy).columns.values()]
    assert silent == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda file: file.__delitem__("event_weight"), "dataset 'event_weight' was taken away later"),
        (lambda file: file.create_dataset("seed", data=np.arange(120)), "dataset 'seed' was added later"),
        (lambda file: file["x"].create_dataset("v", data=np.arange(120)), "dataset 'x/v' was added later"),
        (lambda file: file.__delitem__("crc32"), "no readable simulation file"),
        (mutants.put("crc32", 3, 5), "table of checksums, 'crc32', is damaged"),
        (mutants.instead("x/u", lambda v: v.astype("f8")), "'x/u' has dtype float64, expected float32"),
        (mutants.instead("x/u", lambda v: v[:, :2]), r"'x/u' has shape \(120, 2\), expected \(120, 3\)"),
    ],
)
def test_what_other_programs_change_is_refused(path, change, words):
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(FileError, match=words):
        Simulations.open(path)


def test_numbers_that_other_programs_change_are_refused(path):
    with h5py.File(path, "r+") as file:
        file["x/u"][100, 1] += 1
    with pytest.raises(DataError, match="dataset 'x/u', rows 84 to 119, are not what was written"):
        Simulations.open(path).x(np.array([119]))


def test_a_file_that_does_not_say_what_there_must_be_is_refused(path):
    """Nothing is missing by its own account: the sha256 is that of the other attributes."""
    with h5py.File(path, "r+") as file:
        del file["crc32"], file.attrs["datasets"], file.attrs["crc32"]
        attributes = {key: native._plain(value) for key, value in file.attrs.items()}
        file.attrs["sha256"] = native._hash(attributes)
    with pytest.raises(FileError, match="datasets"):
        Simulations.open(path)


def test_a_file_that_lost_its_seal_alone_is_read(path):
    whole = mutants.everything(path, "native")
    unsealed(path)
    assert mutants.everything(path, "native") == whole


@pytest.mark.parametrize("place", [-1, -9, -13, -17, -40, 20, 44])
def test_a_damaged_seal_is_damage(path, place):
    rewritten(path, lambda raw: raw.__setitem__(place, raw[place] ^ 1))
    with pytest.raises(FileError):
        Simulations.open(path)
    assert native.is_ours(path) or place == 44


def sealed(raw: bytes) -> dict:
    """The seal's note; checksums follow it, of which a byte may be a bracket."""
    return json.JSONDecoder().raw_decode(raw[raw.rindex(b'{"parts"') :].decode("latin-1"))[0]


def test_every_byte_but_the_numbers_is_sealed(path):
    raw = path.read_bytes()
    with h5py.File(path) as file:
        numbers = sorted(e for name in Simulations.open(path).columns for e in frame.chunks(file[name]))
    note = sealed(raw)
    covered = np.zeros(len(raw), int)
    for first, last in [*numbers, *note["parts"], (raw.rindex(b'{"parts"'), len(raw))]:
        covered[first:last] += 1
    assert set(covered) == {1}


def test_a_seal_of_very_many_parts_covers_the_front_and_the_end(path, monkeypatch):
    monkeypatch.setattr(frame, "PARTS", 2)
    again = native_file(path.with_name("b.h5"))
    raw = again.read_bytes()
    assert len(sealed(raw)["parts"]) == 4
    assert mutants.everything(again, "native") == mutants.everything(path, "native")


def test_an_empty_file_is_not_ours(path, tmp_path):
    (tmp_path / "nothing.h5").write_bytes(b"")
    assert not native.is_ours(tmp_path / "nothing.h5")
    assert not native.is_ours(tmp_path / "not there.h5")
    assert native.is_ours(path)
