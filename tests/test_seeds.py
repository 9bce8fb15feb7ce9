"""Streams by (seed, keys): equal for equal names, independent for others, and no global state."""

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import torch

from sbi_dgm.seeds import fresh, lending, numpy_generator, torch_generator

N = 10_000
STREAMS = [(0,), (1,), (0, 0), (0, 1), (0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0), (2**63 - 1, 7)]


def draws(stream, library):
    if library == "numpy":
        return numpy_generator(*stream).standard_normal(N)
    return torch.randn(N, generator=torch_generator(*stream), dtype=torch.float64).numpy()


def global_state():
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return kind, keys.tobytes(), tuple(rest), torch.get_rng_state().numpy().tobytes()


def check_global_state_is_untouched(use):
    before = global_state()
    use()
    assert global_state() == before


def lend():
    with lending(3, 1):
        torch.rand(5)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_equal_streams_are_equal_and_others_uncorrelated(library):
    table = [draws(stream, library) for stream in STREAMS]
    for stream, values in zip(STREAMS, table, strict=True):
        np.testing.assert_array_equal(draws(stream, library), values)
    correlation = np.corrcoef(table) - np.eye(len(STREAMS))
    assert np.abs(correlation).max() < 4.5 / np.sqrt(N)  # 36 pairs, standard error 1 / sqrt(N) each


@pytest.mark.parametrize(
    "use", [lambda: draws((1, 2), "numpy"), lambda: draws((1, 2), "torch"), lend, lambda: fresh(None)]
)
def test_the_global_generators_are_untouched(use):
    check_global_state_is_untouched(use)


@pytest.mark.parametrize("use", [lambda: torch.manual_seed(1), lambda: np.random.rand(1), lambda: torch.rand(1)])  # noqa: NPY002
def test_what_touches_the_global_generators_is_noticed(use):
    with pytest.raises(AssertionError):
        check_global_state_is_untouched(use)


def fail_while_lending():
    with lending(0):
        torch.rand(1)
        raise ValueError("inside")


def test_lending_ends_with_an_exception():
    before = global_state()
    with pytest.raises(ValueError, match="inside"):
        fail_while_lending()
    assert global_state() == before


def test_lent_weights_depend_on_the_key_and_on_nothing_before():
    def weight(*stream):
        with lending(*stream):
            return torch.nn.Linear(3, 2).weight

    first = weight(0, 1)
    torch.rand(3, generator=torch.Generator())
    assert torch.equal(weight(0, 1), first)
    for one, other in pairwise([weight(0), weight(0, 1), weight(0, 2), weight(1)]):
        assert not torch.equal(one, other)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_lending_leaves_the_gpu_generators_alone(device):
    def state():
        return [s.numpy().tobytes() for s in torch.cuda.get_rng_state_all()]

    before = state()
    with lending(0, device=device):
        torch.rand(3, device=device)
    assert state() == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_lending_serves_dropout_on_the_gpu():
    def mask():
        with lending(5, device="cuda"):
            return torch.nn.functional.dropout(torch.ones(1000, device="cuda"))

    first = mask()
    torch.rand(7, device="cuda")
    assert torch.equal(mask(), first)


def test_fresh_keeps_a_seed_and_invents_distinct_ones():
    assert fresh(5) == 5
    seeds = [fresh(None) for _ in range(20)]
    assert len(set(seeds)) == 20
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_threads_borrow_the_global_generator_one_after_the_other():
    """Four at once draw what each draws alone, and leave the generator as it was."""

    def drawn(seed):
        with lending(seed):
            found = []
            for _ in range(50):
                found.append(torch.rand(1).item())
                time.sleep(1e-4)
        return found

    before = torch.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(drawn, range(4)))
    assert together == [drawn(seed) for seed in range(4)]
    assert torch.equal(torch.get_rng_state(), before)
