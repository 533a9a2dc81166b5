"""Run by every rank of test_world_ranks.py: the collectives of a world, checked on all ranks together."""

import sys

import numpy as np
import torch

from hvdlm.world import connected

DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
          torch.float32, torch.float64]  # fmt: skip


def check(world) -> None:
    for dtype in (np.float32, np.float64, np.int32, np.int64):
        array = np.arange(5).astype(dtype) + world.rank
        world.sum_(array)
        assert array.tolist() == [world.size * i + sum(range(world.size)) for i in range(5)]
    large = torch.full((3_000_001,), float(world.rank + 1))  # more than one piece, not a multiple of it
    world.sum_(large)
    assert (large == sum(range(world.size + 1))).all()
    for dtype in DTYPES:
        for shape in ((), (0,), (7,), (3, 2)):
            expected = torch.ones(shape).to(dtype)
            tensor = expected.clone() if world.rank == 0 else torch.zeros(shape, dtype=dtype)
            world.broadcast_(tensor)
            assert torch.equal(tensor, expected), (dtype, shape)
    parts = world.gather_bytes(b"x" * (1000 * world.rank))
    assert [len(part) for part in parts] == [1000 * rank for rank in range(world.size)]
    assert world.gather({"rank": world.rank}) == [{"rank": rank} for rank in range(world.size)]
    assert world.broadcast({"from": world.rank}) == {"from": 0}
    assert world.on_root(lambda: world.rank) == 0
    received = world.exchange_bytes([b"%d" % (10 * world.rank + to) for to in range(world.size)])
    assert received == [b"%d" % (10 * rank + world.rank) for rank in range(world.size)]
    check_counters(world)
    world.barrier()


def check_counters(world) -> None:
    """No two ranks are given the same number, and nothing is lost."""
    counters = world.counters(3)
    if counters is None:
        assert world.kind == "horovod"
        return
    drawn = []
    while (number := counters.add(1, 1)) < 2000:
        drawn.append(number)
        counters.add(2, 5)
    world.barrier()
    assert sorted(sum(world.gather(drawn), [])) == list(range(2000))
    assert counters.read() == [0, 2000 + world.size, 10_000]
    world.barrier()
    counters.close()


if __name__ == "__main__":
    with connected(sys.argv[1]) as world:
        assert world.kind == sys.argv[1]
        assert world.size == int(sys.argv[2])
        check(world)
        print(f"rank {world.rank} passed", flush=True)
