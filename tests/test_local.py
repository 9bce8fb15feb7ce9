"""The local test: small p-values where the posterior is wrong, and not where it is right."""

import numpy as np
import pytest
from scipy.stats import kstest

from sbi_dgm.diagnostics import local as module
from sbi_dgm.diagnostics.evidence import Evidence
from sbi_dgm.diagnostics.local import local
from sbi_dgm.samples import Samples


class Half:
    """theta ~ N(0, 1), x ~ N(theta, 1): right where x < 0, and where x > 0 too high by `shift`."""

    names = ("a",)

    def __init__(self, shift: float) -> None:
        self.shift = shift

    def sample(self, n, x, *, seed=None, log_prob=False):
        rng = np.random.default_rng(seed)
        mean = x["x"] / 2 + np.where(x["x"] > 0, self.shift, 0.0)
        return Samples(mean[:, None] + 0.5**0.5 * rng.normal(size=(len(mean), n, 1)), ())


def p_values(shift: float, at: list[float], seed: int = 0, rows: int = 500) -> np.ndarray:
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=(rows, 1))
    x = {"x": theta + rng.normal(size=(rows, 1))}
    posterior = Half(shift)
    draws = posterior.sample(20, x, seed=seed).array
    evidence = Evidence(["a"], theta, x, draws, np.zeros(rows), np.zeros((rows, 20)))
    return local(evidence, posterior, {"x": np.array(at)[:, None]}, np.random.default_rng(seed + 1)).p_value


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(module, "PERMUTATIONS", 40)
    monkeypatch.setattr(module, "EPOCHS", 15)


@pytest.mark.usefixtures("few")
def test_it_says_where_the_posterior_is_wrong():
    right, wrong = p_values(1.0, [-1.5, 1.5])
    assert wrong == pytest.approx(1 / 41)
    assert right > 3 / 41


@pytest.mark.usefixtures("few")
def test_p_values_of_an_exact_posterior_are_uniform():
    found = np.array([p_values(0.0, [0.5], seed, rows=200)[0] for seed in range(40)])
    assert kstest(found, "uniform").pvalue > 1e-3
