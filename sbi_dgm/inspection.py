"""What a file holds, in words."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py

from sbi_dgm import artifact
from sbi_dgm.data.columns import ARRAYS
from sbi_dgm.data.foreign import UNREADABLE
from sbi_dgm.data.guess import command, guess
from sbi_dgm.data.native import is_ours
from sbi_dgm.data.simulations import Simulations
from sbi_dgm.data.tables import SUFFIXES
from sbi_dgm.data.tree import beside, tree
from sbi_dgm.errors import FileError, first_line
from sbi_dgm.files import matching
from sbi_dgm.parameters import Parameter
from sbi_dgm.samples import Samples


def describe(path: str | Path, **layout: Any) -> str:
    """The contents of a file, one fact a line: simulations, samples, a posterior, or any HDF5 file as a tree.

    Args:
        path: a file; of a glob the first is described.
        layout: of a foreign simulation file, as of `Simulations.open`.

    """
    if layout:
        return _simulations(Simulations.open(path, **layout))
    pattern, files = path, matching(path)
    path = files[0]
    if path.suffix in (*SUFFIXES, ".npz"):
        raise FileError(f"{path} is neither HDF5 nor a posterior.{ARRAYS}")
    if not h5py.is_hdf5(path):
        return _posterior(path)
    if is_ours(path):
        return _simulations(Simulations.open(path))
    try:
        with h5py.File(path, "r") as file:
            if "posterior" not in file:
                return _foreign(pattern, files, file)
    except UNREADABLE as error:
        raise FileError(f"{path} is no readable HDF5 file: {first_line(error)}.") from None
    return _samples(path)


def _foreign(pattern: str | Path, files: list[Path], file: h5py.File) -> str:
    layout, path = guess(files[0], file, len(files)), files[0]
    which = f", the first of {len(files)} files" if len(files) > 1 else ""
    lines = [f"{path}{which}: HDF5, not written by sbi_dgm, so without checksums of ours", *tree(file)]
    lines += beside(path)
    if layout is None:
        return "\n".join([*lines, "Nothing looks like theta and x: name them with --theta and --x."])
    said = f"theta looks like {', '.join(layout.theta)} and x like {', '.join(layout.x.values())}; train on them with"
    return "\n".join([*lines, said, f"  {command(pattern, layout)}"])


def _simulations(data: Simulations) -> str:
    columns = [f"  {name:<18} {c.shape} {c.dtype}" for name, c in data.columns.items()]
    source = ", ".join(f"{k} {v}" for k, v in data.header.simulator.items() if v != "") or "unknown"
    valid = int(data.valid.sum())
    lines = [f"{data.path}: {len(data)} simulations, {len(data) - valid} failed", f"simulator: {source}", "prior:"]
    prior = [f"  {_prior(p)}" for p in data.parameters] if data.prior else ["  none"]
    found = data.agreement()
    prior += [f"  theta is not drawn from it, by {'; '.join(found.differs)}"] * bool(found.differs)
    prior += [f"  failures depend on {', '.join(found.fails)}"] * bool(found.fails)
    return "\n".join([*lines, *prior, "datasets:", *columns])


def _prior(parameter: Parameter) -> str:
    unit = f" [{parameter.unit}]" if parameter.unit else ""
    return f"{parameter.name:<18} {parameter.prior or 'joint'}{unit}"


def _observable(described: Mapping[str, Any]) -> str:
    gone = "may be absent" if described.get("optional") else ""
    return " ".join(part for part in (str(tuple(described["shape"])), described["unit"], gone) if part)


def _posterior(path: Path) -> str:
    header = artifact.read(path)[0]
    record = header["record"]
    observables = [f"  {name:<18} {_observable(o)}" for name, o in header["observables"].items()]
    kind = "likelihood" if "roles" in record else "posterior"
    lines = [
        f"{path}: {kind} of {', '.join(p['name'] for p in header['reference']['parameters'])}",
        "given:",
        *observables,
    ]
    gate = header.get("trust")
    if gate is not None:
        compared = f"{gate['simulations']} validation simulations by {' and '.join(gate['compares'])}"
        lines.append(f"trust: observations are compared with {compared}; {gate['level']:.2%} of such are flagged")
    informed = record["roles"]["prior"] is not None if "roles" in record else header["informed"]
    lines += [f"estimator: {header['estimator']}", f"prior: {'known' if informed else 'not known'}"]
    if "repaired" in record:  # without the scores of its regions
        kept = ("data", "rows", "seed", "scale")
        record |= {"repaired": {key: record["repaired"][key] for key in kept}}
    return "\n".join(lines + [f"{key}: {value}" for key, value in record.items()])


def _samples(path: Path) -> str:
    samples = Samples.load(path)
    head = f"{path}: draws {samples.array.shape} of {', '.join(samples.names)}"
    if samples.trust is not None:
        head += f"\ntrust: {samples.trust}"
    return head if samples.array.ndim == 3 else f"{head}\n{summarised(samples)}"


def summarised(samples: Samples) -> str:
    """The summary of draws as text: each parameter to two digits of its sd, and at least to four in all."""
    table = samples.summary()
    digits = [_digits(*pair) for pair in table[["mean", "sd"]].to_numpy(float)]
    for name in table.select_dtypes("number"):
        table[name] = [f"{value:.{n}g}" for value, n in zip(table[name].to_numpy(float), digits, strict=True)]
    return table.to_string()


def _digits(mean: float, sd: float) -> int:
    """Significant digits of the mean that reach the second of the sd.

    >>> _digits(2459000.5, 0.0010), _digits(0.3, 0.1), _digits(0.0, 1.0)
    (11, 4, 4)
    """
    if not (sd > 0 and mean and math.isfinite(mean / sd)):
        return 4
    return max(4, 2 + math.floor(math.log10(abs(mean))) - math.floor(math.log10(sd)))
