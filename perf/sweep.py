"""`hvdlm scale`: every (ranks, batch) point, repeated in turn, each by an mpirun of its own.

Strong scaling keeps the global batch of the config; weak scaling keeps the smallest point's batch a
rank. Both start from the same base point, which is measured once for both. Rounds are interleaved, so a
machine that drifts touches all points alike. Threads a rank are the same at every point.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from hvdlm.config import validate
from hvdlm.errors import EXIT_USER_ERROR, UserError
from hvdlm.files import write_text_durably
from hvdlm.host import physical_cores
from hvdlm.numerals import whole_number
from hvdlm.parallel.mesh import holders_in_words
from hvdlm.partition import micro_batches_per_rank
from hvdlm.tables import counted
from hvdlm.train.config import RunConfig
from hvdlm.train.parts import extensions_of

from .job import JobFailed, run_job
from .measure import MeasurementSpec, Work

log = logging.getLogger("hvdlm")

MOST_RANKS = 1_000_000


@dataclass(frozen=True)
class StudyPoint:
    """One number of ranks with one global batch; the base belongs to both series."""

    ranks: int
    global_batch: int
    is_strong: bool
    is_weak: bool


def parse_ranks(text: str) -> list[int]:
    """`1,2,4` to a sorted list of distinct rank counts."""
    ranks = {whole_number(part.strip()) for part in text.split(",")}
    if None in ranks:
        raise UserError(f"--ranks {text!r}: write numbers with commas, for example 1,2,4")
    counts = sorted(count for count in ranks if count is not None)
    if counts[0] < 1 or counts[-1] > MOST_RANKS:
        raise UserError(f"--ranks {text!r}: a job has 1 to {MOST_RANKS:,} ranks")
    return counts


def plan_points(
    ranks: list[int], modes: tuple[str, ...], global_batch: int, micro_batch: int, shared_by: int = 1
) -> list[StudyPoint]:
    """The points of a study, smallest first; UserError if the batch does not divide at some of them.

    Of ranks that share a model, `shared_by` each, replicas have the batches; weak scaling keeps that of a replica.

    >>> [(p.ranks, p.global_batch) for p in plan_points([1, 2], ("strong", "weak"), 24, 4)]
    [(1, 24), (2, 24), (2, 48)]
    """
    if odd := [count for count in ranks if count % shared_by]:
        raise UserError(f"--ranks: {odd[0]} is no multiple of the {shared_by} ranks that share a model; change it")
    replicas = [count // shared_by for count in ranks]
    try:
        for number in replicas if "strong" in modes else replicas[:1]:
            micro_batches_per_rank(global_batch, micro_batch, number, holders_in_words(number, shared_by))
    except ValueError as error:
        raise UserError(f"{error}; change train.global_batch, train.micro_batch or --ranks") from None
    points: dict[tuple[int, int], set[str]] = {}
    for count, number in zip(ranks, replicas, strict=True):
        for mode in modes:
            batch = global_batch if mode == "strong" else global_batch // replicas[0] * number
            points.setdefault((count, batch), set()).add(mode)
    return [StudyPoint(count, batch, "strong" in of, "weak" in of) for (count, batch), of in sorted(points.items())]


@dataclass(frozen=True)
class Effort:
    """How much of each point is measured."""

    steps: int
    warmup: int
    repeats: int
    work: Work = "train"


def folder_name(work: Work) -> str:
    """Where in a run's folder a study of some work goes: two of them have one workload each."""
    return "scaling" if work == "train" else f"scaling-{work}"


@dataclass(frozen=True)
class PlannedPoint:
    """A point and the measurements of it, each a MeasurementSpec for `hvdlm measure` in a file of its own."""

    point: StudyPoint
    specs: dict[Path, MeasurementSpec]  # in the order of the repeats

    def write(self) -> None:
        for path, spec in self.specs.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text_durably(path, json.dumps(asdict(spec)))


def plan_study(  # noqa: PLR0913 - what a study is
    config: RunConfig,
    folder: Path,
    *,
    ranks: list[int],
    modes: tuple[str, ...],
    effort: Effort,
    threads: int,
    records: Path,
) -> list[PlannedPoint]:
    """Every measurement of a study as FOLDER/points/r00002-b24-0.json; nothing is written.

    The same spec measured again, by a job that was requeued, replaces its own record in the folder `records`.
    """
    planned, extensions = [], extensions_of(config)
    shared_by = config.parallel.shared_by
    if shared_by > 1 and effort.work == "infer":
        raise UserError("parallel: `hvdlm infer` has a whole model a rank; set parallel.pipeline and tensor to 1")
    if config.parallel.data != "auto":
        raise UserError(
            f"parallel.data: {config.parallel.data} is of one number of ranks, a study of several; set auto"
        )
    for point in plan_points(ranks, modes, config.train.global_batch, config.train.micro_batch, shared_by):
        changes: tuple[str, ...] = (f"train.global_batch={point.global_batch}", f"train.threads={threads}")
        if effort.work == "infer":  # no gradients are combined, and ranks meet as those of `hvdlm infer`
            changes += ("sync=allreduce",)
        settings = validate(RunConfig, config.model_dump(mode="json"), Path("scale"), changes)
        values, counts = settings.model_dump(mode="json"), (effort.steps, effort.warmup)
        specs = {}
        for repeat in range(effort.repeats):
            path = folder / "points" / f"r{point.ranks:05d}-b{point.global_batch}-{repeat}.json"
            specs[path] = MeasurementSpec(
                values, str(records), repeat, *counts, point.is_strong, point.is_weak, extensions, effort.work
            )
        planned.append(PlannedPoint(point, specs))
    return planned


def sweep(config: RunConfig, folder: Path, *, ranks: list[int], modes: tuple[str, ...], effort: Effort) -> None:
    """Measure every point `effort.repeats` times into FOLDER/records; those of an earlier study go at the end."""
    if not config.sync.steps_together:
        raise UserError(f"sync: {config.sync.label} has no steps that all ranks share, so there is none to time")
    threads = config.train.threads or max(1, physical_cores() // ranks[-1])
    fresh = folder / ".records"
    planned = plan_study(config, folder, ranks=ranks, modes=modes, effort=effort, threads=threads, records=fresh)
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        for each in planned:
            each.write()
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from None
    total, started = len(planned) * effort.repeats, time.monotonic()
    log.info(
        "scaling: %s, %s of %s each, %s a rank",
        counted(len(planned), "point"),
        counted(effort.repeats, "run"),
        counted(effort.steps, "step"),
        counted(threads, "thread"),
    )
    for number in range(total):
        repeat, each = number // len(planned), planned[number % len(planned)]
        _run(list(each.specs)[repeat], each.point)
        left_s = (time.monotonic() - started) / (number + 1) * (total - number - 1)
        which = f"{counted(each.point.ranks, 'rank')}, global batch {each.point.global_batch}"
        log.info("measured %d/%d: %s | %.0f s left", number + 1, total, which, left_s)
    shutil.rmtree(folder / "records", ignore_errors=True)
    fresh.rename(folder / "records")


def _run(spec: Path, point: StudyPoint) -> None:
    """One measurement by an mpirun of its own. Its user errors are ours; anything else shows its output."""
    try:
        run_job(point.ranks, ["measure", str(spec)])
    except JobFailed as error:
        if error.code == EXIT_USER_ERROR:
            raise UserError(f"measuring {counted(point.ranks, 'rank')} failed: {error}") from None
        told = f"measuring {counted(point.ranks, 'rank')} ended with exit code {error.code}"
        raise RuntimeError(f"{told}:\n{error.stderr}") from None
