"""Rates that were measured in turn, compared within a round. Pure: numbers in, numbers out.

All variants of a round run within seconds of one another, so a machine that drifts touches both sides of a
ratio alike. The figure is the median over rounds; its interval is that of the median by order statistics,
which supposes no distribution (Hoefler and Belli, "Scientific Benchmarking of Parallel Computing Systems",
SC15, rule 7). It needs six rounds; with fewer there is none.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .confidence import ConfidenceInterval

LEAST_CPU = 0.93  # of the expected CPU share: below it somebody else was computing too


@dataclass(frozen=True)
class RankBlock:
    """What one rank saw of a block; `start` and `end` are on the machine's monotonic clock, in seconds."""

    start: float
    end: float
    cpu_s: float  # of all threads of the process
    tokens: int
    step_s: list[float]
    data_wait_s: list[float]  # empty where the program does not say
    comm_s: list[float]

    @property
    def wall_s(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class TimedBlock:
    """A few steps of one variant, between those of the other variants of its round."""

    round: int
    variant: str
    ranks: tuple[RankBlock, ...]

    @property
    def tokens_per_s(self) -> float:
        """Of all ranks together, each over its own time: ranks that never meet need not start at once."""
        return sum(rank.tokens / rank.wall_s for rank in self.ranks)

    @property
    def cpu_per_wall(self) -> float:
        """Cores that a rank had, on average."""
        return statistics.mean(rank.cpu_s / rank.wall_s for rank in self.ranks)

    def share_of_time(self, what: str) -> float | None:
        """The part of the steps' time that went to `data_wait_s` or `comm_s`; None where it is not known."""
        parts = [sum(getattr(rank, what)) / sum(rank.step_s) for rank in self.ranks if getattr(rank, what)]
        return statistics.mean(parts) if parts else None


def steps_for(seconds: float, step_s: Sequence[float]) -> int:
    """How many steps of the usual length fill `seconds`, at least one.

    >>> steps_for(1.5, [0.9, 0.4, 0.4]), steps_for(1.5, [2.0])
    (4, 1)
    """
    return max(1, math.ceil(seconds / statistics.median(step_s)))


def order_of_round(names: Sequence[str], number: int) -> list[str]:
    """Everybody's place in the round changes from round to round.

    >>> [order_of_round(["a", "b", "c"], number) for number in range(2)]
    [['a', 'b', 'c'], ['b', 'c', 'a']]
    """
    shift = number % len(names)
    return [*names[shift:], *names[:shift]]


def disturbed(blocks: Sequence[TimedBlock], cores: Mapping[str, float]) -> set[tuple[str, int]]:
    """(variant, round) of the blocks in which the ranks had clearly less CPU than they should.

    `cores` says how many a rank of a variant that never waits must have. Of others only their best round is
    known: a rank that sleeps while it waits has less than a core by right.
    """
    expected: dict[str, float] = {}
    for block in blocks:
        expected[block.variant] = max(expected.get(block.variant, 0.0), block.cpu_per_wall)
    expected |= {variant: cores[variant] for variant in expected if variant in cores}
    found = [block for block in blocks if block.cpu_per_wall < LEAST_CPU * expected[block.variant]]
    return {(block.variant, block.round) for block in found}


def median_interval(values: Sequence[float]) -> ConfidenceInterval:
    """The median and at least 95 % confidence in it; infinite for fewer than six values.

    Of n values the k-th smallest and largest hold the median unless fewer than k fall on one side of it:
    coverage is 1 - 2 P(B < k) for B binomial with n and 1/2.

    >>> median_interval([3, 1, 2, 5, 4, 7, 6, 9, 8])
    ConfidenceInterval(value=5, low=2, high=8)
    """
    ordered, n = sorted(values), len(values)
    rank, tail = 0, 0.0
    while (tail := tail + math.comb(n, rank) / 2**n) <= 0.025:
        rank += 1
    if rank == 0:
        return ConfidenceInterval(statistics.median(ordered), 0.0, math.inf)
    return ConfidenceInterval(statistics.median(ordered), ordered[rank - 1], ordered[n - rank])


def ratios(blocks: Sequence[TimedBlock], variant: str, base: str) -> list[float]:
    """Rate of `variant` to that of `base` in each round that has both."""
    rates = {(block.variant, block.round): block.tokens_per_s for block in blocks}
    return [
        rate / rates[base, number]
        for (name, number), rate in rates.items()
        if name == variant and (base, number) in rates
    ]


def summarise(blocks: Sequence[TimedBlock], bases: Sequence[str], cores: Mapping[str, float]) -> dict[str, dict]:
    """A row for each variant: its median rate, and its ratios to those of `bases` that were measured.

    Blocks that were disturbed do not count, unless a variant has no other; then it has no ratio.
    """
    marked = disturbed(blocks, cores)
    quiet = [block for block in blocks if (block.variant, block.round) not in marked]
    rows = {}
    for variant in dict.fromkeys(block.variant for block in blocks):
        own = [block for block in blocks if block.variant == variant]
        counted = [block for block in own if block in quiet] or own
        found = {base: ratios(quiet, variant, base) for base in bases if base != variant}
        rows[variant] = {
            "tokens_per_s": statistics.median(block.tokens_per_s for block in counted),
            "cpu_per_wall": statistics.median(block.cpu_per_wall for block in counted),
            "disturbed_rounds": sorted(number for name, number in marked if name == variant),
            "comm": _median_share(counted, "comm_s"),
            "data_wait": _median_share(counted, "data_wait_s"),
            "to": {base: plain(values) for base, values in found.items() if values},
        }
    return rows


def plain(values: Sequence[float]) -> dict[str, float | int | None]:
    """Median, interval (None where there is none) and number of rounds, as JSON has them."""
    found = median_interval(values)
    return {"median": found.value, **found.bounds, "rounds": len(values)}


def _median_share(blocks: Sequence[TimedBlock], what: str) -> float | None:
    shares = [share for block in blocks if (share := block.share_of_time(what)) is not None]
    return statistics.median(shares) if shares else None
