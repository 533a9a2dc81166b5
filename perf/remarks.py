"""What a reader has to know before believing a study's figures. Each remark is a sentence with the points it is about.

The thresholds are rules of thumb, so nothing is refused here. Hoefler and Belli, "Scientific Benchmarking of
Parallel Computing Systems" (SC15), rules 1 (the base), 5 (intervals) and 9 (all factors of an experiment).
"""

from __future__ import annotations

import datetime
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from hvdlm.tables import counted

from .confidence import t_quantile
from .record import RunRecord
from .study import Study

LOSS_TOLERANCE = {"fp32": 1e-3}  # of one batch's first loss, relative; sums of other precisions depend on their order
ROUGH_LOSS_TOLERANCE = 0.03
DRIFT = 1.05  # of a whole round against another
SPREAD = 1.2  # of the repeats of a point
WARMING = 1.1  # of the first third of a run's steps to its last
OUTLIER = 20.0  # times the median step
APART_S = 2 * 3600.0  # between runs that follow one another
PICKUP_S = 1.0  # `started` is in whole seconds
UNKNOWN = "unknown"


def remarks(study: Study) -> list[str]:
    """All of them, the gravest first."""
    return [remark for find in FINDERS for remark in find(study)]


def circumstances(record: RunRecord) -> dict[str, str]:
    """What ought to be equal in a study, by name: hardware and software."""
    where = record.environment
    hardware = {"Processor": where.cpu, "GPU": where.gpu or "none"}
    return {**hardware, "MPI": where.mpi, **where.versions, "System": where.system}


def points_by_circumstance(study: Study) -> dict[str, dict[str, str]]:
    """By the name of a circumstance its values, and of each the points that have it (none named where all do)."""
    names = dict.fromkeys(name for record in study.records for name in circumstances(record))
    return {name: study.points_by(partial(_circumstance, name)) for name in names}


def _circumstance(name: str, record: RunRecord) -> str:
    return circumstances(record).get(name, UNKNOWN)


def _other_circumstances(study: Study) -> Iterator[str]:
    for name, values in points_by_circumstance(study).items():
        if len(values) == 1:
            continue
        listed = "; ".join(f"{value} ({points})" for value, points in values.items())
        weight = "which may change their times" if name == "System" else "so their times are not comparable"
        yield f"{name} differs between the points, {weight}: {listed}."


def _no_clock(study: Study) -> Iterator[str]:
    seen: dict[tuple, RunRecord] = {}
    for record in study.records:
        times = [second for rank in record.step_s for second in rank]
        other = seen.setdefault(record.step_s, record)
        if other is not record:
            yield f"{record.name} has the times of {other.name}, which no clock gives: was it measured?"
        if len(times) > 2 and len(set(times)) == 1:
            yield f"Every step of {record.name} took exactly {times[0]:g} s, which no clock gives: was it measured?"


def _other_training(study: Study) -> Iterator[str]:
    """The same global batch through the same weights has the same loss, whatever the ranks."""
    tolerance = LOSS_TOLERANCE.get(study.workload.precision, ROUGH_LOSS_TOLERANCE)
    for batch in sorted({record.global_batch for record in study.records}):
        losses = {record.first_loss: record for record in study.records if record.global_batch == batch}
        low, high = min(losses), max(losses)
        if high - low > tolerance * max(abs(low), abs(high)):
            yield (
                f"The first loss at global batch {batch} is {low:.6g} in {losses[low].name} and {high:.6g} in "
                f"{losses[high].name}: not the same work, so other data, another config or a wrong result."
            )


def _few_repeats(study: Study) -> Iterator[str]:
    runs = {study.name_of(*point): len(records) for point, records in study.points.items()}
    if set(runs.values()) == {1}:
        yield "Each point was measured once, which tells nothing of its error: no figure here has an interval."
    elif len(set(runs.values())) > 1:
        fewest = min(runs.values())
        few = "; ".join(name for name, count in runs.items() if count == fewest)
        what = "which tells nothing of its error" if fewest == 1 else f"others up to {max(runs.values())} times"
        yield f"Measured {counted(fewest, 'time')}: {few}; {what}."
    if 2 in runs.values():
        twice, thrice, five = (t_quantile(0.975, count - 1) for count in (2, 3, 5))
        yield (
            f"With two repeats an interval is {twice:.1f} standard errors to each side; "
            f"three need {thrice:.1f}, five {five:.1f}."
        )


def _unlike_steps(study: Study) -> Iterator[str]:
    timed = study.points_by(lambda record: counted(len(record.step_s[0]), "step"))
    warmup = study.points_by(lambda record: counted(len(record.warmup_s[0]), "step"))
    for what, numbers in (("timed", timed), ("warm-up", warmup)):
        if len(numbers) > 1:
            listed = "; ".join(f"{steps} ({points})" for steps, points in numbers.items())
            yield f"The runs have unlike numbers of {what} steps: {listed}."


def _base(study: Study) -> Iterator[str]:
    for mode, (base, *_) in study.series.items():
        if base.ranks > 1:
            holder = study.workload.holder if study.workload.shared_by < base.ranks else "rank"
            yield (
                f"There is no point of 1 {holder}: {mode} scaling is relative to {base.ranks} ranks, "
                "and what is lost up to there does not show."
            )
        above = [point for point in study.series[mode] if point.is_above_ideal]
        if above:
            ranks = ", ".join(str(point.ranks) for point in above)
            yield (
                f"Efficiency of {mode} scaling is above 100 % at {ranks} ranks: more cache for each rank, or a base "
                "that was slowed."
            )


def _load(study: Study) -> Iterator[str]:
    """A load average that the study's own ranks do not explain, those of the run before included."""
    own: dict[str, int] = {}
    for record in study.records:
        for host, ranks in Counter(record.environment.hosts).items():
            own[host] = max(own.get(host, 0), ranks * max(1, record.workload.threads))
    excess, most = {}, {}
    for record in study.records:
        where = record.environment
        highest = max(where.load_before, where.load_after)
        if highest > 1.25 * own[where.hosts[0]] + 1:
            excess[record.name], most[record.name] = highest, own[where.hosts[0]]
    if excess:
        worst = max(excess, key=excess.__getitem__)
        number = f"{len(excess)} of {counted(len(study.records), 'run')}"
        yield (
            f"Somebody else was computing during {number}: the load was {excess[worst]:.1f} at {worst}, where "
            f"{counted(most[worst], 'thread')} of the study ran at most."
        )


@dataclass(frozen=True)
class _Span:
    """When a run was under way, at least, in seconds since the epoch."""

    start: float
    end: float

    @classmethod
    def of(cls, record: RunRecord) -> _Span:
        start = datetime.datetime.fromisoformat(record.environment.started).timestamp()
        seconds = (sum(map(max, zip(*series, strict=True))) for series in (record.warmup_s, record.step_s))
        return cls(start, start + sum(seconds))


def _at_the_same_time(study: Study) -> Iterator[str]:
    by_start = sorted(study.records, key=lambda record: _Span.of(record).start)
    for one, other in pairwise(by_start):
        shared = sorted(set(one.environment.hosts) & set(other.environment.hosts))
        if shared and _Span.of(one).end > _Span.of(other).start + PICKUP_S:
            yield (
                f"{one.name} and {other.name} ran at the same time on {shared[0]}: they took each other's cores, "
                "or a clock was wrong."
            )
            return


def _apart(study: Study) -> Iterator[str]:
    """Points that took turns share the machine's good and bad hours; those before and after a pause do not."""
    by_start = sorted(study.records, key=lambda record: _Span.of(record).start)
    pauses = [(_Span.of(after).start - _Span.of(before).end, before, after) for before, after in pairwise(by_start)]
    if pauses:
        seconds, before, after = max(pauses, key=lambda pause: pause[0])
        if seconds > APART_S:
            hours = f"{seconds / 3600:.0f} hours" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} days"
            yield f"{hours} lie between {before.name} and {after.name}: the machine may have changed in between."


def _drift(study: Study) -> Iterator[str]:
    """Rounds, repeats and steps that differ by more than the noise of a quiet machine."""
    medians = {
        point: {record.repeat: statistics.median(record.slowest_s) for record in records}
        for point, records in study.points.items()
    }
    rounds: dict[int, list[float]] = {}
    for point, runs in medians.items():
        middle = statistics.geometric_mean(runs.values())
        for repeat, seconds in runs.items():
            rounds.setdefault(repeat, []).append(math.log(seconds / middle))
        ratio = max(runs.values()) / min(runs.values())
        if ratio > SPREAD:
            yield f"The repeats of {study.name_of(*point)} differ by {ratio - 1:.0%}: the machine was not quiet."
    whole = {repeat: statistics.mean(logs) for repeat, logs in rounds.items() if len(logs) == len(medians) > 1}
    if len(whole) > 1:
        slow, fast = max(whole, key=whole.__getitem__), min(whole, key=whole.__getitem__)
        ratio = math.exp(whole[slow] - whole[fast])
        if ratio > DRIFT:
            yield f"Repeat {slow + 1} was {ratio - 1:.0%} slower than repeat {fast + 1} over all points: it drifted."


def _unsteady_steps(study: Study) -> Iterator[str]:
    for point, records in study.points.items():
        third = min(len(record.slowest_s) for record in records) // 3
        if third > 1:
            ratio = statistics.geometric_mean(_first_to_last(record.slowest_s, third) for record in records)
            if max(ratio, 1 / ratio) > WARMING:
                change = f"{ratio - 1:.0%} slower" if ratio > 1 else f"{1 / ratio - 1:.0%} faster"
                remedy = "give more --warmup" if ratio > 1 else "the machine slowed down"
                yield f"The first timed steps of {study.name_of(*point)} are {change} than the last: {remedy}."
        worst = max(max(record.slowest_s) / statistics.median(record.slowest_s) for record in records)
        if worst > OUTLIER:
            yield f"A step of {study.name_of(*point)} took {worst:.0f} times the median: a pause, or a clock jumped."


def _first_to_last(steps: Sequence[float], number: int) -> float:
    return statistics.median(steps[:number]) / statistics.median(steps[-number:])


FINDERS: tuple[Callable[[Study], Iterator[str]], ...] = (
    _other_circumstances,
    _no_clock,
    _other_training,
    _few_repeats,
    _unlike_steps,
    _at_the_same_time,
    _load,
    _base,
    _apart,
    _drift,
    _unsteady_steps,
)
