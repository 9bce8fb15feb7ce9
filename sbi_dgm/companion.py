"""A likelihood beside its posterior: the run folder of `fit(data, learn="refined", out=...)`, kept and read again."""

import json
import warnings
from pathlib import Path
from typing import Any

from sbi_dgm import artifact
from sbi_dgm.errors import FileError, OptionError
from sbi_dgm.files import write_json
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
        FileError: no likelihood was learned there.
        OptionError: its power was found for another posterior.

    Example::

        refined = sbi_dgm.load_refined("runs/sn")
        refined.sample(1000, x)

    """
    beside = Path(folder) / FOLDER
    if not (beside / "likelihood.safetensors").exists():
        raise FileError(f"no likelihood was learned with it ({beside}): train --refine does, or name one.")
    posterior = posterior or load(Path(folder) / "posterior.safetensors", prior=prior, device=device)
    likelihood = Likelihood.load(beside / "likelihood.safetensors", prior=prior, device=device)
    found = _pool(beside / POOL, posterior, likelihood)
    power = 1.0 if found is None else found.power
    return Refined(posterior, likelihood, effective=effective, power=power, pool=found)


def keep_pool(refined: Refined, folder: Path) -> None:
    """Write what told the power to the folder of the likelihood's run, for `load_refined`."""
    found = None if refined.pool is None else refined.pool._asdict()
    write_json(folder / POOL, {"pool": found, "weights": _weights(refined.proposal, refined.likelihood)})


def _pool(path: Path, posterior: Posterior, likelihood: Likelihood) -> Pool | None:
    """What told the power, or None where it is 1."""
    if not path.exists():
        missing = f"{path} is missing: the likelihood has a power of 1; train --refine --resume finds the best."
        warnings.warn(missing, stacklevel=3)
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    if kept["weights"] != _weights(posterior, likelihood):
        raise OptionError(
            f"{path} tells the power of a likelihood for another posterior or likelihood: name the likelihood "
            f"({path.parent / 'likelihood.safetensors'}) to use it with a power of 1."
        )
    return None if kept["pool"] is None else Pool(**kept["pool"])


def _weights(posterior: Any, likelihood: Any) -> dict[str, str]:
    """A digest of the weights of each."""
    networks = {"posterior": posterior.network, "likelihood": likelihood.inner.network}
    states = {name: network.state_dict().items() for name, network in networks.items()}
    return {
        name: artifact.digest("", {key: v.cpu().contiguous() for key, v in state}) for name, state in states.items()
    }
