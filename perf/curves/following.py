"""What a run does just now, from its metrics.jsonl alone: what is new in the file, and how far the run is."""

from __future__ import annotations

import json
import math
import os
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hvdlm.files import open_regular
from hvdlm.session.metrics import ENDED, FAILED, LAST_EVENTS, RESUMED, STARTED, STOPPED, is_row
from hvdlm.tables import clock, count, figure

from .objects import sound
from .thinning import Curve

WAITING, RUNNING, QUIET = "waiting", "running", "quiet"
PHASES = (WAITING, RUNNING, QUIET, ENDED, STOPPED, FAILED)
QUIET_S = 60.0  # without a row: something is slow, waits or has died
USUAL_TIMES = 5  # so many times the longest time between two rows, if that is longer
SETTLED_S = 10.0  # after the last step's row its validation follows
RECENT = 50  # rows by which the speed is told


class News(NamedTuple):
    """What a look at the file has shown."""

    objects: list[dict[str, Any]]  # rows and events in order
    is_anew: bool = False  # all of the file: it is another one, or shorter, than at the last look
    touched: float | None = None  # when it was written last, seconds since 1970; None: there is no file


class Tail:
    """The whole lines that a file has got since the last look.

    A resume and a rewind replace the file: then it is read from its beginning. A last line without its end is left
    for the next look.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity: tuple[int, int] | None = None
        self._offset = 0

    def look(self) -> News:
        """OSError for what is there but is no file that can be read."""
        try:
            file = open_regular(self._path)
        except FileNotFoundError:
            is_gone, self._identity, self._offset = self._identity is not None, None, 0
            return News([], is_anew=is_gone)
        with file:
            facts = os.fstat(file.fileno())
            identity = facts.st_dev, facts.st_ino
            is_anew = identity != self._identity or facts.st_size < self._offset
            self._identity, self._offset = identity, 0 if is_anew else self._offset
            file.seek(self._offset)
            whole, end, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(end)
        return News(list(filter(None, map(_object, whole.splitlines()))), is_anew, facts.st_mtime)


def _object(line: bytes) -> dict[str, Any] | None:
    """A row or an event; None for a line that is neither, torn by a crash or somebody's note."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return sound(found) if isinstance(found, dict) else None


@dataclass(frozen=True)
class Facts:
    """By what a run's phase is judged."""

    last: str = ""  # what stands last in the file: "row", an event, or nothing
    told_events: bool = False  # versions before did not
    step: int = 0
    total_steps: int | None = None
    quiet_s: float = 0.0  # since something was written
    usual_s: float = 0.0  # the longest time between two rows that was seen


def phase_of(facts: Facts) -> str:
    """Which of PHASES a run is in.

    >>> phase_of(Facts()), phase_of(Facts("row", quiet_s=3)), phase_of(Facts("ended"))
    ('waiting', 'running', 'ended')
    >>> phase_of(Facts("row", quiet_s=90)), phase_of(Facts("row", quiet_s=90, usual_s=30))
    ('quiet', 'running')
    """
    if not facts.last:
        return WAITING
    if facts.last in LAST_EVENTS:
        return facts.last
    is_complete = facts.total_steps is not None and facts.step >= facts.total_steps
    if is_complete and not facts.told_events and facts.quiet_s > SETTLED_S:
        return ENDED
    return QUIET if facts.quiet_s > max(QUIET_S, USUAL_TIMES * facts.usual_s) else RUNNING


@dataclass
class Watched:
    """What is known of a run from all that was read so far."""

    total_steps: int | None = None  # as RUN/owner has it, until an event says it
    losses: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)  # by split: steps, losses
    latest: dict[str, Any] = field(default_factory=dict)  # newest value of each column of training
    recent: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=RECENT))  # (step, tokens)
    start: Mapping[str, Any] = field(default_factory=dict)
    event: Mapping[str, Any] = field(default_factory=dict)  # the newest
    step: int = 0
    last: str = ""
    touched: float | None = None
    usual_s: float = 0.0

    def hear(self, news: News) -> None:
        if news.is_anew:
            self.losses, self.latest, self.event, self.step, self.last = {}, {}, {}, 0, ""
            self.recent.clear()
        if news.objects and not news.is_anew and self.touched is not None and news.touched is not None:
            self.usual_s = max(self.usual_s, news.touched - self.touched)
        self.touched = news.touched
        for found in news.objects:
            if is_row(found):
                self._hear_row(found)
            else:
                self._hear_event(found)

    def _hear_row(self, row: dict[str, Any]) -> None:
        self.last, self.step = "row", row["step"]
        steps, losses = self.losses.setdefault(row["split"], ([], []))
        steps.append(row["step"])
        losses.append(row.get("loss", math.nan))
        if row["split"] == "train":
            self.latest |= row
            if "tokens" in row:
                self.recent.append((row["step"], row["tokens"]))

    def _hear_event(self, event: dict[str, Any]) -> None:
        self.last, self.event = event["event"], event
        if event["event"] in (STARTED, RESUMED):
            self.start = event
            self.total_steps = event.get("total_steps") or self.total_steps

    def facts(self, now: float) -> Facts:
        quiet_s = now - self.touched if self.touched is not None else 0.0
        return Facts(self.last, bool(self.event), self.step, self.total_steps, quiet_s, self.usual_s)

    @property
    def seconds_left(self) -> float | None:
        """At the newest speed, validations and saves not counted."""
        speed = self.latest.get("tokens_per_s")
        if not speed or self.total_steps is None or len(self.recent) < 2:
            return None
        (first, before), (last, after) = self.recent[0], self.recent[-1]
        if last <= first or after <= before:
            return None
        return max(0, self.total_steps - self.step) * (after - before) / (last - first) / speed

    def curve(self, split: str) -> Curve:
        steps, losses = self.losses.get(split, ([], []))
        return Curve(np.array(steps, float), np.array(losses, float))

    @property
    def best(self) -> tuple[int, float] | None:
        """(step, loss) of the best validation."""
        curve = self.curve("val")
        if not len(curve.finite):
            return None
        place = int(np.nanargmin(np.where(np.isfinite(curve.values), curve.values, np.nan)))
        return int(curve.steps[place]), float(curve.values[place])

    def parts(self) -> list[str]:
        """The newest numbers, what matters most first."""
        found = [f"step {count(self.step)}" + (f"/{count(self.total_steps)}" if self.total_steps else "")]
        found += [form(self.latest[name]) for name, form in TOLD.items() if name in self.latest]
        validations = self.curve("val")
        if self.best is not None and len(validations.values):
            found.insert(2, f"val {validations.values[-1]:.4f}")
            if self.best[0] != validations.steps[-1]:
                found.insert(3, f"best {self.best[1]:.4f} at step {count(self.best[0])}")
        if (left_s := self.seconds_left) is not None and left_s >= 1:
            found.append(f"about {clock(left_s)} left")
        return found


TOLD = {
    "loss": "loss {:.4f}".format,
    "lr": "lr {:.2e}".format,
    "grad_norm": lambda value: f"norm {figure(value)}",
    "tokens_per_s": "{:,.0f} tokens/s".format,
    "mfu": "MFU {:.0%}".format,
    "data_wait": "data {:.1%}".format,
    "exposed_comm": "comm {:.1%}".format,
    "straggler_spread": "spread {:.1%}".format,
    "memory_gb": "{:.2f} GB".format,
    "noise_scale": lambda value: f"noise scale {figure(value)}",
}
