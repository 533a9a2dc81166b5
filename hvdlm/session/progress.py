"""A progress bar on a terminal, a line now and then in a batch log."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from hvdlm.tables import clock
from hvdlm.world.interface import World

LINE_INTERVAL_S = 30.0


class Progress:
    """A rich bar on a terminal, a line now and then in a batch log, nothing on other ranks.

    `advance(amount, note)` counts; the note (loss, speed) stands beside the bar or on the line.
    """

    def __init__(self, title: str, total: float, unit: str, world: World, *, done: float = 0, every: float = 0) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._done = self._first = done
        self._speaks = world.rank == 0
        self._every = every  # lines by amount, else by time
        self._start = self._last_line = time.monotonic()
        self._note = ""
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if self._speaks and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            title, unit, note = map(TextColumn, ("{task.description}", self._unit, "{task.fields[note]}"))
            columns = (title, BarColumn(), MofNCompleteColumn(), unit, note, TimeRemainingColumn())
            self._bar = RichProgress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(self._title, total=int(self._total), completed=int(self._done), note="")
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._bar:
            self._bar.stop()
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
        if not self._speaks:
            return
        if self._bar:
            self._bar.update(self._task, completed=int(self._done), note=note)
        elif self._is_line_due(before):
            self._line()

    def _is_line_due(self, before: float) -> bool:
        if self._every:
            return int(self._done / self._every) > int(before / self._every) or before == self._first
        return time.monotonic() - self._last_line >= LINE_INTERVAL_S

    def _line(self) -> None:
        self._last_line = time.monotonic()
        spent_s = self._last_line - self._start
        rate = (self._done - self._first) / spent_s if spent_s else 0.0
        left_s = (self._total - self._done) / rate if rate else 0.0
        note = f" | {self._note}" if self._note else f" | {rate:.3g} {self._unit}/s"
        eta = f" | {clock(left_s)} left" if left_s >= 1 else ""
        logging.getLogger("hvdlm").info(
            "%s %.6g/%.6g %s%s%s", self._title, self._done, self._total, self._unit, note, eta
        )
