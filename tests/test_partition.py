"""Every sample once an epoch, whatever the number of ranks, in an order of (seed, step) alone."""

import numpy as np
import pytest

from hvdlm.partition import fraction_of, micro_batches_per_rank, permute, samples_at, slice_of, spread

SIZES = [1, 2, 3, 4, 6]


@pytest.mark.parametrize("total", [0, 1, 2, 5, 12, 97])
@pytest.mark.parametrize("size", SIZES)
def test_slices_tile_the_whole_evenly(total, size):
    parts = [list(slice_of(rank, size, total)) for rank in range(size)]
    assert sum(parts, []) == list(range(total))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("total", [1, 2, 3, 4, 5, 63, 64, 65, 1000, 4097])
def test_permute_is_a_bijection(total):
    image = permute(np.arange(total), total, "key")
    assert sorted(image) == list(range(total))


def test_permute_depends_on_its_key_and_is_random_enough():
    index = np.arange(10_000)
    first, second = permute(index, 10_000, "a"), permute(index, 10_000, "b")
    assert (first == second).sum() < 20  # 1 expected
    assert abs(np.corrcoef(index, first)[0, 1]) < 0.05
    assert abs(np.diff(first)).mean() == pytest.approx(10_000 / 3, rel=0.05)


def test_permute_needs_no_table():
    total = 10**15
    image = permute(np.array([0, 1, total - 1]), total, "huge")
    assert len(set(image.tolist())) == 3
    assert image.min() >= 0
    assert image.max() < total


def test_permute_is_frozen():
    """A changed permutation would silently change the data order of every resumed run."""
    assert permute(np.arange(10), 10, "epoch 0 0").tolist() == [3, 8, 9, 4, 5, 7, 6, 0, 1, 2]


def test_permute_rejects_an_index_outside():
    with pytest.raises(ValueError, match="outside"):
        permute(np.array([5]), 5, "key")


@pytest.mark.parametrize("num_samples", [1, 5, 12, 24, 50])
def test_every_sample_exactly_once_an_epoch(num_samples):
    order = samples_at(np.arange(3 * num_samples), num_samples=num_samples, seed=7)
    for epoch in range(3):
        assert sorted(order[epoch * num_samples : (epoch + 1) * num_samples]) == list(range(num_samples))


@pytest.mark.parametrize("size", SIZES)
def test_a_place_has_its_sample_whoever_asks(size):
    whole = samples_at(np.arange(90, 150), num_samples=100, seed=3)  # of two epochs
    parts = [samples_at(90 + np.array(slice_of(rank, size, 60)), num_samples=100, seed=3) for rank in range(size)]
    assert np.concatenate(parts).tolist() == whole.tolist()


def test_micro_batches_must_divide():
    assert micro_batches_per_rank(24, 4, 3) == 2
    with pytest.raises(ValueError, match="global_batch 24 is not a multiple of micro_batch 4 x 4 ranks"):
        micro_batches_per_rank(24, 4, 4)


def test_fraction_is_uniform_and_follows_the_seed():
    values = np.array([fraction_of(str(i).encode(), 0) for i in range(4000)])
    assert values.min() >= 0
    assert values.max() < 1
    assert np.abs(np.sort(values) - np.linspace(0, 1, 4000)).max() < 0.03
    assert fraction_of(b"text", 0) != fraction_of(b"text", 1)


@pytest.mark.parametrize(("chosen", "total"), [(1, 1), (1, 50), (7, 50), (49, 50), (50, 50), (1000, 10**9)])
def test_a_sample_is_spread_one_of_each_part(chosen, total):
    found = spread(np.arange(chosen), chosen, total)
    assert [int(at) for at in found] == sorted(set(found.tolist()))
    starts = np.arange(chosen + 1) * total // chosen
    assert (found >= starts[:-1]).all()
    assert (found < starts[1:]).all()
    assert (spread(np.array([chosen - 1]), chosen, total) == found[-1:]).all()


@pytest.mark.parametrize("period", [2, 3, 10])
def test_a_spread_sample_does_not_keep_step_with_a_period(period):
    found = spread(np.arange(3000), 3000, 3000 * period)
    counts = np.bincount(found % period, minlength=period)
    assert counts / 3000 == pytest.approx(1 / period, abs=0.04)
