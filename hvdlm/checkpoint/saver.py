"""Saving while training goes on: each rank copies its share and a thread writes it; all meet in sums that exist anyway.

CheckFreq (Mohan et al. 2021) parts a save in the same way, into a snapshot and what is written of it. The thread calls
`write_parts` and nothing that talks to other ranks.
"""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from hvdlm.checkpoint.boxes import Piece
from hvdlm.checkpoint.parts import Kept, PartFacts, Row, Share, files_of, shares_of, step_back, table_of, write_parts
from hvdlm.checkpoint.store import begin, commit, drop, not_finite_in
from hvdlm.errors import UserError, line_of
from hvdlm.world.interface import World

log = logging.getLogger("hvdlm")


class SaveState(IntEnum):
    """Of one rank's parts."""

    IDLE = 0
    WRITING = 1
    DONE = 2
    FAILED = 3


@dataclass
class _Save:
    """A checkpoint under way, as one rank knows it."""

    step: int
    aside: Path
    record: dict[str, Any]
    culprit: str  # what is not finite, on this rank
    files: dict[int, list[Share]]  # of this rank, by the number of the part
    tables: dict[int, list[Row]]  # of all parts; on rank 0
    started: float
    blocked_s: float = 0.0  # training stood still
    copied_s: float = 0.0  # of that, by the copy
    written_s: float = 0.0  # of this rank's thread
    state: SaveState = SaveState.WRITING
    facts: list[PartFacts] = field(default_factory=list)
    error: str = ""
    thread: threading.Thread | None = None


@dataclass(frozen=True)
class Saved:
    """A checkpoint that is there."""

    path: Path
    step: int
    seconds: float
    line: str


@dataclass(frozen=True)
class Unsaved:
    """A checkpoint that will not be: something in it is inf or NaN."""

    step: int
    culprit: str


class Saver:
    """Of one rank. All but `state` is collective."""

    def __init__(self, run_dir: Path, world: World) -> None:
        self._run_dir, self._world = run_dir, world
        self._kept = Kept()
        self._save: _Save | None = None

    @property
    def is_busy(self) -> bool:
        return self._save is not None

    def begin(self, step: int, pieces: Sequence[Piece], scalars: dict[str, Any], state: dict[str, Any]) -> None:
        """Start to save; when it returns, nothing that happens to tensors or state changes what is saved.

        UserError on all ranks where no folder can be made.
        """
        assert self._save is None, "the last one is to be finished before"
        world, start = self._world, time.monotonic()
        shares = shares_of(pieces)
        with world.together():
            rows = {number: table_of(of_file) for number, of_file in files_of(shares, world.rank, world.size).items()}
        aside = world.on_root(lambda: begin(self._run_dir, step))
        told = world.gather_on_root((rows, scalars))
        tables = {number: table for rows, _ in told for number, table in rows.items()}
        merged = merged_scalars([of_rank for _, of_rank in told])
        record = copy.deepcopy({**state, "optimizer_scalars": merged})  # lists in it grow while the parts are written
        copying = time.monotonic()
        self._kept.take(shares)
        files = files_of(self._kept.shares, world.rank, world.size)
        self._save = save = _Save(step, aside, record, not_finite_in((), scalars), files, tables, start)
        save.copied_s = time.monotonic() - copying
        save.blocked_s = time.monotonic() - start
        if save.culprit or not shares:
            save.state = SaveState.FAILED if save.culprit else SaveState.DONE
            return
        save.thread = threading.Thread(target=_write, args=(save,), name="hvdlm-save", daemon=True)
        save.thread.start()

    def state(self) -> SaveState:
        """Of this rank's parts; it is nobody else's to know before it has travelled."""
        return SaveState.IDLE if self._save is None else self._save.state

    def settle(self, states: Sequence[SaveState], permit: Callable[[], None]) -> Saved | Unsaved | None:
        """Commit, once all ranks are done; UserError on all ranks where one could not write."""
        save = self._save
        if save is None or SaveState.WRITING in states:
            return None
        self._save = None
        if SaveState.FAILED in states:
            self._world.on_root(lambda: drop(save.aside))
            told = self._world.gather((save.error, save.culprit))
            if error := next((error for error, _ in told if error), ""):
                raise UserError.shared(error)
            return Unsaved(save.step, next(culprit for _, culprit in told if culprit))
        parts = [part for of_rank in self._world.gather(save.facts) for part in of_rank]

        def finish() -> Path:
            try:
                return commit(self._run_dir, save.step, save.aside, save.tables, parts, save.record, permit)
            except BaseException:
                drop(save.aside)
                raise

        path = self._world.on_root(finish)
        seconds = time.monotonic() - save.started
        return Saved(path, save.step, seconds, self._line(path, save, sum(part.bytes for part in parts), seconds))

    def _line(self, path: Path, save: _Save, num_bytes: int, seconds: float) -> str:
        """For the log: how long training stood still, for the copy and for the rest, and when all was durable."""
        copied = self._kept.nbytes / max(save.copied_s, 1e-9) / 1e9
        own = sum(part.bytes for part in save.facts) / max(save.written_s, 1e-9) / 1e9
        return (
            f"saved {path}: {num_bytes / 1e6:,.1f} MB, there after {seconds:.2f} s; training stood still"
            f" {save.blocked_s:.2f} s ({save.copied_s:.2f} s for the copy, {copied:.1f} GB/s),"
            f" written at {own:.2f} GB/s a rank"
        )

    def finish(self, permit: Callable[[], None]) -> Saved | Unsaved | None:
        """Wait until what is under way is written by all, and commit it."""
        if self._save is None:
            return None
        thread, start = self._save.thread, time.monotonic()
        self._world.patiently(lambda: None if thread is None else thread.join())
        self._save.blocked_s += time.monotonic() - start
        return self.settle(self._world.gather(self.state()), permit)


def merged_scalars(of_ranks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The optimizer's plain values of all ranks; ValueError where two hold another value for the same."""
    merged: dict[str, Any] = {}
    for rank, scalars in enumerate(of_ranks):
        for name, value in scalars.items():
            if merged.setdefault(name, value) != value:
                raise ValueError(f"{name} is {merged[name]} on a rank before, {value} on rank {rank}")
    return merged


def _write(save: _Save) -> None:
    """In a thread of its own."""
    start = time.monotonic()
    try:
        with ThreadPoolExecutor(1, "hvdlm-look", step_back) as looking:  # while the disk is waited for
            culprit = looking.submit(not_finite_in, [share for shares in save.files.values() for share in shares], {})
            save.facts = write_parts(save.aside, save.files)
        save.written_s, save.culprit = time.monotonic() - start, culprit.result()
        save.state = SaveState.FAILED if save.culprit else SaveState.DONE
    except OSError as error:
        save.error = line_of(error, save.aside.with_name(save.aside.name.split(".")[1]))  # as it would have been called
        save.state = SaveState.FAILED
    except Exception as error:
        save.error = f"{save.aside}: {type(error).__name__}: {error}"
        save.state = SaveState.FAILED
