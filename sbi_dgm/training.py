"""From simulations to a posterior, or to a likelihood: `fit`, the one door to training."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, overload

from torch import nn

from sbi_dgm import embeddings, ensemble, job, options
from sbi_dgm.data.batches import Noise
from sbi_dgm.data.exchanged import exchanged
from sbi_dgm.data.reading import Reading
from sbi_dgm.data.simulations import Simulations
from sbi_dgm.data.splits import SplitRule
from sbi_dgm.errors import OptionError, unknown
from sbi_dgm.estimators.base import Family, family
from sbi_dgm.likelihood import Likelihood
from sbi_dgm.loop import Training
from sbi_dgm.posterior import Posterior

LEARNED = ("posterior", "likelihood")


@overload
def fit(
    data: Simulations,
    estimator: str | Family = ...,
    embedding: "str | embeddings.Embedding | nn.Module" = ...,
    *,
    learn: Literal["likelihood"],
    **options: Any,
) -> Likelihood: ...


@overload
def fit(
    data: Simulations,
    estimator: str | Family = ...,
    embedding: "str | embeddings.Embedding | nn.Module" = ...,
    parameters: Sequence[str] | None = ...,
    *,
    learn: Literal["posterior"] = ...,
    **options: Any,
) -> Posterior: ...


def fit(  # noqa: PLR0913  # pyright: ignore[reportInconsistentOverload]  (the one door: every argument has a meaning)
    data: Simulations,
    estimator: str | Family = "flow",
    embedding: "str | embeddings.Embedding | nn.Module" = "auto",
    parameters: Sequence[str] | None = None,
    *,
    learn: Literal["posterior", "likelihood"] = "posterior",
    training: Training | None = None,
    split: SplitRule | None = None,
    reading: Reading | None = None,
    noise: Noise | None = None,
    rate: bool = False,
    device: str = "auto",
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    members: int = 1,
    workers: int | None = None,
    max_time: float | None = None,
    tensorboard: bool = False,
    progress: bool = True,
) -> Posterior | Likelihood:
    """Train a posterior, or a likelihood, on simulations.

    Args:
        data: the simulations.
        estimator: a family's name, or its options, such as `Flow(transforms=8)`.
        embedding: "auto", "mlp", their options, or a module of your own.
        parameters: names to infer; the others are marginalised.
        learn: "posterior", q(theta | x), or "likelihood", q(x | theta), where x is up to 512 numbers (they are read
            into memory; whole numbers are dequantised by U(0, 1)).
        training: batch size, rates and patience.
        split: fractions of validation and test rows.
        reading: from memory or as a stream; chosen by what is free.
        noise: a model of noise, (x, theta, generator) -> x, applied on the device to each batch: fresh at every step,
            the same in every validation. x is a tensor (B, ...), or a dict of them; theta (B, P) all parameters.
        rate: event weights keep their cross section, which then counts as part of the prior.
        device: "auto", "cpu", "cuda", ...
        seed: of initial weights, order and noise.
        out: run folder for config.json, history.csv, the checkpoint and posterior.safetensors.
        resume: go on from the checkpoint in `out`, if there is one.
        overwrite: start again in `out`, whatever is there.
        members: networks of an ensemble: the same split, other initial weights and order; their mixture is the
            posterior.
        workers: processes that train members, each with one thread; None is one for each core, or none on a GPU.
        max_time: seconds after which this call ends by itself, with a checkpoint in `out`.
        tensorboard: write curves to `out/tensorboard`, for TensorBoard.
        progress: show a progress bar.

    Raises:
        DataError, PriorError: simulations that cannot be learned from.
        FileError: `out` holds a run already.
        TrainingError: a loss that is not finite; a checkpoint of another run.
        TimeLimitError: `max_time` has passed; `resume=True` goes on.

    Example::

        posterior = sbi_dgm.fit(data, out="runs/sn")
        posterior = sbi_dgm.fit(data, Located(Flow(transforms=3)), training=Training(batch_size=512))

    """
    if learn not in LEARNED:
        raise OptionError(unknown("role", learn, LEARNED))
    data.require_rows(parameters)
    prior = data.prior
    split = split or SplitRule()
    if learn == "likelihood":
        _refuse_for_likelihoods(parameters=parameters, noise=noise)
        data, rate = exchanged(data, data.split(split), seed), True
    folder = None if out is None else Path(out)
    _require_folder(folder, max_time=max_time is not None, tensorboard=tensorboard)
    asked = job.Job(
        data,
        family(estimator) if isinstance(estimator, str) else estimator,
        options.make("embedding", embeddings.EMBEDDINGS, embedding) if isinstance(embedding, str) else embedding,
        parameters,
        training or Training(),
        split,
        reading or Reading(),
        noise,
        rate,
        device,
        seed,
        folder,
        resume,
        overwrite,
        math.inf if max_time is None else max_time,
        tensorboard,
        progress,
        learn=learn,
    )
    learned = job.train(asked) if members == 1 else ensemble.train(asked, members, workers)
    return learned if learn == "posterior" else Likelihood(learned, prior)


def _refuse_for_likelihoods(**given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise OptionError(f"{name} belongs to posteriors: a likelihood is of all parameters, without noise on x.")


def _require_folder(folder: Path | None, **asked: bool) -> None:
    for name, wanted in asked.items():
        if wanted and folder is None:
            raise OptionError(f"{name} needs a run folder: pass out=...")
