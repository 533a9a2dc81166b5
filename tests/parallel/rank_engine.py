"""Run by every rank of test_engine_ranks.py: faults on one rank, seen by all; reductions counted.

python rank_engine.py DATA WORLD
"""

import math
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch
from broken import Broken
from harness import make_config

from hvdlm import checkpoint
from hvdlm.errors import UserError
from hvdlm.session.metrics import RunLog
from hvdlm.session.progress import Progress
from hvdlm.session.stop import BatchJob, StopFlag, Wish
from hvdlm.train import setup as stage
from hvdlm.train.guard import Verdict
from hvdlm.train.interval import IntervalMeter
from hvdlm.train.loop import Loop
from hvdlm.train.setup import build_engine
from hvdlm.train.step import Engine
from hvdlm.world.connect import connected

DATA = Path(sys.argv[1])


def engine_of(world, *overrides):
    return build_engine(make_config(DATA, Path("unused"), "train.micro_batch=1", *overrides), world)


def check_each_gradient_is_reduced_once(world):
    """Counted inside Horovod's optimizer, at the call that hands a tensor to its background thread."""
    import horovod.torch.optimizer as inside

    engine, _ = engine_of(world, "sync=horovod")
    names: Counter = Counter()
    original = inside.allreduce_async_

    def counting(tensor, name=None, **options):
        names[name] += 1
        return original(tensor, name=name, **options)

    inside.allreduce_async_ = counting
    engine.run(0, 3)
    inside.allreduce_async_ = original
    assert set(names) == {name for name, _ in engine.model.named_parameters()}
    assert set(names.values()) == {3}, names
    engine.close()


def check_the_norm_is_the_same_on_all_ranks(world, *overrides):
    engine, _ = engine_of(world, *overrides, "optim.clip=0.05")
    norms = [float(result.grad_norm) for result in engine.run(0, 3)]
    assert len(set(map(tuple, world.gather(norms)))) == 1
    engine.close()


def check_an_overflow_on_one_rank_is_skipped_by_all(world, sync):
    one_a_step = f"train.micro_batch={12 // world.size}"
    engine, _ = engine_of(world, "train.precision=fp16", f"sync={sync}", one_a_step)
    if world.rank == world.size - 1:
        steps = iter([False, True, False])

        def spoil(gradient):
            return torch.full_like(gradient, math.inf) if next(steps, False) else gradient

        engine.sync.parameters[-1].register_hook(spoil)
    results = engine.run(0, 3)
    verdicts = [result.verdict for result in results]
    assert verdicts == [Verdict.APPLY, Verdict.SKIP, Verdict.APPLY], (world.rank, verdicts)
    assert engine.scaler.scale == 2.0**15
    digests = world.gather([float(p.detach().double().sum()) for p in engine.model.parameters()])
    assert all(digest == digests[0] for digest in digests)
    assert all(torch.isfinite(p).all() for p in engine.model.parameters())
    engine.close()


def check_horovods_options(world):
    """Each is the mean gradient in another way, within its precision; adasum is another one, the same on all ranks."""

    def losses(sync, *overrides):
        engine, _ = engine_of(world, f"sync={sync}", *overrides)
        found = [float(result.loss_sum) for result in engine.run(0, 4)]
        weights = world.gather([float(p.detach().double().sum()) for p in engine.model.parameters()])
        assert all(rank == weights[0] for rank in weights), sync
        engine.close()
        return torch.tensor(found)

    expected = losses("horovod")
    for options, tolerance in (
        ("compression: fp16", 1e-3), ("predivide: 4.0", 1e-5), ("groups: 3", 1e-5), ("fusion_mb: 1, cycle_ms: 2", 1e-5),
    ):  # fmt: skip
        assert torch.allclose(losses(f"{{kind: horovod, {options}}}"), expected, rtol=tolerance), options
    sgd = ("optim.name=sgd", "optim.lr=0.1", "optim.clip=0", "optim.weight_decay=0")
    summed = losses("{kind: horovod, op: sum}", *sgd)
    assert torch.allclose(summed, losses("horovod", *sgd[:1], f"optim.lr={0.1 * world.size}", *sgd[2:]), rtol=1e-4)
    adasum = losses("{kind: horovod, op: adasum}", *sgd)
    assert torch.isfinite(adasum).all()
    assert not torch.allclose(adasum[2:], summed[2:], rtol=1e-6)


def check_a_ramp_changes_the_number_of_passes(world):
    """2, then 6 micro-batches a rank and step: Horovod counts them, plain sums need not."""
    ramp = f"train.ramp={{start: {2 * world.size}, increment: {12 - 2 * world.size}, steps: 2}}"
    found = []
    for sync in ("horovod", "allreduce"):
        engine, _ = engine_of(world, f"sync={sync}", ramp)
        results = engine.run(0, 4)
        assert [result.micro_batches for result in results] == [2, 2, 12 // world.size, 12 // world.size]
        found.append(torch.tensor([float(result.grad_norm) for result in results]))
        engine.close()
    assert torch.allclose(*found, rtol=1e-5)


def check_all_ranks_rewind_together(world, folder):
    stage.Engine = Broken
    config = make_config(
        DATA, folder / "rewind", "train.micro_batch=1", "train.steps=8", "checkpoint.every=2", "log.every=2",
        "guard.nonfinite=rewind", "sync={kind: allreduce, overlap: false}",
    )  # fmt: skip
    assert set(world.gather(stage.train(config, world)["step"])) == {8}
    assert checkpoint.read_state(checkpoint.resolve(folder / "rewind"))["engine"]["left_out"] in (12, 24)
    stage.Engine = Engine


def check_a_flipped_bit_stops_the_job(world, folder):
    engine, corpora = engine_of(world, "train.digest_every=4", "train.eval_every=100")
    name, parameter = list(engine.model.named_parameters())[3]
    engine.run(0, 2)
    if world.rank == 1:
        parameter.detach().view(torch.int32).view(-1)[5] ^= 1 << 3
    stop = StopFlag(folder, world, BatchJob())
    loop = Loop(engine, corpora, None, RunLog(engine.config.log, folder, world, step=0), stop, 0.0)
    try:
        with Progress("train", 20, "steps", world) as progress:
            loop.run(2, progress)
    except UserError as error:
        assert error.on_all_ranks
        assert str(error).startswith("step 4: "), error
        assert name in str(error), error
        assert ("rank 1 differs" if world.size > 2 else "ranks 0 and 1 differ") in str(error), error
    else:
        raise AssertionError("nobody noticed")
    engine.close()


def check_a_pulse_tells_all_ranks_the_same(world):
    engine, _ = engine_of(world)
    meter = IntervalMeter(engine, 5)
    assert meter.next_end(0) == 1
    interval = meter.agree(0, 2, engine.run(0, 2), wish=Wish.STOP if world.rank == world.size - 1 else Wish.NONE)
    assert interval.wish == Wish.STOP
    assert len(interval.steps) == 2
    assert interval.tokens == 2 * 12 * 32
    assert 0 <= interval.live["exposed_comm"] < 1
    assert len(set(world.gather((*interval.steps, interval.tokens_per_s, interval.live["straggler_spread"])))) == 1
    ends = world.gather(meter.next_end(2))
    assert len(set(ends)) == 1
    assert ends[0] <= 5
    engine.close()


if __name__ == "__main__":
    with connected(sys.argv[2]) as world:
        folder = Path(world.broadcast(tempfile.mkdtemp()))
        check_the_norm_is_the_same_on_all_ranks(world, "sync=allreduce")
        check_an_overflow_on_one_rank_is_skipped_by_all(world, "{kind: allreduce, overlap: true}")
        check_a_flipped_bit_stops_the_job(world, folder)
        check_a_pulse_tells_all_ranks_the_same(world)
        check_all_ranks_rewind_together(world, folder)
        if world.kind == "horovod":
            check_each_gradient_is_reduced_once(world)
            check_horovods_options(world)
            check_a_ramp_changes_the_number_of_passes(world)
            check_the_norm_is_the_same_on_all_ranks(world, "sync=horovod")
            check_an_overflow_on_one_rank_is_skipped_by_all(world, "horovod")
        print(f"rank {world.rank} passed", flush=True)
