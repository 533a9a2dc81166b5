"""How a running job learns that it shall stop: a signal, a file in its folder, or the end of its time.

| file in the folder | effect |
|---|---|
| STOP | save and end; renamed to STOPPED when it was obeyed, so an unanswered one is answered by the next start |
| SAVE | save now and go on; removed |
| KILL | end at once without saving, at every start as long as it is there |

A signal asks for the same as STOP: TERM and USR1 of a scheduler, INT (Ctrl-C), HUP of a terminal that was closed. One
that was ignored when the process began stays so, as `nohup` and a shell's `&` want it. A second Ctrl-C ends at
once, as soon as Python runs.
CONT asks for the same as SAVE: on Ctrl-C Open MPI's mpirun sends ranks CONT, a second later TERM, another later KILL.

`owner` in a run folder names the job that writes there. A node that the scheduler takes for lost may run its ranks
on while the requeued job trains elsewhere: whoever started last owns the folder, and the other ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import stat
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from hvdlm.errors import StoppedOnRequest
from hvdlm.files import read_json, to_json, write_text_durably
from hvdlm.world.interface import World

log = logging.getLogger("hvdlm")

STOP, STOPPED, SAVE, KILL, OWNER = "STOP", "STOPPED", "SAVE", "KILL", "owner"
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP, signal.SIGCONT)
ONE_PRESS_S = 0.5  # a terminal and a launcher may both hand on one Ctrl-C
EXIT_INTERRUPTED = 128 + signal.SIGINT
SPARE_S = 5.0  # for leaving MPI
GUESSED_BYTES_PER_S = 200e6  # of a save, before the first; a slow share of a parallel file system


class Wish(IntEnum):
    """What a job is asked for, the graver the larger: the gravest of all ranks holds."""

    NONE = 0
    SAVE = 1
    STOP = 2
    FAULT = 3  # a rank cannot write what it must
    KILL = 4
    OUSTED = 5  # another job has taken the folder over


@dataclass(frozen=True)
class BatchJob:
    """What the batch system told this process: its job's id, and when its time is over (seconds since 1970)."""

    id: str = ""
    end: float | None = None


class StopFlag:
    """What this rank has been told so far. Signals may reach any rank; files and the clock are rank 0's to watch."""

    def __init__(self, folder: Path, world: World, job: BatchJob) -> None:
        self._folder, self._job, self._is_root = folder, job, world.rank == 0
        self.place = {"host": socket.gethostname(), "job": job.id}  # where this process runs
        self._signalled = ""
        self._interrupted: float | None = None  # when Ctrl-C came first
        self._was_continued = False
        self.saves_when_continued = True  # where one more save changes no number
        self._token = self._ouster = ""
        self._save_s = self._longest_s = self._guess_s = 0.0
        self._looked: float | None = None
        self.reason = ""  # in words, as far as this rank knows
        self._has_looked = False
        for number in heard():
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        if number == signal.SIGCONT:
            self._was_continued = True
            return
        self._signalled = signal.Signals(number).name  # no more here: ranks are at different points
        if number == signal.SIGHUP:
            _leave_terminal()
        if number != signal.SIGINT:
            if not self._has_looked:
                self._tell(f"{self._signalled}: nothing new is saved yet; ends as soon as there is something")
            return
        now = time.monotonic()
        if self._interrupted is None:
            self._interrupted = now
            self._tell("interrupted: ends as soon as its work is saved; a second Ctrl-C ends at once")
        elif now - self._interrupted > ONE_PRESS_S:
            self._tell("interrupted again: ends at once, without saving")
            os._exit(EXIT_INTERRUPTED)

    def _tell(self, text: str) -> None:
        if self._is_root:
            with contextlib.suppress(OSError):  # the terminal may be gone
                os.write(2, f"hvdlm: {text}\n".encode())

    def look(self) -> Wish:
        """What is asked for now."""
        self._has_looked = True
        wish, self.reason = next(self._heard(), (Wish.NONE, ""))
        return wish

    def is_set(self) -> bool:
        return self.look() >= Wish.STOP

    def saved(self, seconds: float) -> None:
        """A save took so long: the next one may."""
        self._was_continued = False
        self._save_s = max(self._save_s, seconds)

    def expect(self, num_bytes: int) -> None:
        """So much will be saved: what that takes is a guess until it was measured."""
        self._guess_s = num_bytes / GUESSED_BYTES_PER_S

    def own(self, **facts: object) -> None:
        """Make the folder this job's. Rank 0 calls it."""
        self._token = uuid.uuid4().hex
        who = {"token": self._token, **self.place, "pid": os.getpid()}
        started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        write_text_durably(self._folder / OWNER, to_json({**who, "started": started, **facts}, indent=1) + "\n")

    def ouster(self) -> str:
        """Who has taken the folder over, or nothing; a file that cannot be read says nothing new."""
        if self._ouster or not self._token:
            return self._ouster
        try:
            owner = read_json(self._folder / OWNER)
        except (OSError, ValueError):
            return ""
        if not isinstance(owner, dict) or owner.get("token") == self._token:
            return ""
        job = f"job {owner['job']} on " if owner.get("job") else ""
        self._ouster = f"{job}{owner.get('host')}, process {owner.get('pid')}, since {owner.get('started')}"
        return self._ouster

    def _heard(self) -> Iterator[tuple[Wish, str]]:
        """All wishes with their reasons, the gravest first."""
        if self._is_root:
            if self.ouster():
                yield Wish.OUSTED, ""
            yield from self._asked_by_file(KILL, STOP)
        if self._signalled:
            yield Wish.STOP, self._signalled
        if self._is_root:
            if self._is_late():
                yield Wish.STOP, "the end of the job's time"
            yield from self._asked_by_file(SAVE)
        if self._was_continued and self.saves_when_continued:
            yield Wish.SAVE, "SIGCONT"

    def _asked_by_file(self, *names: str) -> Iterator[tuple[Wish, str]]:
        return ((Wish[name], str(self._folder / name)) for name in names if (self._folder / name).exists())

    def _is_late(self) -> bool:
        """Whether the time left is less than twice what a save and the longest time between two looks have taken."""
        now = time.monotonic()
        if self._looked is not None:
            self._longest_s = max(self._longest_s, now - self._looked)
        self._looked = now
        margin_s = SPARE_S + 2 * ((self._save_s or self._guess_s) + self._longest_s)
        return self._job.end is not None and self._job.end - time.time() < margin_s


def _leave_terminal() -> None:
    """Let what is said to a terminal that was closed go nowhere: writing there is an error, and work is to be saved."""
    for stream in (1, 2):
        with contextlib.suppress(OSError):  # the stream may be closed
            if stat.S_ISCHR(os.fstat(stream).st_mode) and not os.isatty(stream):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream)
                os.close(nowhere)


def heard(signals: Iterable[signal.Signals] = SIGNALS) -> list[signal.Signals]:
    """Those of the signals that ask to stop which whoever started this process (nohup, a shell's `&`) wants heard."""
    of_people = (signal.SIGINT, signal.SIGHUP)
    return [n for n in signals if n not in of_people or signal.getsignal(n) != signal.SIG_IGN]


@contextmanager
def stop_flag(folder: Path, world: World, job: BatchJob = BatchJob()) -> Iterator[StopFlag]:
    """A flag for the body; afterwards signals mean what they meant before, and a STOP file is a STOPPED file.

    A rank that ends because it was asked to is deaf from then on: srun takes the first exit code 75 for a failure
    and sends TERM to the ranks that are still leaving, whose codes would then hide it. Ctrl-C still ends it.
    """
    before = {number: signal.getsignal(number) for number in heard()}
    if world.rank == 0:
        _clear(folder / STOPPED)
    flag = StopFlag(folder, world, job)
    afterwards = before
    try:
        yield flag
    except StoppedOnRequest:
        afterwards = {n: signal.SIG_DFL if n == signal.SIGINT else signal.SIG_IGN for n in before}
        raise
    finally:
        for number, handler in afterwards.items():
            signal.signal(number, handler)
        with _only_warning(folder / STOP):
            if world.rank == 0 and (folder / STOP).exists() and not flag.ouster():  # the new owner's to answer
                (folder / STOP).replace(folder / STOPPED)


def _clear(path: Path) -> None:
    with _only_warning(path):
        if path.exists():  # a file system that may not be written to refuses to remove what is not there
            path.unlink()


@contextmanager
def _only_warning(path: Path) -> Iterator[None]:
    """No reason to fail: the file is for people."""
    try:
        yield
    except OSError as error:
        log.warning("%s: cannot be moved or removed (%s); do it by hand", path, error.strerror)
