"""What became of the jobs: one table, one log, one way to end them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from hvdlm.errors import UserError
from hvdlm.files import open_regular
from hvdlm.tables import clock, table

from . import ledger, slurm
from .job import JOB_KINDS

POLL_S = 1.0  # of a log
ASK_S = 15.0  # of SLURM: its controller serves everybody
STOP = "STOP"


@dataclass(frozen=True)
class Row:
    """A job as `hvdlm jobs` shows it."""

    id: str
    stage: str
    state: str
    nodes: int
    ranks: int
    restarts: int
    progress: str
    left_s: float | None
    note: str  # why it waits, how it ended
    folder: str


def overview(jobs_dir: Path, environment: Mapping[str, str]) -> tuple[list[Row], list[str]]:
    """All jobs of a folder, oldest first, and a line for each whose file cannot be read."""
    entries, torn = ledger.read_all(jobs_dir)
    if not entries and not torn:
        raise UserError(f"{jobs_dir}: no jobs were submitted from here; see `hvdlm submit --help`, or give --jobs-dir")
    done = {entry.id: slurm.State("COMPLETED") for entry in entries if entry.is_done()}
    states = done | slurm.states([entry.id for entry in entries if entry.id not in done], environment)
    return [_row(entry, states.get(entry.id)) for entry in entries], torn


def _row(entry: ledger.LedgerEntry, known: slurm.State | None) -> Row:
    restarts, words = entry.said()
    state = known or slurm.State("ENDED" if words else "UNKNOWN")
    progress = ledger.progress_of(Path(entry.run_dir)) if entry.stage == "train" else None
    is_running = state.state == "RUNNING"
    return Row(
        entry.id,
        entry.stage,
        state.state,
        entry.nodes,
        entry.nodes * entry.ranks_per_node,
        restarts=max(state.restarts, restarts),
        progress=str(progress) if progress and (words or is_running) else "",
        left_s=progress.seconds_left if progress and is_running else None,
        note=_note(state, words),
        folder=str(entry.folder),
    )


def _note(state: slurm.State, words: str) -> str:
    if state.state == "PENDING":
        return state.reason + (f", expected {state.start}" if state.start else "")
    return "" if state.state == "RUNNING" else words


def to_text(rows: list[Row]) -> str:
    """A line a job, in columns as wide as they need to be."""
    head = ("JOB", "STAGE", "STATE", "NODES", "RANKS", "RESTARTS", "PROGRESS", "LEFT", "NOTE")
    cells = []
    for row in rows:
        counts = map(str, (row.nodes, row.ranks, row.restarts))
        left = "" if row.left_s is None else clock(row.left_s)
        cells.append((row.id, row.stage, row.state, *counts, row.progress, left, row.note))
    return table(head, cells, num_left=len(head))


def log_lines(jobs_dir: Path, name: str, environment: Mapping[str, str], *, follow: bool) -> Iterator[str]:
    """The lines of all logs of a job; with `follow` until it has ended."""
    job = ledger.find(jobs_dir, name)
    read: dict[Path, int] = {}
    ended, asked = not follow, -ASK_S
    while True:
        if follow and time.monotonic() - asked >= ASK_S:
            asked = time.monotonic()
            state = slurm.states([job.id], environment).get(job.id)
            ended = state is None or not state.is_active
        for path in job.logs():
            with open_regular(path) as file:
                file.seek(read.get(path, 0))
                yield from (line.decode(errors="replace") for line in file)
                read[path] = file.tell()
        if ended:
            return
        time.sleep(POLL_S)


def cancel(jobs_dir: Path, name: str, environment: Mapping[str, str], *, now: bool) -> str:
    """End a job, a running resumable one by its STOP file, so that it saves; what was done, as a line."""
    entry = ledger.find(jobs_dir, name)
    state = slurm.states([entry.id], environment).get(entry.id)
    if state is None or not state.is_active:
        return f"job {entry.id} has ended already{f': {state.state}' if state else ''}"
    run_dir, links = Path(entry.run_dir), _later_links(jobs_dir, entry)
    too = f", and so are the later jobs of its chain ({', '.join(links)})" if links else ""
    if state.state == "RUNNING" and JOB_KINDS[entry.stage].progress and not now and run_dir.is_dir():
        (run_dir / STOP).write_text("")  # empty: a person's
        if links:
            slurm.cancel(links, environment)
        waits = f"`hvdlm cancel --now {entry.id}` does not wait"
        return f"job {entry.id} saves and ends ({run_dir / STOP}; {waits}){too and too.replace('are', 'are cancelled')}"
    slurm.cancel([entry.id, *links], environment)
    return f"job {entry.id} is cancelled{too}"


def _later_links(jobs_dir: Path, first: ledger.LedgerEntry) -> list[str]:
    """Ids of the jobs that follow in the same chain of trainings."""
    found = [first.id]
    for entry in ledger.read_all(jobs_dir)[0]:
        if entry.stage == first.stage == "train" and entry.run_dir == first.run_dir and set(entry.after) & set(found):
            found.append(entry.id)
    return found[1:]
