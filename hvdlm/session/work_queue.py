"""Work handed to whichever rank is free, and what all ranks together have done so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hvdlm.errors import StoppedOnRequest, UserError
from hvdlm.session.progress import Progress
from hvdlm.session.stop import StopFlag
from hvdlm.world.interface import Counters, World

NEXT, AMOUNT, COUNTED = range(3)  # counters, and the first of those of `Tasks.counted`
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
    counted: tuple[str, ...] = ()  # what `WorkQueue.count` is told of, whose speed is shown


class _Stop(Exception):
    """Leaves a task at once; never seen outside."""


class WorkQueue:
    """Runs tasks, each on one rank. Ranks draw the next task from a counter in rank 0's memory.

    Where ranks cannot reach that (ranks that met over Gloo), each takes every size-th task.
    """

    def __init__(self, halt: Path, output: str, world: World, stop: StopFlag, timer: PhaseTimer) -> None:
        """`halt` is a file that exists once some rank has failed or was asked to stop; `output` is what is made."""
        self.world, self.timer = world, timer
        self._halt, self._output, self._stop = halt, output, stop
        self._counters: Counters | None = None
        self._progress: Progress | None = None
        self._tasks: Tasks
        self._next_look = 0.0
        self._done: list[int] = []  # of this rank

    def run(self, tasks: Tasks) -> None:
        """Do all tasks, each on some rank. Collective.

        A UserError or OSError of one rank ends it on all, and so does a request to stop (StoppedOnRequest).
        """
        num = COUNTED + len(tasks.counted)
        self._counters, self._done, is_stopped = self.world.counters(num), [0] * num, False
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
            self._halt.touch()
            tasks.finish()
            return True
        except (UserError, OSError):
            self._halt.touch()
            raise
        return False

    def _draw(self, numbers: Sequence[int]) -> Iterator[int]:
        if self._counters is None:
            yield from numbers[self.world.rank :: self.world.size]
            return
        while (drawn := self._counters.add(NEXT, 1)) < len(numbers):
            yield numbers[drawn]

    def _check(self) -> None:
        if self._stop.is_set() or self._halt.exists():  # another rank's reason: it will tell
            raise _Stop

    def check_together(self) -> None:
        """Between stages: StoppedOnRequest on all ranks if one was asked to stop. Collective."""
        self._end_if_any(self._stop.is_set())

    def _end_if_any(self, is_stopped: bool) -> None:
        if any(self.world.gather(is_stopped)):
            raise StoppedOnRequest(f"{self._output}: stopped on request; the same command continues")

    def count(self, *amounts: int, may_leave: bool = True) -> None:
        """What a task has done since, in the order of `Tasks.counted`; leaves it when the job shall stop."""
        for counter, amount in enumerate(amounts, COUNTED):
            self._add(counter, amount)
        if may_leave:
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
        _, amount, *counts = self._counters.read() if self._counters is not None else self._done
        done, spent_s = amount / tasks.per_unit, self._progress.spent_s or 1.0
        speeds = [f"{count / spent_s:,.0f} {name}/s" for name, count in zip(tasks.counted, counts, strict=True)]
        note = ", ".join([f"{done / spent_s:.1f} {tasks.unit}/s", *speeds])
        self._progress.reach(done, note if any(counts) else "")

    def _close(self) -> None:
        if self._counters is not None:
            self._counters.close()
        self._counters = self._progress = None
