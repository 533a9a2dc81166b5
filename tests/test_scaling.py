"""The statistics recover what was put in, and say so when they cannot tell."""

import math

import numpy as np
import pytest
from hvdlm.perf import scaling
from hvdlm.perf.scaling import Sample, analyse, diagnose, karp_flatt, median_interval


def sample(ranks, step_s, tokens=1000, noise=0.0, runs=3, steps=20, **options):
    random = np.random.default_rng(ranks)
    times = step_s * (1 + noise * random.standard_normal((runs, steps)))
    return Sample(ranks, tokens, tuple(map(tuple, times)), **options)


def test_strong_scaling_by_its_formula():
    one, two, four = analyse([sample(4, 0.3), sample(1, 1.0), sample(2, 0.5)], "strong")
    assert (one.is_base, one.speedup.value, one.efficiency.value) == (True, 1, 1)
    assert (two.speedup.value, two.efficiency.value) == (2, 1)
    assert four.speedup.value == pytest.approx(1 / 0.3)
    assert four.efficiency.value == pytest.approx(1 / (4 * 0.3))
    assert four.tokens_per_s.value == pytest.approx(1000 / 0.3)


def test_weak_scaling_by_its_formula():
    _, two = analyse([sample(1, 1.0), sample(2, 1.25, tokens=2000)], "weak")
    assert two.efficiency.value == pytest.approx(1 / 1.25)
    assert two.speedup.value == pytest.approx(1.6)


def test_a_base_of_more_than_one_rank():
    _, point = analyse([sample(4, 1.0), sample(16, 0.5)], "strong")
    assert point.speedup.value == pytest.approx(2)
    assert point.efficiency.value == pytest.approx(0.5)


@pytest.mark.parametrize("serial", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("ranks", [2, 8, 64])
def test_karp_flatt_recovers_amdahls_serial_fraction(serial, ranks):
    assert karp_flatt(1 / (serial + (1 - serial) / ranks), ranks) == pytest.approx(serial)


def test_the_median_interval_covers_as_often_as_it_says():
    random = np.random.default_rng(0)
    hits = sum(median_interval(random.exponential(size=25)).contains(math.log(2)) for _ in range(2000))
    assert 0.95 <= hits / 2000 <= 0.98  # conservative, since order statistics are discrete


@pytest.mark.parametrize("n", [6, 10, 30, 59, 60, 200])
def test_the_median_interval_is_between_order_statistics(n):
    values = np.arange(n)
    interval = median_interval(values)
    assert interval.value == np.median(values)
    assert interval.low in values
    assert interval.low + interval.high == n - 1
    assert interval.high - interval.low < 2.2 * math.sqrt(n) + 3


def test_few_values_give_their_range():
    assert median_interval([3.0, 1.0, 2.0]) == scaling.Interval(2.0, 1.0, 3.0)
    assert median_interval([1.0]) == scaling.Interval(1.0, 1.0, 1.0)


def test_the_efficiency_interval_covers_the_truth():
    hits = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        samples = []
        for ranks, step_s in ((1, 1.0), (2, 0.55)):
            luck = step_s * (1 + 0.01 * random.standard_normal((6, 1)))  # of a whole run
            times = luck * (1 + 0.05 * random.standard_normal((6, 20)))
            samples.append(Sample(ranks, 1000, tuple(map(tuple, times))))
        hits += analyse(samples, "strong")[1].efficiency.contains(1 / 1.1)
    assert hits >= 50  # 57 expected; six repeats make it a little narrow


def test_the_same_samples_give_the_same_numbers():
    samples = [sample(1, 1.0, noise=0.1), sample(2, 0.6, noise=0.1)]
    assert analyse(samples, "strong") == analyse(samples[::-1], "strong")


@pytest.mark.parametrize(
    ("two_ranks_s", "noise", "verdict"),
    [
        (0.5, 0.05, "not distinguishable from ideal"),
        (0.6, 0.01, "above the 75 % that proposals ask for"),
        (0.9, 0.01, "below the 75 % that proposals ask for"),
        (0.667, 0.2, "more repeats are needed to tell"),
    ],
)
def test_the_diagnosis_follows_from_the_interval(two_ranks_s, noise, verdict):
    points = analyse([sample(1, 1.0, noise=noise), sample(2, two_ranks_s, noise=noise)], "strong")
    assert verdict in diagnose(points)


def test_oversubscribed_points_are_no_evidence():
    points = analyse([sample(1, 1.0), sample(2, 0.5), sample(4, 0.5, is_oversubscribed=True)], "strong")
    assert "to 2 ranks: efficiency 100 %" in diagnose(points)
    assert "no evidence of scaling" in diagnose([points[0], points[2]])
