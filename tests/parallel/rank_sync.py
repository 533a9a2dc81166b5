"""Run by every rank of test_sync_ranks.py: what the ways to combine gradients promise, on real ranks.

Prints the digest of the weights that `sync: tree` ends with; it must not depend on the number of ranks.
"""

import hashlib
import random
import sys
import time

import torch
from torch import nn

from hvdlm.sync import tree
from hvdlm.sync.compress import CompressConfig, CompressedSync
from hvdlm.sync.tree import TreeConfig, TreeSync
from hvdlm.world.connect import connected

MICRO_BATCHES = 12  # divides for 1, 2, 3 and 4 ranks; with 1 and 2 a block is no node
STEPS = 5
COMPRESSORS = [
    CompressConfig(name="bf16"), CompressConfig(name="int8"), CompressConfig(name="topk", density=0.05),
    CompressConfig(name="powersgd", rank=2),
]  # fmt: skip


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_model():
    model = nn.Sequential(nn.Linear(40, 130), nn.Tanh(), nn.Linear(130, 10))
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(0.1 * draw(*parameter.shape, seed=number))
    return model


def digest(model) -> str:
    state = hashlib.blake2b(digest_size=8)
    for parameter in model.parameters():
        state.update(parameter.detach().numpy().tobytes())
    return state.hexdigest()


def train(sync_class, config, world, delays):
    """Train on micro-batches that are the same whoever computes them; each rank is held up now and then."""
    model = make_model()
    sync = sync_class(config, model, torch.optim.AdamW(model.parameters(), lr=1e-2), world)
    passes = MICRO_BATCHES // world.size
    for step in range(STEPS):
        sync.begin(step, passes)
        for number in range(world.rank * passes, (world.rank + 1) * passes):
            x = draw(8, 40, seed=100 * step + number)
            loss = nn.functional.cross_entropy(model(x), x[:, :10].argmax(-1))
            (loss / MICRO_BATCHES).backward()
            sync.accumulated()
            time.sleep(delays.choice([0, 0, 0.003]))  # to change who comes when
        sync.reduce()
        sync.step()
        sync.zero_grad()
    return model, sync


def check_tree(world) -> str:
    """Two runs with other delays and other pieces end with the same bits, on all ranks."""
    digests = []
    for attempt in range(2):
        tree.PIECE_FLOATS = 1 << (11 + 10 * attempt)
        model, sync = train(TreeSync, TreeConfig(), world, random.Random(f"{attempt} {world.rank}"))
        digests += world.gather(digest(model))
        assert (sync.bytes_sent > 0) == (world.size > 1)
    assert len(set(digests)) == 1, digests
    return digests[0]


def check_compressed(world) -> None:
    """Replicas stay equal to the bit, and are no longer what they were."""
    for config in COMPRESSORS:
        model, sync = train(CompressedSync, config, world, random.Random(world.rank))
        assert len({digest(make_model()), *world.gather(digest(model))}) == 2, config
        sync.settle()
        for name, tensor in sync.state().items():
            assert len(set(world.gather(tensor.numpy().tobytes()))) == 1, (config, name)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with connected(sys.argv[1]) as world:
        assert world.size == int(sys.argv[2])
        final = check_tree(world)
        check_compressed(world)
        print(f"rank {world.rank} passed with tree {final}", flush=True)
