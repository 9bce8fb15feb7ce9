"""Tables beside a file: the same numbers to the bit from every way of writing them, with names where there are any."""

import h5py
import numpy as np
import pandas as pd
import pytest

from sbi_dgm import Simulations
from sbi_dgm.data.tables import beside
from sbi_dgm.errors import DataError, FileError

NUMBERS = np.random.default_rng(0).normal(size=(40, 3)) * [1, 1e-9, 1e6]
NAMES = ("omega_m", "h", "A_SN1")


def lines(separator, lead=()):
    rows = [[*([lead[i]] if lead else []), *map(repr, row)] for i, row in enumerate(NUMBERS.tolist())]
    return "".join(separator.join(row) + "\n" for row in rows)


UNIVERSES = [f"LH_{i}" for i in range(40)]
WAYS = {
    "savetxt.txt": (lambda p: np.savetxt(p, NUMBERS), ()),
    "savetxt_header.txt": (lambda p: np.savetxt(p, NUMBERS, header=" ".join(NAMES)), NAMES),
    "savetxt_two_comments.txt": (
        lambda p: np.savetxt(p, NUMBERS, header="a latin hypercube\n" + " ".join(NAMES)),
        NAMES,
    ),
    "savetxt_comment.txt": (lambda p: np.savetxt(p, NUMBERS, header="made by hand on a rainy day"), ()),
    "camels.txt": (lambda p: p.write_text("#Name omega_m h A_SN1\n" + lines(" ", UNIVERSES)), NAMES),
    "camels_no_name.txt": (lambda p: p.write_text("#omega_m h A_SN1\n" + lines("   ", UNIVERSES)), NAMES),
    "camels_bare.dat": (lambda p: p.write_text(lines(" ", UNIVERSES)), ()),
    "line.txt": (lambda p: p.write_text("omega_m  h  A_SN1\n\n" + lines("  ")), NAMES),
    "tabs.tsv": (lambda p: p.write_text("omega_m\th\tA_SN1\n" + lines("\t")), NAMES),
    "r.txt": (lambda p: p.write_text("omega_m h A_SN1\n" + lines(" ", [str(i) for i in range(40)])), NAMES),
    "quoted.csv": (lambda p: p.write_text('"omega_m","h","A_SN1"\n' + lines(",")), NAMES),
    "spaced.csv": (lambda p: p.write_text("omega_m, h, A_SN1\n" + lines(", ")), NAMES),
    "excel.csv": (lambda p: p.write_text("\ufeffomega_m,h,A_SN1\r\n" + lines(",").replace("\n", "\r\n")), NAMES),
    "bare.csv": (lambda p: p.write_text(lines(",")), ()),
    "pandas.csv": (lambda p: pd.DataFrame(NUMBERS, columns=NAMES).to_csv(p), NAMES),
    "pandas_labelled.csv": (lambda p: pd.DataFrame(NUMBERS, UNIVERSES, NAMES).to_csv(p), NAMES),
    "pandas_titled.csv": (lambda p: pd.DataFrame(NUMBERS, columns=NAMES).to_csv(p, index_label="index"), NAMES),
    "pandas_alone.csv": (lambda p: pd.DataFrame(NUMBERS, columns=NAMES).to_csv(p, index=False), NAMES),
    "pandas.tsv": (lambda p: pd.DataFrame(NUMBERS, columns=NAMES).to_csv(p, sep="\t"), NAMES),
    "array.npy": (lambda p: np.save(p, NUMBERS), ()),
    "fortran.npy": (lambda p: np.save(p, np.asfortranarray(NUMBERS)), ()),
    "big_endian.npy": (lambda p: np.save(p, NUMBERS.astype(">f8")), ()),
}


@pytest.mark.parametrize("name", WAYS)
def test_numbers_come_back_to_the_bit_with_their_names(tmp_path, name):
    write, names = WAYS[name]
    write(tmp_path / name)
    table = beside(str(tmp_path / name), tmp_path)
    assert table.names == names
    expected = np.loadtxt(tmp_path / name) if name.startswith("savetxt") else NUMBERS
    assert table.column[:].dtype == np.float64
    assert np.ascontiguousarray(table.column[:]).tobytes() == expected.tobytes()
    np.testing.assert_allclose(expected, NUMBERS, rtol=1e-15)


def test_a_wrong_digit_would_be_seen(tmp_path):
    changed = lines(" ").replace(repr(float(NUMBERS[7, 1])), repr(float(np.nextafter(NUMBERS[7, 1], 1))))
    (tmp_path / "a.txt").write_text(changed)
    assert np.argwhere(beside(str(tmp_path / "a.txt"), tmp_path).column[:] != NUMBERS).tolist() == [[7, 1]]


@pytest.mark.parametrize(
    ("text", "values"), [("a\n1\n2\n", [1, 2]), ("0.5\n1e3\n", [0.5, 1000]), ("#b\n-1\nnan\n", [-1, np.nan])]
)
def test_one_column_is_a_table_too(tmp_path, text, values):
    (tmp_path / "a.txt").write_text(text)
    table = beside(str(tmp_path / "a.txt"), tmp_path)
    np.testing.assert_array_equal(table.column[:], np.reshape(values, (-1, 1)))
    assert table.names == tuple(word for word in "ab" if word in text.split("\n")[0])


def test_singles_stay_singles_so_that_their_edges_are_known(tmp_path):
    np.save(tmp_path / "a.npy", NUMBERS.astype("f4"))
    np.save(tmp_path / "b.npy", np.arange(5))
    assert beside(str(tmp_path / "a.npy"), tmp_path).column.dtype == np.float32
    assert beside(str(tmp_path / "b.npy"), tmp_path).column[:].tolist() == [[0], [1], [2], [3], [4]]


def test_the_working_folder_comes_before_the_folder_of_the_data(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("1\n2\n")
    monkeypatch.chdir(tmp_path)
    assert beside("a.txt", tmp_path / "data").column[:].ravel().tolist() == [1, 2]
    (tmp_path / "a.txt").write_text("3\n4\n")
    assert beside("a.txt", tmp_path / "data").column[:].ravel().tolist() == [3, 4]


BROKEN = {
    "empty.txt": b"",
    "blank.csv": b"\n \n",
    "titles.txt": b"a b c\n",
    "comment.txt": b"# a b c\n",
    "words.txt": b"a b\nx y\nz w\n",
    "word_later.txt": b"a b\n1 2\n3 four\n",
    "ragged.txt": b"1 2\n3 4 5\n",
    "titles_too_few.txt": b"a b\n1 2 3 4\n",
    "titles_too_many.csv": b"a,b,c\n1,2\n",
    "two_labels.txt": b"LH 0 x 1.5\nLH 1 x 2.5\n",
    "latin.txt": bytes(range(128, 256)),
    "zip.txt": b"PK\x03\x04" + bytes(range(256)),
    "empty.npy": b"",
    "cut.npy": "cut",
    "cube.npy": np.zeros((3, 2, 2)),
    "complex.npy": np.zeros((3, 2), complex),
    "words.npy": np.full((3, 2), "a"),
    "scalar.npy": np.array(3.0),
    "no_rows.npy": np.zeros((0, 3)),
    "objects.npy": np.array([{"a": 1}]),
    "records.npy": np.zeros(3, [("a", "f8"), ("b", "f8")]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_table_is_refused_in_one_sentence_with_its_path(tmp_path, name):
    content = BROKEN[name]
    if isinstance(content, np.ndarray):
        np.save(tmp_path / name, content)
    elif content == "cut":
        np.save(tmp_path / name, NUMBERS)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:300])
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(FileError, match=rf"{name} holds no table of numbers: .+\.$") as caught:
        beside(str(tmp_path / name), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_hole_in_a_table_is_refused_with_its_row(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n" + "".join(f"{i},{'' if i == 41 else i}\n" for i in range(60)))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = np.arange(60.0)
    with pytest.raises(DataError, match="theta row 41: b is nan"):
        Simulations.open(tmp_path / "a.h5", theta="a.csv", x="x")


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(FileError, match=r"there is no file 'nothing\.csv'"):
        beside("nothing.csv", tmp_path)


MODELS = "omega_m,model,h\n" + "".join(f"{i / 7},LCDM,{i}\n" for i in range(5))


def test_a_text_column_does_not_hinder_those_chosen(tmp_path):
    (tmp_path / "a.csv").write_text(MODELS)
    table = beside("a.csv", tmp_path, ["h", "omega_m"])
    assert table.names == ("h", "omega_m")
    np.testing.assert_array_equal(table.column[:], [[i, i / 7] for i in range(5)])


@pytest.mark.parametrize("columns", [(), ["h", "model"]])
def test_a_text_column_that_is_wanted_is_refused_in_plain_words(tmp_path, columns):
    (tmp_path / "a.csv").write_text(MODELS)
    with pytest.raises(FileError, match=r"row 0 of column 'model' is 'LCDM', which is no number; list the") as caught:
        beside("a.csv", tmp_path, columns)
    assert "str_" not in str(caught.value)


def test_semicolons_separate_but_decimal_commas_are_refused(tmp_path):
    (tmp_path / "b.csv").write_text(";".join(NAMES) + "\n" + lines(";"))
    (tmp_path / "c.csv").write_text("a;b\n0.5;1\n0,3;2\n")
    table = beside("b.csv", tmp_path)
    assert table.names == NAMES
    np.testing.assert_array_equal(table.column[:], NUMBERS)
    with pytest.raises(FileError, match="row 1 of column 'a' is '0,3': write decimals with a point"):
        beside("c.csv", tmp_path)
