"""Classifier two-sample test: how well a classifier tells two sets of draws apart; 0.5 is not at all."""

import numpy as np

from sbi_dgm.distributions import Array
from sbi_dgm.errors import DataError


def c2st(reference: Array, draws: Array, *, seed: int = 1, folds: int = 5) -> float:
    """Mean held-out accuracy of a two-layer perceptron of 10 D units a layer.

    Exactly as in sbibm (Lueckmann et al. 2021, arXiv:2101.04653): both sets are standardised by the reference's
    mean and standard deviation, and scikit-learn's `MLPClassifier` runs to its own end in five shuffled folds.
    With 10,000 draws of each, the sampling error of one call is 0.0035. Needs scikit-learn (extra `benchmark`).

    Args:
        reference: (S, D).
        draws: (S, D), as many.
        seed: of folds and classifier; sbibm's is 1.
        folds: of the cross-validation.

    Raises:
        DataError: sets of different shape, or draws that are not finite.
    """
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.neural_network import MLPClassifier

    reference, draws = np.asarray(reference, float), np.asarray(draws, float)
    if reference.shape != draws.shape or reference.ndim != 2:
        raise DataError(f"two sets of equal shape (S, D) are needed; got {reference.shape} and {draws.shape}.")
    if not (np.isfinite(reference).all() and np.isfinite(draws).all()):
        raise DataError("draws that are not finite cannot be compared.")
    mean, sd = reference.mean(0), reference.std(0)
    both = (np.concatenate([reference, draws]) - mean) / sd
    label = np.repeat([0, 1], len(reference))
    width = 10 * reference.shape[1]
    classifier = MLPClassifier((width, width), activation="relu", max_iter=10_000, solver="adam", random_state=seed)
    split = KFold(folds, shuffle=True, random_state=seed)
    return float(cross_val_score(classifier, both, label, cv=split, scoring="accuracy").mean())
