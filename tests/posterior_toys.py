"""Posteriors of random weights, and of densities that are given by formulas."""

import numpy as np
import torch
from torch import nn

from sbi_dgm.data.scaling import Standardise
from sbi_dgm.distributions import LogUniform, Uniform
from sbi_dgm.embeddings.vectors import Flatten
from sbi_dgm.estimators.base import Conditional, Estimator, Space
from sbi_dgm.estimators.flow import Flow
from sbi_dgm.model import Model, network
from sbi_dgm.parameters import Observable, Parameter
from sbi_dgm.posterior import Posterior
from sbi_dgm.priors import Prior

SMALL = Flow(transforms=2, hidden=8, blocks=1, layout="coupling")
FLOW = {"name": "flow", "options": {name: getattr(SMALL, name) for name in type(SMALL).model_fields}}
UNIT = Prior([Parameter("theta", Uniform(0, 1))])


def model(prior: Prior, **observables: tuple[int, ...]) -> Model:
    shapes = {name: Observable(shape) for name, shape in observables.items()}
    return Model(prior, True, shapes, dict.fromkeys(shapes, "<f8"), FLOW, {"name": "auto", "options": {}})


def untrained(prior: Prior, scale: float = 0.15, **observables: tuple[int, ...]) -> Posterior:
    """Random weights, `scale` away from those at the start of training."""
    specification = model(prior, **observables)
    scalers = {name: Standardise(o.shape) for name, o in specification.observables.items()}
    random = network(specification, scalers, Flatten(), seed=1)
    noise = torch.Generator().manual_seed(2)
    for weight in random.estimator.parameters():
        weight.data += scale * torch.randn(weight.shape, generator=noise)
    return Posterior(specification, random, {})


BOX = Prior([Parameter("a", Uniform(-1, 1)), Parameter("b", LogUniform(0.1, 10))])
PLAIN = untrained(BOX, x=(3,))
X = np.array([0.3, -1.0, 2.0])


class Stub(Estimator):
    """A density in z given by formulas in float64; the context is x itself."""

    density = "exact"

    def __init__(self, size: int = 1) -> None:
        super().__init__()
        self.space, self.place = Space((size,)), nn.Parameter(torch.zeros(1))

    def log_prob(self, z, context, generator=None):
        flat = z if z.ndim == 3 else z[:, None]
        return self.formula(flat.double(), context[:, None].double()).reshape(z.shape[:-1])


def stubbed(prior: Prior, stub: Stub, size: int) -> Posterior:
    return Posterior(model(prior, x=(size,)), Conditional(Flatten().build({}, 2), _Bare(stub)), {})


class _Bare(nn.Module):
    def __new__(cls, stub):
        return stub


class Half(Stub):
    """Theta ~ U(0, 1), x = theta + 0.1 noise: the posterior is N(x, 0.1^2) cut to [0, 1]; here in z, exactly."""

    def formula(self, z, context):
        theta = torch.special.ndtr(z)
        left = torch.special.ndtr(10 * (1 - context)) - torch.special.ndtr(-10 * context)
        density = -0.5 * ((theta - context) / 0.1) ** 2 - left.log() - np.log(0.1)
        return (density - 0.5 * z**2 - np.log(2 * np.pi)).squeeze(-1)

    def sample_and_log_prob(self, n, context, generator=None):
        u = torch.rand((len(context), n, 1), generator=generator, dtype=torch.float64)
        low, high = torch.special.ndtr(-10 * context)[:, None], torch.special.ndtr(10 * (1 - context))[:, None]
        z = torch.special.ndtri(context[:, None] + 0.1 * torch.special.ndtri(low + (high - low) * u))
        return z, self.log_prob(z, context)
