r"""Normalizing flows: the density of z given a context c by a change of variables.

A bijection f_c maps z to noise u ~ N(0, I), so that

.. math::
    \ln p(z | c) = \ln N(f_c(z); 0, I) + \ln |\det \partial f_c / \partial z|

(Papamakarios et al. 2021, arXiv:1912.02762), and the loss is its negative, the maximum-likelihood fit. Draws
are f_c^{-1}(u). The bijection is a chain of layers, each of which transforms the coordinates one by one by a
*map* with parameters that a network computes; a *layout* says what that network may see:

- coupling (Dinh et al. 2017, arXiv:1605.08803): half of z moves, given the other half and c;
- autoregressive (Papamakarios et al. 2017, arXiv:1705.07057): z_i moves given z_{<i} and c; the inverse finds one after
  another.

and a map is affine (same papers) or a rational-quadratic spline (`sbi_dgm.splines`). Behind each layer
the coordinates change their order, and a triangular pair of matrices mixes them (Oliva et al. 2018, arXiv:1801.09819).
All but the order starts as the identity: an untrained flow is N(0, I), which for prior coordinates is the prior
itself.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol

import torch
from nflows.transforms.base import CompositeTransform, Transform
from pydantic import Field
from torch import Generator, Tensor, nn

from sbi_dgm import gaussian, splines
from sbi_dgm.conditioners import JointMLP, MaskedMLP
from sbi_dgm.estimators.base import Estimator, Family, Space

Move = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # of a map: forward or inverse


class Flow(Family):
    """Options of a normalizing flow.

    Attributes:
        transforms: number of layers.
        layout: "autoregressive" (the sharper fit) or "coupling" (the quicker draws).
        map: "spline" or "affine".
        bins: bins of a spline.
        bound: the splines act on `|z| <= bound`; straight lines outside.
        hidden: width of the conditioner networks.
        blocks: their number of residual blocks.
        dropout: fraction of their hidden units that a training step leaves out.

    Example:
        >>> flow = Flow(transforms=2).build(Space((3,)), context_dim=4)
        >>> flow.log_prob(torch.zeros(5, 3), torch.zeros(5, 4)).shape
        torch.Size([5])

    """

    transforms: int = Field(default=3, ge=1)
    layout: Literal["autoregressive", "coupling"] = "autoregressive"
    map: Literal["spline", "affine"] = "spline"
    bins: int = Field(default=8, ge=2, le=64)
    bound: float = Field(default=5.0, ge=5.0)
    hidden: int = Field(default=64, ge=1)
    blocks: int = Field(default=2, ge=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)

    @property
    def shape(self) -> dict[str, Any]:
        """Keywords of the conditioner networks."""
        return {"hidden": self.hidden, "blocks": self.blocks, "dropout": self.dropout}

    def build(self, space: Space, context_dim: int) -> "FlowEstimator":
        layer = LAYOUTS[self.layout]
        chain: list[Transform] = []
        for _ in range(self.transforms):
            chain += [layer(self, space.size, context_dim), Mix(space.size)]
        return FlowEstimator(space, CompositeTransform(chain[:-1] if space.size == 1 else chain))


class FlowEstimator(Estimator):
    """A chain of invertible layers in front of a standard normal."""

    density = "exact"

    def __init__(self, space: Space, transform: Transform) -> None:
        super().__init__()
        self.space = space
        self.transform = transform

    def forward(
        self, z: Tensor, context: Tensor, *, progress: float = 1.0, generator: Generator | None = None
    ) -> Tensor:
        u, log_det = self.transform(_rows_last(z), context)
        return -gaussian.log_prob(u) - log_det

    def log_prob(self, z: Tensor, context: Tensor, generator: Generator | None = None) -> Tensor:
        parts = [-self(part.flatten(0, -2), rows) for part, rows in _pieces(z, context)]
        return torch.cat(parts).unflatten(0, z.shape[:-1])

    def sample_and_log_prob(self, n: int, context: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        u = gaussian.noise((len(context), n, self.space.size), context, generator)
        parts = [self._inverse(part.flatten(0, -2), rows) for part, rows in _pieces(u, context)]
        z, log_prob = (torch.cat(part) for part in zip(*parts, strict=True))
        return z.unflatten(0, u.shape[:2]), log_prob.unflatten(0, u.shape[:2])

    def _inverse(self, u: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        z, log_det = self.transform.inverse(_rows_last(u), context)  # pyright: ignore[reportGeneralTypeIssues]
        return z, gaussian.log_prob(u) - log_det


def _rows_last(z: Tensor) -> Tensor:
    """The same (N, D), with rows last in memory: layers work on its transpose, and pass it on so."""
    return z.T.contiguous().T


PIECE = 4096  # rows that pass together: their numbers stay in a processor's cache


def _pieces(z: Tensor, context: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts of z (B, D) or (B, S, D) in order, each with its rows of the context."""
    rows = max(1, PIECE // max(1, z.shape[1:-1].numel()))
    for part, mine in zip(z.split(rows), context.split(rows), strict=True):
        yield from ((piece, mine) for piece in (part.split(PIECE, dim=1) if part.ndim > 2 else [part]))


class Map(Protocol):
    """A monotone map of one number, with `size` unconstrained parameters; all zero is the identity.

    x (..., N) and raw (..., size, N) -> y and log|dy/dx|, both (..., N).
    """

    size: int

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]: ...

    def inverse(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]: ...


class Affine:
    """y = x e^s + t, with |s| < 5 by a scaled tanh."""

    size = 2

    def __init__(self, options: Flow) -> None:
        pass

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        s = gaussian.bounded(raw[..., 0, :], 5)
        return x * s.exp() + raw[..., 1, :], s

    def inverse(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        s = gaussian.bounded(raw[..., 0, :], 5)
        return (y - raw[..., 1, :]) * (-s).exp(), -s


class Spline:
    """The rational-quadratic spline of `sbi_dgm.splines`."""

    def __init__(self, options: Flow) -> None:
        self.size, self.bound = 3 * options.bins + 1, options.bound

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return splines.forward(x, raw, self.bound)

    def inverse(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return splines.inverse(y, raw, self.bound)


class Coupling(Transform):
    """The second half of the coordinates moves, given the first and the context; `Mix` makes them take turns."""

    def __init__(self, options: Flow, features: int, context: int) -> None:
        super().__init__()
        self.map: Map = MAPS[options.map](options)
        self.halves = features // 2, features - features // 2
        self.net = JointMLP(self.halves[0], context, self.halves[1], self.map.size, **options.shape)

    def forward(self, inputs: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        return self._moved(self.map.forward, inputs.T, context)

    def inverse(self, inputs: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        return self._moved(self.map.inverse, inputs.T, context)

    def _moved(self, move: Move, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        fixed, moving = z.split(self.halves)
        moved, log_slope = move(moving, self.net(fixed, context))
        return torch.cat([fixed, moved]).T, log_slope.sum(0)


class Autoregressive(Transform):
    """Every coordinate moves, given those before it and the context."""

    def __init__(self, options: Flow, features: int, context: int) -> None:
        super().__init__()
        self.map: Map = MAPS[options.map](options)
        self.net = MaskedMLP(features, context, self.map.size, **options.shape)

    def forward(self, inputs: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        y, log_slope = self.map.forward(inputs.T, self.net(inputs.T, context))
        return y.T, log_slope.sum(0)

    def inverse(self, inputs: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        y, log_det = inputs.T, inputs.new_zeros(len(inputs))

        def solve(i: int, raw: Tensor) -> Tensor:
            x, log_slope = self.map.inverse(y[i], raw)
            log_det.add_(log_slope)
            return x

        return self.net.solve(len(inputs), context, solve).T, log_det


class Mix(Transform):
    """u = L U z in reversed order: L unit-triangular, U of positive diagonal, in one matrix; starts as the reversal."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(features, features))
        self.log_diagonal = nn.Parameter(torch.zeros(features))

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        lower, upper = self._factors()
        half = upper @ inputs.T
        u = torch.addmm(half, lower, half).flip(0)
        return u.T, self.log_diagonal.sum().expand(len(inputs))

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        lower, upper = self._factors()
        half = torch.linalg.solve_triangular(lower, inputs.T.flip(0), upper=False, unitriangular=True)
        z = torch.linalg.solve_triangular(upper, half, upper=True)
        return z.T, -self.log_diagonal.sum().expand(len(inputs))

    def _factors(self) -> tuple[Tensor, Tensor]:
        """L without its ones, and U."""
        return self.weight.tril(-1), self.weight.triu(1) + self.log_diagonal.exp().diag()


MAPS: dict[str, type[Affine] | type[Spline]] = {"affine": Affine, "spline": Spline}
LAYOUTS: dict[str, type[Coupling] | type[Autoregressive]] = {"coupling": Coupling, "autoregressive": Autoregressive}
