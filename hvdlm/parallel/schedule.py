"""Schedules as data."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Action(NamedTuple):
    kind: Literal["F", "B", "W"]
    chunk: int
    micro_batch: int


def build(name: str, stages: int, num: int, chunks: int) -> list[list[Action]]:
    """One forward, one backward."""
    found = []
    for rank in range(stages):
        warm = min(stages - rank - 1, num)
        order = [Action("F", 0, n) for n in range(warm)]
        for n in range(num - warm):
            order += [Action("F", 0, warm + n), Action("B", 0, n)]
        found.append(order + [Action("B", 0, n) for n in range(num - warm, num)])
    return found
