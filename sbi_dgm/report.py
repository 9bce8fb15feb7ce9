"""The calibration report: held-out rows in, one verdict out, with its numbers and figures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sbi_dgm import heldout
from sbi_dgm.data.batches import Noise
from sbi_dgm.data.simulations import Simulations
from sbi_dgm.diagnostics import calibration, ecdf
from sbi_dgm.diagnostics.checks import ANYWHERE, PREDICTED, REGIONS, Check, Quantity, checks
from sbi_dgm.diagnostics.evidence import FEW, Evidence, Judged, gathered
from sbi_dgm.diagnostics.power import visible
from sbi_dgm.errors import OptionError
from sbi_dgm.files import atomic, write_json
from sbi_dgm.priors import Prior
from sbi_dgm.seeds import numpy_generator
from sbi_dgm.univariate import Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sbi_dgm import plots

LEVEL = 0.01  # probability that a calibrated posterior is accused, over all checks together
NOMINAL = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Report:
    """What calibration found.

    Attributes:
        verdict: "calibrated", or what is wrong, in words.
        calibrated: whether no test accuses.
        rows, draws: how many held-out rows, and draws of each.
        log_prob: mean ln q of the truth, its standard error, and the mean under the prior where there is one.
        parameters: p-value and finding for each parameter.
        quantities: the same for test quantities of the user's.
        regions: the same for highest-density regions.
        points: the same for distances from points anywhere, and from points predicted from x.
        visible: errors of one parameter's posterior that so many rows would have shown nine times in ten: an sd too
            `narrow` or too `wide` by that fraction, a `shift` by that many sd.
        coverage: empirical coverage of the 50, 68, 90 and 95 % highest-density regions.
        repaired: what a repair scaled each parameter by, or None.
        checks: the ranks that all this is made of, by name.

    """

    verdict: str
    calibrated: bool
    rows: int
    draws: int
    log_prob: dict[str, float]
    parameters: dict[str, dict[str, Any]]
    quantities: dict[str, dict[str, Any]]
    regions: dict[str, Any]
    points: dict[str, dict[str, Any]]
    visible: dict[str, float]
    coverage: dict[str, float]
    repaired: dict[str, float] | None
    checks: Mapping[str, Check] = field(repr=False)

    @property
    def ranks(self) -> Array:
        """Of the truth in each parameter, (R, D)."""
        return np.column_stack([self.checks[name].ranks for name in self.parameters])

    @property
    def credibility(self) -> Array:
        """Of the smallest highest-density region that holds the truth, (R,)."""
        return self.checks[REGIONS].ranks

    def to_json(self) -> dict[str, Any]:
        """All but the ranks."""
        return {k: v for k, v in vars(self).items() if k != "checks"}

    def figures(self) -> "dict[str, Figure]":
        """The figures by name."""
        from sbi_dgm import plots

        empirical = (self.credibility[:, None] <= NOMINAL).mean(0)
        p_values = [entry["p_value"] for entry in self.parameters.values()]
        band = calibration.coverage_band(NOMINAL, self.rows)
        return {
            "ranks": plots.rank_histograms(
                self.ranks, list(self.parameters), calibration.bin_band(self.rows), p_values
            ),
            "coverage": plots.coverage(NOMINAL, empirical, band, f"regions: {self.regions['finding']}"),
            "distribution": plots.differences({name: self._difference(check) for name, check in self.checks.items()}),
        }

    def _difference(self, check: Check) -> "plots.Difference":
        """Of the ranks' distribution function from the diagonal, and the band that all checks together keep."""
        rows = len(check.ranks)
        t = np.arange(1, ecdf.POINTS) / ecdf.POINTS
        low, high = ecdf.band(rows, LEVEL / len(self.checks))
        return t, ecdf.counts(check.ranks) / rows - t, low / rows - t, high / rows - t

    def save(self, folder: str | Path) -> None:
        """Write report.json, ranks.png, coverage.png and distribution.png."""
        write_json(Path(folder) / "report.json", self.to_json())
        for name, figure in self.figures().items():
            with atomic(Path(folder) / f"{name}.png") as temporary:
                figure.savefig(temporary, format="png", dpi=130)


def calibrate(  # noqa: PLR0913  (one door to judgement: every argument has a meaning)
    posterior: Judged,
    data: Simulations,
    *,
    out: str | Path | None = None,
    test_quantities: Mapping[str, Quantity] | None = None,
    noise: Noise | None = None,
    draws: int = 1000,
    max_rows: int = 1000,
    seed: int = 0,
    progress: bool = True,
) -> Report:
    """Judge a posterior on rows that it was not trained on.

    On the file that it was trained on (or an extension of it) those are the test rows and whatever came later;
    on any other file all valid rows. Rows with weights are kept with a probability in proportion to them, so that those
    judged are draws of the weighted distribution, each its own. Of rows in one group (maps of one universe) one is
    judged: they share their theta, and the tests count independent ones.

    Args:
        posterior: anything with `names`, `sample` and `log_prob`.
        data: simulations.
        out: folder for report.json and figures.
        test_quantities: functions of the parameters by name that are judged like a parameter, such as
            {"S8": lambda t: t["sigma_8"] * (t["omega_m"] / 0.3) ** 0.5}.
        noise: the model of noise that the posterior was trained with.
        draws: of each row. Regions need ln q of draws; where that solves an equation (diffusion, flow matching), they
            are judged by 20 others, drawn with it.
        max_rows: at most so many rows are judged, chosen by the seed.
        seed: of draws and choice.
        progress: show a progress bar.

    Raises:
        DataError: fewer than 50 held-out rows.
        ExternalError: the posterior was trained with another model of noise.

    Example::

        report = sbi_dgm.calibrate(posterior, data, out="report/")
        print(report.verdict)

    """
    if draws < FEW:
        raise OptionError(f"draws = {draws}: ranks need at least {FEW}.")
    rng = numpy_generator(seed)
    theta, x = heldout.pairs(posterior, data, noise, max_rows, rng, seed)
    evidence = gathered(posterior, theta, x, draws, rng, progress)
    report = _report(evidence, checks(evidence, test_quantities or {}, rng), posterior)
    if out is not None:
        report.save(out)
    return report


def _report(evidence: Evidence, found: Mapping[str, Check], posterior: Judged) -> Report:
    prior: Prior | None = getattr(posterior, "prior", None)
    level, rows = LEVEL / len(found), len(evidence.theta)
    tests = {name: check.test(level) for name, check in found.items()}
    wrong = {name: test.shape for name, test in tests.items() if test.shape != "calibrated"}
    accused = [f"{name} {wrong[name]}" for name in sorted(wrong, key=lambda name: name != REGIONS)]
    stated = {name: {"p_value": test.p_value, "finding": test.shape} for name, test in tests.items()}
    points = {name: stated.pop(name) for name in (ANYWHERE, PREDICTED)}
    credibility, regions = found[REGIONS].ranks, stated.pop(REGIONS)
    log_prob = {"mean": float(evidence.log_prob.mean()), "standard_error": float(evidence.log_prob.std() / rows**0.5)}
    under_prior = {} if prior is None else {"prior": float(prior.log_prob(evidence.theta).mean())}
    return Report(
        verdict="; ".join(accused) or "calibrated",
        calibrated=not accused,
        rows=rows,
        draws=evidence.draws.shape[1],
        log_prob=log_prob | under_prior,
        parameters={name: stated.pop(name) for name in evidence.names},
        quantities=stated,
        regions=regions,
        points=points,
        visible=visible(rows, level / 3)._asdict(),
        coverage={f"{p:.0%}": float((credibility <= p).mean()) for p in (0.5, 0.68, 0.9, 0.95)},
        repaired=_scales(getattr(posterior, "record", {}).get("repaired")),
        checks=found,
    )


def _scales(repaired: Mapping[str, Any] | None) -> dict[str, float] | None:
    return None if repaired is None else {name: one["scale"] for name, one in repaired["scale"].items()}
