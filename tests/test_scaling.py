"""The statistics recover what was put in, and say so when they cannot tell."""

import math

import numpy as np
import pytest

from hvdlm.perf.scaling import StepTimes, analyse, diagnose, karp_flatt


def sample(ranks, step_s, tokens=1000, noise=0.0, runs=3, steps=20, **options):
    random = np.random.default_rng(ranks)
    times = step_s * (1 + noise * random.standard_normal((runs, steps)))
    return StepTimes(ranks, tokens, tuple(map(tuple, times)), **options)


@pytest.mark.parametrize(
    ("mode", "samples", "expected"),  # of each point: speedup, efficiency, tokens/s
    [
        ("strong", {4: (0.4, 1000), 1: (1.0, 1000), 2: (0.5, 1000)}, [(1, 1, 1e3), (2, 1, 2e3), (2.5, 0.625, 2500)]),
        ("strong", {4: (1.0, 1000), 16: (0.5, 1000)}, [(1, 1, 1e3), (2, 0.5, 2e3)]),
        ("weak", {1: (1.0, 1000), 2: (1.25, 2000)}, [(1, 1, 1e3), (1.6, 0.8, 1.6e3)]),
    ],
    ids=["strong", "from a base of more than one rank", "weak"],
)
def test_speedup_and_efficiency_are_what_their_formulas_say(mode, samples, expected):
    points = analyse([sample(ranks, *times) for ranks, times in samples.items()], mode)
    assert [point.is_base for point in points] == [True, *[False] * (len(points) - 1)]
    found = [(point.speedup.value, point.efficiency.value, point.tokens_per_s.value) for point in points]
    assert found == [pytest.approx(values) for values in expected]


@pytest.mark.parametrize("serial", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("ranks", [2, 8, 64])
def test_karp_flatt_recovers_amdahls_serial_fraction(serial, ranks):
    assert karp_flatt(1 / (serial + (1 - serial) / ranks), ranks) == pytest.approx(serial)


@pytest.mark.parametrize("runs", [2, 3, 8])
def test_the_efficiency_interval_covers_as_often_as_it_says(runs):
    """With luck that a whole run shares, which intervals over pooled steps forget."""
    hits = 0
    for seed in range(400):
        random = np.random.default_rng(seed)
        samples = []
        for ranks, step_s in ((1, 1.0), (2, 0.55)):
            luck = step_s * (1 + 0.02 * random.standard_normal((runs, 1)))
            times = luck * (1 + 0.02 * random.standard_normal((runs, 15)))
            samples.append(StepTimes(ranks, 1000, tuple(map(tuple, times))))
        hits += analyse(samples, "strong")[1].efficiency.contains(1 / 1.1)
    assert hits / 400 >= 0.93


def test_one_run_has_no_interval():
    _, two = analyse([sample(1, 1.0, runs=1), sample(2, 0.5, runs=1)], "strong")
    assert two.efficiency.value == pytest.approx(1)
    assert (two.efficiency.low, two.efficiency.high) == (0, math.inf)
    assert diagnose([two]).startswith("Strong scaling to 2 ranks: efficiency 100 %, of single runs: these tell nothing")
    assert "interval" not in diagnose([two])


def test_the_median_of_a_run_ignores_its_outliers():
    times = ((1.0,) * 9 + (50.0,),) * 3
    (point,) = analyse([StepTimes(1, 1000, times)], "strong")
    assert point.step_s.value == pytest.approx(1.0)
    assert point.max_s == 50


def test_the_same_samples_give_the_same_numbers():
    samples = [sample(1, 1.0, noise=0.1), sample(2, 0.6, noise=0.1)]
    assert analyse(samples, "strong") == analyse(samples[::-1], "strong")


@pytest.mark.parametrize(
    ("two_ranks_s", "noise", "verdict"),
    [
        (0.5, 0.05, "not distinguishable from ideal, above the 75 %"),
        (0.6, 0.01, "above the 75 % that proposals ask for"),
        (0.9, 0.01, "below the 75 % that proposals ask for"),
        (0.667, 0.2, "more repeats are needed to tell"),
        (0.4, 0.01, "more than ideal: above the 75 %"),
    ],
)
def test_the_diagnosis_follows_from_the_interval(two_ranks_s, noise, verdict):
    points = analyse([sample(1, 1.0, noise=noise), sample(2, two_ranks_s, noise=noise)], "strong")
    assert verdict in diagnose(points)


def test_a_point_of_another_machine_is_no_evidence():
    other = sample(4, 0.25, is_comparable=False)
    points = analyse([sample(1, 1.0), sample(2, 0.5), other], "strong")
    assert "to 2 ranks: efficiency 100 %" in diagnose(points)
    assert "on another machine or with other software than its base" in diagnose([points[0], points[2]])


def test_a_series_of_one_point_is_compared_with_nothing():
    assert diagnose(analyse([sample(1, 1.0)], "weak")) == (
        "Weak scaling: only 1 rank measured, so there is nothing to compare."
    )


def test_oversubscribed_points_are_no_evidence():
    points = analyse([sample(1, 1.0), sample(2, 0.5), sample(4, 0.5, is_oversubscribed=True)], "strong")
    assert "to 2 ranks: efficiency 100 %" in diagnose(points)
    assert "no evidence of scaling" in diagnose([points[0], points[2]])
