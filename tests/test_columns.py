"""Columns: each is the numpy expression that it stands for, whatever slice is asked for and however it is stored."""

import pickle

import h5py
import numpy as np
import pytest

from sbi_dgm.data.columns import (
    Beside,
    Finite,
    Handle,
    Joined,
    Padded,
    RealImaginary,
    Repeated,
    Stored,
    blocks,
    chunk_rows,
    finite_rows,
    gather,
    joined,
    row_bytes,
    span_rows,
)
from sbi_dgm.data.foreign import Theta, widen
from sbi_dgm.errors import DataError, FileError
from sbi_dgm.parameters import Parameter
from sbi_dgm.priors import Prior, Uniform

N = 203


def numbers(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind == "c":
        return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(dtype)
    return (100 * rng.normal(size=shape)).astype(dtype) if dtype.kind != "u" else rng.integers(0, 200, shape, dtype)


class Shelf:
    """Arrays put into one HDF5 file, as columns that stay there."""

    def __init__(self, folder):
        self.path, self.count = folder / "shelf.h5", 0

    def __call__(self, values, **how):
        self.count += 1
        with h5py.File(self.path.with_name(f"{self.count}.h5"), "w") as file:
            file.create_dataset("a", data=values, **how)
        return Stored(Handle(self.path.with_name(f"{self.count}.h5")), "a")


@pytest.fixture
def shelf(tmp_path):
    return Shelf(tmp_path)


def plain(shelf, dtype, chunk):
    values = numbers((N, 3, 2), dtype)
    how = {"chunks": (chunk, 2, 1), "compression": "gzip", "shuffle": True} if chunk else {}
    return shelf(values, **how), values.astype(np.dtype(dtype).newbyteorder("="))


def stored_f4(shelf):
    return plain(shelf, "<f4", 7)


def stored_big_endian(shelf):
    return plain(shelf, ">f8", 13)


def stored_half(shelf):
    return plain(shelf, "f2", None)


def stored_integers(shelf):
    return plain(shelf, ">i4", 1)


def stored_unsigned(shelf):
    return plain(shelf, "u2", 203)


def stored_lzf_scalar(shelf):
    values = numbers(N, "f8")
    return shelf(values, chunks=(11,), compression="lzf"), values


def stored_truth(shelf):
    values = numbers(N, "f8") > 0
    return shelf(values), values.astype(np.uint8)


def stored_field(shelf):
    table = np.zeros(N, [("n", "S4"), ("u", ">f4", (2, 2))])
    table["u"] = numbers((N, 2, 2), "f4")
    column = shelf(table, chunks=(9,))
    return Stored(column.handle, "a", "u"), table["u"].astype("<f4")


def beside(shelf):
    a, b, c = numbers(N, "i4", 1), numbers((N, 2), "f8", 2), numbers((N, 2, 2), "f4", 3)
    column = Beside([shelf(a, chunks=(5,)), shelf(b, chunks=(8, 1)), c])
    return column, np.concatenate([a[:, None], b, c.reshape(N, 4)], axis=1)


def several_files(shelf):
    parts = [numbers((n, 2), dtype, n) for n, dtype in ((50, "f4"), (1, "f8"), (0, "f4"), (152, "f4"))]
    how = [{"chunks": (9, 2)}, {}, {}, {"chunks": (16, 1)}]
    return Joined([shelf(a, **h) for a, h in zip(parts, how, strict=True)]), np.concatenate(parts)


def repeated(shelf):
    values = numbers((29, 2), "f8")
    return Repeated(shelf(values, chunks=(4, 2)), 7), np.repeat(values, 7, axis=0)


def complex_pairs(shelf):
    values = numbers((N, 3), "c8")
    return RealImaginary(shelf(values, chunks=(6, 2))), np.stack([values.real, values.imag], -1)


def complex_scalars(shelf):
    values = numbers(N, ">c16")
    pairs = np.stack([values.real, values.imag], -1).astype("<f8")
    return RealImaginary(shelf(values)), pairs


def padded(shelf):
    counts = np.random.default_rng(0).integers(0, 6, N)
    counts[[0, N - 1]] = 0
    ends = np.concatenate([[0], np.cumsum(counts)])
    values = numbers((ends[-1], 2), "f4")
    sets = np.zeros((N, 7, 3), np.float32)
    for i in range(N):
        sets[i, : counts[i]] = np.column_stack([values[ends[i] : ends[i + 1]], np.ones(counts[i])])
    return Padded(shelf(values, chunks=(10, 1)), ends, 7), sets


def padded_numbers(shelf):
    values = np.arange(12, dtype=np.int16)
    sets = np.zeros((3, 7, 2), np.float32)
    sets[0, :5, 0], sets[0, :5, 1], sets[2, :7, 0], sets[2, :7, 1] = values[:5], 1, values[5:], 1
    return Padded(shelf(values), np.array([0, 5, 5, 12]), 7), sets


def finite(shelf):
    a, b = numbers((N, 2), "f4"), numbers(N, "f8")
    a[7, 1], b[11], a[202, 0] = np.nan, -np.inf, np.inf
    good = np.ones(N, np.uint8)
    good[[7, 11, 202]] = 0
    return Finite({"a": shelf(a, chunks=(5, 2)), "b": shelf(b), "n": np.arange(N)}), good


def theta(shelf):
    values = np.random.default_rng(0).random((N, 3)).astype("f4")
    values[4, 2] = np.float32(0.6)
    values[:, 2] *= np.float32(0.6) / np.float32(values[:, 2].max())
    prior = Prior([Parameter(n, Uniform(0, high)) for n, high in (("c", 0.6), ("a", 1.0), ("b", 1.0))])
    wide = values.astype(float)[:, [2, 0, 1]]
    wide[values[:, 2] == np.float32(0.6), 0] = 0.6
    return Theta(shelf(values, chunks=(8, 3)), [2, 0, 1], prior), wide


def repeated_over_files(shelf):
    one, two = numbers((12, 2), "f4", 1), numbers((17, 2), "f4", 2)
    both = Joined([shelf(one, chunks=(5, 2)), shelf(two)])
    return Repeated(Beside([both, shelf(np.arange(29.0))]), 7), np.repeat(
        np.column_stack([np.concatenate([one, two]), np.arange(29.0)]), 7, axis=0
    )


KINDS = [
    stored_f4,
    stored_big_endian,
    stored_half,
    stored_integers,
    stored_unsigned,
    stored_lzf_scalar,
    stored_truth,
    stored_field,
    beside,
    several_files,
    repeated,
    complex_pairs,
    complex_scalars,
    padded,
    padded_numbers,
    finite,
    theta,
    repeated_over_files,
]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def slices(rows, seed=0):
    """Empty, single, whole, open, from the end, beyond the end, backwards, and random ones."""
    rng = np.random.default_rng(seed)
    fixed = [(0, 0), (0, 1), (rows - 1, rows), (0, rows), (rows, rows), (rows, rows + 5), (rows + 3, rows + 9)]
    fixed += [(0, 10**6), (5, 2), (None, None), (None, 2), (1, None), (-2, None), (None, -1), (rows // 2, rows // 2)]
    return [slice(*pair) for pair in fixed] + [slice(*sorted(rng.integers(0, rows + 2, 2))) for _ in range(40)]


def same(found, expected):
    return found.dtype == expected.dtype and found.shape == expected.shape and found.tobytes() == expected.tobytes()


def differing(column, expected):
    """Slices in which a column is not the expression, to the bit."""
    return [rows for rows in slices(len(expected)) if not same(column[rows], expected[rows])]


@every_kind
def test_a_column_is_the_expression_that_it_stands_for(shelf, kind):
    column, expected = kind(shelf)
    assert (column.shape, column.dtype) == (expected.shape, expected.dtype)
    assert differing(column, expected) == []


@every_kind
def test_a_twin_that_is_off_by_one_row_or_one_bit_is_found(shelf, kind):
    column, expected = kind(shelf)
    assert differing(column, np.roll(expected, 1, axis=0))
    off = expected.copy()
    off.view(np.uint8).reshape(len(off), -1)[-1, 0] ^= 1
    assert differing(column, off)


@every_kind
@pytest.mark.parametrize("step", [None, 1, 3, 16, 1000])
def test_gathered_rows_are_those_asked_for(shelf, kind, step):
    column, expected = kind(shelf)
    rng = np.random.default_rng(1)
    for count in (0, 1, 2, len(expected) // 2, len(expected)):
        rows = np.sort(rng.choice(len(expected), count, replace=False))
        assert same(gather(column, rows, step), expected[rows])
        assert same(gather(expected, rows, step), expected[rows])
    with pytest.raises(IndexError):
        gather(column, np.array([0, len(expected)]), step)


@every_kind
@pytest.mark.parametrize("size", [1, 100, 1000, 10**6])
def test_blocks_are_all_rows_once_in_order(shelf, kind, size):
    column, expected = kind(shelf)
    other = np.arange(len(expected))
    for start, stop in ((0, len(expected)), (1, len(expected) - 1), (2, 2), (len(expected) // 2, len(expected))):
        found = list(blocks({"a": column, "n": other}, start, stop, size))
        rows = np.concatenate([np.empty(0, int), *(block["n"] for block in found)])
        assert rows.tolist() == list(range(start, stop))
        assert all(same(block["a"], expected[block["n"]]) for block in found)
        assert all(len(block["n"]) for block in found)


@every_kind
@pytest.mark.parametrize("size", [1, 1000, 10**6])
def test_blocks_part_at_whole_chunks_of_the_heaviest_column(shelf, kind, size):
    column, expected = kind(shelf)
    step = span_rows({"a": column}, size)
    assert step >= 1
    assert step % chunk_rows(column) == 0
    bytes_of_row = expected.nbytes // len(expected)
    assert row_bytes({"a": column}) == bytes_of_row
    assert step == chunk_rows(column) or step * bytes_of_row <= size
    edges = np.cumsum([len(block["a"]) for block in blocks({"a": column}, 3, len(expected), size)]) + 3
    assert all(edge % step == 0 for edge in edges[:-1])


@every_kind
def test_columns_are_pickled_as_places_not_as_rows(shelf, kind):
    column, expected = kind(shelf)
    column[:1]
    assert differing(pickle.loads(pickle.dumps(column)), expected) == []


def test_one_column_is_not_wrapped():
    column = np.arange(3)
    assert joined([column]) is column


@pytest.mark.parametrize(("shape", "bad"), [((4,), [2]), ((4, 3), [2]), ((4, 3, 2), [0, 2])])
def test_rows_are_finite_when_all_their_numbers_are(shape, bad):
    values = np.zeros(shape)
    values.reshape(4, -1)[bad, -1] = np.nan, *[np.inf] * (len(bad) - 1)
    assert np.flatnonzero(~finite_rows(values)).tolist() == bad


def test_integers_are_always_finite_and_nothing_is_read_for_it():
    class Unread:
        shape, dtype = (5, 2), np.dtype("i4")

        def __getitem__(self, rows):
            raise AssertionError

    assert Finite({"a": Unread()})[1:3].tolist() == [1, 1]


def test_finiteness_is_found_once(shelf):
    column, good = finite(shelf)
    before = column[:]
    column.columns = {}
    assert same(column[:], before)
    assert same(before, good)


def test_doubles_beyond_the_prior_are_left_for_the_check_and_singles_at_its_edge_are_put_there():
    prior = Prior([Parameter("a", Uniform(0, 0.6))])
    edge = np.array([[0.6]])
    assert widen(edge.astype("f4"), prior)[0, 0] == 0.6
    assert widen(edge.astype("f4"), None)[0, 0] == np.float32(0.6)
    beyond = np.nextafter(edge, 1)
    assert widen(beyond, prior)[0, 0] == beyond[0, 0]


def test_a_flipped_bit_names_file_dataset_and_rows(tmp_path):
    values = np.arange(1000.0)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        place = file.create_dataset("g/a", data=values, chunks=(100,), fletcher32=True)
        offset = place.id.get_chunk_info(3).byte_offset
    raw = bytearray((tmp_path / "a.h5").read_bytes())
    raw[offset + 5] ^= 16
    (tmp_path / "a.h5").write_bytes(raw)
    column = Stored(Handle(tmp_path / "a.h5"), "g/a")
    np.testing.assert_array_equal(column[:300], values[:300])
    with pytest.raises(DataError, match=r"a\.h5: dataset 'g/a', rows 250 to 349, cannot be read: its checksum"):
        column[250:350]


def test_a_file_that_goes_away_is_named(tmp_path):
    with pytest.raises(FileError, match=r"gone\.h5 is no readable HDF5 file"):
        Handle(tmp_path / "gone.h5").open()
