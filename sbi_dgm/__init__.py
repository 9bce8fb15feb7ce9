"""sbi_dgm: simulation-based inference with deep generative models.

The names below are imported when first used, so that `import sbi_dgm` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sbi_dgm.benchmark.runner import run_benchmark
    from sbi_dgm.benchmark.suite import Suite
    from sbi_dgm.campaign import simulate
    from sbi_dgm.command import CommandSimulator
    from sbi_dgm.companion import load_refined
    from sbi_dgm.data.simulations import Simulations
    from sbi_dgm.data.splits import SplitRule
    from sbi_dgm.distributions import Beta, HalfNormal, LogNormal, LogUniform, Normal, TruncatedNormal, Uniform
    from sbi_dgm.embeddings.compression import PCA
    from sbi_dgm.embeddings.convolutions import CNN, Series
    from sbi_dgm.embeddings.fusion import Fusion
    from sbi_dgm.embeddings.moped import moped
    from sbi_dgm.embeddings.pretrained import pretrained
    from sbi_dgm.embeddings.sets import DeepSets
    from sbi_dgm.embeddings.transformer import SetTransformer, Transformer
    from sbi_dgm.embeddings.vectors import MLP
    from sbi_dgm.errors import SbiError
    from sbi_dgm.estimators.continuous_flow import ContinuousFlow
    from sbi_dgm.estimators.contrastive import Contrastive
    from sbi_dgm.estimators.diffusion import Diffusion
    from sbi_dgm.estimators.flow import Flow
    from sbi_dgm.estimators.flow_matching import FlowMatching
    from sbi_dgm.estimators.located import Located
    from sbi_dgm.estimators.vae import VAE
    from sbi_dgm.likelihood import Likelihood
    from sbi_dgm.parameters import Observable, Parameter
    from sbi_dgm.posterior import Posterior, load
    from sbi_dgm.priors import BoundedPrior, MultivariateNormal, Prior, PriorTransform
    from sbi_dgm.report import calibrate
    from sbi_dgm.samples import Samples
    from sbi_dgm.simulator import Simulator, unbatched
    from sbi_dgm.training import Training, fit

_HOMES = {
    "benchmark.runner": ["run_benchmark"],
    "benchmark.suite": ["Suite"],
    "campaign": ["simulate"],
    "command": ["CommandSimulator"],
    "companion": ["load_refined"],
    "data.simulations": ["Simulations"],
    "data.splits": ["SplitRule"],
    "distributions": ["Beta", "HalfNormal", "LogNormal", "LogUniform", "Normal", "TruncatedNormal", "Uniform"],
    "embeddings.compression": ["PCA"],
    "embeddings.convolutions": ["CNN", "Series"],
    "embeddings.fusion": ["Fusion"],
    "embeddings.moped": ["moped"],
    "embeddings.pretrained": ["pretrained"],
    "embeddings.sets": ["DeepSets"],
    "embeddings.transformer": ["SetTransformer", "Transformer"],
    "embeddings.vectors": ["MLP"],
    "errors": ["SbiError"],
    "estimators.continuous_flow": ["ContinuousFlow"],
    "estimators.contrastive": ["Contrastive"],
    "estimators.diffusion": ["Diffusion"],
    "estimators.flow": ["Flow"],
    "estimators.flow_matching": ["FlowMatching"],
    "estimators.located": ["Located"],
    "estimators.vae": ["VAE"],
    "likelihood": ["Likelihood"],
    "parameters": ["Observable", "Parameter"],
    "posterior": ["Posterior", "load"],
    "priors": ["BoundedPrior", "MultivariateNormal", "Prior", "PriorTransform"],
    "report": ["calibrate"],
    "samples": ["Samples"],
    "simulator": ["Simulator", "unbatched"],
    "training": ["Training", "fit"],
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "CNN",
    "MLP",
    "PCA",
    "VAE",
    "Beta",
    "BoundedPrior",
    "CommandSimulator",
    "ContinuousFlow",
    "Contrastive",
    "DeepSets",
    "Diffusion",
    "Flow",
    "FlowMatching",
    "Fusion",
    "HalfNormal",
    "Likelihood",
    "Located",
    "LogNormal",
    "LogUniform",
    "MultivariateNormal",
    "Normal",
    "Observable",
    "Parameter",
    "Posterior",
    "Prior",
    "PriorTransform",
    "Samples",
    "SbiError",
    "Series",
    "SetTransformer",
    "Simulations",
    "Simulator",
    "SplitRule",
    "Suite",
    "Training",
    "Transformer",
    "TruncatedNormal",
    "Uniform",
    "calibrate",
    "fit",
    "load",
    "load_refined",
    "moped",
    "pretrained",
    "run_benchmark",
    "simulate",
    "unbatched",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"sbi_dgm.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
