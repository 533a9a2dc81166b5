"""The one thread that computes: it drives the engine while there is work, and sleeps while there is none."""

from __future__ import annotations

import asyncio
import logging
import threading
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

from hvdlm.errors import UserError, lack_of_memory
from hvdlm.inference.engine import Counts, Engine, Request
from hvdlm.inference.listeners import Heard
from hvdlm.serve.writing import Writing

log = logging.getLogger("hvdlm")

FAILED = "the model failed; the server's log says why"


class Outbox:
    """Calls that the computing thread leaves for the event loop: one wake-up serves all that wait."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._calls, self._is_called = loop, deque[Callable[[], Any]](), False

    def put(self, call: Callable[[], Any]) -> None:
        self._calls.append(call)
        if not self._is_called:
            self._is_called = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._is_called = False  # before anything is taken: what comes from now on calls again
        while self._calls:
            self._calls.popleft()()


class Worker:
    """`make_engine` is called in the thread, and again where an engine has failed, whose state nobody knows.

    Each engine does `warm_up` first, so that no client waits for it; `on_broken` hears why even that has failed.
    """

    def __init__(self, make_engine: Callable[[], Engine], warm_up: Request, on_broken: Callable[[str], None]) -> None:
        self._make_engine, self._warm_up, self._on_broken = make_engine, warm_up, on_broken
        self._condition = threading.Condition()
        self._incoming: deque[Writing] = deque()
        self._open: list[Writing] = []
        self._is_ending = False
        self._engine: Engine | None = None
        self._past = Counts()  # of engines that have failed
        self.is_ready = False
        self._thread = threading.Thread(target=self._work, name="compute", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, *writings: Writing) -> None:
        with self._condition:
            self._open += writings
            self._incoming += writings
            self._condition.notify()

    @property
    def num_open(self) -> int:
        """Texts that are written or wait."""
        return sum(writing.request.choices for writing in list(self._open))

    @property
    def num_running(self) -> int:
        return self._engine.num_running if self._engine is not None else 0

    @property
    def counts(self) -> Counts:
        now = self._engine.counts if self._engine is not None else Counts()
        return _sum(self._past, now)

    def cancel_all(self, message: str) -> int:
        """Whatever is open ends with an error; how many texts that were."""
        with self._condition:
            num = sum(writing.fail(message) for writing in self._open)
            for writing in self._open:  # later: what the engine sees as cancelled it ends without this message
                writing.is_cancelled = True
            return num

    def end(self) -> None:
        with self._condition:
            self._is_ending = True
            self._condition.notify()
        self._thread.join(5)

    def _work(self) -> None:
        engine = self._begin()
        while engine is not None and (writings := self._next()) is not None:
            try:
                for writing in writings:
                    engine.add(writing.request, writing)
                engine.step()
            except Exception as error:
                self._fail(error)
                engine = self._begin()
            with self._condition:
                self._open = [writing for writing in self._open if not writing.is_over]

    def _begin(self) -> Engine | None:
        """A new engine, warm; None where even that fails."""
        if self._engine is not None:
            self._past = self.counts
        try:
            self._engine = engine = self._make_engine()
            engine.add(self._warm_up, Heard())
            engine.run()
            engine.counts = Counts()
        except Exception as error:
            self.is_ready, self._engine = False, None
            self._on_broken(self._fail(error))
            return None
        self.is_ready = True
        return engine

    def _next(self) -> list[Writing] | None:
        """What has come in; waits for it while nothing is open. None: the end."""
        with self._condition:
            while not self._open and not self._is_ending:
                self._condition.wait()
            if self._is_ending:
                return None
            found = list(self._incoming)
            self._incoming.clear()
            return found

    def _fail(self, error: Exception) -> str:
        """Tell all who wait. The log has the place and the kind of an unknown error: its message may hold a prompt."""
        known = lack_of_memory(error) or error
        if isinstance(known, UserError):
            message = str(known)
            log.error("%s", message)
        else:
            message = FAILED
            log.error("%s\n%s%s", message, "".join(traceback.format_tb(error.__traceback__)), type(error).__name__)
        with self._condition:
            self._incoming.clear()
            for writing in self._open:
                writing.fail(message)
            self._open = []
        return message


def _sum(one: Counts, other: Counts) -> Counts:
    return Counts(**{name: getattr(one, name) + getattr(other, name) for name in vars(one)})
