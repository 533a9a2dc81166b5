"""A progress bar on a terminal, a line now and then in a batch log.

Ranks have no terminal, but `hvdlm launch` may have: then rank 0 says in lines of its own how far it is, each a
`Row` behind BAR_LINE, and the launcher draws the bar.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

from hvdlm.launch.environment import launcher_draws_bar
from hvdlm.tables import clock, count, figure
from hvdlm.world.interface import World

LINE_INTERVAL_S = 30.0
SEPARATOR = " | "
MIN_BAR, MAX_BAR = 10, 40  # columns
BAR_LINE = "hvdlm-bar "  # before a Row as JSON, or before nothing where the bar is over
TELL_INTERVAL_S = 0.2


@dataclass(frozen=True)
class Row:
    """What a bar shows, before it is known how many columns there are."""

    title: str
    counted: str
    unit: str
    parts: list[str]
    left: str
    share: float  # done, 0 to 1

    def drawn(self, width: int) -> Any:
        """The bar with what is said around it, on one row of a terminal."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        words = {"title": self.title, "counted": self.counted, "unit": self.unit, "left": self.left}
        head, bar_width, tail = arranged(width, parts=self.parts, **words)
        bar = [ProgressBar(total=1.0, completed=self.share, width=bar_width)] if bar_width else []
        row = Table.grid(padding=0)
        row.add_row(*([Text(head, no_wrap=True)] if head else []), *bar, Text(tail, no_wrap=True))
        return row


def row_in(line: str) -> Row | None:
    """The row that a line of a rank holds behind BAR_LINE; None where the bar is over. ValueError for a torn line.

    >>> row_in(BAR_LINE) is None
    True
    """
    _, _, told = line.partition(BAR_LINE)
    if not told.strip():
        return None
    try:
        return Row(**json.loads(told))
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from None


class Progress:
    """A bar on a terminal, a line now and then in a batch log, nothing on other ranks.

    `advance(amount, note)` counts; the note (loss, speed) stands beside the bar or on the line: parts between " | ",
    what matters most first.
    """

    def __init__(self, title: str, total: float, unit: str, world: World, *, done: float = 0, every: float = 0) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._done = self._first = done
        self._speaks = world.rank == 0
        self._every = every  # lines by amount, else by time
        self._start = self._last_line = time.monotonic()
        self._note = ""
        self._bar: Any = None
        self._tells = False  # the launcher, which draws the bar
        self._told = -TELL_INTERVAL_S

    def __enter__(self) -> Progress:
        if self._speaks and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            console = Console(stderr=True)
            self._bar = Live(console=console, get_renderable=lambda: self._row().drawn(console.width))
            self._bar.start()
        elif self._speaks and launcher_draws_bar():
            self._tells = True
            self._tell()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._bar:
            self._bar.stop()
        elif self._tells:
            self._tell()
            sys.stderr.write(f"{BAR_LINE}\n")
            sys.stderr.flush()
        elif self._speaks and kind is None and not self._every:
            self._line()

    @property
    def spent_s(self) -> float:
        return time.monotonic() - self._start

    def reach(self, done: float, note: str = "") -> None:
        """Say how much is done in all."""
        self.advance(done - self._done, note)

    def advance(self, amount: float, note: str = "") -> None:
        before, self._done, self._note = self._done, self._done + amount, note
        if self._tells and time.monotonic() - self._told >= TELL_INTERVAL_S:
            self._tell()
        if self._speaks and not self._bar and not self._tells and self._is_line_due(before):
            self._line()

    def _is_line_due(self, before: float) -> bool:
        if self._every:
            return int(self._done / self._every) > int(before / self._every) or before == self._first
        return time.monotonic() - self._last_line >= LINE_INTERVAL_S

    @property
    def _counted(self) -> str:
        if self._total < 100 and self._total != int(self._total):  # a few megabytes
            return f"{self._done:.2f}/{self._total:.2f}"
        return f"{count(self._done)}/{count(self._total)}"

    @property
    def _left(self) -> str:
        """The time that is left at the speed so far."""
        advanced = self._done - self._first
        left_s = (self._total - self._done) * self.spent_s / advanced if advanced > 0 else 0.0
        return f"{clock(left_s)} left" if left_s >= 1 else ""

    def _parts(self) -> list[str]:
        if self._note:
            return self._note.split(SEPARATOR)
        rate = (self._done - self._first) / self.spent_s if self.spent_s else 0.0
        return [f"{figure(rate)} {self._unit}/s"]

    def _line(self) -> None:
        self._last_line = time.monotonic()
        parts = [f"{self._title} {self._counted} {self._unit}", *self._parts(), self._left]
        logging.getLogger("hvdlm").info("%s", SEPARATOR.join(filter(None, parts)))

    def _row(self) -> Row:
        share = min(self._done / max(self._total, 1e-9), 1.0)
        return Row(self._title, self._counted, self._unit, self._parts(), self._left, share)

    def _tell(self) -> None:
        self._told = time.monotonic()
        sys.stderr.write(f"{BAR_LINE}{json.dumps(asdict(self._row()))}\n")  # one write: lines of ranks do not mix
        sys.stderr.flush()


def arranged(width: int, *, title: str, counted: str, unit: str, parts: list[str], left: str) -> tuple[str, int, str]:
    """(text, columns of a bar, text) that fit into `width` columns together, the essential first.

    The count, the first part and the time left are kept longest; then come title and unit, a short bar, the other parts
    in their order, and a bar as long as there is room for.

    >>> arranged(30, title="train", counted="9/1500", unit="steps", parts=["loss 4.1", "lr 1"], left="0:12 left")
    ('', 0, '9/1500 | loss 4.1 | 0:12 left')
    >>> arranged(60, title="train", counted="9/1500", unit="steps", parts=["loss 4.1", "lr 1"], left="0:12 left")
    ('train ', 10, ' 9/1500 steps | loss 4.1 | 0:12 left | lr 1')
    """
    room = width - 1 - len(counted)  # the last column stays empty: some terminals wrap there
    kept = [counted]
    for text in filter(None, (*parts[:1], left)):
        if len(SEPARATOR) + len(text) <= room:
            kept.append(text)
            room -= len(SEPARATOR) + len(text)
    if len(unit) + 1 <= room:
        kept[0] += f" {unit}"
        room -= len(unit) + 1
    head = f"{title} " if len(title) + 1 <= room else ""
    room -= len(head)
    bar = MIN_BAR if room > MIN_BAR else 0
    room -= bar + 1 if bar else 0
    for text in parts[1:]:
        if len(SEPARATOR) + len(text) > room:
            break
        kept.append(text)
        room -= len(SEPARATOR) + len(text)
    bar = min(MAX_BAR, bar + room) if bar else 0
    return head, bar, (" " if bar else "") + SEPARATOR.join(kept)
