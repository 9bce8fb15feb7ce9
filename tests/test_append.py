"""Rows behind rows: what was reported as written is there, whoever wrote it, and from wherever."""

import numpy as np
import pytest
from campaign_toys import Toy, run

from sbi_dgm import Simulations
from sbi_dgm.errors import DataError, FileError
from sbi_dgm.files import held

RNG = np.random.default_rng(0)


def rows(count, start=0.0):
    theta = start + RNG.uniform(size=(count, 2))
    return theta, theta + RNG.normal(size=(count, 2))


def create(path, count=60):
    return Simulations.create(path, *rows(count))


def test_every_append_of_one_handle_is_kept(tmp_path):
    data = create(tmp_path / "a.h5")
    batches = [rows(10, start) for start in (1.0, 2.0, 3.0)]
    for batch in batches:
        grown = data.append(*batch)
    assert len(grown) == len(Simulations.open(tmp_path / "a.h5")) == 90
    np.testing.assert_array_equal(grown.theta[60:], np.concatenate([theta for theta, _ in batches]))


def test_two_handles_append_behind_each_other(tmp_path):
    one, two = create(tmp_path / "a.h5"), Simulations.open(tmp_path / "a.h5")
    one.append(*rows(5))
    assert len(two.append(*rows(7))) == 72


def test_a_file_is_the_same_from_another_folder(tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    here, there = create("a.h5"), create("other/a.h5", 80)
    monkeypatch.chdir(tmp_path / "other")
    assert len(here.append(*rows(5))) == 65
    assert len(Simulations.open("a.h5")) == len(there) == 80
    assert not list(tmp_path.rglob("*.lock"))


def test_a_glob_is_not_a_file_to_append_to(tmp_path):
    create(tmp_path / "m_1.h5")
    create(tmp_path / "m_2.h5")
    with pytest.raises(FileError, match=r"m_\*\.h5 is not ours to change"):
        Simulations.open(tmp_path / "m_*.h5").append(*rows(5))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m_1.h5", "m_2.h5"]


def test_a_file_that_another_writes_is_left_alone(tmp_path):
    data = create(tmp_path / "a.h5")
    with held(tmp_path / "a.h5"), pytest.raises(FileError, match="is being written by another process"):
        data.append(*rows(5))
    assert len(data.append(*rows(5))) == 65


def test_a_campaign_grows_by_simulating(tmp_path):
    data = run(tmp_path / "a.h5", simulator=Toy())
    with pytest.raises(DataError, match=r"ask simulate\(\) for more of them, a larger n"):
        data.append(data.theta[:5], {name: a[:5] for name, a in data.x(np.arange(5)).items()})


@pytest.mark.parametrize("where", ["memory", "file"])
def test_x_is_of_the_rows_that_were_asked_for(tmp_path, where):
    theta, x = rows(9000)
    data = Simulations.from_arrays(theta, x)
    data = data.save(tmp_path / "a.h5") if where == "file" else data
    chosen = theta[:, 0] > 0.5
    np.testing.assert_array_equal(data.x(chosen)["x"], x[chosen])
    np.testing.assert_array_equal(data.x([3, 3, 8000])["x"], x[[3, 3, 8000]])
    for bad, sentence in (
        ([5, 4], "must ascend"),
        ([0, 9000], "number 9000 at place 1 is not among 0 to 8999"),
        ([-1], "number -1 at place 0"),
        ([0.5], "dtype float64: give numbers"),
        (chosen[:5], "dtype bool: give numbers"),
    ):
        with pytest.raises(DataError, match=sentence):
            data.x(np.asarray(bad))


def test_what_a_mask_hides_is_absent(tmp_path):
    theta, x = rows(60)
    hidden = np.zeros(x.shape, bool)
    hidden[:4, 1] = True
    data = Simulations.from_arrays(theta, np.ma.array(x, mask=hidden))
    assert np.flatnonzero(~data.valid).tolist() == [0, 1, 2, 3]
    with pytest.raises(DataError, match="x has dtype int64 and hides 4 values by a mask: fill them"):
        Simulations.from_arrays(theta, np.ma.array(np.ones(x.shape, int), mask=hidden))
    with pytest.raises(DataError, match="theta row 0: theta_1 is nan"):
        Simulations.from_arrays(np.ma.array(theta, mask=hidden), x)
