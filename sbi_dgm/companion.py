"""A likelihood beside its posterior: the run folder of `fit(data, learn="refined", out=...)`, kept and read again."""

import math
import warnings
from pathlib import Path
from typing import Any

from sbi_dgm.data.simulations import Simulations
from sbi_dgm.errors import FileError, OptionError, SbiError
from sbi_dgm.files import path_of, read_json, write_json
from sbi_dgm.kinds import number, text
from sbi_dgm.likelihood import Likelihood
from sbi_dgm.pooling import Pool
from sbi_dgm.posterior import Posterior, load
from sbi_dgm.priors import Prior
from sbi_dgm.refinement import Refined

FOLDER = "likelihood"  # in the posterior's: the run of the likelihood that was learned with it
POOL = "pool.json"  # there: the power that the likelihood was given, and by which weights


def load_refined(
    folder: str | Path,
    *,
    posterior: Posterior | None = None,
    effective: float = 10_000,
    prior: Prior | None = None,
    device: str = "cpu",
) -> Refined:
    """What `fit(data, learn="refined", out=folder)` learned: posterior, likelihood and the power of the latter.

    Args:
        folder: the run.
        posterior: the one of this run, where it was loaded already (its embedding may be a module of yours).
        effective: effective size of the weighted proposals, for each observation.
        prior: needed only where the prior is a function.
        device: "cpu", "cuda", ..., or "auto".

    Raises:
        FileError: no likelihood was learned there, or its power cannot be read.
        OptionError: its power was found for another posterior.

    Warns:
        where nothing has told the power, which is then 1.

    Example::

        refined = sbi_dgm.load_refined("runs/sn")
        refined.sample(1000, x)

    """
    beside = path_of(folder) / FOLDER
    if not (beside / "likelihood.safetensors").exists():
        raise FileError(f"no likelihood was learned with it ({beside}): train --refine does, or name one.")
    posterior = posterior or load(Path(folder) / "posterior.safetensors", prior=prior, device=device)
    likelihood = Likelihood.load(beside / "likelihood.safetensors", prior=prior, device=device)
    found = _told(beside / POOL, posterior, likelihood)
    power = 1.0 if found is None else found.power
    return Refined(posterior, likelihood, effective=effective, power=power, pool=found)


def pooled(refined: Refined, data: Simulations, folder: Path | None, *, seed: int, progress: bool) -> Refined:
    """With the power that held-out rows find best, kept in the folder of the likelihood's run.

    Where nothing can tell it, it is `refined` itself, with a warning that says why.
    """
    reason = ""
    try:
        refined = refined.pooled(data, seed=seed, progress=progress)
    except SbiError as error:
        reason = str(error)
        warnings.warn(f"the likelihood keeps a power of {refined.power:g}: {reason}", stacklevel=2)
    if folder is not None:
        found = None if refined.pool is None else refined.pool._asdict()
        weights = _fingerprints(refined.proposal, refined.likelihood)
        write_json(folder / POOL, {"pool": found, "reason": reason, "weights": weights})
    return refined


def _told(path: Path, posterior: Posterior, likelihood: Likelihood) -> Pool | None:
    """What told the power; None where nothing could."""
    if not path.exists():
        _warn(f"{path} is missing: train --refine --resume finds the best")
        return None
    try:
        kept = read_json(path)
        found, reason, weights = _pool(kept["pool"]), text("reason", kept["reason"]), kept["weights"]
    except (SbiError, TypeError, KeyError, AttributeError) as error:
        raise FileError(f"{path} is damaged: remove it, and train --refine --resume writes it again.") from error
    if found is None:
        _warn(reason)
    elif weights != _fingerprints(posterior, likelihood):
        raise OptionError(
            f"{path} tells the power of a likelihood for another posterior or likelihood: name the likelihood "
            f"({path.parent / 'likelihood.safetensors'}) to use it with a power of 1."
        )
    return found


def _pool(kept: Any) -> Pool | None:
    """What was found best, of finite numbers, or an error."""
    plain: dict[str, Any] = {name: number(name, value) for name, value in (kept or {}).items()}
    found = None if kept is None else Pool(**plain)
    if found is not None and not (all(map(math.isfinite, found)) and found.power >= 0):
        raise FileError(f"{found} cannot be.")
    return found


def _warn(reason: str) -> None:
    warnings.warn(f"the likelihood has a power of 1: {reason}", stacklevel=4)


def _fingerprints(posterior: Any, likelihood: Any) -> dict[str, str]:
    return {"posterior": posterior.fingerprint(), "likelihood": likelihood.fingerprint()}
