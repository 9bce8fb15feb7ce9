"""Runge-Kutta methods in steps of given lengths: their measured orders, with every number of every table spoiled."""

import dataclasses
import math

import pytest
import torch
from judging import accuses, close

from sbi_dgm.errors import SolverError
from sbi_dgm.solvers import DOPRI5, EULER, HEUN, RK4, TABLEAUS, Tableau, steps

EVERY = [pytest.param(tableau, id=name) for name, tableau in TABLEAUS.items()]
EMBEDDED = dataclasses.replace(DOPRI5, order=4, b=tuple(b - e for b, e in zip(DOPRI5.b, DOPRI5.error, strict=True)))


def line(start, stop, n):
    return torch.linspace(start, stop, n + 1, dtype=torch.float64)


def column(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)[:, None]


def growth(y, s):
    """y' = cos(s) y (1 - y), which y = 1 / (1 + e^-(sin(s) + c)) solves."""
    return torch.as_tensor(s).cos() * y * (1 - y)


def order_is_the_declared_one(tableau, n=24):
    """Errors at s = 1.5 with n and 2 n steps differ by a factor of 2^order, the exponent within 0.2."""
    c = column(-1.0, 0.3)
    ends = [steps(tableau, growth, torch.sigmoid(c), line(0, 1.5, k)) for k in (n, 2 * n)]
    errors = [(end - torch.sigmoid(c + math.sin(1.5))).abs().max() for end in ends]
    order = float(torch.log2(errors[0] / errors[1]))
    assert abs(order - tableau.order) < 0.2, f"order {order:.2f}"


@pytest.mark.parametrize("tableau", [*EVERY, pytest.param(EMBEDDED, id="embedded in dopri5")])
def test_order_is_the_declared_one(tableau):
    order_is_the_declared_one(tableau)


def with_one_wrong_number(tableau):
    """Every twin with one number that is not zero larger by 0.1, but for slopes that nothing counts."""
    for i, row in enumerate(tableau.a):
        if tableau.b[i] or any(later[i] for later in tableau.a[i + 1 :]):
            for other in with_another(row):
                yield dataclasses.replace(tableau, a=(*tableau.a[:i], other, *tableau.a[i + 1 :]))
    for other in with_another(tableau.b):
        yield dataclasses.replace(tableau, b=other)


def with_another(numbers):
    return [(*numbers[:i], number + 0.1, *numbers[i + 1 :]) for i, number in enumerate(numbers) if number]


TWINS = {"euler": (EULER, 1), "heun": (HEUN, 3), "rk4": (RK4, 7), "dopri5": (DOPRI5, 20), "embedded": (EMBEDDED, 26)}


@pytest.mark.parametrize(("tableau", "count"), TWINS.values(), ids=TWINS)
def test_one_wrong_number_changes_the_order(tableau, count):
    wrong = list(with_one_wrong_number(tableau))
    assert len(wrong) == count
    for twin in wrong:
        accuses(order_is_the_declared_one, twin)


def table_is_consistent(tableau):
    """Sums of the weights 1, of weights times nodes 1/2 from order 2 on, of the error's weights 0."""
    nodes = [math.fsum(row) for row in tableau.a]
    assert [len(row) for row in tableau.a] == list(range(len(tableau.b)))
    assert abs(math.fsum(tableau.b) - 1) < 1e-15
    assert tableau.order < 2 or abs(math.fsum(b * c for b, c in zip(tableau.b, nodes, strict=True)) - 1 / 2) < 1e-15
    assert abs(math.fsum(tableau.error)) < 1e-15


@pytest.mark.parametrize("tableau", EVERY)
def test_table_is_consistent(tableau):
    table_is_consistent(tableau)


def test_an_inconsistent_table_is_noticed():
    accuses(table_is_consistent, Tableau(2, ((), (1.0,)), (1 / 2, 1 / 2 + 1e-9)))
    accuses(table_is_consistent, Tableau(2, ((), (1 / 2,)), (1 / 2, 1 / 2)))
    accuses(table_is_consistent, dataclasses.replace(DOPRI5, error=(*DOPRI5.error[:-1], 0.0)))


def test_the_nodes_of_dopri5_and_its_last_slope_is_the_next_first():
    nodes = torch.tensor([math.fsum(row) for row in DOPRI5.a], dtype=torch.float64)
    close(nodes, [0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1])
    assert DOPRI5.a[-1] == DOPRI5.b[:-1]


@pytest.mark.parametrize("tableau", EVERY)
def test_a_step_along_a_line_is_exact_for_any_shape_and_direction(tableau):
    for shape in ((3,), (4, 3), (2, 4, 3), (0, 3)):
        y = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for stop in (2.0, -2.0):
            close(steps(tableau, lambda a, s: torch.full_like(a, 3.0), y, line(0, stop, 5)), y + 3 * stop)


def test_each_row_may_take_a_step_of_its_own():
    c, h = column(2.0, 4.0, -2.0), torch.tensor([0.01, 0.02, -0.03], dtype=torch.float64)
    y, slopes = RK4.step(lambda a, s: growth(a, s[:, None]), torch.sigmoid(c), torch.zeros_like(h), h)
    close(y, torch.sigmoid(c + h.sin()[:, None]), 0, 1e-9)
    assert len(slopes) == 4


def test_fixed_steps_name_the_place_and_the_count_of_what_is_not_finite():
    def f(y, s):
        return torch.where((s >= 0.3) & (y > 1), math.nan, torch.ones_like(y))

    with pytest.raises(SolverError, match=r"2 of 3 solutions are not finite at step 3 \(time 0.3\)"):
        steps(EULER, f, column(0.0, 1.0, 2.0), line(0, 1, 10))
    with pytest.raises(SolverError, match=r"1 of 1 solutions are not finite at step 0 \(time 0\)"):
        steps(EULER, lambda y, s: y / 0, torch.ones(3), line(0, 1, 10))
