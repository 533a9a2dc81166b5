"""Ends a job in which some rank does not answer any more: MPI itself would let the others wait for ever."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hvdlm.world.interface import World

LOOKS = 20  # in a limit


@contextmanager
def watchdog(world: World, limit_s: float) -> Iterator[None]:
    """End the job if this rank does nothing (`World.beats` stands still) for `limit_s` within the body; 0: never.

    Time is counted in the watching thread's own naps, so that a job which was suspended as a whole
    (`scontrol suspend`) is not taken for one that hangs.
    """
    if not limit_s or world.size == 1:
        yield
        return
    over = threading.Event()
    threading.Thread(target=_watch, args=(world, limit_s, over), name="watchdog", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _watch(world: World, limit_s: float, over: threading.Event) -> None:
    looks, beats = 0, world.beats
    while not over.wait(limit_s / LOOKS):
        looks = looks + 1 if world.beats == beats else 0
        beats = world.beats
        if looks > LOOKS:
            message = (
                f"hvdlm: error: {world} has waited {limit_s:.9g} s for a rank that does not "
                "answer; the same command resumes from the last checkpoint (raise guard.stall_s if a step or a "
                "checkpoint can take so long)"
            )
            print(message, file=sys.stderr, flush=True)
            world.abort(1)
