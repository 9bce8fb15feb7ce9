"""What a file holds, in words."""

from pathlib import Path

import h5py

from sbi_dgm import artifact
from sbi_dgm.data.simulations import Simulations
from sbi_dgm.errors import FileError
from sbi_dgm.files import require_file
from sbi_dgm.parameters import Parameter
from sbi_dgm.samples import Samples


def describe(path: str | Path) -> str:
    """The contents of a simulation file, a posterior file or a file of samples, one fact a line."""
    path = require_file(path)
    if not h5py.is_hdf5(path):
        return _posterior(path)
    try:
        with h5py.File(path, "r") as file:
            kind = "samples" if "posterior" in file else "simulations" if "theta" in file else ""
    except (OSError, RuntimeError) as error:
        raise FileError(f"{path} is no readable HDF5 file: {str(error).splitlines()[0]}.") from None
    if not kind:
        raise FileError(f"{path} is HDF5, but holds neither simulations nor samples of sbi_dgm.")
    return _samples(path) if kind == "samples" else _simulations(path)


def _simulations(path: Path) -> str:
    data = Simulations.open(path)
    columns = [f"  {name:<18} {c.shape} {c.dtype}" for name, c in data.columns.items()]
    source = ", ".join(f"{k} {v}" for k, v in data.header.simulator.items() if v != "") or "unknown"
    valid = int(data.valid.sum())
    lines = [f"{path}: {len(data)} simulations, {len(data) - valid} failed", f"simulator: {source}", "prior:"]
    prior = [f"  {_prior(p)}" for p in data.parameters] if data.prior else ["  none"]
    return "\n".join([*lines, *prior, "datasets:", *columns])


def _prior(parameter: Parameter) -> str:
    unit = f" [{parameter.unit}]" if parameter.unit else ""
    return f"{parameter.name:<18} {parameter.prior or 'joint'}{unit}"


def _posterior(path: Path) -> str:
    header = artifact.read(path)[0]
    record = header["record"]
    observables = [f"  {name:<18} {tuple(o['shape'])} {o['unit']}" for name, o in header["observables"].items()]
    lines = [
        f"{path}: posterior of {', '.join(p['name'] for p in header['reference']['parameters'])}",
        "given:",
        *observables,
    ]
    lines += [f"estimator: {header['estimator']}", f"prior: {'known' if header['informed'] else 'not known'}"]
    return "\n".join(lines + [f"{key}: {value}" for key, value in record.items()])


def _samples(path: Path) -> str:
    samples = Samples.load(path)
    head = f"{path}: draws {samples.array.shape} of {', '.join(samples.names)}"
    return (
        head if samples.array.ndim == 3 else f"{head}\n{samples.summary().to_string(float_format=lambda v: f'{v:.4g}')}"
    )
