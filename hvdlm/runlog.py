"""What a run tells people and programs: log lines, a progress bar, metrics.jsonl and TensorBoard.

Rank 0 alone speaks. Everything for people goes to stderr; stdout is left to results.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import Field, model_validator

from hvdlm.config import Section
from hvdlm.durable import write_text_durably
from hvdlm.world.interface import World

LINE_INTERVAL_S = 30.0


class LogConfig(Section):
    """The `log` section."""

    every: int = Field(10, ge=1, description="steps between two lines in a batch log")
    tensorboard: bool = Field(True, description="also write RUN/tensorboard")
    trace: tuple[int, int] | None = Field(
        None, strict=False, description="[first, end): steps to record in RUN/trace/rank*.json, every operator"
    )

    @model_validator(mode="after")
    def _check(self) -> LogConfig:
        if self.trace is not None and not 0 <= self.trace[0] < self.trace[1]:
            raise ValueError(f"trace {list(self.trace)} must be [first, end) with 0 <= first < end")
        return self


class _CurrentStderr:
    """sys.stderr as it is at each write: rich puts itself there while it shows a bar."""

    def write(self, text: str) -> None:
        sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


def setup_logging(rank: int) -> None:
    """Lines with the time on stderr; ranks other than 0 say only what went wrong."""
    handler = logging.StreamHandler(_CurrentStderr())
    handler.setFormatter(logging.Formatter("[%(asctime)s] %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("hvdlm")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    logger.propagate = False


class Progress:
    """A rich bar on a terminal, a line now and then in a batch log, nothing on other ranks.

    `advance(amount, note)` counts; the note (loss, speed) stands beside the bar or on the line.
    """

    def __init__(self, title: str, total: float, unit: str, world: World, *, done: float = 0, every: float = 0) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._done = self._first = done
        self._speaks = world.rank == 0
        self._every = every  # lines by amount, else by time
        self._start = self._last_line = time.monotonic()
        self._note = ""
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if self._speaks and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as RichProgress

            columns = (
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(self._unit),
                TextColumn("{task.fields[note]}"), TimeRemainingColumn(),
            )  # fmt: skip
            self._bar = RichProgress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task(self._title, total=int(self._total), completed=int(self._done), note="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        elif self._speaks and kind is None and not self._every:
            self._line()

    @property
    def spent_s(self) -> float:
        return time.monotonic() - self._start

    def reach(self, done: float, note: str = "") -> None:
        """Say how much is done in all."""
        self.advance(done - self._done, note)

    def advance(self, amount: float, note: str = "") -> None:
        before, self._done, self._note = self._done, self._done + amount, note
        if not self._speaks:
            return
        if self._bar:
            self._bar.update(self._task, completed=int(self._done), note=note)
        elif self._is_line_due(before):
            self._line()

    def _is_line_due(self, before: float) -> bool:
        if self._every:
            return int(self._done / self._every) > int(before / self._every) or before == self._first
        return time.monotonic() - self._last_line >= LINE_INTERVAL_S

    def _line(self) -> None:
        self._last_line = time.monotonic()
        spent_s = self._last_line - self._start
        rate = (self._done - self._first) / spent_s if spent_s else 0.0
        left_s = (self._total - self._done) / rate if rate else 0.0
        note = f" | {self._note}" if self._note else f" | {rate:.3g} {self._unit}/s"
        eta = f" | {_clock(left_s)} left" if left_s >= 1 else ""
        logging.getLogger("hvdlm").info(
            "%s %.6g/%.6g %s%s%s", self._title, self._done, self._total, self._unit, note, eta
        )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def read_metrics(path: Path, split: str | None = None) -> list[dict]:
    """The rows of a metrics.jsonl, in order; a last line torn by a crash is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            break
        if split is None or row["split"] == split:
            rows.append(row)
    return rows


class RunLog:
    """metrics.jsonl and TensorBoard of a run; on ranks other than 0 it writes nothing.

    Rows after `step` are dropped when it opens: a resumed run repeats those steps, each stands once.
    """

    def __init__(self, config: LogConfig, run_dir: Path, world: World, *, step: int) -> None:
        self._file: Any = None
        self._board: Any = None
        if world.rank:
            return
        self._config, self._run_dir = config, run_dir
        self._open(step)

    def _open(self, step: int) -> None:
        path = self._run_dir / "metrics.jsonl"
        kept = [row for row in read_metrics(path) if row["step"] <= step]
        write_text_durably(path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = path.open("a", encoding="utf-8")
        if self._config.tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(self._run_dir / "tensorboard"), purge_step=step + 1 if step else None)

    def rewind(self, step: int) -> None:
        """Drop the rows after `step`: those steps will be made again."""
        if self._file is not None:
            self.__exit__()
            self._open(step)

    def write(self, step: int, split: str, **values: float) -> None:
        if self._file is None:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}  # JSON has no NaN
        self._file.write(json.dumps({"step": step, "split": split, **finite}) + "\n")
        self._file.flush()
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(f"{split}/{name}", value, step)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *exception: object) -> None:
        for part in (self._file, self._board):
            if part is not None:
                part.close()
