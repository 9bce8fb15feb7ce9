"""The adapters of other libraries, where those are installed: the contract of a method, and the prior's support."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from sbi_dgm import LogNormal, Normal, Parameter, Prior, Uniform
from sbi_dgm.benchmark.methods import called

PEERS = Path(__file__).parents[1] / "benchmarks" / "peers"
PRIOR = Prior([Parameter("a", Uniform(0.1, 0.3)), Parameter("b", LogNormal(0.0, 1.0)), Parameter("c", Normal(0, 1))])


@pytest.fixture(params=["sbi:sbi_npe:npe", "sbi:sbi_npe:npe_sbibm", "lampe:lampe_npe:npe"])
def npe(request, monkeypatch):
    library, module, name = request.param.split(":")
    pytest.importorskip(library)
    monkeypatch.syspath_prepend(str(PEERS))
    return getattr(importlib.import_module(module), name)


def test_a_peer_draws_inside_the_prior_and_has_a_density(npe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    theta = PRIOR.sample(200, seed=1)
    x = {"left": theta[:, 0], "right": theta[:, 1:] + np.random.default_rng(2).normal(size=(200, 2))}
    posterior = called(npe, theta, x, prior=PRIOR, seed=3, device="cpu")
    seen = {"left": np.float64(0.1), "right": x["right"][0]}
    draws = posterior.sample(500, seen, seed=4)
    assert draws.shape == (500, 3)
    assert len(np.unique(draws, axis=0)) == 500
    assert np.isfinite(PRIOR.log_prob(draws)).all()
    assert np.array_equal(draws, posterior.sample(500, seen, seed=4))
    log_q = posterior.log_prob(np.concatenate([draws[:5], [[0.31, 1.0, 0.0]]]), seen)
    assert np.isfinite(log_q[:5]).all()
    assert log_q[5] == -np.inf
    assert not list(tmp_path.iterdir())
