"""SLURM's short forms written out: lists of host names, and of tasks a node."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import product

from hvdlm.errors import UserError

Hosts = tuple[tuple[str, int], ...]  # (name, slots)

_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_REPEATED = re.compile(r"(\d+)(?:\(x(\d+)\))?")


def expand(hostlist: str) -> list[str]:
    """The names that a host list stands for, in its order, as `scontrol show hostnames` prints them.

    >>> expand("node-[08-10],x[1,3]-ib")
    ['node-08', 'node-09', 'node-10', 'x1-ib', 'x3-ib']
    """
    return [name for part in _split(hostlist) for name in _expand_one(part)]


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
    if len(slots) != len(names):
        raise UserError(
            f"SLURM_JOB_NODELIST names {len(names)} nodes but SLURM_TASKS_PER_NODE={env['SLURM_TASKS_PER_NODE']} has"
            f" {len(slots)}; start this outside the step"
        )
    return tuple(zip(names, slots, strict=True))


def _split(hostlist: str) -> list[str]:
    """At the commas outside brackets."""
    return [part for part in re.findall(r"(?:[^,\[]|\[[^\]]*\]?)+", hostlist.strip()) if part]


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
