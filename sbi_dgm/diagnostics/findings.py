"""What calibration found: every check's p-value and finding, a verdict, and the arrays that all this rests on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from sbi_dgm.diagnostics import bins
from sbi_dgm.diagnostics.bins import Binned
from sbi_dgm.diagnostics.checks import ANYWHERE, EVERYWHERE, PREDICTED, REGIONS, REPLICATED, Check
from sbi_dgm.diagnostics.evidence import Evidence
from sbi_dgm.diagnostics.information import Information, warned
from sbi_dgm.diagnostics.local import Local
from sbi_dgm.diagnostics.power import visible
from sbi_dgm.diagnostics.predictive import Predicted
from sbi_dgm.priors import Prior
from sbi_dgm.univariate import Array

LEVEL = 0.01  # probability that a calibrated posterior is accused, over all checks together


class Grounds(NamedTuple):
    """What a report rests on.

    Attributes:
        evidence: truths, observations, draws.
        checks: ranks by name.
        bins: coverage in bins, by quantity.
        information: means and widths.
        predicted: replications, where there was a simulator.
        local: the test at given observations, where there were any.

    """

    evidence: Evidence
    checks: Mapping[str, Check]
    bins: Mapping[str, Binned]
    information: Information
    predicted: Predicted | None = None
    local: Local | None = None

    @property
    def failed(self) -> list[str]:
        """What a reader should know of simulations that failed."""
        if self.predicted is None or not self.predicted.failed:
            return []
        return [f"{self.predicted.failed}: predictive checks go without those rows; can x be made there?"]

    @property
    def replicated(self) -> list[str]:
        """Names of the predictive checks."""
        count = 0 if self.predicted is None else self.predicted.components.shape[-1]
        return [REPLICATED.format(k + 1) for k in range(count)]


@dataclass(frozen=True)
class Report:
    """What calibration found. All p-values are corrected for the number of checks: below `level` one accuses.

    Attributes:
        verdict: "calibrated", or what is wrong, in words.
        calibrated: whether no check accuses.
        level: probability that a calibrated posterior is accused.
        rows: how many were held out.
        draws: of each.
        unit: what rows are: "rows", or "groups" of which one row each is judged.
        log_prob: mean ln q of the truth, its standard error, and the mean under the prior where there is one.
        parameters: p-value and finding for each parameter.
        quantities: the same for test quantities of the user's.
        regions: the same for highest-density regions.
        points: the same for distances from points anywhere, and from points predicted from x.
        predictions: the same for components of replicated observations, where there was a simulator.
        bins: the same for the worst of all bins of what x tells, with its parameter, quantity and range.
        learned: of each parameter, `sbi_dgm.diagnostics.information.Information.describe`.
        visible: errors of one parameter's posterior that so many rows would have shown nine times in ten: an sd too
            `narrow` or too `wide` by that fraction, a `shift` by that many sd.
        coverage: empirical coverage of the 50, 68, 90 and 95 % highest-density regions.
        repaired: what a repair scaled each parameter by, or None.
        warnings: what a reader should know though no check accuses.
        local: p-values at given observations, corrected for their number; apart from the verdict.
        grounds: arrays that all this is made of.

    """

    verdict: str
    calibrated: bool
    level: float
    rows: int
    draws: int
    unit: str
    log_prob: dict[str, float]
    parameters: dict[str, dict[str, Any]]
    quantities: dict[str, dict[str, Any]]
    regions: dict[str, Any]
    points: dict[str, dict[str, Any]]
    predictions: dict[str, dict[str, Any]]
    bins: dict[str, Any]
    learned: dict[str, dict[str, float]]
    visible: dict[str, float]
    coverage: dict[str, float]
    repaired: dict[str, float] | None
    warnings: list[str]
    local: list[float]
    grounds: Grounds = field(repr=False)

    @property
    def ranks(self) -> Array:
        """Of the truth in each parameter, (R, D)."""
        return np.column_stack([self.grounds.checks[name].ranks for name in self.parameters])

    @property
    def credibility(self) -> Array:
        """Of the smallest highest-density region that holds the truth, (R,)."""
        return self.grounds.checks[REGIONS].ranks

    @property
    def stated(self) -> dict[str, dict[str, Any]]:
        """P-value and finding of all checks, by name."""
        named = {**self.parameters, **self.quantities, REGIONS: self.regions, **self.points, **self.predictions}
        return named | ({EVERYWHERE: self.bins} if self.bins else {})

    @property
    def tests(self) -> int:
        """How many checks the p-values are corrected for."""
        return len(self.grounds.checks) + bool(self.grounds.bins)

    @property
    def trusted_at(self) -> list[bool]:
        """Whether the local test passes at each of the observations asked for."""
        return [p >= self.level for p in self.local]

    def to_json(self) -> dict[str, Any]:
        """All but the arrays."""
        return {k: v for k, v in vars(self).items() if k != "grounds"}


def findings(grounds: Grounds, prior: Prior | None, unit: str, repaired: dict[str, float] | None = None) -> Report:
    """The report on these grounds."""
    evidence, names = grounds.evidence, list(grounds.evidence.names)
    tests = len(grounds.checks) + bool(grounds.bins)
    stated = {name: _stated(check, tests) for name, check in grounds.checks.items()}
    accused = [f"{name} {of['finding']}" for name, of in stated.items() if of["finding"] != "calibrated"]
    local_p = (
        [] if grounds.local is None else np.minimum(1, len(grounds.local.p_value) * grounds.local.p_value).tolist()
    )
    somewhere = _worst(grounds, tests)
    if somewhere.get("finding", "calibrated") != "calibrated":
        accused.append("{parameter} {finding} where the {quantity} is from {low:.3g} to {high:.3g}".format(**somewhere))
    learned = grounds.information.describe(names)
    return Report(
        verdict="; ".join(sorted(accused, key=lambda text: not text.startswith(REGIONS))) or "calibrated",
        calibrated=not accused,
        level=LEVEL,
        rows=len(evidence.theta),
        draws=evidence.draws.shape[1],
        unit=unit,
        log_prob=_log_prob(evidence, prior),
        parameters={name: stated.pop(name) for name in names},
        regions=stated.pop(REGIONS),
        points={name: stated.pop(name) for name in (ANYWHERE, PREDICTED)},
        predictions={name: stated.pop(name) for name in list(stated) if name in grounds.replicated},
        quantities=stated,
        bins=somewhere,
        learned=learned,
        visible=visible(len(evidence.theta), LEVEL / tests / 3)._asdict(),
        coverage={f"{p:.0%}": float((grounds.checks[REGIONS].ranks <= p).mean()) for p in (0.5, 0.68, 0.9, 0.95)},
        repaired=repaired,
        warnings=[*warned(learned, evidence.draws.shape[1]), *grounds.failed],
        local=local_p,
        grounds=grounds,
    )


def _stated(check: Check, tests: int) -> dict[str, Any]:
    found = check.test(LEVEL / tests)
    return {"p_value": min(1.0, tests * found.p_value), "finding": found.shape}


def _worst(grounds: Grounds, tests: int) -> dict[str, Any]:
    """The worst bin; its finding where it accuses."""
    one = bins.worst(grounds.bins)
    if one is None:
        return {}
    p_value = min(1.0, tests * one.p_value)
    finding = one.finding if p_value < LEVEL else "calibrated"
    name = grounds.evidence.names[one.parameter]
    return one._asdict() | {"p_value": p_value, "parameter": name, "finding": finding}


def _log_prob(evidence: Evidence, prior: Prior | None) -> dict[str, float]:
    own = evidence.log_prob
    found = {"mean": float(own.mean()), "standard_error": float(own.std() / len(own) ** 0.5)}
    return found if prior is None else found | {"prior": float(prior.log_prob(evidence.theta).mean())}
