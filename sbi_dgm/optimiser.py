r"""AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) and averaged weights, each on one long vector.

A small network has a hundred tensors of a few thousand numbers: a step that visits them one by one takes longer than
their arithmetic. `flattened` moves the weights of a module into one vector, of which its parameters become views, so
that a step is ten operations however many they are. With the gradient g, clipped to a largest norm,

.. math::
    m \leftarrow m + (1 - \beta_1)(g - m), \quad v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
    w \leftarrow (1 - \eta \lambda) w - \eta \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon} .
"""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from sbi_dgm.errors import TrainingError

BETAS, EPSILON = (0.9, 0.999), 1e-8
TINY = 1e-30  # its root is nothing beside epsilon; roots of denormal numbers take thirty times as long as others


def flattened(parameters: Iterable[nn.Parameter]) -> Tensor:
    """One vector of all numbers of parameters, which become views of it.

    Raises:
        TrainingError: they do not share one dtype.

    """
    kept = list(parameters)
    kinds = {p.dtype for p in kept}
    if len(kinds) > 1:
        raise TrainingError(
            f"the network mixes weights of {sorted(map(str, kinds))}: give the embedding .float() weights."
        )
    vector = torch.cat([p.detach().reshape(-1) for p in kept])
    for p, part in zip(kept, _parts(vector, kept), strict=True):
        p.data = part
    return vector


def _parts(vector: Tensor, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Views of a vector, one after another of the shapes of parameters."""
    parts = vector.split([p.numel() for p in parameters])
    return [part.view_as(p) for p, part in zip(parameters, parts, strict=True)]


class AdamW:
    """Decoupled weight decay for some parameters, none for the others; the rate is given at each step.

    Args:
        decayed: parameters that decay.
        free: parameters that do not.
        decay: lambda.
        clip: largest norm of the whole gradient.

    """

    def __init__(
        self, decayed: Sequence[nn.Parameter], free: Sequence[nn.Parameter], *, decay: float, clip: float
    ) -> None:
        parameters, self.clip = [*decayed, *free], clip
        self.weights = flattened(parameters)
        self.gradient = torch.zeros_like(self.weights)  # what `backward` adds to, part by part
        for p, part in zip(parameters, _parts(self.gradient, parameters), strict=True):
            p.grad = part
        self.decayed, self.decay = self.weights[: sum(p.numel() for p in decayed)], decay
        self.mean, self.square = torch.zeros_like(self.weights), torch.zeros_like(self.weights)
        self.steps, self.rate = 0, 0.0

    def clear(self) -> None:
        """Forget the gradient."""
        self.gradient.zero_()

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move the weights along the gradient."""
        self.steps, self.rate = self.steps + 1, rate
        fast, slow = BETAS
        gradient = self.gradient * (self.clip / (self.gradient.norm() + 1e-6)).clamp(max=1)
        self.mean.lerp_(gradient, 1 - fast)
        self.square.mul_(slow).addcmul_(gradient, gradient, value=1 - slow)
        size = self.square.clamp(min=TINY).sqrt_().div_(math.sqrt(1 - slow**self.steps)).add_(EPSILON)
        self.decayed.mul_(1 - rate * self.decay)
        self.weights.addcdiv_(self.mean, size, value=-rate / (1 - fast**self.steps))

    def state(self) -> dict[str, Tensor]:
        """The moments and the number of steps, as copies."""
        return {"mean": self.mean.clone(), "square": self.square.clone(), "steps": torch.tensor(self.steps)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        self.mean.copy_(state["mean"])
        self.square.copy_(state["square"])
        self.steps = int(state["steps"])
