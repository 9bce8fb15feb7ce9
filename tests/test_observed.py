"""Observations from files: the same numbers from every format, and one sentence where there are none."""

import numpy as np
import pandas as pd
import pytest

from sbi_dgm import Observable, Simulations
from sbi_dgm.data.observed import observed_arrays, read_observation
from sbi_dgm.errors import FileError, ObservationError, SbiError

X = np.array([1.5, -2.25e-7, 3e10, 0.1])
VECTOR = {"flux": Observable((4,))}


def written(path, x, name="flux"):
    """`x` in a file of the format that the suffix says."""
    if path.suffix == ".npy":
        np.save(path, x)
    elif path.suffix == ".npz":
        np.savez(path, **{name: x})
    elif path.suffix == ".h5":
        stack = np.stack([0 * x, x, 2 * x])
        Simulations.create(path, np.arange(6.0).reshape(3, 2), {name: stack})
    else:
        np.savetxt(path, np.atleast_1d(x), delimiter="," if path.suffix == ".csv" else " ")
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", ".txt", ".dat", ".h5"])
def test_every_format_gives_the_same_numbers(tmp_path, suffix):
    path = written(tmp_path / f"o{suffix}", X)
    found = read_observation(path, VECTOR, 1 if suffix == ".h5" else None)
    assert list(found) == ["flux"]
    np.testing.assert_array_equal(found["flux"], X)


@pytest.mark.parametrize(
    ("text", "suffix"), [("1.5,-2.25e-7,3e10,0.1\n", ".csv"), ("# mu\n1.5 -2.25e-7 3e10 0.1\n", ".txt")]
)
def test_one_line_of_text_serves_as_well_as_one_number_a_line(tmp_path, text, suffix):
    path = tmp_path / f"o{suffix}"
    path.write_text(text)
    np.testing.assert_array_equal(read_observation(path, VECTOR)["flux"], X)


@pytest.mark.parametrize(("shape", "x"), [((), np.array(3.25)), ((1,), np.array([3.25])), ((2, 2), X.reshape(2, 2))])
@pytest.mark.parametrize("suffix", [".npy", ".npz", ".csv", ".txt"])
def test_numbers_and_fields_come_in_their_own_shape(tmp_path, shape, x, suffix):
    path = written(tmp_path / f"o{suffix}", x)
    found = read_observation(path, {"flux": Observable(shape)})["flux"]
    assert found.shape == shape
    np.testing.assert_array_equal(found, x)


def test_rows_of_text_are_a_stack_of_observations(tmp_path):
    stack = np.stack([X, X + 1, X + 2])
    path = written(tmp_path / "o.txt", stack)
    np.testing.assert_array_equal(read_observation(path, VECTOR)["flux"], stack)


def test_several_observables_come_by_name(tmp_path):
    np.savez(tmp_path / "o.npz", flux=X, count=np.array(7))
    found = read_observation(tmp_path / "o.npz", VECTOR | {"count": Observable(())})
    assert {name: a.tolist() for name, a in found.items()} == {"flux": X.tolist(), "count": 7}


@pytest.mark.parametrize("suffix", [".npy", ".txt"])
def test_one_array_cannot_stand_for_two_observables(tmp_path, suffix):
    path = written(tmp_path / f"o{suffix}", X)
    with pytest.raises(ObservationError, match=r"one array, but 2 observables are needed: give an \.npz"):
        read_observation(path, VECTOR | {"count": Observable(())})


@pytest.mark.parametrize(
    ("suffix", "row", "words"),
    [
        (".h5", None, r"rows 0 to 2: choose one with --row \(given: None\)"),
        (".h5", 3, r"rows 0 to 2: .*given: 3"),
        (".h5", -1, r"rows 0 to 2: .*given: -1"),
        (".npy", 0, "--row chooses a row of a simulation file"),
        (".txt", 1, "--row chooses a row of a simulation file"),
    ],
)
def test_a_row_that_is_not_there_is_refused(tmp_path, suffix, row, words):
    path = written(tmp_path / f"o{suffix}", X)
    with pytest.raises(ObservationError, match=words):
        read_observation(path, VECTOR, row)


def broken(path, how):
    """A file that holds no numbers."""
    whole = written(path, X).read_bytes()
    content = {
        "empty": b"",
        "blank": b"\n\n",
        "cut": whole[: len(whole) // 2],
        "noise": bytes(range(128, 256)),
        "words": b"omega_m,w0\n0.3,-1\n",
        "ragged": b"1 2 3\n4 5\n",
    }
    path.write_bytes(content[how])
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5"])
@pytest.mark.parametrize("how", ["empty", "blank", "cut", "noise", "words"])
def test_a_broken_binary_file_is_a_file_error(tmp_path, suffix, how):
    with pytest.raises(FileError, match=f"o{suffix}") as caught:
        read_observation(broken(tmp_path / f"o{suffix}", how), VECTOR, 0 if suffix == ".h5" else None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".csv", ".txt"])
@pytest.mark.parametrize("how", ["empty", "blank", "noise", "words", "ragged"])
def test_text_without_numbers_is_a_file_error(tmp_path, suffix, how):
    with pytest.raises(FileError, match="holds no array of numbers") as caught:
        read_observation(broken(tmp_path / f"o{suffix}", how), VECTOR)
    assert "\n" not in str(caught.value)


def test_a_pickle_in_an_array_is_not_opened(tmp_path):
    np.save(tmp_path / "o.npy", np.array([{"a": 1}]), allow_pickle=True)
    with pytest.raises(FileError, match="holds no array of numbers"):
        read_observation(tmp_path / "o.npy", VECTOR)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SbiError, match=r"there is no file .*nothing\.npy"):
        read_observation(tmp_path / "nothing.npy", VECTOR)


def test_columns_of_a_frame_go_by_name():
    """Trained on u and v, asked with v and u: the numbers of u stay those of u."""
    x = np.arange(120.0).reshape(60, 2)
    data = Simulations.from_arrays(x[:, :1], pd.DataFrame(x, columns=["u", "v"]))
    known, dtypes = data.observables, {"x": "<f8"}
    assert known["x"].names == ("u", "v")
    turned = pd.DataFrame(x[:3, ::-1], columns=["v", "u"])
    np.testing.assert_array_equal(observed_arrays(turned, known, dtypes)[0]["x"], x[:3])
    np.testing.assert_array_equal(observed_arrays(turned.iloc[1], known, dtypes)[0]["x"], x[1:2])
    np.testing.assert_array_equal(observed_arrays(pd.Series(x[2]), known, dtypes)[0]["x"], x[2:3])
    with pytest.raises(ObservationError, match=r"has columns \['v', 'w'\]; expected \['u', 'v'\]"):
        observed_arrays(turned.rename(columns={"u": "w"}), known, dtypes)
