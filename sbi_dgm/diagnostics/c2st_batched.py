"""The classifier two-sample test of many observations at once: scikit-learn's perceptrons, all in one batch.

Every observation trains one network for each fold, and all of them start from the same weights and go through their
rows in the same order, because `c2st` gives each the same seed. So the networks of all folds and observations take
their steps together, as batched matrix products, and one that has met scikit-learn's stopping rule leaves the batch.
What scikit-learn's `MLPClassifier` does is done here, from the same stream of random numbers:

- initial weights and intercepts ~ U(-b, b), b^2 = 6 / (fan in + fan out) (Glorot and Bengio 2010);
- batches of 200 shuffled rows, the last one smaller; the loss of a batch of m rows is the mean of -ln p(label)
  plus 1e-4 / (2 m) times the sum of the squared weights, not intercepts;
- Adam (Kingma and Ba 2015), the form in which the rate alone is corrected for bias;
- the end, where in more than 10 epochs in a row the epoch's mean loss was not 1e-4 below the best.

In float64 (`exact`) the scores are scikit-learn's to the last digit wherever both were measured. In float32 rounding
leads, after some hundred steps, to another path and another end, as likely as the first: over 22 pairs of 10,000 draws
with 2 to 5 parameters scores differ by 0.0017 in the mean of the modulus, 0.007 at most, and by 0.0000 +- 0.0006 on
average (benchmarks/classifiers.py); also those of an observation alone and of the same one in company may differ.
"""

from collections.abc import Iterator
from itertools import pairwise
from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sbi_dgm.diagnostics.c2st import standardised
from sbi_dgm.errors import DataError
from sbi_dgm.model import device_named
from sbi_dgm.progress import Bar
from sbi_dgm.univariate import Array

BATCH, L2 = 200, 1e-4
RATE, BETA1, BETA2, EPSILON = 1e-3, 0.9, 0.999, 1e-8
TOLERANCE, PATIENCE, EPOCHS = 1e-4, 10, 10_000
SMALLEST = float(np.finfo(float).eps)  # probabilities below count as this one in the loss
MEMORY = 2**28  # bytes of training rows that are held at once


def c2st_batched(
    reference: Array,
    draws: Array,
    *,
    seed: int = 1,
    folds: int = 5,
    device: str = "cpu",
    progress: bool = False,
    exact: bool = False,
) -> Array:
    """`c2st` of B observations (B,), several times as fast; needs no scikit-learn.

    Args:
        reference: (B, S, D).
        draws: (B, S, D), as many.
        seed: of folds and classifier; sbibm's is 1.
        folds: of the cross-validation.
        device: "cpu", "cuda" or "auto".
        progress: show a bar over the networks, B times `folds`.
        exact: compute in float64: scikit-learn's own score, in 1.3 (D = 2) to 1.5 times (D = 4) the time.

    Raises:
        DataError: as `c2st` does, with the observation's number.
    """
    reference, draws = np.asarray(reference, float), np.asarray(draws, float)
    if reference.shape != draws.shape or reference.ndim != 3 or len(reference) == 0:
        raise DataError(f"two sets of equal shape (B, S, D) are needed; got {reference.shape} and {draws.shape}.")
    both = np.stack([_standardised(i, *pair, folds) for i, pair in enumerate(zip(reference, draws, strict=True))])
    held_out, place = fold_rows(both.shape[1], folds, seed), device_named(device)
    dtype, chunk = torch.float64 if exact else torch.float32, max(1, MEMORY // (folds * both[0].nbytes))
    found = []
    with Bar(total=len(both) * folds, desc="c2st", unit="network", disable=not progress) as bar:
        for i in range(0, len(both), chunk):
            some = torch.as_tensor(both[i : i + chunk], dtype=dtype, device=place)
            found.append(accuracies(some, held_out, seed, bar).mean(1))
    return np.concatenate(found)


def _standardised(i: int, reference: Array, draws: Array, folds: int) -> Array:
    try:
        return standardised(reference, draws, folds)
    except DataError as error:
        raise DataError(f"observation {i}: {error}") from None


def fold_rows(rows: int, folds: int, seed: int) -> list[NDArray[np.int_]]:
    """The held-out rows of each fold, as scikit-learn's shuffled `KFold` has them.

    >>> [part.tolist() for part in fold_rows(5, 2, seed=1)]
    [[1, 2, 4], [0, 3]]
    """
    order = np.random.RandomState(seed).permutation(rows)
    return [np.sort(part) for part in np.array_split(order, folds)]


def accuracies(both: Tensor, held_out: list[NDArray[np.int_]], seed: int, bar: "Bar | None" = None) -> Array:
    """Accuracy (B, folds) on the held-out rows of each fold, for both sets of draws (B, 2 S, D), standardised."""
    observations, rows = both.shape[:2]
    label = torch.ones(rows, 1, dtype=both.dtype, device=both.device)
    label[: rows // 2] = -1
    table = torch.cat([both.transpose(0, 1), label[:, None].expand(-1, observations, -1)], 2)  # (2 S, B, D + 1)
    found = np.empty((observations, len(held_out)))
    for size in sorted({len(part) for part in held_out}):  # folds of equal size share their shuffles
        group = [f for f, part in enumerate(held_out) if len(part) == size]
        trained_on = [torch.as_tensor(np.setdiff1d(np.arange(rows), held_out[f])) for f in group]
        data = torch.stack([table[part] for part in trained_on], 2).flatten(1, 2)
        for k, network in train(data, seed):
            b, f = divmod(k, len(group))
            test = table[:, b][torch.as_tensor(held_out[group[f]])]
            agrees = network.logit(test[None, :, :-1])[0, :, 0] * test[:, -1] > 0
            found[b, group[f]] = float(agrees.double().mean())
            if bar is not None:
                bar.update()
    return found


def train(data: Tensor, seed: int) -> "Iterator[tuple[int, Networks]]":
    """Train K networks on n rows of x and a label of -1 or 1 (n, K, D + 1); each comes with its number when done."""
    rng = np.random.RandomState(seed)
    networks = Networks.alike(initial(data.shape[2] - 1, rng), data)
    order, number = np.arange(len(data)), np.arange(data.shape[1])
    best, stalled = np.full(len(number), np.inf), np.zeros(len(number), int)
    for _ in range(EPOCHS):
        order = order[rng.permutation(len(order))]
        loss = networks.epoch(data, torch.as_tensor(order, device=data.device)).numpy(force=True)
        if not np.isfinite(loss).all():
            raise DataError("the classifier diverged: some draws are too far from the reference.")
        stalled = np.where(loss > best - TOLERANCE, stalled + 1, 0)
        best = np.minimum(best, loss)
        done = stalled > PATIENCE
        if done.any():
            yield from ((int(number[k]), networks.only([k])) for k in np.flatnonzero(done).tolist())
            left = np.flatnonzero(~done).tolist()
            number, best, stalled = number[left], best[left], stalled[left]
            networks, data = networks.only(left), data[:, left]
        if len(number) == 0:
            return
    yield from ((int(k), networks.only([i])) for i, k in enumerate(number))


def initial(dims: int, rng: np.random.RandomState) -> list[Array]:
    """Weights (fan in, fan out) and intercepts (1, fan out) of each layer in turn, as scikit-learn draws them."""
    found = []
    for fan_in, fan_out in pairwise((dims, 10 * dims, 10 * dims, 1)):
        bound = sqrt(6 / (fan_in + fan_out))
        found += [rng.uniform(-bound, bound, (rows, fan_out)) for rows in (fan_in, 1)]
    return found


class Networks:
    """K perceptrons side by side, with Adam's moments.

    All numbers of one kind (parameters, first and second moments, gradients) lie in one vector, so that Adam is a
    handful of operations whatever K; `parameters` and `gradients` are views of it: (K, fan in, fan out) for weights
    and (K, 1, fan out) for intercepts, layer by layer.
    """

    def __init__(self, state: list[Tensor], shapes: list[tuple[int, ...]], count: int, steps: int = 0) -> None:
        self.state, self.shapes, self.count, self.steps = state, shapes, count, steps
        self.parameters = self._views(state[0])
        self.gradient, self.scratch = torch.zeros_like(state[0]), torch.empty_like(state[0])
        self.gradients = self._views(self.gradient)
        self.buffers = [state[0].new_empty(count, BATCH, shapes[2][0]) for _ in range(3)]

    @classmethod
    def alike(cls, weights: list[Array], data: Tensor) -> "Networks":
        """A network of these weights for each column of `data` (n, K, D + 1)."""
        count = data.shape[1]
        value = data.new_tensor(np.concatenate([np.tile(w.ravel(), count) for w in weights]))
        return cls([value, torch.zeros_like(value), torch.zeros_like(value)], [w.shape for w in weights], count)

    def only(self, rows: list[int]) -> "Networks":
        """Those of the given numbers."""
        state = [torch.cat([view[rows].flatten() for view in self._views(part)]) for part in self.state]
        return Networks(state, self.shapes, len(rows), self.steps)

    def _views(self, flat: Tensor) -> list[Tensor]:
        parts = flat.split([self.count * a * b for a, b in self.shapes])
        return [part.view(self.count, *shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def logit(self, x: Tensor) -> Tensor:
        """ln p(1 | x) / p(-1 | x): (K, m, D) -> (K, m, 1)."""
        w1, b1, w2, b2, w3, b3 = self.parameters
        hidden = torch.baddbmm(b2, torch.baddbmm(b1, x, w1).relu_(), w2).relu_()
        return torch.baddbmm(b3, hidden, w3)

    def epoch(self, data: Tensor, order: Tensor) -> Tensor:
        """One pass over `data` (n, K, D + 1) in this order: the mean loss (K,) on the way."""
        total = torch.zeros(self.count, dtype=torch.float64, device=data.device)
        for rows in order.split(BATCH):
            batch = data.index_select(0, rows).transpose(0, 1)
            total += self.differentiate(batch[..., :-1], batch[..., -1:])
            self.descend()
        return total / len(order)

    def differentiate(self, x: Tensor, sign: Tensor) -> Tensor:
        """Fill `gradients` for a batch x (K, m, D) with labels -1 or 1 (K, m, 1); the loss (K,), m times."""
        w1, b1, w2, b2, w3, b3 = self.parameters
        g1, c1, g2, c2, g3, c3 = self.gradients
        rows = x.shape[1]
        one, two, back = (buffer[:, :rows] for buffer in self.buffers)
        torch.baddbmm(b1, x, w1, out=one).relu_()
        torch.baddbmm(b2, one, w2, out=two).relu_()
        right = torch.baddbmm(b3, two, w3).double().mul_(sign).sigmoid_()
        loss = right.clamp(min=SMALLEST).log_().sum((1, 2)).neg_()
        for weights in (w1, w2, w3):
            loss += (L2 / 2) * weights.square().sum((1, 2))
        delta, decay = right.sub_(1).mul_(sign).div_(rows).to(x.dtype), L2 / rows
        torch.baddbmm(w3, two.mT, delta, beta=decay, out=g3)
        torch.sum(delta, 1, keepdim=True, out=c3)
        torch.mul(delta, w3.mT, out=back).mul_(two.sign_())
        torch.baddbmm(w2, one.mT, back, beta=decay, out=g2)
        torch.sum(back, 1, keepdim=True, out=c2)
        torch.bmm(back, w2.mT, out=two).mul_(one.sign_())
        torch.baddbmm(w1, x.mT, two, beta=decay, out=g1)
        torch.sum(two, 1, keepdim=True, out=c1)
        return loss

    def descend(self) -> None:
        """One step of Adam."""
        value, first, second = self.state
        self.steps += 1
        rate = RATE * sqrt(1 - BETA2**self.steps) / (1 - BETA1**self.steps)
        first.lerp_(self.gradient, 1 - BETA1)
        second.mul_(BETA2).addcmul_(self.gradient, self.gradient, value=1 - BETA2)
        torch.sqrt(second, out=self.scratch).add_(EPSILON)
        value.addcdiv_(first, self.scratch, value=-rate)
