"""The numbers of a run do not depend on who computes them: worlds, rank counts, accumulation, interruption."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from harness import HVDLM, run_ranks, run_values, write_config
from safetensors.torch import load_file

from hvdlm import checkpoint
from hvdlm.config import validate
from hvdlm.session.metrics import read_metrics
from hvdlm.train import setup as stage
from hvdlm.train.config import RunConfig
from hvdlm.world.serial import SerialWorld

GOLDEN = Path(__file__).parent.parent / "golden" / "losses.json"
JOBS = [(0, "serial"), (1, "mpi"), (2, "mpi"), (3, "mpi"), (4, "mpi"), (1, "horovod"), (2, "horovod"),
        (3, "horovod")]  # fmt: skip
MODELS = {
    "transformer": {},
    "lstm": {
        "model": {"family": "lstm", "layers": 2, "width": 32},
        "optim": {"name": "sgd", "lr": 0.5, "warmup_steps": 5},
    },
}


@pytest.fixture(scope="module", params=MODELS)
def family(request):
    return request.param


@pytest.fixture
def train(job, data_dir, tmp_path):
    """Train in a folder of its own; returns the folder."""

    def train(name, ranks, world, *overrides, family="transformer"):
        run_dir = tmp_path / name
        values = {**run_values(data_dir, run_dir), **MODELS[family]}
        if ranks == 0:
            stage.train(validate(RunConfig, values, tmp_path, overrides), SerialWorld())
        else:
            share = ("train.micro_batch=1",) if ranks == 4 else ()
            job(ranks, "train", write_config(tmp_path / f"{name}.yaml", values), f"world={world}", *share, *overrides)
        return run_dir

    return train


def losses(run_dir):
    """{"train": [loss of each step], "val": [...], "grad_norm": [...]}"""
    rows = {split: read_metrics(run_dir / "metrics.jsonl", split) for split in ("train", "val")}
    return {
        "train": [row["loss"] for row in rows["train"]],
        "grad_norm": [row["grad_norm"] for row in rows["train"]],
        "val": [row["loss"] for row in rows["val"]],
    }


def tensors(run_dir):
    """All weights of the newest checkpoint as one vector."""
    return torch.cat(
        [tensor.flatten() for tensor in load_file(checkpoint.resolve(run_dir) / "model.safetensors").values()]
    )


def weights(run_dir):
    files = json.loads((checkpoint.resolve(run_dir) / "state.json").read_text())["files"]
    return {name: facts["sha256"] for name, facts in files.items()}


def test_losses_are_golden_and_equal_for_every_world_and_rank_count(train, family, request):
    """20 steps with one global batch. Renew with: pytest tests/parallel --renew-golden"""
    jobs = JOBS if family == "transformer" else [(0, "serial"), (2, "mpi"), (3, "horovod")]
    folders = {job: train(f"{job[1]}{job[0]}", *job, family=family) for job in jobs}
    found = {job: losses(folder) for job, folder in folders.items()}
    expected_weights = tensors(folders[0, "serial"])
    for job, folder in folders.items():
        assert torch.allclose(tensors(folder), expected_weights, rtol=1e-5, atol=1e-5), job
    serial = found[0, "serial"]
    assert len(serial["train"]) == 20
    assert serial["train"][-1] < serial["train"][0] - 0.5
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if request.config.getoption("--renew-golden"):
        GOLDEN.write_text(json.dumps({**golden, family: serial}, indent=1) + "\n")
        golden[family] = serial
    for job, values in found.items():
        for name, expected in serial.items():
            assert values[name] == pytest.approx(expected, rel=1e-5 if name != "grad_norm" else 1e-4), (job, name)
            assert values[name] == pytest.approx(golden[family][name], rel=1e-5 if name != "grad_norm" else 1e-3), (
                job,
                name,
            )


@pytest.mark.parametrize("world", ["mpi", "horovod"])
def test_accumulation_equals_one_large_micro_batch(train, world):
    """8 sequences a rank as 4 x 2 and as 1 x 8."""
    one, other = (
        losses(train(f"micro{micro}", 2, world, "train.global_batch=16", f"train.micro_batch={micro}"))
        for micro in (2, 8)
    )
    assert one["train"] == pytest.approx(other["train"], rel=1e-5)
    assert one["val"] == pytest.approx(other["val"], rel=1e-5)


def test_tree_trains_to_the_same_bits_on_any_number_of_ranks(train):
    """Weights and optimizer state; 8 micro-batches on 1, 2, 4 and 8 ranks, with clipping and dropout."""
    options = ("sync=tree", "train.global_batch=16", "train.micro_batch=2", "train.steps=6", "model.dropout=0.1",
               "optim.clip=0.5")  # fmt: skip
    serial = train("serial", 0, "serial", *options)
    for ranks, world in ((1, "mpi"), (2, "horovod"), (4, "mpi"), (8, "mpi")):
        found = train(f"{world}{ranks}", ranks, world, *options, *(("train.micro_batch=2",) if ranks == 4 else ()))
        assert weights(found) == weights(serial), (ranks, world)
        assert losses(found)["grad_norm"] == losses(serial)["grad_norm"]


def test_horovod_sync_equals_allreduce_sync_over_horovod(train):
    one, other = (losses(train(kind, 2, "horovod", f"sync.kind={kind}")) for kind in ("horovod", "allreduce"))
    assert one["train"] == pytest.approx(other["train"], rel=1e-5)


@pytest.mark.parametrize(
    ("ranks", "world", "sync"),
    [
        (2, "horovod", "auto"),
        (3, "mpi", "auto"),
        (2, "mpi", "{kind: local_sgd, every: 4}"),
        (2, "mpi", "{kind: diloco, every: 3}"),
        (2, "mpi", "{kind: allreduce, compress: {name: topk, density: 0.1}}"),
    ],
)
def test_resume_equals_no_interruption_bit_for_bit(train, ranks, world, sync):
    options = ("checkpoint.every=5", "model.dropout=0.1", f"sync={sync}")
    whole = train("whole", ranks, world, *options)
    half = train("half", ranks, world, *options, "train.steps=20", "checkpoint.keep=9")
    for step in (10, 15, 20):  # as if killed after step 5, with rows of later steps in the log
        shutil.rmtree(half / "checkpoints" / f"step_{step:08d}")
    resumed = train("half", ranks, world, *options)
    assert weights(resumed) == weights(whole)
    assert losses(resumed) == losses(whole)


def test_asynchronous_training_is_saved_and_goes_on_with_another_number_of_ranks(train):
    part = train("async", 3, "mpi", "sync=async", "checkpoint.every=10", "checkpoint.keep=9")
    shutil.rmtree(part / "checkpoints" / "step_00000020")
    resumed = train("async", 2, "mpi", "sync=async", "checkpoint.every=10")
    rows = read_metrics(resumed / "metrics.jsonl", "train")
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
    assert any("staleness_mean" in row for row in rows)


def test_horovodrun_over_gloo_trains_the_same(train, data_dir, tmp_path):
    expected = losses(train("serial", 0, "serial"))
    config = write_config(tmp_path / "gloo.yaml", run_values(data_dir, tmp_path / "gloo"))
    horovodrun = Path(sys.executable).parent / "horovodrun"
    done = run_ranks(0, [horovodrun, "--gloo", "-np", "2", *HVDLM, "train", config])
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "gloo")["train"] == pytest.approx(expected["train"], rel=1e-5)


def test_a_run_goes_on_with_another_number_of_ranks(train):
    whole = train("whole", 0, "serial")
    part = train("part", 3, "horovod", "checkpoint.every=10", "checkpoint.keep=9")
    shutil.rmtree(part / "checkpoints" / "step_00000020")
    resumed = train("part", 2, "mpi")
    assert losses(resumed)["train"] == pytest.approx(losses(whole)["train"], rel=1e-5)


def test_dropout_does_not_depend_on_the_rank_count(train):
    one, three = (
        losses(train(f"r{ranks}", ranks, world, "model.dropout=0.3")) for ranks, world in ((0, "serial"), (3, "mpi"))
    )
    assert one["train"] == pytest.approx(three["train"], rel=1e-5)


def test_streams_carry_their_state_on_any_number_of_ranks_and_over_an_interruption(train):
    """Truncated backpropagation through time: 12 streams, two epochs and more, in micro-batches of 1, 2 and 4."""
    options = ("data.order=contiguous", "model.dropout=0.2", "checkpoint.every=7", "checkpoint.keep=9")
    whole = train("serial", 0, "serial", *options, family="lstm")
    assert losses(whole)["train"] != pytest.approx(
        losses(train("random", 0, "serial", "model.dropout=0.2", family="lstm"))["train"], rel=1e-3
    )
    part = train("three", 3, "horovod", *options, "train.micro_batch=4", family="lstm")
    assert losses(part)["train"] == pytest.approx(losses(whole)["train"], rel=1e-5)
    for step in (14, 20):
        shutil.rmtree(part / "checkpoints" / f"step_{step:08d}")
    resumed = train("three", 2, "mpi", *options, "train.micro_batch=1", family="lstm")
    assert losses(resumed)["train"] == pytest.approx(losses(whole)["train"], rel=1e-5)


def test_bf16_trains_on_two_ranks(train):
    found = losses(train("bf16", 2, "horovod", "train.precision=bf16"))
    assert found["train"][-1] < found["train"][0] - 0.5


def test_evaluation_is_the_same_on_any_number_of_ranks(train, job):
    run_dir = train("run", 0, "serial")
    results = [json.loads(job(ranks, "eval", run_dir, "--json").stdout.splitlines()[-1]) for ranks in (0, 2, 3)]
    for result in results:
        assert result["num_tokens"] == results[0]["num_tokens"]
        assert result["loss"] == pytest.approx(results[0]["loss"], rel=1e-6)
        assert result["loss"] == pytest.approx(losses(run_dir)["val"][-1], rel=1e-6)
        assert result["bits_per_byte"] > 0


def test_generation_under_a_launcher_is_that_of_one_process(train, job):
    run_dir = train("run", 0, "serial", "train.steps=2")
    texts = [job(ranks, "generate", run_dir, "--prompt", "the ", "--max-tokens", "20").stdout for ranks in (0, 2)]
    assert texts[0] == texts[1]
    assert texts[0].startswith("the ")


BAD = {
    "batch": (("train.global_batch=14",), "global_batch 14 is not a multiple of micro_batch 2 x 2 ranks = 4"),
    "data": (("data.path=/nowhere",), "/nowhere/manifest.json: there is none, so this is no finished data set"),
    "sync": (("sync.kind=horovod", "world=mpi"), "sync: horovod needs world: horovod"),
    "serial": (("world=serial",), "the launcher started 2 processes but the serial world has 1"),
    "key": (("train.stepz=3",), "unknown key 'train.stepz'; did you mean 'steps'?"),
    "seq_len": (("data.seq_len=99999999",), "fewer than one sequence of 99999999 + 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_a_user_must_mend_is_one_line_and_exit_2(job, data_dir, tmp_path, case):
    overrides, message = BAD[case]
    config = write_config(tmp_path / "config.yaml", run_values(data_dir, tmp_path / "run"))
    done = job(2, "train", config, *overrides, code=2, timeout_s=30)
    lines = [line for line in done.stderr.splitlines() if "hvdlm: error:" in line]
    assert len(lines) == 1, done.stderr
    assert message in lines[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("damage", ["tokenizer", "train", "val"])
def test_data_that_does_not_fit_together_is_refused(job, data_dir, tmp_path, damage):
    shutil.copytree(data_dir, tmp_path / "data")
    if damage == "tokenizer":
        (tmp_path / "data" / "tokenizer.json").write_text('{"hvdlm": "byte", "vocab_size": 257, "eos_id": 256} \n')
        (tmp_path / "data" / "manifest.json").write_text(
            (tmp_path / "data" / "manifest.json").read_text().replace('"tokenizer_digest": "', '"tokenizer_digest": "0')
        )
        message = "tokenizer.json: is tokenizer"
    else:
        path = tmp_path / "data" / f"{damage}-00000.h5"
        path.write_bytes(path.read_bytes()[:-100])
        message = f"{path.name}: has"
    config = write_config(tmp_path / "config.yaml", run_values(tmp_path / "data", tmp_path / "run"))
    done = job(2, "train", config, code=2)
    assert done.stderr.count("hvdlm: error:") == 1
    assert message in done.stderr
