"""How a running job learns that it shall stop: a signal before a time limit, or a file."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hvdlm.world.interface import World


class StopFlag:
    """Set by SIGTERM or SIGUSR1 on any rank, or by a file STOP in the job's folder."""

    def __init__(self, folder: Path, world: World) -> None:
        self._file = folder / "STOP" if world.rank == 0 else None
        self._signalled = False
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self._signalled = True  # no more here: ranks are at different points

    def is_set(self) -> bool:
        return self._signalled or (self._file is not None and self._file.exists())


@contextmanager
def stop_flag(folder: Path, world: World) -> Iterator[StopFlag]:
    """A flag for the body; afterwards the signals mean what they meant before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield StopFlag(folder, world)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
