"""Writers of simulation files in the shapes that the field gives them, small, each with the rows that it stands for.

`Written` keeps the rows as plain arrays, made without the library, so that a native file of them can be compared.
"""

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from sbi_dgm import Normal, Observable, Parameter, Prior, Simulations, Uniform

ROWS, UNIVERSES, MAPS = 150, 20, 15
NAMES = ["omega_m", "sigma_8"]
LOW, HIGH = np.array([0.1, 0.6]), np.array([0.5, 1.0])
TABLE = {"omega_m": {"uniform": [0.1, 0.5], "label": "\\Omega_m"}, "sigma_8": {"uniform": [0.6, 1.0]}}
PRIOR = Prior([Parameter("omega_m", Uniform(0.1, 0.5), "\\Omega_m"), Parameter("sigma_8", Uniform(0.6, 1.0))])
TOML = '[prior]\nomega_m = {uniform = [0.1, 0.5], label = "\\\\Omega_m"}\nsigma_8 = {uniform = [0.6, 1.0]}\n'


@dataclass
class Written:
    """A layout on the disk and its rows.

    Attributes:
        path: the file, or a glob.
        places: `theta`, `x`, ... as `Simulations.open` takes them.
        theta: (N, D), one row for each row of x.
        names: of the parameters.
        x: by the name that the observable should get.
        columns: group and weights, where there are any.
        prior: that the file or a TOML file tells, or None.
        told: words of the command line beyond the places.

    """

    path: Path
    places: dict[str, Any]
    theta: np.ndarray
    names: list[str]
    x: dict[str, np.ndarray]
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    prior: Prior | None = None
    told: list[str] = field(default_factory=list)
    observables: dict[str, Observable] = field(default_factory=dict)

    @property
    def words(self):
        """For the command line."""
        places = {k: v for k, v in self.places.items() if k != "weight"}
        places |= {f"{kind}-weight": place for kind, place in self.places.get("weight", {}).items()}
        return [word for key, place in places.items() for word in (f"--{key}", place)] + self.told

    def open(self, **more):
        """Through the reader of foreign files."""
        return Simulations.open(self.path, **self.places, **({"prior": self.prior} if self.prior else {}), **more)

    def native(self, path):
        """The same rows in a file of ours, from the arrays."""
        described = {"prior": self.prior} if self.prior else {"names": self.names}
        return Simulations.create(
            path, self.theta, self.x, observables=self.observables or None, **described, **self.columns
        )


def universes(rows, seed=0):
    """Parameters (rows, 2), uniform between LOW and HIGH."""
    return LOW + (HIGH - LOW) * np.random.default_rng(seed).random((rows, 2))


def vectors(theta, width=3, seed=1):
    """Noisy numbers (N, width) that depend on theta."""
    rng = np.random.default_rng(seed)
    return theta[:, :1] + theta[:, 1:2] * np.arange(width) + 0.1 * rng.normal(size=(len(theta), width))


def plain(folder):
    theta = universes(ROWS)
    x = vectors(theta)
    with h5py.File(folder / "sims.h5", "w") as file:
        file["theta"], file["x"] = theta, x
    names = ["theta_0", "theta_1"]
    return Written(folder / "sims.h5", {"theta": "theta", "x": "x"}, theta, names, {"x": x})


def camels(folder, header="comment", rows_named=True):
    """Maps of U universes behind each other, the parameters in a text file beside."""
    theta = universes(UNIVERSES)
    each = np.repeat(theta, MAPS, axis=0)
    maps = vectors(each, 16).reshape(-1, 4, 4).astype(np.float32)
    with h5py.File(folder / "maps.h5", "w") as file:
        file.create_dataset("maps", data=maps, chunks=(7, 4, 4), compression="gzip", shuffle=True)
    lead = [f"LH_{i} " if rows_named else "" for i in range(UNIVERSES)]
    title = {"comment": f"#{'Name ' * rows_named}omega_m sigma_8\n", "line": "name omega_m sigma_8\n", "none": ""}
    lines = [f"{name}{a!r} {b!r}\n" for name, (a, b) in zip(lead, theta.tolist(), strict=True)]
    (folder / "params.txt").write_text((title[header] if rows_named else title[header].replace("name ", ""))
                                       + "".join(lines))  # fmt: skip
    names = ["theta_0", "theta_1"] if header == "none" else NAMES
    places = {"theta": "params.txt", "x": "maps"}
    group = {"group": np.repeat(np.arange(UNIVERSES), MAPS)}
    return Written(folder / "maps.h5", places, each, names, {"maps": maps}, group)


def camels_with_prior(folder):
    """The same, and a prior in another order than the table's columns."""
    made = camels(folder, rows_named=False)
    (folder / "prior.toml").write_text("\n".join(reversed(TOML.splitlines()[1:])).join(["[prior]\n", "\n"]))
    made.theta, made.prior = made.theta[:, ::-1].copy(), Prior(list(reversed(PRIOR.parameters)))
    made.names, made.told = NAMES[::-1], ["--config", str(folder / "prior.toml")]
    return made


def dingo(folder):
    """A compound table of parameters, complex polarizations."""
    theta = universes(ROWS)
    rng = np.random.default_rng(3)
    table = np.zeros(ROWS, [("omega_m", "<f4"), ("sigma_8", "<f8")])
    table["omega_m"], table["sigma_8"] = theta.T
    waves = {n: vectors(theta, 5, s) + 1j * rng.normal(size=(ROWS, 5)) for n, s in (("h_cross", 4), ("h_plus", 5))}
    with h5py.File(folder / "waveforms.hdf5", "w") as file:
        file["parameters"] = table
        for name, values in waves.items():
            file.create_dataset(f"polarizations/{name}", data=values.astype(np.complex64), chunks=(11, 2))
        file["settings"] = "{'approximant': 'none'}"
    pairs = {n: np.stack([w.real, w.imag], -1).astype(np.float32) for n, w in waves.items()}
    seen = np.column_stack([table["omega_m"].astype(float), table["sigma_8"]])
    return Written(folder / "waveforms.hdf5", {"theta": "parameters", "x": "polarizations"}, seen, NAMES, pairs)


def madminer(folder):
    """Events with weights and names as fixed-length bytes; many events for each of a few parameter points."""
    points = universes(8, 2)
    theta = np.repeat(points, 30, axis=0)
    x = vectors(theta, 2)
    weights = np.random.default_rng(4).uniform(0.5, 1.5, len(theta))
    with h5py.File(folder / "events.h5", "w") as file:
        file["samples/theta"], file["samples/observations"], file["samples/weights"] = theta, x, weights
        file["parameters/names"] = np.array(NAMES, "S256")
        file["observables/names"] = np.array(["pt", "deta"], "S256")
    places = {"theta": "samples/theta", "x": "samples/observations", "weight": {"event": "samples/weights"}}
    shape = {"observations": Observable((2,), names=("pt", "deta"))}
    columns = {"event_weight": weights}
    return Written(folder / "events.h5", places, theta, NAMES, {"observations": x}, columns, observables=shape)


def ragged(folder):
    """Particles of varying number, end to end."""
    theta = universes(ROWS)
    rng = np.random.default_rng(5)
    counts = rng.integers(0, 5, ROWS)
    counts[3] = 5
    ends = np.concatenate([[0], np.cumsum(counts)])
    values = rng.normal(size=(ends[-1], 2)).astype(np.float32)
    sets = np.zeros((ROWS, 5, 3), np.float32)
    for row, (first, last) in enumerate(pairwise(ends)):
        sets[row, : last - first, :2], sets[row, : last - first, 2] = values[first:last], 1
    with h5py.File(folder / "particles.h5", "w") as file:
        file["theta"] = theta
        file.create_dataset("particles/values", data=values, chunks=(13, 2))
        file["particles/offsets"] = ends.astype(np.uint64)
    shape = {"particles": Observable((5, 3), names=("feature_0", "feature_1", "present"), kind="set")}
    names = ["theta_0", "theta_1"]
    places = {"theta": "theta", "x": "particles"}
    return Written(folder / "particles.h5", places, theta, names, {"particles": sets}, observables=shape)


def group_of_columns(folder):
    """One dataset for each number."""
    theta = universes(ROWS)
    x = vectors(theta, 3)
    with h5py.File(folder / "columns.h5", "w") as file:
        for i, name in enumerate(NAMES):
            file[f"params/{name}"] = theta[:, i]
        for i, name in enumerate("abc"):
            file[f"spectrum/{name}"] = x[:, i]
    shape = {"spectrum": Observable((3,), names=("a", "b", "c"))}
    places = {"theta": "params", "x": "spectrum"}
    return Written(folder / "columns.h5", places, theta, NAMES, {"spectrum": x}, observables=shape)


def pandas_records(folder):
    """What pandas' to_records writes: one compound table, the index in front; big-endian, mixed dtypes."""
    theta = universes(ROWS)
    x = vectors(theta, 2)
    table = np.zeros(ROWS, [("index", "i8"), *((n, ">f8") for n in NAMES), ("u", ">f4"), ("v", "i4"), ("w", "f8")])
    table["index"] = np.arange(ROWS)
    table["omega_m"], table["sigma_8"] = theta.T
    table["u"], table["v"], table["w"] = x[:, 0], np.round(10 * x[:, 1]), x[:, 1] ** 2
    with h5py.File(folder / "table.h5", "w") as file:
        file["table"] = table
    seen = {n: table[n].astype(table.dtype[n].newbyteorder("=")) for n in "uvw"}
    places = {"theta": "table/sigma_8,table/omega_m", "x": "table/u,table/v,table/w"}
    return Written(folder / "table.h5", places, theta[:, ::-1].copy(), NAMES[::-1], seen)


def several(folder):
    """Observables of different shape and dtype, in odd chunks, with labels that say which rows belong together."""
    theta = universes(ROWS)
    rng = np.random.default_rng(6)
    x = {
        "image": vectors(theta, 6).reshape(-1, 2, 3).astype(np.float16),
        "count": rng.poisson(20 * theta[:, 0]).astype(">u2"),
        "number": vectors(theta, 1)[:, 0].astype(">f8"),
        "flag": theta[:, 1] > 0.8,
    }
    group = rng.integers(0, 40, ROWS)
    with h5py.File(folder / "several.h5", "w") as file:
        file.create_dataset("labels", data=theta, chunks=(37, 1), compression="lzf")
        file["labels"].attrs["names"] = NAMES
        file.create_dataset("obs/image", data=x["image"], chunks=(9, 1, 3), shuffle=True, compression="gzip")
        file.create_dataset("obs/count", data=x["count"], chunks=(16,), fletcher32=True)
        file["obs/number"], file["obs/flag"] = x["number"], x["flag"]
        file["run"] = np.array([f"run {g}" for g in group], object)
    seen = {n: a.astype(a.dtype.newbyteorder("=")) for n, a in x.items()}
    places = {"theta": "labels", "x": "obs/image,n=obs/count,obs/number,obs/flag", "group": "run"}
    seen["n"] = seen.pop("count")
    seen = {name: seen[name] for name in ("image", "n", "number", "flag")}
    groups = np.unique(np.array([f"run {g}" for g in group]), return_inverse=True)[1]
    return Written(folder / "several.h5", places, theta, NAMES, seen, {"group": groups})


def split_files(folder):
    """Twelve files of unequal length, numbered without zeros; theta with weights inside each."""
    theta = universes(ROWS)
    x, weight = vectors(theta), np.random.default_rng(7).uniform(0.5, 2, ROWS)
    edges = np.linspace(0, ROWS, 13).astype(int)
    for i, (a, b) in enumerate(pairwise(edges)):
        with h5py.File(folder / f"part_{i}.h5", "w") as file:
            file["theta"], file["x"], file["w"] = theta[a:b], x[a:b], weight[a:b]
            file.attrs["prior"] = '{"omega_m": {"uniform": [0.1, 0.5]}, "sigma_8": {"uniform": [0.6, 1.0]}}'
    prior = Prior([Parameter("omega_m", Uniform(0.1, 0.5)), Parameter("sigma_8", Uniform(0.6, 1.0))])
    places = {"theta": "theta", "x": "x", "weight": {"proposal": "w"}}
    return Written(folder / "part_*.h5", places, theta, NAMES, {"x": x}, {"proposal_weight": weight}, prior)


def failed_rows(folder):
    """Some simulations gave no numbers; float32 parameters; the prior in an attribute of theta."""
    theta = universes(ROWS).astype(np.float32)
    theta[5, 0], theta[6, 1] = np.float32(0.1), np.float32(0.6)
    x = vectors(theta.astype(float))
    x[[7, 40], 1] = np.nan, np.inf
    with h5py.File(folder / "failed.h5", "w") as file:
        file["y"], file["data"] = theta, x
        file["y"].attrs["prior"] = TOML_AS_JSON
    wide = theta.astype(float)
    wide[5, 0], wide[6, 1] = 0.1, 0.6
    return Written(folder / "failed.h5", {"theta": "y", "x": "data"}, wide, NAMES, {"data": x}, prior=PRIOR)


def paired(folder, name="a.h5", **datasets):
    """Rows that pair, with other datasets in the place of some; None leaves one out."""
    theta = universes(60)
    content = {"theta": theta, "x": vectors(theta)} | datasets
    with h5py.File(folder / name, "w") as file:
        for place, values in content.items():
            if values is not None:
                file[place] = values
    return folder / name


TOML_AS_JSON = '{"omega_m": {"uniform": [0.1, 0.5], "label": "\\\\Omega_m"}, "sigma_8": {"uniform": [0.6, 1.0]}}'
NORMAL = Prior([Parameter("a", Normal(0, 1)), Parameter("b", Normal(0, 1))])


def camels_named_line(folder):
    return camels(folder, header="line")


def camels_bare(folder):
    return camels(folder, header="none", rows_named=False)


def camels_row_names_alone(folder):
    return camels(folder, header="none")


ALL = (
    plain,
    camels,
    camels_named_line,
    camels_bare,
    camels_row_names_alone,
    camels_with_prior,
    dingo,
    madminer,
    ragged,
    group_of_columns,
    pandas_records,
    several,
    split_files,
    failed_rows,
)
