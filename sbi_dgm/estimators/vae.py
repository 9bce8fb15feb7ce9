r"""Conditional variational autoencoders: the density of z as a mixture over latents w.

.. math::  p(z | c) = \int p(z | w, c) \, p(w | c) \, dw ,

with a decoder p(z | w, c), a mixture of normals of full covariance, and a prior p(w | c), a learned normal or any
family with an exact density, such as a flow (Chen et al. 2016, arXiv:1611.02731). An encoder q(w | z, c), a normal,
says where to look for the w of a z. With draws w_k of it, written w = mu(z, c) + s(z, c) epsilon so that gradients
pass (Kingma and Welling 2013, arXiv:1312.6114; given a context: Sohn, Lee and Yan 2015),

.. math::
    \ln \hat p_K(z) = \ln \frac1K \sum_{k=1}^K v_k , \qquad v_k = \frac{p(z | w_k, c) \, p(w_k | c)}{q(w_k | z, c)}

has :math:`E[\hat p_K] = p(z | c)`, so that :math:`E \ln \hat p_K \le \ln p(z | c)` by Jensen's inequality: a bound,
which rises with K to the truth (Burda, Grosse and Salakhutdinov 2015, arXiv:1509.00519, theorem 1) and for K = 1 is
the ELBO, E ln p(z | w, c) - KL(q(w | z, c), p(w | c)). The loss is its negative, with K = `samples`; `log_prob` is
the bound with K = `importance`.

**Draws know their latents.** A draw z of the model comes with its own w_1, a draw of p(w | z, c). With w_2 ... w_K
from the encoder, and w_1 in a random place among them, the density of all latents given z is

.. math::
    \frac1K \sum_j p(w_j | z, c) \prod_{k \ne j} q(w_k | z, c)
    = \frac{\hat p_K(z)}{p(z | c)} \prod_k q(w_k | z, c) , \qquad \text{so} \quad
    E\left[\frac{1}{\hat p_K(z)} \,\middle|\, z\right] = \frac{1}{p(z | c)} .

That is what `sample_and_log_prob` gives, ln p_K with w_1 among the latents: weights f(z) / p_K(z) of draws have the
mean int f dz without any bias, for every K, because they are weights of the extended space (z, w_1, ..., w_K)
(Andrieu and Roberts 2009; Domke and Sheldon 2018, arXiv:1808.09034). On average it lies above ln p (Grosse,
Ghahramani and Adams 2015, arXiv:1511.02543), and the distance from `log_prob` at the same draws says how well either
is known.

**Levels.** Of L levels each is the latent of the one below: p(w_1 | w_2, c) ... p(w_L | c), and encoders upwards,
q(w_1 | z, c) q(w_2 | w_1, c) ... All of the above holds for w = (w_1, ..., w_L).

**Collapse.** A decoder that explains z without w leaves q(w | z, c) = p(w | c), which costs nothing: latents that
carry no information. `monitor` measures it, the KL of each latent, and `concern` says so. Against it: `skip`, a line
from w to z (`sbi_dgm.estimators.normals`); `free_bits`, nats below which the KL of a latent costs nothing (Kingma et
al. 2016, arXiv:1606.04934; here for each row); `anneal`, a KL that counts more and more (Bowman et al. 2015,
arXiv:1511.06349); fewer `components`. Encoders start on a line of slope 0.3 or more whatever `skip` is, so that it is
knowledge of z that free bits protect: a KL may as well be a shift that says nothing. `beta` weighs the KL (Higgins et
al. 2017): where it is not 1, the loss is not the bound, and `log_prob` still is.

An untrained VAE is close to N(0, I).
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from sbi_dgm import gaussian
from sbi_dgm.errors import OptionError
from sbi_dgm.estimators.base import Estimator, Family, Space
from sbi_dgm.estimators.normals import Normal, Normals, divergence
from sbi_dgm.seeds import torch_generator

PIECE = 2**21  # numbers that pass together
ACTIVE = 0.01  # nats of KL from which on a latent tells something of z
START = 0.3  # slope of the encoders' line at least
ROWS, ABOVE = 512, 256  # behind `monitor`: rows at most, and draws of the level above


class VAE(Family):
    """Options of a conditional variational autoencoder.

    Attributes:
        latent: W, numbers in w (of each level); None is D.
        levels: L, of a hierarchical VAE.
        prior: a family with an exact density, for the prior of the top level; None is a learned normal.
        components: normals in the decoder's mixture.
        skip: slope of the straight lines from w to z and back, that pass the networks by; 0 is none.
        samples: draws of the encoder in the loss; 1 is the ELBO.
        beta: weight of the KL in the loss.
        anneal: let that weight rise from zero as training goes.
        free_bits: nats of KL that are free, for each latent (given those of the level above).
        encoder_sd: of the encoder, where fixed; None lets it be learned.
        importance: K, draws of the encoder behind a density.
        hidden: width of the networks.
        blocks: their number of residual blocks.
        dropout: fraction of their hidden units that a training step leaves out.

    Example:
        >>> vae = VAE(latent=2).build(Space((3,)), context_dim=4)
        >>> log_prob, error = vae.log_prob_and_error(torch.zeros(5, 3), torch.zeros(5, 4))
        >>> log_prob.shape, bool((error < 0.3).all())
        (torch.Size([5]), True)

    """

    USE = frozenset({"importance"})

    latent: int | None = Field(default=None, ge=1)
    levels: int = Field(default=1, ge=1)
    prior: Family | None = None
    components: int = Field(default=4, ge=1)
    skip: float = Field(default=0.9, ge=0, lt=1)
    samples: int = Field(default=4, ge=1)
    beta: float = Field(default=1.0, gt=0)
    anneal: bool = False
    free_bits: float = Field(default=0.0, ge=0)
    encoder_sd: float | None = Field(default=None, gt=0)
    importance: int = Field(default=64, ge=2)
    hidden: int = Field(default=64, ge=1)
    blocks: int = Field(default=2, ge=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @property
    def shape(self) -> dict[str, Any]:
        """Keywords of the networks."""
        return {"hidden": self.hidden, "blocks": self.blocks, "dropout": self.dropout}

    def build(self, space: Space, context_dim: int) -> "VAEEstimator":
        return VAEEstimator(space, context_dim, self)


class VAEEstimator(Estimator):
    """Decoder, prior and encoders. Rows are N, draws of the encoder K, latents W numbers on each of L levels."""

    density = "bound"

    def __init__(self, space: Space, context_dim: int, options: VAE) -> None:
        super().__init__()
        self.space, self.options = space, options
        self.latent = size = options.latent or space.size
        below, skip, shape = [space.size] + [size] * (options.levels - 1), options.skip, options.shape
        self.encoders = nn.ModuleList(
            Normal(inputs, context_dim, size, max(skip, START), sd=options.encoder_sd, **shape) for inputs in below
        )
        self.decoder = Normals(size, context_dim, space.size, skip, components=options.components, **shape)
        self.links = nn.ModuleList(Normal(size, context_dim, size, skip, **shape) for _ in below[1:])
        self.prior = _prior(options, size, context_dim)

    def forward(
        self, z: Tensor, context: Tensor, *, progress: float = 1.0, generator: Generator | None = None
    ) -> Tensor:
        o = self.options
        noise = self._noise(len(z), o.samples, z, generator or torch_generator(0, device=z.device))
        latents = self._encoded(z, context, noise)
        log_likelihood, kl = self._terms(z, latents, context)
        weight = o.beta * (progress if o.anneal else 1.0)
        loss = -_log_mean(log_likelihood - weight * torch.cat(kl, -1).sum(-1))
        if o.free_bits:
            kl[-1] = self._divergence(z, latents, context)
            missing = [(o.free_bits * self.latent / part.shape[-1] - part.mean(1)).relu() for part in kl]
            loss = loss + weight * torch.cat(missing, -1).sum(-1)
        return loss

    def log_prob(self, z: Tensor, context: Tensor, generator: Generator | None = None) -> Tensor:
        """A bound below ln p(z | context) in the mean over its noise: (B, D) -> (B,), or (B, S, D) -> (B, S).

        Its exponential has the mean p. Without a generator the noise is the same for every z and at every call, so that
        the bound is a smooth function of z; with one, every z has its own.
        """
        return self.log_prob_and_error(z, context, generator)[0]

    def log_prob_and_error(
        self, z: Tensor, context: Tensor, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """The bound and its standard error, from the scatter of its K weights. Half its square is the bound's bias."""
        rows = context if z.ndim == 2 else context.repeat_interleave(z.shape[1], dim=0)
        log_prob, error = self._estimated(z.flatten(0, -2), rows, generator)
        return log_prob.unflatten(0, z.shape[:-1]), error.unflatten(0, z.shape[:-1])

    def sample(self, n: int, context: Tensor, generator: Generator | None = None) -> Tensor:
        return self._drawn(n, context, generator)[0].unflatten(0, (len(context), n))

    def sample_and_log_prob(self, n: int, context: Tensor, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draws (B, n, D), and (B, n) numbers l for which E[exp(-l) | z] = 1 / p(z | context): weights are unbiased."""
        z, latents = self._drawn(n, context, generator)
        noise = generator or torch_generator(1, device=context.device)
        log_prob, _ = self._estimated(z, context.repeat_interleave(n, dim=0), noise, latents)
        return z.unflatten(0, (len(context), n)), log_prob.unflatten(0, (len(context), n))

    def encode(self, z: Tensor, context: Tensor, generator: Generator | None = None) -> Tensor:
        """The latents of z: (B, D), (B, C) -> (B, L W), level by level; the encoder's means, or with a generator draws.

        >>> vae = VAE(levels=2, skip=0.6).build(Space((1,)), context_dim=1)
        >>> vae.encode(torch.ones(1, 1), torch.zeros(1, 1)).tolist()
        [[0.6000000238418579, 0.36000001430511475]]
        """
        wide = self.latent * self.options.levels
        noise = z.new_zeros(len(z), 1, wide) if generator is None else self._noise(len(z), 1, z, generator)
        return torch.cat(self._encoded(z, context, noise), -1).squeeze(1)

    def decode(self, w: Tensor, context: Tensor, generator: Generator | None = None) -> Tensor:
        """Draws of z given the latents of the lowest level, the first W of w: (B, ...), (B, C) -> (B, D)."""
        return self.decoder.sample(w[..., : self.latent], context, generator)

    @torch.no_grad()
    def monitor(self, z: Tensor, context: Tensor) -> dict[str, float]:
        """The KL of each latent, `kl_<level>_<number>` in nats, and how many are active, with more than 0.01.

        It is that of the encoder from p(w_i | c), of 512 rows at most; on lower levels, from the mean over 256 draws of
        the level above. Under a prior that is a family of its own, the top level has one KL, `kl_<level>`, and its
        latents are active together, with more than 0.01 each on average.
        """
        z, context, generator = z[:ROWS], context[:ROWS], torch_generator(2, device=z.device)
        latents = self._encoded(z, context, self._noise(len(z), 1, z, generator))
        kl = [*self._information(z, latents, context)[:-1], self._divergence(z, latents, context)]
        if self.options.levels > 1:
            drawn = [w.unflatten(0, (-1, ABOVE)) for w in self._drawn(ABOVE, context, generator)[1]]
            for level, link in enumerate(cast("list[Normal]", self.links)):
                log_prob = link.log_prob(latents[level], drawn[level + 1], _beside(drawn[0], context))
                kl[level] = kl[level] - (log_prob.logsumexp(1, keepdim=True) - math.log(ABOVE))
        means = [part.mean((0, 1)).tolist() for part in kl]
        figures = {
            name: mean for level in zip(self._names(), means, strict=True) for name, mean in zip(*level, strict=True)
        }
        return figures | {"active_units": float(sum(self._active(figures)))}

    def concern(self, figures: Mapping[str, float]) -> str:
        """Names the levels none of whose latents is active."""
        dead = [k for k, active in enumerate(self._active(figures), 1) if active == 0]
        if not dead:
            return ""
        where = f" of level {', '.join(map(str, dead))}" if self.options.levels > 1 else ""
        most = max(figures[name] for k in dead for name in self._names()[k - 1])
        return (
            f"posterior collapse: the decoder does without the {self.latent} latents{where} (KL at most {most:.2g} "
            f"nats, {ACTIVE:g} would be active): set free_bits (now {self.options.free_bits:g}; 0.1 is a start) or "
            f"skip (now {self.options.skip:g}), or use fewer components (now {self.options.components})."
        )

    def _names(self) -> list[list[str]]:
        """Of the KL's parts, level by level."""
        names = [[f"kl_{k}_{i}" for i in range(1, self.latent + 1)] for k in range(1, self.options.levels + 1)]
        return names if isinstance(self.prior, Normal) else [*names[:-1], [f"kl_{self.options.levels}"]]

    def _active(self, figures: Mapping[str, float]) -> list[int]:
        """Active latents of each level."""
        shares = [(names, self.latent // len(names)) for names in self._names()]
        return [share * sum(figures[name] > ACTIVE * share for name in names) for names, share in shares]

    def _noise(self, n: int, draws: int, like: Tensor, generator: Generator) -> Tensor:
        return gaussian.noise((n, draws, self.latent * self.options.levels), like, generator)

    def _encoded(self, z: Tensor, context: Tensor, noise: Tensor) -> list[Tensor]:
        """Latents (N, K, W) of each level: z (N, D), context (N, C), noise (N, K, L W)."""
        latents, below = [], z.unsqueeze(1)
        for encoder, epsilon in zip(cast("list[Normal]", self.encoders), noise.split(self.latent, -1), strict=True):
            mean, sd = encoder(below, _beside(below, context))
            below = mean + sd * epsilon
            latents.append(below)
        return latents

    def _terms(self, z: Tensor, latents: list[Tensor], context: Tensor) -> tuple[Tensor, list[Tensor]]:
        """ln p(z | w_1, c) (N, K), and ln q - ln p of each level's latents (N, K, W), or (N, K, 1) under a family."""
        beside, kl = _beside(latents[0], context), self._information(z, latents, context)
        for level, link in enumerate(cast("list[Normal]", self.links)):
            kl[level] = kl[level] - link.log_prob(latents[level], latents[level + 1], beside)
        return self.decoder.log_prob(z.unsqueeze(1), latents[0], beside), kl

    def _information(self, z: Tensor, latents: list[Tensor], context: Tensor) -> list[Tensor]:
        """ln q of each level's latents, and of the top level ln q - ln p: (N, K, W), or (N, K, 1) under a family."""
        below, kl = z.unsqueeze(1), []
        for encoder, w in zip(cast("list[Normal]", self.encoders), latents, strict=True):
            kl.append(encoder.log_prob(w, below, _beside(below, context)))
            below = w
        if isinstance(self.prior, Normal):
            kl[-1] = kl[-1] - self.prior.log_prob(below, *_alone(context.unsqueeze(1)))
        else:
            kl[-1] = (kl[-1].sum(-1) - self.prior.log_prob(below, context)).unsqueeze(-1)
        return kl

    def _divergence(self, z: Tensor, latents: list[Tensor], context: Tensor) -> Tensor:
        """The KL of the top level, as `_information` has it, but without noise where the prior is a normal."""
        if not isinstance(self.prior, Normal):
            return self._information(z, latents, context)[-1]
        below = [z.unsqueeze(1), *latents][-2]
        encoder = cast("Normal", self.encoders[-1])
        return divergence(encoder(below, _beside(below, context)), self.prior(*_alone(context.unsqueeze(1))))

    def _estimated(
        self, z: Tensor, context: Tensor, generator: Generator | None, own: list[Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """ln p_K of rows, and its standard error; `own` latents (N, W) of each level stand for the first draw."""
        log_means, errors = [], []
        for rows, noise in self._pieces(z, self.options.importance - (own is not None), generator):
            latents = self._encoded(z[rows], context[rows], noise)
            if own is not None:
                latents = [torch.cat([w[rows].unsqueeze(1), more], 1) for w, more in zip(own, latents, strict=True)]
            log_likelihood, kl = self._terms(z[rows], latents, context[rows])
            log_weight = log_likelihood - torch.cat(kl, -1).sum(-1)
            log_means.append(_log_mean(log_weight))
            ratio = (log_weight - log_means[-1].unsqueeze(-1)).detach().exp()  # to their mean
            errors.append(((ratio.square().mean(-1) - 1).clamp(min=0) / (ratio.shape[-1] - 1)).sqrt())
        return torch.cat(log_means), torch.cat(errors)

    def _pieces(self, z: Tensor, draws: int, generator: Generator | None) -> Iterator[tuple[slice, Tensor]]:
        """Rows that pass together, and noise for `draws` latents of each: without a generator, all the same."""
        width = max(self.options.hidden, self.options.components * self.space.size**2)
        step = max(1, PIECE // (draws * width))
        if generator is None:
            like = torch.empty((), dtype=torch.float64)  # on the CPU: the same on every device and in either precision
            shared = self._noise(1, draws, like, torch_generator(0)).to(z)
        for first in range(0, max(1, len(z)), step):
            rows = slice(first, first + step)
            n = len(z[rows])
            yield rows, shared.expand(n, -1, -1) if generator is None else self._noise(n, draws, z, generator)

    def _drawn(self, n: int, context: Tensor, generator: Generator | None) -> tuple[Tensor, list[Tensor]]:
        """Draws (B n, D) and their latents (B n, W), level by level."""
        rows = context.repeat_interleave(n, dim=0)
        if isinstance(self.prior, Normal):
            latents = [self.prior.sample(*_alone(rows), generator)]
        else:
            latents = [self.prior.sample(n, context, generator).flatten(0, 1)]
        for link in reversed(cast("list[Normal]", self.links)):
            latents.insert(0, link.sample(latents[0], rows, generator))
        return self.decode(latents[0], rows, generator), latents


def _prior(options: VAE, size: int, context_dim: int) -> Normal | Estimator:
    """Of the top level."""
    if options.prior is None:
        return Normal(0, context_dim, size, options.skip, **options.shape)
    prior = options.prior.build(Space((size,)), context_dim)
    if prior.density != "exact":
        raise OptionError(
            f"VAE(prior={type(options.prior).__name__}()): its density is {prior.density!r}, and a prior of latents "
            "needs an exact one: Flow(), or None for a learned normal."
        )
    return prior


def _beside(stack: Tensor, context: Tensor) -> Tensor:
    """The context (N, C) for every latent of a stack (N, K, ...)."""
    return context.unsqueeze(1).expand(-1, stack.shape[1], -1)


def _alone(context: Tensor) -> tuple[Tensor, Tensor]:
    """What a normal sees that is given nothing but the context."""
    return context[..., :0], context


def _log_mean(log_weight: Tensor) -> Tensor:
    """ln of the mean of K weights: (N, K) -> (N,)."""
    return log_weight.logsumexp(-1) - math.log(log_weight.shape[-1])
