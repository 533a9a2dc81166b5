"""In which order each stage of a pipeline works on its micro-batches: lists of actions, made without any rank.

Sources: Huang et al. 2019 (GPipe); Narayanan et al. 2019 and 2021 (1F1B, interleaved); Qi et al. 2023, "Zero bubble
pipeline parallelism" (ZB-H1, whose backward pass is parted into that of inputs and that of weights).

On every rank, and in each of its chunks, backward passes come in the order of the micro-batches: sums of gradients
are made in that order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

Kind = Literal["F", "B", "W"]


class Action(NamedTuple):
    """F: forward; B: backward, of inputs alone where the schedule has W; W: backward of weights."""

    kind: Kind
    chunk: int
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.kind}{self.micro_batch}" + (f".{self.chunk}" if self.chunk else "")


Schedule = list[list[Action]]  # of each rank


@dataclass(frozen=True)
class ScheduleKind:
    """`make(stages, micro_batches, chunks)`; virtual stage s is chunk s // stages of rank s % stages."""

    make: Callable[[int, int, int], Schedule]
    takes_chunks: bool = False
    splits_backward: bool = False
    what: str = ""


def gpipe(stages: int, num: int, chunks: int = 1) -> Schedule:
    """All forward passes, then all backward passes.

    >>> [" ".join(map(str, rank)) for rank in gpipe(2, 2)]
    ['F0 F1 B0 B1', 'F0 F1 B0 B1']
    """
    return [[Action(kind, 0, n) for kind in ("F", "B") for n in range(num)] for _ in range(stages)]


def one_f_one_b(stages: int, num: int, chunks: int = 1) -> Schedule:
    """As soon as a micro-batch can go back it does, so that at most as many are open as stages follow.

    >>> [" ".join(map(str, rank)) for rank in one_f_one_b(2, 3)]
    ['F0 F1 B0 F2 B1 B2', 'F0 B0 F1 B1 F2 B2']
    """
    found = []
    for rank in range(stages):
        ahead = min(stages - rank - 1, num)
        order = [Action("F", 0, n) for n in range(ahead)]
        for n in range(num - ahead):
            order += [Action("F", 0, ahead + n), Action("B", 0, n)]
        found.append(order + [Action("B", 0, n) for n in range(num - ahead, num)])
    return found


def interleaved(stages: int, num: int, chunks: int = 2) -> Schedule:
    """Each rank has several chunks of layers, so that the pipeline fills sooner; groups of micro-batches take turns.

    Where their number is no multiple of the stages it is the schedule of the next one, without what is too many.
    """
    full = -(-num // stages) * stages
    groups = [range(first, first + stages) for first in range(0, full, stages)]
    forward = [Action("F", chunk, n) for group in groups for chunk in range(chunks) for n in group]
    backward = [Action("B", chunk, n) for group in groups for chunk in reversed(range(chunks)) for n in group]
    found = []
    for rank in range(stages):
        ahead = min(2 * (stages - rank - 1) + (chunks - 1) * stages, full * chunks)
        order = forward[:ahead]
        for place, action in enumerate(forward[ahead:]):
            order += [action, backward[place]]
        order += backward[full * chunks - ahead :]
        found.append([action for action in order if action.micro_batch < num])
    return found


def zero_bubble(stages: int, num: int, chunks: int = 1) -> Schedule:
    """ZB-H1: gradients of weights fill what would be idle; no stage has more open than the first one of 1F1B.

    Stage r is r micro-batches behind with them.

    >>> [" ".join(map(str, rank)) for rank in zero_bubble(2, 3)]
    ['F0 F1 B0 W0 F2 B1 W1 B2 W2', 'F0 B0 F1 B1 W0 F2 B2 W1 W2']
    """
    found = []
    for rank, order in enumerate(one_f_one_b(stages, num)):
        mixed = []
        for action in order:
            mixed.append(action)
            if action.kind == "B" and action.micro_batch >= rank:
                mixed.append(Action("W", 0, action.micro_batch - rank))
        found.append(mixed + [Action("W", 0, n) for n in range(max(0, num - rank), num)])
    return found


SCHEDULES: dict[str, ScheduleKind] = {
    "gpipe": ScheduleKind(gpipe, what="all forward, then all backward: most memory"),
    "1f1b": ScheduleKind(one_f_one_b, what="one forward, one backward: the usual one"),
    "interleaved": ScheduleKind(interleaved, takes_chunks=True, what="chunks of layers: less idle, more messages"),
    "zero_bubble": ScheduleKind(zero_bubble, splits_backward=True, what="weights' gradients fill the gaps (ZB-H1)"),
}


def build(name: str, stages: int, num: int, chunks: int = 1) -> Schedule:
    """The schedule of SCHEDULES by that name."""
    if stages == 1:  # the ordinary step
        return [[Action(of, 0, n) for n in range(num) for of in ("F", "B")]]
    return SCHEDULES[name].make(stages, num, chunks)
