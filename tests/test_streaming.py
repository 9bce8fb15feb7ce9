"""Streams: every epoch visits each row once, every batch is a pure function of (seed, step), memory is bounded."""

import gc
import subprocess
import sys
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from stream_toys import Counting, streamed, table

from sbi_dgm import Simulations
from sbi_dgm.data import streaming
from sbi_dgm.data.batches import Rows, Shuffled
from sbi_dgm.data.source import Source
from sbi_dgm.data.streaming import Streamed
from sbi_dgm.errors import DataError, OptionError


@pytest.fixture(autouse=True)
def _blocks_of_one_chunk(monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK_BYTES", 1)


def numbers(batch):
    return batch.x["n"].tolist()


def epoch(batches, number):
    steps = range(number * batches.per_epoch, (number + 1) * batches.per_epoch)
    return [row for step in steps for row in numbers(batches[step])]


def some(rows):
    """Seven rows of eight, as a training part would be."""
    index = np.arange(rows)
    return index[index % 8 != 3]


@pytest.mark.parametrize(
    ("rows", "size", "chunk", "blocks"),
    [(1000, 32, 16, 5), (1000, 32, 16, 1), (1000, 100, 16, 2), (1000, 32, 16, 1000), (37, 64, 5, 2), (999, 1, 100, 3)],
    ids=["usual", "windows of a block", "batches of many windows", "one window", "one batch", "single rows"],
)
def test_an_epoch_visits_each_row_at_most_once_and_all_but_the_remainder(rows, size, chunk, blocks):
    chosen = some(rows)
    batches = streamed(table(rows, chunk), chosen, size, 0, blocks=blocks)
    size = min(size, len(chosen))
    for number in range(3):
        seen = epoch(batches, number)
        assert len(set(seen)) == len(seen) == len(chosen) // size * size
        assert set(seen) <= set(chosen.tolist())


def test_the_order_differs_between_epochs_seeds_and_from_the_files():
    chosen = some(1000)
    orders = [epoch(streamed(table(1000), chosen, 25, *seed), n) for seed in [(0,), (1,), (0, 1)] for n in range(3)]
    assert len({tuple(order) for order in orders}) == 9
    assert sorted(orders[0]) == chosen.tolist()
    assert all(np.mean(np.diff(order) == 1) < 0.1 for order in orders)


def same(one, two):
    return (
        torch.equal(one.z, two.z)
        and torch.equal(one.weight, two.weight)
        and all(torch.equal(one.x[name], two.x[name]) for name in one.x)
    )


def test_a_batch_follows_from_seed_and_step_alone():
    chosen = some(1000)
    ahead = streamed(table(1000), chosen, 32, 3, 1)
    expected = [ahead[step] for step in range(4 * ahead.per_epoch)]
    astray = streamed(table(1000), chosen, 32, 3, 1)
    for step in np.random.default_rng(0).permutation(len(expected)).tolist():
        torch.manual_seed(step)
        assert same(astray[step], expected[step])
    for step in (0, 40, len(expected) - 1):
        assert same(streamed(table(1000), chosen, 32, 3, 1)[step], expected[step])
    assert not same(streamed(table(1000), chosen, 32, 3, 2)[0], expected[0])


def test_z_x_weight_and_theta_of_a_row_stay_together():
    source = table(1000, weights=True)
    batches = streamed(source, some(1000), 32, 0)
    for step in (0, 5, batches.per_epoch - 1, 3 * batches.per_epoch + 2):
        batch = batches[step]
        index = batch.x["n"].long()
        assert torch.equal(batch.x["x"], index[:, None] * torch.arange(1.0, 6))
        torch.testing.assert_close(batch.weight, 1 + index / 1000)
        theta = torch.as_tensor(source.data.theta, dtype=torch.float32)[index]
        assert torch.equal(batch.theta, theta)
        torch.testing.assert_close(batch.z, theta, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_ranks_share_the_rows_disjointly_in_equal_numbers_of_steps(ranks):
    chosen = some(1200)
    shards = [streamed(table(1200), chosen, 10, 0, shard=(rank, ranks)) for rank in range(ranks)]
    assert len({shard.per_epoch for shard in shards}) == 1
    assert set().union(*(np.concatenate(shard.blocks).tolist() for shard in shards)) == set(chosen.tolist())
    for number in range(2):
        seen = [row for shard in shards for row in epoch(shard, number)]
        assert len(set(seen)) == len(seen)
        assert len(chosen) - len(seen) < ranks * (10 + 16)


def test_more_ranks_than_blocks_are_refused():
    with pytest.raises(OptionError, match="2 blocks of rows cannot be shared by 3 ranks"):
        streamed(table(32), np.arange(32), 4, 0, shard=(0, 3))


def test_no_chunk_is_read_twice_in_an_epoch():
    source = table(1000)
    batches = streamed(source, some(1000), 32, 0)
    x = source.columns["x"]
    for step in range(batches.per_epoch):
        batches[step]
    assert all(first % x.chunk == 0 for first, _ in x.read)
    assert x.visits().min() == 1
    assert x.visits().sum() <= len(x.visits()) + batches.per_window, "one window of the next epoch may be under way"


def test_batches_in_random_order_read_chunks_many_times():
    """What the windows spare: the same count for a twin that shuffles all rows."""
    source = table(1000)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    for first in range(0, 1000, 32):
        source.take(np.sort(order[first : first + 32].numpy()), 16)
    assert source.columns["x"].visits().min() > 5


def test_the_next_window_is_read_by_a_thread_while_this_one_serves():
    source = table(1000)
    readers = set()

    class Watched(Counting):
        def __getitem__(self, rows):
            readers.add(threading.current_thread().name.split("_")[0])
            return super().__getitem__(rows)

    source.columns["x"] = Watched(source.columns["x"].values, 16)
    batches = streamed(source, np.arange(1000), 16, 0, blocks=5)
    batches[0]
    for _ in range(500):
        if len(source.columns["x"].read) == 10:
            break
        time.sleep(0.01)
    assert len(source.columns["x"].read) == 10, "two windows of five blocks"
    assert readers == {"window"}


def scatter(batches, epochs=6):
    """Standard deviation of the batches' means of theta, in units of theta's own."""
    means = [float(batches[step].z[:, 0].mean()) for step in range(epochs * batches.per_epoch)]
    return np.std(means) / np.std(np.linspace(-2, 2, 4096))


def mixes(found, size, blocks):
    """Whether batches of a sorted file scatter as rows of one block (16 rows) from each of `blocks` strata would.

    A stratum is 1 / blocks as wide as the file, the mean of so many has a variance smaller by 1 / blocks again, and a
    batch is drawn from its window without replacement.
    96 windows tell a standard deviation to 1 / sqrt(2 * 96) = 7 %; the factor allowed is 1.3.
    """
    predicted = (1 / blocks**3 + 1 / size - 1 / (16 * blocks)) ** 0.5
    return predicted / 1.3 < found < predicted * 1.3


@pytest.mark.parametrize("blocks", [4, 16])
def test_batches_of_a_file_sorted_by_theta_scatter_as_sampling_predicts(blocks):
    assert mixes(scatter(streamed(table(4096), np.arange(4096), 64, 0, blocks=blocks)), 64, blocks)


def test_the_check_of_mixing_knows_whole_shuffles_and_accuses_the_files_order():
    theta = torch.linspace(-2, 2, 4096)[:, None]
    assert mixes(scatter(Shuffled(Rows(theta, {}), 64, 0)), 64, 10**9)

    class InOrder:
        per_epoch = 64

        def __getitem__(self, step):
            return Rows(theta, {})[slice(step % 64 * 64, (step % 64 + 1) * 64)]

    assert not mixes(scatter(InOrder()), 64, 16)
    one_at_a_time = streamed(table(4096), np.arange(4096), 64, 0, blocks=1)
    assert not mixes(scatter(one_at_a_time), 64, 16)


def stored(path, rows=400, numbers=64, chunk=20):
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file["theta"] = rng.normal(size=(rows, 2))
        file.create_dataset("x", data=rng.normal(size=(rows, numbers)), chunks=(chunk, numbers), fletcher32=True)
    data = Simulations.open(path, theta="theta", x="x", prior={name: {"normal": [0, 1]} for name in "ab"})
    return data, Source(data, data.prior)


def spoil(path, chunk):
    """Change one byte of a chunk of x."""
    with h5py.File(path) as file:
        place = file["x"].id.get_chunk_info(chunk).byte_offset
    with Path(path).open("r+b") as file:
        file.seek(place + 100)
        byte = file.read(1)
        file.seek(place + 100)
        file.write(bytes([byte[0] ^ 255]))


def test_a_failing_checksum_in_the_middle_of_an_epoch_is_one_sentence_in_the_main_thread(tmp_path):
    _, source = stored(tmp_path / "a.h5")
    batches = streamed(source, np.arange(400), 10, 0, blocks=2)
    block = int(batches.plan(0).windows[-2][0])
    spoil(tmp_path / "a.h5", block)
    for step in range(8):
        batches[step]
    first = 20 * block
    with pytest.raises(
        DataError, match=f"dataset 'x', rows {first} to {first + 19}, cannot be read: its checksum fails"
    ):
        epoch_of(batches)
    with pytest.raises(DataError, match=f"rows {first} to {first + 19}"):
        epoch_of(batches)


def epoch_of(batches):
    return [batches[step] for step in range(batches.per_epoch)]


def windows():
    return [thread for thread in threading.enumerate() if thread.name.startswith("window")]


def test_a_stream_that_is_let_go_leaves_no_thread_and_no_cycle():
    before = len(windows())
    gc.disable()
    try:
        batches = streamed(table(1000), np.arange(1000), 32, 0)
        batches[0]
        assert len(windows()) == before + 1
        del batches
        for _ in range(500):
            if len(windows()) == before:
                break
            time.sleep(0.01)
        assert len(windows()) == before
    finally:
        gc.enable()


PEAK = """
import sys
from pathlib import Path
import numpy as np, torch
from sbi_dgm import Simulations
from sbi_dgm.data.batches import Rows, Shuffled
from sbi_dgm.data.source import Source
from sbi_dgm.data.streaming import Streamed

path, mode = sys.argv[1:]
data = Simulations.open(path, theta="theta", x="x", prior={name: {"normal": [0, 1]} for name in "ab"})
source, rows = Source(data, data.prior), np.arange(len(data))
source.take(rows[:64])


def peak():
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0])


before = peak()
if mode == "stream":
    batches = Streamed(source, rows, 128, 0, buffer=2**24)
else:
    batches = Shuffled(source.take(rows), 128, 0)
for step in range(batches.per_epoch + 5):
    batches[step]
print((peak() - before) / 1024)
"""


def peak_mib(path, mode):
    done = subprocess.run([sys.executable, "-c", PEAK, path, mode], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def test_memory_stays_within_the_buffer_whatever_the_file(tmp_path):
    """128 MiB of rows through a buffer of 16 MiB; 8 MiB more for batches and what reading takes."""
    x = np.random.default_rng(0).normal(size=(64, 4096)).astype("f4")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["theta"] = np.random.default_rng(1).normal(size=(8192, 2))
        file.create_dataset("x", (8192, 4096), "f4", chunks=(64, 4096))
        for first in range(0, 8192, 64):
            file["x"][first : first + 64] = x
    assert peak_mib(tmp_path / "a.h5", "stream") < 24
    assert peak_mib(tmp_path / "a.h5", "memory") > 100


def test_a_block_larger_than_the_buffer_is_read_alone(tmp_path):
    _, source = stored(tmp_path / "a.h5")
    batches = Streamed(source, np.arange(400), 32, 0, buffer=1)
    assert batches.per_window == 1
    assert len(batches[0].z) == 32
