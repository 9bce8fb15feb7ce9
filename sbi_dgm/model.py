"""What a posterior is made of beside its weights, as an object, as JSON, and as an untrained network.

Restoring runs no code from a file: names come from tables, priors of scipy from its list of continuous
distributions, and what no file can hold (a prior or an embedding that is code) is stored as a fingerprint and
must be passed again.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from sbi_dgm import options, priors
from sbi_dgm.data.scaling import blank
from sbi_dgm.embeddings import base as embeddings
from sbi_dgm.errors import OptionError, PriorError, first_line
from sbi_dgm.estimators.base import FAMILIES, Conditional, Space
from sbi_dgm.estimators.ensemble import apart, assembled
from sbi_dgm.estimators.rescaled import Rescaled, rescaled
from sbi_dgm.kinds import is_a, text
from sbi_dgm.parameters import Observable, total_size
from sbi_dgm.priors import Prior, same
from sbi_dgm.seeds import lending

LARGEST = 2**28  # numbers of an observation in a file


class Model(NamedTuple):
    """What a posterior is made of, beside its weights.

    Attributes:
        reference: the distribution whose coordinates z are; the prior itself where `informed`.
        informed: whether `reference` is the prior that theta was drawn from.
        observables: shapes, units and labels of x.
        dtypes: of the observables in the training data, by name.
        estimator: the family as JSON.
        embedding: the embedding as JSON.
        members: networks of an ensemble.
        repaired: whether its draws are rescaled (`sbi_dgm.repair`).

    """

    reference: Prior
    informed: bool
    observables: Mapping[str, Observable]
    dtypes: Mapping[str, str]
    estimator: dict[str, Any]
    embedding: dict[str, Any]
    members: int = 1
    repaired: bool = False

    def describe(self) -> dict[str, Any]:
        """This model as JSON."""
        return {
            "reference": self.reference.describe(),
            "informed": self.informed,
            "observables": {name: o.describe() for name, o in self.observables.items()},
            "dtypes": dict(self.dtypes),
            "estimator": self.estimator,
            "embedding": self.embedding,
            "members": self.members,
            "repaired": self.repaired,
        }

    @classmethod
    def restore(cls, description: Mapping[str, Any], prior: Prior | None = None) -> "Model":
        """The inverse of `describe`; `prior` where it is a function."""
        d = description
        is_a("prior", prior, Prior | None, "a Prior")
        observables = {name: Observable.restore(o) for name, o in d["observables"].items()}
        reference = priors.restore(d["reference"], prior)
        for name in observables:
            np.dtype(text(f"dtype of {name}", d["dtypes"][name]))
        kept = {name: d[name] for name in ("informed", "dtypes", "estimator", "embedding", "members", "repaired")}
        return cls(reference, observables=observables, **kept)


def network(model: Model, scalers: Mapping[str, nn.Module], embedding: Any, seed: int) -> Conditional:
    """An untrained network for a member of `model`, with initial weights from `seed`."""
    with lending(seed):
        summary = embeddings.Summary(scalers, embeddings.build(embedding, model.observables, len(model.reference)))
        chosen = options.restore("estimator", FAMILIES, model.estimator)
        space = Space((len(model.reference),))
        return Conditional(summary, chosen.build(space, summary.features(model.observables)))


def whole(model: Model, scalers: Mapping[str, nn.Module], embedding: Any) -> Conditional:
    """The network of all members, untrained, rescaled by one where it is a repaired one's."""
    members = [network(model, copy.deepcopy(dict(scalers)), embedding, k) for k in range(model.members)]
    joint = assembled(members, model.observables)
    return rescaled(joint, torch.ones(len(model.reference))) if model.repaired else joint


def filled(model: Model, weights: Mapping[str, Tensor], embedding: nn.Module | None) -> Conditional:
    """The network of `model` with the weights of a file; `embedding` where it is a module of the user's.

    Raises:
        OptionError: an embedding is given and not needed, or is no module.
        ValueError: the weights are not those of such a network.

    """
    is_a("embedding", embedding, nn.Module | None, "the module")
    if embedding is not None and model.embedding["name"] != "external":
        raise OptionError(f"the file has its embedding, {embeddings.said(model.embedding)}: leave embedding= out.")
    if not 1 <= model.members <= len(weights) or total_size(model.observables) > LARGEST:
        raise ValueError(f"{model.members} members cannot have {len(weights)} tensors, or observations be so long")
    scalers = {name: blank(observable) for name, observable in model.observables.items()}
    network = whole(model, scalers, embeddings.restore(model.embedding, embedding))
    _require_alike(network.state_dict(), weights, "shape")
    network.load_state_dict(weights)
    _require_alike(network.state_dict(), weights, "dtype")  # scalers take theirs from the file
    return network


def _require_alike(own: Mapping[str, Tensor], weights: Mapping[str, Tensor], what: str) -> None:
    for name in {**own, **weights}:
        wanted, found = (getattr(part.get(name), what, None) for part in (own, weights))
        if wanted != found:
            raise ValueError(f"the {what} of {name!r} is {found}, its options ask for {wanted}")


def require_same(path: str | Path, model: Model, prior: Prior | None) -> None:
    """`PriorError` where a prior is given that is not the one of the file, which may be of some of its parameters."""
    if prior is None:
        return
    if not model.informed:
        raise PriorError(f"{path} was trained without a prior, and one is given: leave it out.")
    names = model.reference.names
    part = prior.marginal(names) if set(names) <= set(prior.names) else None
    if part is None or not (part == model.reference or same(model.reference.describe(), part)):
        raise PriorError(f"{path} has a prior of its own, and another is given: leave it out.")


def rebuilt(model: Model, network: Conditional) -> Conditional:
    """The weights of `network` behind the estimator's options of `model`, which must make the same weights."""
    if isinstance(network.estimator, Rescaled):
        inner = Conditional(network.summary, network.estimator.inner)
        return rescaled(rebuilt(model, inner), network.estimator.scale)
    return assembled([_rebuilt(model, member) for member in apart(network)], model.observables)


def _rebuilt(model: Model, network: Conditional) -> Conditional:
    summary = cast("embeddings.Summary", network.summary)
    chosen = options.restore("estimator", FAMILIES, model.estimator)
    with lending(0):  # initial weights, at once replaced
        estimator = chosen.build(network.estimator.space, summary.features(model.observables))
    estimator.load_state_dict(network.estimator.state_dict())
    return Conditional(summary, estimator.to(next(network.estimator.parameters()).device))


def device_named(name: str) -> torch.device:
    """The device called "cpu", "cuda", "cuda:1", "mps" or "auto" (CUDA where there is one, else the CPU)."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device).tolist()  # which is not possible on "meta"
    except (RuntimeError, AssertionError, TypeError) as error:
        raise OptionError(f"device {name!r} is not to be had here ({first_line(error)}): use 'cpu'.") from None
    return device
