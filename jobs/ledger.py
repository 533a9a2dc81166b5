"""The jobs that were submitted from here: a folder each, with script, config, facts and logs.

runs/jobs/train-001/{job.sbatch, quickstart.yaml, job.json, history, 1234.log, 1234.r0.log, 1234.r1.log}

`history` has a line for each start and end, written by the job itself: it tells how a job ended when SLURM has
forgotten it. Logs are appended to; each start has a file of its own for what the ranks print.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from hvdlm.config import Section, choice_of
from hvdlm.errors import UserError
from hvdlm.files import open_regular, read_json, read_text, write_text_durably

from .job import JOB_KINDS

FACTS = "job.json"
SCRIPT = "job.sbatch"
HISTORY = "history"
TAIL_BYTES = 1 << 16


class LedgerEntry(Section):
    """A submitted job."""

    id: str = Field(pattern=r"^[0-9]+$")
    stage: Annotated[str, choice_of(JOB_KINDS)]
    run_dir: str  # or the folder of shards, or of records
    nodes: int
    ranks_per_node: int
    minutes: int
    submitted: str  # ISO 8601, local time
    after: list[str]  # ids of the jobs that it waits for
    folder: Path = Field(Path(), exclude=True)  # where this stands

    def said(self) -> tuple[int, str]:
        """How often the job was started again, and its last words: `start`, `end 0`, `stopped and saved …`."""
        path = self.folder / HISTORY
        lines = [line.decode(errors="replace") for line in _last_lines(path)]
        found = [match for line in lines if (match := re.match(r"\S+ job=\S+ restart=(\d+) (.*)", line))]
        return (max(int(match[1]) for match in found), found[-1][2]) if found else (0, "")

    def is_done(self) -> bool:
        """Whether the job itself has said that it ended well, so that nobody need be asked. An array's tasks vary."""
        return self.stage != "measure" and self.said()[1] == "end 0"

    def logs(self) -> list[Path]:
        """The ranks' output, a file for each start and task of an array, oldest first; else what the script said."""
        starts = sorted(self.folder.glob(f"{self.id}*.r*.log"), key=lambda path: (_restart_of(path), path.name))
        return starts or sorted(self.folder.glob(f"{self.id}*.log"))


def _restart_of(path: Path) -> int:
    found = re.search(r"\.r(\d+)\.log$", path.name)
    return int(found.group(1)) if found else 0


def new_folder(root: Path, stage: str, *, taken: Sequence[Path] = (), make: bool = True) -> Path:
    """A folder that nobody else has, `train-001`, `train-002` …; two may ask at the same time.

    Without `make` it is only named: the first that is neither there nor `taken`.
    """
    for number in count(1):
        folder = root / f"{stage}-{number:03d}"
        if folder not in taken and not folder.exists():
            with contextlib.suppress(FileExistsError):  # somebody else was quicker
                if make:
                    folder.mkdir(parents=True)
                return folder
    raise AssertionError("numbers do not end")


def write(folder: Path, entry: LedgerEntry) -> None:
    write_text_durably(folder / FACTS, entry.model_dump_json(indent=1) + "\n")


def read_all(root: Path) -> tuple[list[LedgerEntry], list[str]]:
    """All jobs below a folder of jobs, oldest first; and a line for each that cannot be read, which hides no other."""
    found, torn = [], []
    for path in sorted(root.glob(f"*/{FACTS}")):
        try:
            found.append(_read(path))
        except UserError as error:
            torn.append(str(error))
    return sorted(found, key=lambda entry: (entry.submitted, len(entry.id), entry.id)), torn


def _read(path: Path) -> LedgerEntry:
    """UserError for a torn or edited file, and for what is none."""
    try:
        entry = LedgerEntry.model_validate_json(read_text(path))
    except OSError as error:
        said = str(error.strerror)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        said = f"{key}: {first['msg']}" if key else first["msg"]
    except UnicodeDecodeError:
        said = "not UTF-8"
    except ValueError as error:
        said = str(error)
    else:
        return entry.model_copy(update={"folder": path.parent})
    raise UserError(f"{path}: no job of `hvdlm submit`: {said}; move it away")


def find(root: Path, name: str) -> LedgerEntry:
    """A job by its id or the name of its folder."""
    jobs, torn = read_all(root)
    for entry in reversed(jobs):
        if name in (entry.id, entry.folder.name, str(entry.folder)):
            return entry
    if torn:  # it may be this one
        raise UserError(torn[0])
    known = ", ".join(entry.id for entry in jobs[-5:]) or "none"
    raise UserError(f"{name}: no job of {root}; the last ones there: {known}")


@dataclass(frozen=True)
class RunProgress:
    """How far a training run is."""

    step: int
    total: int | None
    loss: float | None
    seconds_left: float | None

    def __str__(self) -> str:
        parts = [f"step {self.step}" + (f"/{self.total}" if self.total else "")]
        parts += [f"loss {self.loss:.3f}"] if self.loss is not None else []
        return ", ".join(parts)


def progress_of(run_dir: Path) -> RunProgress | None:
    """From the last rows of RUN/metrics.jsonl and the length of the run in RUN/owner; None before the first step."""
    rows = [row for row in _last_rows(run_dir / "metrics.jsonl") if _is_of_training(row)]
    if not rows:
        return None
    last, total = rows[-1], _total_steps(run_dir)
    timed = [row for row in rows if row.get("tokens_per_s")]
    left_s = None
    if total and timed and last["step"] > rows[0]["step"]:
        tokens_a_step = (last["tokens"] - rows[0]["tokens"]) / (last["step"] - rows[0]["step"])
        left_s = max(0, total - last["step"]) * tokens_a_step / timed[-1]["tokens_per_s"]
    return RunProgress(last["step"], total, last.get("loss"), left_s)


def _is_of_training(row: dict) -> bool:
    """A row that the trainer wrote; others are passed over, whoever put them there."""
    if row.get("split") != "train":
        return False
    has_counts = all(type(row.get(key)) is int and 0 <= row[key] < 1 << 63 for key in ("step", "tokens"))
    return has_counts and all(type(row.get(key)) in (int, float, type(None)) for key in ("loss", "tokens_per_s"))


def _last_rows(path: Path) -> list[dict]:
    """The rows within the file's last 64 KiB: a run of a month has millions."""
    rows = []
    for line in _last_lines(path):
        with contextlib.suppress(ValueError, RecursionError):  # torn by a crash, or being written
            rows.append(json.loads(line, parse_constant=lambda _: None))
    return [row for row in rows if isinstance(row, dict)]


def _last_lines(path: Path) -> list[bytes]:
    """The whole lines within a file's last 64 KiB; none where there is no file that can be read."""
    try:
        with open_regular(path) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:  # it is for people: what became of the job is asked of SLURM
        return []
    return lines[1 if size > TAIL_BYTES else 0 :]


def _total_steps(run_dir: Path) -> int | None:
    try:
        found = read_json(run_dir / "owner")["total_steps"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if type(found) is int and 0 < found < 1 << 63 else None
