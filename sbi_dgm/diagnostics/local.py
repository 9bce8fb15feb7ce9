r"""Calibration at given observations: the local classifier two-sample test (Linhart, Gramfort and Rodrigues 2023,
arXiv:2306.03580).

A classifier d(theta, x) learns to tell the truths of held-out rows from draws of q(theta | x) at the same x. Where the
posterior is right it can not, and is near 1/2; so at an observation x_o, with draws of q(theta | x_o),

.. math::  t(x_o) = \frac{1}{S} \sum_s \big(d(\theta_s, x_o) - \tfrac{1}{2}\big)^2

is small. How small comes from classifiers of the same kind that learn from the same pairs with truth and draw exchanged
in a random half of them: a permutation test of the posterior as a whole, seen at x_o. All classifiers learn side by
side. Of x they see the leading principal components.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from sbi_dgm.diagnostics import tarp
from sbi_dgm.diagnostics.bins import principal
from sbi_dgm.diagnostics.c2st_batched import Networks, initial
from sbi_dgm.diagnostics.evidence import Evidence, Judged, side_by_side
from sbi_dgm.univariate import Array

PERMUTATIONS, EPOCHS, COMPONENTS, DRAWS = 100, 40, 10, 1000


class Local(NamedTuple):
    """Of B observations.

    Attributes:
        p_value: (B,); 1 / 101 at least.
        statistic: t (B,).
        null: (B, 100), of exchanged pairs.

    """

    p_value: Array
    statistic: Array
    null: Array


def local(evidence: Evidence, posterior: Judged, x: Mapping[str, np.ndarray], rng: np.random.Generator) -> Local:
    """Test the posterior at observations by name (B, ...)."""
    size = len(next(iter(x.values())))
    drawn = posterior.sample(DRAWS, x, seed=int(rng.integers(2**62))).array
    numbers = side_by_side({name: np.concatenate([values, x[name]]) for name, values in evidence.x.items()})
    both = principal(tarp.features(numbers), COMPONENTS)
    known, asked = both[: len(evidence.theta)], both[len(evidence.theta) :]
    mean, sd = evidence.theta.mean(0), evidence.theta.std(0)
    networks = _trained((evidence.theta - mean) / sd, (evidence.draws[:, 0] - mean) / sd, known, rng)
    t = np.stack([_statistic(networks, (drawn[b] - mean) / sd, asked[b]) for b in range(size)])
    p_value = (1 + (t[:, 1:] >= t[:, :1]).sum(1)) / t.shape[1]
    return Local(p_value, t[:, 0], t[:, 1:])


def _trained(truth: Array, draw: Array, x: Array, rng: np.random.Generator) -> Networks:
    """The first classifier of truths (R, D) and draws (R, D), then those of exchanged pairs."""
    rows = np.concatenate([np.column_stack([truth, x]), np.column_stack([draw, x])])
    exchanged = rng.random((len(truth), 1 + PERMUTATIONS)) < 0.5
    exchanged[:, 0] = False
    label = np.where(exchanged, 1.0, -1.0)
    signs = np.concatenate([label, -label])[..., None]
    repeated = np.broadcast_to(rows[:, None], (len(rows), signs.shape[1], rows.shape[1]))
    data = torch.as_tensor(np.concatenate([repeated, signs], axis=2), dtype=torch.float32)
    networks = Networks.alike(initial(rows.shape[1], np.random.RandomState(int(rng.integers(2**31)))), data)
    for _ in range(EPOCHS):
        networks.epoch(data, torch.as_tensor(rng.permutation(len(rows))))
    return networks


def _statistic(networks: Networks, theta: Array, x: Array) -> Array:
    """The statistic t of each classifier, from draws (S, D) at one x (k,)."""
    rows = np.column_stack([theta, np.broadcast_to(x, (len(theta), len(x)))])
    given: Any = torch.as_tensor(rows, dtype=torch.float32).expand(networks.count, -1, -1)
    return (torch.sigmoid(networks.logit(given)[..., 0]) - 0.5).square().mean(1).numpy().astype(float)
