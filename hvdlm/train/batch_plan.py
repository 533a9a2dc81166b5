"""How large each step's global batch is: constant, or growing to `global_batch` in stages. Pure integers.

Small batches early on cost no progress, since gradients then agree (McCandlish et al. 2018); Brown et al. 2020
(GPT-3) raise the batch linearly for this reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import Field

from hvdlm.config import Section
from hvdlm.errors import UserError


class RampConfig(Section):
    """The `train.ramp` section: from `start` sequences a step up to `train.global_batch`."""

    start: int = Field(ge=1, description="sequences of the first step's global batch")
    increment: int = Field(ge=1, description="sequences by which each stage is larger than the one before")
    steps: int = Field(ge=1, description="steps before the batch is train.global_batch, shared evenly by the stages")


@dataclass(frozen=True)
class RampStage:
    """Steps [first, end) have global batches of `batch` sequences; the last stage has no end."""

    first: int
    end: int | None
    batch: int


class BatchPlan:
    """The global batch of every step, and how many samples come before it.

    >>> plan = BatchPlan(8, RampConfig(start=2, increment=3, steps=4))
    >>> [plan.batch_at(step) for step in range(6)], plan.samples_before(6)
    ([2, 2, 5, 5, 8, 8], 30)
    """

    def __init__(self, global_batch: int, ramp: RampConfig | None = None) -> None:
        self.stages = _stages(global_batch, ramp)

    def batch_at(self, step: int) -> int:
        """Sequences of a step's global batch."""
        return next(stage.batch for stage in self.stages if stage.end is None or step < stage.end)

    def samples_before(self, step: int) -> int:
        """Sequences of all steps before `step`, which is where its own begin in the order of the data."""
        return sum(
            stage.batch * ((step if stage.end is None else min(step, stage.end)) - stage.first)
            for stage in self.stages
            if stage.first < step
        )

    def steps_for(self, num_samples: int) -> int:
        """The fewest steps that train on at least `num_samples` sequences."""
        for stage in self.stages:
            missing = num_samples - self.samples_before(stage.first)
            end = stage.first + -(-missing // stage.batch)
            if stage.end is None or end <= stage.end:
                return end
        raise AssertionError("the last stage has no end")

    def check(self, micro_batch: int, size: int, sharers: str = "ranks") -> None:
        """UserError if so many ranks, or what `sharers` says, cannot share a stage's batch in whole micro-batches."""
        for number, stage in enumerate(self.stages):
            if stage.batch % (micro_batch * size):
                growing = f"train.ramp: stage {number} (from step {stage.first}), whose batch"
                place = "train.global_batch" if stage.end is None else growing
                raise UserError(
                    f"{place} {stage.batch} is not a multiple of micro_batch {micro_batch} x {size} {sharers}"
                    f" = {micro_batch * size}; change it, train.micro_batch or the number of ranks"
                )


def _stages(global_batch: int, ramp: RampConfig | None) -> tuple[RampStage, ...]:
    if ramp is None:
        return (RampStage(0, None, global_batch),)
    if ramp.start >= global_batch:
        raise UserError(
            f"train.ramp: start {ramp.start} is not below train.global_batch {global_batch}; leave the ramp out"
        )
    batches = range(ramp.start, global_batch, ramp.increment)
    if ramp.steps < len(batches):
        raise UserError(
            f"train.ramp: {ramp.steps} steps are fewer than its {len(batches)} stages; raise steps or increment"
        )
    return (*_growing(batches, ramp.steps), RampStage(ramp.steps, None, global_batch))


def _growing(batches: range, steps: int) -> Iterator[RampStage]:
    """One stage a batch, together range(steps), of lengths that differ by at most one."""
    for number, batch in enumerate(batches):
        yield RampStage(number * steps // len(batches), (number + 1) * steps // len(batches), batch)
