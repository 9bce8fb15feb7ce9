r"""Summaries by attention, of series and of sets.

Tokens in R^H pass blocks of attention A and a network F of one hidden layer, before each of which they are normalised,
n(.) (Vaswani et al. 2017, arXiv:1706.03762; Xiong et al. 2020, arXiv:2002.04745). With queries q and keys k, rows a
token,

.. math::
    A(q, k) = \mathrm{softmax}\big(q W_q (k W_k)^T / \sqrt{H / G}\big) k W_v, \qquad
    q' = q + A(n(q), n(k)), \quad q'' = q' + F(n(q')) ,

for each of G heads with H / G columns of its own, which one matrix joins.

Of a *series* each patch of some places is a token, to which a learned vector for its position is added. Of a *set*
each of M members is one (Lee et al. 2019, arXiv:1810.00825): through I learned inducing points, members see each other
at a cost of M I instead of M^2, and a learned seed sees all of them. Empty places are masked; one learned token is
always there, so that an empty set means something too.
"""

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sbi_dgm.embeddings.base import Learned
from sbi_dgm.embeddings.convolutions import Arranged, arranged, channels_first
from sbi_dgm.embeddings.sets import Count, Waves, require_set
from sbi_dgm.networks import ResidualMLP
from sbi_dgm.parameters import Observable

TOKENS = 64  # of a series, at most


class Attentive(Learned):
    """The options of a summary by attention.

    Attributes:
        hidden: H, the length of tokens.
        heads: of attention; they share H.
        blocks: of attention.

    """

    hidden: int = Field(default=64, ge=1)
    heads: int = Field(default=4, ge=1)
    blocks: int = Field(default=2, ge=1)

    @model_validator(mode="after")
    def _shared(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError(f"hidden = {self.hidden} must be a multiple of heads = {self.heads}")
        return self


class Transformer(Attentive):
    """A summary of a series (L,), or of several channels (K, L) or (L, K), by attention between its patches."""

    def network(self, name: str, observable: Observable, dimension: int) -> nn.Module:
        axes = channels_first(name, observable, 1)
        channels, length = arranged(observable.shape, axes)
        return nn.Sequential(Arranged(axes), _Transformer(channels, length, self.length(dimension), self))


class SetTransformer(Attentive):
    """A summary of a set of members (M, F), the last of whose numbers says which are there.

    Attributes:
        inducing: I, points through which members see each other.
        frequencies: of the sines and cosines of each number, as of deep sets.

    """

    inducing: int = Field(default=16, ge=1)
    frequencies: int = Field(default=16, ge=0)

    def network(self, name: str, observable: Observable, dimension: int) -> nn.Module:
        return _SetTransformer(require_set(name, observable), self.length(dimension), self)


class _Transformer(nn.Module):
    def __init__(self, channels: int, length: int, features: int, how: Transformer) -> None:
        super().__init__()
        hidden, patch = how.hidden, -(-length // TOKENS)
        self.missing = -length % patch
        self.first = nn.Conv1d(channels, hidden, patch, patch)
        self.place = nn.Parameter(0.1 * torch.randn((length + self.missing) // patch, hidden))
        self.blocks = nn.ModuleList(Block(hidden, how.heads) for _ in range(how.blocks))
        self.last = ResidualMLP(hidden, features, hidden=hidden, blocks=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(nn.functional.pad(x, (0, self.missing))).transpose(1, 2) + self.place
        for block in self.blocks:
            h = block(h, h)
        return self.last(h.mean(1))


class _SetTransformer(nn.Module):
    def __init__(self, numbers: int, features: int, how: SetTransformer) -> None:
        super().__init__()
        hidden = how.hidden
        self.waves, self.count = Waves(how.frequencies), Count()
        self.first = ResidualMLP(self.waves.outputs(numbers), hidden, hidden=hidden, blocks=1)
        self.always, self.seed = _tokens(1, hidden), _tokens(1, hidden)
        self.points = nn.ParameterList(_tokens(how.inducing, hidden) for _ in range(how.blocks))
        self.inward, self.outward = (
            nn.ModuleList(Block(hidden, how.heads) for _ in range(how.blocks)) for _ in range(2)
        )
        self.pool = Block(hidden, how.heads)
        self.last = ResidualMLP(1 + hidden, features, hidden=hidden, blocks=1)

    def forward(self, x: Tensor) -> Tensor:
        there = x[..., -1] > 0
        most = int(there.sum(1).max()) if len(x) else 0
        members, there = _packed(x[..., :-1], there, most)
        h = torch.cat([self.always.expand(len(x), -1, -1), self.first(self.waves(members))], dim=1)
        seen = torch.cat([there.new_ones(len(x), 1), there], dim=1)
        for points, inward, outward in zip(self.points, self.inward, self.outward, strict=True):
            h = outward(h, inward(points.expand(len(x), -1, -1), h, seen))
        pooled = self.pool(self.seed.expand(len(x), -1, -1), h, seen)[:, 0]
        return self.last(torch.cat([self.count(there.sum(1)), pooled], dim=1))


def _tokens(number: int, hidden: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(number, hidden))


def _packed(members: Tensor, there: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Members that are there first, in their order, `most` of them: (B, M, F), (B, M) -> the same, shorter."""
    order = there.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
    return members.take_along_dim(order[..., None], dim=1), there.take_along_dim(order, dim=1)


class Block(nn.Module):
    """Attention of tokens q (B, n, H) to tokens k (B, m, H), of which those `seen` (B, m), then a network."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.asking, self.asked, self.between = (nn.LayerNorm(hidden) for _ in range(3))
        self.attention = nn.MultiheadAttention(hidden, heads, batch_first=True)
        self.network = nn.Sequential(nn.Linear(hidden, 2 * hidden), nn.SiLU(), nn.Linear(2 * hidden, hidden))

    def forward(self, q: Tensor, k: Tensor, seen: Tensor | None = None) -> Tensor:
        keys, hidden = self.asked(k), None if seen is None else ~seen
        q = q + self.attention(self.asking(q), keys, keys, key_padding_mask=hidden, need_weights=False)[0]
        return q + self.network(self.between(q))
