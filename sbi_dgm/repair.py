r"""Repair: a posterior too narrow or too wide is rescaled about its mean, by what simulations say.

In the coordinates z, draws become z' = mu(x) + s (z - mu(x)), with a scale s_j for each parameter; the density goes
along, exactly (`sbi_dgm.estimators.rescaled`). Scaling the draws of z_j by s_j moves the rank of the truth among them
as scaling the truth by 1 / s_j would. The scale is the root of

.. math::
    \frac{1}{R} \sum_{i=1}^R v_i(s)^2 = E\, v^2, \qquad v_i(s) = \Phi^{-1}\left(\frac{r_i(s) + 1/2}{S + 1}\right)

with r_i the rank of mu_i + (z_i^* - mu_i) / s among S draws, so that normal scores of the ranks have the mean square
that uniform ranks give them: what `calibrate` tests a width by (Cook, Gelman and Rubin 2006,
doi:10.1198/106186006X136976). It asks for draws alone, so every family can be repaired. A truth beyond all draws comes
within them as s grows. Where posteriors are normal, ln s has a standard error of 1 / sqrt(2 R); the stated one is that
of the mean over its slope.

What it cannot do: one s serves all x, so a posterior too narrow here and too wide there becomes right on average only.
A bias stays, paid for by width. Modes that lie apart move, they do not widen. Correlations and shapes stay. Of a joint
prior, s belongs to the coordinates, which mix parameters. Where that matters, train better; the regions
(`sbi_dgm.conformal`) are true all the same. They rest on a quarter of the rows, to which no scale is fitted.
"""

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
import scipy
import torch

from sbi_dgm import conformal, heldout
from sbi_dgm.data.batches import Noise
from sbi_dgm.data.simulations import Simulations
from sbi_dgm.errors import DataError, OptionError
from sbi_dgm.estimators.rescaled import Rescaled, rescaled
from sbi_dgm.kinds import is_a, whole
from sbi_dgm.progress import Bar
from sbi_dgm.seeds import numpy_generator
from sbi_dgm.univariate import Array

MIN_ROWS = 200
FITTING = 0.75  # of the rows; what remains is for regions
RANKED = 128  # draws that a truth is ranked among
LARGEST = 100.0  # scale
STEP = 0.05  # in ln s, for the slope
P = TypeVar("P", bound=Any)


class Scale(NamedTuple):
    """What draws are scaled by, and the standard error of its logarithm."""

    scale: float
    log_error: float


def repaired(
    posterior: P,
    data: Simulations,
    *,
    noise: Noise | None = None,
    draws: int = 1000,
    max_rows: int = 4000,
    seed: int = 0,
    progress: bool = True,
) -> P:
    """A posterior with the width that simulations say, a scale for each parameter, and with `regions` that hold.

    Used are rows that it was not trained on: of its own file those that validated, so that the test rows remain for
    `calibrate`; of any other file all valid ones. Weights and groups count as in `calibrate`. Three quarters of the
    rows fit the scales, one is kept for regions. Since validation rows decided when training ended, the guarantee of
    regions is all but exact with them; with rows of another file it is exact.

    Args:
        data: simulations.
        noise: the model of noise that the posterior was trained with.
        draws: that regions and intervals rest on, at each observation; where a density is not exact, regions have 100.
        max_rows: at most so many rows are used, chosen by the seed.
        seed: of draws and choice.
        progress: show a progress bar.

    Returns:
        another posterior; `record["repaired"]` has the data's fingerprint, rows, seed, and scales with their errors.

    Raises:
        OptionError: repaired already.
        DataError: fewer than 200 rows.
        ExternalError: the posterior was trained with another model of noise.

    Example::

        better = posterior.repaired(data)
        better.sample(1000, x)
        better.regions(0.9, x).contains(theta)

    """
    _refuse(posterior, draws)
    is_a("data", data, Simulations, "sbi_dgm.Simulations, opened or made")
    rng = numpy_generator(seed)
    theta, x = heldout.pairs(posterior, data, noise, max_rows, rng, seed, fewest=MIN_ROWS, purpose="repair")
    order, first = rng.permutation(len(theta)), int(FITTING * len(theta))
    fitting, keeping = (_taken(part, theta, x) for part in (order[:first], order[first:]))
    with Bar(total=len(theta), unit="row", desc="repairing", disable=not progress) as bar:
        scales = _scales(posterior, *fitting, rng, bar)
        better = _scaled(posterior, scales)
        scores = conformal.scores(better, *keeping, draws, rng, bar)
    used = {"scale": len(fitting[0]), "regions": len(keeping[0])}
    better.record["repaired"] = _record(data, used, seed, scales) | scores
    return better


def _refuse(posterior: Any, draws: int) -> None:
    if "repaired" in posterior.record:
        raise OptionError("this posterior was repaired already: repair the one that was trained, by all rows at once.")
    if whole("draws", draws) < conformal.SOLVED:
        raise OptionError(f"draws = {draws}: regions need at least {conformal.SOLVED}.")


def _taken(rows: np.ndarray, theta: Array, x: Mapping[str, np.ndarray]) -> tuple[Array, dict[str, np.ndarray]]:
    return theta[rows], {name: values[rows] for name, values in x.items()}


def _scaled(posterior: P, scales: Mapping[str, Scale]) -> P:
    """The same weights, copied, with draws rescaled."""
    values = torch.tensor([one.scale for one in scales.values()], dtype=torch.float32, device=posterior.device)
    network = rescaled(copy.deepcopy(posterior.network), values)
    return type(posterior)(posterior.model._replace(repaired=True), network, posterior.record, posterior.gate)


def _record(data: Simulations, rows: dict[str, int], seed: int, scales: Mapping[str, Scale]) -> dict[str, Any]:
    return {
        "data": {"path": str(data.path or "memory"), "rows": len(data), "fingerprint": data.fingerprint()},
        "rows": rows,
        "seed": seed,
        "scale": {name: one._asdict() for name, one in scales.items()},
    }


def _scales(
    posterior: Any, theta: Array, x: Mapping[str, np.ndarray], rng: np.random.Generator, bar: Bar
) -> dict[str, Scale]:
    """For each parameter, from rows (R, D)."""
    coordinates, parts = posterior.model.reference.coordinates, []
    about = Rescaled(posterior.network.estimator, torch.ones(len(posterior.names)))
    for rows, seen in conformal.blocks(theta, x, RANKED):
        samples = posterior.sample(RANKED, seen, seed=int(rng.integers(2**62)))
        centre = about.centre(posterior._context(posterior._seen(seen)[0]))
        parts.append((coordinates.forward(samples.array)[0], centre.double().cpu().numpy()))
        bar.update(len(theta[rows]))
    draws, centre = (np.concatenate(part) for part in zip(*parts, strict=True))
    truth = coordinates.forward(np.clip(theta, coordinates.low, coordinates.high))[0]
    return {name: fitted(name, truth[:, i], draws[..., i], centre[:, i]) for i, name in enumerate(posterior.names)}


def fitted(name: str, truth: Array, draws: Array, centre: Array) -> Scale:
    """The scale about `centre` (R,) that gives the truths (R,) uniform ranks among their draws (R, S).

    >>> rng = np.random.default_rng(0)
    >>> found = fitted("a", 2 * rng.normal(size=5000), rng.normal(size=(5000, 200)), np.zeros(5000))
    >>> round(found.scale, 1), round(found.log_error, 2)
    (2.0, 0.01)
    """
    size, draws = draws.shape[1], np.ascontiguousarray(draws)
    square = scipy.special.ndtri((np.arange(size + 1) + 0.5) / (size + 1)) ** 2

    def squares(log_scale: float) -> Array:
        """Of the scores, over what uniform ranks give on average (R,)."""
        moved = centre + (truth - centre) * np.exp(-log_scale)
        return square[np.count_nonzero(draws < moved[:, None], axis=1)] / square.mean()

    def excess(log_scale: float) -> float:
        return float(squares(log_scale).mean()) - 1

    most = np.log(LARGEST)
    if not excess(-most) > 0 > excess(most):
        raise DataError(
            f"{name}: no scale from {1 / LARGEST:g} to {LARGEST:g} repairs it; its posterior is wrong by more than its "
            "width: train again."
        )
    root = float(scipy.optimize.brentq(excess, -most, most, xtol=1e-5))
    slope = (excess(root - STEP) - excess(root + STEP)) / (2 * STEP)
    return Scale(float(np.exp(root)), float(squares(root).std() / len(truth) ** 0.5 / slope))
