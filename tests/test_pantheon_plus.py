"""Magnitudes of supernovae, their summaries and posteriors: of a small sample made up here, then of Pantheon+."""

import hashlib
import importlib.util
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from judging import accuses
from scipy import stats
from scipy.integrate import quad

from sbi_dgm.distributions import Uniform
from sbi_dgm.errors import FileError
from sbi_dgm.priors import Prior
from simulators.cosmology import pantheon_plus
from simulators.cosmology.background import HUBBLE_DISTANCE
from simulators.cosmology.hubble_diagram import Bins, HubbleDiagram, Modes
from simulators.cosmology.pantheon_plus import PantheonPlus, PantheonPlusBinned, PantheonPlusModes

K = 60
TRUTH = np.array([[0.3, -1.0, -19.35]])


def rng(seed=0):
    return np.random.default_rng(seed)


def made_up():
    """K supernovae with statistical errors and two systematics that depend on redshift, and magnitudes at TRUTH."""
    draw = rng(42)
    systematics = 0.02 * np.stack([np.log1p(Z), np.sin(7 * Z)])
    covariance = np.diag(draw.uniform(0.05, 0.1, K) ** 2) + systematics.T @ systematics
    sample = HubbleDiagram(Z, SEEN, np.zeros(K), covariance=lambda: covariance)
    sample.observed["m"] = sample(TRUTH, draw)[0]
    return sample


Z = np.sort(np.expm1(rng(40).uniform(np.log(1.01), np.log(3.2), K)))
SEEN = Z + rng(41).normal(0, 1e-3, K)
SAMPLE = made_up()
M = SAMPLE.observed["m"]


def moments(problem, x, cells=120):
    """Mean and sd of theta by a grid over all of the prior, M in closed form."""
    low, high = (np.asarray(edge) for edge in (problem.prior.coordinates.low, problem.prior.coordinates.high))
    centres = [a + (b - a) * (np.arange(cells) + 0.5) / cells for a, b in zip(low[:2], high[:2], strict=True)]
    grid = np.stack(np.meshgrid(*centres, indexing="ij"), -1).reshape(-1, 2)
    log_weight, mean, scale = problem._marginal(grid, x, low[2], high[2])
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    theta = np.column_stack([grid, mean])
    centre = weight @ theta
    return centre, np.sqrt(weight @ (theta - centre) ** 2 + np.array([0, 0, scale**2]))


# The mean


def check_magnitudes(problem):
    """m by an adaptive integral, over the corners of the prior: to 1e-6 mag."""
    for omega_m, w0 in ((0.3, -1.0), (0.05, -2.0), (0.6, -0.3), (0.05, -0.3), (0.6, -2.0)):

        def slowness(t, omega_m=omega_m, w0=w0):
            return (omega_m * (1 + t) ** 3 + (1 - omega_m) * (1 + t) ** (3 + 3 * w0)) ** -0.5

        distance = np.array([quad(slowness, 0, one, epsrel=1e-11)[0] for one in Z])
        expected = 5 * np.log10((1 + SEEN) * HUBBLE_DISTANCE * distance) + 25 - 19.35
        np.testing.assert_allclose(problem.mean(np.array([[omega_m, w0, -19.35]]))[0], expected, rtol=0, atol=1e-6)


def test_magnitudes_are_the_integral():
    check_magnitudes(SAMPLE)


def test_magnitudes_by_the_corrected_redshift_alone_are_noticed():
    accuses(check_magnitudes, HubbleDiagram(Z, Z, M, covariance=lambda: SAMPLE.covariance))


# Likelihood, noise and posterior


def summaries():
    return [SAMPLE, Bins(SAMPLE, 12), Modes(SAMPLE, 5)]


@pytest.mark.parametrize("problem", summaries(), ids=["all", "bins", "modes"])
def test_the_likelihood_is_scipys_normal(problem):
    theta = SAMPLE.prior.sample(4, seed=0)
    x = M if problem is SAMPLE else problem.matrix @ M
    mean = SAMPLE.mean(theta) if problem is SAMPLE else SAMPLE.mean(theta) @ problem.matrix.T
    c = SAMPLE.covariance if problem is SAMPLE else problem.matrix @ SAMPLE.covariance @ problem.matrix.T
    expected = [stats.multivariate_normal(one, c).logpdf(x) for one in mean]
    np.testing.assert_allclose(problem.log_likelihood(theta, x), expected, rtol=1e-8)


def check_noise(problem, n=10_000):
    """Mean and covariance of draws at one theta, each entry within 5 standard errors."""
    x = problem(np.repeat(TRUTH, n, 0), rng())
    away, c = x - SAMPLE.mean(TRUTH) @ problem.matrix.T, problem.matrix @ SAMPLE.covariance @ problem.matrix.T
    assert (np.abs(away.mean(0)) < 5 * np.sqrt(np.diag(c) / n)).all()
    error = np.sqrt((np.outer(np.diag(c), np.diag(c)) + c**2) / n)
    assert (np.abs(away.T @ away / n - c) < 5 * error).all()


class WithoutSystematics(Bins):
    """Bins whose covariance has lost what is off its diagonal."""

    @property
    def covariance(self):
        return np.diag(np.diag(super().covariance))


@pytest.mark.parametrize("problem", summaries()[1:], ids=["bins", "modes"])
def test_summaries_are_simulated_as_if_from_all_magnitudes(problem):
    check_noise(problem)


def test_bins_without_their_correlations_are_noticed():
    accuses(check_noise, WithoutSystematics(SAMPLE, 12))


@pytest.fixture(scope="module")
def weighted():
    """Mean, sd and kurtosis of 200,000 draws of the prior weighted by the likelihood, and how many count."""
    theta = SAMPLE.prior.sample(200_000, seed=0)
    log_weight = SAMPLE.log_likelihood(theta, M)
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    mean = weight @ theta
    sd = np.sqrt(weight @ (theta - mean) ** 2)
    effective = 1 / (weight**2).sum()
    assert effective > 200
    return mean, sd, weight @ ((theta - mean) / sd) ** 4, effective


def check_posterior(problem, x, weighted, n=4000):
    """Means and sds within 4.5 standard errors."""
    mean, sd, kurtosis, effective = weighted
    draws = problem.reference_posterior(x, n, rng(1), cells=120)
    problem.prior.check(draws)
    assert (np.abs(draws.mean(0) - mean) < 4.5 * sd * np.sqrt(1 / effective + 1 / n)).all()
    assert (np.abs(draws.std(0) / sd - 1) < 4.5 * np.sqrt((kurtosis - 1) / 4 * (1 / effective + 1 / n))).all()


@pytest.mark.parametrize("number", [None, 6], ids=["all", "modes"])
def test_the_posterior_is_the_weighted_prior(number, weighted):
    problem = SAMPLE if number is None else Modes(SAMPLE, number)
    check_posterior(problem, M if number is None else problem.matrix @ M, weighted)


def test_one_mode_beside_that_of_the_offset_is_too_few(weighted):
    problem = Modes(SAMPLE, 2)
    accuses(check_posterior, problem, problem.matrix @ M, weighted)


def test_an_offset_at_the_edge_of_its_prior_is_cut_there():
    problem = made_up()
    *first, last = problem.prior.parameters
    problem.prior = Prior([*first, replace(last, prior=Uniform(-19.7, -19.4))])
    draws = problem.reference_posterior(M, 1000, rng(), cells=60)
    problem.prior.check(draws)
    assert draws[:, 2].max() > -19.401


# Summaries


def test_modes_are_white_and_keep_what_theta_changes():
    problem, (mean, sd) = Modes(SAMPLE, 6), moments(SAMPLE, M)
    np.testing.assert_allclose(problem.covariance, np.eye(6), atol=1e-9)
    lost = {k: np.sqrt((Modes(SAMPLE, k).principal[1][k - 1 :] ** 2).sum()) for k in (2, 6)}
    assert lost[6] < 0.01 < 0.1 < lost[2]
    centre, width = moments(problem, problem.matrix @ M)
    assert np.abs((centre - mean) / sd).max() < 0.01
    assert np.abs(width / sd - 1).max() < 0.01


def test_bins_are_the_means_of_least_variance():
    problem = Bins(SAMPLE, 7)
    members = problem.matrix != 0
    np.testing.assert_allclose(problem.matrix.sum(1), 1, rtol=1e-12)
    assert (members.sum(0) == 1).all()
    assert set(members.sum(1)) == {8, 9}
    assert (np.diff(problem.matrix @ SAMPLE.redshift) > 0).all()
    plain = members / members.sum(1, keepdims=True)
    least, others = (np.einsum("sk,kl,sl->s", w, SAMPLE.covariance, w) for w in (problem.matrix, plain))
    assert (least < others).all()


def test_a_problem_of_supernovae_can_be_sent_to_workers_before_its_covariance_is_read():
    sample = HubbleDiagram(SAMPLE.redshift, SAMPLE.redshift, M, covariance=refusing)
    assert pickle.loads(pickle.dumps(Modes(sample, 3))).size == 3


def refusing():
    raise RuntimeError("read too early")


# The data


def test_without_the_package_its_name_is_told(monkeypatch):
    monkeypatch.setattr(pantheon_plus, "find_spec", lambda _: None)
    pantheon_plus._columns.cache_clear()
    with pytest.raises(FileError, match=r"pip install cosmofit==2\.2\.0"):
        PantheonPlus()


def test_another_file_of_that_name_is_refused(monkeypatch, tmp_path):
    (tmp_path / "cosmofit" / pantheon_plus.FOLDER).mkdir(parents=True)
    (tmp_path / "cosmofit" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "cosmofit" / pantheon_plus.FOLDER / pantheon_plus.TABLE).write_text("zHD zHEL\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "cosmofit", raising=False)
    pantheon_plus._columns.cache_clear()
    with pytest.raises(FileError, match=r"Pantheon\+SH0ES.dat is not the file of cosmofit 2.2.0"):
        PantheonPlus()


real = pytest.mark.skipif(importlib.util.find_spec("cosmofit") is None, reason="the data come with cosmofit")


@real
def test_the_sample_is_that_of_the_paper():
    """1,580 supernovae; what the files have in common with the paper: the least and greatest redshifts."""
    problem = PantheonPlus()
    assert problem.observables["m"].shape == problem.observed["m"].shape == problem.redshift.shape == (1580,)
    assert (problem.redshift.min(), problem.redshift.max()) == (0.01016, 2.26137)
    covariance = problem.covariance
    assert covariance.shape == (1580, 1580)
    np.testing.assert_allclose(covariance, covariance.T, atol=1e-7)
    digest = hashlib.sha256(pantheon_plus._file(pantheon_plus.TABLE).read_bytes()).hexdigest()
    assert digest == pantheon_plus.SHA256[pantheon_plus.TABLE]
    script = "import sys; from simulators.cosmology.pantheon_plus import PantheonPlus as P; P(); print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "cosmofit" not in out


@real
def test_the_posterior_of_pantheon_plus_is_published_and_kept_by_modes():
    """Omega_m = 0.309 +0.063 -0.069, w_0 = -0.90 +- 0.14 (Brout et al. 2022, table 3): medians within half an sd."""
    problem = PantheonPlus()
    draws = problem.reference_posterior(problem.observed["m"], 4000, rng(), cells=150)
    assert abs(np.median(draws[:, 0]) - 0.309) < 0.03
    assert abs(np.median(draws[:, 1]) + 0.90) < 0.05
    np.testing.assert_allclose(draws[:, :2].std(0), [0.066, 0.14], rtol=0.15)
    mean, sd = moments(problem, problem.observed["m"])
    modes, bins = PantheonPlusModes(), PantheonPlusBinned()
    centre, width = moments(modes, modes.observed["s"])
    assert np.abs((centre - mean) / sd).max() < 0.001
    assert np.abs(width / sd - 1).max() < 0.001
    centre, width = moments(bins, bins.observed["s"])
    np.testing.assert_allclose((centre - mean) / sd, [1.05, -1.07, 0.40], atol=0.03)
    np.testing.assert_allclose(width / sd, [1.14, 1.51, 1.23], atol=0.03)
