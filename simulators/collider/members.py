"""Many rows of sets: flat, all members behind each other, while they are made; padded when they are done."""

import numpy as np

from sbi_dgm.errors import DataError


def padded(row: np.ndarray, features: tuple[np.ndarray, ...], shape: tuple[int, int]) -> np.ndarray:
    """Members in the sets that they belong to: (B, M, F + 1), whose last feature is 1 for a member, 0 for padding.

    Args:
        row: (n,), the row of each member, ascending.
        features: F arrays (n,).
        shape: B rows and M, the most members that a row has room for.

    Raises:
        DataError: a row has more than M members.

    """
    count = np.bincount(row, minlength=shape[0])
    if count.max(initial=0) > shape[1]:
        full = int(count.argmax())
        raise DataError(f"row {full} has {count[full]} members and room for {shape[1]}: narrow the prior's range.")
    place = np.arange(len(row)) - np.repeat(count.cumsum() - count, count)
    sets = np.zeros((*shape, len(features) + 1))
    for i, feature in enumerate((*features, 1.0)):
        sets[row, place, i] = feature
    return sets
