"""Distances against closed forms for normals, at tolerances of their sampling error; a wrong case must fail."""

from math import gamma, pi, sqrt

import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist
from scipy.stats import norm

from sbi_dgm.diagnostics import distances
from sbi_dgm.diagnostics.calibration import calibration_error
from sbi_dgm.errors import DataError

S = 3000


def normals(dims: int, seed: int = 0, shift: float = 0.0, width: float = 1.0, rows: int = S) -> tuple:
    reference, draws = np.random.default_rng(seed).normal(size=(2, rows, dims))
    return reference, shift + width * draws


def kernel_mean(variance: float, shift: float, dims: int, scale: float) -> float:
    """E exp(-|a|^2 / 2 s^2) for a ~ N(shift, variance I): (s^2 / (s^2 + v))^(D/2) exp(-D shift^2 / 2 (s^2 + v))."""
    total = scale**2 + variance
    return (scale**2 / total) ** (dims / 2) * np.exp(-dims * shift**2 / (2 * total))


def check_mmd(dims: int, shift: float, width: float, *, factor: float = 1.0) -> None:
    """The mean over 20 sets of 500; `factor` misjudges the bandwidth."""
    pair = [normals(dims, seed, shift, width, 500) for seed in range(20)]
    found = np.array([distances.mmd(*sets) for sets in pair])
    scale = factor * float(np.mean([np.median(pdist(p)) for p, _ in pair]))
    moments = ((2.0, 0.0), (2 * width**2, 0.0), (1 + width**2, shift))
    same, other, between = (kernel_mean(v, m, dims, scale) for v, m in moments)
    assert abs(found.mean() - (same + other - 2 * between)) < 4 * found.std(ddof=1) / sqrt(20)


@pytest.mark.parametrize(("dims", "shift", "width"), [(1, 0.0, 1.0), (1, 1.0, 1.0), (3, 0.5, 1.5), (5, 0.0, 2.0)])
def test_mmd_of_normals(dims, shift, width):
    check_mmd(dims, shift, width)
    if shift or width > 1:
        with pytest.raises(AssertionError):
            check_mmd(dims, shift, width, factor=0.5)


def test_mmd_is_the_formula_whatever_the_blocks(monkeypatch):
    p, q = normals(2, shift=0.3, rows=101)
    scale, n = np.sort(pdist(p))[(len(pdist(p)) - 1) // 2], len(p)
    inner, outer, between = (np.exp(-(cdist(a, b) ** 2) / (2 * scale**2)).sum() for a, b in ((p, p), (q, q), (p, q)))
    expected = (inner + outer - 2 * n) / (n * (n - 1)) - 2 * between / n**2
    assert distances.mmd(p, q) == pytest.approx(expected, rel=1e-6)
    assert distances.mmd(p, q) != pytest.approx((inner + outer - 2 * between) / n**2, rel=1e-2), "biased"
    monkeypatch.setattr(distances, "BLOCK", 7)
    assert distances.mmd(p + 1e3, q + 1e3) == pytest.approx(expected, rel=1e-6)


def test_mmd_of_equal_distributions_is_zero_on_average_and_may_be_negative():
    found = np.array([distances.mmd(*normals(2, seed, rows=200)) for seed in range(60)])
    assert abs(found.mean()) < 4 * found.std() / sqrt(60)
    assert (found < 0).any()


def check_sliced(dims: int, shift: float, factor: float = 1.0) -> None:
    """E |w . m| = |m| Gamma(D / 2) / (sqrt(pi) Gamma((D + 1) / 2)) over directions, within the error of 2,000."""
    p, q = normals(dims, shift=shift)
    found = distances.sliced_wasserstein(p, q, rng=np.random.default_rng(1), projections=2000)
    size = shift * sqrt(dims) * gamma(dims / 2) / (sqrt(pi) * gamma((dims + 1) / 2)) * factor
    assert abs(found - size) < 4 * size / sqrt(2000) + 4 * sqrt(2 * dims / S)


@pytest.mark.parametrize("dims", [1, 2, 5])
def test_sliced_wasserstein_of_shifted_normals(dims):
    check_sliced(dims, shift=5.0)
    with pytest.raises(AssertionError):
        check_sliced(dims, shift=5.0, factor=1.2)


def test_sliced_wasserstein_of_wider_normals():
    """(width - 1) E |N(0, 1)| in each direction."""
    p, q = normals(3, width=3.0)
    found = distances.sliced_wasserstein(p, q, rng=np.random.default_rng(0))
    assert found == pytest.approx(2 * sqrt(2 / pi), abs=4 * 3 / sqrt(S))


def test_sliced_wasserstein_of_equal_distributions_is_as_small_as_said():
    found = [
        distances.sliced_wasserstein(*normals(2, seed, rows=500), rng=np.random.default_rng(0)) for seed in range(50)
    ]
    assert np.mean(found) == pytest.approx(1.8 / sqrt(500), rel=0.1)


def test_units_matter_to_no_standardised_distance():
    p, q = normals(2, shift=0.3, width=1.2)
    unit = np.array([1e5, 1e-5])
    for distance in (
        lambda a, b: distances.sliced_wasserstein(a, b, rng=np.random.default_rng(0)),
        distances.mean_error,
        distances.variance_ratio,
    ):
        np.testing.assert_allclose(distance(p * unit + 3, q * unit + 3), distance(p, q), rtol=1e-6)


def test_mean_error_does_not_cancel():
    """Shifts of +0.5 and -0.5 are 0.5, within the error of a mean."""
    p, q = normals(2)
    assert distances.mean_error(p, q + np.array([0.5, -0.5])) == pytest.approx(0.5, abs=4 * sqrt(2 / S))
    assert distances.mean_error(p, q) < 4 * sqrt(2 / S)


def test_variance_ratio_is_the_square_of_the_width():
    p, q = normals(3, width=1.5)
    error = 4 * sqrt(4 / S)
    np.testing.assert_allclose(distances.variance_ratio(p, q), 2.25, rtol=error)
    np.testing.assert_allclose(distances.variance_ratio(p, q * [1, 2, 3] / 1.5), [1, 4, 9], rtol=error)


def check_kl(wrong: float = 0.0) -> None:
    """N(0, 1) against N(m, w^2): ln w + (1 + m^2) / 2 w^2 - 1/2, within 4 of its own standard errors."""
    mean, width = 0.5, 2.0
    theta = np.random.default_rng(5).normal(size=S)
    found, error = distances.kl_divergence(norm.logpdf(theta), norm.logpdf(theta, mean, width))
    expected = np.log(width) + (1 + mean**2) / (2 * width**2) - 0.5 + wrong
    assert abs(found - expected) < 4 * error
    assert error < 0.02


def test_kl_of_normals():
    check_kl()
    with pytest.raises(AssertionError):
        check_kl(wrong=0.1)


def test_kl_is_infinite_where_a_draw_is_excluded():
    assert distances.kl_divergence(np.zeros(3), np.array([0.0, -np.inf, 0.0])) == (np.inf, np.inf)
    for log_p, log_q in (([0.0, np.nan], [0, 0]), ([0, -np.inf], [0, 0]), ([0, 0], [0, np.inf]), ([0], [0])):
        with pytest.raises(DataError):
            distances.kl_divergence(np.array(log_p), np.array(log_q))


def test_predictive_distance_is_the_median_norm():
    """|N(0, I_2)| is Rayleigh: median sqrt(2 ln 2), whatever the observation's shape."""
    x = np.random.default_rng(0).normal(size=(S, 1, 2))
    found = distances.predictive_distance(7 + x, np.full((1, 2), 7.0))
    assert found == pytest.approx(sqrt(2 * np.log(2)), abs=4 * 0.85 / sqrt(S))
    with pytest.raises(DataError, match=r"\(S, \*\(2,\)\) are needed; got \(3000, 1, 2\)"):
        distances.predictive_distance(x, np.zeros(2))
    with pytest.raises(DataError, match="not finite"):
        distances.predictive_distance(x * np.nan, np.zeros((1, 2)))


def test_effective_draws_of_repeated_rows():
    """All distinct: all count. n draws with replacement of n: (1 - 1/e) n distinct, worth n / 2."""
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(S, 2))
    assert distances.effective_draws(draws) == (S, S)
    distinct, effective = distances.effective_draws(draws[rng.integers(S, size=S)])
    assert distinct == pytest.approx((1 - np.exp(-1)) * S, rel=0.05)
    assert effective == pytest.approx(S / 2, rel=0.1)
    assert distances.effective_draws(np.zeros((S, 2))) == (1, 1.0)


def test_calibration_error_is_the_area_between():
    """Against a fine sum; and of ranks that are all below 1/2, the integral of |F - t| = 1/4."""
    u = np.random.default_rng(0).beta(0.5, 0.8, 40)
    t = (np.arange(200_000) + 0.5) / 200_000
    area = np.abs((np.sort(u).searchsorted(t)) / 40 - t).mean()
    assert calibration_error(u) == pytest.approx(area, abs=1e-4)
    assert calibration_error((np.arange(1000) + 0.5) / 2000) == pytest.approx(0.25, abs=1e-3)


@pytest.mark.parametrize("rows", [50, 500])
def test_calibration_error_of_calibrated_ranks_is_as_said(rows):
    u = np.random.default_rng(0).uniform(size=(2000, rows))
    found = np.array([calibration_error(row) for row in u])
    expected = sqrt(2 * pi / rows) / 8
    assert found.mean() == pytest.approx(expected, rel=0.04)
    assert np.mean([calibration_error(row**1.3) for row in u]) > 1.2 * expected


@pytest.mark.parametrize("name", ["mmd", "mean_error", "variance_ratio", "sliced_wasserstein"])
def test_sets_that_cannot_be_compared_are_refused(name):
    def distance(p, q):
        given = {"rng": np.random.default_rng(0)} if name == "sliced_wasserstein" else {}
        return getattr(distances, name)(p, q, **given)

    p, q = normals(2, rows=10)
    with pytest.raises(DataError, match="equal shape"):
        distance(p, q[:-1])
    with pytest.raises(DataError, match="not finite"):
        distance(p, q * np.nan)
    with pytest.raises(DataError, match="equal shape"):
        distance(p[:0], q[:0])
    with pytest.raises(DataError, match=r"does not vary|are equal"):
        distance(p * 0, q)
    with pytest.raises(DataError, match=r"one draw|at least"):
        distance(p[:1], q[:1])
