r"""Solvers of differential equations: a Runge-Kutta method is its table, and a sampler one formula.

For an equation dy/ds = f(y, s), fixed steps (`steps`) or, row by row, steps that adapt to a tolerance
(`adaptive`). For a denoiser x(y, nu), which estimates the data in y = data + nu * noise, samplers that go down a list
of noise ratios nu_0 > ... > nu_n. They are written for y alone, because the process of every schedule is this one,
rescaled (`sbi_dgm.schedules`).

A number that is not finite stops a solver at once with the place and the count: nothing is drawn from it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Generator, Tensor

from sbi_dgm import gaussian
from sbi_dgm.errors import SolverError

Field = Callable[[Tensor, Tensor], Tensor]  # (y (..., D), s a number) -> dy/ds
Denoiser = Callable[[Tensor, Tensor], Tensor]  # (y (..., D), nu a number) -> the data (..., D)


@dataclass(frozen=True)
class Tableau:
    """A Runge-Kutta method (Butcher 1964): k_i = f(y + h sum_j a_ij k_j, s + c_i h), y + h sum_i b_i k_i.

    Attributes:
        order: the error of a step of length h is O(h^(order + 1)).
        a: rows of the lower triangle, the first one empty; their sums are the nodes c.
        b: weights.
        error: b minus the weights of a solution of lower order, or empty.

    """

    order: int
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    error: tuple[float, ...] = ()

    def step(self, f: Field, y: Tensor, s: Tensor, h: Tensor) -> tuple[Tensor, list[Tensor]]:
        """One step from (y, s): the new y and all k_i; h has the shape of s."""
        slopes: list[Tensor] = []
        for row in self.a:
            slopes.append(f(y + _combine(row, slopes, h, y), s + sum(row) * h))
        return y + _combine(self.b, slopes, h, y), slopes


def _combine(weights: tuple[float, ...], slopes: list[Tensor], h: Tensor, y: Tensor) -> Tensor:
    total = torch.zeros_like(y)
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            total = total + weight * slope
    return h.reshape(h.shape + (1,) * (y.ndim - h.ndim)) * total


EULER = Tableau(1, ((),), (1.0,))
MIDPOINT = Tableau(2, ((), (1 / 2,)), (0.0, 1.0))
HEUN = Tableau(2, ((), (1.0,)), (1 / 2, 1 / 2))
RK4 = Tableau(4, ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6))
DOPRI5 = Tableau(  # Dormand and Prince 1980, table 2
    5,
    (
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
)
TABLEAUS = {"euler": EULER, "midpoint": MIDPOINT, "heun": HEUN, "rk4": RK4, "dopri5": DOPRI5}


def finite(y: Tensor, step: int, s: Tensor) -> Tensor:
    """The same y, or `SolverError` where a number of it is not finite."""
    good = torch.isfinite(y)
    if not bool(good.all()):
        bad = ~good.all(-1)
        time = float(s.expand(bad.shape)[bad][0])
        raise SolverError(
            f"{int(bad.sum())} of {bad.numel()} solutions are not finite at step {step} (time {time:.4g}): the network "
            "diverged at this observation. Is x like the simulations?"
        )
    return y


def steps(tableau: Tableau, f: Field, y: Tensor, places: Tensor) -> Tensor:
    """Follow dy/ds = f through `places` (n + 1,), by one step of the method between each two."""
    for i, (s, following) in enumerate(pairwise(places)):
        y = finite(tableau.step(f, y, s, following - s)[0], i, s)
    return y


RowField = Callable[[Tensor, Tensor, Tensor], Tensor]  # (y (r, K), s (r,), rows (r,)) -> dy/ds (r, K)


def relative(y: Tensor, _: Tensor) -> Tensor:
    """1 + |y|."""
    return 1 + y.abs()


def adaptive(
    f: RowField,
    y: Tensor,
    start: float,
    stop: float,
    *,
    tolerance: float,
    scale: Field = relative,
    tableau: Tableau = DOPRI5,
) -> Tensor:
    """Follow dy/ds = f from `start` to `stop`, each row of y (R, K) with steps of its own.

    A step is kept if its estimated error, over `scale` and as the root mean square over K, is at most the tolerance;
    the next one is longer or shorter by the usual rule (Hairer, Norsett and Wanner 1993, II.4). Since rows do not share
    their steps, none depends on which others it is solved with.

    Args:
        f: gets the rows that are still on their way: their y (r, K), their s (r,), and their numbers.
        scale: the size of an error of one, as a function of y (r, K) and s (r,): (r, K), or what broadcasts with it.

    """
    y, s = y.clone(), y.new_full(y.shape[:1], start)
    h = torch.full_like(s, 0.02 * (stop - start))
    rows = torch.arange(len(y), device=y.device)
    for step in range(MOST_STEPS):
        if len(rows) == 0:
            break
        at, length = s[rows], torch.where((stop - s[rows]).abs() < h[rows].abs(), stop - s[rows], h[rows])
        proposed, slopes = tableau.step(lambda a, b: f(a, b, rows), y[rows], at, length)  # noqa: B023
        finite(proposed, step, at)
        unit = torch.maximum(scale(y[rows], at), scale(proposed, at + length))
        error = (_combine(tableau.error, slopes, length, proposed) / unit).square().mean(-1).sqrt() / tolerance
        kept = error <= 1
        y[rows[kept]], s[rows[kept]] = proposed[kept], (at + length)[kept]
        h[rows] = length * (0.9 * error.clamp(min=1e-10) ** (-1 / tableau.order)).clamp(0.2, 5.0)
        done = kept & (length == stop - at)
        rows = rows[~done]
    if len(rows) > 0:
        raise SolverError(
            f"{len(rows)} of {len(y)} solutions need more than {MOST_STEPS} steps (the first is at time "
            f"{float(s[rows[0]]):.4g}): raise the tolerance, now {tolerance:g}."
        )
    return y


MOST_STEPS = 2000


def probability_flow(tableau: Tableau) -> "Sampler":
    """The probability-flow ODE dy/dnu = (y - x) / nu by a Runge-Kutta method (Karras et al. 2022, algorithm 1)."""

    def sampler(x: Denoiser, y: Tensor, levels: Tensor, _: Generator | None) -> Tensor:
        return steps(tableau, lambda y, nu: (y - x(y, nu)) / nu, y, levels)

    return sampler


def multistep(x: Denoiser, y: Tensor, levels: Tensor, _: Generator | None) -> Tensor:
    """DPM-Solver++(2M): the data extrapolated in ln nu from two steps (Lu et al. 2022, arXiv:2211.01095, alg. 2)."""
    before, span = None, None
    for i, (nu, following) in enumerate(pairwise(levels)):
        data, h = x(y, nu), torch.log(nu / following)
        ahead = data if before is None or span is None else data + 0.5 * h / span * (data - before)
        y = finite(following / nu * y + (1 - following / nu) * ahead, i, nu)
        before, span = data, h
    return y


def ancestral(x: Denoiser, y: Tensor, levels: Tensor, generator: Generator | None) -> Tensor:
    """DDPM: draws of q(y_s | y_t, data = x(y_t)), the Gaussian bridge (Ho et al. 2020, eq. 6-7, divided by alpha)."""
    for i, (nu, following) in enumerate(pairwise(levels)):
        share = (following / nu).square()
        mean = share * y + (1 - share) * x(y, nu)
        y = finite(mean + following * (1 - share).sqrt() * gaussian.noise(y.shape, y, generator), i, nu)
    return y


def reverse_sde(x: Denoiser, y: Tensor, levels: Tensor, generator: Generator | None) -> Tensor:
    """Euler and Maruyama on dy = (y - x) d(nu^2) / nu^2 + dw, of variance d(nu^2) (Song et al. 2021, eq. 6)."""
    for i, (nu, following) in enumerate(pairwise(levels)):
        variance = nu.square() - following.square()
        drift, noise = variance / nu.square() * (x(y, nu) - y), gaussian.noise(y.shape, y, generator)
        y = finite(y + drift + variance.sqrt() * noise, i, nu)
    return y


Sampler = Callable[[Denoiser, Tensor, Tensor, "Generator | None"], Tensor]
SAMPLERS: dict[str, Sampler] = {
    "euler": probability_flow(EULER),
    "heun": probability_flow(HEUN),
    "dpm": multistep,
    "ancestral": ancestral,
    "sde": reverse_sde,
}
