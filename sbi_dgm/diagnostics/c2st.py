"""Classifier two-sample test: how well a classifier tells two sets of draws apart; 0.5 is not at all."""

from typing import Any

import numpy as np

from sbi_dgm.errors import DataError, OptionError
from sbi_dgm.univariate import Array


def c2st(reference: Array, draws: Array, *, seed: int = 1, folds: int = 5) -> float:
    """Mean held-out accuracy of a two-layer perceptron of 10 D units a layer.

    Exactly as in sbibm (Lueckmann et al. 2021, arXiv:2101.04653): both sets are standardised by the reference's
    mean and standard deviation, and scikit-learn's `MLPClassifier` runs to its own end in five shuffled folds.
    With 10,000 draws of each, the sampling error of one call is 0.0035. Needs scikit-learn (extra `benchmark`);
    `c2st_batched` is its faster twin for many observations.

    Args:
        reference: (S, D).
        draws: (S, D), as many.
        seed: of folds and classifier; sbibm's is 1.
        folds: of the cross-validation.

    Raises:
        DataError: sets of different shape, of fewer than `folds` draws, draws that are not finite, or a parameter
            without spread in the reference.
    """
    from sklearn.neural_network import MLPClassifier

    both = standardised(reference, draws, folds)
    width = 10 * both.shape[1]
    classifier = MLPClassifier((width, width), activation="relu", max_iter=10_000, solver="adam", random_state=seed)
    return _cross_validated(classifier, both, seed, folds)


def c2st_forest(reference: Array, draws: Array, *, seed: int = 1, folds: int = 5) -> float:
    """`c2st` with a random forest of 100 trees, scikit-learn's default.

    The score of the sbi package (`sbi.utils.metrics.c2st`) and of papers that use it; not comparable with sbibm's.

    Args:
        reference: (S, D).
        draws: (S, D), as many.
        seed: of folds and classifier.
        folds: of the cross-validation.

    Raises:
        DataError: as `c2st` does.
    """
    from sklearn.ensemble import RandomForestClassifier

    return _cross_validated(
        RandomForestClassifier(random_state=seed), standardised(reference, draws, folds), seed, folds
    )


def standardised(reference: Array, draws: Array, folds: int = 2) -> Array:
    """The two sets of draws (S, D), one after the other (2 S, D), in units of the reference: mean 0, deviation 1.

    >>> standardised(np.array([[1.0], [3.0]]), np.array([[5.0], [2.0]]))[:, 0].tolist()
    [-1.0, 1.0, 3.0, 0.0]
    """
    reference, draws = comparable(reference, draws)
    if folds < 2:
        raise OptionError(f"folds = {folds}: at least 2 are needed.")
    if len(reference) < folds:
        raise DataError(f"{len(reference)} draws in each set: at least as many as folds ({folds}) are needed.")
    constant = np.flatnonzero(np.ptp(reference, axis=0) == 0)
    if len(constant) > 0:
        raise DataError(
            f"parameter {constant[0]} does not vary in the reference: {reference[0, constant[0]]:g} always."
        )
    return (np.concatenate([reference, draws]) - reference.mean(0)) / reference.std(0)


def comparable(reference: Array, draws: Array) -> tuple[Array, Array]:
    """The two sets as numbers, or why they are no sets of draws (S, D) of the same parameters."""
    reference, draws = np.asarray(reference, float), np.asarray(draws, float)
    if reference.shape != draws.shape or reference.ndim != 2 or reference.size == 0:
        raise DataError(f"two sets of equal shape (S, D) are needed; got {reference.shape} and {draws.shape}.")
    if not (np.isfinite(reference).all() and np.isfinite(draws).all()):
        raise DataError("draws that are not finite cannot be compared.")
    return reference, draws


def _cross_validated(classifier: Any, both: Array, seed: int, folds: int) -> float:
    from sklearn.model_selection import KFold, cross_val_score

    label = np.repeat([0, 1], len(both) // 2)
    split = KFold(folds, shuffle=True, random_state=seed)
    return float(cross_val_score(classifier, both, label, cv=split, scoring="accuracy").mean())
