"""The gate at an observation, against known distributions: how often it flags, what it sees, and what it names."""

import re
import warnings

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import chi2, kstest
from trust_toys import check_rate

from sbi_dgm.data.vectors import View
from sbi_dgm.outliers import Cloud
from sbi_dgm.parameters import Observable
from sbi_dgm.trust import Gate, Trust
from simulators.cosmology.supernovae import Supernovae

L = 20
NOISE = np.eye(L) + 100.0  # a common offset of sd 10 and noise of sd 1: any two numbers are correlated by 0.99
FACTOR = np.linalg.cholesky(NOISE)


def drawn(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, L)) @ FACTOR.T


def straight(shape: tuple[int, ...] = (L,), kind: str = "array") -> View:
    return View("x", Observable(shape, kind=kind), np.array(False), np.array(0.0), np.array(1.0))


def gate(train: np.ndarray, validation: np.ndarray, view: View | None = None) -> Gate:
    view = view or straight()
    return Gate.fit([view], (view(train), None), [({"x": validation}, validation[:, :0])])


def judged(by: Gate, x: np.ndarray) -> Trust:
    return by({"x": x}, np.empty((len(x), 0)))


GATE = gate(drawn(4000, 1), drawn(1999, 2))


def check_uniform(calibrate: np.ndarray, cloud: Cloud, n: int = 99, repetitions: int = 400) -> None:
    """One fresh observation for each set of n simulations: p is uniform on 1 / (n + 1), ..., 1."""
    rng, fresh = np.random.default_rng(0), drawn(repetitions, 3)
    view, p = straight(), []
    for i in range(repetitions):
        scores = np.max(cloud.surprise(calibrate[rng.choice(len(calibrate), n, replace=False)]), axis=0)
        p.append(judged(Gate([view], {"x": cloud}, np.sort(scores)), fresh[i : i + 1]).p_value[0])
    assert kstest(np.array(p) - rng.uniform(size=repetitions) / (n + 1), "uniform").pvalue > 1e-4


def test_p_values_are_uniform_even_where_the_cloud_is_badly_known():
    few = drawn(120, 4)
    cloud = Cloud.fit(few)
    check_uniform(drawn(400 * 99, 5), cloud)
    with pytest.raises(AssertionError):
        check_uniform(few, cloud)  # the rows that it was fitted to


def test_observations_like_the_simulations_are_flagged_at_the_stated_rate():
    assert GATE.level == 0.01
    fresh = drawn(4000, 3)
    check_rate(judged(GATE, fresh).flagged, GATE)
    with pytest.raises(AssertionError):
        check_rate(judged(GATE, 1.2 * fresh).flagged, GATE)


def test_few_simulations_flag_what_none_of_them_reaches():
    few = gate(drawn(400, 1), drawn(20, 2))
    assert few.level == 1 / 21
    trust = judged(few, np.concatenate([np.zeros((1, L)), np.full((1, L), 1e3)]))
    assert trust.flagged.tolist() == [False, True]
    assert trust.p_value[1] == 1 / 21


def numbers(trust: Trust) -> list[float]:
    """Those in the first sentence."""
    return [float(number) for number in re.findall(r"\d+\.?\d*", trust.reason[0])]


def each_by_itself() -> Gate:
    """The twin that knows no correlations."""
    cloud = Cloud({**GATE.clouds["x"].arrays, "maps": np.hstack([np.eye(L), np.eye(L)])})
    return Gate([straight()], {"x": cloud}, np.sort(np.max(cloud.surprise(drawn(1999, 2)), axis=0)))


EACH_BY_ITSELF = each_by_itself()


def check_named(trust: Trust, entry: int) -> None:
    assert trust.flagged.all()
    assert all(f"x[{entry}] is " in reason for reason in trust.reason)


def test_one_number_that_is_off_by_five_sd_of_its_noise_is_named_though_alone_it_is_ordinary():
    """r = 5 sqrt(P_ii), with P_ii = 1 - 1 / (L + 1 / 100), but for the error of an sd from 3,200 rows."""
    x = np.zeros((1, L))
    x[0, 7] = 5.0
    assert abs(x / np.sqrt(np.diag(NOISE))).max() < 0.5
    check_named(judged(GATE, x), 7)
    assert numbers(judged(GATE, x))[1] == pytest.approx(5 * (1 - 1 / (L + 0.01)) ** 0.5, rel=4 * (2 * 3200) ** -0.5)
    with pytest.raises(AssertionError):
        check_named(judged(EACH_BY_ITSELF, x), 7)


def test_many_numbers_that_are_off_together_show_in_the_distance():
    x = 2.5 * np.where(np.arange(L) % 2, 1.0, -1.0)[None]
    trust = judged(GATE, x)
    assert trust.flagged.all()
    assert trust.reason[0].startswith("x as a whole is ")
    assert numbers(trust)[:2] == pytest.approx([2.5 * L**0.5, chi2.median(L) ** 0.5], rel=4 * (2 * 3200) ** -0.5)


def test_a_number_that_never_varied_and_now_does_is_flagged():
    train, validation = drawn(1000, 1), drawn(500, 2)
    train[:, 4] = validation[:, 4] = 7.0
    by, fresh = gate(train, validation), drawn(1000, 3)
    fresh[:, 4] = 7.0
    check_rate(judged(by, fresh).flagged, by)
    fresh[:, 4] = 7.001
    trust = judged(by, fresh)
    assert trust.flagged.all()
    assert trust.reason[0] == "x[4] is 7.001, and was 7 in all simulations"


def test_numbers_that_follow_from_others_do_no_harm():
    """Copies and sums; an observation in which they no longer agree is flagged."""

    def made(n, seed):
        x = drawn(n, seed)
        return np.column_stack([x, x[:, 0], x[:, 1] + x[:, 2]])

    view = straight((L + 2,))
    by, fresh = gate(made(2000, 1), made(1000, 2), view), made(1000, 3)
    check_rate(judged(by, fresh).flagged, by)
    fresh[:, L] += 0.1
    assert judged(by, fresh).flagged.all()


def test_numbers_beyond_all_measure_are_flagged_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trust = judged(GATE, np.array([[1e300] * L, [-1e300, 1e300] * (L // 2)]))
    assert trust.flagged.all()


TABLE = Supernovae()
BINS, SIGMA = len(TABLE.redshift), np.sqrt(np.diag(TABLE.covariance))


def tables(n: int, seed: int) -> np.ndarray:
    return TABLE(TABLE.prior.sample(n, seed), np.random.default_rng(seed))


@pytest.fixture(scope="module")
def of_table() -> Gate:
    return gate(tables(8000, 1), tables(1000, 2), straight((BINS,)))


def test_a_thousand_tables_of_supernovae_are_flagged_at_the_stated_rate(of_table):
    check_rate(judged(of_table, tables(1000, 3)).flagged, of_table)


def check_power(share: float, shift: float, n: int) -> None:
    """A bin's residual is normal about shift / its sd given the others; 1 in 100 tables has one beyond 3.6 to 4.0."""
    r = shift * SIGMA * np.sqrt(np.diag(np.linalg.inv(TABLE.covariance)))
    low, high = (ndtr(r - t).mean() for t in (4.0, 3.6))
    assert low - 3 * (low * (1 - low) / n) ** 0.5 < share < high + 3 * (high * (1 - high) / n) ** 0.5


@pytest.mark.parametrize("shift", [3, 5])
def test_a_shifted_bin_of_the_table_is_seen_as_often_as_its_noise_allows(of_table, shift):
    x, row = tables(2000, 4), np.arange(2000)
    x[row, row % BINS] += shift * SIGMA[row % BINS]
    share = judged(of_table, x).flagged.mean()
    check_power(share, shift, 2000)
    with pytest.raises(AssertionError):
        check_power(share, shift + 0.5, 2000)


def test_a_bin_of_the_real_table_shifted_by_five_sd_is_flagged_and_named(of_table):
    """Every bin the way it deviates already, and nearly all the other way, where noise takes some of the shift back."""
    x = TABLE.observed["mu"]
    assert not judged(of_table, x[None]).flagged[0]
    way = np.sign(of_table.clouds["x"].residuals(x[None])[0])
    for sign, least in ((1, 1.0), (-1, 0.8)):
        trust = judged(of_table, x + np.diag(sign * way * 5 * SIGMA))
        assert trust.flagged.mean() >= least
        assert all(why.startswith(f"x[{i}] is ") for i, why in enumerate(trust.reason) if why)


SIDE = 24


def fields(n: int, seed: int) -> np.ndarray:
    """Five large waves of random height, and white noise of a tenth."""
    rng, place = np.random.default_rng(seed), np.arange(SIDE) / SIDE
    waves = np.stack([np.outer(np.sin(2 * np.pi * k * place), np.cos(2 * np.pi * k * place)) for k in range(1, 6)])
    return np.tensordot(rng.standard_normal((n, 5)), waves, 1) + 0.1 * rng.standard_normal((n, SIDE, SIDE))


def test_fields_are_judged_by_components_and_what_these_leave():
    by, fresh = gate(fields(2000, 1), fields(1000, 2), straight((SIDE, SIDE))), fields(1000, 3)
    check_rate(judged(by, fresh).flagged, by)
    hot, rough = fields(20, 4), fields(20, 5)
    hot[:, 3, 5] += 1.0
    assert np.mean(["x[3, 5] is " in why for why in judged(by, hot).reason]) > 0.9
    rough += 0.1 * np.random.default_rng(6).standard_normal(rough.shape)
    assert all("principal components leave of x as a whole" in why for why in judged(by, rough).reason)


def sets(n: int, seed: int) -> np.ndarray:
    """Up to 12 members of two features, the last column says who is there; padding is nonsense."""
    rng = np.random.default_rng(seed)
    there = np.arange(12) < rng.integers(0, 13, n)[:, None]
    return np.concatenate([np.where(there[..., None], rng.standard_normal((n, 12, 2)), 99.0), there[..., None]], 2)


def test_sets_are_judged_by_their_members_alone():
    by, fresh = gate(sets(2000, 1), sets(1000, 2), straight((12, 3), "set")), sets(1000, 3)
    check_rate(judged(by, fresh).flagged, by)
    padded = fresh.copy()
    padded[..., :2][fresh[..., 2] == 0] = -5.0
    assert np.array_equal(judged(by, padded).p_value, judged(by, fresh).p_value)
    odd = fresh[fresh[..., 2].sum(1) >= 3][:50]
    odd[:, 0, 1] = 9.0
    trust = judged(by, odd)
    assert trust.flagged.mean() > 0.9
    assert np.mean(["greatest of x[1]" in why for why in trust.reason]) > 0.5
