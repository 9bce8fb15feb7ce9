"""The contract of all families: a conditional density p(z | context) that can be trained, drawn and, mostly, evaluated.

An estimator knows neither priors nor files nor physics: z (B, D) lives in R^D and is of order one, the
context (B, C) is whatever an embedding made of the observation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Generator, Tensor, nn

from sbi_dgm import options
from sbi_dgm.errors import OptionError, unknown
from sbi_dgm.options import Options

Density = Literal["exact", "ode", "bound", "none"]


@dataclass(frozen=True)
class Space:
    """What z is: its shape, and which of its axes are periodic (none, until a family supports one)."""

    shape: tuple[int, ...]
    periodic: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        """D, for z that is a vector."""
        return self.shape[0]


class Estimator(nn.Module):
    """Base of all families. B rows, C context features, n draws a row, D numbers a draw."""

    density: Density
    space: Space

    def forward(
        self, z: Tensor, context: Tensor, *, progress: float = 1.0, generator: Generator | None = None
    ) -> Tensor:
        """The loss of each row, unreduced: (B, D), (B, C) -> (B,).

        Args:
            progress: how far training has come, in [0, 1], for annealing; 1 in validation.
            generator: source of the noise of stochastic losses.

        """
        raise NotImplementedError

    def sample(self, n: int, context: Tensor, generator: Generator | None = None) -> Tensor:
        """Draw n times for each row of the context: (B, C) -> (B, n, D)."""
        return self.sample_and_log_prob(n, context, generator)[0]

    def log_prob(self, z: Tensor, context: Tensor, generator: Generator | None = None) -> Tensor:
        """ln p(z | context): (B, D) -> (B,), or (B, S, D) -> (B, S)."""
        raise NotImplementedError

    def log_prob_and_error(
        self, z: Tensor, context: Tensor, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """ln p and an estimate of its numerical error, both of the shape of `log_prob`; exact densities have none."""
        log_prob = self.log_prob(z, context, generator)
        return log_prob, torch.zeros_like(log_prob)

    def sample_and_log_prob(self, n: int, context: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draws (B, n, D) and their ln p (B, n), by one and the same map.

        Where the density is a bound, ln p is an estimate for which f(z) / p of draws has the mean of f without bias.
        """
        raise NotImplementedError

    def monitor(self, z: Tensor, context: Tensor) -> dict[str, float]:
        """Figures of held-out rows for the history of training, by names that stay; most families have none."""
        return {}

    def concern(self, figures: Mapping[str, float]) -> str:
        """What the last figures of `monitor` warn of, in a sentence with its remedy; empty where all is well."""
        return ""


class Conditional(nn.Module):
    """p(z | x): an estimator behind a summary of the observables. This is what training trains.

    Args:
        summary: dict of observables (B, ...) -> context (B, C).
        estimator: p(z | context).

    """

    def __init__(self, summary: nn.Module, estimator: Estimator) -> None:
        super().__init__()
        self.summary = summary
        self.estimator = estimator

    def forward(
        self, z: Tensor, x: Mapping[str, Tensor], *, progress: float = 1.0, generator: Generator | None = None
    ) -> Tensor:
        """The loss of each row (B,)."""
        return self.estimator(z, self.summary(x), progress=progress, generator=generator)


class Family(Options):
    """The options of a family: frozen defaults, and `build`, which makes the estimator.

    Attributes:
        USE: names of the options that may change after training.

    """

    USE: ClassVar[frozenset[str]] = frozenset()

    def using(self, **values: Any) -> Self:
        """These options with others of use.

        >>> family("diffusion").using(steps=20).steps
        20
        """
        for name in values:
            if name not in self.USE:
                raise OptionError(unknown(f"option of {type(self).__name__} to change after training", name, self.USE))
        return type(self)(**{name: getattr(self, name) for name in type(self).model_fields} | values)

    def build(self, space: Space, context_dim: int) -> Estimator:
        """Make an untrained estimator of z in `space` given `context_dim` context features."""
        raise NotImplementedError


FAMILIES: options.Table = {
    "flow": ("sbi_dgm.estimators.flow", "Flow"),
    "diffusion": ("sbi_dgm.estimators.diffusion", "Diffusion"),
    "flow_matching": ("sbi_dgm.estimators.flow_matching", "FlowMatching"),
    "continuous_flow": ("sbi_dgm.estimators.continuous_flow", "ContinuousFlow"),
    "vae": ("sbi_dgm.estimators.vae", "VAE"),
    "located": ("sbi_dgm.estimators.located", "Located"),
    "contrastive": ("sbi_dgm.estimators.contrastive", "Contrastive"),
}


def family(name: str, **values: Any) -> Family:
    """The options object of the family called `name`.

    >>> family("flow", transforms=3).transforms
    3
    """
    return options.make("estimator", FAMILIES, name, **values)
