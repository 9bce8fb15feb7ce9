"""What tests of scaling share: a scaler from rows in blocks, and what its numbers should be."""

import numpy as np
import torch

from sbi_dgm import Observable
from sbi_dgm.data.scaling import Statistics


def standardise(name, x, rows, *, block=700, observable=None):
    """The scaler of the given rows, which come in blocks."""
    found = Statistics(name, observable or Observable(x.shape[1:]), len(rows))
    for first in range(0, len(rows), block):
        part = rows[first : first + block]
        found.add(part, x[part])
    return found.scaler(x.dtype)


def bent(s):
    """Logarithms beyond three standard deviations."""
    return np.where(np.abs(s) > 3, np.sign(s) * (3 + np.log1p(np.maximum(np.abs(s) - 3, 0))), s)


def scaled(x, rows=None):
    scaler = standardise("x", x, np.arange(len(x)) if rows is None else rows)
    return scaler, scaler(torch.as_tensor(x)).numpy()


def of_order_one(s):
    """Finite, centred, with a central 68 % of order one and nothing far away."""
    left, right = np.quantile(s, [0.16, 0.84])
    return bool(np.isfinite(s).all() and abs(np.median(s)) < 0.5 and 0.3 < right - left < 5 and np.abs(s).max() < 20)
