"""A simulator that is an external program: run once for each row, in a scratch folder of its own."""

import os
import re
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import h5py
import numpy as np

from sbi_dgm.errors import OptionError, SbiError, unknown
from sbi_dgm.kinds import is_a, number, several, text
from sbi_dgm.parameters import Observable
from sbi_dgm.priors import Prior
from sbi_dgm.simulator import MisfitError, one_by_one, reason, shaped

PLACEHOLDER = re.compile(r"\{([^{}]+)\}")
OURS = ("seed", "scratch", "out")


class CommandSimulator:
    """An external program as a simulator.

    Each row has an empty scratch folder as its working folder, which is removed whatever happens. A program that ends
    with an error, takes too long, or writes nothing that can be read costs its row alone, and the file keeps why.

    Args:
        name: of the simulator.
        prior: of its parameters.
        observables: what it writes.
        command: a list of arguments, in which `{omega_m}` stands for a parameter (to the last digit), `{seed}` for a
            whole number below 2^31, `{scratch}` for the scratch folder and `{out}` for the output in it. An argument
            that begins with `./` or `../` is taken from the folder in which this object is made.
        output: the file that it writes, relative to the scratch folder: `.npy`; `.npz` or `.h5` with a dataset for
            each observable's name; numbers in `.txt`, `.dat` or `.csv`. Or a file for each observable, by name.
        timeout: seconds for one row, after which the program and all that it started are killed; None for no limit.
        version: of the program; the command where empty.

    Raises:
        OptionError: a command, a placeholder or an output that cannot work.

    >>> from sbi_dgm import Observable, Parameter, Prior, Uniform
    >>> prior = Prior([Parameter("a", Uniform(0, 1))])
    >>> program = ["sh", "-c", "echo {a} {a} > {out}"]
    >>> twice = CommandSimulator("twice", prior, {"x": Observable((2,))}, command=program, output="x.txt")
    >>> twice(np.array([[0.25]]), np.random.default_rng(0))["x"].tolist()
    [[0.25, 0.25]]

    """

    def __init__(
        self,
        name: str,
        prior: Prior,
        observables: Mapping[str, Observable],
        *,
        command: Sequence[object],
        output: str | Path | Mapping[str, str],
        timeout: float | None = None,
        version: str = "",
    ) -> None:
        command = [str(one) for one in several("command", command, "arguments, such as ['./toy', '{seed}']")]
        if not command:
            raise OptionError("the command is empty: give a list of arguments, such as ['./toy', '{seed}'].")
        self.name, self.prior = text("name", name), is_a("prior", prior, Prior, "a Prior")
        self.observables, self.timeout = _observables(observables), _seconds(timeout)
        self.version = text("version", version) or shlex.join(command)
        self.files = _files(self.observables, output)
        self.out = None if isinstance(output, Mapping) else str(output)
        _check(command, prior.names, OURS if self.out else OURS[:-1])
        self.command = tuple(str(Path(a).absolute()) if a.startswith(("./", "../")) else a for a in command)

    def __call__(self, theta: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Theta (B, D) -> the observables (B, ...) by name; `FailedRowsError` where some rows failed."""
        seeds = rng.integers(2**31, size=len(theta))
        return one_by_one(lambda i: self._row(theta[i], int(seeds[i])), len(theta))

    def _row(self, theta: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        with tempfile.TemporaryDirectory(prefix="sbi-dgm-", ignore_cleanup_errors=True) as scratch:
            values = {name: repr(float(value)) for name, value in zip(self.prior.names, theta, strict=True)}
            values |= {"seed": str(seed), "scratch": scratch, "out": str(Path(scratch, self.out or ""))}
            fill = partial(PLACEHOLDER.sub, lambda match: values.get(match[1], match[0]))
            self._run([fill(argument) for argument in self.command], scratch)
            found = {name: a for file, only in self.files.items() for name, a in self._read(Path(scratch, file), only)}
        return {name: a[0] for name, a in shaped(self.observables, found, 1).items()}

    def _run(self, arguments: list[str], scratch: str) -> None:
        """Run the program to its end; raise where that is no good one."""
        null = subprocess.DEVNULL
        with tempfile.TemporaryFile() as said:
            try:
                program = subprocess.Popen(  # noqa: S603  (a list of arguments, no shell)
                    arguments, cwd=scratch, stdin=null, stdout=null, stderr=said, start_new_session=True
                )
            except OSError as error:
                raise MisfitError(f"{self.command[0]!r} cannot be started: {error.strerror}") from None
            try:
                code = program.wait(self.timeout)
            except subprocess.TimeoutExpired:
                raise SbiError(f"{self._title} took longer than {self.timeout:g} s{_last_line(said)}") from None
            finally:
                _kill(program)
            if code:
                raise SbiError(f"{self._title} ended with {_fate(code)}{_last_line(said)}")

    @property
    def _title(self) -> str:
        return Path(self.command[0]).name

    def _read(self, path: Path, only: str) -> list[tuple[str, np.ndarray]]:
        """What a file holds, by observable's name, each as a batch of one row."""
        if not path.is_file():
            raise SbiError(f"{self._title} ended well and wrote no {path.name}")
        try:
            arrays = READERS[path.suffix](path)
        except Exception as error:  # noqa: BLE001  (a file can be broken in any way)
            raise SbiError(f"{path.name} cannot be read: {reason(error)}") from None
        shapes = {name: observable.shape for name, observable in self.observables.items()}
        return [(name or only, _shaped(a, shapes.get(name or only))[None]) for name, a in arrays.items()]


def _observables(given: Mapping[str, Observable]) -> dict[str, Observable]:
    found = dict(is_a("observables", given, Mapping, "a dict of observables by name"))
    for name, observable in found.items():
        is_a(f"observable {text('the name of an observable', name)!r}", observable, Observable, "an Observable")
    if not found:
        raise OptionError("there is no observable: say by observables what the program writes.")
    return found


def _seconds(timeout: float | None) -> float | None:
    seconds = None if timeout is None else number("timeout", timeout)
    if seconds is not None and not seconds > 0:
        raise OptionError(f"timeout = {seconds}: give seconds above 0, or None for no limit.")
    return seconds


def _files(observables: Mapping[str, Observable], output: str | Path | Mapping[str, str]) -> dict[str, str]:
    """File -> the observable that it holds where it names none."""
    alone = not isinstance(output, Mapping)
    given = {next(iter(observables)): output} if alone else output
    wanted = "a file in the scratch folder, or a dict of them by observable's name"
    names = {str(is_a("output", file, str | Path, wanted)): name for name, file in given.items()}
    for file in names:
        suffix = Path(file).suffix
        if Path(file).is_absolute() or ".." in Path(file).parts:
            raise OptionError(
                f"output {file!r} lies outside of the scratch folder, where rows would share it: name it there."
            )
        if suffix not in READERS:
            raise OptionError(unknown(f"format of output {file!r}", suffix, READERS))
        if alone and len(observables) > 1 and suffix not in NAMED:
            raise OptionError(
                f"output {file!r} holds one array, and there are {len(observables)} observables: write .npz or .h5, or "
                "give a file for each, by name."
            )
    if not alone and set(given) != set(observables):
        raise OptionError(f"output names {sorted(map(str, given))}, and the observables are {sorted(observables)}.")
    return names


def _check(command: Sequence[str], names: Sequence[str], ours: Sequence[str]) -> None:
    for name in names:
        if name in OURS:
            raise OptionError(f"parameter {name!r} has the name of a placeholder of ours: call it something else.")
    used = {word for argument in command for word in PLACEHOLDER.findall(argument)}
    for word in used:
        if word.isidentifier() and word not in (*names, *ours):
            raise OptionError(unknown("placeholder", word, (*names, *ours)))
    for name in names:
        if name not in used:
            raise OptionError(f"the command never takes parameter {name!r}: put {{{name}}} into one of its arguments.")


def _kill(program: "subprocess.Popen[bytes]") -> None:
    """The program and all that it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(program.pid, signal.SIGKILL)
    program.wait()


def _fate(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"signal {-code} ({signal.Signals(-code).name})"


def _last_line(said: IO[bytes]) -> str:
    """The last line of a program's standard error, after a colon; nothing where it is empty."""
    said.seek(max(0, said.seek(0, os.SEEK_END) - 4096))
    lines = said.read().decode(errors="replace").split("\n")
    return next((f": {line.strip()}" for line in reversed(lines) if line.strip()), "")


def _shaped(a: np.ndarray, shape: tuple[int, ...] | None) -> np.ndarray:
    """Numbers in one line or one column take the declared shape."""
    return a.reshape(shape) if shape is not None and a.ndim <= 1 and a.size == np.prod(shape) else a


def _hdf5(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path, "r") as file:
        return {name: np.asarray(item[()]) for name, item in file.items() if isinstance(item, h5py.Dataset)}


def _npz(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _npy(path: Path) -> dict[str, np.ndarray]:
    return {"": np.load(path, allow_pickle=False)}


def _text(path: Path, delimiter: str | None = None) -> dict[str, np.ndarray]:
    return {"": np.loadtxt(path, delimiter=delimiter)}


NAMED = {".npz": _npz, ".h5": _hdf5, ".hdf5": _hdf5}
READERS: Mapping[str, Callable[[Path], dict[str, Any]]] = MappingProxyType(
    {".npy": _npy, ".txt": _text, ".dat": _text, ".csv": partial(_text, delimiter=","), **NAMED}
)
