"""Intervals hold the truth about as often as they say, and are the same for the same records."""

import math
import time

import numpy as np
import pytest

from hvdlm.scoring import intervals
from hvdlm.scoring.intervals import bootstrap, middle, resampled, resampled_kinds, wilson


def mean_of_first(sums):
    return sums[0] / sums[1]


def counted(values):
    return np.stack((values, np.ones_like(values)), axis=1)


@pytest.mark.parametrize(("share", "trials"), [(0.5, 30), (0.94, 200), (0.02, 100)])
def test_wilson_holds_the_true_proportion_in_95_of_100(share, trials):
    draws = np.random.default_rng(0).binomial(trials, share, 4000)
    ends = [wilson(int(drawn), trials) for drawn in draws]
    held = np.mean([low <= share <= high for low, high in ends])
    assert 0.93 < held < 0.985


def test_wilson_is_no_point_where_all_are_right():
    low, high = wilson(20, 20)
    assert high == 1.0 and 0.8 < low < 0.9
    assert wilson(0, 20) == (0.0, pytest.approx(1 - low))


def test_wilson_equals_scipy():
    stats = pytest.importorskip("scipy.stats")
    for successes, trials in ((0, 3), (1, 3), (1128, 1200), (7, 7)):
        told = stats.binomtest(successes, trials).proportion_ci(method="wilson")
        assert wilson(successes, trials) == pytest.approx((told.low, told.high))


def test_a_bootstrap_interval_holds_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        low, high = bootstrap(counted(random.poisson(3.0, 100)), mean_of_first, resamples=300)
        held += low <= 3.0 <= high
    assert 0.89 < held / 200 < 0.99


def test_the_same_records_give_the_same_interval():
    rows = counted(np.random.default_rng(2).integers(9, size=500))
    assert bootstrap(rows, mean_of_first) == bootstrap(rows, mean_of_first)
    assert bootstrap(rows, mean_of_first) != bootstrap(rows, mean_of_first, seed=1)


def test_groups_of_records_agree_with_records_even_where_files_come_sorted(monkeypatch):
    rows = counted(np.sort(np.random.default_rng(3).integers(100, size=20_000)))
    in_groups = bootstrap(rows, mean_of_first)
    monkeypatch.setattr(intervals, "MOST_UNITS", len(rows))
    plain = bootstrap(rows, mean_of_first)
    width = plain[1] - plain[0]
    assert in_groups != plain
    assert in_groups == pytest.approx(plain, abs=0.1 * width)
    assert width == pytest.approx(2 * intervals.Z * rows[:, 0].std() / math.sqrt(len(rows)), rel=0.1)


def test_kinds_of_records_agree_with_records():
    values = np.random.default_rng(4).integers(4, size=3000)
    plain = bootstrap(counted(values), mean_of_first)
    counts = np.bincount(values)
    kinds = middle([drawn @ np.arange(4) / drawn.sum() for drawn in resampled_kinds(counts)])
    assert kinds == pytest.approx(plain, abs=0.15 * (plain[1] - plain[0]))


def test_a_resample_has_as_many_records_as_there_are():
    for num in (1, 7, 9001):  # one a unit, and in groups of one or two
        sums = resampled(np.ones((num, 1), dtype=np.int64), resamples=50)
        assert sums.shape == (50, 1)
        assert sums.mean() == pytest.approx(num, rel=0.01)


def test_a_million_records_take_no_longer_than_ten_thousand():
    rows = counted(np.random.default_rng(5).integers(9, size=1_000_000))
    start = time.perf_counter()
    low, high = bootstrap(rows, mean_of_first)
    assert time.perf_counter() - start < 10
    assert low < 4.0 < high and high - low < 0.02


def test_without_records_there_is_no_interval():
    assert all(math.isnan(end) for end in bootstrap(np.zeros((0, 2), dtype=np.int64), mean_of_first))
    assert list(resampled_kinds(np.zeros(3, dtype=np.int64))) == []
