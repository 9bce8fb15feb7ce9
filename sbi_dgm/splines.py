r"""Monotone rational-quadratic splines with linear tails, branch-free.

Durkan, Bekasov, Murray and Papamakarios 2019, "Neural Spline Flows" (arXiv:1906.04032), after Gregory and
Delbourgo 1982. Knots (x_k, y_k), k = 0..K, rise from (-b, -b) to (b, b) with derivatives d_k > 0. Inside
bin k, with w = x_{k+1} - x_k, h = y_{k+1} - y_k, s = h / w and xi = (x - x_k) / w,

.. math::
    y = y_k + \frac{h\,[s \xi^2 + d_k \xi (1-\xi)]}{s + (d_k + d_{k+1} - 2 s)\, \xi (1-\xi)}          \qquad (4)

    \frac{dy}{dx} = \frac{s^2 [d_{k+1}\xi^2 + 2 s \xi(1-\xi) + d_k (1-\xi)^2]}
                         {[s + (d_k + d_{k+1} - 2 s)\, \xi(1-\xi)]^2}                                  \qquad (5)

and the inverse solves a xi^2 + b xi + c = 0 by xi = 2 c / (-b - sqrt(b^2 - 4 a c)) (6-8). In float32 that
discriminant cancels where the curve is steep, so one Newton step on (4) follows; it costs one evaluation
that the log-determinant needs anyway.

Outside [-b, b] the map goes on as a straight line with the derivative of its last knot: the paper fixes that
derivative to 1, here it is learned, so that a Gaussian tail can keep its own width. Every element takes the
same path: the bin is found by comparison and taken by `gather`, and the tails by `where` on clamped inputs, so
that nothing waits for the device and no gradient is NaN.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

MIN_WIDTH = 1e-3  # of 2 b; the paper's value, also for heights and derivatives
UNIT = math.log(math.expm1(1 - MIN_WIDTH))  # softplus(UNIT) + MIN_WIDTH = 1: zeros mean slope one


class Knots(NamedTuple):
    """The knots of a batch of splines: positions x, y and derivatives d, each (..., K + 1)."""

    x: Tensor
    y: Tensor
    d: Tensor


class _Bin(NamedTuple):
    """The bin that each element falls into, each (...)."""

    x: Tensor
    y: Tensor
    w: Tensor
    h: Tensor
    d0: Tensor
    d1: Tensor


def knots(raw: Tensor, bound: float) -> Knots:
    """Turn unconstrained numbers into knots; zeros give the identity.

    Args:
        raw: (..., 3 K + 1): K widths, K heights, K + 1 derivatives.
        bound: b > 0, half the width of the box.

    """
    bins = (raw.shape[-1] - 1) // 3
    widths, heights, slopes = raw.split([bins, bins, bins + 1], dim=-1)
    return Knots(_edges(widths, bound), _edges(heights, bound), functional.softplus(slopes + UNIT) + MIN_WIDTH)


def _edges(raw: Tensor, bound: float) -> Tensor:
    bins = raw.shape[-1]
    shares = MIN_WIDTH + (1 - MIN_WIDTH * bins) * torch.softmax(raw, dim=-1)
    inner = 2 * bound * torch.cumsum(shares[..., :-1], dim=-1) - bound
    return functional.pad(functional.pad(inner, (1, 0), value=-bound), (0, 1), value=bound)


def _find(values: Tensor, edges: Tensor, spline: Knots) -> _Bin:
    index = (values.unsqueeze(-1) >= edges[..., 1:-1]).sum(-1, keepdim=True)
    table = torch.stack(spline, dim=-2)
    low = table.gather(-1, index.unsqueeze(-2).expand(*table.shape[:-1], 1)).squeeze(-1)
    high = table.gather(-1, index.unsqueeze(-2).expand(*table.shape[:-1], 1) + 1).squeeze(-1)
    (x, y, d0), (x1, y1, d1) = low.unbind(-1), high.unbind(-1)
    return _Bin(x, y, x1 - x, y1 - y, d0, d1)


def _evaluate(xi: Tensor, at: _Bin) -> tuple[Tensor, Tensor]:
    """Equations (4) and (5): y - y_k and dy/dx at xi."""
    s = at.h / at.w
    mixed = xi * (1 - xi)
    below = s + (at.d0 + at.d1 - 2 * s) * mixed
    rise = at.h * (s * xi.square() + at.d0 * mixed) / below
    slope = (s / below).square() * (at.d1 * xi.square() + 2 * s * mixed + at.d0 * (1 - xi).square())
    return rise, slope


def _solve(rise: Tensor, at: _Bin) -> Tensor:
    """Equations (6) to (8): xi where the curve has risen by `rise`, with one Newton step, which alone has a gradient.

    The step's gradient is that of the implicit function, exactly; the root's would be infinite at zero.
    """
    s = at.h / at.w
    bend = rise * (at.d0 + at.d1 - 2 * s)
    a = at.h * (s - at.d0) + bend
    b = at.h * at.d0 - bend
    c = -s * rise
    xi = (2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt())).clamp(0, 1).detach()
    value, slope = _evaluate(xi, at)
    return (xi - (value - rise) / (slope * at.w)).clamp(0, 1)


def forward(x: Tensor, spline: Knots, bound: float) -> tuple[Tensor, Tensor]:
    """The map x -> y, element by element.

    Args:
        x: (...).
        spline: knots with leading shape (...).
        bound: b; straight lines outside.

    Returns:
        y and log|dy/dx|, both (...).

    >>> y, log_slope = forward(torch.tensor([-7.0, 0.3]), knots(torch.zeros(2, 25), 5.0), 5.0)
    >>> bool((y - torch.tensor([-7.0, 0.3])).abs().max() < 1e-5)
    True

    """
    inside = x.clamp(-bound, bound)
    at = _find(inside, spline.x, spline)
    rise, slope = _evaluate((inside - at.x) / at.w, at)
    return at.y + rise + slope * (x - inside), slope.log()


def inverse(y: Tensor, spline: Knots, bound: float) -> tuple[Tensor, Tensor]:
    """The map y -> x, element by element: the inverse of `forward`.

    Returns:
        x and log|dx/dy|, both (...).

    """
    inside = y.clamp(-bound, bound)
    at = _find(inside, spline.y, spline)
    xi = _solve(inside - at.y, at).masked_fill(y >= bound, 1.0)  # the tail's slope is the last knot's, exactly
    _, slope = _evaluate(xi, at)
    return at.x + xi * at.w + (y - inside) / slope, -slope.log()
