"""The rational-quadratic spline against its own derivative, its inverse and another implementation."""

import pytest
import torch
from nflows.transforms.splines.rational_quadratic import rational_quadratic_spline

from sbi_dgm.splines import MIN_WIDTH, UNIT, forward, inverse

BOUND, BINS, N = 5.0, 8, 4000


def raw(scale, dtype=torch.float64, n=N, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(3 * BINS + 1, n, generator=generator, dtype=torch.float64).to(dtype)


def knots(numbers):
    """Positions x, y and derivatives d of the knots, each (BINS + 1, N), written out as the paper has them."""
    widths, heights, slopes = numbers.split([BINS, BINS, BINS + 1])
    shares = [MIN_WIDTH + (1 - MIN_WIDTH * BINS) * part.softmax(0) for part in (widths, heights)]
    x, y = (2 * BOUND * torch.cat([torch.zeros(1, part.shape[1]), part.cumsum(0)]) - BOUND for part in shares)
    return x, y, torch.nn.functional.softplus(slopes + UNIT) + MIN_WIDTH


def points(reach=7.0, dtype=torch.float64, n=N, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return ((2 * torch.rand(n, generator=generator, dtype=torch.float64) - 1) * reach).to(dtype)


def check_log_slope(transform, spline):
    x = points().requires_grad_()
    y, log_slope = transform(x, spline, BOUND)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(log_slope, slope.log(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("transform", [forward, inverse])
def test_zeros_give_the_identity(transform, dtype):
    x = points(9.0, dtype)
    y, log_slope = transform(x, torch.zeros(3 * BINS + 1, N, dtype=dtype), BOUND)
    torch.testing.assert_close(y, x, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-6)  # UNIT has 7 digits
    torch.testing.assert_close(log_slope, torch.zeros_like(x), rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-6)


@pytest.mark.parametrize("transform", [forward, inverse])
def test_log_slope_is_the_logarithm_of_the_derivative(transform):
    check_log_slope(transform, raw(1.0))


@pytest.mark.parametrize("transform", [forward, inverse])
def test_a_log_slope_off_by_one_percent_is_noticed(transform):
    def wrong(x, spline, bound):
        y, log_slope = transform(x, spline, bound)
        return y, 1.01 * log_slope

    with pytest.raises(AssertionError):
        check_log_slope(wrong, raw(1.0))


def test_inverse_undoes_forward_in_float64():
    x, spline = points(), raw(1.0)
    y, log_slope = forward(x, spline, BOUND)
    back, log_back = inverse(y, spline, BOUND)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(log_back, -log_slope, rtol=0, atol=1e-8)


def test_forward_undoes_inverse_in_float64_where_the_curve_is_wild():
    y, spline = points(), raw(2.0)
    torch.testing.assert_close(forward(inverse(y, spline, BOUND)[0], spline, BOUND)[0], y, rtol=0, atol=1e-9)


def check_backward_error_in_float32(newton):
    """The y that the inverse's x belongs to, in float64: off by the rounding of x times the slope, no more."""
    y = points(dtype=torch.float32)
    spline = raw(2.0, torch.float32)
    x = newton(y, spline, BOUND)[0]
    again, log_slope = forward(x.double(), spline.double(), BOUND)
    assert ((again - y.double()).abs() <= 1e-5 * (1 + log_slope.exp())).all()


def test_backward_error_of_the_inverse_in_float32():
    check_backward_error_in_float32(inverse)


def test_an_inverse_off_by_a_thousandth_of_a_bin_is_noticed():
    with pytest.raises(AssertionError):
        check_backward_error_in_float32(lambda y, spline, bound: inverse(y + 1e-3 * 2 * BOUND / BINS, spline, bound))


def test_float32_follows_float64():
    x, numbers = points(), raw(1.0)
    exact, log_exact = forward(x, numbers, BOUND)
    y, log_slope = forward(x.float(), numbers.float(), BOUND)
    assert ((y - exact).abs() <= 1e-5 * (1 + log_exact.exp())).all()
    assert (log_slope - log_exact).abs().median() < 1e-5


def test_the_curve_rises():
    x = points().sort().values
    y, log_slope = forward(x, raw(2.0, n=1).expand(-1, N), BOUND)
    assert (y.diff() > 0).all()
    assert log_slope.isfinite().all()


@pytest.mark.parametrize("transform", [forward, inverse])
@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_the_tails_go_on_straight_from_the_edge_with_the_last_knots_slope(transform, side):
    spline = raw(1.0)
    edge = torch.full((N,), side * BOUND, dtype=torch.float64)
    at_edge, log_slope = transform(edge, spline, BOUND)
    last = knots(spline)[2][-1 if side > 0 else 0].log()
    torch.testing.assert_close(at_edge, edge, rtol=0, atol=1e-12)
    torch.testing.assert_close(log_slope, last if transform is forward else -last, rtol=0, atol=1e-12)
    for distance in (1e-8, 3.0, 1e6):
        y, there = transform(edge + side * distance, spline, BOUND)
        torch.testing.assert_close(side * (y - at_edge), distance * log_slope.exp(), rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(there, log_slope, rtol=0, atol=1e-12)
    y, there = transform(edge - side * 1e-8, spline, BOUND)
    torch.testing.assert_close(side * (at_edge - y), 1e-8 * log_slope.exp(), rtol=1e-2, atol=1e-13)
    torch.testing.assert_close(there, log_slope, rtol=0, atol=1e-2)


def test_the_curve_meets_its_knots_with_their_slopes():
    spline = raw(1.0, n=200)
    for x, y, d in zip(*knots(spline), strict=True):
        there, log_slope = forward(x, spline, BOUND)
        torch.testing.assert_close(there, y, rtol=0, atol=1e-12)
        torch.testing.assert_close(log_slope, d.log(), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("transform", "backwards"), [(forward, False), (inverse, True)])
def test_agrees_with_nflows_inside_the_box(transform, backwards):
    x, numbers = points(BOUND), raw(1.0)
    widths, heights, slopes = numbers.T.split([BINS, BINS, BINS + 1], dim=-1)
    box = dict.fromkeys(("right", "top"), BOUND) | dict.fromkeys(("left", "bottom"), -BOUND)
    theirs, log_theirs = rational_quadratic_spline(x, widths, heights, slopes + UNIT, inverse=backwards, **box)
    ours, log_ours = transform(x, numbers, BOUND)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9)
    torch.testing.assert_close(log_ours, log_theirs, rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("transform", [forward, inverse])
@pytest.mark.parametrize("scale", [0.0, 1.0, 5.0])
def test_no_gradient_is_lost_far_out_or_on_the_edges(transform, scale, dtype):
    x = torch.tensor([-1e20, -1e4, -BOUND, 0.0, BOUND, BOUND + 1e-6, 1e4, 1e20], dtype=dtype)
    x = x.repeat_interleave(100).requires_grad_()
    numbers = raw(scale, dtype, n=len(x)).requires_grad_()
    y, log_slope = transform(x, numbers, BOUND)
    assert y.isfinite().all()
    assert log_slope.isfinite().all()
    for value in (y.sum(), log_slope.sum()):
        for gradient in torch.autograd.grad(value, [x, numbers], retain_graph=True):
            assert gradient.isfinite().all()


@pytest.mark.parametrize("transform", [forward, inverse])
def test_gradients_by_the_parameters_agree_with_finite_differences(transform):
    x, numbers = points(n=20).requires_grad_(), raw(1.0, n=20).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, numbers: transform(x, numbers, BOUND), (x, numbers))


def test_a_second_derivative_is_refused():
    x = points(n=5).requires_grad_()
    y, _ = forward(x, raw(1.0, n=5), BOUND)
    with pytest.raises(NotImplementedError, match="once"):
        torch.autograd.grad(y.sum(), x, create_graph=True)
