"""`hvdlm report`: records to report.html (self-contained), report.md, report.csv and plots as PNG.

Everything is a function of the records, so the same records give the same report, byte for byte.
"""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from hvdlm.errors import UserError
from hvdlm.files import write_text_durably
from hvdlm.tables import counted

from . import scaling
from .confidence import ConfidenceInterval
from .pictures import PLOTS
from .remarks import points_by_circumstance, remarks
from .scaling import ScalingPoint
from .study import Study, read_study
from .templates import render

MEANING = {
    "strong": "the global batch stays the same, more ranks share it",
    "weak": "the batch of each replica stays the same, the global batch grows with the ranks",
}
MOST_HOSTS = 4  # named of a point


@dataclass(frozen=True)
class Report:
    """What was written, and what a reader has to know of it at least."""

    path: Path
    verdicts: list[str]
    remarks: list[str]


def write_report(folder: Path) -> Report:
    """Write every form of the report into `folder`."""
    study = read_study(folder)
    plots = {name: draw(study) for name, draw in PLOTS.items()}
    try:
        for name, png in plots.items():
            (folder / f"{name}.png").write_bytes(png)
        write_text_durably(folder / "report.csv", to_csv(study))
        write_text_durably(folder / "report.md", _render("report.md.j2", study, plots))
        write_text_durably(folder / "report.html", _render("report.html.j2", study, plots))
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from None
    return Report(folder / "report.html", _verdicts(study), remarks(study))


def to_csv(study: Study) -> str:
    """One row a point, full precision, for whoever wants to draw it again."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    measured = ("step_s", "tokens_per_s", "speedup", "efficiency")
    plain = ("mode", "ranks", "tokens_per_step", "num_runs", "num_steps", "p95_s", "max_s", "karp_flatt")
    ends = [f"{name}{end}" for name in measured for end in ("", "_low", "_high")]
    writer.writerow([*plain, "is_oversubscribed", "is_comparable", *ends])
    for point in (point for points in study.series.values() for point in points):
        values = [number for name in measured for number in astuple(getattr(point, name))]
        flags = (int(point.is_oversubscribed), int(point.is_comparable))
        writer.writerow([*(getattr(point, name) for name in plain), *flags, *values])
    return out.getvalue()


def _render(template: str, study: Study, plots: dict[str, bytes]) -> str:
    filters: dict[str, Callable[..., Any]] = {
        "percent": lambda interval: interval.scaled(100).shown("{:.1f}", " %"),
        "times": lambda interval: _shown(interval, digits=3),
        "ms": lambda interval: _shown(interval, 1000),
        "ms_of": lambda seconds: _significant(1000 * seconds).format(1000 * seconds),
        "rate": _shown,
        "counted": counted,
        "mark": lambda point: f" {mark}" if (mark := _mark_of(point)) else "",
        "steps": lambda point: _span(point.steps_a_run, "{:d}"),
    }
    return render(".", template, filters, _facts(study, plots))


def _significant(number: float, digits: int = 4) -> str:
    """A format for `number` and its interval that shows so many digits of it, and no fewer than its whole part.

    >>> [_significant(number).format(number) for number in (0.0123456, 66.04, 14190.3)]
    ['0.01235', '66.04', '14,190']
    """
    decimals = digits - 1 - math.floor(math.log10(number))
    return f"{{:,.{min(max(decimals, 0), 9)}f}}"


def _shown(interval: ConfidenceInterval, scale: float = 1, digits: int = 4) -> str:
    return interval.scaled(scale).shown(_significant(scale * interval.value, digits))


def _facts(study: Study, plots: dict[str, bytes]) -> dict[str, Any]:
    first = study.records[0]
    environments = [record.environment for record in study.records]
    return {
        "series": study.series,
        "bases": _bases(study),
        "meaning": MEANING,
        "verdicts": _verdicts(study),
        "remarks": remarks(study),
        "workload": study.workload,
        "circumstances": points_by_circumstance(study),
        "points": [_place(study, *point) for point in study.points],
        "hosts": sorted({host for e in environments for host in e.hosts}),
        "started": (min(e.started for e in environments), max(e.started for e in environments)),
        "jobs": sorted({e.job for e in environments} - {""}),
        "warmup": len(first.warmup_s[0]),
        "num_records": len(study.records),
        "data_wait": max(sum(map(sum, r.data_wait_s)) / sum(map(sum, r.step_s)) for r in study.records),
        "marks": _marks(study),
        "plots": {name: base64.b64encode(png).decode() for name, png in plots.items()},
    }


def _bases(study: Study) -> dict[str, ScalingPoint]:
    """The point that each series is relative to; once where it is the same."""
    found: dict[str, ScalingPoint] = {}
    for mode, (base, *_) in study.series.items():
        if base.tokens_per_step not in {other.tokens_per_step for other in found.values() if other.ranks == base.ranks}:
            found[f" of {mode} scaling" if found else ""] = base
    return found


def _verdicts(study: Study) -> list[str]:
    return [scaling.diagnose(points) for points in study.series.values()]


MARKS = {
    "†": "more threads than cores: shows that the software runs there, not how it scales.",
    "‡": "on another machine or with other software than the base: the ratio to it is not the software's.",
}


def _mark_of(point: ScalingPoint) -> str:
    return "†" * point.is_oversubscribed + "‡" * (not point.is_comparable)


def _marks(study: Study) -> dict[str, str]:
    """The marks that stand in the tables, with their meaning."""
    found = "".join(_mark_of(point) for points in study.series.values() for point in points)
    return {mark: meaning for mark, meaning in MARKS.items() if mark in found}


def _place(study: Study, ranks: int, global_batch: int) -> dict[str, str]:
    """Where and when a point was measured."""
    records = study.points[ranks, global_batch]
    hosts = sorted({host for record in records for host in record.environment.hosts})
    more = f" and {len(hosts) - MOST_HOSTS} more" if len(hosts) > MOST_HOSTS else ""
    return {
        "name": study.name_of(ranks, global_batch),
        "hosts": ", ".join(hosts[:MOST_HOSTS]) + more,
        "cores": _span([record.environment.cores for record in records], "{:d}"),
        "load": _span([e.load_before for e in (record.environment for record in records)], "{:.2f}"),
        "load_after": _span([e.load_after for e in (record.environment for record in records)], "{:.2f}"),
        "started": min(record.environment.started for record in records),
    }


def _span(values: Sequence[float], form: str) -> str:
    """The least and the greatest, once where they are alike.

    >>> _span([2, 2], "{:d}"), _span([0.1, 2.5], "{:.1f}")
    ('2', '0.1 to 2.5')
    """
    return " to ".join(dict.fromkeys((form.format(min(values)), form.format(max(values)))))
