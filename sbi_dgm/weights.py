r"""Weights of two kinds, made into one positive weight a row.

*Proposal weights* p(theta) / p~(theta) carry theta from the distribution that it was drawn from to the prior.
*Event weights* w come with Monte Carlo events. With sigma(theta) = E[w | theta], the cross section, the density of rows
weighted by them is p~(theta) sigma(theta) p(x | theta): the cross section tilts the prior. So they are divided by their
mean at each parameter point, unless the rate itself is wanted (`rate=True`).

A loss weighted with negative numbers has no minimum. Signed weights are first replaced by their local mean

.. math::  m(\theta, x) = E[w | \theta, x] = \arg\min_f E (w - f(\theta, x))^2,

which leaves every weighted expectation of functions of (theta, x) as it is (the tower rule). A small network learns
it on one half of the groups and is asked about the other.
"""

import warnings

import numpy as np
import torch
from torch import Generator, Tensor

from sbi_dgm.data.batches import Rows
from sbi_dgm.data.reading import Reading
from sbi_dgm.data.simulations import Simulations
from sbi_dgm.data.source import Source
from sbi_dgm.data.splits import Split, SplitRule, split_rows
from sbi_dgm.embeddings.base import Summary, build
from sbi_dgm.embeddings.fusion import Auto
from sbi_dgm.errors import DataError
from sbi_dgm.estimators.base import Conditional, Estimator
from sbi_dgm.loop import Run, Training
from sbi_dgm.networks import ResidualMLP
from sbi_dgm.preparation import prepare
from sbi_dgm.priors import Prior
from sbi_dgm.seeds import lending

EVENTS = 10  # rows at a parameter point whose mean weight is worth dividing by
NEGATIVE = 0.01  # share of the total weight that may lie where the local mean comes out negative


class Regression(Estimator):
    """f(z, context), trained by (w - f)^2 on rows whose last coordinate is w."""

    def __init__(self, dimension: int, context_dim: int) -> None:
        super().__init__()
        self.net = ResidualMLP(dimension + context_dim, 1, hidden=64)

    def forward(
        self, z: Tensor, context: Tensor, *, progress: float = 1.0, generator: Generator | None = None
    ) -> Tensor:
        return (z[:, -1] - self.mean(z[:, :-1], context)) ** 2

    def mean(self, z: Tensor, context: Tensor) -> Tensor:
        """f: (B, D), (B, C) -> (B,)."""
        return self.net(torch.cat([z, context], -1))[:, 0]


class Labelled(Source):
    """Rows whose weight is no weight but the last coordinate, to be learned."""

    def take(self, rows: np.ndarray, step: int | None = None) -> Rows:
        found = super().take(rows, step)
        return Rows(torch.cat([found.z, found.weight[:, None]], 1), found.x)


def row_weights(source: Source, reading: Reading, *, rate: bool, seed: int, device: torch.device) -> np.ndarray | None:
    """One positive weight for each row (N,), or None where the data have none.

    Args:
        source: the rows, as the estimator will see them.
        reading: memory or stream, resolved.
        rate: keep the cross section in event weights.

    Raises:
        DataError: event weights whose mean is negative, or points with too few events to tell their cross section.

    """
    data = source.data
    proposal, event = data.column("proposal_weight"), data.column("event_weight")
    if event is None:
        return proposal
    if (event[data.valid] < 0).any():
        event = _local_mean(data, event, reading, seed, device)
    event = event if rate else _per_point(data, event)
    if not event[data.valid].sum() > 0:
        raise DataError(f"event weights: their sum over the {int(data.valid.sum())} valid rows is not positive.")
    return event if proposal is None else proposal * event


def _per_point(data: Simulations, weight: np.ndarray) -> np.ndarray:
    """Weights with mean one over the valid rows of each distinct theta."""
    valid, theta = data.valid, data.theta
    points, point = np.unique(theta, axis=0, return_inverse=True)
    point = point.reshape(-1)
    counts = np.bincount(point[valid], minlength=len(points))
    few = np.flatnonzero((counts > 0) & (counts < EVENTS))
    if len(few):
        raise DataError(
            f"event weights: {len(few)} of {len(points)} parameter points have fewer than {EVENTS} events (the first: "
            f"{counts[few[0]]} at {points[few[0]]}), too few to divide by their mean weight. Divide the weights by the "
            "cross section yourself and pass rate=True (--rate)."
        )
    sums = np.bincount(point[valid], weight[valid], minlength=len(points))
    if (sums[counts > 0] <= 0).any():
        bad = points[np.flatnonzero((counts > 0) & (sums <= 0))[0]]
        raise DataError(f"event weights: their sum at the parameter point {bad} is not positive.")
    return weight * (counts / np.where(sums > 0, sums, 1.0))[point]


def _local_mean(data: Simulations, weight: np.ndarray, reading: Reading, seed: int, device: torch.device) -> np.ndarray:
    """E[w | theta, x] of signed weights, given all of theta, for each row by a network that has not seen it."""
    mean, groups, valid = np.zeros(len(weight)), data.groups, data.valid
    reference = _reference(data)
    halves = split_rows(SplitRule(validation=0.5, test=0.0, seed=seed), groups, valid)
    for own, other in ((halves.train, halves.validation), (halves.validation, halves.train)):
        inner = split_rows(SplitRule(validation=0.25, test=0.0, seed=seed), groups[own], valid[own])
        parts = Split(own[inner.train], own[inner.validation], other)
        scale = float(np.abs(weight[own]).mean())
        mean[other] = scale * _regress(Labelled(data, reference, weight / scale), parts, reading, seed, device)
    return _positive(mean, valid)


def _reference(data: Simulations) -> Prior:
    """Coordinates of all parameters that ever change; the cross section may depend on those not inferred too."""
    rows = np.flatnonzero(data.valid)
    changing = np.ptp(data.theta[rows], axis=0) > 0
    return data.reference([name for name, there in zip(data.names, changing, strict=True) if there], rows)[0]


def _regress(source: Source, parts: Split, reading: Reading, seed: int, device: torch.device) -> np.ndarray:
    """Learn the last coordinate of the rows that train and validate; its mean for the rows that test."""
    how = Training(patience=10)
    ready = prepare(source, parts, reading, how, seed=seed, device=device)
    observables, dimension = source.data.observables, len(source.reference)
    with lending(seed):
        summary = Summary(ready.scalers, build(Auto(), observables, dimension))
        network = Conditional(summary, Regression(dimension, summary.features(observables))).to(device)
    summary.gather(ready.shown())
    run = Run(network, ready.batches, ready.held_out, how, seed, None)
    run.train(progress=False)
    return np.concatenate([_means(run.averaged, rows.to(device)) for _, rows in source.stream(parts.test)])


@torch.no_grad()
def _means(network: Conditional, rows: Rows) -> np.ndarray:
    found = network.estimator.mean(rows.z[:, :-1], network.summary(rows.x))  # type: ignore[operator]
    return found.double().cpu().numpy()


def _positive(mean: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Local means; a little below zero is the network's error and becomes zero, more is refused."""
    negative = valid & (mean < 0)
    share = float(-mean[negative].sum() / np.abs(mean[valid]).sum())
    if share > NEGATIVE:
        raise DataError(
            f"event weights: their local mean is negative at {int(negative.sum())} of {int(valid.sum())} rows, with "
            f"{share:.1%} of the weight: no density has such weights. Correct them, or drop the region."
        )
    if negative.any():
        warnings.warn(
            f"event weights: {int(negative.sum())} local means a little below zero ({share:.2%} of the weight) count "
            "as zero.",
            stacklevel=2,
        )
    return np.maximum(mean, 0.0)
