"""What was learned: known contractions, and warnings where x tells nothing or the prior's edge decides."""

import numpy as np
import pytest

from sbi_dgm.diagnostics.evidence import Evidence
from sbi_dgm.diagnostics.information import information, warned

ROWS, DRAWS = 400, 200


def evidence(draws: np.ndarray, theta: np.ndarray, bounds: np.ndarray | None = None) -> Evidence:
    nothing = np.zeros((len(theta), 1))
    return Evidence(["a"], theta, {"x": nothing}, draws, nothing[:, 0], nothing, bounds)


def normal(noise: float, seed: int = 0) -> Evidence:
    """The exact posterior of theta ~ N(0, 1) given x ~ N(theta, noise^2)."""
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=(ROWS, 1))
    variance = noise**2 / (1 + noise**2)
    mean = (theta + noise * rng.normal(size=theta.shape)) / (1 + noise**2)
    return evidence(mean[:, None] + variance**0.5 * rng.normal(size=(ROWS, DRAWS, 1)), theta)


def test_contraction_recovery_and_errors_are_those_of_normal_theory():
    """Contraction 1 - v with v = 1 / 5, correlation of mean and truth sqrt(1 - v), errors of sd 1."""
    learned = information(normal(0.5)).describe(["a"])["a"]
    assert learned["contraction"] == pytest.approx(0.8, abs=0.02)
    assert learned["recovery"] == pytest.approx(0.8**0.5, abs=0.03)
    assert learned["z_sd"] == pytest.approx(1, abs=4 / (2 * ROWS) ** 0.5)
    assert abs(learned["z_mean"]) < 4 / ROWS**0.5


def words(found: Evidence) -> list[str]:
    return warned(information(found).describe(["a"]), DRAWS)


def test_a_posterior_that_equals_the_prior_is_warned_of_and_no_other():
    (said,) = words(normal(100.0))
    assert "The posterior of a equals the prior" in said
    assert words(normal(1.0)) == []


def test_two_modes_that_x_tells_of_are_no_prior_though_no_variance_is_lost():
    """|theta| is known and its sign is not."""
    rng = np.random.default_rng(1)
    theta = rng.normal(size=(ROWS, 1))
    draws = rng.choice([-1.0, 1.0], (ROWS, DRAWS, 1)) * theta[:, None] + 0.01 * rng.normal(size=(ROWS, DRAWS, 1))
    found = evidence(draws, theta)
    assert abs(information(found).contraction.mean()) < 0.2
    assert words(found) == []


def test_draws_that_pile_up_at_an_edge_are_warned_of_with_the_side():
    rng = np.random.default_rng(2)
    place = rng.uniform(0.01, 0.3, size=(ROWS, 1, 1))
    draws = np.abs(rng.normal(size=(ROWS, DRAWS, 1))) * place
    found = evidence(draws, draws[:, 0], np.array([[0.0], [1.0]]))
    (said,) = words(found)
    assert "The posterior of a piles up at the prior's low edge in" in said
    flat = rng.uniform(size=(ROWS, DRAWS, 1)) * 0.2 + rng.uniform(0, 0.8, size=(ROWS, 1, 1))
    assert words(evidence(flat, flat[:, 0], np.array([[0.0], [1.0]]))) == []
