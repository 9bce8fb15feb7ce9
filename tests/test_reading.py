"""Reading: memory or stream, by what is free to this process, its control groups and its device."""

import json

import numpy as np
import pytest
import torch
from training_toys import check_same, curve, fit, simulations

from sbi_dgm.data import reading
from sbi_dgm.data.reading import Reading, free_memory
from sbi_dgm.errors import OptionError, TrainingError
from sbi_dgm.loop import Run, Training

CPU = torch.device("cpu")
MIB = 2**20


class Machine:
    """A machine of 1000 MiB free, with control groups of either version."""

    def __init__(self, folder, monkeypatch):
        self.memory, self.own, self.groups = folder / "meminfo", folder / "cgroup", folder / "groups"
        self.memory.write_text(f"MemTotal: 9999999 kB\nMemFree: 1 kB\nMemAvailable: {1000 * 1024} kB\n")
        self.groups.mkdir()
        self.own.write_text("")
        for name, path in (("MEMORY", self.memory), ("OWN", self.own), ("CGROUPS", self.groups)):
            monkeypatch.setattr(reading, name, path)

    def group(self, version, place, limit, used, inactive=0):
        folder = self.groups / ("memory" if version == 1 else "") / place
        folder.mkdir(parents=True, exist_ok=True)
        names = reading.VERSIONS[version]
        (folder / names[0]).write_text(f"{limit if isinstance(limit, str) else limit * MIB}\n")
        (folder / names[1]).write_text(f"{used * MIB}\n")
        name = "total_inactive_file" if version == 1 else "inactive_file"
        (folder / "memory.stat").write_text(f"anon 5\nfile 77\n{name} {inactive * MIB}\n")

    def inside(self, version, place):
        self.own.write_text(f"0::/{place}\n" if version == 2 else f"5:cpu,cpuacct:/x\n4:memory:/{place}\n0::/\n")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path, monkeypatch)


def free():
    return free_memory(CPU) / MIB


def test_without_groups_the_machine_decides(machine):
    assert free() == 1000
    machine.own.unlink()
    assert free() == 1000


@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_of_the_own_group_counts_with_the_cache_that_can_be_dropped(machine, version):
    machine.inside(version, "job/7")
    machine.group(version, "job/7", 400, 300, inactive=150)
    assert free() == 250
    machine.group(version, "job/7", 40_000, 300)
    assert free() == 1000


@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_of_a_group_around_it_counts(machine, version):
    """As a batch system sets it: on the job, not on its steps."""
    machine.inside(version, "slurm/job/step/task")
    machine.group(version, "slurm/job", 200, 50)
    machine.group(version, "slurm/job/step/task", "max" if version == 2 else 2**40, 10)
    assert free() == 150


@pytest.mark.parametrize("version", [1, 2])
def test_inside_a_container_the_group_is_the_root(machine, version):
    machine.inside(version, "docker/abc")
    machine.group(version, "", 300, 100)
    assert free() == 200


def test_a_group_without_a_limit_says_nothing(machine):
    machine.inside(2, "a")
    machine.group(2, "a", "max", 100)
    assert free() == 1000


@pytest.mark.parametrize(("size", "mode"), [(499, "memory"), (500, "memory"), (501, "stream"), (2000, "stream")])
def test_auto_streams_what_takes_more_than_half(machine, size, mode):
    assert Reading().resolved(size * MIB, CPU).mode == mode
    machine.inside(2, "a")
    machine.group(2, "a", 200, 0)
    assert Reading().resolved(99 * MIB, CPU).mode == "memory"
    assert Reading().resolved(101 * MIB, CPU).mode == "stream"


def test_what_was_asked_for_stays(machine):
    assert Reading(mode="memory").resolved(10**15, CPU).mode == "memory"
    assert Reading(mode="stream").resolved(1, CPU).mode == "stream"
    assert Reading(buffer_mib=7).resolved(10**15, CPU) == Reading(mode="stream", buffer_mib=7)


def test_this_machine_has_memory():
    assert 0 < free_memory(CPU) < 2**50


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "disk"}, r"Reading\(mode='disk'\)"),
        ({"buffer_mib": 0}, r"Reading\(buffer_mib=0\)"),
        ({"validation_mib": -1}, r"Reading\(validation_mib=-1\)"),
        ({"buffer": 3}, "unknown option of Reading 'buffer': did you mean 'buffer_mib'"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(OptionError, match=words):
        Reading(**options)


def test_how_rows_are_read_is_said_and_recorded(machine, capsys):
    machine.memory.write_text("MemAvailable: 1 kB\n")
    assert fit(progress=True).record["reading"]["mode"] == "stream"
    assert "reading: stream, 0 MiB of training and validation rows" in capsys.readouterr().err
    machine.memory.write_text("MemAvailable: 1000000 kB\n")
    record = fit().record
    assert record["reading"] == {"mode": "memory", "buffer_mib": 256, "validation_mib": 64}
    assert "reading" not in capsys.readouterr().err


def interrupted(monkeypatch, folder, **options):
    """A run that stops after two rounds, with checkpoints."""
    original, calls = Run.validate, []

    def validate(self):
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr("sbi_dgm.loop.CHECKPOINT_SECONDS", -1.0)
        patch.setattr(Run, "validate", validate)
        with pytest.raises(KeyboardInterrupt):
            fit(out=folder, **options)


@pytest.mark.parametrize(("before", "now"), [(1, 10**6), (10**6, 1)], ids=["stream", "memory"])
def test_a_resumed_run_reads_as_it_did_whatever_is_free(machine, monkeypatch, tmp_path, before, now):
    mode = "stream" if before == 1 else "memory"
    whole = fit(reading=Reading(mode=mode), out=tmp_path / "whole")
    machine.memory.write_text(f"MemAvailable: {before} kB\n")
    interrupted(monkeypatch, tmp_path / "run")
    machine.memory.write_text(f"MemAvailable: {now} kB\n")
    resumed = fit(out=tmp_path / "run", resume=True)
    assert resumed.record["reading"]["mode"] == mode
    check_same(resumed, whole)
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")


def test_another_reading_is_refused_on_resuming_and_chosen_afresh_on_overwriting(machine, monkeypatch, tmp_path):
    interrupted(monkeypatch, tmp_path / "run")
    with pytest.raises(TrainingError, match="was started with reading = "):
        fit(out=tmp_path / "run", resume=True, reading=Reading(mode="stream"))
    machine.memory.write_text("MemAvailable: 1 kB\n")
    fit(out=tmp_path / "run", overwrite=True)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["reading"]["mode"] == "stream"


def test_validation_rows_of_a_stream_are_a_fixed_choice_where_they_take_too_much(monkeypatch):
    """30 000 numbers a row: 40 validation rows are 4.6 MiB, of which a MiB is 8."""
    data = simulations()
    wide = np.repeat(data.x(np.arange(400))["x"], 10_000, axis=1).astype("f4")
    big = type(data).from_arrays(data.theta, wide, prior=data.prior)
    seen = []
    original = Run.validate
    monkeypatch.setattr(Run, "validate", lambda self: seen.append(self.held_out.z.clone()) or original(self))

    def trained(**how):
        seen.clear()
        brief = Training(batch_size=32, round=2, max_rounds=2)
        record = fit(big, reading=Reading(**how), embedding=torch.nn.Linear(30_000, 3), training=brief).record
        return record["rows"], seen[0], all(torch.equal(z, seen[0]) for z in seen)

    rows, chosen, fixed = trained(mode="stream", validation_mib=1)
    assert fixed
    assert (rows["validation"], rows["validated"], len(chosen)) == (40, 8, 8)
    assert torch.equal(trained(mode="stream", validation_mib=1)[1], chosen)
    every = trained(mode="stream", validation_mib=64)
    assert (every[0]["validated"], len(every[1])) == (40, 40)
    assert trained(mode="memory", validation_mib=1)[0]["validated"] == 40
    held = {tuple(row) for row in every[1].tolist()}
    assert {tuple(row) for row in chosen.tolist()} < held
