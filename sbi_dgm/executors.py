"""Where a campaign's tasks run: `concurrent.futures` executors, each made in a `with` statement.

Our own pool replaces processes that die or take too long. The other engines are programs of their own; each is an
extra of the package, imported when asked for.
"""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import (
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    as_completed,
    wait,
)
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar

from sbi_dgm.errors import OptionError, SbiError, first_line
from sbi_dgm.kinds import number

ATTEMPTS = 3
GRACE_S = 2.0  # between asking a process to end and ending it
POLL_S = 0.5
Item = TypeVar("Item")
Result = TypeVar("Result")


class Pool(ThreadPoolExecutor):
    """Processes of this machine, each with a thread that hands it one task after the other.

    A process that dies or exceeds the time limit is replaced, and its task given to another; after three attempts
    the task ends with `BrokenExecutor`. An error inside the `with` statement ends all processes; so does the death
    of this one.

    Args:
        workers: processes.
        timeout: seconds for one task; None for no limit.

    >>> with Pool(2) as pool:
    ...     list(pool.map(abs, [-1, -2, -3]))
    [1, 2, 3]

    """

    def __init__(self, workers: int, timeout: float | None = None) -> None:
        super().__init__(workers)
        self._timeout, self._closing = timeout, False
        self._processes = [_Process() for _ in range(workers)]
        self._idle: SimpleQueue[int] = SimpleQueue()
        for slot in range(workers):
            self._idle.put(slot)

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """As for any executor."""
        return super().submit(self._insist, partial(function, *args, **kwargs))

    def _insist(self, task: Callable[[], Any]) -> Any:
        slot, fate = self._idle.get(), ""
        try:
            for _ in range(ATTEMPTS):
                if fate:
                    warnings.warn(f"{fate}: its task is given to another.", stacklevel=2)
                process = self._processes[slot]
                fate = process.run(task, self._timeout)
                if not fate:
                    return process.task.result()
                self._replace(slot, fate)
        finally:
            self._idle.put(slot)
        raise BrokenExecutor(f"{fate}, {ATTEMPTS} times")

    def _replace(self, slot: int, fate: str) -> None:
        _end([self._processes[slot]])
        if self._closing:
            raise BrokenExecutor(fate)
        self._processes[slot] = _Process()

    def __exit__(self, kind: Any, *rest: Any) -> None:
        self._closing = kind is not None
        if self._closing:
            self.shutdown(wait=False, cancel_futures=True)
            _end(self._processes)
        super().__exit__(kind, *rest)
        for process in self._processes:
            process.shutdown()


class _Process(ProcessPoolExecutor):
    """One process, and the task that it has."""

    def __init__(self) -> None:
        super().__init__(1, initializer=_begin, initargs=(os.getpid(),))
        self._ending = threading.Lock()
        self.task: Future[Any] = self.submit(os.getpid)
        try:
            pid = self.task.result()
        except BrokenExecutor:
            raise SbiError(
                "no worker process can start: call it under `if __name__ == '__main__':`, or use workers=1."
            ) from None
        self.process = next(child for child in multiprocessing.active_children() if child.pid == pid)

    def run(self, task: Callable[[], Any], timeout: float | None) -> str:
        """Have the task done; what happened to the process, or nothing."""
        try:
            self.task = self.submit(_interruptible, task)
            if wait([self.task], timeout).not_done:
                return f"a worker took longer than {timeout:g} s"
            ended = isinstance(self.task.exception(), BrokenExecutor | KeyboardInterrupt)
        except BrokenExecutor:
            ended = True
        return "a worker died (killed, or out of memory)" if ended else ""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As for any executor, from any thread."""
        with self._ending:
            super().shutdown(wait, cancel_futures=cancel_futures)


def _end(processes: Iterable[_Process]) -> None:
    """Ask the processes to clean up, then end them."""
    for one in processes:
        one.process.terminate()
    wait([one.task for one in processes], GRACE_S)
    for one in processes:
        one.process.kill()
        one.shutdown()


def _begin(parent: int) -> None:
    """In a new process: leave Ctrl-C to the parent, and do not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_follow, args=(parent, os.getppid()), daemon=True).start()


def _follow(parent: int, forker: int) -> None:
    while os.getppid() == forker and _runs(parent):
        time.sleep(POLL_S)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(1)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _interruptible(task: Callable[[], Any]) -> Any:
    """In a process of ours: a task that may clean up when it is ended."""
    signal.signal(signal.SIGTERM, _stop)
    try:
        return task()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _stop(*_: Any) -> NoReturn:
    """End the task, silently: HDF5 prints what is raised while it writes, and nobody asked this process."""
    sys.excepthook = sys.unraisablehook = lambda *_: None
    raise KeyboardInterrupt


def require_timeout(timeout: float | None, workers: int, executor: Executor | None) -> None:
    """`OptionError` for a time limit that nothing would keep."""
    if timeout is not None and (executor is not None or workers < 2):
        raise OptionError(
            "timeout holds for our own pool alone: pass workers=2 or more (--workers 2), and no executor."
        )
    if timeout is not None and not number("timeout", timeout) > 0:
        raise OptionError(f"timeout = {timeout}: seconds above 0 are needed.")


@contextmanager
def engine(executor: Executor | None, workers: int, tasks: int, timeout: float | None = None) -> Iterator[Any]:
    """What so many tasks are submitted to: the executor, or a pool of ours; None where they run here."""
    if executor is not None or workers == 1 or not tasks:
        yield executor
    else:
        with Pool(min(workers, tasks), timeout) as pool:
            yield pool


def ended(
    engine: Executor | None, function: Callable[[Item], Result], items: Iterable[Item]
) -> Generator[tuple[Item, Callable[[], Result]], None, None]:
    """Items as their tasks function(item) end, each with what gives the result or raises the error."""
    if engine is None:
        yield from ((item, partial(function, item)) for item in items)
        return
    tasks = {engine.submit(function, item): item for item in items}
    try:
        yield from ((tasks[task], task.result) for task in as_completed(tasks))
    finally:
        for task in tasks:
            task.cancel()


def require_picklable(thing: Any, title: str) -> None:
    """`OptionError` where a thing, called `title`, cannot go to another process."""
    try:
        pickle.dumps(thing)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise OptionError(
            f"{title} cannot be sent to other processes ({error}): define classes and functions at the top level of a "
            "module, or use workers=1."
        ) from None


@contextmanager
def dask(address: str) -> Iterator[Executor]:
    """A running Dask cluster by its scheduler's address ("tcp://host:8786"), or "local": one on this machine."""
    distributed = _extra("distributed", "dask")
    try:
        local = {"threads_per_worker": 1, "dashboard_address": None}
        client = distributed.Client(**local) if address == "local" else distributed.Client(address)
    except (OSError, ValueError) as error:
        raise OptionError(f"no Dask scheduler answers at {address!r} ({error}).") from None
    with client:
        yield client.get_executor(pure=False)


@contextmanager
def mpi(_: bool = True) -> Iterator[Executor]:
    """The other processes of `mpiexec -n N python -m mpi4py.futures ...`; the first hands out the tasks."""
    futures = _extra("mpi4py.futures", "mpi")
    if getattr(import_module("mpi4py.futures._core"), "SharedPool", futures) is None:
        raise OptionError(
            "--mpi needs workers: `mpiexec -n 9 python -m mpi4py.futures -m sbi_dgm simulate ... --mpi` has eight."
        )
    with futures.MPIPoolExecutor() as executor:
        yield executor


@contextmanager
def slurm(options: str, *, cluster: str = "slurm", folder: str | Path = "slurm_logs") -> Iterator[Executor]:
    """Slurm jobs, one a task, by submitit.

    Args:
        options: of sbatch, such as "partition=cpu,time=60,mem=4G".
        cluster: "local" runs the jobs here.
        folder: of the jobs' logs, on the file system that they share.

    """
    submitit = _extra("submitit", "slurm")
    settings = _settings(options)
    try:
        engine = submitit.AutoExecutor(folder, cluster=cluster)
        engine.update_parameters(**{f"slurm_{name}": value for name, value in settings.items()})
    except (RuntimeError, NameError, ValueError, TypeError) as error:
        raise OptionError(f"--slurm {options}: {first_line(error)}.") from None
    with Jobs(engine) as executor:
        yield executor


def _settings(options: str) -> dict[str, Any]:
    pairs = [option.partition("=") for option in options.split(",")]
    for name, equals, value in pairs:
        if not (name and equals and value):
            raise OptionError(f"--slurm {options}: write it as partition=cpu,time=60.")
    return {name.strip().replace("-", "_"): int(value) if value.isdigit() else value for name, _, value in pairs}


class Jobs(Executor):
    """Submitit's jobs as futures: a thread looks after them.

    Args:
        engine: an executor of submitit.

    """

    def __init__(self, engine: Any) -> None:
        self._engine, self._jobs = engine, {}
        self._closed = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        """As for any executor."""
        future: Future[Any] = Future()
        self._jobs[future] = self._engine.submit(_carried, partial(function, *args, **kwargs))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As for any executor; the jobs of cancelled futures are cancelled."""
        for future in list(self._jobs) if cancel_futures else []:
            future.cancel()
        self._closed.set()
        if wait:
            self._watcher.join()

    def _watch(self) -> None:
        while self._jobs or not self._closed.is_set():
            for future, job in list(self._jobs.items()):
                if future.cancelled() or job.done():
                    _settle(future, job)
                    del self._jobs[future]
            time.sleep(POLL_S)


def _settle(future: "Future[Any]", job: Any) -> None:
    if not future.set_running_or_notify_cancel():
        job.cancel()
        return
    try:
        value, error = job.result()
    except Exception as lost:  # noqa: BLE001  (whatever became of the job)
        value, error = None, lost
    future.set_exception(error) if error is not None else future.set_result(value)


def _carried(task: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """The task's result, or its exception, which submitit would turn into text."""
    try:
        return task(), None
    except Exception as error:  # noqa: BLE001  (raised again by the future)
        return None, error


def _extra(module: str, extra: str) -> Any:
    try:
        return import_module(module)
    except (ImportError, RuntimeError) as error:
        raise OptionError(f"--{extra} cannot be used ({error}): pip install 'sbi_dgm[{extra}]'.") from None


ENGINES: Mapping[str, Callable[[Any], AbstractContextManager[Executor]]] = MappingProxyType(
    {"dask": dask, "mpi": mpi, "slurm": slurm}
)
