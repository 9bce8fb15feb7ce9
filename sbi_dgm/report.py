"""Calibration: held-out rows in, one verdict out, with its numbers, figures and a page for people."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sbi_dgm import heldout, page
from sbi_dgm.data.batches import Noise
from sbi_dgm.data.observed import observed_arrays
from sbi_dgm.data.simulations import Simulations
from sbi_dgm.diagnostics import bins, checks, predictive
from sbi_dgm.diagnostics.bins import Binned
from sbi_dgm.diagnostics.checks import Check, Quantity
from sbi_dgm.diagnostics.evidence import FEW, Evidence, Judged, gathered
from sbi_dgm.diagnostics.findings import LEVEL, Grounds, Report, findings
from sbi_dgm.diagnostics.information import information
from sbi_dgm.diagnostics.local import local
from sbi_dgm.errors import OptionError
from sbi_dgm.files import refuse_existing
from sbi_dgm.kinds import is_a, whole
from sbi_dgm.seeds import numpy_generator
from sbi_dgm.simulator import Simulator, find

__all__ = ["LEVEL", "Report", "calibrate"]


def calibrate(  # noqa: PLR0913  (one door to judgement: every argument has a meaning)
    posterior: Judged,
    data: Simulations,
    *,
    out: str | Path | None = None,
    test_quantities: Mapping[str, Quantity] | None = None,
    noise: Noise | None = None,
    simulator: Simulator | str | None = None,
    at: Any = None,
    draws: int = 1000,
    max_rows: int = 1000,
    seed: int = 0,
    overwrite: bool = False,
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
        out: folder for index.html, report.json, figures and draws.h5, whose draws are taken again where the posterior,
            the rows and the seed are the same.
        test_quantities: functions of the parameters by name that are judged like a parameter, such as
            {"S8": lambda t: t["sigma_8"] * (t["omega_m"] / 0.3) ** 0.5}.
        noise: the model of noise that the posterior was trained with.
        simulator: for predictive checks, itself or its name: it is run 21 times for each of at most 200 rows.
        at: observations, as in `sample`, at which the posterior is tested by itself (the local classifier test);
            `Report.local` has its p-values, which are no part of the verdict.
        draws: of each row. Regions need ln q of draws; where that is not exact and quick (diffusion, flow matching,
            continuous flows, VAEs), they are judged by 20 others, drawn with it.
        max_rows: at most so many rows are judged, chosen by the seed.
        seed: of draws and choice.
        overwrite: replace the report in `out`; its draws are taken again all the same.
        progress: show progress bars.

    Raises:
        DataError: fewer than 50 held-out rows; a simulator that fails.
        OptionError: the posterior knows its density but for a constant.
        ExternalError: the posterior was trained with another model of noise.
        FileError: `out` holds a report.

    Example::

        report = sbi_dgm.calibrate(posterior, data, out="report/")
        print(report.verdict)

    """
    is_a("posterior", posterior, Judged, "anything with names, sample and log_prob")
    is_a("data", data, Simulations, "Simulations")
    if whole("draws", draws) < FEW:
        raise OptionError(f"draws = {draws}: ranks need at least {FEW}.")
    if getattr(posterior, "density", "exact") == "unnormalised":
        raise OptionError("what is known but for a constant cannot be judged: give a posterior with a density.")
    checks.require_names(posterior.names)
    runs = None if simulator is None else find(simulator)
    folder = None if out is None else Path(out)
    if folder is not None:
        refuse_existing(folder / "report.json", overwrite)
    asked = None if at is None else observed_arrays(at, data.observables, data.dtypes)[0]
    theta, x = heldout.pairs(posterior, data, noise, max_rows, numpy_generator(seed), seed)
    kept = None if folder is None else folder / "draws.h5"
    evidence = gathered(posterior, theta, x, draws, seed, path=kept, progress=progress)
    rng = numpy_generator(seed, 1)
    found = checks.checks(evidence, test_quantities or {}, rng)
    predicted = None if runs is None else predictive.predicted(evidence, runs, noise, rng)
    if predicted is not None:
        found |= checks.of_replications(predicted.components, rng)
    grounds = Grounds(
        evidence,
        found,
        _binned(evidence, found),
        information(evidence),
        predicted,
        None if asked is None else local(evidence, posterior, asked, rng),
    )
    report = findings(grounds, getattr(posterior, "prior", None), data.unit, _scales(posterior))
    if folder is not None:
        page.write(report, folder, progress=progress)
    return report


def _scales(posterior: Judged) -> dict[str, float] | None:
    """What a repair scaled each parameter by."""
    repaired = getattr(posterior, "record", {}).get("repaired")
    return None if repaired is None else {name: one["scale"] for name, one in repaired["scale"].items()}


def _binned(evidence: Evidence, found: Mapping[str, Check]) -> dict[str, Binned]:
    """Ranks of the parameters in bins of what x tells."""
    ranks = np.column_stack([found[name].ranks for name in evidence.names])
    each = {name: bins.binned(ranks, quantity) for name, quantity in bins.quantities(evidence).items()}
    return {name: one for name, one in each.items() if one is not None}
