"""Ensembles: members are runs of their own, in processes beside each other, and one posterior in the end.

Each has its folder, `members/0` and so on, and goes on from there; what is finished is not trained again, so that a
resumed ensemble may also have more members than before. A process for each core and one thread in each: members beside
each other use the cores better than threads do within a small network.
"""

import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from sbi_dgm import job
from sbi_dgm.errors import FileError, TimeLimitError
from sbi_dgm.estimators.ensemble import assembled
from sbi_dgm.executors import ended, engine, require_picklable
from sbi_dgm.files import held, read_json, write_json
from sbi_dgm.job import Job
from sbi_dgm.model import device_named
from sbi_dgm.posterior import Posterior, opened
from sbi_dgm.progress import Bar
from sbi_dgm.seeds import sequence

MEMBER = 9  # stream of members' seeds


def train(whole: Job, members: int, workers: int | None = None) -> Posterior:
    """Train the members that are missing, and put all together.

    Args:
        whole: the run; its seed is that of the first member.
        members: K, at least 2.
        workers: processes; 1 trains one after the other in this process. None: as many as cores, on a GPU 1.

    Raises:
        TimeLimitError: some members are not finished.

    """
    if whole.folder is not None:
        with held(whole.folder):
            return _train(whole, whole.folder, members, workers)
    with TemporaryDirectory(prefix="sbi_dgm-members-") as folder:
        return _train(whole, Path(folder), members, workers)


def finished(whole: Job, members: int) -> bool:
    """Whether its folder holds the very ensemble, trained to the end."""
    if whole.folder is None or whole.overwrite or not _result(whole, whole.folder).exists():
        return False
    if _members_in(whole.folder) != members:
        return False
    return all(job.finished(_member(whole, whole.folder, k)) for k in range(members))


def _train(whole: Job, folder: Path, members: int, workers: int | None) -> Posterior:
    began, result = time.monotonic(), _result(whole, folder)
    _refuse_others(whole, folder, members)
    jobs = [_member(whole, folder, k) for k in range(members)]
    missing = [one for one in jobs if not job.finished(one)]
    write_json(folder / "config.json", {"members": members, "seeds": [one.seed for one in jobs]})
    late = _done(missing, _processes(whole, len(missing), workers), members, whole)
    if late:
        raise TimeLimitError(f"{members - late} of {members} members are trained: resume=True (--resume) goes on.")
    posterior = _together(jobs, time.monotonic() - began)
    if whole.folder is not None:
        posterior.save(result, overwrite=True)
    return posterior.to(device_named(whole.device))


def _result(whole: Job, folder: Path) -> Path:
    return folder / f"{whole.learn}.safetensors"


def _refuse_others(whole: Job, folder: Path, members: int) -> None:
    """`FileError` where the folder holds something else than a smaller or unfinished ensemble."""
    result = _result(whole, folder)
    if whole.overwrite:
        result.unlink(missing_ok=True)
        job.forget_others(folder)
        return
    before = _members_in(folder)
    if before is None:
        raise FileError(
            f"{folder} holds a run of one network: pass overwrite=True (--overwrite), or name another folder."
        )
    if result.exists() and not (whole.resume and before < members):
        raise FileError(f"{folder} holds a finished run: pass overwrite=True (--overwrite), or name another folder.")


def _members_in(folder: Path) -> int | None:
    """Members of the ensemble in a folder: 0 where there is nothing, None where it is a run of one network."""
    config = folder / "config.json"
    return read_json(config).get("members") if config.exists() else 0


def _member(whole: Job, folder: Path, k: int) -> Job:
    own = whole.seed if k == 0 else int(sequence(whole.seed, MEMBER, k).generate_state(1)[0])
    return replace(whole, seed=own, folder=folder / "members" / str(k), progress=False)


def _processes(whole: Job, missing: int, workers: int | None) -> int:
    return min(missing, workers or (_cores() if device_named(whole.device).type == "cpu" else 1))


def _cores() -> int:
    """Of this process where the system tells, else of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _done(missing: list[Job], workers: int, members: int, whole: Job) -> int:
    """Train them; how many the time did not suffice for."""
    deadline, late = time.time() + whole.limit, 0
    jobs = [replace(one, beside=workers) for one in missing]
    if workers > 1:
        require_picklable(jobs[0], "a noise model or an embedding")
    with (
        engine(None, workers, len(jobs)) as pool,
        Bar(desc="members", total=members, disable=not whole.progress) as bar,
    ):
        bar.update(members - len(jobs))
        for _, result in ended(pool, partial(_trained if pool is None else _alone, deadline=deadline), jobs):
            in_time = result()
            late += not in_time
            bar.update(in_time)
    return late


def _alone(one: Job, deadline: float) -> bool:
    """In a process of its own."""
    torch.set_num_threads(1)
    return _trained(one, deadline)


def _trained(one: Job, deadline: float) -> bool:
    """Whether the time sufficed; the posterior lies in the member's folder."""
    try:
        job.train(replace(one, limit=deadline - time.time()))
    except TimeLimitError:
        return False
    return True


def _together(jobs: list[Job], seconds: float) -> Posterior:
    first, embedding = jobs[0], jobs[0].embedding
    own = embedding if isinstance(embedding, torch.nn.Module) else None
    members = [opened(str(one.result), prior=first.data.prior, embedding=own) for one in jobs]
    network = assembled([member.network for member in members], first.data.observables)
    kept = ("seed", "best_validation_loss", "best_step", "steps", "seconds")
    stated = [{"weight": 1 / len(jobs)} | {key: member.record[key] for key in kept} for member in members]
    loss = float(np.mean([member.record["best_validation_loss"] for member in members]))
    record = members[0].record | {"members": stated, "best_validation_loss": loss, "seconds": round(seconds, 1)}
    return Posterior(members[0].model._replace(members=len(jobs)), network, record, job.gate_for(first, network))
