"""The fixed tree gives the same bits for every number of ranks and in every world; compressed replicas stay equal."""

import hashlib
import random
import time

import pytest
import torch
from torch import nn

from hvdlm.sync import tree
from hvdlm.sync.compress import CompressConfig, CompressedSync
from hvdlm.sync.tree import TreeConfig, TreeSync
from hvdlm.world.serial import SerialWorld

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


@pytest.mark.on_ranks(1, 2, 4)
@pytest.mark.on_ranks(3, kind="horovod")
@pytest.mark.parametrize("piece_floats", [1 << 11, 1 << 21])
def test_the_tree_is_the_same_for_every_number_of_ranks(world, piece_floats, monkeypatch):
    """In pieces of any size, whoever is late: the bits of one process."""
    alone, _ = train(TreeSync, TreeConfig(), SerialWorld(), random.Random(0))
    monkeypatch.setattr(tree, "PIECE_FLOATS", piece_floats)
    model, sync = train(TreeSync, TreeConfig(), world, random.Random(f"{piece_floats} {world.rank}"))
    assert set(world.gather(digest(model))) == {digest(alone)}
    assert (sync.bytes_sent > 0) == (world.size > 1)


@pytest.mark.on_ranks(1, 2, 4)
@pytest.mark.on_ranks(3, kind="horovod")
@pytest.mark.parametrize("config", COMPRESSORS, ids=lambda config: config.name)
def test_compressed_replicas_stay_equal_to_the_bit(world, config):
    """And are no longer what they were."""
    model, sync = train(CompressedSync, config, world, random.Random(world.rank))
    assert len({digest(make_model()), *world.gather(digest(model))}) == 2
    sync.settle()
    for name, tensor in sync.state().items():
        assert len(set(world.gather(tensor.numpy().tobytes()))) == 1, name
