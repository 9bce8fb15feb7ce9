r"""Continuous normalizing flow: a neural ODE between data and noise, trained by maximum likelihood.

A field f carries z at s = 0 to y_1 at s = 1, which is to be standard normal. By the change of variables of an
equation (Chen et al. 2018, arXiv:1806.07366, theorem 1) the loss

.. math::  -\ln p(z | c) = -\ln N(y_1; 0, I) - \int_0^1 \mathrm{tr}\, \frac{\partial f}{\partial y}(y_s, s, c)\, ds

needs no noise of its own. The trace is exact up to `EXACT` dimensions; beyond, one random sign vector e for each row
gives e^T (df/dy) e without bias, the same along the whole way (FFJORD: Grathwohl et al. 2019, arXiv:1810.01367,
eq. 7-8). Directional derivatives go forward through the network (`SteeredMLP.pushed`).

Training follows the equation by `steps` steps of Runge and Kutta's method of order four. Its gradients are those of
the computed numbers ("direct": discretise, then optimise), or those of the equation ("adjoint"; Pontryagin et al.
1962; Chen et al. 2018, section 2): with a = dL/dy, also backwards from s = 1,

.. math::  \frac{da}{ds} = -a^T \frac{\partial f}{\partial y} , \qquad
    \frac{dL}{dw} = \int_0^1 a^T \frac{\partial f}{\partial w}\, ds ,

with y solved again on the way, so that memory does not grow with the number of steps; in the place of f and y stand
both and their integrals. The two agree up to the error of the steps.

Of all fields that end at the same density, a penalty prefers slow and straight ones, which few steps solve (Finlay et
al. 2020, arXiv:2002.02798, eq. 7): `smoothness` times the integral of :math:`|f|^2 + |df/dy|_F^2`. Validation is
without it, and its steps are an eighth as long, so that a field which outruns its steps is not the best one.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor
from torch.autograd.function import once_differentiable

from sbi_dgm import gaussian
from sbi_dgm.estimators.base import Space
from sbi_dgm.estimators.continuous import EXACT, Continuous, ContinuousFamily
from sbi_dgm.networks import SteeredMLP
from sbi_dgm.solvers import RK4
from sbi_dgm.solvers import Field as Equation

FREQUENCIES = 4  # of the network's time: faster changes would need more steps
FINER = 8  # times the steps of training in validation


class ContinuousFlow(ContinuousFamily):
    """Options of a continuous normalizing flow, beside those of `ContinuousFamily`.

    Attributes:
        steps: of the solver in training; each evaluates the network four times.
        gradient: "direct" is quicker, "adjoint" needs the memory of one step.
        smoothness: weight of the penalty on fields that few steps do not solve.

    Example:
        >>> flow = ContinuousFlow(steps=5).build(Space((3,)), context_dim=4)
        >>> flow(torch.zeros(5, 3), torch.zeros(5, 4)).shape
        torch.Size([5])

    """

    hidden: int = Field(default=64, ge=1)
    blocks: int = Field(default=2, ge=0)
    steps: int = Field(default=4, ge=1)
    gradient: Literal["direct", "adjoint"] = "direct"
    smoothness: float = Field(default=0.01, ge=0)

    def build(self, space: Space, context_dim: int) -> "ContinuousFlowEstimator":
        network = SteeredMLP(space.size, context_dim, hidden=self.hidden, blocks=self.blocks, frequencies=FREQUENCIES)
        return ContinuousFlowEstimator(space, network, self)


class ContinuousFlowEstimator(Continuous):
    """The field, and its likelihood with gradients."""

    options: ContinuousFlow
    data, noise, variance = 0.0, 1.0, 1.0

    def field(self, y: Tensor, s: Tensor, steering: Tensor) -> Tensor:
        return self.network(y, s, steering)

    def spread(self, s: Tensor) -> Tensor:
        return s

    def forward(
        self, z: Tensor, context: Tensor, *, progress: float = 1.0, generator: Generator | None = None
    ) -> Tensor:
        steps = self.options.steps if self.training else FINER * self.options.steps
        places = torch.linspace(self.data, self.noise, steps + 1, dtype=z.dtype, device=z.device)
        state = torch.cat([z, z.new_zeros(len(z), 2)], dim=-1)
        end = self._followed(self._directions(z, generator), places, state, self.network.steer(context))
        y, trace, roughness = end.split([self.space.size, 1, 1], dim=-1)
        loss = -gaussian.log_prob(y) - trace[:, 0]
        return loss + self.options.smoothness * roughness[:, 0] if self.training else loss

    def _directions(self, z: Tensor, generator: Generator | None) -> Tensor:
        """Of the trace (P, B, D): the axes, or random signs, of which training takes one for each row."""
        signs = self._signs(z, generator)
        return signs if self.space.size <= EXACT or not self.training else signs[:1]

    def _followed(self, along: Tensor, places: Tensor, state: Tensor, steering: Tensor) -> Tensor:
        """The state (B, D + 2) at the end: y and the integrals of trace and roughness."""
        size = self.space.size

        def slope(state: Tensor, s: Tensor, steering: Tensor) -> Tensor:
            f, pushed = self.network.pushed(state[:, :size], s, steering, along)
            traces, squares = (pushed * along).sum(-1), pushed.square().sum(-1)
            both = torch.stack([traces, squares], -1)
            trace, square = (both.sum(0) if size <= EXACT else both.mean(0)).split(1, dim=-1)
            return torch.cat([f, trace, square + f.square().sum(-1, keepdim=True)], dim=-1)

        if self.options.gradient == "adjoint":
            weights = tuple(self.network.parameters())
            return Adjoint.apply(slope, places, state, steering, *weights)  # type: ignore[return-value]
        return follow(lambda y, s: slope(y, s, steering), state, places)


def follow(f: Equation, y: Tensor, places: Tensor) -> Tensor:
    """dy/ds = f through `places` (n + 1,); that the numbers are finite is asked of the loss, after a round."""
    for s, following in pairwise(places):
        y, _ = RK4.step(f, y, s, following - s)
    return y


class Adjoint(torch.autograd.Function):
    """`follow` for dy/ds = f(y, s, steering; weights), with gradients by the adjoint equation.

    Arguments: f, places (n + 1,), y (B, K), steering (B, 2 H), and the weights of f. What is kept does not grow with n.
    """

    @staticmethod
    def forward(
        ctx: Any, f: Callable[[Tensor, Tensor, Tensor], Tensor], places: Tensor, y: Tensor, *given: Tensor
    ) -> Tensor:
        end = follow(lambda y, s: f(y, s, given[0]), y, places)
        ctx.f = f
        ctx.save_for_backward(places, end, *given)
        return end

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, pull: Tensor) -> tuple[Tensor | None, ...]:
        places, end, *given = ctx.saved_tensors
        shapes = [end, pull, *given]

        def unpacked(packed: Tensor) -> list[Tensor]:
            pieces = packed.split([part.numel() for part in shapes])
            return [piece.view_as(part) for piece, part in zip(pieces, shapes, strict=True)]

        def slope(packed: Tensor, s: Tensor) -> Tensor:
            y, a, *_ = unpacked(packed)
            with torch.enable_grad():
                y, steering = y.requires_grad_(), given[0].detach().requires_grad_()
                f = ctx.f(y, s, steering)
                wanted = (y, steering, *given[1:])
                pulled = torch.autograd.grad(f, wanted, -a, allow_unused=True, materialize_grads=True)
            return _packed([f.detach(), *pulled])

        start = _packed([end, pull, *(torch.zeros_like(part) for part in given)])
        _, *gradients = unpacked(follow(slope, start, places.flip(0)))
        return None, None, *gradients


def _packed(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.flatten() for part in parts])
