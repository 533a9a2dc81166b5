"""Charts drawn: narrow, so that a phone shows them; each with title, axes, units, and a legend for several lines."""

from __future__ import annotations

import io
import warnings
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from hvdlm.scoring.confusion import font_families
from hvdlm.tables import figure as shown

from .charts import Chart, Line
from .thinning import range_in_view, thinned

matplotlib.use("Agg")

# Okabe and Ito's, which people of any colour sight tell apart, without its yellow; then the same again in dashes.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#8a6d00", "#4d4d4d")
DASHES = ("-", "--", ":", "-.")
MARK_COLORS = {"resumed": "0.55", "stopped": "0.55", "rewound": "#aa3377", "left out": "#8a6d00", "failed": "#b00020"}
WIDTH, HEIGHT = 4.4, 3.0  # inches; on a phone of 360 pixels a letter is then as high as in the text
BEHIND = 0.5  # how strongly training is drawn behind validations of several runs
MOST_MARKS = 40  # lines for events of a kind
SWITCHES = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "legend.frameon": False}
SIZES = {"font.size": 10, "grid.alpha": 0.3, "figure.dpi": 180, "legend.fontsize": 8.5}
STYLE: Any = {**SIZES, **SWITCHES, "text.parse_math": False}  # names of runs and columns are no formulas
MOST_IN_PICTURE, LONGEST_IN_PICTURE = 3, 20  # names, and letters of one, in a legend within the axes


def color_of(number: int) -> str:
    return COLORS[number % len(COLORS)]


def draw(chart: Chart) -> bytes:
    """The chart as PNG; the same bytes for the same chart."""
    labels = [line.label for line in chart.lines if line.is_labelled] + list(chart.marks)
    is_below = len(labels) > MOST_IN_PICTURE or max(map(len, labels)) > LONGEST_IN_PICTURE
    rows = -(-(len(labels) + chart.has_both) // 2) if is_below else 0
    with matplotlib.rc_context({**STYLE, "font.family": font_families()}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name that no font here can write; the page has it
        picture = Figure(figsize=(WIDTH, HEIGHT + 0.17 * rows), layout="constrained")
        axes = picture.subplots()
        for line in chart.lines:
            _draw_line(axes, line, alpha=BEHIND if chart.has_both else 1.0)
        if chart.has_both:
            axes.plot([], [], "o-", color="0.35", markersize=3.5, linewidth=1, label="with points: validation")
        for what, steps in chart.marks.items():
            for number, step in enumerate(steps[:MOST_MARKS]):
                style: Any = {"color": MARK_COLORS.get(what, "0.55"), "linestyle": ":", "linewidth": 1}
                axes.axvline(step, label=None if number else what, **style)
        _scale(axes, chart)
        axes.set_title(chart.title, loc="left")
        axes.set_xlabel(chart.by)
        axes.set_ylabel(chart.unit)
        if is_below:
            picture.legend(loc="outside lower left", ncols=2)
        elif labels != ["training"]:  # the one curve that a title says all of
            axes.legend()
        out = io.BytesIO()
        picture.savefig(out, format="png", metadata={"Software": None})
        return out.getvalue()


def _draw_line(axes: Axes, line: Line, alpha: float) -> None:
    """`alpha`: of a curve of training."""
    label = line.label if line.is_labelled else None
    if label is not None and (not label or label.startswith("_")):  # which for matplotlib means none
        label = " " + label
    style: Any = {"color": color_of(line.color), "label": label}
    dashes = DASHES[line.color // len(COLORS) % len(DASHES)]
    band = thinned(line.curve)
    if line.is_validation:
        marker = "o" if len(band.steps) <= 40 else ""
        axes.plot(band.steps, band.mean, dashes, marker=marker, markersize=3.5, linewidth=1, zorder=3, **style)
        return
    if band.is_thinned:
        axes.fill_between(band.steps, band.low, band.high, color=style["color"], alpha=0.18, linewidth=0)
    marker = "o" if len(band.steps) == 1 else ""
    axes.plot(band.steps, band.mean, dashes, marker=marker, markersize=4, linewidth=1.2, alpha=alpha, **style)


def _scale(axes: Axes, chart: Chart) -> None:
    values = np.concatenate([line.curve.finite for line in chart.lines])
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    most = max((line.curve.steps.max() for line in chart.lines if len(line.curve.steps)), default=0)
    whole = FuncFormatter(lambda value, _: f"{value:,.0f}")
    axes.xaxis.set_major_formatter(EngFormatter(sep=" ") if most >= 100_000 else whole)
    if chart.scale == "log" and values.min() > 0 and values.max() > 3 * values.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if values.max() < 300 * values.min() else (1,)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value)))
        return
    view = range_in_view(values)
    if chart.scale in ("amount", "percent") and values.min() >= 0 and values.max() > 0:
        axes.set_ylim(0, 1.08 * values.max())
    elif view is not None:
        axes.set_ylim(view[0] - 0.05 * (view[1] - view[0]), view[1])
        axes.annotate("some values are outside", (0.99, 1.01), xycoords="axes fraction", ha="right", fontsize=8)
    if chart.scale == "percent":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
    elif np.abs(values).max() >= 10_000:
        axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
    else:
        axes.ticklabel_format(axis="y", useOffset=False, style="plain")
