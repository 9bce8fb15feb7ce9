"""What a benchmark compares: our estimators with their settings, and any callable (theta, x) -> posterior."""

import hashlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
from filelock import FileLock

from sbi_dgm import companion, options, recipe
from sbi_dgm.benchmark.tasks import plain
from sbi_dgm.data.simulations import Simulations
from sbi_dgm.data.splits import SplitRule
from sbi_dgm.embeddings import base as embeddings
from sbi_dgm.errors import OptionError
from sbi_dgm.estimators.base import FAMILIES, Family, family
from sbi_dgm.likelihood import Likelihood
from sbi_dgm.options import Options
from sbi_dgm.posterior import load
from sbi_dgm.training import fit
from sbi_dgm.univariate import Array

SPLIT = SplitRule(validation=0.1, test=0.0)  # a benchmark judges on fresh simulations


class Method(Protocol):
    """A way from simulations to a posterior."""

    @property
    def label(self) -> str:
        """Its name in tables."""
        ...

    def describe(self) -> dict[str, Any]:
        """What decides its results, as JSON."""
        ...

    def train(self, task: Any, data: Simulations, seed: int, device: str, folder: Path) -> Any:
        """A posterior with `sample(n, x, seed=...)` and, where it has a density, `log_prob(theta, x)`, for stacks."""
        ...


@dataclass(frozen=True)
class Fitted:
    """One of our estimators, trained by `fit`.

    Args:
        label: in tables.
        settings: keyword arguments of `fit`: option objects; `estimator` at least.

    """

    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """The settings as JSON."""
        return {key: DESCRIBED.get(key, Options.model_dump)(value) for key, value in sorted(self.settings.items())}

    def train(self, task: Any, data: Simulations, seed: int, device: str, folder: Path) -> Any:
        """Train in a run folder of its own, or go on there; what was trained before is loaded.

        A single network is the first member of an ensemble with the same settings: they share it, and wait for each
        other.
        """
        settings: dict[str, Any] = {"split": SPLIT, **self.settings}
        decides = {name: value for name, value in self.describe().items() if name != "members"}
        digest = hashlib.sha256(json.dumps([decides, data.fingerprint()]).encode()).hexdigest()[:12]
        run = folder / f"{task.name}-{len(data)}-{seed}-{digest}"
        run = run if settings.get("members", 1) > 1 else run / "members" / "0"
        learn = settings.get("learn", "posterior")
        path = run / f"{learn}.safetensors"
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{task.name}-{len(data)}-{seed}-{digest}.lock"):
            if not path.exists():
                fit(data, **settings, seed=seed, device=device, out=run, resume=True, workers=1, progress=False)
        return LOADED[learn](path, device=device, prior=task.prior)


@dataclass(frozen=True)
class Refining:
    """One of our posteriors, refined by one of our likelihoods with the power that validation rows give it.

    Args:
        label: in tables.
        posterior: how the posterior is trained.
        likelihood: how the likelihood is, with `learn="likelihood"` among its settings.

    """

    label: str
    posterior: Fitted
    likelihood: Fitted

    def describe(self) -> dict[str, Any]:
        """The settings of both as JSON."""
        parts = {"posterior": self.posterior.describe(), "likelihood": self.likelihood.describe()}
        return parts | {"power": "held-out"}

    def train(self, task: Any, data: Simulations, seed: int, device: str, folder: Path) -> Any:
        """Train what is missing of both, each in its run folder."""
        likelihood = self.likelihood.train(task, data, seed, device, folder)
        refined = self.posterior.train(task, data, seed, device, folder).refined(likelihood)
        return companion.pooled(refined, data, None, seed=seed, progress=False)


def _auto() -> dict[str, str]:
    return {"name": "auto", "recipe": recipe.fingerprint()}


LOADED: Mapping[str, Callable[..., Any]] = {"posterior": load, "likelihood": Likelihood.load}
DESCRIBED: Mapping[str, Callable[[Any], Any]] = {
    "estimator": lambda given: _auto() if given == "auto" else options.describe(FAMILIES, given),
    "embedding": embeddings.describe,
    "members": int,
    "learn": str,
}


@dataclass(frozen=True)
class Called:
    """Anybody's method: a callable (theta (N, D), x (N, ...)) -> posterior.

    It may also take `task`, `prior`, `seed` and `device` by name. The posterior has `sample(n, x)` for one x, giving
    (n, D), and may take `seed` by name; where it has `log_prob(theta (S, D), x)` -> (S,), densities are scored too.

    Args:
        label: in tables.
        function: the callable.

    """

    label: str
    function: Callable[..., Any]

    def describe(self) -> dict[str, Any]:
        """The callable's place, a digest of the file that it is written in, and an object's attributes."""
        kind = self.function if hasattr(self.function, "__qualname__") else type(self.function)
        try:
            source = inspect.getsource(sys.modules[kind.__module__])
        except (OSError, TypeError, KeyError):  # typed by hand
            source = ""
        digest = hashlib.sha256(source.encode()).hexdigest()[:12]
        state = re.sub(r" at 0x\w+", "", repr(sorted(getattr(self.function, "__dict__", {}).items())))
        more = {} if state == "[]" else {"state": state}
        return {"call": f"{kind.__module__}:{kind.__qualname__}", "source": digest} | more

    def train(self, task: Any, data: Simulations, seed: int, device: str, folder: Path) -> "OneByOne":
        """Call it on the valid rows."""
        rows = np.flatnonzero(data.valid)
        offered = {"task": task, "prior": task.prior, "seed": seed, "device": device}
        theta, x = data.theta[rows], plain(data.x(rows))
        return OneByOne(called(self.function, theta, x, **offered))


class OneByOne:
    """A posterior that takes one x at a time, made to take stacks.

    Args:
        posterior: with `sample(n, x)`, and perhaps `log_prob(theta, x)`.

    """

    def __init__(self, posterior: Any) -> None:
        self.posterior = posterior
        if hasattr(posterior, "log_prob"):
            self.log_prob = self._log_prob

    def sample(self, n: int, x: Mapping[str, np.ndarray], *, seed: int = 0) -> SimpleNamespace:
        """Draws: an object with `array` (B, n, D)."""
        draws = [_array(called(self.posterior.sample, n, one, seed=seed + i)) for i, one in enumerate(_each(x))]
        return SimpleNamespace(array=np.stack(draws))

    def _log_prob(self, theta: Array, x: Mapping[str, np.ndarray]) -> Array:
        """ln q of theta (B, S, D) at x, (B, S)."""
        return np.stack([_array(self.posterior.log_prob(t, one)) for t, one in zip(theta, _each(x), strict=True)])


def _each(x: Mapping[str, np.ndarray]) -> list[Any]:
    size = len(next(iter(x.values())))
    return [plain({name: values[i] for name, values in x.items()}) for i in range(size)]


def _array(found: Any) -> Array:
    return np.asarray(getattr(found, "array", found), float)


def called(function: Callable[..., Any], *given: Any, **offered: Any) -> Any:
    """function(*given), with those of the offered keywords that it takes.

    >>> called(lambda a, seed: a + seed, 1, seed=2, device="cpu")
    3
    """
    taken = inspect.signature(function).parameters.values()
    everything = any(p.kind is p.VAR_KEYWORD for p in taken)
    return function(*given, **{k: v for k, v in offered.items() if everything or k in {p.name for p in taken}})


def method(given: Any) -> Method:
    """A method from what a user may write: a family's name, "auto", options, `module:callable`, a callable, a `Method`.

    >>> method("flow").label
    'flow'

    """
    if isinstance(given, str) and ":" in given:
        return Called(given.replace(":", "."), options.imported(given))
    if isinstance(given, str):
        return Fitted(given, {"estimator": given if given == "auto" else family(given)})
    if isinstance(given, Family):
        return Fitted(_label(given), {"estimator": given})
    if hasattr(given, "train") and hasattr(given, "label"):
        return given
    if callable(given):
        return Called(getattr(given, "__name__", type(given).__name__), given)
    raise OptionError(f"{given!r} is no method: give an estimator, or a callable (theta, x) -> posterior.")


def _label(chosen: Family) -> str:
    values = chosen.model_dump(exclude_defaults=True)
    words = ",".join(f"{key}={value}" for key, value in values.items())
    return options.name_in(FAMILIES, chosen) + (f"({words})" if words else "")
