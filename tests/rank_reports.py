"""What the ranks of one item reported, as one report for pytest."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

Report = pytest.TestReport


@dataclass
class Answers:
    """What the ranks of one item have reported so far."""

    size: int
    reports: dict[int, list[Report]] = field(default_factory=dict)
    done: set[int] = field(default_factory=set)

    def failed(self) -> list[int]:
        return sorted(rank for rank, reports in self.reports.items() if any(report.failed for report in reports))

    def merged(self) -> list[Report]:
        """One report a phase: the lowest failed rank's, else the lowest rank's; failed if only some ranks skipped."""
        everything = [(rank, report) for rank in sorted(self.reports) for report in self.reports[rank]]
        phases = [[each for each in everything if each[1].when == when] for when in ("setup", "call", "teardown")]
        return [self._merge(found) for found in phases if found]

    def _merge(self, found: list[tuple[int, Report]]) -> Report:
        failed = [(rank, report) for rank, report in found if report.failed]
        report = (failed or found)[0][1]
        report.duration = max(each.duration for _, each in found)
        skipped = [rank for rank, each in found if each.skipped]
        if failed:
            report.sections.insert(0, ("ranks", "\n".join(self._who_failed(failed))))
        elif skipped and len(skipped) < len(found):
            report.outcome, report.longrepr = "failed", f"skipped on ranks {skipped} of {self.size} alone"
        return report

    def _who_failed(self, failed: list[tuple[int, Report]]) -> Iterator[str]:
        rank, first = failed[0]
        yield f"the above is rank {rank} of {self.size}"
        for other, report in failed[1:]:
            alike = last_line(report) == last_line(first)
            yield f"rank {other} failed likewise" if alike else f"rank {other} failed: {last_line(report)}"


def last_line(report: Report) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash else str(report.longrepr)).splitlines()[0]


def report_of(item: pytest.Item, start: float, when: str, outcome: str, longrepr: object) -> Report:
    """A report of what no rank has reported."""
    keywords, now = dict.fromkeys(item.keywords, 1), time.time()
    times = {"duration": now - start, "start": start, "stop": now}
    return Report(item.nodeid, item.location, keywords, outcome, longrepr, when, **times)
