"""The collider problems: rows a second on one core, how wide exact posteriors are, and a figure.

    OMP_NUM_THREADS=1 python benchmarks/collider.py [--rows 100]

Speed: the best of five batches of 1,000 draws of the prior, in seconds of the processor; of jets also at 50 particles
each. Widths: the standard deviation of each parameter in its posterior over that in the prior, at so many draws of the
prior, with the p-values of the truths' ranks. Both go into `benchmarks/results/collider.json`, the figure into
`docs/collider.png`.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from sbi_dgm.files import write_json
from sbi_dgm.simulator import Simulator
from simulators.collider.bump import HIGH, LOW, Bump
from simulators.collider.dimuon import Dimuon
from simulators.collider.dimuon_weighted import DimuonWeighted
from simulators.collider.jets import Jets

HERE = Path(__file__).parent
BATCH, DRAWS = 1000, 99
FIFTY = np.array([0.6, 0.3])  # theta of jets with 50 particles


def speed(problem: Simulator, theta: np.ndarray) -> float:
    """Rows a second."""
    best = np.inf
    for seed in range(6):
        start = time.process_time()
        problem(theta, np.random.default_rng(seed))
        best = min(best, time.process_time() - start) if seed else best
    return round(len(theta) / best)


def widths(problem: Any, rows: int) -> dict[str, Any]:
    """Of each parameter: quantiles of posterior sd over prior sd, and the p-value of the ranks."""
    theta = problem.prior.sample(rows, seed=1)
    x = problem(theta, np.random.default_rng(2))
    draws = [problem.reference_posterior(one, DRAWS, np.random.default_rng(i)) for i, one in enumerate(x)]
    share = np.std(draws, axis=1) / problem.prior.sample(100_000, seed=3).std(0)
    rank = (np.mean(np.array(draws) < theta[:, None], axis=1) * DRAWS + 0.5) / (DRAWS + 1)
    found = {
        name: {
            "sd over prior sd (10, 50, 90 %)": np.quantile(share[:, i], [0.1, 0.5, 0.9]).round(3).tolist(),
            "p of ranks": round(float(stats.kstest(rank[:, i], "uniform").pvalue), 3),
        }
        for i, name in enumerate(problem.prior.names)
    }
    return {"rows": rows, **found}


def figure() -> Figure:
    """A spectrum with its expectation, pairs at two energies, and a jet."""
    rng, figure = np.random.default_rng(4), Figure(figsize=(10.5, 3.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _spectrum(left, rng)
    x = Dimuon()(Dimuon.fiducial[None], rng)[0]
    for low, high, label in ((0, 150, "88 GeV"), (150, 999, "250 GeV")):
        chosen = x[(x[:, 2] == 1) & (x[:, 1] > low) & (x[:, 1] < high)]
        middle.plot(chosen[:, 0], chosen[:, 1], ".", ms=4, label=label)
    middle.set(xlabel=r"$\cos\theta$", ylabel=r"$M_{\mu\mu}$ [GeV]", title="dimuon")
    middle.legend()
    x = Jets()(np.array([[0.6, 0.5]]), rng)[0]
    x = x[x[:, 3] == 1]
    right.scatter(x[:, 1], x[:, 2], s=2 * np.exp(0.8 * x[:, 0]), alpha=0.5, edgecolor="none")
    right.set(xlabel=r"$\Delta\eta$", ylabel=r"$\Delta\phi$", title=f"jets: {len(x)} particles, area $p_T^{{0.8}}$")
    return figure


def _spectrum(axes: Any, rng: np.random.Generator) -> None:
    problem, width = Bump(), 1.5
    x, grid = problem(problem.fiducial[None], rng)[0], np.linspace(LOW, HIGH, 401)
    events, theta = x[x[:, 1] == 1, 0], problem.fiducial[None]
    edges = np.arange(LOW, HIGH + width, width)
    count, middle = np.histogram(events, edges)[0], (edges[1:] + edges[:-1]) / 2
    axes.errorbar(middle, count, np.sqrt(count), fmt=".", color="black", label=f"{len(events)} events")
    axes.plot(grid, width * problem.intensity(theta, grid)[0], label="expected")
    axes.set(xlabel="mass [GeV]", ylabel=f"events / {width} GeV", title="bump", ylim=(0, None))
    axes.legend()


def main() -> None:
    """Measure, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100)
    rows = parser.parse_args().rows
    problems = (Bump(), Dimuon(), DimuonWeighted(), Jets())
    rates = {problem.name: speed(problem, problem.prior.sample(BATCH, seed=0)) for problem in problems}
    rates["jets of 50 particles"] = speed(Jets(), np.tile(FIFTY, (BATCH, 1)))
    posteriors = {problem.name: widths(problem, rows) for problem in (Bump(), Dimuon())}
    figure().savefig(HERE.parent / "docs" / "collider.png", dpi=110)
    write_json(HERE / "results" / "collider.json", {"rows a second": rates, "posteriors": posteriors})
    print(rates, posteriors)


if __name__ == "__main__":
    main()
