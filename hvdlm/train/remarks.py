"""What a config asks for and its run cannot do, such as a warm-up that is longer: said at the start, in a line each.

None of it is an error: a short trial of a long run's config has all of these, and is in order.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from hvdlm.optim.schedules import SCHEDULES
from hvdlm.tables import count
from hvdlm.train.batch_plan import BatchPlan
from hvdlm.train.config import RunConfig

MANY_PASSES = 4  # times as many as would do
MANY_EPOCHS = 2.0  # passes over a corpus that nobody asked for in so many words


def remarks(
    config: RunConfig,
    plan: BatchPlan,
    total_steps: int,
    epoch_samples: Sequence[float],
    *,
    size: int = 1,
    saves_best: bool = False,
) -> list[str]:
    """One line for each setting that has no effect, or another than it seems, in `total_steps`.

    `size` are the ranks that share a batch, replicas where several ranks share a model.
    `epoch_samples` are the samples of the training order in which each corpus is seen once; a run that counts, and does
    not descend, has no order. It may save each better validation, which `saves_best` tells.
    """
    of_intervals = _of_intervals(config, total_steps, saves_best=saves_best)
    if not epoch_samples:
        return [*config.model.remarks, *_of_counted(config), *of_intervals]
    return [
        *config.model.remarks,
        *_of_learning_rate(config, total_steps),
        *_of_batch(config, plan, total_steps),
        *_of_budget(config, plan, total_steps, size),
        *of_intervals,
        *config.task.remarks(total_steps),
        *_of_data(config, plan.samples_before(total_steps), epoch_samples),
    ]


def _of_counted(config: RunConfig) -> Iterator[str]:
    if config.ema.decay:
        yield f"ema.decay: {config.ema.decay} keeps no mean: this {config.model.family} is counted"


def _of_learning_rate(config: RunConfig, total_steps: int) -> Iterator[str]:
    optim, steps = config.optim, f"this run's {count(total_steps)} steps"
    if optim.warmup_steps >= total_steps:
        share = "as long as" if optim.warmup_steps == total_steps else "longer than"
        highest = optim.lr * total_steps / optim.warmup_steps
        yield (
            f"optim.warmup_steps: {count(optim.warmup_steps)} is {share} {steps}: the learning rate rises to the end,"
            f" to {highest:.2e} of optim.lr {optim.lr:.2e}, and optim.schedule: {optim.schedule} never begins;"
            f" set optim.warmup_steps to {total_steps // 10} or the like"
        )
        return
    late = [milestone for milestone in optim.milestones if milestone >= max(1, total_steps)]
    if SCHEDULES[optim.schedule].needs_milestones and late:
        yield f"optim.milestones: {', '.join(map(count, late))} come after {steps}"
    flat = total_steps - optim.warmup_steps - max(1, round(optim.decay_fraction * total_steps))
    if optim.schedule == "wsd" and flat <= 0:
        yield (
            f"optim.schedule: wsd has no stable part: warmup_steps {count(optim.warmup_steps)} and decay_fraction"
            f" {optim.decay_fraction} fill {steps}; lower one"
        )
    if config.ema.decay and not config.ema.warmup and 1 / (1 - config.ema.decay) > total_steps:
        yield (
            f"ema.decay: {config.ema.decay} looks back {count(1 / (1 - config.ema.decay))} steps, further than {steps}:"
            " the mean stays near the first weights; lower it, or leave ema.warmup on"
        )


def _of_batch(config: RunConfig, plan: BatchPlan, total_steps: int) -> Iterator[str]:
    train, steps = config.train, f"this run's {count(total_steps)} steps"
    if train.ramp is not None and train.ramp.steps >= total_steps:
        yield (
            f"train.ramp.steps: {count(train.ramp.steps)} is not below {steps}: train.global_batch"
            f" {train.global_batch} is never reached, the last step has {plan.batch_at(total_steps - 1)} sequences"
        )
    first = plan.batch_at(0) * config.data.seq_len
    if train.tokens is not None and train.tokens < first:
        yield f"train.tokens: {count(train.tokens)} is less than one step, which is {count(first)} tokens: one is made"


def _of_budget(config: RunConfig, plan: BatchPlan, total_steps: int, size: int) -> Iterator[str]:
    """A pass has fewer examples than it may where a budget of tokens fills a step with few."""
    train = config.train
    if not train.batch_tokens:
        return
    mine = plan.samples_before(total_steps) / total_steps / size  # examples of a rank in a step
    passes = math.ceil(min(mine, train.global_batch / train.micro_batch / size))
    if passes >= MANY_PASSES * math.ceil(mine / train.micro_batch):
        yield (
            f"train.micro_batch: {train.micro_batch} cuts a rank's part of a step into {passes} passes of about"
            f" {mine / passes:.1f} examples, for train.batch_tokens: {count(train.batch_tokens)} ends it long before"
            f" train.global_batch: {train.global_batch}; lower that, or raise micro_batch, to"
            f" {train.global_batch // size} at most"
        )


def _of_intervals(config: RunConfig, total_steps: int, *, saves_best: bool) -> Iterator[str]:
    train, steps = config.train, f"this run's {count(total_steps)} steps"
    before_end = (total_steps - 1) // train.eval_every  # validations that could still end it
    seen = f"of which {steps} have {count(before_end)} before the last"
    if train.patience is not None and train.patience + 1 > before_end:
        yield (
            f"train.patience: {train.patience} takes {train.patience + 1} validations, {seen}, every"
            f" {count(train.eval_every)} steps: it ends nothing; lower train.eval_every"
        )
    if config.optim.needs_validation and config.optim.patience + 1 > before_end:
        yield (
            f"optim.schedule: {config.optim.schedule} with optim.patience: {config.optim.patience} lowers the learning"
            f" rate after {config.optim.patience + 1} validations at the soonest, {seen}, every"
            f" {count(train.eval_every)} steps: it stays; lower train.eval_every"
        )
    if train.target_loss is not None and train.target_loss <= 0:
        yield f"train.target_loss: {train.target_loss} is never reached: the loss is above 0"
    if config.log.trace is not None and config.log.trace[0] >= total_steps:
        yield f"log.trace: steps {list(config.log.trace)} come after {steps}: nothing is recorded"
    rare = {"train.eval_every": train.eval_every, "checkpoint.every": config.checkpoint.every}
    if saves_best and train.eval_every <= total_steps:
        del rare["checkpoint.every"]
    rare = {key: every for key, every in rare.items() if every > total_steps}
    if rare:
        what = {"train.eval_every": "validated", "checkpoint.every": "saved"}
        keys = ", ".join(f"{key}: {count(every)}" for key, every in rare.items())
        yield f"{keys}: more than {steps}, so it is {' and '.join(what[key] for key in rare)} at the end alone"


def _of_data(config: RunConfig, num_samples: int, epoch_samples: Sequence[float]) -> Iterator[str]:
    if config.task.reads_documents and config.data.order != "documents":
        yield (
            f"task: {config.task.kind} is of texts as a whole, and data.order: {config.data.order} cuts windows of"
            f" {config.data.seq_len} tokens wherever they fall; data.order=documents takes each document as one"
        )
    for name, samples in zip(config.data.names, epoch_samples, strict=True):
        epochs, batch = num_samples / samples, config.train.global_batch
        if samples < batch:
            yield (
                f"{name}: is but {samples:,.1f} sequences of the order, fewer than train.global_batch: {batch};"
                f" each step sees it {batch / samples:,.1f} times"
            )
        elif epochs >= MANY_EPOCHS and config.train.epochs is None:
            yield f"{name}: is seen {epochs:,.1f} times in this run (train.epochs ends a run by that)"
