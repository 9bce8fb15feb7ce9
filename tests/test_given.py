"""Arrays as users give them: what is stored, what is appended, and what is refused before anything is written."""

import numpy as np
import pytest

from sbi_dgm import Simulations
from sbi_dgm.errors import DataError


@pytest.mark.parametrize(("before", "after"), [("f4", "f8"), ("f8", "f4"), ("i2", "i8"), (">f4", "f4"), ("u1", "?")])
def test_rows_are_appended_in_the_type_of_those_before(tmp_path, before, after):
    theta, x = np.random.default_rng(0).normal(size=(60, 2)), np.arange(120).reshape(60, 2) % 2
    data = Simulations.create(tmp_path / "a.h5", theta, x.astype(before))
    whole = data.append(theta, x.astype(after))
    assert whole.columns["x/x"].dtype == np.dtype(before).newbyteorder("=")
    np.testing.assert_array_equal(whole.columns["x/x"][:], np.concatenate([x, x]))


@pytest.mark.parametrize(("before", "value"), [("i2", 70_000), ("f4", 1e300)])
@pytest.mark.parametrize("stored", [False, True])
def test_numbers_that_would_not_survive_are_not_appended(tmp_path, before, value, stored):
    theta, x = np.random.default_rng(0).normal(size=(60, 2)), np.zeros((60, 2), before)
    data = Simulations.from_arrays(theta, x)
    data = data.save(tmp_path / "a.h5") if stored else data
    other = np.zeros((60, 2), type(value))
    other[7, 1] = value
    with pytest.raises(DataError, match=r"rows to append: x/x row 7 holds .*, which is no (int16|float32)"):
        data.append(theta, other)
    assert len(data) == len(Simulations.open(data.path) if stored else data) == 60


def test_what_is_one_number_a_row_has_one_axis():
    theta = np.random.default_rng(0).normal(size=(60, 2))
    for name in ("proposal_weight", "event_weight", "group", "split", "valid"):
        with pytest.raises(DataError, match=rf"{name} has shape \(60, 1\): give one number for each row"):
            Simulations.from_arrays(theta, theta, **{name: np.ones((60, 1), int)})
    with pytest.raises(DataError, match="valid must be True"):
        Simulations.from_arrays(theta, theta, valid=np.full(60, np.nan))


@pytest.mark.parametrize("name", ["maps/kappa", "", ".", "a\0b"])
def test_an_observable_has_a_name_that_files_can_hold(name):
    theta = np.random.default_rng(0).normal(size=(60, 2))
    with pytest.raises(DataError, match="has no usable name"):
        Simulations.from_arrays(theta, {name: theta})


def test_names_of_parameters_stand_once():
    theta = np.random.default_rng(0).normal(size=(60, 2))
    with pytest.raises(DataError, match="each name may stand only once"):
        Simulations.from_arrays(theta, theta, names=["a", "a"])


@pytest.mark.parametrize("x", [[[1.0, 2.0], [3.0]], [["a"]]])
def test_what_is_no_array_of_numbers_is_refused(x):
    with pytest.raises(DataError, match=r"no array of numbers|give real numbers"):
        Simulations.from_arrays(np.zeros((len(x), 1)), x)
