"""The report's pictures: narrow, so that a phone shows them; each with its own title, labels, units and exact ticks."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator, PercentFormatter, ScalarFormatter

from . import scaling
from .scaling import Mode, ScalingPoint
from .study import Study

matplotlib.use("Agg")

COLORS = {"strong": "#1b6ca8", "weak": "#c8553d"}
BOTH = "0.35"  # a point of both series
WIDTH = 4.4  # inches; on a phone of 360 pixels a letter is then as high as in the text
SWITCHES = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "legend.frameon": False}
STYLE: Any = {"font.size": 10, "grid.alpha": 0.3, "figure.dpi": 200, **SWITCHES}
IDEAL: Any = {"color": "0.5", "linestyle": "--", "linewidth": 1, "label": "ideal"}
ACCEPTED: Any = {**IDEAL, "linestyle": ":", "label": f"{100 * scaling.ACCEPTED_EFFICIENCY:.0f} %, accepted"}
CLOSEST = 0.4  # octaves between labelled ticks
MOST_TICKS = 7
UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def labelled_ranks(ranks: Sequence[int]) -> list[int]:
    """Those that have room for a label on a logarithmic axis; the last always, as it is what was aimed at.

    >>> labelled_ranks([1, 2, 3, 4, 5, 6, 7, 8]), labelled_ranks([2, 3, 48])
    ([1, 2, 3, 4, 6, 8], [2, 3, 48])
    """
    octaves = max(CLOSEST, math.log2(ranks[-1] / ranks[0]) / 12)
    kept = [ranks[-1]]
    for count in reversed(ranks):
        if math.log2(kept[-1] / count) >= octaves:
            kept.append(count)
    return kept[::-1]


def powers_of_two(low: float, high: float) -> list[float]:
    """Ticks that enclose a range, at least two, and no more than fit.

    >>> powers_of_two(0.9, 1.7), powers_of_two(1, 1000)
    ([0.5, 1.0, 2.0], [1.0, 4.0, 16.0, 64.0, 256.0, 1024.0])
    """
    first, last = math.floor(math.log2(low)), math.ceil(math.log2(high))
    last = max(last, first + 1)
    stride = math.ceil((last - first + 1) / MOST_TICKS)
    return [2.0**power for power in range(first, last + stride, stride)]


def unit_of(seconds: float) -> tuple[float, str]:
    """The unit in which a time is no long number.

    >>> unit_of(0.02), unit_of(120.0), unit_of(2e-5)
    ((0.001, 'ms'), (1.0, 's'), (1e-06, 'µs'))
    """
    return next(((scale, name) for scale, name in UNITS if seconds >= scale), UNITS[-1])


def _rank_axis(axes: Axes, study: Study) -> None:
    ranks = sorted({point.ranks for points in study.series.values() for point in points})
    labelled = labelled_ranks(ranks)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(labelled))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{count:,}" for count in labelled]))
    axes.xaxis.set_minor_locator(FixedLocator([count for count in ranks if count not in labelled]))
    axes.xaxis.set_minor_formatter("")
    axes.set_xlim(ranks[0] / 1.25, ranks[-1] * 1.25)
    axes.set_xlabel("MPI ranks")


def _points_with_intervals(axes: Axes, points: Sequence[ScalingPoint], quantity: str, mode: Mode) -> None:
    """Measured points with 95 % intervals; open markers where a point is no evidence of scaling."""
    marks: Any = {"fmt": "o" if mode == "strong" else "s", "color": COLORS[mode], "capsize": 3, "markersize": 6}
    for point in points:
        interval = getattr(point, quantity)
        bars = [[interval.value - interval.low], [interval.high - interval.value]]
        fill = COLORS[mode] if point.is_evidence or point.is_base else "white"
        label = mode if point is points[0] else None
        axes.errorbar(
            point.ranks * (0.985 if mode == "strong" else 1.015),  # so that equal points of both series stay visible
            interval.value,
            bars if math.isfinite(interval.high) else None,
            **{**marks, "markerfacecolor": fill, "label": label},
        )


def _all_points(study: Study) -> list[ScalingPoint]:
    return [point for points in study.series.values() for point in points]


def draw_speedup(study: Study) -> bytes:
    """Speedup of each point against the ideal line of its series."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
        axes = figure.subplots()
        for number, (mode, points) in enumerate(study.series.items()):
            base, top = points[0].ranks, points[-1].ranks
            axes.plot([base, top], [1, top / base], **{**IDEAL, "label": None if number else IDEAL["label"]})
            _points_with_intervals(axes, points, "speedup", mode)
        values = [point.speedup.value for point in _all_points(study)]
        ideal = max(points[-1].ranks / points[0].ranks for points in study.series.values())
        ticks = powers_of_two(min(values), max(*values, ideal))
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_locator(FixedLocator(ticks))
        axes.yaxis.set_major_formatter(FixedFormatter([f"{tick:g} x" for tick in ticks]))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_ylim(ticks[0] / 1.1, ticks[-1] * 1.1)
        axes.set_ylabel("tokens/s, base = 1")
        axes.set_title("Speedup", loc="left")
        _rank_axis(axes, study)
        axes.legend()
        return _png(figure)


def draw_efficiency(study: Study) -> bytes:
    """Parallel efficiency against what is ideal and what is accepted."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
        axes = figure.subplots()
        axes.axhline(1, **IDEAL)
        axes.axhline(scaling.ACCEPTED_EFFICIENCY, **ACCEPTED)
        for mode, points in study.series.items():
            _points_with_intervals(axes, points, "efficiency", mode)
        found = [point.efficiency for point in _all_points(study)]
        highest = max(interval.value for interval in found)
        widest = max((interval.high for interval in found if math.isfinite(interval.high)), default=highest)
        axes.set_ylim(0, max(1.15, 1.1 * highest, min(1.05 * widest, 1.6)))  # a wide interval leaves the picture
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        axes.set_ylabel("of the ideal speedup")
        axes.set_title("Parallel efficiency", loc="left")
        _rank_axis(axes, study)
        axes.legend(loc="lower left")
        return _png(figure)


def draw_steps(study: Study) -> bytes:
    """Every timed step of every run, a panel a point: drift and outliers show here or nowhere."""
    points = study.points
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.6 + 1.15 * len(points)), layout="constrained")
        for axes, (point, records) in zip(
            figure.subplots(len(points), squeeze=False)[:, 0], points.items(), strict=True
        ):
            scale, unit = unit_of(max(max(record.slowest_s) for record in records))
            start = 0
            for record in records:
                times = [second / scale for second in record.slowest_s]
                both = record.is_strong and record.is_weak
                color = BOTH if both else COLORS["strong" if record.is_strong else "weak"]
                axes.plot(range(start, start + len(times)), times, ".", markersize=4, color=color)
                if start:
                    axes.axvline(start - 0.5, color="0.7", linewidth=1)
                start += len(times)
            axes.set_ylim(0, 1.15 * max(max(record.slowest_s) for record in records) / scale)
            axes.set_xlim(-0.5, start - 0.5)
            axes.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
            axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axes.set_ylabel(unit)
            axes.set_title(f"Step time, {study.name_of(*point)}", loc="left", fontsize=10)
            axes.grid(axis="x", visible=False)
        axes.set_xlabel("timed step, a line between repeats")
        return _png(figure)


PLOTS = {"speedup": draw_speedup, "efficiency": draw_efficiency, "steps": draw_steps}


def draw_models(result: dict[str, Any]) -> bytes:
    """Loss and speed of each family of `hvdlm bench models`, a line each."""
    rows = result["rows"].values()
    names = [name if row["task"] == "lm" else f"{name} ({row['task']})" for name, row in result["rows"].items()]
    colors = [COLORS["strong" if row["task"] == "lm" else "weak"] for row in rows]
    places = range(len(rows))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.2 + 0.25 * len(rows)), layout="constrained")
        losses, speeds = figure.subplots(1, 2, sharey=True)
        losses.scatter([row["val_loss"] for row in rows], places, color=colors, zorder=3)
        if result["unigram_loss"] is not None:
            losses.axvline(result["unigram_loss"], **{**IDEAL, "label": "token frequencies"})
            figure.legend(loc="outside lower left")
        speeds.scatter([row["tokens_per_s"] or math.nan for row in rows], places, color=colors, zorder=3)
        speeds.set_xscale("log")
        losses.set_yticks(places, names)
        losses.invert_yaxis()
        losses.set_xlabel("nats a target")
        speeds.set_xlabel("tokens/s")
        losses.set_title("Validation loss", loc="left")
        speeds.set_title("Speed of training", loc="left")
        return _png(figure)
