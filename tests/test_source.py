"""Source: the rows that an estimator sees, in any pieces the same, read once and counted in bytes."""

import numpy as np
import pytest
import torch
from stream_toys import PRIOR, Counting, table

from sbi_dgm import Simulations
from sbi_dgm.data.source import Source
from sbi_dgm.distributions import Normal, Uniform
from sbi_dgm.errors import DataError
from sbi_dgm.parameters import Parameter
from sbi_dgm.priors import Prior


def uniform_rows(rows=400):
    prior = Prior([Parameter(name, Uniform(0, width)) for name, width in (("a", 1), ("b", 10), ("c", 100))])
    theta = prior.sample(rows, 0)
    return Simulations.from_arrays(theta, theta.astype("f4"), prior=prior), theta


def test_z_are_coordinates_of_the_chosen_parameters_and_theta_is_all_of_them():
    data, theta = uniform_rows()
    reference, _ = data.reference(["c", "a"], np.arange(400))
    rows = Source(data, reference, theta=True).take(np.arange(5, 300, 7))
    expected = reference.coordinates.forward(theta[5:300:7][:, [2, 0]])[0]
    torch.testing.assert_close(rows.z.double(), torch.as_tensor(expected), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(rows.theta.double(), torch.as_tensor(theta[5:300:7]), rtol=1e-6, atol=0)
    assert Source(data, reference).take(np.arange(5)).theta is None


def same(one, two):
    return torch.equal(one.z, two.z) and all(torch.equal(one.x[name], two.x[name]) for name in one.x)


def test_pieces_of_a_stream_are_the_rows_taken_at_once():
    source, rows = table(1000), np.flatnonzero(np.random.default_rng(0).random(1000) < 0.3)
    whole = source.take(rows)
    for size in (1, 1000, 10**6):
        pieces = list(source.stream(rows, size))
        np.testing.assert_array_equal(np.concatenate([numbers for numbers, _ in pieces]), rows)
        assert torch.equal(torch.cat([part.x["x"] for _, part in pieces]), whole.x["x"])
        assert torch.equal(torch.cat([part.z for _, part in pieces]), whole.z)


def counted(source, rows):
    """How many rows of each column are read by a pass over `rows`."""
    columns = {**source.columns, "theta": Counting(np.asarray(source.data.columns["theta"][:]), 50)}
    source.data.columns["theta"] = columns["theta"]
    for column in source.columns.values():
        column.read.clear()
    list(source.stream(rows, 16 * source.bytes(1)))
    return {name: sum(last - first for first, last in column.read) for name, column in columns.items()}


def test_a_pass_reads_every_row_of_every_column_once():
    """Also of the light columns, beside which a span of the heaviest is short."""
    read = counted(table(1000), np.arange(1000))
    assert read == {"x": 1000, "n": 1000, "theta": 1000}


def test_parameters_on_an_edge_are_counted_in_one_pass_over_theta_alone():
    data, theta = uniform_rows()
    theta[[3, 50, 399], 1] = [0, 10, 10]
    theta[50, 0] = 1
    column = Counting(theta, 16)
    data.columns |= {"theta": column, "x/x": Counting(theta, 16)}
    source = Source(data, data.prior)
    assert source.at_edge(np.arange(400)) == 3
    assert source.at_edge(np.arange(0, 399)) == 2
    assert sum(last - first for first, last in column.read) == 800
    assert source.columns["x"].read == []


@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i2", "f2", "f4", "f8", ">f4", ">u2", "?"])
def test_every_dtype_becomes_tensors_of_the_same_numbers_and_the_bytes_that_were_told(dtype):
    x = np.random.default_rng(0).integers(0, 2 if dtype == "?" else 100, (60, 8)).astype(dtype)
    if dtype in ("u2", "u4"):
        x[0, 0] = np.iinfo(dtype).max
    data = Simulations.from_arrays(np.random.default_rng(1).normal(size=(60, 2)), x, names=["a", "b"])
    source = Source(data, PRIOR)
    rows = source.take(np.arange(60))
    np.testing.assert_array_equal(rows.x["x"].numpy(), x)
    assert source.bytes(60) == rows.x["x"].nbytes + rows.z.nbytes + rows.weight.nbytes
    assert rows.x["x"][torch.tensor([1, 0])].shape == (2, 8)


def test_bytes_count_theta_where_noise_asks_for_it():
    source = table(100)
    rows = source.take(np.arange(100))
    tensors = [rows.z, rows.weight, rows.theta, *rows.x.values()]
    assert source.bytes(100) == sum(tensor.nbytes for tensor in tensors)


def test_no_rows_are_refused():
    with pytest.raises(DataError, match="no rows are left"):
        table(10).take(np.arange(0))


def test_without_a_prior_the_stand_in_serves():
    data = Simulations.from_arrays(np.random.default_rng(0).normal(3, 2, (5000, 1)), np.zeros((5000, 1)), names=["a"])
    reference, informed = data.reference(["a"], np.arange(5000))
    z = Source(data, reference).take(np.arange(5000)).z
    assert not informed
    assert isinstance(reference.parameters[0].prior, Normal)
    assert abs(float(z.mean())) < 1e-6
    assert abs(float(z.std(unbiased=False)) - 1) < 1e-6
