"""Training by stream: what memory would give, bit for bit where bits can agree, and after any interruption."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn
from training_toys import BRIEF, PRIOR, SMALL, check_same, curve, fit, interrupted_at, prepared_by

import sbi_dgm
from sbi_dgm.data import streaming
from sbi_dgm.data.reading import Reading
from sbi_dgm.errors import DataError
from sbi_dgm.loop import Training

STREAM, MEMORY = Reading(mode="stream", buffer_mib=1), Reading(mode="memory")
NUMBERS = 64


class Reduced(nn.Module):
    """A linear summary that always starts alike."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(NUMBERS, 4)
        self.layer.weight.data.normal_(std=0.1, generator=torch.Generator().manual_seed(7))
        self.layer.bias.data.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.layer(x))


def file(path, rows=4000, compression=None, in_order=False, **columns):
    """A native file whose x lies in chunks of 64 rows."""
    rng = np.random.default_rng(0)
    theta = PRIOR.sample(rows, 1)
    theta = theta[np.argsort(theta[:, 0])] if in_order else theta
    x = (theta @ rng.normal(size=(3, NUMBERS)) + 3 * rng.normal(size=(rows, NUMBERS))).astype("f4")
    sbi_dgm.Simulations.create(path, theta, x, prior=PRIOR, **columns)
    with h5py.File(path, "r+") as opened:
        del opened["x/x"]
        opened.create_dataset("x/x", data=x, chunks=(64, NUMBERS), compression=compression, fletcher32=True)
    return sbi_dgm.Simulations.open(path)


def train(data, reading=STREAM, **options):
    """Windows of 15 blocks of 64 rows; 26 steps an epoch, validation every 5."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "BLOCK_BYTES", 2**14)
        given = {"embedding": Reduced(), "training": BRIEF.model_copy(update={"batch_size": 128})} | options
        return fit(data, reading=reading, **given)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return file(tmp_path_factory.mktemp("file") / "plain.h5")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """An uninterrupted streamed run and its folder."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return train(data, out=folder), folder


def prepared(data, reading, **options):
    """What `fit` trains on."""
    return prepared_by(train, data, reading, training=Training(round=1, max_rounds=1, batch_size=128), **options)


def epoch(batches):
    return [batches[step] for step in range(batches.per_epoch)]


def test_split_scalers_and_validation_rows_are_those_of_memory(data):
    stream, memory = prepared(data, STREAM), prepared(data, MEMORY)
    assert isinstance(stream.batches, streaming.Streamed)
    assert len(stream.batches.plan(0).windows) > 3, "the laws below are of several windows"
    assert torch.equal(stream.held_out.z, memory.held_out.z)
    assert torch.equal(stream.held_out.x["x"], memory.held_out.x["x"])
    for name, value in stream.scalers["x"].state_dict().items():
        torch.testing.assert_close(value, memory.scalers["x"].state_dict()[name], rtol=1e-6, atol=1e-7)
    assert stream.batches.per_epoch == memory.batches.per_epoch


def test_a_compressed_file_streams_to_the_same_posterior(data, whole, tmp_path):
    compressed = train(file(tmp_path / "gzip.h5", compression="gzip"))
    check_same(compressed, whole[0])
    with pytest.raises(AssertionError):
        check_same(train(data, seed=1), whole[0])
    with pytest.raises(AssertionError):
        check_same(train(data, MEMORY), whole[0])


def test_groups_stay_whole_in_a_stream(tmp_path):
    group = np.arange(4000) // 7
    data = file(tmp_path / "groups.h5", group=group)
    ready, held = prepared(data, STREAM), data.split(sbi_dgm.SplitRule()).validation
    trained = np.concatenate(ready.batches.blocks)
    assert not set(group[trained]) & set(group[held])
    assert len(set(group[held])) < len(held) / 6, "groups of seven rows"
    source = ready.batches.source
    assert torch.equal(ready.held_out.z, source.take(held).z)


def test_weights_follow_their_rows_with_mean_one_in_each_part(tmp_path):
    weight = np.random.default_rng(3).gamma(2, size=4000) * 7
    data = file(tmp_path / "weights.h5", proposal_weight=weight)
    for reading in (STREAM, MEMORY):
        ready = prepared(data, reading, seed=2)
        batches = epoch(ready.batches)
        mean = float(torch.cat([batch.weight for batch in batches]).double().mean())
        assert abs(mean - 1) < 0.02, "all but a remainder smaller than a batch"
        assert abs(float(ready.held_out.weight.double().mean()) - 1) < 1e-6
        assert np.ptp([float(batch.weight.mean()) for batch in batches]) > 0.05
        ratio = ready.held_out.weight.numpy() / weight[data.split(sbi_dgm.SplitRule()).validation]
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)


class InFileOrder:
    """Batches in the order of the file: the twin that must fail."""

    def __init__(self, source, rows, size, *seed, **options):
        self.rows, self.size, self.per_epoch = source.take(rows), size, len(rows) // size

    def __getitem__(self, step):
        first = step % self.per_epoch * self.size
        return self.rows[slice(first, first + self.size)]


def best(data, reading):
    how = Training(batch_size=128, round=26, max_rounds=8, patience=8, warmup=20, learning_rate=4e-3, ema=0.97)
    flow = SMALL.model_copy(update={"dropout": 0.0})
    posterior = train(data, reading, training=how, estimator=flow, split=sbi_dgm.SplitRule(validation=0.25))
    return posterior.record["best_validation_loss"]


def test_a_file_sorted_by_theta_is_learned_as_from_memory(tmp_path, monkeypatch):
    """Within 0.04 nats: both losses are of the same 1,000 rows, and four seeds differed by 0.002 to 0.007; read in the
    file's order they were worse by 0.11 to 0.15."""
    data = file(tmp_path / "sorted.h5", in_order=True)
    memory = best(data, MEMORY)
    assert abs(best(data, STREAM) - memory) < 0.04
    monkeypatch.setattr("sbi_dgm.preparation.Streamed", InFileOrder)
    assert best(data, STREAM) - memory > 0.08


@pytest.mark.parametrize("step", [3, 17, 26, 29])
def test_a_run_stopped_in_the_middle_of_an_epoch_resumes_to_the_same_weights(data, whole, tmp_path, step):
    with interrupted_at(step):
        train(data, out=tmp_path / "run")
    check_same(train(data, out=tmp_path / "run", resume=True), whole[0])
    assert curve(tmp_path / "run") == curve(whole[1])


CHILD = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import sbi_dgm, test_streamed_fit as toys
from sbi_dgm import loop

loop.CHECKPOINT_SECONDS = -1.0
original = loop.Run._step

def step(self, generator):
    {action}
    return original(self, generator)

loop.Run._step = step
toys.train(sbi_dgm.Simulations.open({path!r}), out={out!r})
print("trained")
"""


def child(action, path, out):
    """Train in a process of its own, which must end by itself."""
    code = CHILD.format(tests=str(Path(__file__).parent), action=action, path=str(path), out=str(out))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)


def test_a_run_killed_in_the_middle_of_an_epoch_resumes_to_the_same_weights(data, whole, tmp_path):
    done = child("if self.at.step == 18: os.kill(os.getpid(), signal.SIGKILL)", data.path, tmp_path / "run")
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (tmp_path / "run" / "checkpoint").exists()
    check_same(train(data, out=tmp_path / "run", resume=True), whole[0])
    assert curve(tmp_path / "run") == curve(whole[1])


def test_a_process_that_streamed_ends_by_itself(data, tmp_path):
    done = child("pass", data.path, tmp_path / "run")
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr


def test_a_process_whose_stream_broke_ends_by_itself(tmp_path):
    """A checksum that begins to fail when training has begun."""
    data = file(tmp_path / "a.h5")
    action = "self.at.step or toys.spoil(r'{}')".format(tmp_path / "a.h5")
    done = child(action, data.path, tmp_path / "run")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("sbi_dgm.errors.DataError: ")
    assert "dataset 'x/x', rows" in last
    assert "checksum fails" in last


def spoil(path):
    """Change a byte in every chunk of x but a few, so that some window fails before long."""
    with h5py.File(path) as opened:
        chunks = opened["x/x"].id
        places = [chunks.get_chunk_info(i).byte_offset for i in range(chunks.get_num_chunks())][::5]
    with Path(path).open("r+b") as raw:
        for place in places:
            raw.seek(place + 50)
            raw.write(os.urandom(8))


def test_a_file_that_is_broken_from_the_start_is_refused_before_the_run_folder_exists(tmp_path):
    data = file(tmp_path / "a.h5")
    spoil(tmp_path / "a.h5")
    with pytest.raises(DataError, match="dataset 'x/x', rows"):
        train(data, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
