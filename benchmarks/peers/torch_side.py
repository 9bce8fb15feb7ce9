"""What the adapters share: our arrays as tensors, our prior as a distribution of torch, a seed for torch itself."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from sbi_dgm import Prior


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's global generator, the only one that the peers know, seeded; afterwards it is as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def flat(x: Any) -> Tensor:
    """Observations (N, ...), or several observables by name, as one float32 vector each: (N, L)."""
    parts = list(x.values()) if isinstance(x, Mapping) else [x]
    return torch.cat([torch.as_tensor(np.asarray(part)).float().reshape(len(part), -1) for part in parts], dim=1)


def one(x: Any) -> Tensor:
    """A single observation as `flat` gives it: (1, L)."""
    return flat({name: part[None] for name, part in x.items()} if isinstance(x, Mapping) else np.asarray(x)[None])


class TorchPrior(Distribution):
    """Any of our priors, drawn and evaluated by itself.

    It names no `support`, so that sbi asks whether the log-density is finite: the float32 draws are held against the
    bounds in float64, and none that is kept lies outside by rounding.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, prior: Prior) -> None:
        self._prior = prior
        super().__init__(event_shape=torch.Size([len(prior)]), validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws (*sample_shape, D) in float32, by way of torch's global generator."""
        shape = torch.Size(sample_shape)
        draws = self._prior.sample(shape.numel(), seed=int(torch.randint(2**31, ())))
        return torch.as_tensor(draws).float().reshape(*shape, len(self._prior))

    def log_prob(self, value: Tensor) -> Tensor:
        """ln p: (..., D) -> (...); -inf outside the support."""
        return torch.as_tensor(self._prior.log_prob(value.double().numpy())).float()
