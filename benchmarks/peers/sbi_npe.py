"""Neural posterior estimation by sbi 0.27 (https://sbi.readthedocs.io), as methods of the benchmark.

    sbi-dgm benchmark --tasks two_moons --estimators flow,sbi_npe:npe --budgets 1000 -o results

run in this folder. `npe` has sbi's defaults, `npe_sbibm` the settings of sbibm's published NPE column.
"""

from typing import Any

import numpy as np
import torch
from sbi.inference import NPE
from sbi.inference.posteriors.posterior_parameters import DirectPosteriorParameters
from sbi.neural_nets import posterior_nn
from torch_side import TorchPrior, flat, one, seeded

from sbi_dgm import Prior


def npe(theta: np.ndarray, x: Any, *, prior: Prior, seed: int) -> "SbiPosterior":
    """sbi's `NPE` as it comes.

    A masked autoregressive flow of 5 transforms with 50 features, theta and x standardised; Adam with rate 5e-4 on
    batches of 200, gradients clipped at norm 5; a tenth of the rows held out, and the best weights on them kept where
    20 epochs brought nothing better (sbi 0.27: `NPE`, `posterior_nn`, `train`).
    """
    return _trained(theta, x, prior, seed, "maf")


def npe_sbibm(theta: np.ndarray, x: Any, *, prior: Prior, seed: int) -> "SbiPosterior":
    """NPE as sbibm ran it for its published column (Lueckmann et al. 2021, arXiv:2101.04653).

    Settings as in sbibm/algorithms/sbi/snpe.py and in benchmarking_sbi/config/algorithm/npe.yaml of
    github.com/sbi-benchmark/results: a neural spline flow with 50 hidden features, theta and x standardised, training
    batches of 10,000, which is all rows at once up to 11,000 simulations; sbibm's automatic transforms were off, so
    networks learn theta itself. The rest sbibm left to sbi, as is done here: in sbi 0.27 that is 5 transforms of 10
    bins, Adam with rate 5e-4, a tenth held out, the end after 20 epochs without gain, draws outside the prior rejected.

    Not matched: sbi's version, which the published results do not name, and with it random numbers and perhaps
    defaults; and sbibm drew simulations and trained anew for each of the ten observations, where here one network of
    one set of simulations sees all ten, so that the mean over observations varies more from seed to seed.
    """
    return _trained(theta, x, prior, seed, posterior_nn("nsf", hidden_features=50), training_batch_size=10_000)


def _trained(theta: np.ndarray, x: Any, prior: Prior, seed: int, network: Any, **training: Any) -> "SbiPosterior":
    with seeded(seed):
        trainer = NPE(TorchPrior(prior), density_estimator=network, show_progress_bars=False, tracker=_Nowhere())
        trainer.append_simulations(torch.as_tensor(theta).float(), flat(x)).train(**training)
        without_map = DirectPosteriorParameters(enable_transform=False)  # whose change of variables needs a `support`
        return SbiPosterior(trainer.build_posterior(posterior_parameters=without_map))


class SbiPosterior:
    """sbi's posterior in the words of the benchmark.

    Args:
        posterior: a `DirectPosterior`.

    """

    def __init__(self, posterior: Any) -> None:
        self.posterior = posterior

    def sample(self, n: int, x: Any, seed: int = 0) -> np.ndarray:
        """Draws (n, D) inside the prior."""
        with seeded(seed):
            return self.posterior.sample((n,), x=one(x), show_progress_bars=False).double().numpy()

    def log_prob(self, theta: np.ndarray, x: Any) -> np.ndarray:
        """ln q of theta (S, D), (S,), normalised within the prior: sbi measures the leak by 10,000 draws."""
        with seeded(0):
            return self.posterior.log_prob(torch.as_tensor(theta).float(), x=one(x)).double().numpy()


class _Nowhere:
    """A tracker that keeps nothing; sbi's own writes a folder of logs for each training."""

    log_dir = None

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None
