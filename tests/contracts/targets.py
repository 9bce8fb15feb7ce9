"""Conditional mixtures of normals, whose density, draws, denoiser and velocity are known: stand-ins for networks."""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sbi_dgm.estimators.base import Estimator, Family, Space
from sbi_dgm.estimators.continuous import Continuous
from sbi_dgm.estimators.diffusion import DiffusionEstimator
from sbi_dgm.schedules import Schedule
from sbi_dgm.seeds import lending


class Parts(NamedTuple):
    """Weights (..., K), means (..., K, D), axes (..., K, D, D) in columns, and variances along them (..., K, D)."""

    weight: Tensor
    mean: Tensor
    axes: Tensor
    variance: Tensor


class Noisy(NamedTuple):
    """Of y = alpha z + sigma epsilon: ln p(y | c), E[z | y, c] and E[epsilon | y, c]."""

    log_prob: Tensor
    clean: Tensor
    noise: Tensor


class Target:
    """p(z | c) = sum_k w_k N(z; m_k, R_k diag(v_k) R_k^T), each a function of c (..., 1)."""

    size = 2

    @abstractmethod
    def parts(self, c: Tensor) -> Parts: ...

    def noisy(self, y: Tensor, alpha: Tensor, sigma: Tensor, c: Tensor) -> Noisy:
        """Y (..., D), alpha and sigma (...), c (..., 1), each broadcast."""
        weight, mean, axes, variance = self.parts(c)
        alpha, sigma = alpha[..., None, None], sigma[..., None, None]
        total = alpha.square() * variance + sigma.square()
        away = torch.einsum("...i,...ij->...j", y[..., None, :] - alpha * mean, axes)
        unit = away / total
        part = weight.log() - 0.5 * (away * unit + torch.log(2 * math.pi * total)).sum(-1)
        share = part.softmax(-1)[..., None]
        clean = mean + torch.einsum("...ij,...j->...i", axes, alpha * variance * unit)
        noise = torch.einsum("...ij,...j->...i", axes, sigma * unit)
        return Noisy(part.logsumexp(-1), (share * clean).sum(-2), (share * noise).sum(-2))

    def log_prob(self, z: Tensor, c: Tensor) -> Tensor:
        one = z.new_ones(())
        return self.noisy(z, one, 0 * one, c if z.ndim == 2 else c[:, None]).log_prob

    def moments(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (B, D) and covariance (B, D, D) for c (B, 1)."""
        weight, mean, axes, variance = self.parts(c)
        average = torch.einsum("bk,bki->bi", weight, mean)
        away = mean - average[:, None]
        inner = torch.einsum("bkij,bkj,bklj->bkil", axes, variance, axes) + away[..., None] * away[..., None, :]
        return average, torch.einsum("bk,bkij->bij", weight, inner)

    def sample(self, n: int, c: Tensor, generator: torch.Generator) -> Tensor:
        """(B, 1) -> (B, n, D)."""
        weight, mean, axes, variance = self.parts(c)
        k = torch.multinomial(weight, n, replacement=True, generator=generator)
        normal = torch.randn((*k.shape, self.size), generator=generator, dtype=c.dtype)
        row = torch.arange(len(c))[:, None]
        return mean[row, k] + (axes[row, k] @ (variance[row, k].sqrt() * normal)[..., None])[..., 0]


def rotation(angle: Tensor) -> Tensor:
    return torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).unflatten(-1, (2, 2))


class Correlated(Target):
    """One normal, ten times longer than wide; it moves, turns and grows."""

    def parts(self, c: Tensor) -> Parts:
        mean = 0.15 * torch.stack([c, -c], -1)
        variance = torch.stack([(0.3 * c).exp(), 0.01 * (-0.3 * c).exp()], -1)
        return Parts(torch.ones_like(c), mean, rotation(0.6 + 0.5 * c), variance)


class Bimodal(Target):
    """Two normals whose weights and distance depend on c."""

    def parts(self, c: Tensor) -> Parts:
        weight = torch.cat([torch.sigmoid(0.7 * c), torch.sigmoid(-0.7 * c)], -1)
        side = torch.tensor([1.0, -1.0]).to(c) * (1 + 0.2 * torch.tanh(c))
        mean = torch.stack([side, 0.5 * side], -1) - 0.6 * torch.tanh(0.35 * c)[..., None]
        return Parts(weight, mean, rotation(0.4 * side), torch.tensor([0.1, 0.03]).to(c).expand_as(mean))


class Arc(Target):
    """Twelve normals along an arc that turns and widens with c: a banana."""

    def parts(self, c: Tensor) -> Parts:
        place = torch.linspace(-1.4, 1.4, 12).to(c) + 0.5 * c
        radius = 1.2 * (0.15 * c).exp()
        mean = radius[..., None] * (torch.stack([place.cos(), place.sin()], -1))
        mean = mean - mean.mean(-2, keepdim=True)
        variance = torch.stack([0.01 * torch.ones_like(place), 0.04 * (0.2 * c).exp().expand_as(place)], -1)
        return Parts(torch.ones_like(place) / 12, mean, rotation(place), variance)


class Wide(Target):
    """A normal in 30 dimensions, of variances from 0.02 to 2 along directions that are not the axes."""

    size = 30

    def __init__(self) -> None:
        draw = torch.randn(30, 31, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        self.shift, self.axes = 0.2 * draw[:, 0], torch.linalg.qr(draw[:, 1:])[0]
        self.variance = torch.logspace(math.log10(0.02), math.log10(2), 30)

    def parts(self, c: Tensor) -> Parts:
        mean = (self.shift.to(c) * c)[..., None, :]
        variance = self.variance.to(c) * (0.2 * c).exp()[..., None]
        return Parts(torch.ones_like(c), mean, self.axes.to(c).expand(*c.shape[:-1], 1, 30, 30), variance)


TARGETS = {"correlated": Correlated(), "bimodal": Bimodal(), "arc": Arc()}


def rates(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """(d alpha / dt, d sigma / dt) by automatic differentiation."""
    return _rate(schedule.alpha, t), _rate(schedule.sigma, t)


def _rate(f: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    with torch.enable_grad():
        t = t.detach().requires_grad_()
        value = f(t)
        return torch.autograd.grad(value.sum(), t)[0] if value.requires_grad else torch.zeros_like(t)


class Prediction(nn.Module):
    """What a perfect network of a diffusion model says, by the definitions of the papers.

    It undoes the units of its input. Noise: Ho et al. 2020; score: Song et al. 2021; velocity: Salimans and Ho 2022;
    EDM: F = (x - c_skip y) / c_out of Karras et al. 2022, table 1, for data of variance one.
    """

    def __init__(self, target: Target, estimator: DiffusionEstimator) -> None:
        super().__init__()
        self.target, self.schedule = target, estimator.schedule
        self.ends, self.kind = (estimator.data, estimator.noise), estimator.options.parametrisation

    def steer(self, context: Tensor) -> Tensor:
        return context

    def forward(self, unit: Tensor, place: Tensor, c: Tensor) -> Tensor:
        nu = torch.exp(self.ends[0] + place * (self.ends[1] - self.ends[0]))
        t = self.schedule.time(nu)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        y = unit * (1 + nu.square()).sqrt()[..., None]
        _, x, epsilon = self.target.noisy(alpha[..., None] * y, alpha, sigma, c)
        alpha, sigma, nu = alpha[..., None], sigma[..., None], nu[..., None]
        if self.kind == "velocity":
            slopes = rates(self.schedule, t)
            return slopes[0][..., None] * x + slopes[1][..., None] * epsilon
        if self.kind == "score":
            return -(alpha.square() + sigma.square()).sqrt() * epsilon / sigma
        if self.kind == "edm":
            return (x - y / (1 + nu.square())) * (1 + nu.square()).sqrt() / nu
        return x if self.kind == "data" else epsilon


class Identity(nn.Module):
    """Steers by the context itself."""

    def steer(self, context: Tensor) -> Tensor:
        return context


def exact(options: Family, target: Target, dtype: torch.dtype = torch.float64) -> Continuous:
    """The family's estimator with the closed form of `target` in place of its network.

    Flow matching's network is not told its time near the ends, so that `field` itself is replaced.
    """
    with lending(0):
        estimator = options.build(Space((target.size,)), 1).to(dtype).eval()
    if isinstance(estimator, DiffusionEstimator):
        estimator.network = Prediction(target, estimator)  # type: ignore[assignment]
        return estimator
    path: Schedule = estimator.path  # type: ignore[assignment]

    def velocity(y: Tensor, s: Tensor, c: Tensor) -> Tensor:
        alpha, sigma = path.alpha(s), path.sigma(s)
        _, x, epsilon = target.noisy(y, alpha, sigma, c)
        slopes = rates(path, s)
        return slopes[0][..., None] * x + slopes[1][..., None] * epsilon

    estimator.network, estimator.field = Identity(), velocity  # type: ignore[assignment]
    return estimator  # type: ignore[return-value]


def numerical_truth(estimator: Estimator, target: Target, z: Tensor, c: Tensor) -> Tensor:
    """What `log_prob` of the exact estimator of one normal would be, were the equation solved without error.

    Along each axis the equation stretches by the ratio of the standard deviations at its ends.
    """
    _, mean, axes, variance = (part[..., 0, :] if part.ndim < 4 else part[..., 0, :, :] for part in target.parts(c))
    away = ((z - mean)[..., None, :] @ axes)[..., 0, :]
    if not isinstance(estimator, DiffusionEstimator):
        return target.log_prob(z, c)
    low, high = math.exp(estimator.data), math.exp(estimator.noise)
    stretch = (variance + high**2) / (variance + low**2)
    end = mean + (axes @ (stretch.sqrt() * away)[..., None])[..., 0]
    base = -0.5 * ((end - estimator.centre(c)).square() / estimator.variance).sum(-1)
    return base - 0.5 * z.shape[-1] * math.log(2 * math.pi * estimator.variance) + 0.5 * stretch.log().sum(-1)
