r"""Normalizing flows: the density of z given a context c by a change of variables.

A bijection f_c maps z to noise u ~ N(0, I), so that

.. math::
    \ln p(z | c) = \ln N(f_c(z); 0, I) + \ln |\det \partial f_c / \partial z|

(Papamakarios et al. 2021, arXiv:1912.02762), and the loss is its negative, the maximum-likelihood fit. Draws
are f_c^{-1}(u). The bijection is a chain of layers, each of which transforms the coordinates one by one by a
*map* with parameters that a network computes; a *layout* says what that network may see:

- coupling (Dinh et al. 2017, arXiv:1605.08803): half of z moves, given the other half and c; one pass either way;
- autoregressive (Papamakarios et al. 2017, arXiv:1705.07057): z_i moves given z_{<i} and c; the inverse takes D passes.

and a map is affine (same papers) or a rational-quadratic spline (`sbi_dgm.splines`). Between layers a
triangular pair of matrices mixes the coordinates (Oliva et al. 2018, arXiv:1801.09819). All start as
the identity: an untrained flow is N(0, I), which for prior coordinates is the prior itself.
"""

import math
from typing import Any, Literal, Protocol

import torch
from nflows.transforms.autoregressive import AutoregressiveTransform
from nflows.transforms.base import CompositeTransform, Transform
from nflows.transforms.coupling import CouplingTransform
from pydantic import Field
from torch import Generator, Tensor, nn

from sbi_dgm import splines
from sbi_dgm.estimators.base import Estimator, Family, Space
from sbi_dgm.networks import MaskedMLP, ResidualMLP


class Flow(Family):
    """Options of a normalizing flow.

    Attributes:
        transforms: number of layers.
        layout: "autoregressive" (the sharper fit) or "coupling" (one pass for draws as well).
        map: "spline" or "affine".
        bins: bins of a spline.
        bound: the splines act on |z| <= bound; straight lines outside.
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
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @property
    def shape(self) -> dict[str, Any]:
        """Keywords of the conditioner networks."""
        return {"hidden": self.hidden, "blocks": self.blocks, "dropout": self.dropout}

    def build(self, space: Space, context_dim: int) -> "FlowEstimator":
        layer = LAYOUTS[self.layout]
        chain: list[Transform] = []
        for index in range(self.transforms):
            chain += [layer(self, space.size, context_dim, index), Mix(space.size)]
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
        u, log_det = self.transform(z, context)
        return -_log_normal(u) - log_det

    def log_prob(self, z: Tensor, context: Tensor, generator: Generator | None = None) -> Tensor:
        if z.ndim == 2:
            return -self(z, context)
        rows = context.repeat_interleave(z.shape[1], dim=0)
        return -self(z.flatten(0, 1), rows).unflatten(0, z.shape[:2])

    def sample_and_log_prob(self, n: int, context: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        shape = (len(context), n, self.space.size)
        u = torch.randn(shape, generator=generator, device=context.device, dtype=context.dtype).flatten(0, 1)
        rows = context.repeat_interleave(n, dim=0)
        z, log_det = self.transform.inverse(u, rows)  # pyright: ignore[reportGeneralTypeIssues]
        return z.unflatten(0, shape[:2]), (_log_normal(u) - log_det).unflatten(0, shape[:2])


def _log_normal(u: Tensor) -> Tensor:
    return -0.5 * (u.square().sum(-1) + u.shape[-1] * math.log(2 * math.pi))


class Map(Protocol):
    """A monotone map of one number, with `size` unconstrained parameters; all zero is the identity."""

    size: int

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]: ...

    def inverse(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]: ...


class Affine:
    """y = x e^s + t, with |s| < 5 by a scaled tanh."""

    size = 2

    def __init__(self, options: Flow) -> None:
        pass

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        s = 5 * torch.tanh(raw[..., 0] / 5)
        return x * s.exp() + raw[..., 1], s

    def inverse(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        s = 5 * torch.tanh(raw[..., 0] / 5)
        return (y - raw[..., 1]) * (-s).exp(), -s


class Spline:
    """The rational-quadratic spline of `sbi_dgm.splines`."""

    def __init__(self, options: Flow) -> None:
        self.size, self.bound = 3 * options.bins + 1, options.bound

    def forward(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return splines.forward(x, splines.knots(raw, self.bound), self.bound)

    def inverse(self, y: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        return splines.inverse(y, splines.knots(raw, self.bound), self.bound)


class Coupling(CouplingTransform):
    """Every second coordinate moves, given the others and the context; `index` alternates which."""

    def __init__(self, options: Flow, features: int, context: int, index: int) -> None:
        self.map: Map = MAPS[options.map](options)
        mask = (torch.arange(features) + index) % 2 if features > 1 else torch.ones(1)

        def conditioner(inputs: int, outputs: int) -> nn.Module:
            return _Joined(inputs + context, outputs, zero=True, **options.shape)

        super().__init__(mask, conditioner)

    def _transform_dim_multiplier(self) -> int:
        return self.map.size

    def _coupling_transform_forward(self, inputs: Tensor, transform_params: Tensor) -> tuple[Tensor, Tensor]:
        y, log_slope = self.map.forward(inputs, transform_params.unflatten(-1, (-1, self.map.size)))
        return y, log_slope.sum(-1)

    def _coupling_transform_inverse(self, inputs: Tensor, transform_params: Tensor) -> tuple[Tensor, Tensor]:
        x, log_slope = self.map.inverse(inputs, transform_params.unflatten(-1, (-1, self.map.size)))
        return x, log_slope.sum(-1)


class _Joined(ResidualMLP):
    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return super().forward(torch.cat([x, context], dim=-1))


class Autoregressive(AutoregressiveTransform):
    """Every coordinate moves, given those before it and the context."""

    def __init__(self, options: Flow, features: int, context: int, index: int) -> None:
        self.map: Map = MAPS[options.map](options)
        super().__init__(MaskedMLP(features, context, self.map.size, **options.shape))

    def _elementwise_forward(self, inputs: Tensor, autoregressive_params: Tensor) -> tuple[Tensor, Tensor]:
        y, log_slope = self.map.forward(inputs, autoregressive_params)
        return y, log_slope.sum(-1)

    def inverse(self, inputs: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        x, log_det = torch.zeros_like(inputs), inputs.new_zeros(len(inputs))
        for i in range(inputs.shape[1]):  # x_{<i} is known: one network pass gives the map of x_i
            x_i, log_slope = self.map.inverse(inputs[:, i], self.autoregressive_net(x, context)[:, i])
            x = torch.cat([x[:, :i], x_i.unsqueeze(1), x[:, i + 1 :]], dim=1)
            log_det = log_det + log_slope
        return x, log_det


class Mix(Transform):
    """u = L U z in reversed order, with unit-triangular L and U of positive diagonal; starts as the reversal."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.lower = nn.Parameter(torch.zeros(features, features))
        self.upper = nn.Parameter(torch.zeros(features, features))
        self.log_diagonal = nn.Parameter(torch.zeros(features))

    def _factors(self) -> tuple[Tensor, Tensor]:
        return self.lower.tril(-1) + torch.eye(len(self.lower), device=self.lower.device, dtype=self.lower.dtype), (
            self.upper.triu(1) + self.log_diagonal.exp().diag()
        )

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        lower, upper = self._factors()
        return (inputs @ (lower @ upper).T).flip(-1), self.log_diagonal.sum().expand(len(inputs))

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        lower, upper = self._factors()
        half = torch.linalg.solve_triangular(lower, inputs.flip(-1).T, upper=False, unitriangular=True)
        z = torch.linalg.solve_triangular(upper, half, upper=True)
        return z.T, -self.log_diagonal.sum().expand(len(inputs))


MAPS: dict[str, type[Affine] | type[Spline]] = {"affine": Affine, "spline": Spline}
LAYOUTS: dict[str, type[Coupling] | type[Autoregressive]] = {"coupling": Coupling, "autoregressive": Autoregressive}
