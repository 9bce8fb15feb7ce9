"""The gate of a trained network, from rows as training and validation saw them, with noise where these had some."""

from collections.abc import Mapping
from typing import cast

import numpy as np
import torch

from sbi_dgm.data.batches import Batch, Batches, Noisy, Rows
from sbi_dgm.data.vectors import View
from sbi_dgm.embeddings.base import Summary
from sbi_dgm.estimators.base import Conditional
from sbi_dgm.estimators.ensemble import apart
from sbi_dgm.parameters import Observable
from sbi_dgm.trust import Gate
from sbi_dgm.univariate import Array

TRAINING_ROWS, TRAINING_NUMBERS = 20_000, 2**23
VALIDATION_ROWS = 4000
GATING = 12  # stream of a noise model: what was trained on is known too well


def gate_of(network: Conditional, observables: Mapping[str, Observable], batches: Batches, held_out: Rows) -> Gate:
    """A gate from the first rows of the first epoch, at most 20,000, and at most 4,000 validation rows.

    Args:
        network: trained, one member or all.
        observables: of x.
        batches: of the training rows, in random order.
        held_out: the validation rows.

    """
    network, batches = network.eval(), _afresh(batches)
    first = cast("Summary", apart(network)[0].summary)
    scalers = dict(zip(first.names, first.scalers, strict=True))
    views = [View.of(name, observable, scalers[name]) for name, observable in observables.items()]
    asked = max(1, min(TRAINING_ROWS, TRAINING_NUMBERS // max(1, sum(view.size for view in views))))
    x, context = [], []
    for step in range(batches.per_epoch):
        arrays, made = _seen(network, batches[step], first.plain)
        x.append(np.concatenate([view(arrays[view.name]) for view in views], axis=1))
        context.append(made)
        if sum(map(len, x)) >= asked:
            break
    training = np.concatenate(x)[:asked], None if first.plain else np.concatenate(context)[:asked]
    chosen = torch.as_tensor(np.linspace(0, len(held_out) - 1, min(len(held_out), VALIDATION_ROWS)).astype(int))
    judged = Rows(*held_out[chosen.to(held_out.z.device)]).pieces()
    return Gate.fit(views, training, (_seen(network, batch, first.plain) for batch in judged))


def _afresh(batches: Batches) -> Batches:
    """The batches with other noise than training saw."""
    return Noisy(batches.batches, batches.noise, batches.seed[0], GATING) if isinstance(batches, Noisy) else batches


@torch.no_grad()
def _seen(network: Conditional, batch: Batch, plain: bool) -> tuple[dict[str, np.ndarray], Array]:
    """Observables and context; the latter is of no use, and without columns, where it is the same as x."""
    arrays = {name: values.cpu().numpy() for name, values in batch.x.items()}
    context = batch.z[:, :0] if plain else network.summary(batch.x)
    return arrays, context.cpu().double().numpy()
