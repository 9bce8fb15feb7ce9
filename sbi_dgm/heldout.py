"""Rows to judge a posterior by, or to repair it by: none that it was trained on, each a draw of its own."""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import torch

from sbi_dgm.data.batches import Batch, Noise, named, noisy
from sbi_dgm.data.columns import gather
from sbi_dgm.data.reading import Reading
from sbi_dgm.data.simulations import Simulations
from sbi_dgm.data.source import Source, tensor
from sbi_dgm.data.splits import Split, SplitRule
from sbi_dgm.errors import DataError, ExternalError, unknown
from sbi_dgm.kinds import whole
from sbi_dgm.univariate import Array
from sbi_dgm.weights import row_weights

MIN_ROWS = 50


class Pairs(NamedTuple):
    """R truths and what was observed of them: theta (R, D), x by observable's name (R, ...)."""

    theta: Array
    x: dict[str, np.ndarray]


def pairs(
    posterior: Any,
    data: Simulations,
    noise: Noise | None,
    most: int,
    rng: np.random.Generator,
    seed: int,
    *,
    fewest: int = MIN_ROWS,
    purpose: str = "",
) -> Pairs:
    """At most so many independent pairs, chosen by `rng`, that judge `posterior`; `seed` is that of the noise.

    With a `purpose` those to better it by, other than those that judge it.

    Raises:
        DataError: fewer than `fewest`.
        ExternalError: the posterior was trained with another model of noise.

    """
    most = whole("max_rows", most, fewest)
    require_noise(posterior, noise)
    candidates = _spare(posterior, data) if purpose else held_out(posterior, data)
    rows = independent(posterior, data, candidates, rng, fewest)
    if len(rows) < fewest:
        kind, part = ("rows to " + purpose + " by", "validation") if purpose else ("held-out " + data.unit, "test")
        raise DataError(
            f"{len(rows)} {kind}: at least {fewest} are needed; simulate more, or train with a larger {part} split "
            f"(--set split.{part}=0.2)."
        )
    rows = np.sort(rng.choice(rows, min(most, len(rows)), replace=False))
    theta = gather(data.columns["theta"], rows)
    columns = [data.names.index(name) for name in posterior.names]
    _require_spread(posterior, theta[:, columns])
    x = data.x(rows)
    return Pairs(theta[:, columns], x if noise is None else noised(x, theta, noise, seed))


def _require_spread(posterior: Any, theta: Array) -> None:
    """`DataError` for truths that are no draws of the prior, as all that is judged here has to be."""
    for name, same in zip(posterior.names, np.ptp(theta, axis=0) == 0, strict=True):
        if same:
            raise DataError(f"parameter {name!r} is the same in all rows: draws of the prior alone can judge.")
    prior = getattr(posterior, "prior", None)
    outside = np.zeros(len(theta), bool) if prior is None else ~np.isfinite(prior.log_prob(theta))
    if outside.any():
        first = ", ".join(f"{n} = {v:g}" for n, v in zip(posterior.names, theta[outside][0], strict=True))
        raise DataError(
            f"{outside.sum()} of {len(theta)} rows lie outside of the posterior's prior (the first: {first}): draws of "
            "that prior alone can judge it."
        )


def held_out(posterior: Any, data: Simulations) -> np.ndarray:
    """The valid rows of `data` that `posterior` was not trained on or repaired by, nor on others of their groups.

    Of a refined posterior those that neither of its parts was.

    Raises:
        DataError: it was repaired by all of them.

    """
    return reduce(np.intersect1d, [_unseen(record, data) for record in _records(posterior)])


def _record(posterior: Any) -> Mapping[str, Any]:
    """How it was trained; of a refined posterior, how the posterior was that is refined."""
    record = getattr(posterior, "record", {})
    return record.get("posterior", record)


def _records(posterior: Any) -> Sequence[Mapping[str, Any]]:
    """The same of all that was trained: of a refined posterior, of the likelihood too."""
    return [_record(posterior), getattr(posterior, "record", {}).get("likelihood", {})]


def _unseen(record: Mapping[str, Any], data: Simulations) -> np.ndarray:
    parts = _trained_on(record, data)
    if parts is not None:
        new = _later(data, record["data"]["rows"], np.concatenate([parts.train, parts.validation]))
        return np.concatenate([parts.test, new])
    known = _known(data, record.get("repaired", {}).get("data", {}))
    rows = _later(data, known, np.arange(known))
    if known and not len(rows):
        raise DataError(
            f"the posterior was repaired by these {known} rows, which cannot judge it: calibrate on the file that it "
            "was trained on, or on other simulations."
        )
    return rows


def _spare(posterior: Any, data: Simulations) -> np.ndarray:
    """Rows that judge nothing else: on the file that it was trained on those that validated, else all valid ones."""
    parts = [_trained_on(record, data) for record in _records(posterior)]
    return reduce(np.intersect1d, [p.validation for p in parts if p is not None], np.flatnonzero(data.valid))


def _trained_on(record: Mapping[str, Any], data: Simulations) -> Split | None:
    """How training split its rows, where they are the first of `data`."""
    known = _known(data, record.get("data", {}))
    return data.split(SplitRule(**record["split"]), known) if known else None


def _known(data: Simulations, seen: Mapping[str, Any]) -> int:
    """How many rows a record has seen, where they are the first of `data`; else 0."""
    rows = seen.get("rows", 0)
    return rows if 0 < rows <= len(data) and data.fingerprint(rows) == seen["fingerprint"] else 0


def _later(data: Simulations, known: int, seen: np.ndarray) -> np.ndarray:
    """The valid rows from `known` on that are in no group of the rows `seen`."""
    valid = np.flatnonzero(data.valid)
    new = valid[valid >= known]
    return new[~np.isin(data.groups[new], data.groups[seen])]


def independent(
    posterior: Any, data: Simulations, rows: np.ndarray, rng: np.random.Generator, fewest: int = MIN_ROWS
) -> np.ndarray:
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
    group = np.unique(data.groups[rows], return_inverse=True)[1]
    with np.errstate(divide="ignore"):
        order = np.lexsort((np.log(weight) + rng.gumbel(size=len(rows)), group))
    chosen = rows[order[np.flatnonzero(np.diff(group[order], append=-1))]]
    mean = np.bincount(group, weight) / np.bincount(group)
    kept = chosen[rng.random(len(chosen)) * mean.max() < mean]
    if len(kept) < min(fewest, len(chosen)):
        raise DataError(
            f"{len(kept)} of {len(chosen)} held-out rows are left, kept in proportion to their weights (the largest "
            f"is {mean.max() / mean.mean():.3g} times the mean): at least {fewest} are needed; simulate more."
        )
    return np.sort(kept)


def _weights(posterior: Any, data: Simulations, rows: np.ndarray) -> Array:
    """One positive number a row."""
    if not {"proposal_weight", "event_weight"} & set(data.columns):
        return np.ones(len(rows))
    source, cpu = Source(data, data.reference(posterior.names, rows)[0]), torch.device("cpu")
    reading = Reading().resolved(source.bytes(len(data)), cpu)
    rate = _record(posterior).get("rate", False)
    return row_weights(source, reading, rate=rate, seed=0, device=cpu)[rows]  # type: ignore[index]


def require_noise(posterior: Any, noise: Noise | None) -> None:
    """`ExternalError` where the posterior was trained with another model of noise."""
    trained = _record(posterior).get("noise")
    if trained != named(noise):
        raise ExternalError(
            f"the posterior was trained with noise={trained}, and is judged with {named(noise)}: pass it."
        )


def noised(x: dict[str, np.ndarray], theta: Array, noise: Noise, seed: int) -> dict[str, np.ndarray]:
    """Observables by name with noise on them, of rows whose parameters are theta (R, P)."""
    parameters = torch.as_tensor(theta, dtype=torch.float32)
    tensors = {name: tensor(values) for name, values in x.items()}
    return {n: t.numpy() for n, t in noisy(Batch(parameters, tensors, parameters, parameters), noise, seed).x.items()}
