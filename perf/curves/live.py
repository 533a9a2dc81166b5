"""`hvdlm watch RUN`: a run in a terminal while it goes on, drawn anew when its metrics.jsonl has grown.

Idle it looks at the file once a second and does nothing else. Where there is no terminal it says a line now and then.
"""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hvdlm.data.manifest import MANIFEST
from hvdlm.errors import EXIT_STOPPED, UserError
from hvdlm.session.metrics import ENDED, FAILED, METRICS, STOPPED
from hvdlm.session.progress import SEPARATOR
from hvdlm.tables import clock, count, counted

from .dots import plot
from .following import QUIET, RUNNING, WAITING, Tail, Watched, phase_of
from .reading import is_run, total_steps_in

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

LOOK_S = 1.0
AT_LEAST_EVERY_S = 10.0  # the display says for how long nothing has come
EXIT_CODES = {ENDED: 0, STOPPED: EXIT_STOPPED, FAILED: 1}  # as of the run itself, as far as anybody knows
STYLES = {RUNNING: "green", ENDED: "green", WAITING: "yellow", QUIET: "yellow", STOPPED: "yellow", FAILED: "red"}
MOST_ROWS, FEWEST_ROWS = 16, 4  # of characters that the plot is high


def watch(folder: Path, *, every_s: float, waits: bool, once: bool) -> int:
    """Show a run until it ends; the exit code that tells how. `waits`: also for the next start of one that has stopped.

    `every_s`: between two lines where there is no terminal. `once`: show how it stands and return.
    """
    _check_folder(folder)
    if sys.stdout.isatty():
        from rich.console import Console

        return _live(folder, Console(), waits=waits, once=once)
    return _lines(folder, every_s, waits=waits, once=once)


def _check_folder(folder: Path) -> None:
    """UserError where no run will ever begin; one that has not begun may have no folder yet, or an empty one."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is no folder; name the run_dir of a training")
    if is_run(folder):
        return
    if (folder / MANIFEST).exists():
        raise UserError(f"{folder}: is a data folder and no run; name the run_dir of a training")
    if runs := [*folder.glob(f"*/{METRICS}"), *folder.glob(f"*/*/{METRICS}")]:
        raise UserError(f"{folder}: is no run, but holds some; name one of them, as {min(runs).parent}")


def _looks(folder: Path, *, waits: bool, once: bool) -> Iterator[tuple[Watched, str, bool]]:
    """What is known, the phase, and whether something is new, once a second until the run is over."""
    tail, watched = Tail(folder / METRICS), Watched()
    while True:
        news = tail.look()
        watched.hear(news)
        if watched.total_steps is None and news.objects:
            watched.total_steps = total_steps_in(folder)
        phase = phase_of(watched.facts(time.time()))
        yield watched, phase, bool(news.objects) or news.is_anew
        if once or phase == ENDED or (phase in EXIT_CODES and not waits):
            return
        time.sleep(LOOK_S)


def _lines(folder: Path, every_s: float, *, waits: bool, once: bool) -> int:
    """For a file or a pipe: at each change of the phase and each validation, else after `every_s` if there is news."""
    said, said_at, said_step, phase = "", -every_s, -1, WAITING
    for watched, phase, _ in _looks(folder, waits=waits, once=once):
        now = time.monotonic()
        key = f"{phase} {len(watched.curve('val').steps)}"
        if key != said or (watched.step != said_step and now - said_at >= every_s):
            print(line_of(folder, watched, phase, once=once), flush=True)
            said, said_at, said_step = key, now, watched.step
    return EXIT_CODES.get(phase, 0)


def line_of(folder: Path, watched: Watched, phase: str, *, once: bool) -> str:
    """How a run stands, on one line."""
    told = in_words(folder, watched, phase, once=once)
    if phase == WAITING:
        return told
    step, *parts = watched.parts()
    if phase == QUIET:
        parts = [*parts, told]
    return SEPARATOR.join([told if phase in EXIT_CODES else step, *parts])


def in_words(folder: Path, watched: Watched, phase: str, *, once: bool) -> str:
    """What a phase means for this run, and for who looks on."""
    reason = f" ({watched.event['reason']})" if watched.event.get("reason") else ""
    total = f" of {count(watched.total_steps)}" if watched.total_steps else ""
    at = f"at step {count(watched.step)}{total}"
    if phase == WAITING:
        there = "has no row yet" if watched.touched else "is not there yet" if folder.is_dir() else "has no folder yet"
        until = "the run has not begun" if once else "waits for the run to begin, Ctrl-C ends"
        return f"{folder / METRICS} {there}; {until}"
    if phase == QUIET:
        quiet_s = watched.facts(time.time()).quiet_s
        return f"nothing new for {clock(quiet_s)}: it is slow, waits or has died{'' if once else '; Ctrl-C ends'}"
    if phase == RUNNING:
        return _place(watched)
    verbs = {ENDED: "ended", STOPPED: "stopped on request, the same command resumes it,", FAILED: "failed"}
    return f"{verbs[phase]} {at}{reason}"


def _place(watched: Watched) -> str:
    """Where the newest start runs."""
    start = watched.start
    ranks = counted(start["ranks"], "rank") if "ranks" in start else ""
    ranks += f" ({start['mesh']})" if ranks and start.get("mesh") else ""
    host = f"{ranks}, the first on {start['host']}" if start.get("host") and ranks else ""
    job = f"job {start['job']}" if start.get("job") else ""
    event = watched.event
    latest = f"{event['event']} at step {count(event['step'])}, {event.get('time', '')[11:19]}" if event else ""
    return ", ".join(filter(None, (latest, host, job)))


def _live(folder: Path, console: Console, *, waits: bool, once: bool) -> int:
    """On a terminal: one picture, drawn over itself."""
    from rich.live import Live

    phase, drawn_at = WAITING, -AT_LEAST_EVERY_S
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        for watched, now_phase, has_news in _looks(folder, waits=waits, once=once):
            now = time.monotonic()
            if has_news or now_phase != phase or now - drawn_at >= AT_LEAST_EVERY_S:
                live.update(picture(folder, watched, now_phase, console, once=once), refresh=True)
                drawn_at = now
            phase = now_phase
    return EXIT_CODES.get(phase, 0)


def picture(folder: Path, watched: Watched, phase: str, console: Console, *, once: bool) -> RenderableType:
    """Title and bar, the curve of the loss, the newest numbers, what the run is at."""
    from rich.console import Group
    from rich.text import Text

    width = console.width - 1  # some terminals wrap in the last column
    told = "\n".join(textwrap.wrap(in_words(folder, watched, phase, once=once), width))
    rows: list[Any] = [_title(folder, watched, phase, width)]
    train, points = watched.curve("train"), watched.curve("val")
    if len(train.finite) or len(points.finite):
        key = "loss in training, nats a target" + ("; o: validation" if len(points.finite) else "")
        numbers = wrapped(watched.parts()[1:], width)
        around = 6 + numbers.count("\n") + told.count("\n")  # title, axis, key, texts; the cursor's row
        height = min(MOST_ROWS, max(FEWEST_ROWS, console.height - around - 1))
        is_plain = "utf" not in console.encoding.lower()
        rows += [_colored(row) for row in plot(train, points, width, height, is_plain=is_plain)]
        rows += [Text(key[:width].rjust(width), style="dim"), Text(numbers)]
    if told:
        rows.append(Text(told, style=STYLES[phase]))
    return Group(*rows)


def _title(folder: Path, watched: Watched, phase: str, width: int) -> Any:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    total = watched.total_steps
    told = f" step {count(watched.step)}" + (f" of {count(total)} ({watched.step / total:.0%}) " if total else "")
    name = str(folder)
    room = width - len(told) - 1
    name = name if len(name) <= room else "…" + name[len(name) - room + 1 :]
    row = Table.grid(padding=0)
    parts: list[Any] = [Text(name, style="bold", no_wrap=True), Text(told if phase != WAITING else "", no_wrap=True)]
    bar = width - len(name) - len(told)
    if total and bar >= 10:
        parts.append(ProgressBar(total=total, completed=watched.step, width=min(bar, 40)))
    row.add_row(*parts)
    return row


def _colored(row: str) -> Any:
    """The curve in one color, the points of validations in another; the scale at the left stays as it is."""
    from rich.text import Text

    text = Text(row, no_wrap=True)
    edge = max(row.find("│"), row.find("|"))
    if edge >= 0:
        text.stylize("cyan", edge + 1)
        for place in (place for place, letter in enumerate(row) if letter == "o" and place > edge):
            text.stylize("bold yellow", place, place + 1)
    return text


def wrapped(parts: list[str], width: int) -> str:
    """Parts in rows of at most `width`, none cut in two.

    >>> wrapped(["loss 4.1", "val 4.0", "lr 1e-3"], 20).splitlines()
    ['loss 4.1 | val 4.0', 'lr 1e-3']
    """
    rows: list[str] = []
    for part in parts:
        if rows and len(rows[-1]) + len(SEPARATOR) + len(part) <= width:
            rows[-1] += SEPARATOR + part
        else:
            rows.append(part)
    return "\n".join(rows)
