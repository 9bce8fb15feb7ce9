"""Engines: each gives the file that this process gives; what they lack is said in one sentence."""

import os
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from campaign_toys import Toy, content, run

from sbi_dgm import Simulations, cli, executors, simulate
from sbi_dgm.errors import DataError, OptionError, SbiError
from sbi_dgm.executors import Jobs, Pool

ROWS, SHARD = 460, 100
LINEAR = ["simulate", "gaussian_linear", "-n", str(ROWS), "--shard-rows", str(SHARD), "--seed", "3"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What this process makes of the problem, by name."""
    folder = tmp_path_factory.mktemp("alone")
    simulate("gaussian_linear", ROWS, out=folder / "linear.h5", seed=3, shard_rows=SHARD, progress=False)
    with pytest.warns(UserWarning, match="simulations failed"):
        run(folder / "raises.h5", simulator=Toy("raises"))
    return {path.stem: content(path) for path in folder.iterdir()}


def test_a_pool_gives_results_in_the_order_of_their_tasks():
    with Pool(2) as pool:
        assert list(pool.map(pow, range(20), [2] * 20)) == [i * i for i in range(20)]
        assert len({pool.submit(os.getpid).result() for _ in range(20)} | {os.getpid()}) == 3


def test_an_error_of_a_task_is_its_own_and_costs_no_process():
    with Pool(1) as pool:
        before = pool.submit(os.getpid).result()
        with pytest.raises(ZeroDivisionError):
            pool.submit(divmod, 1, 0).result()
        assert pool.submit(os.getpid).result() == before


@pytest.mark.filterwarnings("ignore:.*given to another")
def test_a_task_that_ends_its_process_has_three_attempts_and_the_next_a_new_process():
    with Pool(1, timeout=0.3) as pool:
        before = pool.submit(os.getpid).result()
        with pytest.raises(BrokenExecutor, match=r"a worker died .*, 3 times"):
            pool.submit(os._exit, 1).result()
        with pytest.raises(BrokenExecutor, match=r"took longer than 0\.3 s, 3 times"):
            pool.submit(time.sleep, 60).result()
        assert pool.submit(os.getpid).result() != before


def test_a_task_within_the_time_limit_is_left_alone():
    with Pool(2, timeout=5) as pool:
        assert pool.submit(time.sleep, 0.2).result() is None


def leave_a_mark(path):
    try:
        path.with_name("begun").touch()
        time.sleep(60)
    finally:
        path.touch()


def test_an_error_beside_the_tasks_ends_them_at_once_and_lets_them_clean_up(tmp_path):
    start = time.monotonic()
    with suppress(KeyError), Pool(2) as pool:
        for _ in range(5):
            pool.submit(leave_a_mark, tmp_path / "cleaned")
        while not (tmp_path / "begun").exists():
            time.sleep(0.01)
        raise KeyError
    assert time.monotonic() - start < 10
    assert (tmp_path / "cleaned").exists()


UNGUARDED = """
import multiprocessing, os
from sbi_dgm.executors import Pool
multiprocessing.set_start_method("spawn", force=True)
with Pool(1) as pool:
    print(pool.submit(os.getpid).result())
"""


def test_a_script_without_a_guard_is_told_of_it_where_processes_are_spawned(tmp_path):
    (tmp_path / "bare.py").write_text(UNGUARDED)
    done = subprocess.run([sys.executable, tmp_path / "bare.py"], capture_output=True, text=True, check=False)
    assert "no worker process can start: call it under `if __name__ == '__main__':`" in done.stderr
    guarded = UNGUARDED.replace("multiprocessing.set", "if __name__ == '__main__':\n  multiprocessing.set")
    (tmp_path / "good.py").write_text(guarded.replace("\nwith", "\n  with").replace("\n    print", "\n      print"))
    done = subprocess.run([sys.executable, tmp_path / "good.py"], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 0


@pytest.mark.filterwarnings("ignore:.*simulations failed")
def test_dask_gives_the_same_file(tmp_path, alone):
    pytest.importorskip("distributed")
    with executors.dask("local") as engine:
        simulate(
            "gaussian_linear", ROWS, out=tmp_path / "a.h5", seed=3, shard_rows=SHARD, executor=engine, progress=False
        )
        run(tmp_path / "b.h5", simulator=Toy("raises"), executor=engine)
        with pytest.raises(DataError, match="'toy': observable 'x' has shape"):
            run(tmp_path / "c.h5", simulator=Toy("wide"), executor=engine)
    assert content(tmp_path / "a.h5") == alone["linear"]
    assert content(tmp_path / "b.h5") == alone["raises"]


def test_a_dask_address_without_a_scheduler_is_refused():
    pytest.importorskip("distributed")
    with (
        pytest.raises(OptionError, match="no Dask scheduler answers at 'nonsense://here'"),
        executors.dask("nonsense://here"),
    ):
        pass


def mpiexec():
    pytest.importorskip("mpi4py")
    found = Path(sys.executable).with_name("mpiexec")
    if not found.exists():
        pytest.skip("no mpiexec beside this Python")
    return str(found)


def test_mpi_gives_the_same_file(tmp_path, alone):
    words = [mpiexec(), "-n", "3", sys.executable, "-m", "mpi4py.futures", "-m", "sbi_dgm", *LINEAR, "--mpi"]
    done = subprocess.run([*words, "-o", "a.h5"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("a.h5: 460 rows, 0 failed")
    assert content(tmp_path / "a.h5") == alone["linear"]


def test_mpi_without_workers_says_how_to_start(tmp_path):
    mpiexec()
    words = [sys.executable, "-m", "sbi_dgm", *LINEAR, "--mpi", "-o", "a.h5"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "mpiexec -n 9 python -m mpi4py.futures -m sbi_dgm simulate ... --mpi" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:.*simulations failed")
@pytest.mark.parametrize("cluster", ["debug", pytest.param("local", marks=pytest.mark.slow)])
def test_submitit_gives_the_same_file_and_the_errors_of_its_jobs(tmp_path, monkeypatch, cluster):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    with executors.slurm("partition=any", cluster=cluster, folder=tmp_path / "logs") as engine:
        run(tmp_path / "a.h5", 60, Toy("nan"), executor=engine)
        with pytest.raises(DataError, match="'toy': observable 'x' has shape"):
            run(tmp_path / "b.h5", 40, Toy("wide"), executor=engine)
    run(tmp_path / "c.h5", 60, Toy("nan"))
    assert content(tmp_path / "a.h5") == content(tmp_path / "c.h5")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Jobs are looked after without a pause."""
    monkeypatch.setattr(executors, "POLL_S", 0.02)


class Job:
    """As submitit's, done when told so."""

    def __init__(self, task):
        self.task, self.ready, self.cancelled = task, False, False

    def done(self):
        return self.ready

    def result(self):
        return self.task()

    def cancel(self):
        self.cancelled = True


class Engine:
    """As submitit's."""

    def __init__(self):
        self.jobs = []

    def submit(self, function, *args):
        self.jobs.append(Job(lambda: function(*args)))
        return self.jobs[-1]


def test_jobs_end_in_any_order_and_what_is_cancelled_is_cancelled_there():
    engine = Engine()
    with Jobs(engine) as pool:
        first, second, third = (pool.submit(divmod, 7, k) for k in (2, 0, 3))
        engine.jobs[1].ready = engine.jobs[2].ready = True
        assert third.result(5) == (2, 1)
        with pytest.raises(ZeroDivisionError):
            second.result(5)
        assert not first.done()
        assert first.cancel()
    assert [job.cancelled for job in engine.jobs] == [True, False, False]


def test_a_job_that_is_lost_says_so():
    engine = Engine()
    with Jobs(engine) as pool:
        future = pool.submit(abs, 1)
        engine.jobs[0].task = lambda: (_ for _ in ()).throw(RuntimeError("job 17 timed out"))
        engine.jobs[0].ready = True
        with pytest.raises(RuntimeError, match="job 17 timed out"):
            future.result(5)


@pytest.mark.parametrize("options", ["partition", "partition=", "=cpu", "partition=cpu,,time=5"])
def test_slurm_options_are_pairs(options):
    pytest.importorskip("submitit")
    with pytest.raises(OptionError, match="write it as partition=cpu,time=60"), executors.slurm(options):
        pass


def test_an_unknown_slurm_option_is_refused(tmp_path):
    pytest.importorskip("submitit")
    with pytest.raises(OptionError, match="--slurm partitoin=cpu"):
        executors.slurm("partitoin=cpu", cluster="local", folder=tmp_path).__enter__()


def test_where_there_is_no_slurm_that_is_told(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OptionError, match=r"--slurm time=5: .*slurm"):
        executors.slurm("time=5", folder=tmp_path / "logs").__enter__()


@pytest.mark.parametrize(
    ("words", "module", "extra"),
    [
        (["--dask", "tcp://host:8786"], "distributed", "dask"),
        (["--mpi"], "mpi4py.futures", "mpi"),
        (["--slurm", "time=60"], "submitit", "slurm"),
    ],
)
def test_a_missing_extra_is_named(tmp_path, monkeypatch, capsys, words, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    assert cli.main([*LINEAR, *words, "-o", str(tmp_path / "a.h5")]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert told[0].endswith(f"pip install 'sbi_dgm[{extra}]'.")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--workers", "2", "--mpi"], "--mpi: not allowed with argument --workers"),
        (["--dask", "local", "--slurm", "time=5"], "--slurm: not allowed with argument --dask"),
        (["--timeout", "5"], "timeout holds for our own pool alone: pass workers=2 or more"),
        (["--workers", "2", "--timeout", "0"], r"timeout = 0.0: seconds above 0"),
    ],
)
def test_options_that_exclude_each_other_are_refused(tmp_path, capsys, words, told):
    assert cli.main([*LINEAR, *words, "-o", str(tmp_path / "a.h5")]) == 2
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


MINE = """
import numpy as np
from sbi_dgm import Observable, Parameter, Prior, Uniform

class Coin:
    name, observables = "coin", {"heads": Observable(())}
    prior = Prior([Parameter("p", Uniform(0, 1))])

    def __call__(self, theta, rng):
        return np.where(theta[:, 0] > 0.9, np.nan, rng.binomial(10, theta[:, 0]))

fair = Coin()
number = 7
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder with a module of one's own; how the command line is called there."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return lambda place: cli.main(
        ["simulate", place, "-n", "200", "-o", "a.h5", "--workers", "2", "--shard-rows", "50"]
    )


@pytest.mark.filterwarnings("always:.*simulations failed")
@pytest.mark.parametrize("place", ["mine:Coin", "mine:fair"])
def test_a_simulator_of_ones_own_runs_from_the_command_line_and_its_failures_are_told(mine, capsys, place):
    assert mine(place) == 0
    told = capsys.readouterr()
    failed = 200 - int(Simulations.open("a.h5").valid.sum())
    assert 5 < failed < 50
    assert f"a.h5: 200 rows, {failed} failed; theta = p; x = heads." in told.out
    assert f"sbi-dgm: note: a.h5: {failed} of 200 simulations failed (most often: heads is nan)." in told.err


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("nowhere:Coin", "'nowhere:Coin' cannot be imported"),
        ("mine:Cion", "'mine:Cion' cannot be imported"),
        ("mine:number", "'mine:number' is no simulator: it needs name, prior, observables"),
    ],
)
def test_what_is_no_simulator_is_refused(mine, capsys, place, told):
    assert mine(place) == 2
    assert told in capsys.readouterr().err
    assert not Path("a.h5.shards").exists()


def test_a_module_beside_the_caller_is_found_by_the_command_alone(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    script = Path(sys.executable).with_name("sbi-dgm")
    words = [script, "simulate", "mine:Coin", "-n", "20", "-o", "a.h5", "--workers", "2"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_errors_of_ours_travel_between_processes():
    with Pool(1) as pool, pytest.raises(SbiError, match="unknown simulator 'nothing'"):
        pool.submit(simulate, "nothing", 1, out="a.h5").result()
