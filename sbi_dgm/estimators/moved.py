r"""An estimator behind a bijection of its draws, z = A(u; c) with u ~ q(u | c): what `located` and `rescaled` share.

.. math::  \ln p(z | c) = \ln q(A^{-1}(z; c) \,|\, c) - \ln |\det \partial A / \partial u|
"""

from abc import abstractmethod
from collections.abc import Mapping

from torch import Generator, Tensor

from sbi_dgm.estimators.base import Estimator


class Moved(Estimator):
    """Base of estimators that move the draws of another, their `source`."""

    source: Estimator

    @abstractmethod
    def back(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """u of z, (B, D) or (B, S, D), and ln |det dz/du|, which broadcasts with ln p of z."""

    @abstractmethod
    def there(self, u: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """z of u (B, S, D), and ln |det dz/du|."""

    def forward(
        self, z: Tensor, context: Tensor, *, progress: float = 1.0, generator: Generator | None = None
    ) -> Tensor:
        """The loss at u, and ln |det dz/du|: where it is -ln q, this is -ln p."""
        u, log_det = self.back(z, context)
        return self.source(u, context, progress=progress, generator=generator) + log_det

    def log_prob(self, z: Tensor, context: Tensor, generator: Generator | None = None) -> Tensor:
        u, log_det = self.back(z, context)
        return self.source.log_prob(u, context, generator) - log_det

    def log_prob_and_error(
        self, z: Tensor, context: Tensor, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        u, log_det = self.back(z, context)
        log_prob, error = self.source.log_prob_and_error(u, context, generator)
        return log_prob - log_det, error

    def sample(self, n: int, context: Tensor, generator: Generator | None = None) -> Tensor:
        return self.there(self.source.sample(n, context, generator), context)[0]

    def sample_and_log_prob(self, n: int, context: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        u, log_prob = self.source.sample_and_log_prob(n, context, generator)
        z, log_det = self.there(u, context)
        return z, log_prob - log_det

    def monitor(self, z: Tensor, context: Tensor) -> dict[str, float]:
        return self.source.monitor(self.back(z, context)[0], context)

    def concern(self, figures: Mapping[str, float]) -> str:
        return self.source.concern(figures)
