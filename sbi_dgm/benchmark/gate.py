r"""A gate against losses: a benchmark's scores against a stored baseline, within the noise of seeds.

For each task, method and budget the baseline holds the C2ST of k seeds, with mean :math:`\bar b` and variance
:math:`s^2`; the new run has m seeds with mean :math:`\bar c`. Under no change

.. math::  t = \frac{\bar c - \bar b}{s \sqrt{1/m + 1/k}}

follows Student's distribution with k - 1 degrees of freedom. A loss is significant where t exceeds its quantile at
1 - alpha / E, with E entries compared (Bonferroni), so that a run without change is accused with probability alpha at
most. The variance is at least that of the accuracy on S + S draws itself, 1 / (8 S) for each observation.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy

from sbi_dgm.benchmark.table import FORMAT, KEY
from sbi_dgm.errors import FileError, OptionError
from sbi_dgm.files import read_json, understood

ALPHA = 0.01


class Verdict(NamedTuple):
    """One entry compared: its key, the baseline's mean, the new one, and the largest that noise explains."""

    key: tuple[Any, ...]
    before: float
    now: float
    limit: float

    @property
    def lost(self) -> bool:
        """Whether it is worse than noise explains; a cell that failed is."""
        return not self.now <= self.limit

    def __str__(self) -> str:
        task, method, budget = self.key
        word = "LOST" if self.lost else "holds"
        now = f"{word}: {task} {method} {budget}: c2st {self.now:.3f}"
        return f"{now}, baseline {self.before:.3f}, at most {self.limit:.3f}"


def baseline(path: str | Path) -> dict[str, Any]:
    """A stored `summary.json`; `FileError` where it is none."""
    content = read_json(path)
    if content.get("format") != FORMAT:
        raise FileError(f"{path} is no baseline: give the summary.json of a benchmark.")
    with understood(path):
        scores = {tuple(entry[k] for k in KEY): math.fsum(entry["c2st"]) for entry in content["entries"]}
        if not (all(map(math.isfinite, scores.values())) and content["draws"] * len(content["observations"]) >= 1):
            raise ValueError("its numbers cannot be")
    return content


def compare(now: Mapping[str, Any], before: Mapping[str, Any], alpha: float = ALPHA) -> list[Verdict]:
    """The entries of both summaries, compared.

    Raises:
        OptionError: they judge by other observations or draws, have no entry in common, or an entry of the baseline
            has fewer than three seeds.

    """
    for name in ("observations", "draws"):
        if now[name] is not None and now[name] != before[name]:
            raise OptionError(
                f"the baseline has {name} = {before[name]}, this run {now[name]}: they cannot be compared."
            )
    known = {tuple(entry[k] for k in KEY): entry["c2st"] for entry in before["entries"]}
    shared = [entry for entry in now["entries"] if tuple(entry[k] for k in KEY) in known]
    if not shared:
        raise OptionError("this run and the baseline share no task, method and budget.")
    level, floor = 1 - alpha / len(shared), (8 * before["draws"] * len(before["observations"])) ** -0.5
    return [_compared(entry, known[tuple(entry[k] for k in KEY)], level, floor) for entry in shared]


def _compared(entry: Mapping[str, Any], before: list[float], level: float, floor: float) -> Verdict:
    key = tuple(entry[k] for k in KEY)
    if len(before) < 3:
        raise OptionError(
            f"the baseline of {' '.join(map(str, key))} has {len(before)} seeds: 3 are needed for its noise."
        )
    k, m = len(before), len(entry["c2st"])
    if m == 0:
        return Verdict(key, float(np.mean(before)), float("nan"), float("nan"))
    spread = max(float(np.std(before, ddof=1)), floor)
    limit = np.mean(before) + scipy.stats.t.ppf(level, k - 1) * spread * (1 / m + 1 / k) ** 0.5
    return Verdict(key, float(np.mean(before)), float(np.mean(entry["c2st"])), float(limit))
