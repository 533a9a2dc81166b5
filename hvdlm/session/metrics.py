"""The numbers of a run: metrics.jsonl and TensorBoard.

A row is a JSON object a line: `step` (int), `split` ("train" or "val") and numbers. Between them stand events, what
happened to the run: `event` (one of EVENTS), `step`, `time` (ISO 8601) and what belongs to it, without a `split`. A
resume or a rewind drops the rows after its step, for they are made again, and no event, for it has happened.
"""

from __future__ import annotations

import codecs
import contextlib
import json
import logging
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hvdlm.files import naming, open_regular, to_json, write_text_durably
from hvdlm.session.logs import LogConfig
from hvdlm.world.interface import World

log = logging.getLogger("hvdlm")

METRICS = "metrics.jsonl"
UNREADABLE = "metrics.jsonl.unreadable"  # lines that were no JSON objects
BOARD_FLUSH_S = 30.0

STARTED, RESUMED = "started", "resumed"
LEFT_OUT, REWOUND = "left out", "rewound"  # an update; all since a checkpoint
ENDED, STOPPED, FAILED = "ended", "stopped", "failed"  # with a result; on request, to be resumed; for an error
EVENTS = (STARTED, RESUMED, LEFT_OUT, REWOUND, ENDED, STOPPED, FAILED)
LAST_EVENTS = (ENDED, STOPPED, FAILED)  # after which this start writes no more


def read_metrics(path: Path, split: str | None = None) -> list[dict]:
    """The rows of a metrics.jsonl, in order; lines that are none (torn by a crash, or somebody's note) are left out."""
    return [row for row in read_run(path)[0] if split is None or row["split"] == split]


def read_run(path: Path) -> tuple[list[dict], list[dict]]:
    """The rows of a metrics.jsonl, and its events; each in order."""
    objects = [row for _, row in _lines(path) if row is not None]
    return list(filter(is_row, objects)), list(filter(is_event, objects))


def is_row(row: dict) -> bool:
    """Whether an object in metrics.jsonl holds numbers of a step."""
    return _place(row) is not None


def is_event(row: dict) -> bool:
    """Whether it says what happened to the run."""
    return "split" not in row and type(row.get("step")) is int and row.get("event") in EVENTS


def _lines(path: Path) -> Iterator[tuple[bytes, dict | None]]:
    """Each line, and the JSON object that it is or None."""
    if not path.exists():
        return
    with open_regular(path) as file:
        data = file.read()
    for line in filter(bytes.strip, data.removeprefix(codecs.BOM_UTF8).splitlines()):
        try:
            row = json.loads(line.decode())
        except (ValueError, RecursionError):
            row = None
        yield line, row if isinstance(row, dict) else None


def _place(row: dict) -> tuple[int, str] | None:
    """(step, split) of a row of ours."""
    step, split = row.get("step"), row.get("split")
    return (step, split) if type(step) is int and isinstance(split, str) else None


def _keep_until(run_dir: Path, step: int) -> None:
    """Drop the rows after `step` from metrics.jsonl; each of the others stands once, as it was written.

    Objects that are no rows of ours stay too. What is no JSON is moved to a file beside it, with a word.
    """
    path = run_dir / METRICS
    kept: dict[Any, bytes] = {}
    torn: list[bytes] = []
    num_dropped = 0
    for number, (line, row) in enumerate(_lines(path)):
        place = _place(row) if row is not None else None
        if row is None:
            torn.append(line)
        elif place is None:
            kept[number] = line
        elif place[0] <= step:
            kept[place] = line
        else:
            num_dropped += 1
    if torn:
        with naming(run_dir / UNREADABLE), (run_dir / UNREADABLE).open("ab") as file:
            file.write(b"".join(line + b"\n" for line in torn))
        log.warning("%s: lines that cannot be read: %d, moved to %s", path, len(torn), UNREADABLE)
    num_lost = step - sum(1 for place in kept if isinstance(place, tuple) and place[1] == "train")
    if num_lost > 0:
        log.warning("%s: lacks rows of the %d steps that were trained already: %d", path, step, num_lost)
    if not step and num_dropped:
        log.warning("%s: there is no checkpoint: training begins anew, rows that are dropped: %d", path, num_dropped)
    write_text_durably(Path(os.path.realpath(path)), b"".join(line + b"\n" for line in kept.values()).decode())


class RunLog:
    """metrics.jsonl and TensorBoard of a run; on ranks other than 0 it writes nothing.

    Rows after `step` are dropped when it opens: a resumed run repeats those steps, each stands once. A row that
    cannot be written is `fault`, which `check` raises where all ranks can hear of it.
    """

    def __init__(self, config: LogConfig, run_dir: Path, world: World, *, step: int) -> None:
        self._file: Any = None
        self._board: _Board | None = None
        self.fault: OSError | None = None
        if world.rank:
            return
        self._config, self._run_dir = config, run_dir
        self._open(step)

    def _open(self, step: int) -> None:
        _keep_until(self._run_dir, step)
        self._file = (self._run_dir / METRICS).open("a", encoding="utf-8")
        if self._config.tensorboard:
            self._board = _Board(self._run_dir / "tensorboard", step)

    def rewind(self, step: int) -> None:
        """Drop the rows after `step`: those steps will be made again."""
        if self._file is not None:
            self.__exit__()
            self._open(step)

    def write(self, step: int, split: str, **values: float) -> None:
        self._put({"step": step, "split": split, **values})
        if self._board is not None and self.fault is None:
            with self._noting_fault():
                self._board.write(step, {f"{split}/{name}": value for name, value in values.items()})

    def tell(self, step: int, event: str, **facts: object) -> None:
        """Note what happened to the run: one of EVENTS, and what belongs to it."""
        assert event in EVENTS, event
        self._put({"event": event, "step": step, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **facts})

    def _put(self, row: dict) -> None:
        if self._file is None or self.fault is not None:
            return
        with self._noting_fault(), naming(self._run_dir / METRICS):
            self._file.write(to_json(row) + "\n")
            self._file.flush()

    @contextlib.contextmanager
    def _noting_fault(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # this rank alone knows: the others learn it when all meet next
            self.fault = error

    def check(self) -> None:
        """OSError if a row could not be written."""
        if self.fault is not None:
            raise self.fault

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *exception: object) -> None:
        for part in (self._file, self._board):
            if part is not None:
                with contextlib.suppress(OSError):  # each row was flushed, or is a fault already
                    part.close()


class _Board:
    """TensorBoard's event file, written in this thread: a full disk ends SummaryWriter's own, for which it then waits.

    After a resume at `step` a viewer forgets what it has seen of later steps.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import scalar

        self._folder, self._event, self._scalar = folder, Event, scalar
        self._flushed = time.monotonic()
        with naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventsWriter(str(folder / "events"), f".{uuid.uuid4().hex[:8]}")
            if step:
                start = SessionLog(status=SessionLog.START)
                self._writer.write_event(Event(step=step + 1, wall_time=time.time(), session_log=start))

    def write(self, step: int, values: dict[str, float]) -> None:
        with naming(self._folder):
            for name, value in values.items():
                summary = self._scalar(name, value)
                self._writer.write_event(self._event(step=step, wall_time=time.time(), summary=summary))
            if time.monotonic() - self._flushed > BOARD_FLUSH_S:
                self._writer.flush()
                self._flushed = time.monotonic()

    def close(self) -> None:
        self._writer.close()
