"""Batches grow in stages to the global batch, and every sample has its step."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvdlm.errors import UserError
from hvdlm.parallel.mesh import Mesh
from hvdlm.train.batch_plan import BatchPlan, RampConfig


@st.composite
def plans(draw):
    """(plan, ramp, global batch) of any ramp that is valid."""
    start, increment = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    global_batch = draw(st.integers(start + 1, 200))
    stages = len(range(start, global_batch, increment))
    ramp = RampConfig(start=start, increment=increment, steps=draw(st.integers(stages, 500)))
    return BatchPlan(global_batch, ramp), ramp, global_batch


@given(plans(), st.integers(0, 600))
def test_each_step_takes_the_samples_after_those_before_it(drawn, step):
    plan, _, _ = drawn
    assert plan.samples_before(0) == 0
    assert plan.samples_before(step + 1) - plan.samples_before(step) == plan.batch_at(step)


@given(plans())
def test_batches_grow_by_the_increment_to_the_global_batch(drawn):
    plan, ramp, global_batch = drawn
    batches = [plan.batch_at(step) for step in range(ramp.steps + 1)]
    assert batches[0] == ramp.start
    assert max(batches[:-1]) < batches[-1] == global_batch == plan.batch_at(10**9)
    distinct = list(dict.fromkeys(batches))
    assert distinct == sorted(distinct)
    assert all(later - earlier == ramp.increment for earlier, later in itertools.pairwise(distinct[:-1]))
    assert 0 < distinct[-1] - distinct[-2] <= ramp.increment


@given(plans())
def test_stages_are_equally_long(drawn):
    plan, ramp, _ = drawn
    lengths = [stage.end - stage.first for stage in plan.stages[:-1]]
    assert sum(lengths) == ramp.steps
    assert max(lengths) - min(lengths) <= 1


@given(plans(), st.integers(0, 50_000))
def test_steps_for_is_the_first_step_count_with_that_many_samples(drawn, num_samples):
    plan, _, _ = drawn
    steps = plan.steps_for(num_samples)
    assert plan.samples_before(steps) >= num_samples
    assert steps == 0 or plan.samples_before(steps - 1) < num_samples


def test_without_a_ramp_every_batch_is_the_global_one():
    plan = BatchPlan(12)
    assert [plan.batch_at(step) for step in (0, 1, 10**6)] == [12, 12, 12]
    assert plan.samples_before(10**12) == 12 * 10**12
    assert [plan.steps_for(samples) for samples in (0, 1, 12, 13)] == [0, 1, 1, 2]


def test_every_stage_must_divide_among_the_ranks():
    plan = BatchPlan(16, RampConfig(start=4, increment=4, steps=30))
    plan.check(2, Mesh(data=2))
    plan.check(4, Mesh())
    with pytest.raises(UserError, match=r"train.ramp: stage 0 .from step 0., whose batch 4 .* 4 x 2 ranks = 8; change"):
        plan.check(4, Mesh(data=2))
    with pytest.raises(UserError, match=r"stage 1 .from step 10., whose batch 7 is not a multiple of micro_batch 2"):
        BatchPlan(16, RampConfig(start=4, increment=3, steps=40)).check(2, Mesh())
    with pytest.raises(UserError, match=r"^train.global_batch 16 is not a multiple of micro_batch 3 x 1 ranks = 3"):
        BatchPlan(16).check(3, Mesh())


def test_ranks_that_share_a_model_are_counted_as_one_replica():
    plan = BatchPlan(12)
    plan.check(6, Mesh(pipeline=2, data=2, tensor=2))
    message = r"12 is not .* of micro_batch 6 x 4 replicas .of 2 ranks each. = 24; change it, .*, the mesh or the"
    with pytest.raises(UserError, match=message):
        plan.check(6, Mesh(pipeline=2, data=4))


def test_a_ramp_that_cannot_be_is_refused():
    with pytest.raises(UserError, match=r"start 16 is not below train.global_batch 16"):
        BatchPlan(16, RampConfig(start=16, increment=4, steps=30))
    with pytest.raises(UserError, match=r"2 steps are fewer than its 3 stages"):
        BatchPlan(16, RampConfig(start=4, increment=4, steps=2))
