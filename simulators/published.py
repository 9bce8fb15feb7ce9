"""The ten published observations of a task of sbibm, each with the parameters that made it.

Lueckmann et al. 2021 (arXiv:2101.04653), sbibm 1.1.0, MIT: `data/sbibm/<task>.csv`, a line for each observation, the
task's parameters first, then x_1, x_2, ...
"""

from functools import cache
from importlib.resources import files

import numpy as np


class Published:
    """A task whose observations are published: mixed into a simulator, found by its `name`."""

    name: str

    @property
    def observations(self) -> np.ndarray:
        """The published observations (10, X); read-only."""
        return _columns(self.name, observed=True)

    @property
    def true_parameters(self) -> np.ndarray:
        """The parameters (10, D) that the observations were drawn at; read-only."""
        return _columns(self.name, observed=False)


@cache
def _columns(name: str, observed: bool) -> np.ndarray:
    header, *rows = (files("simulators") / "data" / "sbibm" / f"{name}.csv").read_text(encoding="utf-8").splitlines()
    keep = [i for i, column in enumerate(header.split(",")) if column.startswith("x_") == observed]
    table = np.array([row.split(",") for row in rows], dtype=np.float64)[:, keep]
    table.flags.writeable = False
    return table
