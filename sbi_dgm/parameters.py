"""What is inferred and what is seen: named parameters and observables with units and labels."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sbi_dgm import distributions
from sbi_dgm.errors import OptionError, PriorError, unknown
from sbi_dgm.kinds import is_a, several, text, texts, whole

RESERVED = ("chain", "draw", "observation", "log_prob", "log_weight")  # columns of a file of samples
KINDS = {"array": range(33), "series": (1, 2), "field": (2, 3), "set": (2,)}  # and how many axes they have


def _check_name(name: str) -> None:
    if name in RESERVED:
        raise PriorError(f"{name!r} names a column of every file of samples: call the parameter something else.")
    if not name or "/" in name or name != name.strip():
        raise PriorError(f"{name!r} is no usable name: give a non-empty one without '/' and outer spaces.")


@dataclass(frozen=True)
class Parameter:
    r"""One parameter of a simulator.

    Args:
        name: as in files and tables.
        prior: a distribution of `sbi_dgm.distributions`, a frozen one of `scipy.stats`, or None where a joint
            prior rules.
        label: LaTeX without dollars, for figures; the name where empty.
        unit: as printed, empty for pure numbers.

    >>> Parameter("omega_m", distributions.Uniform(0.1, 0.5), label=r"\Omega_m").title
    '$\\Omega_m$'

    """

    name: str
    prior: Any = None
    label: str = ""
    unit: str = ""

    def __post_init__(self) -> None:
        for name in ("name", "label", "unit"):
            object.__setattr__(self, name, text(f"{name} of a parameter", getattr(self, name), PriorError))
        _check_name(self.name)
        if self.prior is not None:
            object.__setattr__(self, "prior", distributions.as_distribution(self.prior))

    @property
    def title(self) -> str:
        """Label and unit, as on the axis of a figure."""
        return _title(self.name, self.label, self.unit)

    def describe(self) -> dict[str, Any]:
        """This parameter as JSON."""
        prior = {} if self.prior is None else self.prior.describe()
        return {"name": self.name, "prior": prior, "label": self.label, "unit": self.unit}

    @classmethod
    def restore(cls, description: dict[str, Any]) -> "Parameter":
        """The inverse of `describe`."""
        prior = distributions.restore(description["prior"]) if description["prior"] else None
        return cls(description["name"], prior, str(description["label"] or ""), str(description["unit"] or ""))


@dataclass(frozen=True)
class Observable:
    """One thing that a simulator gives for each theta.

    Args:
        shape: of one observation; () for a number.
        unit: as printed.
        label: LaTeX without dollars.
        names: optional names of the entries of a vector, or of the features of a set's members.
        kind: "array"; "series", (L,), or (K, L) with K channels; "field", (H, W), or (K, H, W); or "set": members
            (M, F) in no order, padded to M, whose last feature says whether a member is there (1) or padding (0).
        optional: it may be absent, in simulations and observations: NaN throughout; of whole numbers there are none.

    """

    shape: tuple[int, ...]
    unit: str = ""
    label: str = ""
    names: tuple[str, ...] = field(default=())
    kind: str = "array"
    optional: bool = False

    def __post_init__(self) -> None:
        lengths = several("shape", self.shape, "lengths, such as (3,)")
        plain: dict[str, Any] = {n: text(f"{n} of an observable", getattr(self, n)) for n in ("unit", "label", "kind")}
        plain |= {
            "shape": tuple(whole("a length in shape", n, 0) for n in lengths),
            "names": texts("names", self.names),
        }
        plain["optional"] = bool(is_a("optional", self.optional, bool | np.bool_, "True or False"))
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        if self.kind not in KINDS:
            raise OptionError(unknown("kind of observable", self.kind, KINDS))
        if len(self.shape) not in KINDS[self.kind]:
            raise OptionError(
                f"an observable of shape {self.shape} is no {self.kind}: a series is (L,) or (K, L), a field (H, W) or "
                "(K, H, W), a set (M, F)."
            )

    @property
    def size(self) -> int:
        """How many numbers one observation has."""
        return math.prod(self.shape)

    def describe(self) -> dict[str, Any]:
        """This observable as JSON."""
        return {
            "shape": list(self.shape),
            "unit": self.unit,
            "label": self.label,
            "names": list(self.names),
            "kind": self.kind,
            "optional": self.optional,
        }

    @classmethod
    def restore(cls, description: dict[str, Any]) -> "Observable":
        """The inverse of `describe`."""
        d = description
        words = str(d["unit"] or ""), str(d["label"] or ""), tuple(d["names"])
        return cls(tuple(d["shape"]), *words, kind=d["kind"], optional=d["optional"])


def total_size(observables: Mapping[str, Observable]) -> int:
    """How many numbers one observation of all of them has."""
    return sum(observable.size for observable in observables.values())


def _title(name: str, label: str, unit: str) -> str:
    text = f"${label}$" if label else name.replace("_", " ")
    return f"{text} [{unit}]" if unit else text
