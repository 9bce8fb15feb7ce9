"""Deliberately wrong twins: each does as the estimator that it wraps does, but for one thing."""

import copy
from collections.abc import Callable
from unittest import mock

import laws
import pytest
import torch
from torch import Tensor, nn

from sbi_dgm.estimators.base import Estimator
from sbi_dgm.estimators.continuous import Continuous
from sbi_dgm.estimators.flow import FlowEstimator
from sbi_dgm.estimators.vae import VAEEstimator


def accuses(law: Callable, *arguments) -> None:
    with pytest.raises(AssertionError):
        law(*arguments)


class Twin(Estimator):
    """The same as `right`; subclasses spoil the context, the draws, or what is said of them."""

    def __init__(self, right: Estimator) -> None:
        super().__init__()
        self.right, self.space, self.density = right, right.space, right.density

    def heard(self, context: Tensor) -> Tensor:
        return context

    def drawn(self, z: Tensor, context: Tensor) -> Tensor:
        return z

    def said(self, log_prob: Tensor) -> Tensor:
        return log_prob

    def forward(self, z, context, *, progress=1.0, generator=None):
        return self.right(z, self.heard(context), progress=progress, generator=generator)

    def log_prob(self, z, context, generator=None):
        return self.said(self.right.log_prob(z, self.heard(context), generator))

    def log_prob_and_error(self, z, context, generator=None):
        log_prob, error = self.right.log_prob_and_error(z, self.heard(context), generator)
        return self.said(log_prob), error

    def sample(self, n, context, generator=None):
        return self.drawn(self.right.sample(n, self.heard(context), generator), context)

    def sample_and_log_prob(self, n, context, generator=None):
        z, log_prob = self.right.sample_and_log_prob(n, self.heard(context), generator)
        moved = self.drawn(z, context)
        return (z, self.said(log_prob)) if moved is z else (moved, self.log_prob(moved, context))


class Inflated(Twin):
    """Ln q is 0.05 too high."""

    def said(self, log_prob):
        return log_prob + 0.05


class Narrow(Twin):
    """Draws are 5 % too close to their mean; their ln q is honest."""

    def __init__(self, right: Estimator, share: float = 0.95) -> None:
        super().__init__(right)
        self.share = share

    def drawn(self, z, context):
        return z.mean(1, keepdim=True) + self.share * (z - z.mean(1, keepdim=True))


class Deaf(Twin):
    """The context is not looked at."""

    def heard(self, context):
        return 0 * context


class HalfDeaf(Twin):
    """The first coordinate is drawn without a look at the context."""

    def drawn(self, z, context):
        deaf = self.right.sample(z.shape[1], 0 * context, laws.generator(99))
        return torch.cat([deaf[..., :1], z[..., 1:]], -1)


class Leaky(Twin):
    """The context passes a batch normalisation."""

    def __init__(self, right: Estimator) -> None:
        super().__init__(right)
        self.normalisation = nn.BatchNorm1d(3).double()

    def forward(self, z, context, *, progress=1.0, generator=None):
        return super().forward(z, self.normalisation(context), progress=progress, generator=generator)


class Swapped(Twin):
    """Draws, and ln q of stacks, go to the wrong rows."""

    def sample_and_log_prob(self, n, context, generator=None):
        z, log_prob = super().sample_and_log_prob(n, context, generator)
        return z.roll(1, dims=0), log_prob.roll(1, dims=0)

    def log_prob(self, z, context, generator=None):
        rows = context if z.ndim == 2 else context.repeat(z.shape[1], 1).unflatten(0, z.shape[:2])
        return super().log_prob(z.flatten(0, -2), rows.flatten(0, -2), generator).unflatten(0, z.shape[:-1])


class Misplaced(Twin):
    """Draws go to the wrong rows of the stack; ln q is right."""

    def drawn(self, z, context):
        return z.roll(1, dims=0)


class Positional(Twin):
    """The loss weighs a row by its place in the batch."""

    def forward(self, z, context, *, progress=1.0, generator=None):
        loss = super().forward(z, context, progress=progress, generator=generator)
        return loss * torch.linspace(1, 1.5, len(z))


class Averaged(Twin):
    """The loss of each row is that of the batch."""

    def forward(self, z, context, *, progress=1.0, generator=None):
        loss = super().forward(z, context, progress=progress, generator=generator)
        return loss.mean().expand(len(z))


class Lazy(Twin):
    """A weight that the loss never meets."""

    def __init__(self, right: Estimator) -> None:
        super().__init__(right)
        self.idle = nn.Linear(3, 3).double()


class Unseeded(Twin):
    """Noise comes from the global generator."""

    def sample(self, n, context, generator=None):
        return super().sample(n, context, None)


class Forgetful(Twin):
    """A shift that no state_dict holds."""

    def __init__(self, right: Estimator, shift: float) -> None:
        super().__init__(right)
        self.shift = shift

    def log_prob(self, z, context, generator=None):
        return super().log_prob(z + self.shift, context, generator)


class Half(Twin):
    """Works with eight bits, unless in float64."""

    def log_prob(self, z, context, generator=None):
        if z.dtype == torch.float32:
            z = z.bfloat16().float()
        return super().log_prob(z, context, generator)


class Crooked(Twin):
    """Ln q is right, and its gradient another function's."""

    def log_prob(self, z, context, generator=None):
        return super().log_prob(z.detach(), context, generator) - 0.5 * (z.square() - z.detach().square()).sum(-1)


class Silent(Twin):
    """Numbers that are not finite stop no solver."""

    def log_prob(self, z, context, generator=None):
        with mock.patch("sbi_dgm.solvers.finite", lambda y, *_: y.nan_to_num()):
            return super().log_prob(z, context, generator)

    def sample(self, n, context, generator=None):
        with mock.patch("sbi_dgm.solvers.finite", lambda y, *_: y):
            return super().sample(n, context, generator)


class SevenTimes(Twin):
    """The noise of the loss is seven times what the network is told."""

    def forward(self, z, context, *, progress=1.0, generator=None):
        normal = torch.randn
        with mock.patch.object(torch, "randn", lambda *shape, **options: 7 * normal(*shape, **options)):
            return super().forward(z, context, progress=progress, generator=generator)


class _Negated(nn.Module):
    """A network that says the opposite, steered as before."""

    def __init__(self, network) -> None:
        super().__init__()
        self.network, self.steer = network, network.steer

    def forward(self, *inputs):
        return -self.network(*inputs)


class Flipped(Twin):
    """The sign of the loss's target is the wrong one."""

    def forward(self, z, context, *, progress=1.0, generator=None):
        right = self.right
        name = "field" if "field" in vars(right) else "network"  # of stand-ins
        kept = getattr(right, name)
        opposite = _Negated(kept) if name == "network" else (lambda *inputs: -kept(*inputs))
        setattr(right, name, opposite)
        try:
            return super().forward(z, context, progress=progress, generator=generator)
        finally:
            setattr(right, name, kept)


class _Scaled(nn.Module):
    """A transform that is said to stretch volumes by 1 % more than it does."""

    def __init__(self, transform) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, z, context):
        u, log_det = self.transform(z, context)
        return u, log_det + 0.01

    def inverse(self, u, context):
        z, log_det = self.transform.inverse(u, context)
        return z, log_det - 0.01


def volume_off(estimator: Estimator, factor: float = 1.1) -> Estimator:
    """What the map does to volumes is too large in ln q: by 1 % for a flow, 10 % of an equation's trace or for a VAE.

    The trace of wild networks is small, and bounds scatter.
    """
    twin = copy.deepcopy(estimator)
    for module in list(twin.modules()):
        if isinstance(module, FlowEstimator):
            module.transform = _Scaled(module.transform)  # type: ignore[assignment]
        if isinstance(module, Continuous):
            module._carried = _carried_with(module._carried, factor)  # type: ignore[method-assign]
        if isinstance(module, VAEEstimator):
            module._terms = _likelier(module._terms)  # type: ignore[method-assign]
    return twin


def _carried_with(carried: Callable, factor: float) -> Callable:
    def spoiled(*arguments):
        y, traces = carried(*arguments)
        return y, factor * traces

    return spoiled


def _likelier(terms: Callable) -> Callable:
    def spoiled(*arguments):
        log_likelihood, kl = terms(*arguments)
        return log_likelihood + 0.1, kl

    return spoiled


def divergence_flipped(estimator: Estimator) -> Estimator:
    return volume_off(estimator, -1.0)
