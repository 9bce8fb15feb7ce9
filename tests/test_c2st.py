"""Classifier two-sample tests: known accuracies; the batched twin takes scikit-learn's own steps, and no others."""

from math import sqrt

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold
from sklearn.neural_network import MLPClassifier

from sbi_dgm.diagnostics import c2st_batched as twin
from sbi_dgm.diagnostics.c2st import c2st, c2st_forest, standardised
from sbi_dgm.diagnostics.c2st_batched import Networks, c2st_batched
from sbi_dgm.errors import DataError, OptionError

ROWS, EARLY = 251, 5  # 502 rows fall into folds of 101 and 100; epochs that are compared number by number


def pairs(dims: int, count: int = 3, rows: int = ROWS, shift: float = 0.5, width: float = 1.3) -> tuple:
    """(B, S, D) of N(0, 1) and of N(shift, width^2) in the first parameter."""
    rng = np.random.default_rng(dims)
    reference, draws = rng.normal(size=(2, count, rows, dims))
    draws[..., 0] = shift + width * draws[..., 0]
    return reference, draws


def classifier(dims: int, max_iter: int = 10_000, rate: float = 1e-3) -> MLPClassifier:
    return MLPClassifier((10 * dims, 10 * dims), max_iter=max_iter, learning_rate_init=rate, random_state=1)


def training_set(dims: int, rows: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    reference, draws = pairs(dims, 1, rows)
    return standardised(reference[0], draws[0]), np.repeat([0, 1], rows)


def trained(dims: int, rows: int = ROWS, dtype=torch.float64) -> tuple[list[float], Networks]:
    """Loss of each epoch and last weights of a network on `training_set`."""
    x, y = training_set(dims, rows)
    data = torch.as_tensor(np.column_stack([x, 2 * y - 1])[:, None], dtype=dtype)
    losses, epoch = [], Networks.epoch

    def recorded(self, *rest):
        found = epoch(self, *rest)
        losses.append(float(found[0]))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Networks, "epoch", recorded)
        ((_, network),) = twin.train(data, seed=1)
    return losses, network


@pytest.mark.parametrize(("rows", "folds", "seed"), [(502, 5, 1), (500, 5, 1), (23, 7, 3), (10, 2, 0)])
def test_folds_are_those_of_scikit_learn(rows, folds, seed):
    theirs = [test for _, test in KFold(folds, shuffle=True, random_state=seed).split(np.zeros((rows, 1)))]
    ours = twin.fold_rows(rows, folds, seed)
    assert len(ours) == len(theirs)
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    other = twin.fold_rows(rows, folds, seed + 1)
    assert not all(np.array_equal(a, b) for a, b in zip(other, theirs, strict=True))


@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_initial_weights_are_those_of_scikit_learn(dims):
    """Read off a classifier that does not move."""
    x, y = training_set(dims)
    still = classifier(dims, max_iter=1, rate=1e-300).fit(x, y)
    theirs = [np.atleast_2d(w) for pair in zip(still.coefs_, still.intercepts_, strict=True) for w in pair]
    for ours, expected in zip(twin.initial(dims, np.random.RandomState(1)), theirs, strict=True):
        np.testing.assert_array_equal(ours, expected)


def check_early(dims: int, rows: int = ROWS, dtype=torch.float64, tolerance: float = 1e-11) -> None:
    """Losses of the first epochs, and the weights after them, are scikit-learn's."""
    x, y = training_set(dims, rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(twin, "EPOCHS", EARLY)
        losses, network = trained(dims, rows, dtype)
    with pytest.warns(ConvergenceWarning):
        theirs = classifier(dims, max_iter=EARLY).fit(x, y)
    np.testing.assert_allclose(losses, theirs.loss_curve_, rtol=tolerance)
    for ours, weights in zip(network.parameters[::2], theirs.coefs_, strict=True):
        np.testing.assert_allclose(ours[0].numpy(), weights, atol=100 * tolerance)
    for ours, intercepts in zip(network.parameters[1::2], theirs.intercepts_, strict=True):
        np.testing.assert_allclose(ours[0, 0].numpy(), intercepts, atol=100 * tolerance)


@pytest.mark.parametrize(("dims", "rows"), [(1, ROWS), (2, 60), (3, 500), (10, ROWS)])
def test_the_first_epochs_are_those_of_scikit_learn(dims, rows):
    """Also for fewer rows than a batch (120), and where batches divide the rows (1000)."""
    check_early(dims, rows)
    check_early(dims, rows, torch.float32, 1e-6)


def uncorrected(self: Networks) -> None:
    """Adam without its correction for bias."""
    value, first, second = self.state
    first.lerp_(self.gradient, 1 - twin.BETA1)
    second.mul_(twin.BETA2).addcmul_(self.gradient, self.gradient, value=1 - twin.BETA2)
    value.addcdiv_(first, second.sqrt() + twin.EPSILON, value=-twin.RATE)


def textbook(self: Networks) -> None:
    """Adam with epsilon beside the corrected moment, as in the paper's algorithm 1 and in torch."""
    value, first, second = self.state
    self.steps += 1
    first.lerp_(self.gradient, 1 - twin.BETA1)
    second.mul_(twin.BETA2).addcmul_(self.gradient, self.gradient, value=1 - twin.BETA2)
    scale = (second / (1 - twin.BETA2**self.steps)).sqrt() + twin.EPSILON
    value.addcdiv_(first, scale, value=-twin.RATE / (1 - twin.BETA1**self.steps))


@pytest.mark.parametrize(
    ("owner", "name", "wrong"),
    [
        (Networks, "descend", uncorrected),
        (Networks, "descend", textbook),
        (twin, "L2", 0.0),
        (twin, "L2", 1e-4 * 200),
        (twin, "BATCH", 100),
        (twin, "RATE", 1.001e-3),
        (twin, "EPSILON", 1e-7),
    ],
)
def test_a_wrong_twin_is_told_apart(monkeypatch, owner, name, wrong):
    monkeypatch.setattr(owner, name, wrong)
    with pytest.raises(AssertionError):
        check_early(2)


def check_end(dims: int) -> None:
    x, y = training_set(dims)
    theirs = classifier(dims).fit(x, y)
    losses, _ = trained(dims)
    assert len(losses) == theirs.n_iter_
    np.testing.assert_allclose(losses, theirs.loss_curve_, rtol=1e-6)


@pytest.mark.parametrize("dims", [1, 2])
def test_it_stops_in_the_epoch_in_which_scikit_learn_does(dims):
    check_end(dims)
    for name, wrong in (("PATIENCE", 9), ("TOLERANCE", 2e-4), ("TOLERANCE", 0.0)):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(AssertionError):  # noqa: PT012
            patch.setattr(twin, name, wrong)
            check_end(dims)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_exact_twin_has_scikit_learns_score(dims):
    """Of several observations, in folds of two sizes; one row told otherwise would change it by 0.002."""
    reference, draws = pairs(dims)
    ours = c2st_batched(reference, draws, exact=True)
    np.testing.assert_allclose(ours, [c2st(*pair) for pair in zip(reference, draws, strict=True)], rtol=1e-12)


def test_the_seed_and_the_folds_are_scikit_learns_too():
    (reference,), (draws,) = pairs(2, 1)
    ours = c2st_batched(reference[None], draws[None], seed=7, folds=3, exact=True)[0]
    assert ours == pytest.approx(c2st(reference, draws, seed=7, folds=3), rel=1e-12)
    assert ours != c2st_batched(reference[None], draws[None], seed=8, folds=3, exact=True)[0]


def test_float32_differs_by_another_path_alone():
    """Scores of 12 cases of 1002 rows differ on the way, but not on average: 4 standard errors."""
    reference, draws = pairs(2, 12, rows=501)
    gap = c2st_batched(reference, draws) - c2st_batched(reference, draws, exact=True)
    assert np.abs(gap).max() < 0.02
    assert abs(gap.mean()) < 4 * max(gap.std(), 0.001) / sqrt(12)


def test_a_score_does_not_depend_on_the_company(monkeypatch):
    """Alone, with others in any order, in chunks: to the last digit in float64."""
    reference, draws = pairs(2, 4)
    draws[1] += 3  # stops early
    together = c2st_batched(reference, draws, exact=True)
    alone = [c2st_batched(reference[i, None], draws[i, None], exact=True)[0] for i in range(4)]
    np.testing.assert_allclose(together, alone, rtol=1e-12)
    np.testing.assert_allclose(c2st_batched(reference[::-1], draws[::-1], exact=True), together[::-1], rtol=1e-12)
    monkeypatch.setattr(twin, "MEMORY", 1)
    np.testing.assert_allclose(c2st_batched(reference, draws, exact=True), alone, rtol=1e-12)
    assert len(set(alone)) == 4


@pytest.mark.parametrize("score", [c2st, lambda p, q: c2st_batched(p[None], q[None])[0], c2st_forest])
@pytest.mark.parametrize("shift", [0.0, 2.0])
def test_normals_apart_are_told_by_half_their_distance(score, shift):
    """Accuracy Phi(shift / 2), less what a fitted classifier loses; 4 standard errors on 2,000 rows."""
    reference, draws = np.random.default_rng(3).normal(size=(2, 1000, 1))
    found, best = score(reference, draws + shift), norm.cdf(shift / 2)
    error = 4 * sqrt(best * (1 - best) / 2000)
    assert best - error - (0.07 if score is c2st_forest else 0.02) < found < best + error


def test_units_of_the_parameters_do_not_matter():
    reference, draws = pairs(2, 1)
    scaled = c2st_batched(reference * [1e6, 1e-6], draws * [1e6, 1e-6], exact=True)
    assert scaled[0] == pytest.approx(c2st_batched(reference, draws, exact=True)[0], abs=0.02)


def test_no_global_state_is_touched():
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    legacy = str(np.random.get_state())  # noqa: NPY002
    c2st_batched(*pairs(1, 1, rows=20))
    assert str(np.random.get_state()) == legacy  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def changed(index: tuple, value: float, dims: int = 2) -> tuple[np.ndarray, np.ndarray]:
    reference, draws = pairs(dims, 2, rows=20)
    reference[index] = value
    return reference, draws


@pytest.mark.parametrize(
    ("reference", "draws", "match"),
    [
        (*pairs(2, 2, rows=4), "observation 0: 4 draws in each set: at least as many as folds"),
        (*changed((1, 3, 0), np.nan), "observation 1: draws that are not finite"),
        (*changed((1, 3, 0), np.inf), "observation 1: draws that are not finite"),
        (*changed((1, slice(None), 1), 0.1), "observation 1: parameter 1 does not vary in the reference: 0.1"),
        (pairs(2)[0], pairs(2)[1][:, :-1], r"\(B, S, D\) are needed; got \(3, 251, 2\) and \(3, 250, 2\)"),
        (pairs(2)[0][0], pairs(2)[1][0], r"\(B, S, D\) are needed"),
        (pairs(2)[0][:0], pairs(2)[1][:0], r"\(B, S, D\) are needed"),
    ],
)
def test_sets_that_cannot_be_compared_are_refused(reference, draws, match):
    with pytest.raises(DataError, match=match):
        c2st_batched(reference, draws)


@pytest.mark.parametrize("score", [c2st, c2st_forest])
def test_one_observation_is_refused_for_the_same_reasons(score):
    reference, draws = changed((1, slice(None), 1), 0.1)
    with pytest.raises(DataError, match="parameter 1 does not vary"):
        score(reference[1], draws[1])
    with pytest.raises(DataError, match=r"\(S, D\) are needed"):
        score(reference, draws)
    with pytest.raises(DataError, match="at least as many as folds"):
        score(reference[0, :4], draws[0, :4])
    with pytest.raises(OptionError, match="folds = 1"):
        score(reference[0], draws[0], folds=1)


def test_draws_beyond_float32_are_refused_and_not_waited_for():
    reference, draws = pairs(1, 1, rows=20)
    draws[0, 0] = 1e200
    with pytest.raises(DataError, match="too far from the reference"):
        c2st_batched(reference, draws)
