"""The learning rate is a function of the step, the config and the validation losses, and follows its reference."""

import itertools
import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hvdlm.optim import SCHEDULES, OptimConfig, lr_at, plateau_factor

NEEDS = {"step": {"milestones": (0.5,)}}


def rates(total_steps, **options):
    config = OptimConfig(**options)
    return [lr_at(step, total_steps, config) for step in range(total_steps + 1)]


def rates_of_torch(total_steps, scheduler):
    """A torch scheduler's learning rate of each step, from a peak of 1."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = scheduler(optimizer)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the optimizer itself never steps
        for _ in range(total_steps + 1):
            found.append(optimizer.param_groups[0]["lr"])
            schedule.step()
    return found


@pytest.mark.parametrize(
    ("options", "golden"),
    [
        (
            {"min_lr": 3e-5},
            [4.2857142857142856e-05, 0.00017142857142857143, 0.0003, 0.0003, 0.00029963985829457943]
            + [0.0002435509536003236, 0.00012141114535585477, 3.0360141705420527e-05, 3e-05, 3e-05],
        ),
        ({"min_lr": 1e-5, "schedule": "constant"}, [4.2857142857142856e-05, 0.00017142857142857143] + [0.0003] * 8),
    ],
)
def test_rates_of_the_first_version_are_the_same_to_the_bit(options, golden):
    config = OptimConfig(lr=3e-4, warmup_steps=7, **options)
    assert [lr_at(step, 50, config) for step in (0, 3, 6, 7, 8, 20, 33, 49, 50, 60)] == golden


def test_a_warmup_longer_than_the_run():
    assert lr_at(4, 5, OptimConfig(lr=1.0, warmup_steps=10)) == pytest.approx(0.5)


TORCHS = torch.optim.lr_scheduler
MILESTONES = {"milestones": (10, 0.5, 0.75), "factor": 0.3}


@pytest.mark.parametrize(
    ("schedule", "options", "scheduler"),
    [
        ("linear", {}, lambda optimizer: TORCHS.PolynomialLR(optimizer, 40, 1.0)),
        ("polynomial", {"power": 2.5}, lambda optimizer: TORCHS.PolynomialLR(optimizer, 40, 2.5)),
        ("cosine", {}, lambda optimizer: TORCHS.CosineAnnealingLR(optimizer, 40)),
        ("step", MILESTONES, lambda optimizer: TORCHS.MultiStepLR(optimizer, [10, 20, 30], 0.3)),
    ],
)
def test_schedules_equal_torchs(schedule, options, scheduler):
    found = rates(40, lr=1.0, warmup_steps=0, schedule=schedule, **options)
    assert found == pytest.approx(rates_of_torch(40, scheduler), abs=1e-9)


@pytest.mark.parametrize("warmup", [4000, 1])
def test_inverse_sqrt_is_the_formula_of_attention_is_all_you_need(warmup):
    """width^-0.5 * min(s^-0.5, s * warmup^-1.5), s from 1."""
    width = 512
    config = OptimConfig(lr=(width * warmup) ** -0.5, schedule="inverse_sqrt", warmup_steps=warmup)
    for step in (0, 1, 1999, 3999, 4000, 100_000):
        number = step + 1
        expected = width**-0.5 * min(number**-0.5, number * warmup**-1.5)
        assert lr_at(step, 10_000, config) == pytest.approx(expected)


@pytest.mark.parametrize(("shape", "middle"), [("linear", 0.5), ("1-sqrt", 1 - math.sqrt(0.5))])
def test_wsd_is_flat_then_falls(shape, middle):
    found = rates(100, lr=1.0, warmup_steps=5, schedule="wsd", decay_fraction=0.2, decay_shape=shape)
    assert found[4:81] == [1.0] * 77
    assert found[90] == pytest.approx(middle)
    assert found[100] == 0.0
    assert all(a > b for a, b in itertools.pairwise(found[80:]))


def test_a_longer_wsd_run_begins_like_a_shorter_one():
    short, long = (rates(steps, lr=1.0, schedule="wsd", warmup_steps=5) for steps in (100, 200))
    assert short[:91] == long[:91]


def test_wsd_decay_does_not_begin_before_the_warmup_ends():
    found = rates(10, lr=1.0, schedule="wsd", warmup_steps=6, decay_fraction=1.0)
    assert found[5] == found[6] == 1.0
    assert found[8] == 0.5


@given(st.lists(st.floats(0.5, 10.0), max_size=60), st.integers(1, 5), st.sampled_from([0.0, 1e-4, 0.1]))
def test_plateau_equals_torchs(losses, patience, threshold):
    """torch's patience counts the validations that are forgiven, ours those until the cut: one more."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = TORCHS.ReduceLROnPlateau(optimizer, "min", 0.5, patience - 1, threshold, eps=0)
    for loss in losses:
        schedule.step(loss)
    assert plateau_factor(losses, patience, 0.5, threshold) == optimizer.param_groups[0]["lr"]


def test_a_loss_that_is_no_number_is_no_improvement():
    assert plateau_factor([2.0, math.nan, math.nan], 2, 0.5, 0.0) == 0.5


def test_the_plateau_lowers_the_rate_but_not_below_the_minimum():
    config = OptimConfig(lr=1.0, min_lr=0.2, warmup_steps=0, schedule="plateau", patience=2, factor=0.5)
    rates = [lr_at(9, 10, config, val_losses=[3.0] * n) for n in (0, 1, 2, 3, 5, 7, 9)]
    assert rates == [1, 1, 1, 0.5, 0.25, 0.2, 0.2]


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_every_schedule_peaks_after_the_warmup_and_stays_between_its_ends(schedule):
    options = {"lr": 1.0, "min_lr": 0.05, "warmup_steps": 10, "schedule": schedule, **NEEDS.get(schedule, {})}
    found = rates(200, **options)
    assert found[9] == 1.0
    assert found[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert all(0.05 <= rate <= 1.0 for rate in found[10:])
    assert all(a >= b for a, b in itertools.pairwise(found[10:]))
    assert lr_at(0, 1, OptimConfig(**{**options, "warmup_steps": 0})) == 1.0


@pytest.mark.parametrize(("rule", "factor"), [("linear", 4.0), ("sqrt", 2.0)])
@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_the_rate_scales_with_the_batch_where_the_config_says_so(rule, factor, schedule):
    options = {"lr": 1e-3, "min_lr": 1e-4, "schedule": schedule, "warmup_steps": 5, **NEEDS.get(schedule, {})}
    plain = OptimConfig(**options)
    scaled = OptimConfig(**options, lr_scaling=rule, lr_reference_batch=32)
    for step in (0, 4, 5, 30, 60):
        assert lr_at(step, 60, scaled, global_batch=32) == lr_at(step, 60, plain)
        assert lr_at(step, 60, scaled, global_batch=128) == pytest.approx(factor * lr_at(step, 60, plain))
        assert lr_at(step, 60, plain, global_batch=128) == lr_at(step, 60, plain)


def test_scaling_without_a_batch_is_an_error():
    with pytest.raises(ValueError, match="needs the global batch"):
        lr_at(0, 10, OptimConfig(lr_scaling="linear", lr_reference_batch=32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_scaling": "linear"}, "go together"),
        ({"lr_reference_batch": 32}, "go together"),
        ({"schedule": "step"}, "step needs milestones"),
        ({"schedule": "step", "milestones": (10, 20.5)}, "whole numbers"),
        ({"schedule": "step", "milestones": (-1,)}, "greater than 0"),
        ({"schedule": "step", "milestones": ("0.5",)}, "valid number"),
        ({"min_lr": 1.0, "lr": 0.1}, "min_lr 1.0 is above lr 0.1"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov needs a momentum"),
        ({"groups": ({"match": "("},)}, "not a regular expression"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(options, message):
    with pytest.raises(ValidationError, match=message):
        OptimConfig(**options)
