"""`hvdlm report RUN ...`: training runs to report.html (self-contained), report.md and a PNG a chart.

One path for one run and for several. But for the texts that a model writes, all is a function of the run folders.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvdlm.errors import UserError
from hvdlm.files import write_text_durably
from hvdlm.session.metrics import ENDED, FAILED, LEFT_OUT, REWOUND, STOPPED
from hvdlm.tables import clock, count, counted, figure

from ..templates import render
from .charts import HIDDEN, charts_of, unequal_steps
from .likeness import unlike
from .pictures import color_of, draw
from .reading import Span, TrainingRun
from .samples import Sample

MOST_EVENTS = 40  # of a run on the page: the first half and the last
MOST_ROWS = 20  # validations of one run on the page
WAITING = "Waiting for other ranks, median"  # stages, tensor ranks and sums of gradients: rows tell them together
NO_DIFFERENCE = ("run_dir",)  # every run has its own


@dataclass(frozen=True)
class RunReport:
    """What was written, and what a reader has to know of it at least."""

    path: Path
    verdicts: list[str]
    remarks: list[str]


def write_run_report(runs: Sequence[TrainingRun], samples: Sequence[Sample], out: Path) -> RunReport:
    """Write every form of the report into the folder `out`."""
    charts, undrawn = charts_of(runs)
    pictures = {chart.file: draw(chart) for chart in charts}
    verdicts, remarks = list(map(verdict, runs)), remarks_on(runs)
    facts = {
        "title": f"Training of {runs[0].name}" if len(runs) == 1 else f"{len(runs)} training runs",
        "runs": runs,
        "colors": [color_of(number) for number in range(len(runs))],
        "verdicts": verdicts,
        "remarks": remarks,
        "overview": overview(runs),
        "charts": [(chart.title, chart.file, base64.b64encode(pictures[chart.file]).decode()) for chart in charts],
        "undrawn": undrawn,
        "validations": validations(runs),
        "events": [(run.name, *events_in_words(run)) for run in runs if run.events],
        "differences": differences(runs),
        "settings": runs[0].settings if len(runs) == 1 else {},
        "is_resumed": any(len(run.spans) > 1 for run in runs),
        "samples": samples,
        "command": "hvdlm report " + " ".join(str(run.folder) for run in runs),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, png in pictures.items():
            (out / f"{name}.png").write_bytes(png)
        write_text_durably(out / "report.md", _render("page.md.j2", facts))
        write_text_durably(out / "report.html", _render("page.html.j2", facts))
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}; name another folder by --out") from None
    return RunReport(out / "report.html", verdicts, remarks)


def _render(template: str, facts: Mapping[str, Any]) -> str:
    filters = {"cell": lambda text: str(text).replace("|", "\\|").replace("\n", " ")}
    return render("curves", template, filters, facts)


def verdict(run: TrainingRun) -> str:
    """How far a run is and what came of it, in one sentence."""
    total = f" of {count(run.total_steps)}" if run.total_steps else ""
    how = {ENDED: "ended", STOPPED: "stopped on request, to be resumed,", FAILED: "failed"}
    parts = [f"{run.name}: {how.get(run.last_event, 'has got')} at step {count(run.step)}{total}"]
    if run.last_event not in how:
        parts[0] = f"{run.name}: is at step {count(run.step)}{total} (it runs, or was killed)"
    if (best := _best(run)) is not None:
        step, loss = best
        last = run.last("val", "loss")
        own = " (its best)" if last == loss else f" (best {loss:.4f} at step {count(step)})"
        parts.append(f"validation loss {last:.4f}{own}")
    elif math.isfinite(loss := run.last("train", "loss")):
        parts.append(f"training loss {loss:.4f}, without a validation")
    return ", ".join(parts)


def _best(run: TrainingRun) -> tuple[int, float] | None:
    """(step, loss) of the best validation."""
    curve = run.curves.get(("val", "loss"))
    if curve is None or not len(curve.finite):
        return None
    place = min((value, number) for number, value in enumerate(curve.values) if math.isfinite(value))[1]
    return int(curve.steps[place]), float(curve.values[place])


def remarks_on(runs: Sequence[TrainingRun]) -> list[str]:
    """What a reader has to know before the curves are believed."""
    found = []
    for run in runs:
        kinds = [event["event"] for event in run.events]
        if run.last_event == FAILED:
            found.append(f"{run.name}: failed: {run.events[-1].get('reason', 'nobody knows why')}")
        for kind, what in ((LEFT_OUT, "updates were left out"), (REWOUND, "went back to a checkpoint")):
            if number := kinds.count(kind):
                found.append(f"{run.name}: {what}, {counted(number, 'time')}")
        losses = run.curves.get(("train", "loss"))
        if losses is not None and (number := len(losses.values) - len(losses.finite)):
            found.append(f"{run.name}: no finite training loss at {counted(number, 'step')}, which are not drawn")
    found += unlike(runs)
    if tokens := unequal_steps(runs):
        told = ", ".join(f"{number:,}" for number in tokens)
        found.append(f"steps are not of equally many tokens ({told}): compare losses by tokens, not by steps")
    return found


def overview(runs: Sequence[TrainingRun]) -> dict[str, list[str]]:
    """Rows of facts, a column a run; facts that no run has are left out."""
    is_shared = any(span.mesh for run in runs for span in run.spans)
    rows = {
        "Model": [str(run.settings.get("model.family", "")) for run in runs],
        "Task": [str(run.settings.get("task.kind", "")) for run in runs],
        "Parameters": [_told(run.state.get("figures", {}).get("parameters"), count) for run in runs],
        "Ranks": [_ranks(run) for run in runs],
        "Mesh": [_mesh(run) for run in runs],
        "Steps": [count(run.step) + (f" of {count(run.total_steps)}" if run.total_steps else "") for run in runs],
        "Tokens": [_told(run.last("train", "tokens"), count) for run in runs],
        "Training time": [_told(run.seconds, clock) for run in runs],
        "Speed, median, tokens/s": [_medians(run, "tokens_per_s", figure) for run in runs],
        WAITING: [_medians(run, "exposed_comm", "{:.1%}".format) for run in runs if is_shared],
        "Training loss, last tenth": [_told(_of_last_tenth(run), "{:.4f}".format) for run in runs],
        "Validation loss, best": [
            f"{best[1]:.4f} at step {count(best[0])}" if (best := _best(run)) else "" for run in runs
        ],
        "Validation loss, last": [_told(run.last("val", "loss"), "{:.4f}".format) for run in runs],
    }
    return {name: cells for name, cells in rows.items() if any(cells)}


def _told(value: Any, form: Any) -> str:
    return form(value) if isinstance(value, int | float) and math.isfinite(value) else ""


def _ranks(run: TrainingRun) -> str:
    newest = run.start.get("ranks") or run.state.get("ranks")
    return _by_span(run, lambda span: _told(span.ranks, count)) or _told(newest, count)


def _mesh(run: TrainingRun) -> str:
    """How ranks share a model; where they do so in a part of the steps, of the others how many ranks there were."""
    if not any(span.mesh for span in run.spans):
        return ""
    return _by_span(run, lambda span: span.mesh or (counted(span.ranks, "rank") if span.ranks else "not told"))


def _medians(run: TrainingRun, name: str, form: Any) -> str:
    """Of a column of training: of each span its own, for one over several meshes would be of none."""
    if not run.spans:
        return _told(run.median("train", name), form)
    return _by_span(run, lambda span: _told(run.median("train", name, span), form))


def _by_span(run: TrainingRun, told: Callable[[Span], str]) -> str:
    """What is told of each span; where they differ, of which steps it is.

    `4 (steps 1 to 20); 2 (steps 21 to 60)`.
    """
    parts = [(span, told(span)) for span in run.spans]
    if len({text for _, text in parts}) == 1:
        return parts[0][1]
    return ";\n".join(f"{text} (steps {count(span.before + 1)} to {count(span.end)})" for span, text in parts if text)


def _of_last_tenth(run: TrainingRun) -> float:
    """The mean training loss over the last tenth of the steps: that of one step is noise."""
    curve = run.curves.get(("train", "loss"))
    if curve is None or not len(curve.finite):
        return math.nan
    return float(curve.finite[-max(1, len(curve.finite) // 10) :].mean())


def validations(runs: Sequence[TrainingRun]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: of one run its validations, of several the last of each."""
    names = list(
        dict.fromkeys(name for run in runs for split, name in run.curves if split == "val" and _is_figure(name))
    )
    if not names:
        return [], []
    if len(runs) > 1:
        rows = [[run.name, *(_told(run.last("val", name), _digits) for name in names)] for run in runs]
        return ["Run", *(name.replace("_", " ") for name in names)], rows
    by_step: dict[int, dict[str, float]] = {}
    for name in names:
        curve = runs[0].curves["val", name]
        for step, value in zip(curve.steps, curve.values, strict=True):
            by_step.setdefault(int(step), {})[name] = float(value)
    rows = [
        [count(step), *(_told(found.get(name), _digits) for name in names)] for step, found in sorted(by_step.items())
    ]
    return ["Step", *(name.replace("_", " ") for name in names)], _middle_left_out(rows, MOST_ROWS)[0]


def _is_figure(name: str) -> bool:
    return name == "perplexity" or not HIDDEN.fullmatch(name)


def _digits(value: float) -> str:
    return figure(value, 4)


def _middle_left_out(rows: list[Any], most: int) -> tuple[list[Any], int]:
    """The first and the last of too many rows, and how many stood between them."""
    if len(rows) <= most:
        return rows, 0
    return rows[: most // 2] + rows[-(most - most // 2) :], len(rows) - most


def events_in_words(run: TrainingRun) -> tuple[list[tuple[str, str, str, str]], int]:
    """(time, step, event, the rest of it) of each, and how many of the middle are left out."""
    rows = []
    for event in run.events:
        rest = [event["reason"]] if event.get("reason") else []
        rest += [counted(event["ranks"], "rank")] if "ranks" in event else []
        rest += [event["mesh"]] if event.get("mesh") else []
        rest += [f"{name} {event[name]}" for name in ("host", "job") if event.get(name)]
        rest += [f"the steps up to {event['before']} are passed over"] if event.get("before") else []
        rows.append((event.get("time", "").replace("T", " "), count(event["step"]), event["event"], "; ".join(rest)))
    return _middle_left_out(rows, MOST_EVENTS)


def differences(runs: Sequence[TrainingRun]) -> dict[str, list[str]]:
    """Settings in which the runs differ, each with its value in every run; "—" where there is none, or null."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if key not in NO_DIFFERENCE)
    values = {key: [run.settings.get(key) for run in runs] for key in keys}
    cells = {key: ["—" if value is None else str(value) for value in told] for key, told in values.items()}
    return {key: values for key, values in cells.items() if len(set(values)) > 1}
