r"""A summary trained to tell which theta made x, by a bound on mutual information that needs no density of theta.

Of K rows that stand in a block each context c_i has to find its own z_i among the others, by a critic f:

.. math::
    I(z; c) \ge \ln K - L, \qquad
    L = -\frac1K \sum_i \ln \frac{e^{f(z_i, c_i)}}{\sum_j e^{f(z_j, c_i)}}

in the mean over blocks (InfoNCE: van den Oord, Li and Vinyals 2018, arXiv:1807.03748; that it is a bound for every f:
Poole et al. 2019, arXiv:1905.06922, section 2.3), with equality for K to infinity and f = ln p(z | c) / p(z) plus any
function of c. Since I(z; c) <= I(z; x), and equal where c is sufficient for theta, the summary that has most is as good
as x. The Jensen-Shannon bound of Chen et al. 2021 (arXiv:2010.10079) has the same best summary, but compares a row with
one other; here each has K - 1, the variance is small, and the loss is minus the information in nats.

It never exceeds ln K: what tells apart thetas that are nearer to each other than those of a block is learned by chance
only. `monitor` says how far from it a run has come, `concern` where it reached it.

The critic is a product, f = g(z) . h(c) / sqrt(W), of two networks with W outputs, so that K^2 pairs cost K networks. A
normal p(z | c) has such an f where p(z) is normal too. There is neither a density nor a draw: the summary is for
another family.
"""

import math
from collections.abc import Mapping
from typing import NoReturn

import torch
from pydantic import Field
from torch import Generator, Tensor

from sbi_dgm.errors import OptionError
from sbi_dgm.estimators.base import Estimator, Family, Space
from sbi_dgm.networks import ResidualMLP

FULL = 0.95  # of ln K, beyond which more would not be seen


class Contrastive(Family):
    """The options of a summary's training.

    Attributes:
        block: K, rows that are compared with each other; a batch or a piece with more is parted evenly.
        width: W, the length of the product.
        hidden: width of both networks.
        blocks: residual blocks of each.
        dropout: fraction of their hidden units that a training step leaves out.

    """

    block: int = Field(default=512, ge=2)
    width: int = Field(default=32, ge=1)
    hidden: int = Field(default=64, ge=1)
    blocks: int = Field(default=2, ge=0)
    dropout: float = Field(default=0.1, ge=0, lt=1)

    def build(self, space: Space, context_dim: int) -> "ContrastiveEstimator":
        return ContrastiveEstimator(space, context_dim, self)


class ContrastiveEstimator(Estimator):
    """The critic, and its loss."""

    density = "none"

    def __init__(self, space: Space, context_dim: int, how: Contrastive) -> None:
        super().__init__()
        self.space, self.block, self.unit = space, how.block, math.sqrt(how.width)
        shape = {"hidden": how.hidden, "blocks": how.blocks, "dropout": how.dropout}
        self.of_z = ResidualMLP(space.size, how.width, **shape)
        self.of_context = ResidualMLP(context_dim, how.width, **shape)

    def forward(
        self, z: Tensor, context: Tensor, *, progress: float = 1.0, generator: Generator | None = None
    ) -> Tensor:
        g, h = self.of_z(z) / self.unit, self.of_context(context)
        count = max(1, -(-len(z) // self.block))
        return torch.cat([_lost(a, b) for a, b in zip(g.tensor_split(count), h.tensor_split(count), strict=True)])

    def log_prob(self, z: Tensor, context: Tensor, generator: Generator | None = None) -> NoReturn:
        raise OptionError(f"a density: {NONE}")

    def sample_and_log_prob(self, n: int, context: Tensor, generator: Generator | None = None) -> NoReturn:
        raise OptionError(f"draws: {NONE}")

    def monitor(self, z: Tensor, context: Tensor) -> dict[str, float]:
        """The information in nats, and what so many rows can show at most."""
        size = len(z) / max(1, -(-len(z) // self.block))
        return {"information": -float(self(z, context).mean()), "information_at_most": math.log(size)}

    def concern(self, figures: Mapping[str, float]) -> str:
        found, most = figures["information"], figures["information_at_most"]
        if found < FULL * most:
            return ""
        return (
            f"the summary tells {found:.2f} nats of theta, of the {most:.2f} that blocks of {math.exp(most):.0f} rows "
            "can show: finer things are learned by chance. Raise block and training.batch_size, or let the family that "
            "uses the summary train it further (frozen=False)."
        )


NONE = (
    "a contrastive run has learned a summary of x and nothing else. sbi_dgm.pretrained(...) makes an embedding of it, "
    "for fit(data, 'flow', embedding=...) or another family."
)


def _lost(g: Tensor, h: Tensor) -> Tensor:
    """ln (sum_j e^{f_ij} / K) - f_ii for the rows of one block, (K, W) each -> (K,)."""
    f = h @ g.T
    return f.logsumexp(1) - math.log(len(f)) - f.diagonal()
