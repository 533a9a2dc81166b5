"""Which cores and device each rank has, as a table for people: a wrong binding is slow and says nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hvdlm.tables import counted, table

MAX_LINES = 16


@dataclass(frozen=True)
class Binding:
    """What one rank has of its host."""

    rank: int
    host: str
    cores: frozenset[int]  # that it may run on
    threads: int  # that compute
    device: str  # as torch names it: cpu, cuda:0


def ranges(cores: Iterable[int]) -> str:
    """Core numbers in the kernel's short form.

    >>> ranges({0, 1, 2, 3, 8, 10, 11})
    '0-3,8,10-11'
    """
    runs: list[list[int]] = []
    for core in sorted(cores):
        if runs and core == runs[-1][1] + 1:
            runs[-1][1] = core
        else:
            runs.append([core, core])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def binding_map(bindings: list[Binding]) -> str:
    """A line a rank, at most MAX_LINES and how many more there are; then what is wrong with them, if anything is."""
    shown = bindings[:MAX_LINES]
    rows = [[str(each.rank), each.host, ranges(each.cores), str(each.threads), each.device] for each in shown]
    lines = [table(["rank", "host", "cores", "threads", "device"], rows, num_left=5)]
    hosts = {each.host for each in bindings}
    if len(bindings) > MAX_LINES:
        lines.append(f"and {counted(len(bindings) - MAX_LINES, 'rank')} more on {counted(len(hosts), 'host')}")
    return "\n".join([*lines, *complaints(bindings)])


def complaints(bindings: list[Binding]) -> list[str]:
    """Ranks with fewer cores than threads, and hosts whose ranks compute with more threads than they have cores."""
    found = []
    narrow = [each for each in bindings if len(each.cores) < each.threads]
    if narrow:
        first = narrow[0]
        found.append(
            f"fewer cores than threads at {len(narrow)} of {counted(len(bindings), 'rank')} (rank {first.rank}:"
            f" {counted(first.threads, 'thread')} on {len(first.cores)});"
            " bind to as many cores, or not (--bind-to none)"
        )
    crowded = {host: demand for host, demand in _demands(bindings).items() if demand[0] > demand[1]}
    if crowded and not narrow:
        host, (threads, cores) = next(iter(crowded.items()))
        more = f"more threads than cores on {counted(len(crowded), 'host')} ({host}: {threads} on {cores})"
        found.append(f"{more}; use fewer ranks or threads")
    return found


def _demands(bindings: list[Binding]) -> dict[str, tuple[int, int]]:
    """For each host the threads of its ranks, and the cores that any of them may use."""
    threads: dict[str, int] = {}
    cores: dict[str, frozenset[int]] = {}
    for each in bindings:
        threads[each.host] = threads.get(each.host, 0) + each.threads
        cores[each.host] = cores.get(each.host, frozenset()) | each.cores
    return {host: (threads[host], len(cores[host])) for host in threads}
