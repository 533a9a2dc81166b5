"""What a run will cost, from steps that were measured: node-hours before they are asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hvdlm.errors import UserError
from hvdlm.tables import counted, figure


@dataclass(frozen=True)
class Measured:
    """The time of a step, and where it is known from."""

    step_s: float
    ranks: int
    source: str


@dataclass(frozen=True)
class Budget:
    """Node-hours and how they come about."""

    node_hours: float
    text: str
    minutes: float = 0.0  # of a whole training, where it is known

    def check(self, max_node_hours: float | None) -> None:
        """UserError if it is more than allowed."""
        if max_node_hours is not None and self.node_hours > max_node_hours:
            raise UserError(
                f"{self.text}: more than --max-node-hours {max_node_hours:.9g}; ask for less time, or allow more"
            )


def estimate(steps: int, measured: Measured, *, ranks: int, nodes: int) -> Budget:
    """Steps left x seconds a step x nodes.

    A measurement at another number of ranks is taken to cost the same rank-seconds a step, which is perfect
    scaling: the truth is dearer, and the text says from where to where it was stretched.

    >>> estimate(3600, Measured(2.0, 4, "runs/a"), ranks=8, nodes=2).node_hours
    2.0
    """
    step_s = measured.step_s * measured.ranks / ranks
    hours = steps * step_s / 3600
    stretched = f", taken as perfect scaling to {ranks}" if measured.ranks != ranks else ""
    text = (
        f"{steps:,} steps x {figure(step_s)} s (measured with {counted(measured.ranks, 'rank')} in "
        f"{measured.source}{stretched}) x {counted(nodes, 'node')} = {figure(hours * nodes)} node-hours"
    )
    return Budget(hours * nodes, text, hours * 60)


def total(known: Budget | None, ceilings: Sequence[tuple[str, float]]) -> Budget:
    """What was measured, and for all other jobs the most that their time limits and restarts allow.

    >>> total(None, [("train", 2.0), ("eval", 0.5)]).text
    'at most 2.5 node-hours (train 2, eval 0.5), if every start takes all its time'
    """
    most = sum(hours for _, hours in ceilings)
    parts = ", ".join(f"{stage} {figure(hours)}" for stage, hours in ceilings)
    limit = f"at most {figure(most)} node-hours ({parts}), if every start takes all its time"
    if known is None:
        return Budget(most, limit)
    text = f"{known.text}; and {limit}" if ceilings else known.text
    return Budget(known.node_hours + most, text, known.minutes)


def jobs_needed(minutes: float, limit: int) -> int:
    """Jobs of `limit` minutes for a run of so many."""
    return max(1, math.ceil(minutes / limit))
