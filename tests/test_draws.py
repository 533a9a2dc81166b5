"""Draws follow (seed, step, sample, site, place) and nothing else, and are as good as independent."""

import math
import shutil

import numpy as np
import pytest
import torch

from hvdlm.compute.draws import draws_for, dropout, threshold

SAMPLES, PLACES = 1024, 512


def bits(*, seed=0, step=0, first=0, site=0, samples=SAMPLES, shape=(PLACES,)):
    return draws_for(seed, step, np.arange(first, first + samples)).uniform_bits(site, shape)


def unit(values):
    """Uniform int32 bits as float64 of mean 0 and variance 1."""
    return (values.double() + 0.5) / 2**32 * math.sqrt(12)


def spread(counts, expected):
    """Chi-square of counts (…, cells) in standard deviations from its mean."""
    freedom = counts.shape[-1] - 1
    return (((counts - expected) ** 2 / expected).sum(-1) - freedom) / math.sqrt(2 * freedom)


def test_any_split_of_a_batch_has_its_masks():
    """Ranks and micro-batches are splits of the global batch."""
    x = torch.randn(12, 5, 7)
    whole = dropout(x, 0.4, draws_for(3, 9, np.arange(100, 112)), 2)
    for size in (1, 2, 3, 4, 6):
        parts = [
            dropout(x[start : start + size], 0.4, draws_for(3, 9, np.arange(100 + start, 100 + start + size)), 2)
            for start in range(0, 12, size)
        ]
        assert torch.equal(torch.cat(parts), whole)


def test_draws_are_frozen():
    """Changed draws would silently change every resumed run that has dropout or noise."""
    values = draws_for(1, 2, np.array([3, 2**40])).uniform_bits(4, (2, 3)).tolist()
    assert values[0] == [[983137517, 538435088, 1901611280], [829207784, -840366549, -1176394349]]
    assert values[1] == [[1128353745, 1555511953, 519538668], [1562626841, -1949155568, -1166507713]]


@pytest.mark.parametrize("change", ["seed", "step", "first", "site"])
@pytest.mark.parametrize("by", [1, 2, 64, 2**31])
def test_draws_of_other_keys_are_independent(change, by):
    """Correlations of place with place, and of the masks with the masks of p = 0.1."""
    here, there = bits(), bits(**{change: by})
    if change == "first" and by < SAMPLES:
        assert torch.equal(here[by:], there[:-by])
        here, there = here[:by], there[-by:]  # samples that only one of the two has
    masks = [(values < threshold(0.1)).double() for values in (here, there)]
    for one, other in ((unit(here), unit(there)), masks):
        deviation = torch.corrcoef(torch.stack((one.flatten(), other.flatten())))[0, 1] * math.sqrt(one.numel())
        assert abs(float(deviation)) < 4.5


def test_negative_seeds_and_sites_are_keys_of_their_own():
    keys = [bits(seed=seed, site=site, samples=4) for seed in (-1, 0, 1, 2**63) for site in (-2, -1, 0, 1)]
    assert len({tuple(values.flatten().tolist()) for values in keys}) == 16


def test_samples_and_places_are_uniform_and_uncorrelated():
    values = unit(bits())
    total = values.numel()
    assert abs(float(values.mean())) * math.sqrt(total) < 4.5
    assert abs(float(values.square().mean()) - 1) / math.sqrt(0.8 / total) < 4.5
    for one in (values, values.T):  # the correlation of every two samples, then of every two places
        correlation = one @ one.T / math.sqrt(one.shape[1])
        pairs = correlation[tuple(torch.triu_indices(*correlation.shape, offset=1))]
        assert float(pairs.var()) == pytest.approx(1, abs=0.03)
        assert float(pairs.abs().max()) < 6.5  # 5.1 expected of half a million


def test_every_bit_of_every_place_is_fair():
    """Chi-square over the places, for each group of four bits."""
    values = bits().numpy().view(np.uint32)
    for shift in range(0, 32, 4):
        ones = ((values[..., None] >> np.arange(shift, shift + 4, dtype=np.uint32)) & 1).sum(0)  # (places, 4)
        deviation = (ones - SAMPLES / 2) / math.sqrt(SAMPLES / 4)
        freedom = deviation.size
        assert abs((deviation**2).sum() - freedom) / math.sqrt(2 * freedom) < 4.5
    nibbles = np.stack([np.bincount((values >> shift & 15).ravel(), minlength=16) for shift in range(0, 32, 4)])
    assert np.abs(spread(nibbles, values.size / 16)).max() < 5


@pytest.mark.parametrize("distance", [1, 2, 3, 32, 384])
def test_places_at_a_distance_are_independent(distance):
    """Chi-square over the pairs of two places' five highest bits."""
    high = (bits(samples=64, shape=(4096,)).long() + 2**31) >> 27
    pairs = (high[:, :-distance] * 32 + high[:, distance:]).flatten()
    assert abs(float(spread(torch.bincount(pairs, minlength=1024), len(pairs) / 1024))) < 5


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_zeroes_a_share_of_p_and_keeps_the_mean(p):
    draws = draws_for(0, 0, np.arange(64))
    values = dropout(torch.ones(64, 100, 100), p, draws, 0)
    sigma = math.sqrt(p * (1 - p) / values.numel())
    assert abs(float((values == 0).double().mean()) - p) < 4.5 * sigma
    assert float(values.max()) == pytest.approx(1 / (1 - p))
    assert abs(float(values.double().mean()) - 1) < 4.5 * sigma / (1 - p)
    each = (values == 0).sum((1, 2)).double()  # of each sample: as varied as independent draws are, not more
    assert float(each.var()) / (10_000 * p * (1 - p)) == pytest.approx(1, abs=4.5 * math.sqrt(2 / 64))


def test_bfloat16_keeps_the_mean_too():
    """1 / 0.9 is 0.16 % smaller in bfloat16; only the product may be rounded."""
    x = torch.rand(64, 100, 100).add(1).bfloat16()
    draws = draws_for(0, 0, np.arange(64))
    fine, coarse = dropout(x.float(), 0.1, draws, 0), dropout(x, 0.1, draws, 0)
    assert coarse.dtype == torch.bfloat16
    assert float(coarse.double().mean() / fine.double().mean()) == pytest.approx(1, abs=1e-4)


def test_a_shared_dimension_has_one_mask():
    draws = draws_for(0, 0, np.arange(6))
    values = dropout(torch.ones(6, 20, 50), 0.5, draws, 0, shared_dims=(1,))
    assert torch.equal(values, values[:, :1].expand_as(values))
    assert len({tuple(row.tolist()) for row in values[:, 0]}) == 6


def test_without_draws_or_probability_it_is_the_identity():
    x = torch.randn(2, 3)
    assert dropout(x, 0.5, None, 0) is x
    assert dropout(x, 0.0, draws_for(0, 0, np.arange(2)), 0) is x


def test_thresholds_are_int32():
    assert [threshold(p) for p in (0.0, 0.5, 1 - 1e-16)] == [-(2**31), 0, 2**31 - 1]


def test_normal_draws_are_normal_and_independent():
    """By their moments, their tails, and the correlation of neighbours and of their squares."""
    values = draws_for(0, 0, np.arange(200_000)).normal(-4, (2,)).double()
    powers = [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]  # of a normal number: power, mean, variance
    for power, mean, variance in powers:
        error = (variance / values.numel()) ** 0.5
        assert abs(float((values**power).mean()) - mean) < 4.5 * error, power
    for limit in (1, 2, 3, 4):
        share = math.erfc(limit / math.sqrt(2))
        found = float((values.abs() > limit).double().mean())
        assert abs(found - share) < 4.5 * math.sqrt(share / values.numel()), limit
    for pairs in (values, values**2):
        assert abs(float(torch.corrcoef(pairs.T)[0, 1])) < 4.5 / math.sqrt(200_000)


def test_normal_draws_are_frozen_and_more_of_them_begin_alike():
    draws = draws_for(1, 2, np.array([3, 2**40]))
    values = draws.normal(-4, (3,))
    expected = torch.tensor([[0.32696846, 0.29054296, 1.65988934], [2.03333020, 0.72130942, -0.71326894]])
    assert values.dtype == torch.float32
    assert torch.allclose(values, expected, rtol=1e-6)
    assert torch.equal(draws.normal(-4, (5, 3))[:, 0], values)


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a C++ compiler")
def test_a_site_may_be_a_variable_of_a_compiled_function():
    """As it is behind a break of the graph, where layers share code: a constant beyond 64 bits breaks the compiler."""
    draws = draws_for(5, 6, np.arange(3))
    compiled = torch.compile(lambda site: draws.uniform_bits(site, (4,)), dynamic=True)
    for site in (2, 7, -4):
        assert torch.equal(compiled(site), draws.uniform_bits(site, (4,)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_draws_what_the_cpu_draws():
    draws = draws_for(5, 6, np.arange(10))
    on_gpu = draws.to("cuda").uniform_bits(7, (33, 65))
    assert torch.equal(on_gpu.cpu(), draws.uniform_bits(7, (33, 65)))
