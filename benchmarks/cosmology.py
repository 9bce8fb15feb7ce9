"""What the exact posteriors of the cosmological problems are like: the tables and the figure of docs/cosmology.md.

    python benchmarks/cosmology.py

- widths: sd of the exact posterior over the prior's, by parameter, of 20 draws of the prior, 1,000 draws each: mean,
  least and greatest;
- pantheon_plus: mean and sd for the real data, by a grid of 400 x 400 cells with M in closed form, of all
  magnitudes, of the summaries, and of the 25 bins as they are often used: means by inverse variance, without the
  covariance of bins, and with the model at the bin's mean redshift; and for 30 data sets simulated at
  Omega_m = 0.3, w_0 = -1 how far (rms) a summary moves the mean. Needs the extra `cosmology`;
- maps: one universe, Gaussian and lognormal, `docs/density_maps.png`.

The numbers go to `benchmarks/results/cosmology.json`.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from simulators.cosmology.density_maps import REDSHIFTS, SIDE, DensityMaps, LognormalMaps
from simulators.cosmology.moduli import Moduli
from simulators.cosmology.pantheon_plus import PantheonPlus, PantheonPlusBinned, PantheonPlusModes
from simulators.cosmology.power_spectrum import PowerSpectrum

RESULTS = Path(__file__).parent / "results" / "cosmology.json"
FIGURE = Path(__file__).parents[1] / "docs" / "density_maps.png"
TRUTH = np.array([[0.3, -1.0, -19.35]])


def widths(problem: Any, rows: int = 20) -> dict[str, list[float]]:
    """Mean, least and greatest ratio of sd to the prior's sd, by parameter."""
    xs = problem(problem.prior.sample(rows, seed=0), np.random.default_rng(0))
    sds = [problem.reference_posterior(x, 1000, np.random.default_rng(i)).std(0) for i, x in enumerate(xs)]
    ratio = np.array(sds) / problem.prior.sample(100_000, seed=1).std(0)
    columns = zip(problem.prior.names, ratio.T, strict=True)
    return {name: [round(float(f(r)), 3) for f in (np.mean, np.min, np.max)] for name, r in columns}


class Shortcut(Moduli):
    """The bins with means by inverse variance, their covariances with each other dropped.

    Args:
        bins: what is cut short.
        at_mean: the model is that of the bin's mean redshift, instead of the mean of models.

    """

    def __init__(self, bins: PantheonPlusBinned, at_mean: bool) -> None:
        w = (bins.matrix != 0) / np.diag(bins.sample.covariance)
        self.matrix = w / w.sum(1, keepdims=True)
        self.prior = bins.prior
        self.covariance = np.diag(np.diag(self.matrix @ bins.sample.covariance @ self.matrix.T))
        self.observed = {"s": self.matrix @ bins.sample.observed["m"]}
        if at_mean:
            self.nodes, self.design, self.offset = self.matrix @ bins.sample.redshift, np.eye(len(w)), 0.0
        else:
            self.nodes, self.offset = bins.sample.nodes, self.matrix @ bins.sample.offset
            self.design = self.matrix @ bins.sample.design


def moments(problem: Moduli, x: np.ndarray, cells: int) -> np.ndarray:
    """Mean and sd (2, 3) by a grid."""
    low, high = (np.asarray(edge) for edge in (problem.prior.coordinates.low, problem.prior.coordinates.high))
    axes = [a + (b - a) * (np.arange(cells) + 0.5) / cells for a, b in zip(low[:2], high[:2], strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    log_weight, offset, scale = problem._marginal(grid, x, low[2], high[2])
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    theta = np.column_stack([grid, offset])
    mean = weight @ theta
    return np.stack([mean, np.sqrt(weight @ (theta - mean) ** 2 + np.array([0, 0, scale**2]))])


def rounded(a: np.ndarray) -> list[float]:
    """To five digits behind the point."""
    return [round(float(value), 5) for value in a]


def pantheon() -> dict[str, Any]:
    """The table of summaries."""
    full, modes, bins = PantheonPlus(), PantheonPlusModes(), PantheonPlusBinned()
    cases: dict[str, Any] = {"modes": modes, "bins": bins}
    cases |= {"bins, no correlations": Shortcut(bins, False), "and at mean redshift": Shortcut(bins, True)}
    known = moments(full, full.observed["m"], 400)
    found: dict[str, Any] = {"all": {"mean": rounded(known[0]), "sd": rounded(known[1])}}
    xs = full(np.repeat(TRUTH, 30, 0), np.random.default_rng(0))
    exact = [moments(full, x, 150) for x in xs]
    for name, case in cases.items():
        mean, sd = moments(case, case.observed["s"], 400)
        shifts = [(moments(case, case.matrix @ x, 150)[0] - one[0]) / one[1] for x, one in zip(xs, exact, strict=True)]
        found[name] = {
            "mean": rounded(mean),
            "sd": rounded(sd),
            "shift": rounded((mean - known[0]) / known[1]),
            "ratio": rounded(sd / known[1]),
            "rms_shift": rounded(np.sqrt(np.mean(np.square(shifts), 0))),
        }
    return found


def draw() -> None:
    """The figure: rows are the two problems, columns the two redshifts."""
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    for row, problem in zip(axes, (DensityMaps(), LognormalMaps()), strict=True):
        maps = problem(problem.fiducial[None], np.random.default_rng(1))[0]
        for axis, one, z in zip(row, maps, REDSHIFTS, strict=True):
            image = axis.imshow(one, extent=(0, SIDE, 0, SIDE), vmin=-1.5, vmax=2.5, cmap="magma", origin="lower")
            axis.set_title(f"{problem.name}, z = {z:g}", fontsize=9)
    for axis in axes[1]:
        axis.set_xlabel("Mpc/h")
    for axis in axes[:, 0]:
        axis.set_ylabel("Mpc/h")
    figure.colorbar(image, ax=axes, label=r"$\delta$ + noise", shrink=0.8)
    figure.savefig(FIGURE, dpi=110)


def main() -> None:
    """All of it."""
    draw()
    found: dict[str, Any] = {p.name: widths(p) for p in (DensityMaps(), PowerSpectrum(), PantheonPlusModes())}
    found["pantheon_plus"] = pantheon()
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
