"""Steps that adapt, each row with its own, against equations whose solutions are known.

A problem is (field, y at start, y at stop, start, stop).
"""

import dataclasses
import math

import pytest
import torch
from judging import accuses, close
from scipy.special import expit

from sbi_dgm import solvers
from sbi_dgm.errors import SolverError
from sbi_dgm.solvers import DOPRI5, adaptive


def column(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)[:, None]


def logistic():
    """Rises from 1e-3 to 1 within a tenth of the way."""
    start = column(1e-3, 1e-2, 0.5)
    end = torch.from_numpy(expit((torch.log(start / (1 - start)) + 60 * 0.5).numpy()))
    return lambda y, s, _: 60 * y * (1 - y), start, end, 0.0, 0.5


def stiff():
    """Decays to cos(s) a hundred times faster than that moves (Prothero and Robinson 1974)."""
    start = column(2.0, 1.0, -5.0)
    end = math.cos(2.0) + (start - 1) * math.exp(-100 * 2.0)
    return lambda y, s, _: -100 * (y - s.cos()[:, None]) - s.sin()[:, None], start, end, 0.0, 2.0


def rotation():
    """Of the plane, by an angle of its own in each row, of up to three turns."""
    speed = column(1.0, -2.0, 20.0)[:, 0]
    start = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, -1.0]], dtype=torch.float64)
    cos, sin = speed.cos(), speed.sin()
    end = torch.stack([cos * start[:, 0] - sin * start[:, 1], sin * start[:, 0] + cos * start[:, 1]], 1)
    return lambda y, s, rows: speed[rows, None] * torch.stack([-y[:, 1], y[:, 0]], 1), start, end, 0.0, 1.0


def diffused(width=0.01):
    """The probability flow of N(0, width^2) in ln nu, from noise of 80 to 0.001."""
    start, high, low = column(-120.0, 60.0, 80.0), math.log(80.0), math.log(1e-3)
    end = start * math.sqrt((width**2 + 1e-6) / (width**2 + 80.0**2))
    return lambda y, s, _: y * (1 / (1 + width**2 * (-2 * s).exp()))[:, None], start, end, high, low


def bent():
    """y' = y^2 cos(s)."""
    c = column(2.0, 4.0, -2.0)
    return lambda y, s, _: y.square() * s.cos()[:, None], 1 / c, 1 / (c - math.sin(7.0)), 0.0, 7.0


def problems(*makers):
    return [pytest.param(maker(), id=maker.__name__) for maker in makers]


def is_solved(problem, tolerance, tableau=DOPRI5):
    """Within 30 tolerances of 1 + |y|: a tolerance is a step's, and errors of steps add up."""
    f, y, end, start, stop = problem
    error = ((adaptive(f, y, start, stop, tolerance=tolerance, tableau=tableau) - end).abs() / (1 + end.abs())).max()
    assert error <= 30 * tolerance, f"{float(error) / tolerance:.1f} tolerances"


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-8])
@pytest.mark.parametrize("problem", problems(logistic, stiff, rotation, diffused, bent))
def test_errors_stay_within_the_tolerance(problem, tolerance):
    is_solved(problem, tolerance)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-5, 1e-8])
@pytest.mark.parametrize("problem", [*problems(rotation, bent), pytest.param(diffused(0.3), id="diffused")])
def test_errors_stay_within_the_tolerance_backwards(problem, tolerance):
    f, y, end, start, stop = problem
    is_solved((f, end, y, stop, start), tolerance)


@pytest.mark.parametrize("problem", problems(logistic, stiff, rotation, diffused, bent))
def test_a_blind_or_a_shortsighted_error_is_noticed(problem):
    blind = dataclasses.replace(DOPRI5, error=(0.0,) * 7)
    shortsighted = dataclasses.replace(DOPRI5, error=tuple(e / 1e5 for e in DOPRI5.error))
    for twin in (blind, shortsighted):
        with pytest.raises((AssertionError, SolverError)):
            is_solved(problem, 1e-8, twin)


def evaluations(problem, tolerance, tableau=DOPRI5):
    f, y, _, start, stop = problem
    places = []
    adaptive(lambda *a: (places.append(a[1]), f(*a))[1], y, start, stop, tolerance=tolerance, tableau=tableau)
    return len(places)


def fine_costs_little(tableau):
    """An error of order h^5: a tolerance 1000 times smaller takes some 4 times as many steps (h^3: 10), below 7."""
    f, y, _, start, stop = rotation()
    coarse, fine = (evaluations((f, 100 * y, y, start, stop), tolerance, tableau) for tolerance in (1e-2, 1e-5))
    assert 2 < fine / coarse < 7, f"{fine} and {coarse}"


def test_steps_shrink_by_the_fifth_root_of_the_tolerance():
    fine_costs_little(DOPRI5)
    trapezium = (1 / 2, 0, 0, 0, 0, 1 / 2, 0)  # of order 2
    pessimist = dataclasses.replace(DOPRI5, error=tuple(b - e for b, e in zip(DOPRI5.b, trapezium, strict=True)))
    accuses(fine_costs_little, pessimist)


def rows_are_alone(solve):
    """A row by itself is, to 1e-12, what it is among others, of which some take far more steps than it does."""
    speed = column(0.1, 300.0, 1.0, 7.0)[:, 0]
    y = torch.randn(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def f(chosen):
        return lambda a, s, rows: speed[chosen][rows, None] * torch.stack([a[:, 1] * s.cos(), a.prod(1) - a[:, 0]], 1)

    together = solve(f(torch.arange(4)), y)
    for i in range(4):
        alone = solve(f(torch.tensor([i])), y[i : i + 1])
        close(together[i : i + 1], alone, 0, 1e-12)
    order = torch.tensor([2, 0, 3, 1])
    close(solve(f(order), y[order]), together[order], 0, 1e-12)


def test_rows_are_solved_as_if_alone():
    rows_are_alone(lambda f, y: adaptive(f, y, 0.0, 0.1, tolerance=1e-4))


def test_rows_that_share_their_steps_are_noticed():
    def shared(f, y):
        def all_at_once(a, s, _):
            return f(a.reshape(y.shape), s.expand(len(y)), torch.arange(len(y))).reshape(a.shape)

        return adaptive(all_at_once, y.reshape(1, -1), 0.0, 0.1, tolerance=1e-4).reshape(y.shape)

    accuses(rows_are_alone, shared)


def test_nothing_to_solve_is_solved():
    def uncalled(*_):
        raise AssertionError

    assert adaptive(uncalled, torch.zeros(0, 3), 0.0, 1.0, tolerance=1e-4).shape == (0, 3)
    y = column(1.0, 2.0)
    close(adaptive(lambda a, s, _: a, y, 0.5, 0.5, tolerance=1e-4), y, 0, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_start_is_left_as_it_was_and_its_dtype_kept(dtype):
    y = column(1.0, 2.0).to(dtype)
    before = y.clone()
    end = adaptive(lambda a, s, _: -a, y, 0.0, 3.0, tolerance=1e-5)
    assert end.dtype == dtype
    close(end, before * math.exp(-3.0), 1e-3)
    close(y, before, 0, 0)


def undefined(y, s, rows):
    """Row 2 has no slope after s = 0.5; the first row is the slowest to get there."""
    speed = torch.tensor([200.0, 0.1, 0.1], dtype=torch.float64)[rows]
    slope = torch.cos(speed * s)[:, None].expand_as(y)
    return torch.where(((rows == 2) & (s > 0.5))[:, None], math.nan, slope)


def test_adaptive_steps_name_the_place_of_the_row_that_is_not_finite():
    with pytest.raises(SolverError, match=r"1 of 3 solutions are not finite at step 2 \(time 0.12\)"):
        adaptive(undefined, column(0.0, 0.0, 0.0), 0.0, 1.0, tolerance=1e-6)


def test_a_slope_that_no_weight_counts_may_not_be_lost():
    """The seventh of DOPRI5 is in the error alone."""
    calls = iter(range(100))
    with pytest.raises(SolverError, match="1 of 1 solutions are not finite"):
        adaptive(lambda y, s, _: y * (math.nan if next(calls) == 6 else 1), column(1.0), 0.0, 1.0, tolerance=1e-4)


def test_an_explosion_ends_with_an_error():
    """y = 1 / (1 - s) on the way to s = 2."""
    with pytest.raises(SolverError):
        adaptive(lambda y, s, _: y.square(), column(1.0), 0.0, 2.0, tolerance=1e-3)


def test_as_many_steps_as_are_allowed_are_enough_and_one_less_is_not(monkeypatch):
    problem = bent()
    needed = evaluations(problem, 1e-6) // 7
    monkeypatch.setattr(solvers, "MOST_STEPS", needed)
    evaluations(problem, 1e-6)
    monkeypatch.setattr(solvers, "MOST_STEPS", needed - 1)
    with pytest.raises(SolverError, match=rf"1 of 3 solutions need more than {needed - 1} steps .*now 1e-06"):
        evaluations(problem, 1e-6)
