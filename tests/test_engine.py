"""One step: accumulation, clipping and precision do what their names say; one reduction a step."""

import pytest
import torch
from harness import make_config

from hvdlm.engine import Engine
from hvdlm.errors import UserError
from hvdlm.host import Place
from hvdlm.manifest import read_manifest
from hvdlm.shards import TokenStream
from hvdlm.sync import build_sync
from hvdlm.world.serial import SerialWorld


def make_engine(data_dir, tmp_path, *overrides, world=None):
    config = make_config(data_dir, tmp_path, *overrides)
    return Engine(
        config, TokenStream(data_dir, "train"), read_manifest(data_dir), world or SerialWorld(), Place(0, 1, 1)
    )


def weights(engine):
    return torch.cat([p.detach().flatten() for p in engine.model.parameters()])


class CountingWorld(SerialWorld):
    """Counts what would travel."""

    def __init__(self):
        self.summed = []

    def sum_(self, buffer):
        self.summed.append(buffer.numel() if torch.is_tensor(buffer) else buffer.size)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_accumulation_equals_one_large_micro_batch(data_dir, tmp_path, optimizer):
    """4 x 2 sequences give the numbers of 1 x 8."""
    engines = [
        make_engine(data_dir, tmp_path, "train.global_batch=8", f"train.micro_batch={micro}", f"optim.name={optimizer}")
        for micro in (2, 8)
    ]
    assert [engine.passes for engine in engines] == [4, 1]
    results = [[engine.run(step) for step in range(10)] for engine in engines]
    for one, other in zip(*results, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-4)
    assert torch.allclose(weights(engines[0]), weights(engines[1]), atol=1e-5)


def test_a_step_reduces_every_gradient_once(data_dir, tmp_path):
    world = CountingWorld()
    engine = make_engine(data_dir, tmp_path, world=world)
    world.summed.clear()
    engine.run(0)
    assert world.summed == [2, sum(p.numel() for p in engine.model.parameters())]  # (loss, stop), gradients


def test_training_learns(data_dir, tmp_path):
    engine = make_engine(data_dir, tmp_path, "train.steps=60")
    losses = [engine.run(step).loss for step in range(60)]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_clipping_limits_the_update_but_not_the_reported_norm(data_dir, tmp_path):
    plain = ("optim.name=sgd", "optim.momentum=0", "optim.weight_decay=0", "optim.warmup_steps=0", "optim.lr=1")
    free, clipped = (make_engine(data_dir, tmp_path, *plain, f"optim.clip={clip}") for clip in (0, 0.01))
    start = weights(free)
    results = free.run(0), clipped.run(0)
    assert results[0].grad_norm == pytest.approx(results[1].grad_norm)
    assert float((weights(free) - start).norm()) == pytest.approx(results[0].grad_norm, rel=1e-4)
    assert float((weights(clipped) - start).norm()) == pytest.approx(0.01, rel=1e-3)


def test_bf16_keeps_float32_weights_and_nearly_the_loss(data_dir, tmp_path):
    fp32, bf16 = (make_engine(data_dir, tmp_path, f"train.precision={name}") for name in ("fp32", "bf16"))
    assert {p.dtype for p in bf16.model.parameters()} == {torch.float32}
    assert bf16.run(0).loss == pytest.approx(fp32.run(0).loss, rel=1e-2)
    assert {p.grad.dtype for p in bf16.model.parameters()} == {torch.float32}


def test_a_bf16_parameter_is_refused_before_any_collective(data_dir, tmp_path):
    config = make_config(data_dir, tmp_path)
    model = torch.nn.Linear(2, 2, dtype=torch.bfloat16)
    with pytest.raises(UserError, match=r"parameter weight is torch.bfloat16; keep float32 and set train.precision"):
        build_sync(config.sync, model, torch.optim.SGD(model.parameters(), 1), SerialWorld(), 1)


def test_horovod_sync_needs_a_horovod_world(data_dir, tmp_path):
    with pytest.raises(UserError, match="sync.kind: horovod needs world: horovod, this is serial"):
        make_engine(data_dir, tmp_path, "sync.kind=horovod")


def test_a_batch_that_does_not_divide_is_named(data_dir, tmp_path):
    class TwoRanks(SerialWorld):
        size = 2

    with pytest.raises(UserError, match="global_batch 10 is not a multiple of micro_batch 2 x 2 ranks = 4; change"):
        make_engine(data_dir, tmp_path, "train.global_batch=10", world=TwoRanks())


def test_dropout_follows_seed_and_step(data_dir, tmp_path):
    runs = [make_engine(data_dir, tmp_path, "model.dropout=0.3") for _ in range(2)]
    runs[1].run(5)  # other draws in between
    runs[1] = make_engine(data_dir, tmp_path, "model.dropout=0.3")
    torch.manual_seed(99)
    assert [runs[0].run(step).loss for step in range(3)] == [runs[1].run(step).loss for step in range(3)]
