"""What is finished of an output: a file a unit, beside the output until all are there, then one after the other in it.

A part appears by rename when it is whole. Its first line says what is in it: bytes, digest, and what was counted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hvdlm.errors import UserError
from hvdlm.files import naming, read_json, replace_durably, sha256_of, to_json, write_text_durably
from hvdlm.inference.infer.lines import Source, Unit

PLAN = "plan.json"
LOCK = ".lock"  # held while a job writes
HALT = ".halt"
CHECKPOINT = "checkpoint"  # the one that names its weights
INPUT = "input"  # the setting that names the content of the input
OWN = re.compile(r"\.?plan\.json(\.\d+)?|\.?unit-\d+\.jsonl(\.\d+)?|\.lock|\.halt|STOP|STOPPED|SAVE|KILL")


def work_of(out: Path) -> Path:
    """The folder of an output's parts."""
    return out.with_name(f"{out.name}.parts")


def summary_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.summary.json")


@dataclass(frozen=True)
class Plan:
    """What all ranks agree on before the first unit; `settings` are all that the output depends on."""

    source: Source
    out: Path
    settings: Mapping[str, Any]
    unread: Mapping[str, int] = field(default_factory=dict)  # records that have keys which nobody reads
    todo: tuple[int, ...] = ()  # units without a part

    @property
    def work(self) -> Path:
        return work_of(self.out)

    @property
    def halt(self) -> Path:
        """Exists once some rank has failed or was asked to stop; the next start removes it."""
        return self.work / HALT

    def part(self, unit: int) -> Path:
        return self.work / f"unit-{unit:06d}.jsonl"


def finished(out: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The summary of an output that is complete; None where it is still to be made.

    UserError for a file that was not made so: it is left as it is.
    """
    if not out.exists():
        return None
    try:
        summary = read_json(summary_of(out))
        made, sha256 = summary["made_by"], summary["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        made = sha256 = None
    if made == _as_read(settings) and sha256 == sha256_of(out):
        _clear(work_of(out))
        return summary
    if (work_of(out) / PLAN).exists():  # it was put there in the very end of a start that was killed
        return None
    if made is None:
        raise UserError(f"{out}: is there, and nothing tells how it was made; remove it, or name another --out")
    _refuse_others(out, made, settings, "was made")
    raise UserError(f"{out}: has changed since it was made; remove it, or name another --out")


def check_work(out: Path) -> None:
    """UserError where another's files stand in the place of the parts."""
    work = work_of(out)
    if work.exists() and not work.is_dir():
        raise UserError(f"{work}: is no folder, and parts are to be kept there; move it, or name another --out")
    if not work.exists() or (work / PLAN).exists():
        return
    if other := next((path.name for path in sorted(work.iterdir()) if not OWN.fullmatch(path.name)), ""):
        raise UserError(f"{work}: holds {other}, and parts are to be kept there; move it, or name another --out")


def _clear(work: Path) -> None:
    """Remove our own files, and the folder if nothing else is in it."""
    if not (work / PLAN).exists():
        return
    with contextlib.suppress(OSError):
        for path in work.iterdir():
            if OWN.fullmatch(path.name) and path.name not in (PLAN, LOCK):
                path.unlink(missing_ok=True)
        (work / PLAN).unlink()  # last: what is left of a clearing that was killed is still known to be ours
        (work / LOCK).unlink(missing_ok=True)
        work.rmdir()


def begin(plan: Plan) -> Plan:
    """Go on with what an earlier start has left of the same output, or begin it. On rank 0.

    UserError where something else was begun there.
    """
    file = plan.work / PLAN
    if file.exists():
        try:
            begun = read_json(file)
        except (OSError, ValueError):
            raise UserError(f"{file}: cannot be read; remove {plan.work} to begin anew") from None
        _refuse_others(plan.out, begun, plan.settings, "was begun")
    else:
        write_text_durably(file, to_json(dict(plan.settings), indent=1) + "\n")
    plan.halt.unlink(missing_ok=True)
    for leftover in plan.work.glob(".unit-*"):  # of a start that was killed
        leftover.unlink()
    return replace(plan, todo=tuple(unit.number for unit in plan.source.units if not plan.part(unit.number).exists()))


def _refuse_others(out: Path, made: Any, settings: Mapping[str, Any], what: str) -> None:
    from hvdlm.inference.infer.wanted import said  # loads torch

    now = _as_read(settings)
    made = made if isinstance(made, dict) else {}
    changed = [name for name in {**now, **made} if now.get(name) != made.get(name)]
    if not changed:
        return
    if changed == [INPUT]:
        told = f"the input has changed since {out} {what}"
    else:
        name = next(name for name in changed if name != INPUT)
        have = f"with {said(name, made.get(name))}, and this start has {said(name, now.get(name))}"
        told = f"{out} {what} {'by other weights' if name == CHECKPOINT else have}"
    there = out if what == "was made" else work_of(out)
    raise UserError(f"{told}; name another --out, or remove {there} to begin anew")


def _as_read(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As they come back from a file."""
    return json.loads(to_json(dict(settings)))


def damaged(plan: Plan, units: Sequence[int]) -> list[int]:
    """Those whose part is not as it was saved."""
    return [unit for unit in units if _facts_of(plan.part(unit)) is None]


def discard(plan: Plan, units: Sequence[int]) -> None:
    for unit in units:
        plan.part(unit).unlink()


def write_part(path: Path, lines: Sequence[Mapping[str, Any]], counts: Mapping[str, float]) -> None:
    """Lines of JSON, and behind a dot in the name until they are all on the disk."""
    data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
    head = {"num_lines": len(lines), "num_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming(path):
            aside.write_bytes((json.dumps({**head, "counts": dict(counts)}) + "\n").encode() + data)
            replace_durably(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _facts_of(path: Path) -> dict[str, Any] | None:
    """The first line of a part that is whole."""
    try:
        with path.open("rb") as file:
            head = json.loads(file.readline())
            data = file.read()
    except (OSError, ValueError):
        return None
    is_whole = isinstance(head, dict) and hashlib.sha256(data).hexdigest() == head.get("sha256")
    return head if is_whole else None


def assemble(plan: Plan) -> tuple[str, Counter[str]]:
    """The output from its parts, in the order of the input; its digest, and what was counted. On rank 0.

    UserError unless there is a line for each record.
    """
    digest, counts, num_lines = hashlib.sha256(), Counter[str](), 0
    aside = plan.out.with_name(f".{plan.out.name}.{os.getpid()}")
    try:
        with naming(plan.out):
            with aside.open("wb") as file:
                for unit in plan.source.units:
                    head, data = _read_part(plan, unit)
                    num_lines += head["num_lines"]
                    counts.update(head["counts"])
                    digest.update(data)
                    file.write(data)
            if num_lines != plan.source.num_records:
                raise UserError(
                    f"{plan.out}: {num_lines} lines for {plan.source.num_records} records; remove {plan.work} and begin"
                    " anew"
                )
            replace_durably(aside, plan.out)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return digest.hexdigest(), counts


def _read_part(plan: Plan, unit: Unit) -> tuple[dict[str, Any], bytes]:
    path = plan.part(unit.number)
    with path.open("rb") as file:
        head, data = json.loads(file.readline()), file.read()
    if hashlib.sha256(data).hexdigest() != head["sha256"]:
        raise UserError(f"{path}: has changed since it was written; the same command makes it anew")
    return head, data


def finish(plan: Plan, summary: Mapping[str, Any]) -> None:
    """The summary, last: with it the output is complete, and the parts are not needed any more. On rank 0."""
    write_text_durably(summary_of(plan.out), to_json(dict(summary), indent=1) + "\n")
    _clear(plan.work)
