"""Records that belong together: what must be equal in a study is checked, what differs is named with its points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from hvdlm.errors import UserError
from hvdlm.tables import counted

from . import scaling
from .record import RunRecord, Workload, read_all, step_times
from .scaling import Mode, ScalingPoint

MODES: tuple[Mode, ...] = ("strong", "weak")
MOST_NAMED = 3  # of points in a line


@dataclass(frozen=True)
class Study:
    """All records of a folder, and their statistics by mode."""

    records: list[RunRecord]
    series: dict[Mode, list[ScalingPoint]]

    @property
    def workload(self) -> Workload:
        return self.records[0].workload

    @property
    def points(self) -> dict[tuple[int, int], list[RunRecord]]:
        """The repeats of each point, by (ranks, global batch), smallest first."""
        found: dict[tuple[int, int], list[RunRecord]] = {}
        for record in self.records:
            found.setdefault((record.ranks, record.global_batch), []).append(record)
        return found

    def name_of(self, ranks: int, global_batch: int) -> str:
        """A point in words, with its batch only where another point has as many ranks."""
        others = sum(1 for count, _ in self.points if count == ranks) > 1
        return counted(ranks, "rank") + (f" (batch {global_batch})" if others else "")

    def points_by(self, of: Callable[[RunRecord], str]) -> dict[str, str]:
        """Each value of a circumstance with the points that have it, in words; no points where there is one value."""
        having: dict[str, list[RunRecord]] = {}
        for record in self.records:
            having.setdefault(of(record), []).append(record)
        if len(having) == 1:
            return dict.fromkeys(having, "")
        return {value: self._names(records) for value, records in having.items()}

    def _names(self, chosen: Sequence[RunRecord]) -> str:
        """The points of some records, with the repeats where not all of a point's are among them."""
        names = []
        for point, records in self.points.items():
            own = [record for record in records if record in chosen]
            repeats = ", ".join(str(record.repeat + 1) for record in own) if len(own) < len(records) else ""
            if own:
                names.append(self.name_of(*point) + (f", repeat {repeats}" if repeats else ""))
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        return "; ".join(names[:MOST_NAMED]) + more


def read_study(folder: Path) -> Study:
    """Records that belong together; UserError if they come from different workloads, batches or twice from one run."""
    records = read_all(folder)
    try:
        _refuse_other_workloads(records)
        _refuse_copies(records)
        _refuse_unlike_series(records)
        series: dict[Mode, list[ScalingPoint]] = {}
        for mode in MODES:
            own = [record for record in records if getattr(record, f"is_{mode}")]
            _refuse_other_batches(own, mode)
            groups = [list(group) for _, group in groupby(own, key=lambda record: record.ranks)]  # they are sorted
            if groups:
                samples = [step_times(group, is_comparable=_are_alike([*groups[0], *group])) for group in groups]
                series[mode] = scaling.analyse(samples, mode)
    except ValueError as error:
        raise UserError(f"{folder}/records: {error}") from None
    return Study(records, series)


def _refuse_other_workloads(records: Sequence[RunRecord]) -> None:
    first = records[0]
    for record in records[1:]:
        mine, its = first.workload.model_dump(), record.workload.model_dump()
        differing = [key for key in mine if mine[key] != its[key]]
        if differing:
            found = ", ".join(f"{k} ({mine[k]} in {first.name}, {its[k]} in {record.name})" for k in differing)
            raise ValueError(f"records differ in {found}; a report needs one workload, so move one study's away")


def _refuse_copies(records: Sequence[RunRecord]) -> None:
    """Two runs never take the same nanoseconds in each step."""
    seen: dict[tuple, RunRecord] = {}
    for record in records:
        other = seen.setdefault((record.global_batch, record.step_s), record)
        if other is not record:
            raise ValueError(f"{record.name} has the times of {other.name}, so it is a copy and no repeat; remove one")


def _refuse_unlike_series(records: Sequence[RunRecord]) -> None:
    """The repeats of a point belong to the same series, at least to one."""
    first: dict[tuple[int, int], RunRecord] = {}
    for record in records:
        other = first.setdefault((record.ranks, record.global_batch), record)
        if not (record.is_strong or record.is_weak):
            raise ValueError(f"{record.name} belongs to neither series (is_strong, is_weak); remove it")
        if (record.is_strong, record.is_weak) != (other.is_strong, other.is_weak):
            raise ValueError(f"{record.name} and {other.name} differ in is_strong or is_weak; move one away")


def _refuse_other_batches(records: Sequence[RunRecord], mode: Mode) -> None:
    """Strong scaling has one global batch, weak scaling one batch a replica."""
    for record in records[1:]:
        first, batches = records[0], []
        for each in (first, record):
            replicas = each.ranks // each.workload.shared_by
            batches.append(each.global_batch if mode == "strong" else each.global_batch // replicas)
        if batches[0] != batches[1]:
            what = "global batch" if mode == "strong" else f"batch a {record.workload.holder}"
            raise ValueError(
                f"{mode} scaling has one {what}, but {first.name} has {batches[0]} and {record.name} {batches[1]}; "
                "move one study's records away"
            )


def _are_alike(records: Sequence[RunRecord]) -> bool:
    """All of one machine and one software, so that their times may be compared."""
    found = [(e.cpu, e.gpu, e.mpi, e.versions) for e in (record.environment for record in records)]
    return all(each == found[0] for each in found)
