"""What a message costs between the ranks of a job, measured: alpha + bytes x beta (Hockney 1994)."""

from __future__ import annotations

import statistics
import time

import torch

from hvdlm.world.interface import World

ROUNDS = 9
LARGE_BYTES = 8 << 20


def measured_link(world: World) -> tuple[float, float]:
    """(seconds of a message however short, seconds a byte) where every rank sends to the next at once; collective.

    Medians of rounds, of the slowest rank: where some neighbours are on two hosts it is the link between these.
    """
    small_s, large_s = (_round_s(world, num_bytes) for num_bytes in (8, LARGE_BYTES))
    return small_s, max(0.0, large_s - small_s) / LARGE_BYTES


def _round_s(world: World, num_bytes: int) -> float:
    message = torch.zeros(num_bytes, dtype=torch.uint8)
    after, before = (world.rank + 1) % world.size, (world.rank - 1) % world.size
    seconds = []
    for number in range(ROUNDS + 1):
        world.barrier()
        start = time.perf_counter()
        received, sent = world.post_receive(message, before, 0), world.post_send(message, after, 0)
        received.wait()
        sent.wait()
        if number:  # the first warms up
            seconds.append(time.perf_counter() - start)
    return max(world.gather(statistics.median(seconds)))
