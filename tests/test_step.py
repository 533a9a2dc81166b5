"""One step: accumulation, clipping and precision do what their names say; one reduction a step."""

import functools
import json
import math

import numpy as np
import pytest
import torch
from broken import Broken
from harness import make_config, run_training
from torch.nn.utils import parameters_to_vector

from hvdlm import checkpoint
from hvdlm.data.manifest import read_manifest
from hvdlm.data.stream import TokenStream
from hvdlm.errors import UserError
from hvdlm.inference.evaluate import evaluate_checkpoint
from hvdlm.inference.load import load_checkpoint_model
from hvdlm.parallel.axes import axes_of
from hvdlm.session.metrics import read_metrics, read_run
from hvdlm.train.guard import Verdict
from hvdlm.train.learners import LEARNERS
from hvdlm.train.noise_scale import NoiseScale
from hvdlm.train.step import GradientLearner
from hvdlm.world.place import Place
from hvdlm.world.serial import SerialWorld
from hvdlm.world.threads import thread_worlds


@pytest.fixture
def make_engine(data_dir, tmp_path):
    source, manifest = TokenStream(data_dir, "train"), read_manifest(data_dir)

    def make(*overrides, world=None):
        config = make_config(data_dir, tmp_path, *overrides)
        return GradientLearner(
            config, source, manifest, axes_of(world or SerialWorld(), config.parallel), Place(0, 1, 1)
        )

    return make


def run(engine, first, end):
    """The steps [first, end): (mean loss, gradient norm) of each."""
    return [(float(r.sums[0] / r.sums[1]), float(r.grad_norm)) for r in engine.run(first, end)]


def weights(engine):
    return parameters_to_vector(engine.model.parameters()).detach()


def test_a_compiled_step_is_one_graph_with_the_loss_in_it(make_engine, monkeypatch):
    """On a GPU the float32 logits are then never written. Traced by torch.compile, and run as it stands."""
    graphs = []
    monkeypatch.setattr(
        torch, "compile", functools.partial(torch.compile, backend=lambda graph, _: graphs.append(graph) or graph)
    )
    plain, compiled = make_engine(), make_engine("train.compile=true")
    assert run(compiled, 0, 3) == run(plain, 0, 3)
    (graph,) = graphs
    assert "cross_entropy" in str(graph.graph)
    assert "sin" not in {node.target for node in graph.graph.nodes if node.op == "call_method"}  # of a rotation


class CountingWorld(SerialWorld):
    """The first of two ranks whose gradients are equal; counts what would travel."""

    size = 2

    def __init__(self, overlaps):
        self.summed, self.overlaps = [], overlaps

    def sum_(self, buffer):
        self.summed.append(buffer.numel() if torch.is_tensor(buffer) else buffer.size)
        buffer *= 2


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("dropout", [0, 0.3])
def test_accumulation_equals_one_large_micro_batch(make_engine, optimizer, dropout):
    """4 x 2 sequences give the numbers of 1 x 8, every dropped value included."""
    overrides = ("train.global_batch=8", f"optim.name={optimizer}", f"model.dropout={dropout}")
    engines = [make_engine(*overrides, f"train.micro_batch={micro}") for micro in (2, 8)]
    results = [run(engine, 0, 10) for engine in engines]
    assert np.array(results[0]) == pytest.approx(np.array(results[1]), rel=1e-4)
    assert torch.allclose(weights(engines[0]), weights(engines[1]), atol=1e-5)


@pytest.mark.parametrize("overlaps", [False, True])
def test_a_step_reduces_every_gradient_once_and_nothing_else(make_engine, overlaps):
    world = CountingWorld(overlaps)
    engine = make_engine("model.width=512", "sync=allreduce", world=world)
    for step in (0, 1):
        world.summed.clear()
        engine.run(step, step + 1)
        assert sum(world.summed) == sum(p.numel() for p in engine.model.parameters())
        assert len(world.summed) > 3  # large gradients alone, small ones in buckets


def test_ranks_with_equal_gradients_train_like_one(make_engine):
    """Overlapped or not, bucket by bucket: the mean of two equal gradients is the gradient."""
    common = ("model.width=512", "sync=allreduce")
    alone = make_engine(*common, "train.global_batch=4")
    expected = run(alone, 0, 3)
    for overlaps in (False, True):
        engine = make_engine(*common, "train.global_batch=8", world=CountingWorld(overlaps))
        engine.examples.places = alone.examples.places
        assert np.array(run(engine, 0, 3)) == pytest.approx(np.array(expected), rel=1e-5)


def test_training_learns(make_engine):
    losses = [loss for loss, _ in run(make_engine("train.steps=60"), 0, 60)]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_clipping_limits_the_update_but_not_the_reported_norm(make_engine):
    plain = ("optim.name=sgd", "optim.momentum=0", "optim.weight_decay=0", "optim.warmup_steps=0", "optim.lr=1")
    free, clipped = (make_engine(*plain, f"optim.clip={clip}") for clip in (0, 0.01))
    start = weights(free)
    ((_, norm),), ((_, same),) = run(free, 0, 1), run(clipped, 0, 1)
    assert norm == pytest.approx(same)
    assert float((weights(free) - start).norm()) == pytest.approx(norm, rel=1e-4)
    assert float((weights(clipped) - start).norm()) == pytest.approx(0.01, rel=1e-3)


def test_bf16_keeps_float32_weights_and_nearly_the_loss(make_engine):
    fp32, bf16 = (make_engine(f"train.precision={name}") for name in ("fp32", "bf16"))
    assert {p.dtype for p in bf16.model.parameters()} == {torch.float32}
    assert run(bf16, 0, 1)[0][0] == pytest.approx(run(fp32, 0, 1)[0][0], rel=1e-2)


def test_horovod_sync_needs_a_horovod_world(make_engine):
    with pytest.raises(UserError, match="sync: horovod needs world: horovod, this is serial"):
        make_engine("sync.kind=horovod")


def test_a_batch_that_does_not_divide_is_named(make_engine):
    with pytest.raises(UserError, match="global_batch 10 is not a multiple of micro_batch 2 x 2 ranks = 4; change"):
        make_engine("train.global_batch=10", world=thread_worlds(2)[0])


def test_dropout_follows_seed_and_step(make_engine):
    first, other, again = (make_engine("model.dropout=0.3") for _ in range(3))
    other.run(5, 6)  # other draws in between
    torch.manual_seed(99)
    assert run(first, 0, 3) == run(again, 0, 3)


def test_fp16_skips_an_overflow_and_lowers_the_scale(make_engine):
    engine = make_engine("train.precision=fp16")
    run(engine, 0, 1)
    assert engine.scaler.scale == 2.0**16
    start = weights(engine)
    engine.scaler.scale = 2.0**40  # no float16 gradient survives it
    assert [result.verdict for result in engine.run(1, 2)] == [Verdict.SKIP]
    assert engine.scaler.scale == 2.0**39
    assert torch.equal(weights(engine), start)
    engine.scaler.scale = 2.0**10
    assert [result.verdict for result in engine.run(2, 3)] == [Verdict.APPLY]
    assert not torch.equal(weights(engine), start)


def test_fp16_trains_like_fp32(make_engine):
    fp32, fp16 = (run(make_engine(f"train.precision={name}"), 0, 20) for name in ("fp32", "fp16"))
    assert fp16[-1][0] == pytest.approx(fp32[-1][0], rel=2e-2)
    assert fp16[3][1] == pytest.approx(fp32[3][1], rel=5e-2)  # the norm is that of the unscaled gradient


@pytest.fixture
def broken(data_dir, tmp_path, monkeypatch):
    """Train 10 steps of 12 samples; step 4 holds sample 50."""
    monkeypatch.setitem(LEARNERS, "gradient", Broken)

    def train(name, *overrides):
        overrides = ("train.steps=10", "checkpoint.every=2", "log.every=1", *overrides)
        summary = run_training(data_dir, tmp_path / name, *overrides)
        return summary, read_metrics(tmp_path / name / "metrics.jsonl", "train")

    return train


def test_a_nan_stops_the_run_before_it_is_saved(broken, tmp_path):
    with pytest.raises(UserError, match=r"step 5: gradient norm nan: the run has diverged; .* guard.nonfinite"):
        broken("stop")
    assert checkpoint.complete_steps(tmp_path / "stop") == [2, 4]


def test_a_nan_is_left_out(broken, tmp_path):
    summary, rows = broken("skip", "guard.nonfinite=skip")
    assert summary["step"] == 10
    assert [row["step"] for row in rows if row["grad_norm"] is None] == [5]
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert events_of(tmp_path / "skip") == [("started", 0), ("left out", 5), ("ended", 10)]


def events_of(run_dir):
    return [(event["event"], event["step"]) for event in read_run(run_dir / "metrics.jsonl")[1]]


def test_a_rewind_goes_back_and_passes_over_the_samples(broken, tmp_path):
    summary, rows = broken("rewind", "guard.nonfinite=rewind")
    assert summary["step"] == 10
    assert [row["step"] for row in rows] == list(range(1, 11))  # each step stands once
    assert all(row["grad_norm"] is not None for row in rows)
    state = checkpoint.read_state(checkpoint.resolve(tmp_path / "rewind"))
    assert state["engine"]["left_out"] == 12  # step 4's samples, from the checkpoint at step 4
    assert events_of(tmp_path / "rewind") == [("started", 0), ("rewound", 4), ("ended", 10)]


def test_rewinds_have_an_end(broken):
    with pytest.raises(UserError, match="cannot rewind: there is no checkpoint yet"):
        broken("none", "guard.nonfinite=rewind", "checkpoint.every=20")


def test_a_run_ends_by_tokens_epochs_patience_or_target(make_engine, data_dir, tmp_path):
    def train(name, *overrides):
        return run_training(data_dir, tmp_path / name, "train.eval_every=2", *overrides)

    assert train("tokens", "train.steps=null", f"train.tokens={12 * 32 * 7}")["step"] == 7
    assert train("patience", "train.patience=1", "optim.lr=1e-30")["step"] == 4
    by_target = train("target", "train.target_loss=5.5")
    assert by_target["step"] == 2
    assert "train.target_loss" in by_target["ending"]
    assert train("target", "train.target_loss=5.5") == by_target  # it has ended, and tells how
    epoch = train("epoch", "train.steps=null", "train.epochs=0.5", "train.global_batch=100", "train.micro_batch=50")
    engine = make_engine()
    assert epoch["step"] == math.ceil(engine.examples.batches.epoch_samples[0] / 2 / 100)


def test_the_mean_of_the_weights_is_evaluated_and_restored(data_dir, tmp_path):
    result = run_training(data_dir, tmp_path, "ema.decay=0.9", "optim.lr=1e-2")
    path = checkpoint.resolve(tmp_path)
    model = load_checkpoint_model(path, (), Place(0, 1, 1)).model
    name, parameter = next(iter(model.named_parameters()))
    assert torch.equal(parameter, checkpoint.load_tensors(path)[f"ema/{name}"])
    found = evaluate_checkpoint(tmp_path, (), "val", SerialWorld())
    assert found["loss"] == pytest.approx(result["val_loss"], rel=1e-5)


def test_the_noise_scale_of_pure_noise_is_large_and_of_none_small():
    scale = NoiseScale([])
    signal, noise = 4.0, 100.0  # squared norm of the true gradient, trace of the covariance
    for _ in range(50):
        found = scale.estimate(signal + noise / 2, signal + noise / 32, 2, 32)
    assert found == pytest.approx(noise / signal)
    assert NoiseScale([]).estimate(signal, signal, 2, 32) is None
    assert scale.estimate(1.0, 1.0, 4, 4) is None


def test_a_trace_holds_the_steps_that_were_asked_for(make_engine, tmp_path):
    engine = make_engine("log.trace=[2, 5]")
    run(engine, 0, 4)
    assert not list(tmp_path.glob("trace/*"))
    run(engine, 4, 8)
    events = json.loads((tmp_path / "trace" / "rank0.json").read_text())["traceEvents"]
    names = [event["name"] for event in events if event.get("cat") == "user_annotation"]
    assert names.count("hvdlm: forward and backward") == names.count("hvdlm: clip and update") == 3
    assert {"aten::addmm", "aten::mm"} & {event["name"] for event in events}


def test_a_trace_that_runs_past_the_end_is_written_at_the_end(make_engine, tmp_path):
    engine = make_engine("log.trace=[2, 50]")
    run(engine, 0, 4)
    engine.close()
    assert json.loads((tmp_path / "trace" / "rank0.json").read_text())["traceEvents"]
