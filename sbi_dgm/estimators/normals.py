r"""Normals whose mean and spread a network says: the conditional densities that a VAE is made of.

All stand about a straight line from what they are given: y = a x + sqrt(1 - a^2) u, coordinate by coordinate as far as
x and y both have one, and y = u beyond. Networks say the density of u, and start at or near N(0, I). So where x is
N(0, I), y is N(0, I) too, and the line from y back to x, of the same a, is the exact posterior of x. The line passes
the network by, a skip connection (Dieng et al. 2018, arXiv:1807.04863): x tells of y from the first step on.
"""

import math

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from sbi_dgm import gaussian
from sbi_dgm.networks import ResidualMLP

LOG_TWO_PI = math.log(2 * math.pi)


def divergence(q: tuple[Tensor, Tensor], p: tuple[Tensor, Tensor]) -> Tensor:
    """KL(q, p) of normals, each a mean and an sd, coordinate by coordinate.

    >>> divergence((torch.tensor(1.0), torch.tensor(1.0)), (torch.tensor(0.0), torch.tensor(1.0)))
    tensor(0.5000)
    """
    (mean, sd), (other_mean, other_sd) = q, p
    ratio = sd / other_sd
    return 0.5 * (ratio.square() + ((mean - other_mean) / other_sd).square() - 1) - ratio.log()


class Line(nn.Module):
    """What a line of slope `skip` says: x (..., inputs) -> its place a x (..., outputs), and sqrt(1 - a^2) (outputs,).

    >>> place, spread = Line(1, 2, 0.6)(torch.tensor([[5.0]]))
    >>> place.tolist(), spread.tolist()
    ([[3.0, 0.0]], [0.800000011920929, 1.0])

    """

    slope: Tensor

    def __init__(self, inputs: int, outputs: int, skip: float) -> None:
        super().__init__()
        slope = skip * (torch.arange(outputs) < inputs).double()
        self.register_buffer("slope", slope.to(torch.get_default_dtype()), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        size = len(self.slope)
        kept = functional.pad(x[..., :size], (0, max(0, size - x.shape[-1])))
        return self.slope * kept, (1 - self.slope.square()).sqrt()


class Normal(nn.Module):
    """N(mean, diag sd^2): x (..., inputs) and context (..., C) -> mean and sd, (..., outputs).

    Args:
        inputs: size of x; 0 is allowed.
        context: C.
        outputs: size of y.
        skip: slope of the line.
        sd: fixed; None lets the network say it.
        shape: keywords of the network.

    """

    def __init__(
        self, inputs: int, context: int, outputs: int, skip: float, *, sd: float | None = None, **shape: float
    ) -> None:
        super().__init__()
        self.sd, self.line = sd, Line(inputs, outputs, skip)
        said = outputs if sd is not None else 2 * outputs
        self.network = ResidualMLP(inputs + context, said, zero=True, **shape)  # type: ignore[arg-type]

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        place, spread = self.line(x)
        said = self.network(torch.cat([x, context], -1))
        mean = place + spread * said[..., : len(spread)]
        if self.sd is not None:
            return mean, torch.full_like(mean, self.sd)
        return mean, spread * gaussian.bounded(said[..., len(spread) :]).exp()

    def log_prob(self, y: Tensor, x: Tensor, context: Tensor) -> Tensor:
        """ln p of each coordinate: y (..., outputs) -> the same shape."""
        mean, sd = self(x, context)
        return -0.5 * (((y - mean) / sd).square() + LOG_TWO_PI) - sd.log()

    def sample(self, x: Tensor, context: Tensor, generator: Generator | None = None) -> Tensor:
        """One draw for each x."""
        mean, sd = self(x, context)
        return mean + sd * gaussian.noise(mean.shape, mean, generator)


class Normals(nn.Module):
    """A mixture of normals of full covariance (Bishop 1994), about a line.

    The precision of each is R^T R with R lower triangular, so that ln p takes no solution of equations (Williams 1996).

    Args:
        inputs: size of x.
        context: C.
        outputs: D, size of y.
        skip: slope of the line.
        components: M.
        shape: keywords of the network.

    """

    def __init__(
        self, inputs: int, context: int, outputs: int, skip: float, *, components: int, **shape: float
    ) -> None:
        super().__init__()
        self.sizes = [1, outputs, outputs, outputs * (outputs - 1) // 2]
        self.line, self.components = Line(inputs, outputs, skip), components
        self.network = ResidualMLP(inputs + context, components * sum(self.sizes), **shape)  # type: ignore[arg-type]
        with torch.no_grad():
            for weight in self.network.last.parameters():
                weight *= 0.1  # near N(0, I); at zero, components would stay alike for ever

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of u: ln shares (..., M), means (..., M, D), R (..., M, D, D) and ln det R (..., M)."""
        said = self.network(torch.cat([x, context], -1)).unflatten(-1, (self.components, -1))
        share, mean, log_diagonal, below = said.split(self.sizes, -1)
        log_diagonal, size = gaussian.bounded(log_diagonal), self.sizes[1]
        root = torch.diag_embed(log_diagonal.exp())
        row, column = torch.tril_indices(size, size, offset=-1, device=x.device)
        root[..., row, column] = below / math.sqrt(size)  # random ones stay invertible in many dimensions
        return share.squeeze(-1).log_softmax(-1), mean, root, log_diagonal.sum(-1)

    def log_prob(self, y: Tensor, x: Tensor, context: Tensor) -> Tensor:
        """ln p: y (..., D) -> (...)."""
        place, spread = self.line(x)
        log_share, mean, root, log_det = self(x, context)
        u = ((y - place) / spread).unsqueeze(-2) - mean
        squares = (root @ u.unsqueeze(-1)).squeeze(-1).square().sum(-1)
        each = log_share + log_det - 0.5 * (squares + len(spread) * LOG_TWO_PI)
        return each.logsumexp(-1) - spread.log().sum()

    def sample(self, x: Tensor, context: Tensor, generator: Generator | None = None) -> Tensor:
        """One draw for each x."""
        place, spread = self.line(x)
        log_share, mean, root, _ = self(x, context)
        noise = gaussian.noise(place.shape, x, generator)
        even = torch.rand((*x.shape[:-1], 1), generator=generator, dtype=x.dtype, device=x.device)
        chosen = (log_share.exp().cumsum(-1) < even).sum(-1).clamp(max=self.components - 1)[..., None, None]
        mean, root = mean.take_along_dim(chosen, -2), root.take_along_dim(chosen.unsqueeze(-1), -3)
        turned = torch.linalg.solve_triangular(root.squeeze(-3), noise.unsqueeze(-1), upper=False)
        return place + spread * (mean.squeeze(-2) + turned.squeeze(-1))
