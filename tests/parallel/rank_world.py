"""Run by every rank of test_world_ranks.py: the collectives of a world, checked on all ranks together."""

import sys

import numpy as np
import torch

from hvdlm.world import mpi
from hvdlm.world.connect import connected
from hvdlm.world.counters import ServedCounters

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
    check_rows(world)
    check_started_sums(world)
    check_counters(world)
    check_window(world)
    world.barrier()


def numbered(*shape, dtype):
    """Values that differ and that every dtype holds exactly."""
    return (torch.arange(torch.Size(shape).numel()) % 100).view(shape).to(dtype)


def check_rows(world) -> None:
    """Whole, and in pieces of 5 bytes that end within an element."""
    for mpi.EXCHANGE_BYTES in (1 << 30, 5):
        for dtype in DTYPES:
            for width in (0, 1, 7):
                to_all = numbered(world.size, world.size, width, dtype=dtype)  # [from, to]
                received = world.exchange_rows(to_all[world.rank].contiguous())
                assert torch.equal(received, to_all[:, world.rank]), (dtype, width)
                assert torch.equal(world.gather_rows(to_all[world.rank, 0]), to_all[:, 0]), (dtype, width)
    mpi.EXCHANGE_BYTES = 1 << 30
    large = numbered(world.size, 1_000_001, dtype=torch.float32) + 1000 * world.rank
    received = world.exchange_rows(large)
    assert all(torch.equal(row, large[world.rank] + 1000 * (rank - world.rank)) for rank, row in enumerate(received))
    assert torch.equal(large, numbered(world.size, 1_000_001, dtype=torch.float32) + 1000 * world.rank)


def check_started_sums(world) -> None:
    """Several under way at once, twice, of the same and of different lengths."""
    for _ in range(2):
        tensors = [
            torch.full((length,), float(world.rank + number)) for number, length in enumerate((3, 500_000, 3, 1))
        ]
        for pending in [world.start_sum(tensor) for tensor in tensors]:
            pending.wait()
        for number, tensor in enumerate(tensors):
            assert (tensor == sum(range(world.size)) + number * world.size).all()
    array = np.full(4, world.rank + 1.0)
    world.sum_(array)  # other collectives go on
    assert (array == sum(range(world.size + 1))).all()


def check_window(world) -> None:
    """All ranks add to and read from all at once: nothing is lost, and no rank waits for another's call."""
    lengths = [1_500_000 + 7 * rank for rank in range(world.size)]  # more than a piece
    window = world.window(lengths[world.rank])
    if window is None:
        assert world.kind == "horovod"
        return
    assert (window.local == 0).all()
    world.barrier()
    seen = np.empty(lengths[0], dtype=np.float32)
    for number in range(4):
        for rank, length in enumerate(lengths):
            window.add(rank, np.full(length, number + 1, dtype=np.float32))
        window.get(0, seen)
        assert 1 + number <= seen.min()
        assert seen.max() <= 10 * world.size
    world.barrier()
    for rank, length in enumerate(lengths):
        part = np.empty(length, dtype=np.float32)
        window.get(rank, part)
        assert (part == 10 * world.size).all()
    assert (window.local == 10 * world.size).all()
    world.barrier()
    window.close()


def check_counters(world) -> None:
    counters = world.counters(3)
    if counters is None:
        assert world.kind == "horovod"
        return
    check_draws(world, counters)
    if world.kind == "mpi":
        check_draws(world, ServedCounters(mpi.load_mpi(), world.mpi_communicator(), 3))


def check_draws(world, counters) -> None:
    """No two ranks are given the same number, and nothing is lost."""
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
