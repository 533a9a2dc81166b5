"""`hvdlm infer`: units of a file's records to parts of an output by whichever rank is free, then all parts to one file.

What is written depends on the file, the model and the settings alone, to the last byte: a record's texts have a seed of
their own, and what is computed together is of one unit, which knows no rank. So the same command goes on after a kill,
on any number of ranks. Each rank computes with so many threads as it is told, one if it is not: sums of another number
of threads may be rounded otherwise.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hvdlm import checkpoint
from hvdlm.errors import UserError
from hvdlm.files import locked, make_ready
from hvdlm.inference.infer import parts
from hvdlm.inference.infer.answers import Answering
from hvdlm.inference.infer.beams import Searching
from hvdlm.inference.infer.lines import UnitReader, look_through
from hvdlm.inference.infer.made_by import made_by
from hvdlm.inference.infer.parts import Plan
from hvdlm.inference.infer.scores import Scoring
from hvdlm.inference.infer.summary import Share, summary_of, unread_in_words
from hvdlm.inference.infer.wanted import Wanted
from hvdlm.inference.infer.work import Values, Work
from hvdlm.inference.infer.writing import Writing
from hvdlm.inference.load import Loaded, load_checkpoint_model, prepare, tokenizer_of
from hvdlm.launch.environment import threads_wanted
from hvdlm.session.stop import BatchJob, stop_flag
from hvdlm.session.work_queue import PhaseTimer, Tasks, WorkQueue
from hvdlm.tables import counted
from hvdlm.tokenizer import Tokenizer
from hvdlm.world.interface import World
from hvdlm.world.place import Place, find_place

log = logging.getLogger("hvdlm")

TELL_S = 0.2  # how often a rank tells what it has done, and looks whether it shall stop
MOST_KEYS = 20  # that are told
THREADS = "train.threads=1"


@dataclass(frozen=True)
class Opened:
    """A model that is loaded, and a file that was looked through: what is left to do, or what was done before."""

    work: Work
    plan: Plan | None
    summary: dict[str, Any]  # of an output that is complete, or what the model tells of itself
    timer: PhaseTimer
    unused_threads: str = ""  # what is to be said of them, if anything


def infer(  # noqa: PLR0913 - a model, a file and what is asked; where and how it runs
    target: Path,
    overrides: tuple[str, ...],
    source: Path,
    out: Path,
    wanted: Wanted,
    world: World,
    batch_job: BatchJob = BatchJob(),  # noqa: B008 - frozen
) -> dict[str, Any]:
    """What a checkpoint's model makes of each record of `source`, into `out`; the summary, equal on all ranks.

    Raises StoppedOnRequest on all ranks when one was asked to stop; finished units stay.
    """
    return run(opened(target, overrides, source, out, wanted, world), world, batch_job)


def opened(target: Path, overrides: tuple[str, ...], source: Path, out: Path, wanted: Wanted, world: World) -> Opened:
    """What is needed before the first unit; nothing but the output's folder is made yet. Collective."""
    timer = PhaseTimer()
    path = world.on_root(lambda: checkpoint.resolve(target))
    place = find_place(world)
    with timer.phase("load"), world.together():
        loaded = load_checkpoint_model(path, (THREADS, *overrides), place)
        tokenizer = tokenizer_of(path, loaded.state)
        if wanted.int8 or not loaded.config.task.reads_records:
            loaded = prepare(loaded, path, tokenizer, int8=wanted.int8)
        work = work_for(loaded, tokenizer, wanted, source, path)
    with timer.phase("plan"):
        found = world.on_root(lambda: _plan(source, out, work, loaded, wanted))
    if isinstance(found, dict):
        return Opened(work, None, found, timer)
    of_model = {"step": loaded.state["step"], "checkpoint": str(path)}
    return Opened(work, found, of_model, timer, _unused_threads(loaded, place))


def run(job: Opened, world: World, batch_job: BatchJob) -> dict[str, Any]:
    """All that is left to do; the summary. Collective."""
    plan, timer = job.plan, job.timer
    if plan is None:
        if world.rank == 0:
            log.info("%s is complete already: %s", job.summary["out"], counted(job.summary["num_records"], "record"))
        return job.summary
    with ExitStack() as stack:
        with world.together():
            plan.work.mkdir(parents=True, exist_ok=True)
            if world.rank == 0:
                stack.enter_context(locked(plan.work / parts.LOCK))
        stop = stack.enter_context(stop_flag(plan.work, world, batch_job))
        with timer.phase("plan"):
            begun = _without_damaged(world.on_root(lambda: parts.begin(plan)), world)
        if world.rank == 0 and begun.todo and job.unused_threads:
            log.info("%s", job.unused_threads)
        queue = WorkQueue(plan.halt, str(plan.out), world, stop, timer)
        done = _run(begun, job.work, queue)
        return _end(begun, queue, job.work, done, job.summary)


def _unused_threads(loaded: Loaded, place: Place) -> str:
    """A word where a rank could have more of them; not where somebody has said how many it shall have."""
    used = loaded.config.train.threads
    if loaded.model.device.type != "cpu" or (threads_wanted() or place.threads) <= used:
        return ""
    return (
        f"a rank computes with {counted(used, 'thread')} of the {threads_wanted() or place.threads} it could have here:"
        " start more ranks, or set train.threads, which is to be the same at every start"
    )


def work_for(loaded: Loaded, tokenizer: Tokenizer, wanted: Wanted, source: Path, path: Path) -> Work:
    """What a model is asked for; UserError where it cannot do that."""
    if loaded.config.task.reads_records:
        return Answering(loaded, tokenizer, wanted, source)
    if wanted.scores:
        return Scoring(loaded, tokenizer, wanted)
    loaded.check_writes(path)
    if wanted.beams:
        return Searching(loaded, tokenizer, wanted)
    return Writing(loaded, tokenizer, wanted)


def _plan(source: Path, out: Path, work: Work, loaded: Loaded, wanted: Wanted) -> Plan | dict[str, Any]:
    """What is to be done, or the summary of what is done already. On rank 0."""
    if out.suffix in (".gz", ".zst", ".bz2", ".xz"):
        raise UserError(f"--out {out}: lines are written as they are; name it without {out.suffix}")
    unread = Counter[str]()

    def check(values: Values) -> None:
        work.check(values)
        unread.update(work.unread(values))

    found = look_through(source, check, work.rows)
    make_ready("--out", out)
    if out.exists() and out.samefile(source):
        raise UserError(f"--out {out}: is the input; name another file")
    unread_keys = dict(unread.most_common(MOST_KEYS))
    if found.num_blank:
        log.info("%s: %s passed over", source, counted(found.num_blank, "blank line"))
    settings = made_by(found, loaded, wanted)
    if summary := parts.finished(out, settings):
        return summary
    parts.check_work(out)
    if unread_keys:
        log.warning("%s: %s", source, unread_in_words(unread_keys, found.num_records))
    return Plan(found, out, settings, unread_keys)


def _without_damaged(plan: Plan, world: World) -> Plan:
    """The plan in which units are done again whose parts are not as an earlier start saved them. Collective."""
    done = sorted({unit.number for unit in plan.source.units}.difference(plan.todo))
    if not done:
        return plan
    if world.rank == 0:
        log.info("%s: %s of an earlier start", plan.work, counted(len(done), "unit"))
    with world.together():
        damaged = parts.damaged(plan, done[world.rank :: world.size])
    again = sorted(unit for units in world.gather(damaged) for unit in units)
    if again and world.rank == 0:
        log.warning("%s: %s changed since; done again", plan.work, counted(len(again), "unit"))
    world.on_root(lambda: parts.discard(plan, again))
    return replace(plan, todo=tuple(sorted((*plan.todo, *again))))


def _run(plan: Plan, work: Work, queue: WorkQueue) -> list[int]:
    """All units that are to be done; what this rank has done since, in the order of `work.counted`."""
    total = sum(plan.source.units[number].num_records for number in plan.todo)
    done, told, last = [0] * len(work.counted), [0] * len(work.counted), time.monotonic()

    def tell(*amounts: int, is_last: bool = False) -> None:
        nonlocal last
        for counter, amount in enumerate(amounts):
            done[counter] += amount
        if time.monotonic() - last >= TELL_S:
            last = time.monotonic()
            since = [now - before for now, before in zip(done, told, strict=True)]
            told[:] = done
            queue.count(*since, may_leave=not is_last)

    def infer_unit(number: int) -> int:
        unit = plan.source.units[number]
        lines, counts = work.lines(unit, reader.read(unit), tell)
        assert len(lines) == unit.num_records, "a line a record"
        parts.write_part(plan.part(number), lines, counts)
        return unit.num_records

    if not plan.todo:
        return done
    with UnitReader(plan.source) as reader:
        queue.run(Tasks("infer", plan.todo, infer_unit, total, "records", counted=work.counted))
    return done


def _end(plan: Plan, queue: WorkQueue, work: Work, done: list[int], of_model: dict[str, Any]) -> dict[str, Any]:
    """The output and its summary, from all parts. Collective."""
    world = queue.world
    shares = world.gather(Share(done, dict(work.seconds), queue.timer.seconds))

    def conclude() -> dict[str, Any]:
        sha256, counts = parts.assemble(plan)
        wall_s = round(time.monotonic() - queue.timer.start, 3)
        summary = summary_of(plan, work.counted, shares, counts, sha256) | of_model | {"wall_s": wall_s}
        parts.finish(plan, summary)
        if num := counts["unknown_tokens"]:
            told = "%s: %s unknown to the vocabulary, so the model does not see what they are"
            log.warning(told, plan.source.path, counted(num, "token"))
        return summary

    return world.on_root(conclude)
