"""Which steps are left out, and what ends a run: decisions from the gradient's norm alone."""

import math

import pytest

from hvdlm.train.config import TrainConfig
from hvdlm.train.guard import Guard, GuardConfig, Verdict
from hvdlm.train.loop import ending
from hvdlm.train.loss_scale import LossScaler

USUAL = [1.0, 1.1, 0.9, 1.0, 1.05]


def guard(**options):
    return Guard(GuardConfig(**options))


def test_a_usual_gradient_is_applied_and_a_broken_one_treated_as_told():
    for action, verdict in (("stop", Verdict.STOP), ("skip", Verdict.SKIP), ("rewind", Verdict.REWIND)):
        one = guard(nonfinite=action)
        assert [one.judge(norm) for norm in USUAL] == [Verdict.APPLY] * 5
        assert one.judge(math.nan) == one.judge(math.inf) == verdict
        assert "gradient norm inf" in one.reason


def test_a_spike_is_measured_against_the_running_mean_once_there_is_one():
    one = guard(spike="skip", spike_factor=5.0, spike_warmup=5)
    assert one.judge(100.0) == Verdict.APPLY  # nothing is usual yet
    one = guard(spike="skip", spike_factor=5.0, spike_warmup=5)
    for norm in USUAL:
        one.judge(norm)
    before = one.state.mean_norm
    assert before == pytest.approx(sum(USUAL) / 5)
    assert one.judge(5.5) == Verdict.SKIP
    assert one.state.mean_norm == before  # a spike makes no spike usual
    assert one.judge(4.5) == Verdict.APPLY


def test_too_many_skips_in_a_row_stop():
    one = guard(nonfinite="skip", max_skips=2)
    verdicts = [one.judge(norm).name for norm in (math.nan, math.nan, 1.0, math.nan, math.nan, math.nan)]
    assert verdicts == ["SKIP", "SKIP", "APPLY", "SKIP", "SKIP", "STOP"]
    assert "after 2 skipped steps in a row" in one.reason


def test_a_restored_guard_judges_the_same():
    one, other = guard(spike="stop", spike_warmup=2), guard(spike="stop", spike_warmup=2)
    for norm in USUAL:
        one.judge(norm)
    other.load(one.to_dict())
    assert other.state == one.state
    assert one.judge(20.0) == other.judge(20.0) == Verdict.STOP


def test_the_loss_scale_halves_on_overflow_and_doubles_after_a_quiet_while():
    scaler = LossScaler()
    scaler.update(is_finite=False)
    assert scaler.scale == 2.0**15
    for _ in range(LossScaler.GROWTH_STEPS):
        scaler.update(is_finite=True)
    assert scaler.scale == 2.0**16
    copy = LossScaler()
    copy.load(scaler.to_dict())
    assert copy.to_dict() == scaler.to_dict()
    for _ in range(40):
        scaler.update(is_finite=False)
    assert scaler.scale == LossScaler.SMALLEST


def train_config(**options):
    return TrainConfig(steps=10, global_batch=4, micro_batch=2, **options)


def test_the_ends_of_a_run():
    assert ending(train_config(), [3.0, 4.0, 5.0], 1e9) == ""
    assert ending(train_config(minutes=2.0), [], 119.0) == ""
    assert "2.0 are over" in ending(train_config(minutes=2.0), [], 120.0)
    assert ending(train_config(target_loss=2.0), [2.1], 0.0) == ""
    assert "has reached train.target_loss: 2" in ending(train_config(target_loss=2.0), [2.1, 2.0], 0.0)
    patient = train_config(patience=2)
    assert ending(patient, [3.0, 2.0, 2.5], 0.0) == ""
    assert "no better validation loss in the last 2" in ending(patient, [3.0, 2.0, 2.5, 2.0], 0.0)
    assert ending(patient, [3.0, 2.0, 2.5, 1.9], 0.0) == ""
