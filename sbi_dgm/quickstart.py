"""The whole job on real data: the JLA supernovae, flat wCDM, from simulations to a calibrated posterior."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from sbi_dgm import simulator as simulators
from sbi_dgm.campaign import simulate
from sbi_dgm.errors import SbiError
from sbi_dgm.files import refuse_existing, write_text
from sbi_dgm.report import Report, calibrate
from sbi_dgm.samples import Samples
from sbi_dgm.seeds import numpy_generator
from sbi_dgm.training import fit

PROBLEM = "supernovae"
ROWS = 20_000
DRAWS = 20_000
SEED = 2  # other seeds draw other universes: over them the means scatter by about 0.1 sd around the exact ones
STEPS = """\
sbi-dgm simulate supernovae -n {rows} --seed {seed} --workers 2 -o {folder}/simulations.h5
sbi-dgm train {folder}/simulations.h5 --seed {seed} -o {folder}/run
sbi-dgm sample {folder}/run/posterior.safetensors {observed} -n {draws} --seed {seed} -o {folder}/samples.h5
sbi-dgm calibrate {folder}/run/posterior.safetensors {folder}/simulations.h5 --seed {seed} -o {folder}/report"""


def quickstart(
    folder: str | Path, *, overwrite: bool = False, say: Callable[[str], Any] = print
) -> tuple[Samples, Report]:
    """Simulate, train, sample and calibrate in `folder`; compare with the exact posterior.

    Args:
        folder: for simulations.h5, run/, observed.txt, samples.h5, comparison.csv, corner.png and report/.
        overwrite: replace the folder.
        say: gets each line for the user.

    """
    from sbi_dgm import plots

    folder = Path(folder)
    refuse_existing(folder, overwrite)
    _clear(folder)
    problem: Any = _find()
    say(f"Real data: {len(problem.observed['mu'])} distance moduli of type-Ia supernovae (JLA). Model: flat wCDM.")
    write_text(folder / "observed.txt", "".join(f"{value:.12e}\n" for value in problem.observed["mu"]))
    data = simulate(PROBLEM, ROWS, out=folder / "simulations.h5", seed=SEED, workers=2)
    posterior = fit(data, seed=SEED, out=folder / "run")
    samples = posterior.sample(DRAWS, problem.observed, seed=SEED, log_prob=True)
    samples.save(folder / "samples.h5")
    exact = Samples.of(
        problem.prior, problem.reference_posterior(problem.observed["mu"], 5 * DRAWS, numpy_generator(0))
    )
    table = comparison(samples, exact)
    table.to_csv(folder / "comparison.csv")
    say(f"\nPosterior for the real supernovae, medians and 68 % intervals:\n\n{pretty(table)}\n")
    plots.save(samples.corner(others={"exact (grid)": exact}, label="sbi_dgm"), folder / "corner.png")
    report = calibrate(posterior, data, seed=SEED, out=folder / "report")
    say(f"\nCalibration on {report.rows} held-out universes: {report.verdict}.")
    say(f"Everything is in {folder}/: look at corner.png. The same, step by step:\n")
    say(STEPS.format(folder="my", observed=folder / "observed.txt", rows=ROWS, draws=DRAWS, seed=SEED))
    return samples, report


def _clear(folder: Path) -> None:
    """Remove what an earlier quickstart made, and nothing else."""
    for name in ("run", "report", "simulations.h5.shards"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("simulations.h5", "observed.txt", "samples.h5", "comparison.csv", "corner.png"):
        (folder / name).unlink(missing_ok=True)


def _find() -> Any:
    problem = simulators.find(PROBLEM)
    if not hasattr(problem, "reference_posterior"):
        raise SbiError(f"the installed simulator {PROBLEM!r} has no reference posterior: another package replaced it.")
    return problem


def comparison(samples: Samples, exact: Samples) -> pd.DataFrame:
    """Ours and the exact posterior side by side, and how far apart they are in units of the exact sd."""
    ours, theirs = samples.summary(), exact.summary()
    columns = ["median", "16%", "84%"]
    table = pd.concat({"ours": ours[columns], "exact": theirs[columns]}, axis=1)
    table[("difference", "mean [sd]")] = (ours["mean"] - theirs["mean"]) / theirs["sd"]
    table[("difference", "sd ratio")] = ours["sd"] / theirs["sd"]
    table[("prior", "edge reached")] = ours["edge"]
    return table


def pretty(table: pd.DataFrame) -> str:
    """A table for the terminal."""
    return table.to_string(float_format=lambda value: f"{value:.3f}")
