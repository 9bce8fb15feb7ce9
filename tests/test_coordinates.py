"""Bijections with their log-determinants, and what counts as an edge."""

import numpy as np
import pytest
from prior_toys import COVARIANCE, from_triangle, triangle
from scipy import stats
from scipy.special import ndtr, ndtri

from sbi_dgm.coordinates import Affine, Cube, Independent, snap
from sbi_dgm.distributions import HalfNormal, LogNormal, LogUniform, Normal, Scipy, Uniform
from sbi_dgm.errors import PriorError
from sbi_dgm.parameters import Parameter
from sbi_dgm.priors import Prior

COORDINATES = {
    "independent": Independent([Uniform(0.1, 0.5), LogNormal(0.3, 0.4), Scipy(stats.gamma(2.0)), LogUniform(0.1, 9.0)]),
    "affine": Affine(np.array([1.0, -2.0, 0.5]), COVARIANCE),
    "cube": Cube(triangle, from_triangle, 2),
    "one": Independent([Normal(3.0, 2.0)]),
}
EACH = pytest.mark.parametrize("coordinates", COORDINATES.values(), ids=COORDINATES)


class OffByOnePercent:
    """Coordinates whose log-determinant is one per cent too large."""

    def __init__(self, coordinates):
        self.low, self.high, self.inverse = coordinates.low, coordinates.high, coordinates.inverse
        self.right = coordinates

    def forward(self, v):
        z, log_det = self.right.forward(v)
        return z, 1.01 * log_det


def normal_draws(coordinates, n=200):
    return np.random.default_rng(0).standard_normal((n, len(coordinates.low)))


def check_log_det(coordinates):
    """Against central differences of `forward` in v, where |z| <= 2 keeps their relative error under 1e-6."""
    v = coordinates.inverse(normal_draws(coordinates).clip(-2, 2))
    _, log_det = coordinates.forward(v)
    steps = 1e-6 * np.diag(v.std(0))
    ahead, behind = (coordinates.forward(v[:, None] + sign * steps)[0] for sign in (1, -1))
    jacobian = (ahead - behind) / (2 * np.diag(steps))[:, None]
    np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], rtol=0, atol=1e-5)


@EACH
def test_log_det_is_that_of_the_differentiated_map(coordinates):
    check_log_det(coordinates)


@EACH
def test_a_log_det_off_by_one_percent_is_noticed(coordinates):
    with pytest.raises(AssertionError):
        check_log_det(OffByOnePercent(coordinates))


@EACH
def test_forward_undoes_inverse(coordinates):
    z = normal_draws(coordinates)
    back, log_det = coordinates.forward(coordinates.inverse(z))
    np.testing.assert_allclose(back, z, rtol=0, atol=1e-9)
    assert log_det.shape == z.shape[:-1]


@EACH
def test_every_row_is_on_its_own(coordinates):
    z = normal_draws(coordinates, 12)
    v = coordinates.inverse(z)
    stacked = coordinates.forward(v.reshape(3, 4, -1))
    for whole, part in zip(stacked, coordinates.forward(v), strict=True):
        np.testing.assert_allclose(whole.reshape(part.shape), part, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(coordinates.forward(v[5])[0], z[5], rtol=0, atol=1e-9)


def test_affine_coordinates_whiten():
    affine = COORDINATES["affine"]
    z = np.eye(3)
    steps = affine.inverse(z) - affine.inverse(np.zeros(3))
    np.testing.assert_allclose(steps.T @ steps, COVARIANCE, rtol=1e-12)


def test_a_covariance_that_is_none_is_refused():
    with pytest.raises(PriorError, match="not positive definite"):
        Affine(np.zeros(2), np.array([[1.0, 2.0], [2.0, 1.0]]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("edge", [0.1, 0.5, -0.7, 300.0])
def test_four_ulp_of_the_files_dtype_count_as_the_edge_and_five_do_not(edge, dtype):
    ulp = float(np.spacing(np.abs(edge).astype(dtype)))
    for coordinates in (Independent([Uniform(edge, edge + 1)]), Independent([Uniform(edge - 1, edge)])):
        for steps in (-4, -1, 0, 1, 4):
            assert snap(np.array([edge + steps * ulp]), coordinates, dtype).tolist() == [edge]
        for steps in (-5, 5, 1000):
            v = np.array([edge + steps * ulp])
            assert snap(v, coordinates, dtype).tolist() == v.tolist()


def test_a_float32_edge_counts_as_the_edge_and_only_in_a_float32_file():
    coordinates = Independent([Uniform(0.1, 0.7)])
    v = np.array([[np.float32(0.1)], [np.float32(0.7)]], dtype=float)
    assert coordinates.forward(snap(v, coordinates, np.float32))[0].tolist() == [[-8.2], [8.2]]
    np.testing.assert_array_equal(snap(v, coordinates, np.float64), v)
    assert v[1, 0] < 0.7  # rounding went inwards here; the next float32 is outside and snaps as well
    outside = np.nextafter(np.float32(0.7), np.float32(1)).astype(float).reshape(1, 1)
    assert snap(outside, coordinates, np.float32).tolist() == [[0.7]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_zero_is_the_edge_of_a_half_normal_and_outside_a_log_normal(dtype):
    half, log = Prior([Parameter("a", HalfNormal(1.0))]), Prior([Parameter("a", LogNormal(0.0, 1.0))])
    assert half.standardise([[0.0]], dtype).tolist() == [[-8.2]]
    with pytest.raises(PriorError, match=r"a = 0\.0 is outside"):
        log.standardise([[0.0]], dtype)


def test_inside_means_finite_and_within_the_closed_bounds():
    bounded, free = Independent([Uniform(0, 1)]), Independent([Normal(0, 1)])
    v = np.array([[-1e-300], [0.0], [0.5], [1.0], [1 + 1e-15], [np.nan], [np.inf], [-np.inf]])
    assert bounded.inside(v).ravel().tolist() == [False, True, True, True, False, False, False, False]
    assert free.inside(v).ravel().tolist() == [True] * 5 + [False] * 3


def test_inside_a_cube_means_inside_its_image():
    theta = np.array([[0.2, 0.3], [0.6, 0.6], [-0.1, 0.5], [0.5, -0.1], [np.nan, 0.5], [3.0, 3.0]])
    assert COORDINATES["cube"].inside(theta).all(-1).tolist() == [True] + [False] * 5


def test_inside_a_cube_is_not_fooled_by_a_cdf_that_saturates():
    cube = Cube(stats.uniform.ppf, stats.uniform.cdf, 1)
    assert cube.inside(np.array([[-1.0], [0.5], [2.0]])).ravel().tolist() == [False, True, False]


def test_a_normal_by_its_cube_has_affine_coordinates():
    cube = Cube(lambda u: 3 + 2 * ndtri(u), lambda v: ndtr((v - 3) / 2), 1)
    v = np.linspace(-3, 9, 25)[:, None]
    z, log_det = cube.forward(v)
    np.testing.assert_allclose(z, (v - 3) / 2, rtol=0, atol=1e-9)
    np.testing.assert_allclose(log_det, -np.log(2), rtol=0, atol=1e-6)


@pytest.mark.parametrize("q", [0.5, 1e-4, 1e-8, 1e-12, 1e-15])
def test_a_cubes_density_is_right_and_finite_up_to_its_faces(q):
    """Differences in z lost a digit of u for each power of ten: an error of 0.4 at 1 - 1e-12, and inf beyond."""
    rounding = 2.0**-52 / (q * min((2.0**-52 / q) ** (1 / 3), 0.1))  # of 1 + u, over the step
    maps = {
        "identity": (Cube(np.copy, np.copy, 1), stats.uniform(), 1e-12),
        "shifted": (Cube(lambda u: 1 + u, lambda v: v - 1, 1), stats.uniform(1, 1), 2 * rounding),
        "normal": (Cube(ndtri, ndtr, 1), stats.norm, 1e-9 + 2 * rounding),
    }
    for name, (cube, known, within) in maps.items():
        for v in known.ppf(q), known.isf(q):
            z, log_det = cube.forward(np.array([[v]]))
            assert abs(log_det[0] + stats.norm.logpdf(z[0, 0]) - known.logpdf(v)) < within, (name, v)
