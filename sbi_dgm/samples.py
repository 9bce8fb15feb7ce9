"""Draws of a posterior with names: a table, a figure, a file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from sbi_dgm.data.frame import require_whole
from sbi_dgm.data.sink import writing
from sbi_dgm.errors import FileError, ObservationError, OptionError, unknown
from sbi_dgm.files import atomic, refuse_existing, require_file, understood
from sbi_dgm.kinds import is_a, whole
from sbi_dgm.parameters import Parameter
from sbi_dgm.priors import Prior
from sbi_dgm.trust import Trust
from sbi_dgm.univariate import Array

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

LEVELS = (0.16, 0.5, 0.84)
NEAR = 0.2  # of the posterior's sd: a draw that close to an edge counts as at it
SHARE = 0.004  # of draws at an edge: a twentieth of the density that a normal's peak would put there


@dataclass(frozen=True, eq=False)
class Samples:
    """Posterior draws: `array` is (S, D) for one observation and (B, S, D) for several.

    Attributes:
        array: the draws.
        parameters: of the last axis.
        log_prob: ln q of each draw (S,) or (B, S), or None.
        bounds: (2, D), the edges of the prior; infinite where there are none.
        trust: whether the observations are like the simulations, or None where that is not known.

    >>> from sbi_dgm.distributions import Uniform
    >>> prior = Prior([Parameter("a", Uniform(0, 1))])
    >>> Samples.of(prior, np.linspace(0, 1, 101)[:, None]).summary().loc["a", "edge"]
    'low high'

    """

    array: Array
    parameters: tuple[Parameter, ...]
    log_prob: Array | None = None
    bounds: Array | None = None
    trust: Trust | None = None

    @classmethod
    def of(cls, prior: Prior, array: Array, log_prob: Array | None = None, trust: Trust | None = None) -> "Samples":
        """Draws with the parameters and bounds of `prior`."""
        bounds = np.stack([prior.coordinates.low, prior.coordinates.high])
        return cls(array, prior.parameters, log_prob, bounds, trust)

    @property
    def names(self) -> list[str]:
        """Names of the parameters."""
        return [p.name for p in self.parameters]

    def __len__(self) -> int:
        return self.array.shape[-2]

    def __getitem__(self, name: str) -> Array:
        if name not in self.names:
            raise OptionError(unknown("parameter", name, self.names))
        return self.array[..., self.names.index(name)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.array, dtype=dtype, copy=copy)

    def observation(self, index: int) -> "Samples":
        """The draws of one of several observations."""
        if self.array.ndim != 3:
            raise ObservationError("these are draws for one observation already.")
        count, index = len(self.array), whole("observation", index)
        if not -count <= index < count:
            raise ObservationError(f"observation {index} is not among the {count}, 0 to {count - 1}.")
        log_prob = None if self.log_prob is None else self.log_prob[index]
        trust = None if self.trust is None else self.trust.observation(index)
        return Samples(self.array[index], self.parameters, log_prob, self.bounds, trust)

    def _one(self) -> Array:
        if self.array.ndim != 2:
            raise ObservationError(f"draws for {len(self.array)} observations: choose one with .observation(i).")
        if not len(self):
            raise ObservationError("there are no draws: ask for more than 0.")
        return self.array

    def summary(self) -> "pd.DataFrame":
        """One row a parameter: mean, sd, median, the central 68 % interval, and the prior's edges that are reached."""
        import pandas as pd

        array = self._one()
        low, median, high = np.quantile(array, LEVELS, axis=0)
        table = {"mean": array.mean(0), "sd": array.std(0), "median": median, "16%": low, "84%": high}
        return pd.DataFrame(table | {"edge": self._edges(array)}, index=pd.Index(self.names, name="parameter"))

    def _edges(self, array: Array) -> list[str]:
        if self.bounds is None:
            return [""] * len(self.parameters)
        at = (np.abs(array - self.bounds[:, None]) < NEAR * array.std(0)).mean(1) > SHARE
        return [
            " ".join(word for word, reached in zip(("low", "high"), column, strict=True) if reached) for column in at.T
        ]

    def to_pandas(self) -> "pd.DataFrame":
        """One row a draw, one column a parameter; `observation` as index level where there are several."""
        import pandas as pd

        if self.array.ndim == 2:
            return pd.DataFrame(self.array, columns=self.names)
        index = pd.MultiIndex.from_product([range(n) for n in self.array.shape[:2]], names=["observation", "draw"])
        return pd.DataFrame(self.array.reshape(-1, len(self.names)), index=index, columns=self.names)

    def corner(
        self,
        truth: Sequence[float] | Mapping[str, float] | None = None,
        others: "Mapping[str, Samples] | None" = None,
        label: str = "posterior",
    ) -> "Figure":
        """A corner plot with 68 and 95 % contours.

        Args:
            truth: (D,), or by name; marked by lines.
            others: further draws of the same parameters to draw over these, by legend entry.
            label: legend entry of these draws.

        """
        from sbi_dgm import plots

        if len(self) <= len(self.parameters):
            raise ObservationError(f"{len(self)} draws of {len(self.parameters)} parameters are too few for a figure.")
        is_a("others", others, Mapping | None, "Samples by legend entry")
        if label in (others or {}) or len(others or {}) >= len(plots.COLOURS):
            raise OptionError(
                f"others: give each its own label, none of them {label!r}, and {len(plots.COLOURS)} layers at most."
            )
        for name, other in (others or {}).items():
            is_a(f"others[{name!r}]", other, Samples, "Samples")
        layers = {label: self._one()} | {name: self._alike(other) for name, other in (others or {}).items()}
        return plots.corner(layers, [p.title for p in self.parameters], self._marked(truth))

    def _alike(self, other: "Samples") -> Array:
        """Draws of one observation with these parameters, in this order."""
        other._one()
        return np.stack([other[name] for name in self.names], axis=-1)

    def _marked(self, truth: Any) -> list[float] | None:
        """A true value of each parameter, or `OptionError`."""
        if truth is None:
            return None
        values = [truth.get(name, "") for name in self.names] if isinstance(truth, Mapping) else truth
        try:
            found = np.asarray(values, np.float64)
        except (ValueError, TypeError):
            found = np.empty(0)
        if found.shape != (len(self.names),):
            raise OptionError(f"truth = {truth!r}: give a number for each of {', '.join(self.names)}.")
        return found.tolist()

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write an HDF5 file whose group `posterior` ArviZ and xarray open as it is: (chain, draw[, observation]).

        A group `trust` beside it keeps what is known of the observations.
        """
        refuse_existing(path, overwrite)
        columns = self._columns()
        shape = columns[self.names[0]].shape
        if self.log_prob is not None:
            columns["log_prob"] = self.log_prob.T[None]
        with atomic(path) as temporary, writing(temporary) as file:
            group = file.create_group("posterior", track_order=True)
            dims = [group.create_dataset(n, data=np.arange(k)) for n, k in zip(_AXES, shape, strict=False)]
            for scale, name in zip(dims, _AXES, strict=False):
                scale.make_scale(name)
            for name, values in columns.items():
                dataset = group.create_dataset(name, data=values, fletcher32=True, chunks=True)
                for axis, scale in zip(dataset.dims, dims, strict=True):
                    axis.attach_scale(scale)
            for p in self.parameters:
                group[p.name].attrs.update({"units": p.unit, "label": p.label})
            group.attrs["format"], group.attrs["format_version"] = FORMAT, VERSION
            group.attrs["names"] = self.names
            group.attrs["bounds"] = np.full((2, len(self.names)), np.nan) if self.bounds is None else self.bounds
            if self.trust is not None:
                _write_trust(file.create_group("trust"), self.trust)

    @classmethod
    def load(cls, path: str | Path) -> "Samples":
        """Read what `save` wrote."""
        require_file(path)
        with understood(path, "{path} is no readable file of samples: {why}."), h5py.File(path, "r") as file:
            require_whole(path, file)
            return replace(cls._read(path, file["posterior"]), trust=_read_trust(file))

    @classmethod
    def _read(cls, path: str | Path, group: Any) -> "Samples":
        found, number = group.attrs["format"], group.attrs["format_version"]
        if found != FORMAT:
            raise FileError(f"{path} is no file of samples: it holds {found!r}, not {FORMAT!r}.")
        if not number <= VERSION:
            raise FileError(f"{path} has samples of format version {number}: this sbi_dgm reads up to {VERSION}.")
        names = [str(name) for name in group.attrs["names"]]
        parameters = tuple(Parameter(n, None, group[n].attrs["label"], group[n].attrs["units"]) for n in names)
        stack = np.stack([group[n][0].T for n in names], axis=-1)
        log_prob = group["log_prob"][0].T if "log_prob" in group else None
        bounds, dense = np.asarray(group.attrs["bounds"], float), log_prob is None or log_prob.shape == stack.shape[:-1]
        if bounds.shape != (2, len(names)) or stack.ndim not in (2, 3) or not dense:
            raise ValueError("its draws, their densities and bounds differ in shape")
        return cls(stack, parameters, log_prob, None if np.isnan(bounds).all() else bounds)

    def _columns(self) -> dict[str, Array]:
        """The draws by name, (chain, draw[, observation])."""
        return {name: self[name].T[None] for name in self.names}

    def to_arviz(self) -> Any:
        """An ArviZ data tree with the group `posterior` (needs the package arviz-base)."""
        return _extra("arviz_base", "arviz-base").from_dict({"posterior": self._columns()})

    def to_getdist(self) -> Any:
        """A `getdist.MCSamples` of one observation's draws (needs the package getdist)."""
        return _extra("getdist", "getdist").MCSamples(
            samples=self._one(), names=self.names, labels=[p.label or p.name for p in self.parameters]
        )


def _extra(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise OptionError(f"{package} is not installed: pip install {package}.") from None


def _write_trust(group: h5py.Group, trust: Trust) -> None:
    """A scalar or (observation,) each: the p-value, and what there is to say."""
    p_value = group.create_dataset("p_value", data=trust.p_value)
    reason = group.create_dataset("reason", data=trust.reason, dtype=h5py.string_dtype())
    group.attrs.update({"level": trust.level, "simulations": trust.simulations})
    if p_value.ndim:
        scale = group.create_dataset(_AXES[-1], data=np.arange(len(p_value)))
        scale.make_scale(_AXES[-1])
        for dataset in (p_value, reason):
            dataset.dims[0].attach_scale(scale)


def _read_trust(file: h5py.File) -> Trust | None:
    if "trust" not in file:
        return None
    group: Any = file["trust"]
    p_value, reason, stated = group["p_value"][()], group["reason"].asstr()[()], group.attrs
    single = np.ndim(p_value) == 0
    known = (float(p_value), str(reason)) if single else (p_value, tuple(reason.tolist()))
    return Trust(known[0], float(stated["level"]), int(stated["simulations"]), known[1])


_AXES = ("chain", "draw", "observation")
FORMAT = "sbi_dgm/samples"
VERSION = 1
