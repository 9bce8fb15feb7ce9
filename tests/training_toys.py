"""A small training run and what is compared of it."""

import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import sbi_dgm
from sbi_dgm import job
from sbi_dgm.distributions import Normal, Uniform
from sbi_dgm.estimators.flow import Flow
from sbi_dgm.loop import Run, Training
from sbi_dgm.parameters import Parameter
from sbi_dgm.posterior import Posterior
from sbi_dgm.preparation import Prepared
from sbi_dgm.priors import Prior

SMALL = Flow(transforms=2, hidden=8, blocks=1, dropout=0.2)
BRIEF = Training(batch_size=32, round=5, patience=3, max_rounds=6, warmup=10)
PRIOR = Prior([Parameter("a", Uniform(-1, 1)), Parameter("b", Normal(0, 2)), Parameter("c", Uniform(0, 1))])
RUN_FILES = ["checkpoint", "config.json", "history.csv", "posterior.safetensors"]


def simulations(rows: int = 400, prior: Prior | None = PRIOR, seed: int = 1, **columns) -> sbi_dgm.Simulations:
    theta = PRIOR.sample(rows, seed)
    x = theta + 0.3 * np.random.default_rng(1000 + seed).normal(size=theta.shape)
    return sbi_dgm.Simulations.from_arrays(theta, x, prior=prior, names=None if prior else ["a", "b", "c"], **columns)


class Own(nn.Module):
    """An embedding of a user's own, which draws random numbers when it trains and always starts alike."""

    def __init__(self) -> None:
        super().__init__()
        noise = torch.Generator().manual_seed(7)
        self.layer, self.dropout = nn.Linear(3, 4), nn.Dropout(0.3)
        self.layer.weight.data.normal_(generator=noise)
        self.layer.bias.data.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(torch.tanh(self.layer(x)))


def fit(data: sbi_dgm.Simulations | None = None, **options) -> Posterior:
    given = {"estimator": SMALL, "training": BRIEF, "device": "cpu", "progress": False} | options
    embedding = given.pop("embedding", None) or Own()
    return sbi_dgm.fit(simulations() if data is None else data, embedding=embedding, **given)


def prepared_by(run: Callable[..., Posterior], *given, **options) -> Prepared:
    """What a call that fits once trains on."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        original = job.prepare
        patch.setattr(job, "prepare", lambda *a, **k: found.append(original(*a, **k)) or found[0])
        run(*given, **options)
    return found[0]


@contextmanager
def interrupted_at(step: int) -> Iterator[None]:
    """Ctrl-C at this step of the run within, with a checkpoint at every round before."""
    original = Run._step

    def stopping(self, generator):
        if self.at.step == step:
            raise KeyboardInterrupt
        return original(self, generator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sbi_dgm.loop.CHECKPOINT_SECONDS", -1.0)
        patch.setattr(Run, "_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            yield


def check_same(one: Posterior, two: Posterior) -> None:
    """The weights are equal to the bit."""
    first, second = one.network.state_dict(), two.network.state_dict()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, f"different: {different}"


def history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open() as file:
        return list(csv.DictReader(file))


def curve(folder: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history(folder)]
