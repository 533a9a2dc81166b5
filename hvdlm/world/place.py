"""Where a rank runs among the ranks of its host."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from hvdlm.host import affinity
from hvdlm.world.interface import World


def threads_per_rank(masks: list[frozenset[int]], rank: int) -> int:
    """Threads for `rank` so that the ranks of one node together fill their cores, at least one.

    >>> threads_per_rank([frozenset({0, 1, 2, 3})] * 2, 0)
    2
    >>> threads_per_rank([frozenset({0, 1}), frozenset({2, 3})], 0)
    2
    """
    sharing = sum(1 for mask in masks if mask & masks[rank])
    return max(1, len(masks[rank]) // sharing)


@dataclass(frozen=True)
class Place:
    """Where a rank runs: its number among the ranks of its host, their number, its fair threads; may it use a GPU?"""

    local_rank: int
    local_size: int
    threads: int
    takes_gpu_tensors: bool = True


def find_place(world: World) -> Place:
    """The place of this rank; collective, so never call it where one rank may have failed already."""
    hosts = world.gather((socket.gethostname(), affinity()))
    local = [rank for rank, (host, _) in enumerate(hosts) if host == hosts[world.rank][0]]
    local_rank = local.index(world.rank)
    threads = threads_per_rank([hosts[rank][1] for rank in local], local_rank)
    return Place(local_rank, len(local), threads, world.takes_gpu_tensors)
