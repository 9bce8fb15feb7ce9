"""From simulations to a posterior, a likelihood, or the one refined by the other: `fit`, the one door to training."""

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal, overload

from torch import nn

from sbi_dgm import companion, ensemble, job, options, recipe
from sbi_dgm.data.batches import Noise
from sbi_dgm.data.exchanged import exchanged
from sbi_dgm.data.reading import Reading
from sbi_dgm.data.simulations import Simulations
from sbi_dgm.data.splits import SplitRule
from sbi_dgm.embeddings import base as embeddings
from sbi_dgm.embeddings.fusion import Auto
from sbi_dgm.errors import OptionError, unknown
from sbi_dgm.estimators.base import Family, family
from sbi_dgm.job import Job
from sbi_dgm.kinds import is_a, texts, whole
from sbi_dgm.likelihood import Likelihood
from sbi_dgm.loop import Training
from sbi_dgm.posterior import Posterior, opened
from sbi_dgm.progress import Bar
from sbi_dgm.refinement import Refined


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
    *,
    learn: Literal["refined"],
    **options: Any,
) -> Refined: ...


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
    learn: Literal["posterior", "likelihood", "refined"] = "posterior",
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
) -> Posterior | Likelihood | Refined:
    """Train a posterior, a likelihood, or both, on simulations.

    Args:
        data: the simulations.
        estimator: a family's name, its options, such as `Flow(transforms=8)`, or "auto": what suits the numbers of
            rows, of parameters and of x (`sbi_dgm.recipe`).
        embedding: "auto", "mlp", their options, or a module of your own.
        parameters: names to infer; the others are marginalised.
        learn: "posterior", q(theta | x); "likelihood", q(x | theta), where x is up to 512 numbers (they are read into
            memory; whole numbers are dequantised by U(0, 1)); or "refined", the posterior and, by its own recipe, the
            likelihood that refines it, where x is up to 100 numbers, with the power that the validation rows give it
            (`sbi_dgm.pooling`). `out/likelihood` is the run of the latter; `load_refined(out)` reads all.
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
        max_time: seconds of training after which this call ends by itself, with a checkpoint in `out`.
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
        refined = sbi_dgm.fit(data, "auto", learn="refined", members=4)

    """
    if learn not in list(LEARN):
        raise OptionError(unknown("role", learn, LEARN))
    _require_kinds(data=data, estimator=estimator, embedding=embedding, training=training, split=split, reading=reading)
    _require_kinds(noise=noise, out=out)
    members, workers = whole("members", members, 1), None if workers is None else whole("workers", workers, 1)
    if parameters is not None and not texts("parameters", parameters):
        raise OptionError("parameters = []: give a list of names, or leave it out for all of them.")
    data.require_rows(parameters)
    _refuse_unused(data, rate, members, workers)
    if resume and overwrite:
        raise OptionError("resume goes on with what is there, and overwrite starts again: choose one of them.")
    seed = whole("seed", seed, 0)
    if learn != "posterior":
        _refuse_for_likelihoods(parameters=parameters, noise=noise)
    folder, split = None if out is None else Path(out), split or SplitRule()
    _require_folder(folder, max_time=max_time is not None, tensorboard=tensorboard)
    if estimator == "auto":
        estimator = _recommended(learn, data, parameters, split, progress)
    asked = Job(
        data=data,
        estimator=family(estimator) if isinstance(estimator, str) else estimator,
        embedding=_embedding(embedding),
        parameters=parameters,
        training=training or Training(),
        split=split,
        reading=reading or Reading(),
        noise=noise,
        rate=rate,
        device=device,
        seed=seed,
        folder=folder,
        resume=resume,
        overwrite=overwrite,
        limit=math.inf if max_time is None else max_time,
        tensorboard=tensorboard,
        progress=progress,
    )
    return LEARN[learn](asked, members, workers)


def _embedding(given: str | embeddings.Embedding | nn.Module) -> embeddings.Embedding | nn.Module:
    return options.make("embedding", embeddings.EMBEDDINGS, given) if isinstance(given, str) else given


def _recommended(
    learn: str, data: Simulations, parameters: Sequence[str] | None, split: SplitRule, tell: bool
) -> Family:
    choice = recipe.recommended(learn, data, len(data.split(split).train), parameters)
    if tell:
        Bar.write(f"estimator: {choice.why}", file=sys.stderr)
    return choice.family


def _posterior(asked: Job, members: int, workers: int | None) -> Posterior:
    return job.train(asked) if members == 1 else ensemble.train(asked, members, workers)


def _likelihood(asked: Job, members: int, workers: int | None) -> Likelihood:
    return Likelihood(_posterior(_exchanging(asked), members, workers), asked.data.prior)


def _exchanging(asked: Job) -> Job:
    """The job with x and theta exchanged; refuses what has no likelihood."""
    data = exchanged(asked.data, asked.data.split(asked.split), asked.seed)
    return replace(asked, data=data, rate=True, learn="likelihood")


def _refined(asked: Job, members: int, workers: int | None) -> Refined:
    """The posterior first, then the likelihood, in what is left of the time; then what power it is worth."""
    recipe.require_refinable(asked.data)
    if job.tilted(asked):
        raise OptionError(
            "rate=True makes the cross section part of the prior, which no likelihood of x knows: leave it out."
        )
    rows = len(asked.data.split(asked.split).train)
    chosen = recipe.recommended("likelihood", asked.data, rows).family
    folder = None if asked.folder is None else asked.folder / companion.FOLDER
    beside = _exchanging(replace(asked, estimator=chosen, embedding=Auto(), folder=folder))
    began = time.monotonic()
    posterior = _kept(asked, members) or _posterior(asked, members, workers)
    left = max(0.0, asked.limit - (time.monotonic() - began))
    unpooled = folder is not None and not (folder / companion.POOL).exists()
    inner = (_kept(beside, members) if unpooled else None) or _posterior(replace(beside, limit=left), members, workers)
    refined = posterior.refined(Likelihood(inner, asked.data.prior))
    return companion.pooled(refined, asked.data, folder, seed=asked.seed, progress=asked.progress)


def _kept(asked: Job, members: int) -> Posterior | None:
    """What the call that is resumed has finished."""
    if not asked.resume or not (job.finished(asked) if members == 1 else ensemble.finished(asked, members)):
        return None
    own = asked.embedding if isinstance(asked.embedding, nn.Module) else None
    return opened(str(asked.result), prior=asked.data.prior, embedding=own, device=asked.device)


LEARN: dict[str, Callable[[Job, int, int | None], Posterior | Likelihood | Refined]] = {
    "posterior": _posterior,
    "likelihood": _likelihood,
    "refined": _refined,
}


KINDS: dict[str, tuple[tuple[Any, ...], str]] = {
    "data": ((Simulations,), "Simulations, such as Simulations.open(path) or Simulations.from_arrays(theta, x)"),
    "estimator": ((str, Family), "a family's name, or its options, such as Flow(transforms=8)"),
    "embedding": ((str, embeddings.Embedding, nn.Module), "an embedding's name, its options, or a module"),
    "training": ((Training, NoneType), "Training(...)"),
    "split": ((SplitRule, NoneType), "SplitRule(...)"),
    "reading": ((Reading, NoneType), "Reading(...)"),
    "noise": ((Callable, NoneType), "a function (x, theta, generator) -> x"),
    "out": ((str, Path, NoneType), "the path of a folder"),
}


def _require_kinds(**given: object) -> None:
    for name, value in given.items():
        is_a(name, value, *KINDS[name])


def _refuse_unused(data: Simulations, rate: bool, members: int, workers: int | None) -> None:
    if rate and "event_weight" not in data.columns:
        raise OptionError(
            "rate=True (--rate) keeps the cross section in event weights, of which these simulations have none."
        )
    if members == 1 and workers not in (None, 1):
        raise OptionError(f"workers = {workers} train members, and there is one: ask for more, or leave workers out.")


def _refuse_for_likelihoods(**given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise OptionError(
                f"{name} belongs to posteriors: a likelihood is of all parameters, without noise on x. "
                f"Leave out {name}, or learn no likelihood."
            )


def _require_folder(folder: Path | None, **asked: bool) -> None:
    for name, wanted in asked.items():
        if wanted and folder is None:
            raise OptionError(f"{name} needs a run folder: pass out=...")
