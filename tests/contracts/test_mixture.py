"""A mixture of estimators: its density is the mean of theirs, and its draws come from it."""

import math

import laws
import pytest
import torch
from torch import Tensor

from sbi_dgm.estimators.base import Estimator, Space
from sbi_dgm.estimators.ensemble import Mixture
from sbi_dgm.estimators.flow import Flow


def mixture(seeds=(1, 2, 3), size: int = 2, context: int = 3) -> tuple[Mixture, Tensor]:
    """Wild flows, and contexts (4, ...) that each of them sees alike."""
    parts = [laws.wild(Flow(transforms=2, hidden=8, blocks=1), size, context, seed=seed) for seed in seeds]
    return Mixture(parts, [context] * len(parts)).double(), laws.normal(4, context).repeat(1, len(parts))


def test_the_density_is_the_mean_of_the_members():
    estimator, context = mixture()
    z = laws.normal(4, 50, 2, seed=1)
    mean = torch.stack([part.log_prob(z, context[:, :3]).exp() for part in estimator.parts]).mean(0)
    torch.testing.assert_close(estimator.log_prob(z, context), mean.log())


def check_draws(estimator: Mixture, context: Tensor) -> None:
    """Draws have the density that is said of them: it integrates to one and its entropy is that of the draws."""
    one = context[:1]
    grid = laws.on_grid(estimator, one)
    laws.integrates_to_one(grid)
    laws.entropy_of_draws(laws.said_of_draws(estimator, one), grid)


def test_draws_come_from_the_density():
    check_draws(*mixture())


def test_draws_of_one_member_alone_are_noticed():
    class Lazy(Mixture):
        def sample(self, n, context, generator=None):
            part, own = self._pairs(context)[0]
            return part.sample(n, own, generator)

    estimator, context = mixture()
    lazy = Lazy(list(estimator.parts), estimator.sizes)
    with pytest.raises(AssertionError):
        check_draws(lazy, context)


def test_every_member_draws_its_share_at_every_observation():
    class Constant(Estimator):
        density, space = "exact", Space((1,))

        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def sample(self, n, context, generator=None):
            return torch.full((len(context), n, 1), self.value)

    estimator = Mixture([Constant(0.0), Constant(1.0)], [1, 1])
    means = estimator.sample(10_000, torch.zeros(20, 2), torch.Generator().manual_seed(0)).mean((1, 2))
    assert (means - 0.5).abs().max() < 4 * 0.5 / math.sqrt(10_000)
    assert float(means.std()) == pytest.approx(0.005, rel=0.6), "numbers of draws are random at each observation"


@pytest.mark.parametrize(("n", "observations"), [(0, 2), (3, 0), (1, 1)])
def test_no_draws_and_no_observations(n, observations):
    estimator, context = mixture()
    assert estimator.sample(n, context[:observations]).shape == (observations, n, 2)
