"""Observations as vectors of all their numbers, in float64, each with a name."""

from typing import Any, NamedTuple

import numpy as np

from sbi_dgm.data.columns import absent_rows
from sbi_dgm.parameters import Observable
from sbi_dgm.univariate import Array

CURVE = ("curved", "centre", "width")
OF_SETS = ("mean", "sd", "least", "greatest")


class View(NamedTuple):
    """An observable as a vector, in its scaler's curve: arcsinh((x - centre) / width) where `curved`.

    Of a set: how many members there are, and the mean, sd, least and greatest of each of their features.
    """

    name: str
    observable: Observable
    curved: np.ndarray
    centre: Array
    width: Array

    @classmethod
    def of(cls, name: str, observable: Observable, scaler: Any) -> "View":
        """With the curve of a `Standardise`."""
        curved, centre, width = (getattr(scaler, key).cpu().numpy().copy() for key in CURVE)
        return cls(name, observable, curved, centre.astype(np.float64), width.astype(np.float64))

    def __call__(self, x: np.ndarray) -> Array:
        """(B, *shape) -> (B, L), float64; NaN where the observable is absent."""
        if self.observable.kind != "set":
            return self._bent(x.astype(np.float64)).reshape(len(x), -1)
        found = _summarised(self._bent(x[..., :-1].astype(np.float64)), x[..., -1] > 0)
        found[absent_rows(x)] = np.nan
        return found

    def _bent(self, x: Array) -> Array:
        return np.where(self.curved, np.arcsinh((x - self.centre) / self.width), x) if self.curved.any() else x

    def label(self, entry: int) -> str:
        """What one number of the vector is called."""
        o = self.observable
        if o.kind != "set":
            place = ", ".join(map(str, np.unravel_index(entry, o.shape)))
            return (
                f"{self.name}[{o.names[entry] if len(o.shape) == 1 and o.names else place}]" if o.shape else self.name
            )
        if entry == 0:
            return f"the number of members of {self.name}"
        what, feature = divmod(entry - 1, o.shape[-1] - 1)
        return f"the {OF_SETS[what]} of {self.name}[{o.names[feature] if o.names else feature}]"

    @property
    def size(self) -> int:
        """L."""
        o = self.observable
        return o.size if o.kind != "set" else 1 + len(OF_SETS) * (o.shape[-1] - 1)


def _summarised(members: Array, there: np.ndarray) -> Array:
    """Members (B, M, F) of which some are there (B, M) -> (B, 1 + 4 F); zeros where there are none."""
    count, where = there.sum(1).astype(float), there[..., None]
    mean = np.where(where, members, 0.0).sum(1) / np.maximum(count, 1)[:, None]
    sd = np.sqrt(np.where(where, (members - mean[:, None]) ** 2, 0.0).sum(1) / np.maximum(count, 1)[:, None])
    least, greatest = members.min(1, where=where, initial=np.inf), members.max(1, where=where, initial=-np.inf)
    extremes = np.where(count[:, None] > 0, [least, greatest], 0.0)
    return np.column_stack([count, mean, sd, *extremes])
