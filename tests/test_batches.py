"""Batches: every epoch is a permutation, and every batch a pure function of (seed, step)."""

import pytest
import torch

from sbi_dgm.data.batches import Rows, Shuffled, together


def rows(count, weight=None):
    index = torch.arange(float(count))
    x = {"x": 10 * index[:, None] + torch.arange(3.0), "n": index.int()}
    return Rows(index[:, None], x, weight, torch.stack([index, -index], 1))


def epoch(batches, number):
    steps = range(number * batches.per_epoch, (number + 1) * batches.per_epoch)
    return torch.cat([batches[step].z[:, 0] for step in steps]).long().tolist()


def visits_once(seen, count, size):
    """Whether no row comes twice and fewer than a batch are left out."""
    return len(set(seen)) == len(seen) == count // size * size and set(seen) <= set(range(count))


@pytest.mark.parametrize(("count", "size"), [(100, 10), (103, 10), (7, 7), (5, 8), (64, 1), (99, 50)])
def test_an_epoch_visits_each_row_at_most_once_and_all_but_the_remainder(count, size):
    batches = Shuffled(rows(count), size, 0)
    for number in range(3):
        assert visits_once(epoch(batches, number), count, min(size, count))


def test_the_check_accuses_draws_with_replacement():
    drawn = torch.randint(100, (100,), generator=torch.Generator().manual_seed(0)).tolist()
    assert not visits_once(drawn, 100, 10)


def test_the_order_differs_between_epochs_and_seeds():
    orders = [epoch(Shuffled(rows(100), 10, *seed), n) for seed in [(0,), (1,), (0, 1)] for n in range(3)]
    assert len({tuple(order) for order in orders}) == 9
    assert tuple(range(100)) not in {tuple(order) for order in orders}


def test_the_remainder_is_another_in_each_epoch():
    batches = Shuffled(rows(103), 10, 0)
    left = [frozenset(range(103)) - set(epoch(batches, n)) for n in range(5)]
    assert all(len(part) == 3 for part in left)
    assert len(set(left)) > 1


def test_a_batch_follows_from_seed_and_step_alone():
    steps = torch.randperm(60, generator=torch.Generator().manual_seed(0)).tolist()
    ahead, astray = Shuffled(rows(103), 10, 3, 1), Shuffled(rows(103), 10, 3, 1)
    expected = [ahead[step].z for step in range(60)]
    for step in steps:
        torch.manual_seed(step)
        assert torch.equal(astray[step].z, expected[step])
        assert torch.equal(Shuffled(rows(103), 10, 3, 1)[step].z, expected[step])


def test_drawing_batches_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    Shuffled(rows(100), 10, 0)[12]
    assert torch.equal(torch.get_rng_state(), before)


def test_theta_x_and_weight_of_a_row_stay_together():
    weight = torch.arange(1.0, 104.0)
    batch = Shuffled(rows(103, weight), 20, 0)[7]
    index = batch.z[:, 0]
    assert torch.equal(batch.x["x"], 10 * index[:, None] + torch.arange(3.0))
    assert torch.equal(batch.x["n"], index.int())
    assert torch.equal(batch.weight, index + 1)
    assert torch.equal(batch.theta[:, 1], -index)


def test_rows_without_weights_weigh_one():
    assert torch.equal(rows(5).weight, torch.ones(5))


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_ranks_share_an_epoch_disjointly_in_equal_numbers_of_steps(ranks):
    shards = [Shuffled(rows(103), 5, 0, shard=(rank, ranks)) for rank in range(ranks)]
    assert len({shard.per_epoch for shard in shards}) == 1
    for number in range(2):
        seen = [row for shard in shards for row in epoch(shard, number)]
        assert len(set(seen)) == len(seen) > 103 - 6 * ranks


def test_pieces_are_all_rows_in_order_of_few_numbers_each():
    assert [len(piece.z) for piece in rows(10_000).pieces()] == [4096, 4096, 1808]
    heavy = Rows(torch.zeros(5, 1), {"x": torch.zeros(5, 2**23)})
    assert [len(piece.z) for piece in heavy.pieces()] == [2, 2, 1]


def test_batches_behind_each_other_are_all_their_rows():
    data = rows(20)
    whole, parts = data[:], together([data[:7], data[7:8], data[8:]])
    assert torch.equal(parts.z, whole.z)
    assert all(torch.equal(parts.x[name], whole.x[name]) for name in whole.x)
    assert torch.equal(parts.theta, whole.theta)


def test_a_slice_of_rows_is_in_order():
    assert rows(20)[slice(5, 9)].z[:, 0].tolist() == [5, 6, 7, 8]
