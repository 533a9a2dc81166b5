"""How long a schedule takes, by the time of each action and each message: without ranks, before anything is started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hvdlm.parallel.checker import needs
from hvdlm.parallel.schedule import Action, Kind, Schedule


@dataclass(frozen=True)
class Costs:
    """Seconds of one micro-batch in one virtual stage: one number for all, or one for each.

    A message takes `alpha_s` + bytes x `beta_s`, and holds neither rank up.
    """

    forward: float | Sequence[float] = 1.0
    backward: float | Sequence[float] = 1.0  # of inputs
    weights: float | Sequence[float] = 1.0
    alpha_s: float = 0.0
    beta_s: float = 0.0  # a byte
    message_bytes: int = 0

    def of(self, kind: Kind, stage: int) -> float:
        seconds = {"F": self.forward, "B": self.backward, "W": self.weights}[kind]
        return float(seconds) if isinstance(seconds, int | float) else seconds[stage]

    @property
    def message_s(self) -> float:
        return self.alpha_s + self.message_bytes * self.beta_s


class Span(NamedTuple):
    """An action of a rank, and when it is carried out, in seconds."""

    rank: int
    action: Action
    begin: float
    end: float


@dataclass(frozen=True)
class Simulation:
    spans: list[Span]
    stages: int
    makespan: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "makespan", max(span.end for span in self.spans))

    def busy(self, rank: int) -> float:
        return sum(span.end - span.begin for span in self.spans if span.rank == rank)

    @property
    def idle_of_total(self) -> float:
        """Idle time as a part of all time of all ranks: (p - 1) / (m + p - 1) of equal stages under 1F1B."""
        busy = sum(self.busy(rank) for rank in range(self.stages))
        return 1 - busy / (self.stages * self.makespan)

    @property
    def idle_of_ideal(self) -> float:
        """Idle time by the time that work alone would take, Megatron's measure: (p - 1) / m."""
        busy = sum(self.busy(rank) for rank in range(self.stages))
        return self.stages * self.makespan / busy - 1

    def most_open(self, rank: int) -> int:
        """Micro-batches, times chunks, whose activations a rank holds at once: until their last backward pass."""
        last: dict[tuple[int, int], float] = {}
        for span in self.spans:
            if span.rank == rank and span.action.kind != "F":
                last[span.action.chunk, span.action.micro_batch] = span.end
        events = [(end, -1) for end in last.values()]
        events += [(span.begin, 1) for span in self.spans if span.rank == rank and span.action.kind == "F"]
        now = most = 0
        for _, change in sorted(events):
            now += change
            most = max(most, now)
        return most


def simulate(schedule: Schedule, costs: Costs, chunks: int = 1) -> Simulation:
    """Each rank carries out its actions in order, each as soon as what it needs is there. ValueError if it hangs."""
    stages, last = len(schedule), len(schedule) * chunks - 1
    splits = any(action.kind == "W" for actions in schedule for action in actions)
    done: dict[tuple[int, Action], float] = {}
    at, now, spans = [0] * stages, [0.0] * stages, []
    while any(at[rank] < len(actions) for rank, actions in enumerate(schedule)):
        moved = False
        for rank, actions in enumerate(schedule):
            while at[rank] < len(actions):
                action = actions[at[rank]]
                needed = needs(action, rank, stages, last)
                if any(need not in done for need in needed):
                    break
                ready = [done[need] + (costs.message_s if need[0] != rank else 0.0) for need in needed]
                begin, stage = max([now[rank], *ready]), action.chunk * stages + rank
                seconds = costs.of(action.kind, stage)
                if action.kind == "B" and not splits:
                    seconds += costs.of("W", stage)
                now[rank] = done[rank, action] = begin + seconds
                spans.append(Span(rank, action, begin, now[rank]))
                at[rank] += 1
                moved = True
        if not moved:
            raise ValueError("this schedule hangs")
    return Simulation(spans, stages)
