"""Damaged files: bytes flipped, cut, filled, swapped, and structures that disagree; and a worker that tries them.

`python mutants.py KIND FOLDER NAME...` runs the command line on FOLDER/NAME and prints one line of JSON for each; HDF5
may end the process or loop for ever, which whoever started it sees.
"""

import contextlib
import io
import json
import selectors
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np

from sbi_dgm import Normal, Parameter, Prior, Simulations, Uniform
from sbi_dgm.cli import main
from sbi_dgm.data import native
from sbi_dgm.errors import SbiError

ROWS = 120
PRIOR = Prior([Parameter("a", Uniform(0, 2), r"\alpha", "km"), Parameter("b", Normal(0, 1), unit="mag")])
LAYOUT = {"theta": "params", "x": "maps/kappa,maps/flux,events,table", "group": "id"}
WORDS = [f"--{key}={value}" for key, value in LAYOUT.items()] + ["--event-weight=w"]
TINY = ["max_rounds=1", "round=2", "batch_size=32"]
TINY = [word for setting in TINY for word in ("--set", f"training.{setting}")]
TINY += ["--set", "estimator.transforms=1", "--set", "estimator.hidden=4", "--set", "estimator.map=affine"]
SECONDS = 30  # for one file


def native_file(path: Path) -> Path:
    """A simulation file of ours with several chunks in each dataset."""
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(2, ROWS, 3)).astype(np.float32)
    columns = {
        "event_weight": rng.uniform(0.5, 1.5, ROWS),
        "proposal_weight": rng.uniform(0.5, 2, ROWS),
        "group": np.arange(ROWS) // 2,
        "split": rng.choice(3, ROWS, p=[0.7, 0.2, 0.1]),
    }
    theta = PRIOR.sample(12, 0).repeat(10, axis=0)
    x = {"u": normal[0], "w": normal[1], "n": rng.poisson(5, ROWS)}
    before, native.CHUNK_BYTES = native.CHUNK_BYTES, 512
    try:
        Simulations.create(path, theta, x, prior=PRIOR, **columns)
    finally:
        native.CHUNK_BYTES = before
    return path


def foreign_file(path: Path) -> Path:
    """A file of someone else's: chunks, names, sets, a table, weights, groups."""
    rng = np.random.default_rng(0)
    count = rng.poisson(3, ROWS) + 1
    table = np.zeros(ROWS, [("p", "f8"), ("q", "i4")])
    table["p"] = rng.normal(size=ROWS)
    table["q"] = rng.poisson(5, ROWS)
    with h5py.File(path, "w") as file:
        file["params"] = rng.random((12, 2)).repeat(10, axis=0)
        file["params"].attrs["names"] = ["om", "s8"]
        maps = rng.normal(size=(ROWS, 4, 4)).astype(np.float32)
        file.create_dataset("maps/kappa", data=maps, chunks=(16, 4, 4), compression="gzip")
        file["maps/flux"] = rng.normal(size=ROWS)
        file["events/values"] = rng.normal(size=(count.sum(), 2))
        file["events/offsets"] = np.concatenate([[0], np.cumsum(count)])
        file["w"], file["id"], file["table"] = rng.uniform(0.5, 1.5, ROWS), np.arange(ROWS), table
    return path


def damaged(raw: bytes, seed: int) -> bytes:
    """One of six kinds of damage at a random place."""
    rng, content, size = np.random.default_rng([11, seed]), bytearray(raw), len(raw)
    place, block = int(rng.integers(size)), 2 ** int(rng.integers(3, 13))
    if seed % 6 == 0:
        content[place] ^= 1 << int(rng.integers(8))
    elif seed % 6 == 1:
        content[place] = int(rng.integers(256))
    elif seed % 6 == 2:
        part = slice(place, place + int(rng.integers(1, 9)))
        content[part] = rng.bytes(len(content[part]))
    elif seed % 6 == 3:
        del content[place:]
    elif seed % 6 == 4:
        part = slice(place // block * block, place // block * block + block)
        content[part] = bytes([rng.choice([0, 255])]) * len(content[part])
    else:
        one, two = (slice(int(k) * block, int(k + 1) * block) for k in rng.choice(size // block, 2))
        content[one], content[two] = content[two], content[one]
    return bytes(content)


def put(name, place, value):
    def change(file):
        file[name][place] = value

    return change


def instead(name, make):
    """A dataset replaced by something else."""

    def change(file):
        values = file[name][()]
        del file[name]
        made = make(values)
        if made is not None:
            file[name] = made

    return change


def linked(name, link):
    def change(file):
        del file[name]
        file[name] = link

    return change


def named(value):
    def change(file):
        file.get("params", file).attrs["names"] = value

    return change


def circle(file):
    file["loop"] = h5py.SoftLink("/")
    file.create_group("deep")["up"] = file["/"]


def texts(values):
    return np.array([str(v) for v in values.ravel()[:ROWS]], dtype=h5py.string_dtype())


def ragged(values):
    offsets = values.copy()
    offsets[40], offsets[41] = offsets[41] + 7, offsets[40]
    return offsets


KINDS = {
    "gone": lambda values: None,
    "short": lambda values: values[:-1],
    "empty": lambda values: values[:0],
    "scalar": lambda values: values.ravel()[0],
    "text": texts,
    "bytes": lambda values: texts(values).astype("S20"),
    "complex": lambda values: values.astype(complex) if values.dtype.names is None else values["p"] * 1j,
    "long": lambda values: np.concatenate([values, values]),
    "deep": lambda values: values[..., None, None],
    "none": lambda values: h5py.Empty("f4"),
    "boolean": lambda values: np.ones(len(values), bool),
    "single": lambda values: np.zeros(values.shape, np.float32),
    "integer": lambda values: np.zeros(values.shape, np.int16),
    "swapped": lambda values: values[::-1] if values.dtype.names else values[::-1].astype(values.dtype.newbyteorder()),
}
NAMES = {
    "twice": ["a", "a"],
    "three": ["a", "b", "c"],
    "not utf8": np.array([b"\xff\xfe", b"\xc3("]),
    "number": 5,
    "nothing": h5py.Empty("f4"),
    "json twice": '["a", "a"]',
    "json broken": '["a", ',
    "json nested": '[["a"], ["b"]]',
    "blank": "",
}
LINKS = {
    "nowhere": h5py.SoftLink("/nothing/there"),
    "another file": h5py.ExternalLink("nothing.h5", "/x"),
    "itself": h5py.SoftLink("/theta"),
    "root": h5py.SoftLink("/"),
}


def structures(datasets, numbers):
    """Changes by name, made with h5py: of every dataset's kind and link, of numbers, names, and a circle of links."""
    found = {f"{d} {kind}": instead(d, make) for d in datasets for kind, make in KINDS.items()}
    found |= {f"{d} links {to}": linked(d, link) for d in datasets for to, link in LINKS.items()}
    found |= {f"{d} {value}": put(d, 7, value) for d in numbers for value in (np.nan, np.inf, 1e30, -1.0)}
    return found | {f"names {label}": named(value) for label, value in NAMES.items()} | {"circle": circle}


DATASETS = {
    "native": (["theta", "x/u", "valid", "event_weight", "split"], ["theta", "x/u", "event_weight"]),
    "foreign": (["params", "maps/flux", "events/values", "events/offsets", "w", "id"], ["params", "maps/flux", "w"]),
}


def made(folder: Path, kind: str, seeds: range) -> list[str]:
    """Names of the damaged files in `folder`, of which whole.h5 is the original."""
    raw = (folder / "whole.h5").read_bytes()
    for seed in seeds:
        (folder / f"bytes {seed}.h5").write_bytes(damaged(raw, seed))
    changes = structures(*DATASETS[kind])
    if kind == "foreign":
        changes |= {"ragged": instead("events/offsets", ragged), "table gone": instead("table", KINDS["gone"])}
    for label, change in changes.items():
        path = shutil.copy(folder / "whole.h5", folder / f"{label.replace('/', '_')}.h5")
        with h5py.File(path, "r+") as file:
            change(file)
    return [f"bytes {seed}.h5" for seed in seeds] + [f"{label.replace('/', '_')}.h5" for label in changes]


def everything(path: Path, kind: str) -> tuple:
    """All that the library would use of a file."""
    data = Simulations.open(path) if kind == "native" else Simulations.open(path, weight={"event": "w"}, **LAYOUT)
    columns = {name: column[:] for name, column in data.columns.items()}
    return {n: (v.dtype.str, v.shape, v.tobytes()) for n, v in columns.items()}, data.header, data.prior


def run(*words: object) -> dict:
    """The command line in this process: exit code and lines of stderr; code 1 and the error where it has one."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main([str(word) for word in words])
        except SystemExit as end:
            code = end.code
        except Exception as error:  # noqa: BLE001  (that is what is looked for)
            return {"code": 1, "stderr": [repr(error)]}
    lines = [line.split("\r")[-1] for line in err.getvalue().split("\n")]
    return {"code": code, "stderr": [line for line in lines if line.strip() and not line.startswith("training:")]}


def tried(folder: Path, name: str, kind: str, train: bool) -> dict:
    """What inspection, training and reading make of a file."""
    path, layout = folder / name, WORDS if kind == "foreign" else []
    outcome = {"name": name, "inspect": run("inspect", path), "layout": run("inspect", path, *layout)}
    if train and outcome["layout"]["code"] == 0:
        outcome["train"] = run("train", path, *layout, "-o", folder / "run", "--device", "cpu", "--overwrite", *TINY)
    try:
        with warnings.catch_warnings(action="ignore"):
            same = everything(path, kind) == everything(folder / "whole.h5", kind)
            outcome["read"] = "same" if same else "different"
    except SbiError as error:
        outcome["read"] = str(error)
    return outcome


def outcomes(kind: str, folder: Path, names: list[str]) -> list[dict]:
    """What becomes of each file, in processes of their own; "died" where one took the process with it."""
    found: list[dict] = []
    while len(found) < len(names):
        rest = names[len(found) :]
        command = [sys.executable, __file__, kind, str(folder), *rest]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            lines = _lines(process)
            found += lines
        finally:
            process.kill()
            process.wait()
        if len(lines) < len(rest):
            found.append({"name": rest[len(lines)], "died": process.returncode})
    return found


def _lines(process) -> list[dict]:
    """The lines of a worker, until it ends or says nothing for SECONDS."""
    lines, chosen = [], selectors.DefaultSelector()
    chosen.register(process.stdout, selectors.EVENT_READ)
    while chosen.select(timeout=SECONDS) and (line := process.stdout.readline()):
        lines.append(json.loads(line))
    return lines


if __name__ == "__main__":
    kind, folder, *names = sys.argv[1:]
    for name in names:
        train = not name.startswith("bytes") or int(name.split()[1].removesuffix(".h5")) % 25 == 0
        sys.stdout.write(json.dumps(tried(Path(folder), name, kind, train)) + "\n")
        sys.stdout.flush()
