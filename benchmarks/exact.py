"""Learned posteriors of cosmology and collider problems against exact ones.

    OMP_NUM_THREADS=1 python benchmarks/exact.py FOLDER [problems ...] [--methods learned,moped]
    python benchmarks/exact.py FOLDER --table

Each problem is simulated once, training and held-out rows together. The default flow learns its posterior behind the
embedding named below, or behind a score compression (MOPED) at the simulator's fiducial point: of the logarithms of
binned spectra where x is a field, of a histogram where x is a set. At 20 observations drawn from the prior and the
simulator, draws of both posteriors are compared: the error of the mean in units of the exact sd, and the sd in units of
the exact one, both averaged over the observations; and likewise for real data, where there are any. The test rows go
through `calibrate`. One JSON file a cell in FOLDER/cells; simulations, runs and draws of the exact posteriors are kept
in FOLDER. A call goes on where it stopped.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import sbi_dgm
from sbi_dgm import CNN, DeepSets, Observable, Posterior, Simulations
from sbi_dgm.embeddings.base import Embedding
from sbi_dgm.files import write_json
from sbi_dgm.simulator import Simulator, find

OBSERVATIONS, DRAWS, SEED = 20, 4000, 1000
BANDS = 20  # of a spectrum
COLUMNS = (
    "problem",
    "simulations",
    "summary",
    "parameter",
    "exact sd / prior's",
    "learned sd / prior's",
    "error of the mean / exact sd",
    "learned sd / exact",
    "`calibrate`",
    "s",
)
Array = np.ndarray


class Problem(NamedTuple):
    """What is learned.

    Attributes:
        rows: simulations in all.
        embedding: of x.
        view: what of x is compressed instead of x itself: its names, and the function.
        log: whether its logarithm is.
        made: simulations that the compression is made of; counts are not matched, and need more.

    """

    rows: int
    embedding: str | Embedding = "auto"
    view: Callable[[Array], Array] | None = None
    log: bool = False
    made: int = 2000


def spectra(maps: Array) -> Array:
    """Mean power in bands of |k| of each slice: (B, S, n, n) -> (B, S * bands)."""
    power = np.abs(np.fft.fft2(maps, norm="ortho")) ** 2
    k = np.hypot(*np.meshgrid(*[np.fft.fftfreq(maps.shape[-1]) * maps.shape[-1]] * 2)).ravel()
    edges = np.geomspace(0.99, k.max() * 1.01, BANDS + 1)
    chosen = [(low <= k) & (k < high) for low, high in pairwise(edges)]
    flat = power.reshape(*maps.shape[:2], -1)
    return np.concatenate([flat[..., one].mean(-1) for one in chosen if one.any()], axis=-1)


def histogram(events: Array) -> Array:
    """Events in bins of a GeV: (B, M, 2) -> (B, 60)."""
    bins = np.arange(100.0, 161.0)
    return np.stack([np.histogram(row[row[:, 1] > 0, 0], bins)[0] for row in events]).astype(np.float32)


PROBLEMS = {
    "power_spectrum": Problem(5000, log=True),
    "bump": Problem(10_000, DeepSets(), histogram, made=40_000),
    "density_maps": Problem(20_000, CNN(periodic=True, symmetric=True), spectra, log=True),
    "pantheon_plus_modes": Problem(10_000),
    "pantheon_plus_binned": Problem(10_000),
}


class Viewed:
    """A simulator of a function of another's x, such as its spectrum."""

    def __init__(self, simulator: Simulator, view: Callable[[Array], Array]) -> None:
        self.simulator, self.view, self.name = simulator, view, f"{simulator.name}_viewed"
        self.prior, self.fiducial = simulator.prior, getattr(simulator, "fiducial", None)
        example = view(_bare(simulator(self.prior.sample(1, seed=0), np.random.default_rng(0))))
        self.observables = {"view": Observable(example.shape[1:])}

    def __call__(self, theta: Array, rng: np.random.Generator) -> Array:
        return self.view(_bare(self.simulator(theta, rng)))


def _bare(x: Array | Mapping[str, Array]) -> Array:
    return next(iter(x.values())) if isinstance(x, Mapping) else x


def learned(name: str, folder: Path) -> tuple[Posterior, Simulations, Callable[[Array], Array]]:
    """The default flow behind the problem's embedding, the simulations, and what of x it sees."""
    data, run = simulations(name, folder), folder / "runs" / name
    finished = run / "posterior.safetensors"
    if finished.exists():
        return sbi_dgm.load(finished), data, _same
    return sbi_dgm.fit(data, embedding=PROBLEMS[name].embedding, out=run, resume=True, device="cpu"), data, _same


def moped(name: str, folder: Path) -> tuple[Posterior, Simulations, Callable[[Array], Array]]:
    """The default flow behind a score compression."""
    problem, data, simulator = PROBLEMS[name], simulations(name, folder), find(name)
    view = problem.view or _same
    if problem.view is not None:
        simulator = Viewed(simulator, problem.view)
        data = _viewed(data, simulator)
    log = list(simulator.observables) if problem.log else []
    compressed = sbi_dgm.moped(simulator, log=log, simulations=problem.made)
    return sbi_dgm.fit(data, embedding=compressed, device="cpu"), data, view


METHODS = {"learned": learned, "moped": moped}


def _same(x: Array) -> Array:
    return x


def _viewed(data: Simulations, simulator: Viewed) -> Simulations:
    column = data.columns[f"x/{next(iter(data.observables))}"]
    x = np.concatenate([simulator.view(column[i : i + 500]) for i in range(0, len(data), 500)])
    return Simulations.from_arrays(
        data.theta, {"view": x}, prior=simulator.prior, observables=dict(simulator.observables)
    )


def simulations(name: str, folder: Path) -> Simulations:
    """The problem's simulations, drawn once."""
    path = folder / f"{name}.h5"
    if path.exists():
        return Simulations.open(path)
    return sbi_dgm.simulate(name, PROBLEMS[name].rows, out=path, seed=0)


def references(name: str, folder: Path) -> dict[str, Array]:
    """Observations x with their truths, and draws (20, 4000, D) of the exact posteriors."""
    path = folder / f"{name}_exact.npz"
    if not path.exists():
        simulator: Any = find(name)
        rng = np.random.default_rng(SEED)
        theta = simulator.prior.sample(OBSERVATIONS, seed=SEED)
        x = _bare(simulator(theta, rng)).astype(np.float32)
        draws = np.stack([simulator.reference_posterior(one, DRAWS, rng) for one in x])
        np.savez(path, theta=theta, x=x, draws=draws)
    with np.load(path) as file:
        return dict(file)


def cell(name: str, method: str, folder: Path) -> dict[str, Any]:
    """Train and compare."""
    posterior, data, view = METHODS[method](name, folder)
    exact = references(name, folder)
    draws = posterior.sample(DRAWS, exact["x"] if view is _same else view(exact["x"]), seed=1).array
    mean, sd = exact["draws"].mean(1), exact["draws"].std(1)
    report = sbi_dgm.calibrate(posterior, data, progress=False)
    simulator: Any = find(name)
    prior = simulator.prior.sample(20_000, seed=1).std(0)
    figures = {
        "error": np.abs(draws.mean(1) - mean) / sd,
        "ratio": draws.std(1) / sd,
        "exact": sd / prior,
        "learned": draws.std(1) / prior,
    }
    return {
        "problem": name,
        "method": method,
        "rows": PROBLEMS[name].rows,
        "embedding": posterior.model.embedding["name"],
        "parameters": posterior.names,
        **{key: value.mean(0).round(4).tolist() for key, value in figures.items()},
        "each": {key: value.round(4).tolist() for key, value in figures.items()},
        "observed": real(posterior, simulator, view) if hasattr(simulator, "observed") else None,
        "verdict": report.verdict,
        "seconds": posterior.record["seconds"],
        "validation": posterior.record["best_validation_loss"],
    }


def real(posterior: Posterior, simulator: Any, view: Callable[[Array], Array]) -> dict[str, list[float]]:
    """The same comparison for the real data: means, sds, and what of them is compared."""
    x = _bare(simulator.observed)
    exact = simulator.reference_posterior(x, DRAWS, np.random.default_rng(SEED))
    draws = posterior.sample(DRAWS, x if view is _same else view(x[None])[0], seed=1).array
    figures = {
        "exact_mean": exact.mean(0),
        "exact_sd": exact.std(0),
        "error": np.abs(draws.mean(0) - exact.mean(0)) / exact.std(0),
        "ratio": draws.std(0) / exact.std(0),
    }
    return {key: value.round(4).tolist() for key, value in figures.items()}


def table(folder: Path) -> str:
    """All cells as Markdown."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for name in PROBLEMS:
        for method in METHODS:
            path = folder / "cells" / f"{name}-{method}.json"
            if path.exists():
                lines += _lines(json.loads(path.read_text()))
    return "\n".join(lines)


def _lines(found: Mapping[str, Any]) -> list[str]:
    lines = []
    for i, parameter in enumerate(found["parameters"]):
        first = [f"`{found['problem']}`", f"{found['rows']:,}", found["embedding"]] if i == 0 else [""] * 3
        last = (
            ["passes" if found["verdict"] == "calibrated" else "does not", f"{found['seconds']:.0f}"]
            if i == 0
            else [""] * 2
        )
        middle = [f"{found[key][i]:.3f}" for key in ("exact", "learned", "error", "ratio")]
        lines.append("| " + " | ".join([*first, parameter, *middle, *last]) + " |")
    return lines


def main() -> None:
    """Fill the cells that are missing, or print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("problems", nargs="*", default=list(PROBLEMS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--table", action="store_true")
    a = parser.parse_args()
    (a.folder / "cells").mkdir(parents=True, exist_ok=True)
    for name in [] if a.table else a.problems:
        for method in a.methods.split(","):
            path = a.folder / "cells" / f"{name}-{method}.json"
            if not path.exists():
                write_json(path, cell(name, method, a.folder))
    print(table(a.folder))


if __name__ == "__main__":
    main()
