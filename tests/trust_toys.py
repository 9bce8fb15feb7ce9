"""How often a gate flags."""

import numpy as np
from scipy.stats import betabinom

from sbi_dgm.trust import Gate


def check_rate(flagged: np.ndarray, by: Gate) -> None:
    """Within the central 99.8 % of the beta-binomial of n simulations."""
    n = len(by.scores)
    k = round(by.level * (n + 1))
    low, high = betabinom.ppf([0.001, 0.999], len(flagged), k, n + 1 - k)
    assert low <= flagged.sum() <= high, flagged.mean()
