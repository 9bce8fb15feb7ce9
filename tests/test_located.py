"""A learned location and scale, against normals of known mean and covariance. The contract: tests/contracts."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from sbi_dgm import options
from sbi_dgm.errors import OptionError
from sbi_dgm.estimators.base import FAMILIES, Estimator, Space
from sbi_dgm.estimators.flow import Flow
from sbi_dgm.estimators.located import Located, LocatedEstimator
from sbi_dgm.seeds import lending

PLAIN = Flow(transforms=2, hidden=8, blocks=1)
MEAN = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
LOG_DIAGONAL = torch.tensor([0.3, -2.0, -4.0], dtype=torch.float64)
BELOW = torch.tensor([0.4, -0.2, 0.01], dtype=torch.float64)  # (1, 0), (2, 0), (2, 1)


def located(size: int = 3, of: Flow = PLAIN) -> LocatedEstimator:
    with lending(1):
        return Located(of, hidden=8, blocks=1).build(Space((size,)), 2).double().eval().requires_grad_(False)


def fixed() -> tuple[Estimator, MultivariateNormal]:
    """A `Located` whose location and scale do not depend on the context, and the normal that it is."""
    estimator = located()
    estimator.network.last[-1].bias.copy_(torch.cat([MEAN, 7 * torch.atanh(LOG_DIAGONAL / 7), BELOW]))
    unit = torch.eye(3, dtype=torch.float64)
    unit[torch.tril_indices(3, 3, -1).unbind()] = BELOW
    return estimator, MultivariateNormal(MEAN, scale_tril=torch.diag(LOG_DIAGONAL.exp()) @ unit)


def check_density(log_prob: Tensor, expected: Tensor) -> None:
    assert torch.allclose(log_prob, expected, atol=1e-5, rtol=0), f"off by {(log_prob - expected).abs().max()}"


def test_untrained_is_standard_normal():
    z = 2 * torch.randn(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = -0.5 * z.square().sum(1) - 1.5 * math.log(2 * math.pi)
    check_density(located().log_prob(z, z[:, :2]), expected)


def test_density_is_the_normal_of_its_location_and_scale():
    estimator, exact = fixed()
    with lending(2):
        z = exact.sample((4, 5))
    context = torch.zeros(4, 2).double()
    check_density(estimator.log_prob(z, context), exact.log_prob(z))
    check_density(estimator.log_prob(z[:, 0], context), exact.log_prob(z[:, 0]))
    check_density(-estimator(z[:, 0], context), exact.log_prob(z[:, 0]))
    with pytest.raises(AssertionError):
        check_density(estimator.log_prob(z, context) + 0.01 * LOG_DIAGONAL.sum(), exact.log_prob(z))


def test_a_quarter_of_the_scale_is_four_times_the_distance_and_no_power_of_it():
    """In each coordinate: what is below the diagonal shrinks with it."""
    estimator, context = fixed()[0], torch.zeros(1, 2).double()
    z = MEAN + torch.tensor([[0.3, -0.2, 0.1]], dtype=torch.float64)
    before = estimator.back(z, context)[0]
    narrow = 7 * torch.atanh((LOG_DIAGONAL - math.log(4)) / 7)
    estimator.network.last[-1].bias[3:6] = narrow
    torch.testing.assert_close(estimator.back(z, context)[0], 4 * before)


def check_moments(draws: Tensor, exact: MultivariateNormal) -> None:
    """Mean and covariance within 4 standard errors (those of a normal's moments)."""
    variance, n = exact.covariance_matrix.diag(), len(draws)
    assert ((draws.mean(0) - exact.mean).abs() < 4 * (variance / n).sqrt()).all()
    error = 4 * ((torch.outer(variance, variance) + exact.covariance_matrix.square()) / n).sqrt()
    assert ((draws.T.cov() - exact.covariance_matrix).abs() < error).all()


def test_draws_have_its_mean_and_covariance():
    estimator, exact = fixed()
    draws = estimator.sample(20_000, torch.zeros(1, 2).double(), torch.Generator().manual_seed(3))[0]
    check_moments(draws, exact)
    with pytest.raises(AssertionError):
        check_moments(draws.mean(0) + 0.95 * (draws - draws.mean(0)), exact)


def test_draws_are_those_of_the_family_behind_moved_and_scaled():
    estimator, _ = fixed()
    context = torch.zeros(2, 2).double()
    z = estimator.sample(7, context, torch.Generator().manual_seed(4))
    u = estimator.behind.sample(7, context, torch.Generator().manual_seed(4))
    whitened, log_det = estimator.back(z, context)
    assert torch.allclose(whitened, u, atol=1e-9)
    assert torch.allclose(log_det, LOG_DIAGONAL.sum().expand(2, 1))


def test_scale_is_positive_and_bounded_whatever_the_network_says():
    estimator = located()
    for size in (1e6, -1e6):
        estimator.network.last[-1].bias.fill_(size)
        _, scale, _ = estimator._locate(torch.zeros(1, 2).double())
        assert torch.allclose(scale[0].diag().log(), torch.full((3,), math.copysign(7.0, size)).double())


def test_location_and_scale_depend_on_the_context():
    with lending(5):
        estimator = Located(PLAIN, hidden=8, blocks=1).build(Space((2,)), 1).double()
    estimator.network.last[-1].weight.data.normal_(generator=torch.Generator().manual_seed(6))
    mean, scale, _ = estimator._locate(torch.tensor([[-1.0], [1.0]]).double())
    assert (mean[0] != mean[1]).all()
    assert (scale[0].tril() != scale[1].tril())[torch.tril_indices(2, 2).unbind()].all()


class Recorder(Estimator):
    """Keeps what it was given; has no density."""

    density = "none"

    def forward(self, z, context, *, progress=1.0, generator=None):
        self.seen = (progress, generator)
        return z.square().sum(1)


def test_progress_noise_and_kind_of_density_are_those_of_the_family_behind():
    behind = Recorder()
    estimator = LocatedEstimator(Space((3,)), located().network, behind)
    noise = torch.Generator()
    loss = estimator(torch.zeros(2, 3).double(), torch.zeros(2, 2).double(), progress=0.25, generator=noise)
    assert behind.seen == (0.25, noise)
    assert loss.shape == (2,)
    assert estimator.density == "none"


def test_options_survive_json_with_the_family_inside():
    chosen = Located(Flow(transforms=2, layout="coupling"), hidden=12)
    assert options.restore("estimator", FAMILIES, options.describe(FAMILIES, chosen)) == chosen


def test_a_family_by_a_wrong_type_is_refused():
    with pytest.raises(OptionError, match="of"):
        Located(of=3)
