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
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter, ScalarFormatter

from hvdlm.errors import UserError
from hvdlm.files import write_text_durably

from . import scaling
from .confidence import ConfidenceInterval
from .record import RunRecord, Workload, read_all, step_times
from .scaling import Mode, ScalingPoint

matplotlib.use("Agg")

MODES: tuple[Mode, ...] = ("strong", "weak")
COLORS = {"strong": "#1b6ca8", "weak": "#c8553d"}
MEANING = {
    "strong": "the global batch stays the same, more ranks share it",
    "weak": "the batch of each rank stays the same, the global batch grows with the ranks",
}
SWITCHES = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "legend.frameon": False}
STYLE: Any = {"font.size": 9, "grid.alpha": 0.3, "figure.dpi": 150, **SWITCHES}
IDEAL: Any = {"color": "0.5", "linestyle": "--", "linewidth": 1, "label": "ideal"}
ACCEPTED: Any = {**IDEAL, "linestyle": ":", "label": "accepted"}


@dataclass(frozen=True)
class Study:
    """All records of a folder, and their statistics by mode."""

    records: list[RunRecord]
    series: dict[Mode, list[ScalingPoint]]

    @property
    def workload(self) -> Workload:
        return self.records[0].workload


def read_study(folder: Path) -> Study:
    """Records that belong together; UserError if they come from different workloads."""
    records = read_all(folder)
    for record in records[1:]:
        if record.workload != records[0].workload:
            differing = [k for k, v in record.workload.model_dump().items() if v != getattr(records[0].workload, k)]
            raise UserError(f"{folder}/records: records differ in {', '.join(differing)}; a report needs one workload")
    series: dict[Mode, list[ScalingPoint]] = {}
    for mode in MODES:
        own = [record for record in records if getattr(record, f"is_{mode}")]
        samples = [step_times(list(group)) for _, group in groupby(own, key=attrgetter("ranks"))]  # they are sorted
        if samples:
            series[mode] = scaling.analyse(samples, mode)
    return Study(records, series)


def write_report(folder: Path) -> Path:
    """Write every form of the report into `folder`; returns the path of report.html."""
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
    return folder / "report.html"


def to_csv(study: Study) -> str:
    """One row a point, full precision, for whoever wants to draw it again."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    measured = ("step_s", "tokens_per_s", "speedup", "efficiency")
    plain = ("mode", "ranks", "tokens_per_step", "num_runs", "num_steps", "p95_s", "max_s", "karp_flatt")
    writer.writerow(
        [*plain, "is_oversubscribed", *(f"{name}{end}" for name in measured for end in ("", "_low", "_high"))]
    )
    for point in (point for points in study.series.values() for point in points):
        values = [number for name in measured for number in astuple(getattr(point, name))]
        writer.writerow([*(getattr(point, name) for name in plain), int(point.is_oversubscribed), *values])
    return out.getvalue()


def _render(template: str, study: Study, plots: dict[str, bytes]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hvdlm.perf", "."),
        autoescape=template.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _shown("{:.1f}", 100, " %"),
        "times": _shown("{:.2f}"),
        "ms": _shown("{:.1f}", 1000),
        "rate": _shown("{:,.0f}"),
    }
    return environment.get_template(template).render(**_facts(study, plots))


def _shown(form: str, scale: float = 1, unit: str = "") -> Callable[[ConfidenceInterval], str]:
    return lambda interval: interval.scaled(scale).shown(form, unit)


def _facts(study: Study, plots: dict[str, bytes]) -> dict[str, Any]:
    first = study.records[0]
    first_points = next(iter(study.series.values()))
    environments = [record.environment for record in study.records]
    return {
        "series": study.series,
        "meaning": MEANING,
        "diagnoses": [scaling.diagnose(points) for points in study.series.values()],
        "base": first_points[0],
        "workload": study.workload,
        "environment": first.environment,
        "hosts": sorted({host for e in environments for host in e.hosts}),
        "loads": (min(e.load_before for e in environments), max(e.load_before for e in environments)),
        "started": (min(e.started for e in environments), max(e.started for e in environments)),
        "jobs": sorted({e.job for e in environments} - {""}),
        "warmup": len(first.warmup_s[0]),
        "num_records": len(study.records),
        "data_wait": max(sum(map(sum, r.data_wait_s)) / sum(map(sum, r.step_s)) for r in study.records),
        "any_oversubscribed": any(record.is_oversubscribed for record in study.records),
        "plots": {name: base64.b64encode(png).decode() for name, png in plots.items()},
    }


# --- pictures -------------------------------------------------------------------------------------


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _rank_axis(axes: Axes, study: Study) -> None:
    ranks = sorted({point.ranks for points in study.series.values() for point in points})
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(ranks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_xlim(ranks[0] / 1.25, ranks[-1] * 1.25)
    axes.set_xlabel("MPI ranks")


def _points_with_intervals(axes: Axes, points: Sequence[ScalingPoint], quantity: str, mode: Mode) -> None:
    """Measured points with 95 % intervals; open markers where cores were oversubscribed."""
    marks: Any = {"fmt": "o" if mode == "strong" else "s", "color": COLORS[mode], "capsize": 3, "markersize": 6}
    for point in points:
        interval = getattr(point, quantity)
        bars = [[interval.value - interval.low], [interval.high - interval.value]]
        fill = "white" if point.is_oversubscribed else COLORS[mode]
        label = mode if point is points[0] else None
        axes.errorbar(
            point.ranks * (0.985 if mode == "strong" else 1.015),  # so that equal points of both series stay visible
            interval.value,
            bars if math.isfinite(interval.high) else None,
            **{**marks, "markerfacecolor": fill, "label": label},
        )


def draw_scaling(study: Study) -> bytes:
    """Speedup against the ideal line, and efficiency against the accepted one."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        all_points = [point for points in study.series.values() for point in points]
        base, top = min(p.ranks for p in all_points), max(p.ranks for p in all_points)
        left.plot([base, top], [1, top / base], **IDEAL)
        right.axhline(1, **IDEAL)
        right.axhline(scaling.ACCEPTED_EFFICIENCY, **ACCEPTED)
        for mode, points in study.series.items():
            _points_with_intervals(left, points, "speedup", mode)
            _points_with_intervals(right, points, "efficiency", mode)
        left.set_title("Speedup in tokens/s", loc="left")
        left.set_yscale("log", base=2)
        left.yaxis.set_major_formatter(ScalarFormatter())
        right.set_title("Parallel efficiency", loc="left")
        right.yaxis.set_major_formatter(PercentFormatter(1.0))
        highest = max(p.efficiency.high for p in all_points if math.isfinite(p.efficiency.high))
        right.set_ylim(0, max(1.15, 1.05 * highest))
        for axes in (left, right):
            _rank_axis(axes, study)
            axes.legend()
        return _png(figure)


def draw_steps(study: Study) -> bytes:
    """Every timed step of every measurement, in order: drift and outliers show here or nowhere."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 2.8), layout="constrained")
        axes = figure.subplots()
        start = 0
        ticks, labels = [], []
        for record in study.records:
            times = [1e3 * value for value in record.slowest_s]
            both = record.is_strong and record.is_weak
            color = "0.35" if both else COLORS["strong" if record.is_strong else "weak"]
            axes.plot(range(start, start + len(times)), times, ".", markersize=4, color=color)
            ticks.append(start + len(times) / 2)
            labels.append(f"{record.ranks} x {record.global_batch // record.ranks}\n#{record.repeat + 1}")
            start += len(times) + 3
        axes.set_xticks(ticks, labels, fontsize=7)
        axes.set_ylim(bottom=0)
        axes.set_ylabel("ms")
        axes.set_title("Each timed step (ranks x sequences a rank, repeat)", loc="left")
        axes.grid(axis="x", visible=False)
        return _png(figure)


PLOTS = {"scaling": draw_scaling, "steps": draw_steps}
