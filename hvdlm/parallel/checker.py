"""Can a schedule be carried out? Found without ranks: what hangs here hangs there."""

from __future__ import annotations

import itertools
from collections import Counter

from hvdlm.parallel.schedule import Action, Kind, Schedule


def needs(action: Action, rank: int, stages: int, last: int) -> list[tuple[int, Action]]:
    """What must have been done before, and by which rank: (rank, action)."""
    kind, chunk, n = action
    stage = chunk * stages + rank
    found = []
    if kind == "F" and stage:
        found.append(((stage - 1) % stages, Action("F", (stage - 1) // stages, n)))
    if kind == "B":
        found.append((rank, Action("F", chunk, n)))
        if stage < last:
            found.append(((stage + 1) % stages, Action("B", (stage + 1) // stages, n)))
    if kind == "W":
        found.append((rank, Action("B", chunk, n)))
    return found


def check(schedule: Schedule, num: int, chunks: int = 1, *, splits_backward: bool = False) -> str:
    """What is wrong with a schedule of `num` micro-batches, or nothing.

    Each rank works strictly in its order and waits for what its next action needs, with no message buffered ahead of
    its receive: a rank that sends never waits, so that only a circle of needs can hang.
    """
    stages, last = len(schedule), len(schedule) * chunks - 1
    kinds: tuple[Kind, ...] = ("F", "B", "W") if splits_backward else ("F", "B")
    whole = Counter(Action(kind, chunk, n) for kind in kinds for chunk in range(chunks) for n in range(num))
    for rank, actions in enumerate(schedule):
        if (found := Counter(actions)) != whole:
            missing, more = whole - found, found - whole
            told = [f"lacks {action}" for action in missing] + [f"has {action} once too often" for action in more]
            return f"rank {rank} {told[0]}"
        for chunk, kind in itertools.product(range(chunks), kinds[1:]):
            numbers = [action.micro_batch for action in actions if action.kind == kind and action.chunk == chunk]
            if numbers != sorted(numbers):
                return f"rank {rank}: {kind} of chunk {chunk} is out of order"
    return _hang(schedule, stages, last)


def _hang(schedule: Schedule, stages: int, last: int) -> str:
    """Where ranks wait for each other for ever, or nothing."""
    done: set[tuple[int, Action]] = set()
    at = [0] * stages
    moved = True
    while moved:
        moved = False
        for rank, actions in enumerate(schedule):
            while at[rank] < len(actions) and all(
                need in done for need in needs(actions[at[rank]], rank, stages, last)
            ):
                done.add((rank, actions[at[rank]]))
                at[rank] += 1
                moved = True
    waiting = {rank: actions[at[rank]] for rank, actions in enumerate(schedule) if at[rank] < len(actions)}
    if not waiting:
        return ""
    told = []
    for rank, action in waiting.items():
        other, need = next(need for need in needs(action, rank, stages, last) if need not in done)
        told.append(f"rank {rank} at {action} waits for {need} of rank {other}")
    return "; ".join(told)
