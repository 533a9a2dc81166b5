"""On a GPU the numbers are those of the CPU, each run gives the same bits where it was asked to, and copies overlap.

Skipped where there is no GPU; `scripts/gpu_check.sh` runs these on a node that has one.
"""

import json
from pathlib import Path

import pytest
import torch
from harness import make_config, run_training

from hvdlm import checkpoint
from hvdlm.data.manifest import read_manifest
from hvdlm.data.stream import TokenStream
from hvdlm.errors import UserError, lack_of_memory
from hvdlm.inference.evaluate import evaluate_checkpoint
from hvdlm.inference.generate import Sampling, Texts, continue_text
from hvdlm.session.metrics import read_metrics
from hvdlm.train.replicas import tensor_digests
from hvdlm.train.setup import train
from hvdlm.train.step import GradientLearner
from hvdlm.world.place import Place
from hvdlm.world.serial import SerialWorld

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    # Said once by torch where it has no kernel that gives the same bits each time, and of fp32 without TF32.
    pytest.mark.filterwarnings("default::UserWarning"),
    pytest.mark.filterwarnings("default::FutureWarning"),
]
GOLDEN = json.loads((Path(__file__).parent / "golden" / "losses.json").read_text())
LSTM = ("model={family: lstm, layers: 2, width: 32}", "optim={name: sgd, lr: 0.5, warmup_steps: 5}")
SAME_BITS = "train.deterministic=true"


def losses(run_dir, split="train"):
    return [row["loss"] for row in read_metrics(run_dir / "metrics.jsonl", split)]


def saved_bits(run_dir):
    """Digest of each file of the newest checkpoint."""
    state = json.loads((checkpoint.resolve(run_dir) / "state.json").read_text())
    return {name: facts["sha256"] for name, facts in state["files"].items()}


@pytest.fixture
def run(data_dir, tmp_path):
    """Train 20 steps on the GPU in a folder of its own; returns the folder."""

    def run(name, *overrides):
        run_training(data_dir, tmp_path / name, "train.device=cuda", *overrides)
        return tmp_path / name

    return run


@pytest.mark.parametrize("choice", ["train.compile=false", "train.compile=true", "model.activation_checkpointing=true"])
def test_losses_in_float32_are_those_of_the_cpu(run, choice):
    assert_golden(run("run", choice), "transformer")


def test_losses_of_a_recurrent_model_are_those_of_the_cpu(run):
    """Without TF32, which cuDNN takes by itself."""
    assert_golden(run("run", *LSTM), "lstm")


def assert_golden(run_dir, family):
    for split in ("train", "val"):
        assert losses(run_dir, split) == pytest.approx(GOLDEN[family][split], rel=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("compiled", ["false", "true"])
def test_half_precision_stays_near_them(run, precision, compiled):
    found = losses(run("run", f"train.precision={precision}", f"train.compile={compiled}"))
    assert found == pytest.approx(GOLDEN["transformer"]["train"], rel=2e-2)


def test_draws_are_those_of_the_cpu(run, data_dir, tmp_path):
    """Dropout, noise on the inputs, smoothing, a running mean."""
    choices = ("model.dropout=0.2", "noise.word_dropout=0.1", "objective.label_smoothing=0.1", "ema.decay=0.9")
    run_training(data_dir, tmp_path / "cpu", "train.device=cpu", *choices)
    assert losses(run("gpu", *choices)) == pytest.approx(losses(tmp_path / "cpu"), rel=1e-4)


@pytest.mark.parametrize(
    "choices",
    [(), ("train.precision=bf16",), ("train.precision=fp16",), ("train.precision=bf16", "train.compile=true"), LSTM],
    ids=["fp32", "bf16", "fp16", "bf16-compiled", "lstm"],
)
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(run, choices):
    whole = saved_bits(run("whole", SAME_BITS, *choices))
    run("parts", SAME_BITS, "train.steps=20", "train.minutes=1e-9", "checkpoint.every=1", *choices)  # ends at once
    assert saved_bits(run("parts", SAME_BITS, *choices)) == whole


def test_a_run_goes_on_from_the_gpu_to_the_cpu(run, data_dir, tmp_path):
    run("run", "train.minutes=1e-9")
    run_training(data_dir, tmp_path / "run", "train.device=cpu")
    assert losses(tmp_path / "run") == pytest.approx(GOLDEN["transformer"]["train"], rel=1e-4)


def test_evaluation_and_text_are_those_of_the_cpu(run):
    found = run("run")
    on_gpu, on_cpu = (
        (
            evaluate_checkpoint(found, (f"train.device={device}",), "val", SerialWorld())["loss"],
            "".join(continue_text(found, (f"train.device={device}",), "e", Texts(Sampling(temperature=0), 20))),
        )
        for device in ("cuda", "cpu")
    )
    assert on_gpu[0] == pytest.approx(on_cpu[0], rel=1e-5)
    assert on_gpu[1] == on_cpu[1]


def test_digests_are_those_of_the_cpu(run):
    weights = checkpoint.read_weights(checkpoint.resolve(run("run")))
    saved = torch.nn.ParameterDict({name.replace(".", "_"): tensor for name, tensor in weights.items()})
    assert tensor_digests(saved.to("cuda")) == tensor_digests(saved.to("cpu"))


@pytest.fixture
def learner(data_dir, tmp_path):
    config = make_config(data_dir, tmp_path, "train.device=cuda", "log.trace=[1,3]")
    return GradientLearner(
        config, TokenStream(data_dir, "train"), read_manifest(data_dir), SerialWorld(), Place(0, 1, 1)
    )


def test_batches_come_from_pinned_memory_and_a_timed_step_is_whole(learner):
    assert learner.examples.read(0, 0, 0).ids.is_pinned()
    learner.is_timed = True
    learner.run(0, 2)
    assert torch.cuda.current_stream().query()  # nothing is under way
    learner.close()


def test_a_trace_holds_what_the_gpu_did(learner, tmp_path):
    learner.run(0, 4)
    learner.close()
    events = json.loads((tmp_path / "trace" / "rank0.json").read_text())["traceEvents"]
    assert sum(event.get("cat") == "kernel" for event in events) > 20


def test_a_lack_of_memory_is_one_line(data_dir, tmp_path):
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.005)
    try:
        with pytest.raises(torch.OutOfMemoryError) as failure:
            big = ("train.micro_batch=4096", "train.global_batch=4096", "data.seq_len=128")
            train(make_config(data_dir, tmp_path / "run", "train.device=cuda", *big), SerialWorld())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "train.micro_batch" in str(lack_of_memory(failure.value))


one_gpu = pytest.mark.skipif(torch.cuda.device_count() != 1, reason="not one GPU")


@one_gpu
@pytest.mark.on_ranks(2, kind="horovod")
def test_two_ranks_of_nccl_on_one_gpu_are_refused_in_one_line(world, data_dir, tmp_path):
    if not world.needs_own_gpu:
        pytest.skip("this Horovod has no NCCL")
    with pytest.raises(UserError, match="ranks 0, 1 share one GPU, which NCCL refuses; start one rank a GPU"):
        train(make_config(data_dir, tmp_path, "train.device=cuda"), world)


@one_gpu
@pytest.mark.on_ranks(1, 2)
@pytest.mark.on_ranks(1, kind="horovod")
def test_ranks_train_to_the_same_losses(world, data_dir, tmp_path):
    """Over MPI two may share a GPU."""
    train(make_config(data_dir, tmp_path / "run", "train.device=cuda"), world)
    world.barrier()
    assert losses(tmp_path / "run") == pytest.approx(GOLDEN["transformer"]["train"], rel=1e-4)


SHARED = ["pipeline: 2", "pipeline: 2, schedule: zero_bubble", "tensor: 2", "tensor: 2, sequence: true", "zero: 1"]


@pytest.mark.on_ranks(2)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("parallel", SHARED)
def test_ranks_that_share_a_model_train_to_the_same_losses(world, data_dir, tmp_path, parallel, precision):
    """Embedding and head are one weight, which two stages have; the steps but for the first go on from a checkpoint."""
    choices = "train.device=cuda", f"parallel={{{parallel}}}", f"train.precision={precision}", "ema.decay=0.9"
    train(make_config(data_dir, tmp_path / "run", *choices, "train.minutes=1e-9"), world)  # ends at once
    world.barrier()
    train(make_config(data_dir, tmp_path / "run", *choices), world)
    world.barrier()
    rel = 1e-4 if precision == "fp32" else 2e-2
    assert losses(tmp_path / "run") == pytest.approx(GOLDEN["transformer"]["train"], rel=rel)
