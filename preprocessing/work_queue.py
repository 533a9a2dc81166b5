"""Work handed to whichever rank is free, and what all ranks together have done so far."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hvdlm.data.manifest import Manifest
from hvdlm.errors import StoppedOnRequest, UserError
from hvdlm.files import write_text_durably
from hvdlm.host import memory_bytes
from hvdlm.session.progress import Progress
from hvdlm.session.stop import StopFlag
from hvdlm.world.interface import Counters, World

from .plan import WorkPlan

log = logging.getLogger("hvdlm")

NEXT, AMOUNT, DOCUMENTS, TOKENS = range(4)  # counters
LOOK_S = 0.5  # how often rank 0 looks at the counters of all


class PhaseTimer:
    """Seconds that this rank spent in each phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.start = time.monotonic()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start


@dataclass(frozen=True)
class Tasks:
    """Tasks of one kind, and how progress speaks of them."""

    name: str
    numbers: Sequence[int]
    work: Callable[[int], int]  # does a task, returns how much of `total` it was
    total: int
    unit: str
    per_unit: int = 1
    finish: Callable[[], None] = lambda: None  # what a rank does after its last task


class _Stop(Exception):
    """Leaves a task at once; never seen outside."""


class WorkQueue:
    """Runs tasks, each on one rank. Ranks draw the next task from a counter in rank 0's memory.

    Where ranks cannot reach that (ranks that met over Gloo), each takes every size-th task.
    """

    def __init__(self, plan: WorkPlan, world: World, stop: StopFlag, timer: PhaseTimer) -> None:
        self.world, self.timer = world, timer
        self._plan, self._stop = plan, stop
        self._counters: Counters | None = None
        self._progress: Progress | None = None
        self._tasks: Tasks
        self._next_look = 0.0
        self._done = [0, 0, 0, 0]  # of this rank

    def run(self, tasks: Tasks) -> None:
        """Do all tasks, each on some rank. Collective.

        A UserError or OSError of one rank ends it on all, and so does a request to stop (StoppedOnRequest).
        """
        self._counters, self._done, is_stopped = self.world.counters(4), [0, 0, 0, 0], False
        try:
            with Progress(tasks.name, tasks.total / tasks.per_unit, tasks.unit, self.world) as self._progress:
                with self.world.together():
                    is_stopped = self._run(tasks)
                self._look(tasks, is_due=True)
            self._end_if_any(is_stopped)
        except (UserError, StoppedOnRequest):  # shared by all ranks
            self._close()
            raise
        self._close()

    def _run(self, tasks: Tasks) -> bool:
        """This rank's tasks; whether it left before the end."""
        self._tasks = tasks
        try:
            for task in self._draw(tasks.numbers):
                with self.timer.phase(tasks.name):
                    self._check()
                    self._add(AMOUNT, tasks.work(task))
                self._look(tasks)
            with self.timer.phase(tasks.name):
                tasks.finish()
        except _Stop:
            self._plan.halt.touch()
            tasks.finish()
            return True
        except (UserError, OSError):
            self._plan.halt.touch()
            raise
        return False

    def _draw(self, numbers: Sequence[int]) -> Iterator[int]:
        if self._counters is None:
            yield from numbers[self.world.rank :: self.world.size]
            return
        while (drawn := self._counters.add(NEXT, 1)) < len(numbers):
            yield numbers[drawn]

    def _check(self) -> None:
        if self._stop.is_set() or self._plan.halt.exists():  # another rank's reason: it will tell
            raise _Stop

    def check_together(self) -> None:
        """Between stages: StoppedOnRequest on all ranks if one was asked to stop. Collective."""
        self._end_if_any(self._stop.is_set())

    def _end_if_any(self, is_stopped: bool) -> None:
        if any(self.world.gather(is_stopped)):
            raise StoppedOnRequest(f"{self._plan.config.output}: stopped on request; the same command continues")

    def count(self, documents: int, tokens: int) -> None:
        """What a task has done so far; leaves it when the job shall stop."""
        self._add(DOCUMENTS, documents)
        self._add(TOKENS, tokens)
        self._check()
        self._look(self._tasks)

    def _add(self, counter: int, amount: int) -> None:
        self._done[counter] += amount
        if self._counters is not None:
            self._counters.add(counter, amount)

    def _look(self, tasks: Tasks, is_due: bool = False) -> None:
        """On rank 0, now and then: show what all ranks have done."""
        if self.world.rank or self._progress is None or (time.monotonic() < self._next_look and not is_due):
            return
        self._next_look = time.monotonic() + LOOK_S
        _, amount, documents, tokens = self._counters.read() if self._counters is not None else self._done
        done, spent_s = amount / tasks.per_unit, self._progress.spent_s or 1.0
        note = (
            f"{done / spent_s:.1f} {tasks.unit}/s, {documents / spent_s:,.0f} documents/s, "
            f"{tokens / spent_s:,.0f} tokens/s"
        )
        self._progress.reach(done, note if tokens else "")

    def _close(self) -> None:
        if self._counters is not None:
            self._counters.close()
        self._counters = self._progress = None

    def write_summary(self, path: Path, manifest: Manifest, balance: dict[str, Any]) -> None:
        """`preprocess.json`: the balance, seconds by phase and rank, and how uneven the work was. Collective."""
        phases = self.world.gather(self.timer.seconds)
        peaks = self.world.gather(memory_bytes("VmHWM"))
        names = dict.fromkeys(name for rank in phases for name in rank)
        seconds = {name: [round(rank.get(name, 0.0), 3) for rank in phases] for name in names}
        if self.world.rank:
            return
        tokenize = [rank.get("tokenize", 0.0) for rank in phases]
        units = self._plan.units
        summary = {
            "num_ranks": self.world.size,
            "wall_s": round(time.monotonic() - self.timer.start, 3),
            "input_bytes": sum(unit.num_bytes for unit in units),
            "num_units": len(units),
            "num_units_resumed": len(units) - len(self._plan.todo),
            "num_documents": manifest.num_documents,
            "num_tokens": manifest.num_tokens,
            "balance": balance,
            "seconds": seconds,
            "peak_memory_mb": [round(peak / 1e6) for peak in peaks],
            "imbalance": round(max(tokenize) * len(tokenize) / sum(tokenize), 4) if sum(tokenize) else 1.0,
        }
        write_text_durably(path, json.dumps(summary, indent=1) + "\n")
