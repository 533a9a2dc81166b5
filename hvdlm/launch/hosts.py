"""Hosts and their slots: by hand, from a file, or from SLURM, whose short forms are written out."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import NoReturn

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
    """`a:4,b`, `node[1-2]:4`, or LSF's `a 4 b 1`, as hosts with slots, one where none are said.

    A host that is named again has its slots added, as by Open MPI's --host.

    >>> parse_hosts("node[1-2]:4,b,b")
    (('node1', 4), ('node2', 4), ('b', 2))
    """
    found: dict[str, int] = {}
    latest: list[str] = []
    for part in re.findall(r"(?:[^\s,\[]|\[[^\]]*\]|\[)+", text):
        if part.isdigit():  # as in LSB_MCPU_HOSTS: the slots of the host before
            if not latest:
                _refuse(part, "--hosts")
            _add(found, latest, int(part) - 1, f"--hosts {text!r}")
            latest = []
            continue
        name, _, slots = part.partition(":")
        latest = _names(name, part, "--hosts") if ":" not in part else []
        if not name or (":" in part and not slots.isdigit()):
            _refuse(part, "--hosts")
        _add(found, latest or _names(name, part, "--hosts"), int(slots or 1), f"--hosts {part!r}")
    return tuple(found.items())


_NAME = re.compile(r"[^\s:\[]*(?:\[[^\]]*\][^\s:\[]*)*")
# What follows a host's name in the files of Open MPI, MPICH and Intel MPI, horovodrun, LSF and Grid Engine.
_SLOTS = re.compile(r"\s*:\s*(\d+)|\s+(?:slots|cpus?|count)\s*=\s*(\d+)|\s+(\d+)(?:\s+\S+@\S+.*)?|(?=\s|$)")
_MORE = re.compile(r"(\s+(max[-_]slots|ifname|binding)\s*=\s*\S+)*\s*")


def read_hostfile(path: Path) -> Hosts:
    """A host a line: `a slots=4`, `a:4`, `a 4` or `a`; `#` starts a comment.

    A host that is named again has one slot more, so that a file may have a line a slot, as $PBS_NODEFILE has. A
    second number of slots for a host is refused, as by Open MPI: nobody knows whether it adds to the first.
    """
    found: dict[str, int] = {}
    for number, line in enumerate(_text_of(path).splitlines(), 1):
        text, place = line.split("#")[0].strip(), f"{path}:{number}:"
        if not text:
            continue
        name = "".join(_NAME.findall(text)[:1])
        slots = _SLOTS.match(text, len(name))
        if not name or slots is None or not _MORE.fullmatch(text, slots.end()):
            _refuse(text, place)
        count = next(filter(None, slots.groups()), "")
        names = _names(name, text, place)
        if count and not found.keys().isdisjoint(names):
            raise UserError(f"{place} {name} is named above already; give it all its slots once, or a line each")
        _add(found, names, int(count or 1), f"{place} {text!r}")
    if not found:
        raise UserError(f"{path}: names no host")
    return tuple(found.items())


def hosts_of_job(env: Mapping[str, str], ranks: int | None) -> Hosts:
    """The nodes of a PBS or LSF job, from the file that it names; none elsewhere. Not every mpirun knows them.

    A file with a line a node says nothing of slots: then `ranks` are spread over the nodes.
    """
    for name in ("PBS_NODEFILE", "LSB_DJOB_HOSTFILE"):
        if Path(env.get(name, "")).is_file():
            hosts = read_hostfile(Path(env[name]))
            is_a_line_a_node = ranks is not None and ranks > len(hosts) == sum(slots for _, slots in hosts)
            return tuple((host, -(-ranks // len(hosts))) for host, _ in hosts) if is_a_line_a_node else hosts  # type: ignore[operator]
    return ()


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: is no text, so no host file") from None


def _names(name: str, text: str, place: str) -> list[str]:
    if "@" in name:
        raise UserError(f"{place} {text!r}: name the host alone, and its user in ~/.ssh/config")
    if not re.fullmatch(r"\w([\w.-]|\[[^\]]*\])*", name, re.ASCII):
        _refuse(text, place)
    return expand(name)


def _refuse(text: str, place: str) -> NoReturn:
    if text.count(":") > 1:
        raise UserError(f"{place} {text!r}: an IPv6 address cannot be told from slots; give the host's name")
    raise UserError(f"{place} {text!r}: is no host with its slots, such as node1:4 or, in a file, `node1 slots=4`")


def _add(found: dict[str, int], names: list[str], slots: int, place: str) -> None:
    for name in names:
        found[name] = found.get(name, 0) + slots
        if found[name] < 1:
            raise UserError(f"{place}: a host has at least one slot; leave {name} out if it shall have none")


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
