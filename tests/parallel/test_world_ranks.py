"""Each world's collectives on real ranks; 3 because powers of two hide mistakes."""

import numpy as np
import pytest
import torch

from hvdlm.world import mpi
from hvdlm.world.counters import ServedCounters
from hvdlm.world.threads import run_on_threads

DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
DTYPES += [torch.float16, torch.bfloat16, torch.float32, torch.float64]
on_mpi = pytest.mark.on_ranks(1, 2, 3)
on_horovod = pytest.mark.on_ranks(1, 2, 3, kind="horovod")
on_gloo = pytest.mark.on_ranks(2, kind="gloo")


def in_every_world(test):
    return on_mpi(on_horovod(on_gloo(test)))


@in_every_world
def test_a_sum_is_everybodys(world):
    for dtype in (np.float32, np.float64, np.int32, np.int64):
        array = np.arange(5).astype(dtype) + world.rank
        world.sum_(array)
        assert array.tolist() == [world.size * i + sum(range(world.size)) for i in range(5)]
    large = torch.full((3_000_001,), float(world.rank + 1))  # more than one piece, not a multiple of it
    world.sum_(large)
    assert (large == sum(range(world.size + 1))).all()


@in_every_world
def test_rank_0_hands_out_any_dtype(world):
    for dtype in DTYPES:
        for shape in ((), (0,), (7,), (3, 2)):
            expected = torch.ones(shape).to(dtype)
            tensor = expected.clone() if world.rank == 0 else torch.zeros(shape, dtype=dtype)
            world.broadcast_(tensor)
            assert torch.equal(tensor, expected), (dtype, shape)
    world.broadcast_(torch.from_numpy(np.empty(0)))  # whose stride is 0
    assert world.broadcast({"from": world.rank}) == {"from": 0}
    assert world.on_root(lambda: world.rank) == 0


@in_every_world
def test_bytes_are_gathered_and_exchanged(world):
    parts = world.gather_bytes(b"x" * (1000 * world.rank))
    assert [len(part) for part in parts] == [1000 * rank for rank in range(world.size)]
    assert world.gather({"rank": world.rank}) == [{"rank": rank} for rank in range(world.size)]
    received = world.exchange_bytes([b"%d" % (10 * world.rank + to) for to in range(world.size)])
    assert received == [b"%d" % (10 * rank + world.rank) for rank in range(world.size)]
    assert world.exchange_bytes([b""] * world.size) == [b""] * world.size
    assert world.gather_on_root("x" * world.rank) == (
        ["x" * rank for rank in range(world.size)] if not world.rank else []
    )


def numbered(*shape, dtype):
    """Values that differ and that every dtype holds exactly."""
    return (torch.arange(torch.Size(shape).numel()) % 100).view(shape).to(dtype)


@in_every_world
def test_rows_are_exchanged_and_gathered(world):
    for dtype in DTYPES:
        for width in (0, 1, 7):
            to_all = numbered(world.size, world.size, width, dtype=dtype)  # [from, to]
            received = world.exchange_rows(to_all[world.rank].contiguous())
            assert torch.equal(received, to_all[:, world.rank]), (dtype, width)
            assert torch.equal(world.gather_rows(to_all[world.rank, 0]), to_all[:, 0]), (dtype, width)


@on_mpi
def test_rows_go_in_pieces_that_end_within_an_element(world, monkeypatch):
    monkeypatch.setattr(mpi, "EXCHANGE_BYTES", 5)
    test_rows_are_exchanged_and_gathered(world)


@in_every_world
def test_large_rows_are_exchanged_and_stay_as_they_are(world):
    large = numbered(world.size, 1_000_001, dtype=torch.float32) + 1000 * world.rank
    received = world.exchange_rows(large)
    assert all(torch.equal(row, large[world.rank] + 1000 * (rank - world.rank)) for rank, row in enumerate(received))
    assert torch.equal(large, numbered(world.size, 1_000_001, dtype=torch.float32) + 1000 * world.rank)


@in_every_world
def test_several_sums_are_under_way_at_once(world):
    """Twice, of the same and of different lengths; other collectives go on afterwards."""
    for _ in range(2):
        tensors = [torch.full((length,), world.rank + float(i)) for i, length in enumerate((3, 500_000, 3, 1))]
        for pending in [world.start_sum(tensor) for tensor in tensors]:
            pending.wait()
        for number, tensor in enumerate(tensors):
            assert (tensor == sum(range(world.size)) + number * world.size).all()
    test_a_sum_is_everybodys(world)


@pytest.mark.parametrize("name", [name for name in globals() if name.startswith("test_") and "pieces" not in name])
def test_threads_are_ranks_too(name):
    run_on_threads(3, globals()[name])


@on_mpi
def test_all_add_to_and_read_from_all_memory_at_once(world):
    """Nothing is lost, and no rank waits for another's call."""
    lengths = [1_500_000 + 7 * rank for rank in range(world.size)]  # more than a piece
    window = world.window(lengths[world.rank])
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


@on_mpi
@pytest.mark.parametrize("by", ["memory", "messages"])
def test_no_two_ranks_are_given_the_same_number(world, by):
    counters = world.counters(3) if by == "memory" else ServedCounters(mpi.load_mpi(), world.mpi_communicator(), 3)
    drawn = []
    while (number := counters.add(1, 1)) < 2000:
        drawn.append(number)
        counters.add(2, 5)
    world.barrier()
    assert sorted(sum(world.gather(drawn), [])) == list(range(2000))
    assert counters.read() == [0, 2000 + world.size, 10_000]
    world.barrier()
    counters.close()


@pytest.mark.on_ranks(2, kind="horovod")
def test_horovods_ranks_reach_no_memory_of_others(world):
    assert world.counters(3) is None
    assert world.window(3) is None
