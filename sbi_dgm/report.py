"""The calibration report: held-out rows in, one verdict out, with its numbers and figures."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from tqdm import tqdm

from sbi_dgm.data.batches import Batch, Noise, named, noisy
from sbi_dgm.data.columns import gather
from sbi_dgm.data.reading import Reading
from sbi_dgm.data.simulations import Simulations
from sbi_dgm.data.source import Source, tensor
from sbi_dgm.data.splits import SplitRule
from sbi_dgm.diagnostics import calibration
from sbi_dgm.errors import DataError, ExternalError, OptionError, unknown
from sbi_dgm.files import atomic, write_json
from sbi_dgm.seeds import numpy_generator
from sbi_dgm.univariate import Array
from sbi_dgm.weights import row_weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVEL = 0.01  # probability that a calibrated posterior is accused, over all parameters together
NOMINAL = np.linspace(0, 1, 101)
BLOCK_DRAWS = 2**17  # of a step of the progress bar
MIN_ROWS = 50
FEW = 20  # draws that a rank needs


class Judged(Protocol):
    """All that a diagnostic needs of a posterior."""

    @property
    def names(self) -> Sequence[str]:
        """Of the parameters."""
        ...

    def sample(self, n: int, x: Any, *, seed: int | None = None, log_prob: bool = False) -> Any:
        """Draws with `array` (B, n, D) and `log_prob` (B, n)."""
        ...

    def log_prob(self, theta: Any, x: Any) -> Array:
        """ln q of theta (B, D) at x, (B,)."""
        ...


@dataclass(frozen=True)
class Report:
    """What calibration found.

    Attributes:
        verdict: "calibrated", or what is wrong, in words.
        calibrated: whether no test accuses.
        rows, draws: how many held-out rows, and draws of each.
        log_prob: mean ln q of the truth, its standard error, and the mean under the prior where there is one.
        parameters: p-value and finding for each parameter.
        regions: p-value and finding for highest-density regions.
        coverage: empirical coverage of the 50, 68, 90 and 95 % highest-density regions.
        ranks: (R, D), of the truth in each parameter; `credibility` (R,) of the region that reaches it.

    """

    verdict: str
    calibrated: bool
    rows: int
    draws: int
    log_prob: dict[str, float]
    parameters: dict[str, dict[str, Any]]
    regions: dict[str, Any]
    coverage: dict[str, float]
    ranks: Array = field(repr=False)
    credibility: Array = field(repr=False)

    def to_json(self) -> dict[str, Any]:
        """All but the ranks."""
        return {k: v for k, v in asdict(self).items() if k not in ("ranks", "credibility")}

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
        }

    def save(self, folder: str | Path) -> None:
        """Write report.json, ranks.png and coverage.png."""
        write_json(Path(folder) / "report.json", self.to_json())
        for name, figure in self.figures().items():
            with atomic(Path(folder) / f"{name}.png") as temporary:
                figure.savefig(temporary, format="png", dpi=130)


def calibrate(
    posterior: Judged,
    data: Simulations,
    *,
    out: str | Path | None = None,
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
    densities = draws if getattr(posterior, "density", "exact") == "exact" else FEW
    _require_noise(posterior, noise)
    rng = numpy_generator(seed)
    rows = _independent(posterior, data, held_out(posterior, data), rng)
    if len(rows) < MIN_ROWS:
        kind = "groups" if "group" in data.columns else "rows"
        raise DataError(
            f"{len(rows)} held-out {kind}: at least {MIN_ROWS} are needed; simulate more, or train with a larger test "
            "split (--set split.test=0.2)."
        )
    rows = np.sort(rng.choice(rows, min(max_rows, len(rows)), replace=False))
    theta = gather(data.columns["theta"], rows)
    columns = [data.names.index(name) for name in posterior.names]
    x, theta = _observed(data, rows, theta, noise, seed), theta[:, columns]
    ranks, credibility, log_prob = _judge(posterior, theta, x, (draws, densities), rng, progress)
    report = _report(posterior, theta, ranks, credibility, log_prob, draws)
    if out is not None:
        report.save(out)
    return report


def held_out(posterior: Judged, data: Simulations) -> np.ndarray:
    """The valid rows of `data` that `posterior` was not trained on, nor on others of their groups."""
    record = getattr(posterior, "record", {})
    trained = record.get("data", {})
    valid = np.flatnonzero(data.valid)
    known = trained.get("rows", 0)
    if not 0 < known <= len(data) or data.fingerprint(known) != trained["fingerprint"]:
        return valid
    parts, new = data.split(SplitRule(**record["split"]), known), valid[valid >= known]
    if "group" in data.columns:
        group = np.asarray(data.columns["group"][:])
        new = new[~np.isin(group[new], group[np.concatenate([parts.train, parts.validation])])]
    return np.concatenate([parts.test, new])


def _independent(posterior: Judged, data: Simulations, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws of the weighted rows, one of each group at most; all rows where there are neither weights nor groups.

    A group is kept with a probability in proportion to its mean weight, and by one row of it, in proportion to its
    rows' weights (the largest of ln w plus Gumbel noise). A row without a group is a group of its own.
    """
    for name in posterior.names:
        if name not in data.names:
            raise DataError(f"the simulations have no parameter {name!r}: {unknown('parameter', name, data.names)}")
    if not len(rows) or not {"proposal_weight", "event_weight", "group"} & set(data.columns):
        return rows
    weight = _weights(posterior, data, rows)
    group = np.asarray(data.columns["group"][:])[rows] if "group" in data.columns else rows
    group = np.unique(group, return_inverse=True)[1]
    with np.errstate(divide="ignore"):
        order = np.lexsort((np.log(weight) + rng.gumbel(size=len(rows)), group))
    chosen = rows[order[np.flatnonzero(np.diff(group[order], append=-1))]]
    mean = np.bincount(group, weight) / np.bincount(group)
    kept = chosen[rng.random(len(chosen)) * mean.max() < mean]
    if len(kept) < min(MIN_ROWS, len(chosen)):
        raise DataError(
            f"{len(kept)} of {len(chosen)} held-out rows are left, kept in proportion to their weights (the largest "
            f"is {mean.max() / mean.mean():.3g} times the mean): at least {MIN_ROWS} are needed; simulate more."
        )
    return np.sort(kept)


def _weights(posterior: Judged, data: Simulations, rows: np.ndarray) -> Array:
    """One positive number a row."""
    if not {"proposal_weight", "event_weight"} & set(data.columns):
        return np.ones(len(rows))
    source, cpu = Source(data, data.reference(posterior.names, rows)[0]), torch.device("cpu")
    reading = Reading().resolved(source.bytes(len(data)), cpu)
    rate = getattr(posterior, "record", {}).get("rate", False)
    return row_weights(source, reading, rate=rate, seed=0, device=cpu)[rows]  # type: ignore[index]


def _require_noise(posterior: Judged, noise: Noise | None) -> None:
    trained = getattr(posterior, "record", {}).get("noise")
    if trained != named(noise):
        raise ExternalError(
            f"the posterior was trained with noise={trained}, and is judged with {named(noise)}: pass it."
        )


def _observed(
    data: Simulations, rows: np.ndarray, theta: Array, noise: Noise | None, seed: int
) -> dict[str, np.ndarray]:
    """The observables of the rows, with noise where there is a model of it."""
    x = data.x(rows)
    if noise is None:
        return x
    parameters = torch.as_tensor(theta, dtype=torch.float32)
    tensors = {name: tensor(values) for name, values in x.items()}
    return {n: t.numpy() for n, t in noisy(Batch(parameters, tensors, parameters, parameters), noise, seed).x.items()}


def _judge(
    posterior: Judged,
    theta: Array,
    x: dict[str, np.ndarray],
    counts: tuple[int, int],
    rng: np.random.Generator,
    progress: bool,
) -> tuple[Array, Array, Array]:
    """Ranks (R, D), credibilities (R,) and ln q of the truth (R,), by (draws, draws with ln q) of each row."""
    draws, densities = counts
    step = max(1, BLOCK_DRAWS // draws)
    parts = []
    with tqdm(total=len(theta), unit="row", desc="calibrating", disable=not progress) as bar:
        for first in range(0, len(theta), step):
            rows = slice(first, first + step)
            truth, seen = theta[rows], {name: values[rows] for name, values in x.items()}
            dense = posterior.sample(densities, seen, seed=int(rng.integers(2**62)), log_prob=True)
            samples = dense if densities >= draws else posterior.sample(draws, seen, seed=int(rng.integers(2**62)))
            log_prob = posterior.log_prob(truth, seen)
            above = calibration.ranks(-log_prob[:, None], -dense.log_prob[..., None], rng)[:, 0]
            parts.append((calibration.ranks(truth, samples.array, rng), above, log_prob))
            bar.update(len(truth))
    ranks, credibility, log_prob = (np.concatenate(column) for column in zip(*parts, strict=True))
    return ranks, credibility, log_prob


def _report(posterior: Judged, theta: Array, ranks: Array, credibility: Array, log_prob: Array, draws: int) -> Report:
    level = LEVEL / (len(posterior.names) + 1)
    found = {n: calibration.parameter_uniformity(u, level) for n, u in zip(posterior.names, ranks.T, strict=True)}
    regions = calibration.coverage_uniformity(credibility, level)
    prior = getattr(posterior, "prior", None)
    under_prior = {} if prior is None else {"prior": float(prior.log_prob(theta).mean())}
    accused = [f"{name} {test.shape}" for name, test in found.items() if test.shape != "calibrated"]
    if regions.shape != "calibrated":
        accused.insert(0, regions.shape)
    return Report(
        verdict="; ".join(accused) or "calibrated",
        calibrated=not accused,
        rows=len(theta),
        draws=draws,
        log_prob={"mean": float(log_prob.mean()), "standard_error": float(log_prob.std() / len(theta) ** 0.5)}
        | under_prior,
        parameters={name: {"p_value": test.p_value, "finding": test.shape} for name, test in found.items()},
        regions={"p_value": regions.p_value, "finding": regions.shape},
        coverage={f"{p:.0%}": float((credibility <= p).mean()) for p in (0.5, 0.68, 0.9, 0.95)},
        ranks=ranks,
        credibility=credibility,
    )
