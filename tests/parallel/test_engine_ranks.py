"""A fault on one rank is everybody's: overflow, a flipped bit, the wish to stop. Reductions are counted."""

import math
from collections import Counter
from pathlib import Path

import pytest
import torch
from broken import Broken
from harness import make_config

from hvdlm import checkpoint
from hvdlm.compute import device
from hvdlm.errors import UserError
from hvdlm.session.metrics import RunLog
from hvdlm.session.progress import Progress
from hvdlm.session.stop import BatchJob, StopFlag, Wish
from hvdlm.train import setup
from hvdlm.train.guard import Verdict
from hvdlm.train.interval import IntervalMeter
from hvdlm.train.learners import LEARNERS
from hvdlm.train.loop import Loop
from hvdlm.train.step import GradientLearner

on_horovod = pytest.mark.on_ranks(2, kind="horovod")


def in_any_world(test):
    return on_horovod(pytest.mark.on_ranks(3, 4)(test))


@pytest.fixture
def engine_of(data_dir, world):
    """Makes (engine, corpora); the one before, and the last at the end, are closed."""
    made = []

    def close():
        while made:
            made.pop().close()

    def make(*overrides):
        close()
        config = make_config(data_dir, Path("unused"), "train.micro_batch=1", *overrides)
        engine, corpora = setup.build_learner(config, world)
        made.append(engine)
        return engine, corpora

    yield make
    close()


@on_horovod
def test_each_gradient_is_reduced_once(engine_of, monkeypatch):
    """Counted inside Horovod's optimizer, at the call that hands a tensor to its background thread."""
    import horovod.torch.optimizer as inside

    engine, _ = engine_of("sync=horovod")
    names: Counter = Counter()
    original = inside.allreduce_async_

    def counting(tensor, name=None, **options):
        names[name] += 1
        return original(tensor, name=name, **options)

    monkeypatch.setattr(inside, "allreduce_async_", counting)
    engine.run(0, 3)
    assert names == dict.fromkeys((name for name, _ in engine.model.named_parameters()), 3)


def check_the_norm(world, engine):
    norms = [float(result.grad_norm) for result in engine.run(0, 3)]
    assert len(set(map(tuple, world.gather(norms)))) == 1


@in_any_world
def test_the_norm_is_the_same_on_all_ranks(world, engine_of):
    check_the_norm(world, engine_of("sync=allreduce", "optim.clip=0.05")[0])


@on_horovod
def test_the_norm_is_the_same_on_all_ranks_of_horovods_optimizer(world, engine_of):
    check_the_norm(world, engine_of("sync=horovod", "optim.clip=0.05")[0])


def check_an_overflow(world, engine):
    """On the last rank in step 1: skipped by all."""
    if world.rank == world.size - 1:
        steps = iter([False, True, False])

        def spoil(gradient):
            return torch.full_like(gradient, math.inf) if next(steps, False) else gradient

        engine.sync.parameters[-1].register_hook(spoil)
    verdicts = [result.verdict for result in engine.run(0, 3)]
    assert verdicts == [Verdict.APPLY, Verdict.SKIP, Verdict.APPLY]
    assert engine.scaler.scale == 2.0**15
    digests = world.gather([float(p.detach().double().sum()) for p in engine.model.parameters()])
    assert all(digest == digests[0] for digest in digests)
    assert all(torch.isfinite(p).all() for p in engine.model.parameters())


@in_any_world
def test_an_overflow_on_one_rank_is_skipped_by_all(world, engine_of):
    sync = "sync={kind: allreduce, overlap: true}"
    engine, _ = engine_of("train.precision=fp16", sync, f"train.micro_batch={12 // world.size}")
    check_an_overflow(world, engine)


@on_horovod
def test_an_overflow_on_one_rank_is_skipped_by_horovods_optimizer(world, engine_of):
    engine, _ = engine_of("train.precision=fp16", "sync=horovod", f"train.micro_batch={12 // world.size}")
    check_an_overflow(world, engine)


SGD = ("optim.name=sgd", "optim.clip=0", "optim.weight_decay=0")


@pytest.fixture
def losses_of(world, engine_of):
    """Losses of 4 steps with Horovod's optimizer and some options of it; weights must be equal on all ranks."""

    def losses_of(options="", *overrides):
        engine, _ = engine_of(f"sync={{kind: horovod, {options}}}", *overrides)
        found = [float(result.sums[0]) for result in engine.run(0, 4)]
        weights = world.gather([float(p.detach().double().sum()) for p in engine.model.parameters()])
        assert all(rank == weights[0] for rank in weights)
        return torch.tensor(found)

    return losses_of


OPTIONS = {"compression: fp16": 1e-3, "predivide: 4.0": 1e-5, "groups: 3": 1e-5, "fusion_mb: 1, cycle_ms: 2": 1e-5}


@on_horovod
def test_horovods_options_are_the_mean_gradient_in_another_way(losses_of):
    expected = losses_of()
    for options, tolerance in OPTIONS.items():
        assert torch.allclose(losses_of(options), expected, rtol=tolerance), options


@on_horovod
def test_horovods_sum_is_the_mean_at_a_higher_rate_and_adasum_is_another_one(world, losses_of):
    summed = losses_of("op: sum", *SGD, "optim.lr=0.1")
    assert torch.allclose(summed, losses_of("", *SGD, f"optim.lr={0.1 * world.size}"), rtol=1e-4)
    adasum = losses_of("op: adasum", *SGD, "optim.lr=0.1")
    assert torch.isfinite(adasum).all()
    assert not torch.allclose(adasum[2:], summed[2:], rtol=1e-6)


@on_horovod
def test_a_ramp_changes_the_number_of_passes(world, engine_of):
    """2, then 6 micro-batches a rank and step: Horovod counts them, plain sums need not."""
    ramp = f"train.ramp={{start: {2 * world.size}, increment: {12 - 2 * world.size}, steps: 2}}"
    found = []
    for sync in ("horovod", "allreduce"):
        engine, _ = engine_of(f"sync={sync}", ramp)
        results = engine.run(0, 4)
        assert [result.micro_batches for result in results] == [2, 2, 12 // world.size, 12 // world.size]
        found.append(torch.tensor([float(result.grad_norm) for result in results]))
    assert torch.allclose(*found, rtol=1e-5)


@in_any_world
def test_all_ranks_rewind_together(world, data_dir, tmp_path, monkeypatch):
    monkeypatch.setitem(LEARNERS, "gradient", Broken)
    often = ("train.micro_batch=1", "train.steps=8", "checkpoint.every=2", "log.every=2")
    options = (*often, "guard.nonfinite=rewind", "sync={kind: allreduce, overlap: false}")
    config = make_config(data_dir, tmp_path / "run", *options)
    assert set(world.gather(setup.train(config, world)["step"])) == {8}
    assert checkpoint.read_state(checkpoint.resolve(tmp_path / "run"))["engine"]["left_out"] in (12, 24)


@in_any_world
def test_a_flipped_bit_stops_the_job(world, engine_of, tmp_path):
    engine, corpora = engine_of("train.digest_every=4", "train.eval_every=100")
    name, parameter = list(engine.model.named_parameters())[3]
    engine.run(0, 2)
    if world.rank == 1:
        parameter.detach().view(torch.int32).view(-1)[5] ^= 1 << 3
    who = "rank 1 differs" if world.size > 2 else "ranks 0 and 1 differ"
    with (
        RunLog(engine.config.log, tmp_path, world, step=0) as run_log,
        Progress("train", 20, "steps", world) as progress,
    ):
        loop = Loop(engine, corpora, None, run_log, StopFlag(tmp_path, world, BatchJob()), 0.0)
        with pytest.raises(UserError, match="^step 4: ") as caught:
            loop.run(2, progress)
    assert caught.value.on_all_ranks
    assert name in str(caught.value)
    assert who in str(caught.value)


class Flipped(GradientLearner):
    """A bit of a weight flips on rank 1, after the last step that is compared by itself."""

    is_over = False

    def _apply(self, step):
        found = super()._apply(step)
        Flipped.is_over = step >= 6
        if step == 6 and self.world.rank == 1:
            self.sync.parameters[0].detach().view(torch.int32).view(-1)[5] ^= 1 << 3
        return found


@in_any_world
@pytest.mark.parametrize("ends", ["at the last step", "asked to"])
def test_no_replica_that_differs_is_saved(world, data_dir, tmp_path, monkeypatch, ends):
    monkeypatch.setitem(LEARNERS, "gradient", Flipped)
    monkeypatch.setattr(Flipped, "is_over", False)
    last = 8 if ends == "at the last step" else 20
    words = (
        "train.micro_batch=1",
        "train.digest_every=5",
        "checkpoint.every=5",
        f"train.steps={last}",
        "train.eval_every=20",
    )
    config = make_config(data_dir, tmp_path / "run", *words, "sync={kind: allreduce, overlap: false}")
    if ends == "asked to":
        monkeypatch.setattr(StopFlag, "look", lambda self: Wish.SAVE if Flipped.is_over else Wish.NONE)
    with pytest.raises(UserError, match=r"differ.* \(checked every 5 steps and before each save\)"):
        setup.train(config, world)
    world.barrier()
    assert checkpoint.complete_steps(tmp_path / "run") == [5]


@in_any_world
def test_an_interval_is_the_same_on_all_ranks(world, engine_of):
    engine, _ = engine_of()
    meter = IntervalMeter(engine, 5)
    assert meter.next_end(0) == 1
    interval = meter.agree(0, 2, engine.run(0, 2), wish=Wish.STOP if world.rank == world.size - 1 else Wish.NONE)
    assert interval.wish == Wish.STOP
    assert len(interval.steps) == 2
    assert interval.tokens == 2 * 12 * 32
    assert 0 <= interval.live["exposed_comm"] < 1
    said = repr((interval.steps, interval.tokens_per_s, interval.live["straggler_spread"]))
    assert len(set(world.gather(said))) == 1
    ends = world.gather(meter.next_end(2))
    assert len(set(ends)) == 1
    assert ends[0] <= 5


@pytest.mark.on_ranks(3)
@on_horovod
def test_ranks_on_one_gpu_are_refused_alike_where_nccl_sums(world, data_dir, tmp_path, monkeypatch):
    """Before the first sum over a GPU, which would fail on each in NCCL's own words."""
    monkeypatch.setattr(device, "gpu_id", lambda _: "GPU-1")
    monkeypatch.setattr(world, "needs_own_gpu", True)
    with pytest.raises(UserError, match="ranks 0, 1(, 2)? share one GPU, which NCCL refuses") as failure:
        setup.build_learner(make_config(data_dir, tmp_path), world)
    assert failure.value.on_all_ranks
    world.barrier()  # nobody is lost
