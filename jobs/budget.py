"""What a run will cost, from steps that were measured: node-hours before they are asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hvdlm.errors import UserError


@dataclass(frozen=True)
class Measured:
    """The time of a step, and where it is known from."""

    step_s: float
    ranks: int
    source: str


@dataclass(frozen=True)
class Budget:
    """`node_hours` is an estimate where there is a measurement, else what the time limit allows to be used."""

    node_hours: float
    text: str
    minutes: float | None  # of the whole run, on the job's nodes

    def check(self, max_node_hours: float | None) -> None:
        """UserError if it is more than allowed."""
        if max_node_hours is not None and self.node_hours > max_node_hours:
            raise UserError(
                f"{self.text}: more than --max-node-hours {max_node_hours:g}; train fewer steps, or allow more"
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
        f"{steps:,} steps x {step_s:.3g} s (measured with {measured.ranks} ranks in {measured.source}{stretched}) "
        f"x {nodes} node{'s' * (nodes > 1)} = {hours * nodes:.3g} node-hours"
    )
    return Budget(hours * nodes, text, hours * 60)


def ceiling(minutes: int, *, nodes: int, jobs: int = 1) -> Budget:
    """Without a measurement: all the time that the jobs may take."""
    hours = nodes * minutes * jobs / 60
    many = f" x {jobs} jobs" if jobs > 1 else ""
    text = (
        f"no step was measured yet, so at most {nodes} node{'s' * (nodes > 1)} x {minutes} min{many} = "
        f"{hours:.3g} node-hours"
    )
    return Budget(hours, text, None)


def jobs_needed(minutes: float, limit: int) -> int:
    """Jobs of `limit` minutes for a run of so many."""
    return max(1, math.ceil(minutes / limit))
