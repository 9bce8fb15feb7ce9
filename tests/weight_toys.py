"""Weighted simulations whose posterior is known, and what is found from them.

Throughout theta ~ N(0, 1) under the prior and x ~ N(theta, 1), so that the posterior is N(x / 2, 1 / 2).
"""

import numpy as np
import torch
from scipy.stats import norm

import sbi_dgm
from sbi_dgm import weights
from sbi_dgm.data.reading import Reading
from sbi_dgm.data.source import Source
from sbi_dgm.distributions import Normal
from sbi_dgm.estimators.flow import Flow
from sbi_dgm.loop import Training
from sbi_dgm.parameters import Parameter
from sbi_dgm.priors import Prior

PRIOR = Prior([Parameter("a", Normal(0, 1))])
AFFINE = Flow(transforms=1, map="affine", hidden=16, blocks=1)
HOW = Training(batch_size=256, round=25, patience=8, max_rounds=40, learning_rate=5e-3, warmup=20)
BRIEF = Training(batch_size=64, round=5, patience=2, max_rounds=2, warmup=5)
RULE = sbi_dgm.SplitRule()
FREEDOM = 10  # how many numbers the network fits, in effect, with all rows near one x
CPU = torch.device("cpu")
SHIFT = 0.7
POINTS, EVENTS, WIDE = 200, 60, 1.5
SIZE = 1.5  # of a signed weight; at least the largest p / q


def simulations(theta, x, **columns) -> sbi_dgm.Simulations:
    return sbi_dgm.Simulations.from_arrays(theta[:, None], x[:, None], prior=PRIOR, **columns)


def train(data: sbi_dgm.Simulations, training: Training = HOW, **options) -> sbi_dgm.Posterior:
    return sbi_dgm.fit(data, AFFINE, training=training, device="cpu", progress=False, **options)


def found(data: sbi_dgm.Simulations, *, rate: bool = False, seed: int = 0) -> np.ndarray | None:
    """The weight of each row."""
    source = Source(data, PRIOR)
    return weights.row_weights(source, Reading(mode="memory"), rate=rate, seed=seed, device=CPU)


def effective(weight: np.ndarray) -> float:
    return float(weight.sum() ** 2 / (weight**2).sum())


def check_gaussian(posterior, mean, variance: float, rows: float) -> None:
    """The posterior is N(mean(x), variance) within four standard errors of a fit to so many effective rows."""
    x = np.array([-1.0, 0.0, 1.0, 2.0])
    draws = posterior.sample(4000, x[:, None], seed=1).array[..., 0]
    error = 4 * (variance * (FREEDOM / rows + 1 / 4000)) ** 0.5
    assert np.abs(draws.mean(1) - mean(x)).max() < error, (draws.mean(1), mean(x), error)
    error = 4 * (FREEDOM / (2 * rows) + 1 / 8000) ** 0.5
    assert np.abs(draws.std(1) / variance**0.5 - 1).max() < error, (draws.std(1), variance**0.5, error)


def check_right(posterior, rows: float) -> None:
    check_gaussian(posterior, lambda x: x / 2, 0.5, rows)


def proposed(rows: int, seed: int = 0, *, weighted: bool = True) -> sbi_dgm.Simulations:
    """Theta from N(SHIFT, 1), and the weight that carries it to the prior."""
    rng = np.random.default_rng(seed)
    theta = SHIFT + rng.normal(size=rows)
    weight = np.exp(SHIFT**2 / 2 - SHIFT * theta)
    return simulations(theta, theta + rng.normal(size=rows), proposal_weight=weight if weighted else None)


def events(seed: int = 0, points: int = POINTS, each: int = EVENTS, **more) -> sbi_dgm.Simulations:
    """Events of the cross section e^theta, drawn too wide, N(theta, WIDE), at evenly spread parameter points."""
    rng = np.random.default_rng(seed)
    theta = norm.ppf((np.arange(points) + 0.5) / points).repeat(each)
    d = WIDE**0.5 * rng.normal(size=len(theta))
    weight = np.exp(theta) * WIDE**0.5 * np.exp(-(d**2) / 2 * (1 - 1 / WIDE))
    return simulations(theta, theta + d, event_weight=weight, group=np.arange(points).repeat(each), **more)


def ratio(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    """N(x; theta, 1) / N(x; theta, WIDE)."""
    return WIDE**0.5 * np.exp(-((x - theta) ** 2) / 2 * (1 - 1 / WIDE))


def signed(rows: int, seed: int = 0, offset: float = 0.0) -> sbi_dgm.Simulations:
    """Events drawn too wide with weights of +-SIZE (as of MC@NLO), whose local mean is p / q - offset."""
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=rows)
    x = theta + WIDE**0.5 * rng.normal(size=rows)
    positive = rng.random(rows) < (1 + (ratio(theta, x) - offset) / SIZE) / 2
    return simulations(theta, x, event_weight=np.where(positive, SIZE, -SIZE))


def columns(data: sbi_dgm.Simulations) -> tuple[np.ndarray, np.ndarray]:
    return data.theta[:, 0], data.x(np.arange(len(data)))["x"][:, 0]


def brief(monkeypatch) -> None:
    """A regressor that hardly learns, and no check of its sign."""
    monkeypatch.setattr(weights, "Training", lambda **options: BRIEF)
    monkeypatch.setattr(weights, "NEGATIVE", 1.0)
