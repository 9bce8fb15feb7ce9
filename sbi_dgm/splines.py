r"""Monotone rational-quadratic splines with linear tails, branch-free, with their derivative in closed form.

Durkan, Bekasov, Murray and Papamakarios 2019, "Neural Spline Flows" (arXiv:1906.04032), after Gregory and
Delbourgo 1982. Knots (x_k, y_k), k = 0..K, rise from (-b, -b) to (b, b) with derivatives d_k > 0. Inside
bin k, with w = x_{k+1} - x_k, h = y_{k+1} - y_k, s = h / w and xi = (x - x_k) / w,

.. math::
    y = y_k + h \frac{N}{B}, \quad N = s \xi^2 + d_k \xi (1-\xi), \quad B = s + (d_k + d_{k+1} - 2 s)\, \xi (1-\xi)
    \quad (4)

    \frac{dy}{dx} = \frac{s^2}{B^2} S, \quad S = d_{k+1}\xi^2 + 2 s \xi(1-\xi) + d_k (1-\xi)^2 \quad (5)

and the inverse solves a xi^2 + b xi + c = 0 by xi = 2 c / (-b - sqrt(b^2 - 4 a c)) (6-8). In float32 that
discriminant cancels where the curve is steep, so one Newton step on (4) follows, for one evaluation more.

Outside [-b, b] the map goes on as a straight line with the derivative of its last knot: the paper fixes that
derivative to 1, here it is learned, so that a Gaussian tail can keep its own width. Every element takes the
same path: the bin is found by comparison and taken by `gather`, and the tails by clamping, so that nothing waits
for the device and no gradient is NaN.

Rows are the last axis: arithmetic runs along them, where an axis of a few bins would leave the processor idle (a
softmax over ten neighbouring numbers takes 20 times as long as one over ten rows of numbers).
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

MIN_WIDTH = 1e-3  # of the box; the paper's value, also for heights and derivatives
UNIT = math.log(math.expm1(1 - MIN_WIDTH))  # softplus(UNIT) + MIN_WIDTH = 1: zeros mean slope one


def forward(x: Tensor, raw: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """The map x -> y, element by element.

    Args:
        x: (..., N).
        raw: (..., 3 K + 1, N) unconstrained numbers: K widths, K heights, K + 1 derivatives; zeros give the identity.
        bound: b > 0, half the width of the box; straight lines outside.

    Returns:
        y and log|dy/dx|, both (..., N); they can be differentiated once.

    >>> y, log_slope = forward(torch.tensor([-7.0, 0.3]), torch.zeros(25, 2), 5.0)
    >>> bool((y - torch.tensor([-7.0, 0.3])).abs().max() < 1e-5)
    True

    """
    return _Forward.apply(x, raw, bound)


def inverse(y: Tensor, raw: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """The map y -> x, element by element: the inverse of `forward`.

    Returns:
        x and log|dx/dy|, both (..., N).

    """
    inside = y.clamp(-bound, bound)
    at, _, _, _ = _find(inside, raw, bound, axis=1)
    xi = _solve(inside - at.y, at).masked_fill(y >= bound, 1.0)  # the tail's slope is the last knot's, exactly
    slope = _curve(xi, 1 - xi, at).slope
    return at.x + xi * at.w + (y - inside) / slope, -slope.log()


class _Bin(NamedTuple):
    """The bin that each element falls into, each (..., N)."""

    x: Tensor
    y: Tensor
    w: Tensor
    h: Tensor
    d0: Tensor
    d1: Tensor


def _find(values: Tensor, raw: Tensor, bound: float, axis: int) -> tuple[_Bin, Tensor, Tensor, Tensor]:
    """The bins of values along the `axis` x or y.

    Also the softmax behind all widths and heights (..., 2, K, N), k and k + 1 as (..., 2, N), and as many slopes.
    """
    bins = raw.shape[-2] // 3
    shares = torch.softmax(raw[..., : 2 * bins, :].unflatten(-2, (2, bins)), dim=-2)
    least = 2 * bound * MIN_WIDTH
    first, last = least - bound, (bins - 1) * least - bound
    floors = torch.linspace(first, last, bins - 1, device=raw.device, dtype=raw.dtype).unsqueeze(-1)
    inner = torch.add(floors, shares[..., :-1, :].cumsum(-2), alpha=2 * bound - bins * least)
    end = torch.full_like(inner[..., :1, :], bound)
    edges = torch.cat([-end, inner, end], dim=-2)
    k = (values.unsqueeze(-2) >= inner[..., axis, :, :]).sum(-2, keepdim=True)
    pair = torch.cat([k, k + 1], dim=-2)
    ends = edges.gather(-2, pair.unsqueeze(-3).expand(*edges.shape[:-2], 2, -1))
    low, size = ends[..., 0, :], ends[..., 1, :] - ends[..., 0, :]
    slopes = functional.softplus(raw[..., 2 * bins :, :].gather(-2, pair) + UNIT) + MIN_WIDTH
    return _Bin(*low.unbind(-2), *size.unbind(-2), *slopes.unbind(-2)), shares, pair, slopes


class _Curve(NamedTuple):
    """What (4) and (5) are made of at xi, each (..., N): xi (1 - xi), xi^2, (1 - xi)^2, s, d_k + d_{k+1} - 2 s, ..."""

    mixed: Tensor
    up: Tensor
    down: Tensor
    s: Tensor
    bend: Tensor
    below: Tensor
    ratio: Tensor
    steep: Tensor
    slope: Tensor


def _curve(xi: Tensor, rest: Tensor, at: _Bin) -> _Curve:
    """N / B of (4) as `ratio`, dy/dx of (5) as `slope`, B as `below` and S as `steep`; the rest is 1 - xi."""
    s = at.h / at.w
    mixed, up, down = xi * rest, xi * xi, rest * rest
    bend = torch.sub(at.d0 + at.d1, s, alpha=2)
    below = torch.addcmul(s, bend, mixed)
    ratio = torch.addcmul(s * up, at.d0, mixed) / below
    steep = torch.addcmul(torch.addcmul(at.d1 * up, s, mixed, value=2), at.d0, down)
    return _Curve(mixed, up, down, s, bend, below, ratio, steep, (s / below).square() * steep)


def _solve(rise: Tensor, at: _Bin) -> Tensor:
    """Equations (6) to (8): xi where the curve has risen by `rise`, with one Newton step, which alone has a gradient.

    The step's gradient is that of the implicit function, exactly; the root's would be infinite at zero.
    """
    s = at.h / at.w
    turn = rise * (at.d0 + at.d1 - 2 * s)
    a = at.h * (s - at.d0) + turn
    b = at.h * at.d0 - turn
    c = -s * rise
    xi = (2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt())).clamp(0, 1).detach()
    curve = _curve(xi, 1 - xi, at)
    return (xi - (at.h * curve.ratio - rise) / (curve.slope * at.w)).clamp(0, 1)


class _Forward(Function):
    r"""`forward` and its derivative, in fewer operations than automatic differentiation takes.

    With :math:`\ell = \ln dy/dx = 2 \ln s - 2 \ln B + \ln S`, y = y_k + h N / B + e^\ell t for a distance t beyond the
    box, and a and c what the loss feels of y and of \ell (c with the part that goes through t), the differentials

    .. math::
        dN = \xi^2 ds + \xi(1-\xi)\, dd_k + \ldots, \quad
        dB = (1 - 2 \xi(1-\xi))\, ds + \xi(1-\xi) (dd_k + dd_{k+1}) + (d_k + d_{k+1} - 2 s)(1 - 2\xi)\, d\xi, \quad
        dS = 2 \xi(1-\xi)\, ds + \xi^2 dd_{k+1} + (1-\xi)^2 dd_k + 2 [d_{k+1} \xi + s (1 - 2\xi) - d_k (1-\xi)]\, d\xi

    weigh a h / B, -(a h N / B + 2 c) / B and c / S; that of y by \xi is e^\ell w. Of \xi (1-\xi), \xi^2 and (1-\xi)^2,
    1 - 2 \xi (1-\xi) is the sum of the last two, 1 - 2 \xi their difference, and 1 - \xi the sum of the outer ones.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, raw: Tensor, bound: float) -> tuple[Tensor, Tensor]:
        inside = x.clamp(-bound, bound)
        at, shares, pair, slopes = _find(inside, raw, bound, axis=0)
        xi = (inside - at.x) / at.w
        curve = _curve(xi, 1 - xi, at)
        tail = x - inside
        y = torch.addcmul(torch.addcmul(at.y, at.h, curve.ratio), curve.slope, tail)
        ctx.save_for_backward(tail, xi, shares, pair, slopes, *at[2:], *curve)
        ctx.bound = bound
        return y, curve.slope.log()

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, grad_log: Tensor) -> tuple[Tensor, Tensor, None]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise NotImplementedError("a spline can be differentiated once: its gradient has no gradient.")
        tail, xi, shares, pair, slopes, w, h, d0, d1, *rest = ctx.saved_tensors
        a, curve = grad_y, _Curve(*rest)
        c = torch.addcmul(grad_log, a * curve.slope, tail)
        twice = c + c
        by_n = a / curve.below * h
        by_b = torch.addcmul(twice / curve.below, by_n, curve.ratio).neg_()
        by_s = c / curve.steep
        to_s = (by_n * curve.up).addcmul_(by_b, curve.up + curve.down).addcmul_(by_s, curve.mixed, value=2)
        to_s = to_s.add_(twice / curve.s)
        to_d0 = (by_n + by_b).mul_(curve.mixed).addcmul_(by_s, curve.down)
        to_d1 = (by_b * curve.mixed).addcmul_(by_s, curve.up)
        turn = (by_s * curve.s - c * curve.bend / curve.below).mul_(curve.down - curve.up)
        bent = turn.addcmul_(by_s, d1 * xi).addcmul_(by_s, d0 * (curve.down + curve.mixed), value=-1)
        bent = bent.add_(bent).div_(w)
        to_low = torch.addcmul(bent, a, curve.slope).neg_()
        to_w, to_h = (to_low * xi).sub_(to_s * curve.s / w), torch.addcdiv(a * curve.ratio, to_s, w)
        to_x = torch.addcmul(bent.masked_fill_(tail != 0, 0), a, curve.slope)
        ends = torch.stack([to_low, a], dim=-2), torch.stack([to_w, to_h], dim=-2), torch.stack([to_d0, to_d1], dim=-2)
        return to_x, _to_raw(shares, pair, slopes, ctx.bound, *ends), None


def _to_raw(
    shares: Tensor, pair: Tensor, slopes: Tensor, bound: float, low: Tensor, size: Tensor, to_slopes: Tensor
) -> Tensor:
    """Gradients of the lower ends, sizes and slopes of bins, as one of unconstrained numbers (..., 3 K + 1, N).

    A lower end is the sum of the sizes before it; softmax turns g into p (g - sum p g), softplus multiplies by
    1 - e^{-d}.
    """
    bins, k = shares.shape[-2], pair[..., :1, :]
    before = torch.arange(bins, device=k.device).unsqueeze(-1) < k
    grad = before.unsqueeze(-3) * low.unsqueeze(-2)
    grad.scatter_(-2, k.unsqueeze(-3).expand(*grad.shape[:-2], 1, -1), size.unsqueeze(-2))
    grad.mul_(shares).mul_(2 * bound * (1 - MIN_WIDTH * bins))
    raw = grad.new_zeros(*pair.shape[:-2], 3 * bins + 1, pair.shape[-1])
    raw[..., : 2 * bins, :] = torch.addcmul(grad, shares, grad.sum(-2, keepdim=True), value=-1).flatten(-3, -2)
    return raw.scatter_(-2, pair + 2 * bins, torch.expm1(MIN_WIDTH - slopes).neg_().mul_(to_slopes))
