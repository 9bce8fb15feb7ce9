"""The sections of a calibration report: what each shows, what good looks like, and what this one says."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy

from sbi_dgm.diagnostics import calibration, ecdf
from sbi_dgm.diagnostics.bins import CENTRAL
from sbi_dgm.diagnostics.checks import REGIONS, Check
from sbi_dgm.diagnostics.findings import Report
from sbi_dgm.diagnostics.predictive import REPLICATIONS
from sbi_dgm.seeds import numpy_generator
from sbi_dgm.univariate import Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOMINAL = np.linspace(0, 1, 101)
RESAMPLED, SHOWN = 200, 4
Table = list[list[str]]  # the first row is the head
Band = Mapping[int, tuple[Array, Array]]  # lower and upper edge, by the number of rows


@dataclass(frozen=True)
class Section:
    """One section.

    Attributes:
        name: of its figure's files.
        title: a question.
        shows: what is seen, for a reader who has never heard of it.
        good: what a calibrated posterior looks like.
        says: what this one looks like.
        draw: makes the figure, given the module `plots`; or None.
        table: its rows, or none.

    """

    name: str
    title: str
    shows: str
    good: str
    says: str
    draw: "Callable[[Any], Figure] | None" = None
    table: Table = field(default_factory=list)

    @property
    def alt(self) -> str:
        """The figure in words."""
        return f"{self.title} {self.says}"


def sections(report: Report) -> list[Section]:
    """Those that this report has."""
    parts = [ranks(report), distribution(report), coverage(report), points(report)]
    parts += [where(report)] if report.bins else []
    parts += [replications(report)] if report.predictions else []
    parts += [recovery(report), contraction(report), sharpness(report)]
    return parts + ([at(report)] if report.local else [])


def ranks(report: Report) -> Section:
    """Simulation-based calibration."""
    stated = {**report.parameters, **report.quantities}
    titles = {f"{name}   p = {of['p_value']:.2g}": _check(report, name).ranks for name, of in stated.items()}
    return Section(
        "ranks",
        "Does the truth fall among the draws as one of them?",
        "For each held-out simulation the true value is ranked among the posterior's draws: 0 is below all of them, 1 "
        "above all (its probability integral transform). The histogram counts these ranks over all simulations "
        "(simulation-based calibration).",
        "Flat: all bars within the grey band, up to one in a hundred. A hump in the middle is a posterior that is too "
        "wide, a valley one that is too narrow, a slope one that lies too low (rising) or too high (falling).",
        _told(stated, "parameter"),
        lambda plots: plots.rank_histograms(titles, calibration.BINS, calibration.bin_band(report.rows)),
    )


def distribution(report: Report) -> Section:
    """Distribution functions of all ranks."""
    checks = report.grounds.checks
    band = {rows: _band(rows, report) for rows in {len(check.ranks) for check in checks.values()}}
    outside = [name for name, check in checks.items() if _leaves(check.ranks, band)]
    return Section(
        "distribution",
        "And to which precision?",
        "The same ranks without bins, of every check that was made: how many lie below each value, less how many "
        "should. The grey band is one that all curves of a calibrated posterior keep together, 99 times in 100.",
        "Every curve stays within its band from end to end.",
        f"{', '.join(outside)} {'leave' if len(outside) > 1 else 'leaves'} the band."
        if outside
        else "No curve leaves.",
        lambda plots: plots.differences({name: _difference(check.ranks, band) for name, check in checks.items()}),
    )


def _difference(u: Array, band: Band) -> tuple[Array, ...]:
    """Places t, and there the distribution function of ranks and the edges of its band, less t."""
    t = np.arange(1, ecdf.POINTS) / ecdf.POINTS
    return t, *(curve - t for curve in (ecdf.counts(u) / len(u), *band[len(u)]))


def _band(rows: int, report: Report) -> tuple[Array, Array]:
    low, high = ecdf.band(rows, report.level / report.tests)
    return low / rows, high / rows


def _leaves(u: Array, band: Band) -> bool:
    share, (low, high) = ecdf.counts(u) / len(u), band[len(u)]
    return bool((share < low - 1e-12).any() or (share > high + 1e-12).any())


def coverage(report: Report) -> Section:
    """Of highest-density regions and central intervals."""
    central = {name: np.abs(2 * _check(report, name).ranks - 1) for name in report.parameters}
    band = calibration.coverage_band(NOMINAL, report.rows)
    curves = {"highest-density regions": {REGIONS: report.credibility}, "central intervals": central}
    panels = {title: ({name: _covered(u) for name, u in of.items()}, band) for title, of in curves.items()}
    table = [["credibility", "regions", *central]] + [
        [level, f"{share:.1%}", *(f"{(u <= float(level[:-1]) / 100).mean():.1%}" for u in central.values())]
        for level, share in report.coverage.items()
    ]
    return Section(
        "coverage",
        "Do credible regions hold the truth as often as they say?",
        "Left the smallest regions that hold a given share of the posterior, in all parameters together; right the "
        "central intervals of each parameter. A region of 90 % should hold the truth in 90 % of simulations.",
        "On the diagonal, within the grey band (99 % at each point). Below it the posterior claims too much, above it "
        "too little.",
        f"Regions: {report.regions['finding']} (p = {report.regions['p_value']:.2g}).",
        lambda plots: plots.coverage(NOMINAL, panels),
        table,
    )


def points(report: Report) -> Section:
    """Tests of accuracy with random points."""
    rng = numpy_generator(0)
    found = {name: _check(report, name).ranks for name in report.points}
    panels = {name: ({name: _covered(u)}, _resampled(u, rng)) for name, u in found.items()}
    return Section(
        "points",
        "Does the posterior know what x tells?",
        "The truth's distance from a point, among the draws' distances (TARP). Points anywhere in parameter space see "
        "errors of all parameters together without any density, but they cannot tell the prior from the posterior. "
        "Points that a regression predicts from x can: if draws lie farther from them than truths do, x knows more "
        "than this posterior.",
        "The diagonal within the band, which here is the curve's own uncertainty (99 % of resampled rows).",
        _told(report.points, "kind of points"),
        lambda plots: plots.coverage(NOMINAL, panels),
    )


def _resampled(u: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """The range of the coverage curve of rows drawn again."""
    curves = np.stack([_covered(rng.choice(u, len(u))) for _ in range(RESAMPLED)])
    low, high = np.quantile(curves, [0.005, 0.995], axis=0)
    return low, high


def where(report: Report) -> Section:
    """Coverage in bins."""
    found, names = report.grounds.bins, list(report.parameters)
    tests = sum(len(one.rows) * len(names) for one in found.values())
    deviation = float(scipy.stats.norm.isf(report.level / tests / 2))
    spread = {name: deviation * np.sqrt(CENTRAL * (1 - CENTRAL) / one.rows) for name, one in found.items()}
    panels = {name: (one.edges, one.covered, spread[name]) for name, one in found.items()}
    worst = report.bins
    told = (
        "{parameter} is {finding} where the {quantity} is from {low:.3g} to {high:.3g} (p = {p_value:.2g})."
        if worst["finding"] != "calibrated"
        else "No part of the observations deviates; most of all {parameter} where the {quantity} is from {low:.3g} to "
        "{high:.3g} (p = {p_value:.2g})."
    )
    return Section(
        "where",
        "Where is it wrong?",
        "Held-out simulations in bins of what x tells: of the posterior's mean of each parameter, and of the main "
        "directions in which x varies. In each bin, how many truths lie within the central 68 % of their draws. An "
        "error that cancels over all simulations shows here.",
        "All points within the grey band around 68 %, everywhere.",
        told.format(**worst),
        lambda plots: plots.binned(panels, names, CENTRAL),
    )


def replications(report: Report) -> Section:
    """Predictive checks."""
    predicted: Any = report.grounds.predicted
    chosen = np.linspace(0, len(predicted.rows) - 1, min(SHOWN, len(predicted.rows))).astype(int)
    panels = {f"row {i + 1}": (predicted.x[i, 0], predicted.x[i, 1:]) for i in chosen}
    return Section(
        "replications",
        "Would the next observation look as predicted?",
        f"For {len(predicted.rows)} simulations the simulator was run again, once at the truth and {REPLICATIONS} "
        "times at draws of the posterior given the first observation. Shown are four of them: dots are the "
        "observation that the truth would give next, grey what the posterior predicts (50 and 95 %), in units of the "
        "prediction's sd. Tested are the main directions in which x varies.",
        "The dots lie in the grey as often as its shares say.",
        _told(report.predictions, "component"),
        lambda plots: plots.replications(panels),
    )


def recovery(report: Report) -> Section:
    """Posterior mean and sd against the truth."""
    learned, names = report.grounds.information, list(report.parameters)
    panels = dict(zip(names, zip(learned.truth.T, learned.mean.T, learned.sd.T, strict=True), strict=True))
    followed = {name: round(of["recovery"], 2) + 0.0 for name, of in report.learned.items()}
    best, worst = max(names, key=lambda name: followed[name]), min(names, key=lambda name: followed[name])
    return Section(
        "recovery",
        "Are parameters recovered?",
        "Mean and sd of the posterior against the truth.",
        "Where x determines a parameter, a narrow diagonal; where it does not, a flat band: that is no error.",
        f"Means follow the truth of {best} best (correlation {followed[best]:.2f})"
        + (f", that of {worst} least ({followed[worst]:.2f})." if worst != best else "."),
        lambda plots: plots.recovery(panels),
    )


def contraction(report: Report) -> Section:
    """z-score against contraction."""
    learned = report.grounds.information
    panels = dict(zip(report.parameters, zip(learned.contraction.T, learned.z.T, strict=True), strict=True))
    spread = [of["z_sd"] for of in report.learned.values()]
    return Section(
        "contraction",
        "How wrong, and how sharp?",
        "Each simulation's error, in units of the posterior's sd, against the contraction: the share of the prior's "
        "variance that the posterior has lost.",
        "Errors between -2 and 2 nineteen times in twenty at any contraction; the farther right, the more x tells.",
        f"The sd of these errors is from {min(spread):.2f} to {max(spread):.2f}; 1 is right.",
        lambda plots: plots.contraction(panels),
    )


def sharpness(report: Report) -> Section:
    """Widths against the prior's."""
    table = [["parameter", "prior sd", "posterior sd (median)", "ratio", "mean contraction"]]
    for name, of in report.learned.items():
        ratio = of["median_sd"] / of["prior_sd"]
        row = [f"{of['prior_sd']:.4g}", f"{of['median_sd']:.4g}", f"{ratio:.3f}", f"{of['contraction']:.1%}"]
        table.append([name, *row])
    own = report.log_prob
    gain = f", {own['mean'] - own['prior']:.2f} nats above the prior" if "prior" in own else ""
    return Section(
        "sharpness",
        "What was learned?",
        "Calibration says that a posterior is honest, not that it is informative: the prior is honest too. Of two "
        "calibrated posteriors the one with the higher expected log-probability is the better.",
        "Narrower than the prior, where x tells of the parameter.",
        f"The truth's ln q is {own['mean']:.3f} ± {own['standard_error']:.3f} on average{gain}.",
        table=table,
    )


def at(report: Report) -> Section:
    """The local test."""
    failed = [str(i + 1) for i, passed in enumerate(report.trusted_at) if not passed]
    table = [["observation", "p-value"]] + [[str(i + 1), f"{p:.2g}"] for i, p in enumerate(report.local)]
    return Section(
        "at",
        "And at the observations asked for?",
        "A classifier learns to tell truths from draws of the posterior at the same x, and is asked at your "
        "observations whether it could (local classifier test). This is apart from the verdict above.",
        "p-values that are not small.",
        f"The posterior is doubtful at {', '.join(failed)}." if failed else "Nothing speaks against it there.",
        table=table,
    )


def _check(report: Report, name: str) -> Check:
    return report.grounds.checks[name]


def _covered(u: Array) -> Array:
    return np.searchsorted(np.sort(u), NOMINAL, side="right") / len(u)


def _told(stated: Mapping[str, Mapping[str, Any]], kind: str) -> str:
    """What these checks found, in a sentence."""
    wrong = {name: of for name, of in stated.items() if of["finding"] != "calibrated"}
    if wrong:
        return "; ".join(f"{name} is {of['finding']} (p = {of['p_value']:.2g})" for name, of in wrong.items()) + "."
    least = min(stated, key=lambda name: stated[name]["p_value"])
    return f"No {kind} deviates; the smallest p-value is {stated[least]['p_value']:.2g} ({least})."
