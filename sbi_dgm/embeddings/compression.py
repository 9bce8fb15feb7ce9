r"""Principal components of training rows, whitened: a linear summary for which nothing is trained.

With the mean m and the covariance C of all scaled numbers s of x in training, and its leading eigenvectors,

.. math::  C u_k = \lambda_k u_k, \qquad c_k = \frac{u_k \cdot (s - m)}{\sqrt{\lambda_k}}, \qquad k \le K

(Hotelling 1933, doi:10.1037/h0071325). They keep what varies most, which need not be what tells most of theta: a
network behind, or MOPED (`sbi_dgm.embeddings.moped`), looks for that. Sums of s and of s s^T are taken in float64 over
all training rows as they come. What varies by less than `LEAST` of the leading component is rounding, and stays zero.
"""

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from sbi_dgm.embeddings.base import Embedding, Gathering, Observables
from sbi_dgm.embeddings.vectors import side_by_side
from sbi_dgm.errors import OptionError
from sbi_dgm.parameters import total_size

LARGEST = 4096  # numbers of x: their covariance takes 128 MiB
LEAST = 1e-5  # relative standard deviation of a component


class PCA(Embedding):
    """The leading principal components of all observables, side by side as one vector.

    Attributes:
        features: K, at most as many as there are numbers.

    """

    features: int = Field(default=32, ge=1)

    def build(self, observables: Observables, dimension: int) -> nn.Module:
        size = total_size(observables)
        for name, observable in observables.items():
            if observable.kind == "set":
                raise OptionError(f"observable {name!r} is a set, whose members have no order: use 'deep_sets'.")
        if size > LARGEST:
            raise OptionError(
                f"principal components of {size} numbers: their covariance is made for up to {LARGEST}; use 'cnn' or "
                "'mlp', or average neighbouring numbers first."
            )
        return _PCA(size, min(self.features, size))


class _PCA(Gathering):
    """W (s - m), W and m from training rows: observables by name -> (B, K)."""

    mean: Tensor
    maps: Tensor

    def __init__(self, size: int, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("maps", torch.zeros(size, features))

    def forward(self, x: Mapping[str, Tensor]) -> Tensor:
        s = side_by_side(x)
        self.gather(s)
        return (s - self.mean) @ self.maps

    def gather(self, x: Tensor) -> None:
        """Add to the number of rows, their sum and the sum of their outer products."""
        if self.seen is not None:
            s = x.double()
            sums = [s.new_tensor(len(s)), s.sum(0), s.T @ s]
            self.seen = [a + b for a, b in zip(self.seen, sums, strict=True)] if self.seen else sums

    def settle(self, seen: list[Tensor]) -> None:
        rows, total, outer = seen
        mean = total / rows
        variance, vectors = torch.linalg.eigh(outer / rows - torch.outer(mean, mean))
        sd, leading = variance.clamp(min=0).sqrt().flip(0), vectors.flip(1)
        largest = leading.gather(0, leading.abs().argmax(0, keepdim=True))  # positive, so that signs are no chance
        scaled = torch.where(sd > LEAST * sd[0], leading * largest.sign() / sd, 0.0)
        self.mean.copy_(mean)
        self.maps.copy_(scaled[:, : self.maps.shape[1]])
