r"""Densities and draws by an ordinary differential equation: what all families of continuous time share.

A field f(y, s, c) carries p(z | c) at s = `data` to a normal N(m(c), v I) at s = `noise`, along dy/ds = f. Then (Chen
et al. 2018, arXiv:1806.07366, theorem 1)

.. math::
    \ln p(z | c) = \ln N(y; m, v I)\big|_\text{noise}
    + \int_\text{data}^\text{noise} \mathrm{tr}\, \frac{\partial f}{\partial y}\, ds ,

and draws come from the same equation, backwards from noise. The trace is exact up to `EXACT` dimensions,
and beyond an average of e^T (df/dy) e over random signs e (Hutchinson 1990), the same along the whole way of a row.
Densities have no gradients: they would need those of the trace, which only `continuous_flow` has, in its loss.
"""

import math
from abc import abstractmethod

import torch
from pydantic import Field
from torch import Generator, Tensor

from sbi_dgm import gaussian, solvers
from sbi_dgm.estimators.base import Estimator, Family, Space
from sbi_dgm.networks import SteeredMLP
from sbi_dgm.seeds import torch_generator

EXACT = 16  # dimensions up to which the trace is exact
FINEST = 0.01  # errors of y count in units of this plus the noise in y: what moves ln p by about one


class ContinuousFamily(Family):
    """Options that families of continuous time share.

    Attributes:
        hidden: width of the network.
        blocks: its number of residual blocks.
        tolerance: of the solver behind densities, a step; ln p is right to some hundred tolerances.
        probes: random signs for the trace, beyond 16 dimensions.

    """

    USE = frozenset({"tolerance", "probes"})

    hidden: int = Field(default=128, ge=1)
    blocks: int = Field(default=4, ge=0)
    tolerance: float = Field(default=1e-5, gt=0, le=1e-3)
    probes: int = Field(default=8, ge=2)


class Continuous(Estimator):
    """Base of families whose density is that of an ODE.

    Attributes:
        options: what the user chose.
        network: of z, time and context.
        data, noise: the places s of data and noise.
        variance: v, of the normal at `noise`.

    """

    density = "ode"
    data: float
    noise: float
    variance: float

    def __init__(self, space: Space, network: SteeredMLP, options: ContinuousFamily) -> None:
        super().__init__()
        self.space, self.network, self.options = space, network, options

    @abstractmethod
    def field(self, y: Tensor, s: Tensor, steering: Tensor) -> Tensor:
        """dy/ds: y (..., D), s (...), steering (..., 2 H) -> (..., D)."""

    def centre(self, steering: Tensor) -> Tensor:
        """The mean m of the normal at `noise`: steering (B, 2 H) -> (B, D) or (D,)."""
        return steering.new_zeros(self.space.size)

    @abstractmethod
    def spread(self, s: Tensor) -> Tensor:
        """The noise in y at s."""

    @torch.no_grad()
    def sample(self, n: int, context: Tensor, generator: Generator | None = None) -> Tensor:
        steering, y = self.network.steer(context), self._start(n, context, generator)
        flat = y.flatten(0, -2)

        def slope(y: Tensor, s: Tensor, rows: Tensor) -> Tensor:
            return self.field(y, s, steering[rows // n])

        ends = (self.noise, self.data)
        return solvers.adaptive(slope, flat, *ends, tolerance=self.options.tolerance, scale=self._unit).view_as(y)

    @torch.no_grad()
    def log_prob(self, z: Tensor, context: Tensor, generator: Generator | None = None) -> Tensor:
        return self._density(z, context, self._signs(z, generator), self.options.tolerance).mean(-1)

    @torch.no_grad()
    def log_prob_and_error(
        self, z: Tensor, context: Tensor, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """ln p and an estimate of its numerical error, both of the shape of `log_prob`.

        The solver's part is twice what a threefold or a tenfold tolerance changes, whichever is more: two solutions may
        err alike by chance, three seldom do. Hutchinson's is the standard error over probes.
        """
        signs, tolerance = self._signs(z, generator), self.options.tolerance
        fine, *coarse = (self._density(z, context, signs, factor * tolerance) for factor in (1, 3, 10))
        error = 2 * torch.stack([(fine - other).mean(-1).abs() for other in coarse]).amax(0)
        if fine.shape[-1] > 1:
            error = error + fine.std(-1) / math.sqrt(fine.shape[-1])
        return fine.mean(-1), error

    @torch.no_grad()
    def sample_and_log_prob(self, n: int, context: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        y = self._start(n, context, generator)
        signs = self._signs(y, generator)
        z, traces = self._carried(y, context, signs, self.noise, self.data, self.options.tolerance)
        return z, (gaussian.log_prob(y - self._mean(context), self.variance)[..., None] - traces).mean(-1)

    def _density(self, z: Tensor, context: Tensor, signs: Tensor, tolerance: float) -> Tensor:
        """ln p by each probe: (..., P)."""
        y, traces = self._carried(z, context, signs, self.data, self.noise, tolerance)
        mean = self._mean(context) if z.ndim > 2 else self._mean(context)[:, 0]
        return gaussian.log_prob(y - mean, self.variance)[..., None] + traces

    def _start(self, n: int, context: Tensor, generator: Generator | None) -> Tensor:
        """Draws of the normal at `noise` (B, n, D)."""
        noise = gaussian.noise((len(context), n, self.space.size), context, generator)
        return self._mean(context) + math.sqrt(self.variance) * noise

    def _mean(self, context: Tensor) -> Tensor:
        """The mean m for each context, (B, 1, D)."""
        return self.centre(self.network.steer(context)).expand(len(context), self.space.size)[:, None]

    def _signs(self, z: Tensor, generator: Generator | None) -> Tensor:
        """Directions of the trace (P, ..., D): the axes, or random signs (without a generator, the same each time)."""
        if self.space.size <= EXACT:
            axes = torch.eye(self.space.size, dtype=z.dtype, device=z.device)
            return axes.reshape(len(axes), *(1,) * (z.ndim - 1), -1).expand(-1, *z.shape)
        generator = generator or torch_generator(0, device=z.device)
        drawn = torch.randint(0, 2, (self.options.probes, *z.shape), generator=generator, device=z.device)
        return (2 * drawn - 1).to(z.dtype)

    def _carried(
        self, z: Tensor, context: Tensor, signs: Tensor, start: float, stop: float, tolerance: float
    ) -> tuple[Tensor, Tensor]:
        """The solution y at `stop`, (..., D), and the integral of the trace by each probe, (..., P)."""
        size = self.space.size
        steering = self.network.steer(context).detach()
        each = max(1, z.shape[:-1].numel() // max(1, len(context)))  # rows of one context
        directions = signs.flatten(1, -2)
        exact = size <= EXACT

        def slope(y: Tensor, s: Tensor, rows: Tensor) -> Tensor:
            along = directions[:, rows]
            with torch.enable_grad():
                v = y[:, :size].detach().requires_grad_()
                field = self.field(v, s, steering[rows // each])
                pulled = [torch.autograd.grad(field, v, e, retain_graph=True)[0] for e in along]
            traces = (torch.stack(pulled) * along).sum(-1)
            return torch.cat([field.detach(), traces.sum(0)[:, None] if exact else traces.T], dim=-1)

        flat = z.flatten(0, -2)
        state = torch.cat([flat, flat.new_zeros(len(flat), 1 if exact else len(directions))], dim=-1)
        end = solvers.adaptive(slope, state, start, stop, tolerance=tolerance, scale=self._unit).unflatten(
            0, z.shape[:-1]
        )
        return end[..., :size], end[..., size:]

    def _unit(self, y: Tensor, s: Tensor) -> Tensor:
        """The size of an error of one in y (r, D) and in the integrals behind it."""
        noise = (FINEST + self.spread(s))[:, None].expand(-1, self.space.size)
        return torch.cat([noise, torch.ones_like(y[:, self.space.size :])], dim=-1)
