"""Rows of files that others wrote: which count, which belong together, and what it costs to read them."""

import gc
import multiprocessing
import pickle
import shutil
import tracemalloc
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import h5py
import layouts
import numpy as np
import pytest
from command_toys import everything

import sbi_dgm
from sbi_dgm import Simulations, SplitRule
from sbi_dgm.data import columns
from sbi_dgm.data.columns import gather
from sbi_dgm.errors import FileError


def test_rows_without_numbers_count_as_failed_and_do_not_train(tmp_path):
    made = layouts.failed_rows(tmp_path)
    data = made.open()
    assert np.flatnonzero(~data.valid).tolist() == [7, 40]
    used = np.concatenate(list(vars(data.split(SplitRule())).values()))
    assert sorted(used.tolist()) == [i for i in range(layouts.ROWS) if i not in (7, 40)]
    whole = Path(shutil.copy(made.path, tmp_path / "whole.h5"))
    with h5py.File(whole, "r+") as file:
        file["data"][7], file["data"][40] = 0, 1e30
    assert Simulations.open(whole, **made.places).valid.all()


@pytest.mark.parametrize("place", ["inside", "beside"])
def test_what_is_given_once_a_universe_counts_for_all_its_maps(tmp_path, place):
    theta = layouts.universes(6)
    x, weight = np.arange(24.0), np.linspace(1, 2, 6)
    for i, rows in enumerate((slice(0, 2), slice(2, 6))):
        with h5py.File(tmp_path / f"a{i}.h5", "w") as file:
            file["theta"], file["x"] = theta[rows], x[4 * rows.start : 4 * rows.stop]
            file["w"], file["box"] = weight[rows], np.array(["b", "a", "a", "c", "b", "d"][rows], "S1")
    np.savetxt(tmp_path / "t.txt", theta)
    given = str(tmp_path / "t.txt") if place == "beside" else "theta"
    data = Simulations.open(tmp_path / "a*.h5", theta=given, x="x", weight={"proposal": "w"}, group="box")
    np.testing.assert_array_equal(data.theta, np.repeat(theta, 4, axis=0))
    np.testing.assert_array_equal(data.column("proposal_weight"), np.repeat(weight, 4))
    np.testing.assert_array_equal(data.column("group"), np.repeat([1, 0, 0, 2, 1, 3], 4))


def test_labels_mean_the_same_in_all_files(tmp_path):
    labels = [["b", "c", "b"], ["a", "b", "zz"]]
    for i, words in enumerate(labels):
        with h5py.File(tmp_path / f"a{i}.h5", "w") as file:
            file["theta"], file["x"], file["g"] = layouts.universes(3, i), np.arange(3.0), np.array(words, object)
    data = Simulations.open(tmp_path / "a*.h5", theta="theta", x="x", group="g")
    assert data.column("group").tolist() == [1, 2, 1, 0, 1, 3]


def test_a_field_of_a_table_can_be_weight_and_group(tmp_path):
    table = np.zeros(60, [("a", "f8"), ("w", "f4"), ("g", "i2"), ("v", "f4", (3,))])
    table["a"], table["w"], table["g"] = np.arange(60), 2, np.arange(60) // 3
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["t"] = table
    data = Simulations.open(tmp_path / "a.h5", theta="t/a", x="t/v", weight={"event": "t/w"}, group="t/g")
    assert (data.column("event_weight") == 2).all()
    assert data.column("group").tolist() == table["g"].tolist()
    assert data.observables["v"].shape == (3,)


def test_numbered_files_stand_in_the_order_of_their_numbers(tmp_path):
    theta = layouts.universes(12)
    for i in range(12):
        with h5py.File(tmp_path / f"LH_{i}.h5", "w") as file:
            file["x"] = np.full((2, 3), float(i))
    np.savetxt(tmp_path / "params.txt", theta, fmt="%.17g")
    data = Simulations.open(tmp_path / "LH_*.h5", theta="params.txt", x="x")
    np.testing.assert_array_equal(data.columns["x/x"][:][:, 0], np.arange(24) // 2)
    np.testing.assert_array_equal(data.theta, np.repeat(theta, 2, axis=0))


def test_the_file_stays_as_it_is_and_is_not_ours_to_grow(tmp_path):
    made = layouts.plain(tmp_path)
    made.path.chmod(0o444)
    before = everything(tmp_path)
    data = made.open()
    with pytest.raises(FileError, match=r"sims\.h5 is not ours to change: save\(\)"):
        data.append(made.theta, made.x)
    sbi_dgm.fit(data, training=sbi_dgm.Training(max_rounds=1, round=2), progress=False)
    assert everything(tmp_path) == before
    grown = data.save(tmp_path / "mine.h5").append(made.theta, made.x)
    assert len(grown) == 2 * layouts.ROWS


def _sums(data):
    return {name: float(np.asarray(column[:], float)[data.valid].sum()) for name, column in data.columns.items()}


@pytest.mark.parametrize("writer", [layouts.camels, layouts.ragged, layouts.split_files, layouts.dingo])
def test_columns_travel_to_forked_and_fresh_processes(tmp_path, writer):
    data = writer(tmp_path).open()
    total = _sums(data)
    assert len(pickle.dumps(data)) < 40_000
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        assert list(pool.map(_sums, [data] * 2)) == [total] * 2
    assert _sums(data) == total


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are listed in /proc")
def test_more_files_than_a_process_may_open_are_one_table(tmp_path, monkeypatch):
    theta = layouts.universes(120)
    for i in range(40):
        layouts.paired(tmp_path, f"a{i}.h5", theta=theta[3 * i : 3 * i + 3], x=np.arange(3 * i, 3 * i + 3))

    def held():
        links = [Path(link) for link in Path("/proc/self/fd").iterdir()]
        return sum(str(tmp_path) in str(link.readlink()) for link in links if link.is_symlink())

    monkeypatch.setattr(columns, "FILES", 4)
    data = Simulations.open(tmp_path / "a*.h5", theta="theta", x="x")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(gather, [data.columns["x/x"]] * 8, [np.arange(0, 120, 7)] * 8, [1] * 8))
    assert [rows.tolist() for rows in found] == [list(range(0, 120, 7))] * 8
    assert (data.theta == theta).all()
    assert 0 < held() <= 4
    monkeypatch.setattr(columns, "FILES", 256)
    assert (data.theta == theta).all()
    assert held() == 40
    del data
    gc.collect()
    assert held() == 0


def test_a_few_rows_of_a_large_file_cost_about_those_rows(tmp_path):
    rows, width = 30_000, 500
    with h5py.File(tmp_path / "big.h5", "w") as file:
        x = file.create_dataset("x", (rows, width), "f4", chunks=(250, width), compression="lzf")
        for first in range(0, rows, 5000):
            x[first : first + 5000] = np.repeat(np.arange(first, first + 5000, dtype="f4")[:, None], width, axis=1)
        file["theta"] = layouts.universes(rows)
    column = Simulations.open(tmp_path / "big.h5", theta="theta", x="x").columns["x/x"]
    chosen = np.arange(17, rows, 1501)
    tracemalloc.start()
    found = gather(column, chosen)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(found[:, 0], chosen)
    assert peak < found.nbytes + 2.5 * 2**23
    assert rows * width * 4 > 2 * peak
