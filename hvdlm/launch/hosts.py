"""Hosts and their slots: by hand, from a file, or from SLURM, whose short forms are written out."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from itertools import product
from pathlib import Path

from hvdlm.errors import UserError

Hosts = tuple[tuple[str, int], ...]  # (name, slots)

_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_REPEATED = re.compile(r"(\d+)(?:\(x(\d+)\))?")


def expand(hostlist: str) -> list[str]:
    """The names that a host list stands for, in its order, as `scontrol show hostnames` prints them.

    >>> expand("node-[08-10],x[1,3]-ib")
    ['node-08', 'node-09', 'node-10', 'x1-ib', 'x3-ib']
    """
    parts = re.findall(r"(?:[^,\[]|\[[^\]]*\]?)+", hostlist.strip())  # at the commas outside brackets
    return [name for part in parts for name in _expand_one(part)]


def expand_counts(counts: str) -> list[int]:
    """A number for each node, from SLURM_TASKS_PER_NODE or SLURM_JOB_CPUS_PER_NODE.

    >>> expand_counts("4(x2),3")
    [4, 4, 3]
    """
    found: list[int] = []
    for part in counts.split(","):
        match = _REPEATED.fullmatch(part.strip())
        if match is None:
            raise UserError(f"{counts!r}: {part!r} is no count of SLURM such as 4 or 4(x2)")
        found += [int(match.group(1))] * int(match.group(2) or 1)
    return found


def allocated_hosts(env: Mapping[str, str]) -> Hosts:
    """The nodes of the SLURM job at hand with the tasks that each may have; none outside a job."""
    if "SLURM_JOB_NODELIST" not in env:
        return ()
    names = expand(env["SLURM_JOB_NODELIST"])
    slots = expand_counts(env.get("SLURM_TASKS_PER_NODE", f"1(x{len(names)})"))
    if len(slots) != len(names) and "SLURM_STEP_NODELIST" in env:  # a step on some nodes of the job
        names = expand(env["SLURM_STEP_NODELIST"])
    if len(slots) != len(names):
        raise UserError(
            f"SLURM_JOB_NODELIST names {len(names)} nodes but SLURM_TASKS_PER_NODE={env['SLURM_TASKS_PER_NODE']} has"
            f" {len(slots)}; start this outside the step"
        )
    return tuple(zip(names, slots, strict=True))


def fill(hosts: Hosts, ranks: int) -> Hosts:
    """Hosts with the slots that `ranks` take, the first ones first.

    >>> fill((("a", 4), ("b", 4), ("c", 4)), 6)
    (('a', 4), ('b', 2))
    """
    filled, left = [], ranks
    for name, slots in hosts:
        if left > 0:
            filled.append((name, min(slots, left)))
            left -= slots
    return tuple(filled)


def is_here(name: str) -> bool:
    """Whether a host is this machine."""
    own = socket.gethostname()
    return name in ("localhost", "127.0.0.1", own, own.split(".")[0])


def parse_hosts(text: str) -> Hosts:
    """`a:4,b` or `node[1-2]:4` as hosts with slots, one where none are said.

    >>> parse_hosts("node[1-2]:4,b")
    (('node1', 4), ('node2', 4), ('b', 1))
    """
    found: list[tuple[str, int]] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\]|\[)+", text):
        name, _, slots = part.strip().partition(":")
        if not name or (slots and not slots.isdigit()) or slots == "0" or (":" in part and not slots):
            raise UserError(f"--hosts {part!r}: is no host with its slots, such as node1:4")
        found += [(each, int(slots or 1)) for each in expand(name)]
    _refuse_doubles(found, "--hosts")
    return tuple(found)


def read_hostfile(path: Path) -> Hosts:
    """A host a line: `a slots=4`, `a:4` or `a`; `#` starts a comment."""
    found: list[tuple[str, int]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        text = line.split("#")[0].strip()
        match = re.fullmatch(r"([^\s:]+)(?:\s*:\s*(\d+)|\s+slots\s*=\s*(\d+)(?:\s+max[-_]slots\s*=\s*\d+)?)?", text)
        if text and match is None:
            raise UserError(f"{path}:{number}: {text!r} is no host with its slots, such as `node1 slots=4`")
        if match:
            found.append((match.group(1), int(match.group(2) or match.group(3) or 1)))
    if not found:
        raise UserError(f"{path}: names no host")
    _refuse_doubles(found, str(path))
    return tuple(found)


def _refuse_doubles(hosts: list[tuple[str, int]], place: str) -> None:
    names = [name for name, _ in hosts]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{place}: {name} is named twice; give it all its slots once")


def _expand_one(part: str) -> list[str]:
    pieces = _BRACKETS.split(part)  # text, inside, text, inside, ..., text
    if any("[" in piece or "]" in piece for piece in pieces):
        raise UserError(f"{part!r}: brackets of this host list do not match")
    choices = [_numbers(piece, part) if number % 2 else [piece] for number, piece in enumerate(pieces)]
    return ["".join(chosen) for chosen in product(*choices)]


def _numbers(inside: str, part: str) -> list[str]:
    """`08-10,12` as ['08', '09', '10', '12']: the first number's zeros say how wide all are."""
    found: list[str] = []
    for item in inside.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", item)
        if match is None:
            raise UserError(f"{part!r}: {item!r} is no number or range of a host list")
        first, last = match.group(1), match.group(2) or match.group(1)
        if int(last) < int(first):
            raise UserError(f"{part!r}: the range {item!r} runs backwards")
        found += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return found
