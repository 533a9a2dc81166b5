"""Connections: how many are open, and how long one may take to say what it wants."""

from __future__ import annotations

import asyncio
import logging
import resource
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

log = logging.getLogger("hvdlm")

BACKLOG = 64  # connections that wait to be accepted; so many may be accepted at once
MOST_OPEN, FEWEST_OPEN = 1024, 16
HEAD_S = 15.0  # in which the head of a request must be there; its body has a limit of its own


def config_of(app: Starlette, *, most_open: int = MOST_OPEN, grace_s: int) -> uvicorn.Config:
    """Uvicorn's settings; `grace_s`: for answers to reach their clients once the server has ended."""

    class Bounded(Connection):
        most = most_open

    return uvicorn.Config(
        app,
        http=Bounded,
        ws="none",
        log_config=None,
        access_log=False,  # it would have paths alone, but nobody asked for it
        server_header=False,
        date_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=grace_s,
    )


def raise_limit() -> int:
    """As many open files as this process may have; how many connections there is room for then.

    Half of them at least, beside a burst of new ones, is left for what else is open.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    except (OSError, ValueError):  # some systems have a lower one than they say
        log.debug("the limit of open files stays at %d", soft)
    if soft == resource.RLIM_INFINITY:
        return MOST_OPEN
    return max(FEWEST_OPEN, min(MOST_OPEN, (soft - BACKLOG) // 2))


class Connection(H11Protocol):
    """Uvicorn's, but that it ends where no head of a request comes in time.

    Where more than `most` are open the one that has waited longest for a head makes room: who asks at once is heard
    even while others hold connections open for nothing.
    """

    most = MOST_OPEN

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self._headless: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()
        if len(self.connections) > self.most:
            waiting = [one for one in self.connections if isinstance(one, Connection) and one._headless is not None]
            min(waiting, key=Connection._deadline)._give_up()

    def connection_lost(self, exc: Exception | None) -> None:
        self._has_head()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._has_head()

    def on_response_complete(self) -> None:
        self._await_head()  # before the next request, which may be there already
        super().on_response_complete()

    def _await_head(self) -> None:
        self._has_head()
        self._headless = self.loop.call_later(HEAD_S, self._give_up)

    def _has_head(self) -> None:
        if self._headless is not None:
            self._headless.cancel()
            self._headless = None

    def _deadline(self) -> float:
        assert self._headless is not None, "it waits"
        return self._headless.when()

    def _give_up(self) -> None:
        self._has_head()
        self.transport.close()
