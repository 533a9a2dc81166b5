"""The numbers of a run do not depend on who computes them: worlds, rank counts, accumulation, interruption."""

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from harness import HVDLM, make_config, run_ranks, run_values, write_config

from hvdlm import checkpoint
from hvdlm.config import validate
from hvdlm.errors import UserError
from hvdlm.inference.evaluate import evaluate_checkpoint
from hvdlm.session.metrics import read_metrics
from hvdlm.train import setup
from hvdlm.train.config import RunConfig
from hvdlm.world.serial import SerialWorld

GOLDEN = Path(__file__).parent.parent / "golden" / "losses.json"
LSTM = {
    "model": {"family": "lstm", "layers": 2, "width": 32},
    "optim": {"name": "sgd", "lr": 0.5, "warmup_steps": 5},
}
MODELS = {
    "transformer": {},
    "lstm": LSTM,
    **{
        family: {"model": {"family": family, "layers": 2, "width": 16, "dropout": 0.1, "embed_word_dropout": 0.1}}
        for family in ("rnn", "gru", "mingru")
    },
    "conv": {"model": {"family": "conv", "layers": 6, "width": 16, "dropout": 0.1}},  # a state of 12 tensors
}
GOLDEN_FAMILIES = ("transformer", "lstm")
on_two = pytest.mark.on_ranks(2)
on_three = pytest.mark.on_ranks(3)
on_two_of_horovod = pytest.mark.on_ranks(2, kind="horovod")
on_three_of_horovod = pytest.mark.on_ranks(3, kind="horovod")


def config_of(data, run_dir, *overrides, family="transformer"):
    return validate(RunConfig, {**run_values(data, run_dir), **MODELS[family]}, Path("test"), overrides)


@pytest.fixture
def alone(data_dir, made_once):
    """The folder of a run of one process; each is made once, for all tests and ranks that ask for it."""

    def alone(*overrides, family="transformer"):
        name = hashlib.blake2b(repr((family, overrides)).encode(), digest_size=8).hexdigest()
        return made_once(
            f"alone-{name}",
            lambda folder: setup.train(config_of(data_dir, folder, *overrides, family=family), SerialWorld()),
        )

    return alone


@pytest.fixture
def train(world, data_dir, tmp_path):
    """Train in a folder of its own, with all ranks or with those of another world; returns the folder."""

    def train(name, *overrides, family="transformer", by=world):
        if by is not None:
            setup.train(config_of(data_dir, tmp_path / name, *overrides, family=family), by)
        world.barrier()  # rank 0 has written all
        return tmp_path / name

    return train


@pytest.fixture
def forget(world):
    """Remove checkpoints of a run, as if it was killed before them, with rows of later steps in the log."""

    def forget(run_dir, *steps):
        world.on_root(lambda: [shutil.rmtree(run_dir / "checkpoints" / f"step_{step:08d}") for step in steps])

    return forget


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
    saved = checkpoint.read_weights(checkpoint.resolve(run_dir))
    return torch.cat([tensor.flatten() for tensor in saved.values()])


def weights(run_dir):
    files = json.loads((checkpoint.resolve(run_dir) / "state.json").read_text())["files"]
    return {name: facts["sha256"] for name, facts in files.items()}


def assert_golden(found, family):
    golden = json.loads(GOLDEN.read_text())[family]
    for name, expected in golden.items():
        assert found[name] == pytest.approx(expected, rel=1e-5 if name != "grad_norm" else 1e-3), name


@pytest.mark.parametrize("family", GOLDEN_FAMILIES)
def test_losses_of_one_process_are_golden(alone, family, request):
    """20 steps with one global batch. Renew with: pytest tests/parallel/test_training_ranks.py --renew-golden"""
    found = losses(alone(family=family))
    assert len(found["train"]) == 20
    assert found["train"][-1] < found["train"][0] - 0.5
    if request.config.getoption("--renew-golden"):
        golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        GOLDEN.write_text(json.dumps({**golden, family: found}, indent=1) + "\n")
    assert_golden(found, family)


def assert_as_alone(run_dir, alone, family):
    found, expected = losses(run_dir), losses(alone(family=family))
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-5 if name != "grad_norm" else 1e-4), name
    assert torch.allclose(tensors(run_dir), tensors(alone(family=family)), rtol=1e-5, atol=1e-5)
    assert_golden(found, family)


@pytest.mark.on_ranks(1, 2, 3, 4)
@pytest.mark.on_ranks(1, 2, 3, kind="horovod")
def test_losses_are_equal_for_every_world_and_rank_count(train, world, alone):
    share = ("train.micro_batch=1",) if world.size == 4 else ()
    assert_as_alone(train("run", *share), alone, "transformer")


@on_two
@on_three_of_horovod
def test_losses_of_a_recurrent_model_are_equal_too(train, alone):
    assert_as_alone(train("run", family="lstm"), alone, "lstm")


@on_two
@pytest.mark.parametrize("family", ["rnn", "gru", "mingru", "conv"])
def test_other_families_train_as_one_process_over_streams_and_go_on(world, train, forget, alone, family):
    """Their carried states and draws of a step, in other micro-batches, and over an interruption."""
    options = ("data.order=contiguous", "train.steps=6", "train.eval_every=6", "checkpoint.every=3")
    options += ("model.weight_dropout=0.2",) if family in ("rnn", "gru") else ()
    run_dir = train("run", *options, "train.micro_batch=3", family=family)
    assert losses(run_dir)["train"] == pytest.approx(losses(alone(*options, family=family))["train"], rel=1e-5)
    before = world.on_root(lambda: weights(run_dir))
    forget(run_dir, 6)
    train("run", *options, "train.micro_batch=3", family=family)
    assert world.on_root(lambda: weights(run_dir)) == before


@on_two
@on_two_of_horovod
def test_accumulation_equals_one_large_micro_batch(train):
    """8 sequences a rank as 4 x 2 and as 1 x 8."""
    runs = [train(f"micro{micro}", "train.global_batch=16", f"train.micro_batch={micro}") for micro in (2, 8)]
    one, other = map(losses, runs)
    assert one["train"] == pytest.approx(other["train"], rel=1e-5)
    assert one["val"] == pytest.approx(other["val"], rel=1e-5)


@pytest.mark.on_ranks(1, 4, 8)
@on_two_of_horovod
def test_tree_trains_to_the_same_bits_on_any_number_of_ranks(train, alone):
    """Weights and optimizer state; 8 micro-batches on 1, 2, 4 and 8 ranks, with clipping and dropout."""
    options = ("sync=tree", "train.global_batch=16", "train.steps=6", "model.dropout=0.1", "optim.clip=0.5")
    expected, found = alone(*options), train("run", *options)
    assert weights(found) == weights(expected)
    assert losses(found)["grad_norm"] == losses(expected)["grad_norm"]


def state(run_dir):
    """Weights and the optimizer's state by key, whoever wrote which part."""
    opened = checkpoint.Checkpoint(checkpoint.resolve(run_dir))
    return {
        prefix + name: tensor for prefix in ("model/", "optimizer/") for name, tensor in opened.read(prefix).items()
    }


@on_three
@on_two_of_horovod
def test_ranks_that_share_the_optimizer_train_to_the_same_bits_and_go_on_without(world, train, forget, alone):
    options = ("sync=tree", "train.steps=6", "train.eval_every=6", "checkpoint.every=3", "optim.clip=0.5")
    expected, found = alone(*options), train("run", *options, "parallel.zero=1")

    def differing():
        one, other = state(expected), state(found)
        norms = losses(found)["grad_norm"] == losses(expected)["grad_norm"]
        return one.keys() ^ other.keys(), [key for key in one if not torch.equal(one[key], other[key])], norms

    for again in (["parallel.zero=1"], []):
        assert world.on_root(differing) == (set(), [], True)
        forget(found, 6)
        train("run", *options, *again)
    assert world.on_root(differing) == (set(), [], True)


@on_two_of_horovod
def test_horovod_sync_equals_allreduce_sync_over_horovod(train):
    one, other = (losses(train(kind, f"sync.kind={kind}")) for kind in ("horovod", "allreduce"))
    assert one["train"] == pytest.approx(other["train"], rel=1e-5)


def check_resume(train, forget, sync):
    options = ("checkpoint.every=5", "model.dropout=0.1", f"sync={sync}")
    whole = train("whole", *options)
    half = train("half", *options, "train.steps=20", "checkpoint.keep=9")
    forget(half, 10, 15, 20)
    train("half", *options)
    assert weights(half) == weights(whole)
    assert losses(half) == losses(whole)


@on_two_of_horovod
@on_three
def test_resume_equals_no_interruption_bit_for_bit(train, forget):
    check_resume(train, forget, "auto")


@on_two
@pytest.mark.parametrize(
    "sync",
    [
        "{kind: local_sgd, every: 4}",
        "{kind: diloco, every: 3}",
        "{kind: allreduce, compress: {name: topk, density: 0.1}}",
    ],
)
def test_resume_of_other_ways_to_combine(train, forget, sync):
    check_resume(train, forget, sync)


@on_three
def test_asynchronous_training_is_saved_and_goes_on_with_another_number_of_ranks(train, forget, pair):
    run_dir = train("async", "sync=async", "checkpoint.every=10", "checkpoint.keep=9")
    forget(run_dir, 20)
    train("async", "sync=async", "checkpoint.every=10", by=pair)
    rows = read_metrics(run_dir / "metrics.jsonl", "train")
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
    assert any("staleness_mean" in row for row in rows)


@on_three_of_horovod
def test_a_run_goes_on_with_another_number_of_ranks(train, forget, pair, alone):
    run_dir = train("part", "checkpoint.every=10", "checkpoint.keep=9")
    forget(run_dir, 20)
    train("part", by=pair)
    assert losses(run_dir)["train"] == pytest.approx(losses(alone())["train"], rel=1e-5)


@on_three
def test_dropout_does_not_depend_on_the_rank_count(train, alone):
    expected = losses(alone("model.dropout=0.3"))
    assert losses(train("run", "model.dropout=0.3"))["train"] == pytest.approx(expected["train"], rel=1e-5)


@on_three_of_horovod
def test_streams_carry_their_state_on_any_number_of_ranks_and_over_an_interruption(train, forget, pair, alone):
    """Truncated backpropagation through time: 12 streams, two epochs and more, in micro-batches of 1, 2 and 4."""
    options = ("data.order=contiguous", "model.dropout=0.2", "checkpoint.every=7", "checkpoint.keep=9")
    expected = losses(alone(*options, family="lstm"))["train"]
    assert expected != pytest.approx(losses(alone("model.dropout=0.2", family="lstm"))["train"], rel=1e-3)
    run_dir = train("three", *options, "train.micro_batch=4", family="lstm")
    assert losses(run_dir)["train"] == pytest.approx(expected, rel=1e-5)
    forget(run_dir, 14, 20)
    train("three", *options, "train.micro_batch=1", family="lstm", by=pair)
    assert losses(run_dir)["train"] == pytest.approx(expected, rel=1e-5)


@on_two_of_horovod
def test_bf16_trains_on_two_ranks(train):
    found = losses(train("bf16", "train.precision=bf16"))
    assert found["train"][-1] < found["train"][0] - 0.5


@pytest.mark.on_ranks(1, 2, 3)
def test_evaluation_is_the_same_on_any_number_of_ranks(world, alone):
    run_dir = alone()
    expected, found = (evaluate_checkpoint(run_dir, (), "val", by) for by in (SerialWorld(), world))
    assert found["num_tokens"] == expected["num_tokens"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert found["loss"] == pytest.approx(losses(run_dir)["val"][-1], rel=1e-6)
    assert found["bits_per_byte"] > 0


@pytest.mark.on_ranks(1, 2, 3)
def test_carried_evaluation_is_that_of_its_streams_on_any_number_of_ranks(world, alone):
    """Streams are shared among ranks; one is read by one rank, and 12 are what validation in training had."""
    run_dir = alone("data.order=contiguous", family="lstm")
    for streams in (1, 2, 12):
        expected, found = (
            evaluate_checkpoint(run_dir, (), "val", by, streams=streams) for by in (SerialWorld(), world)
        )
        assert found["num_tokens"] == expected["num_tokens"] == found["split_tokens"]
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert found["loss"] == pytest.approx(losses(run_dir)["val"][-1], rel=1e-6)


@on_three
@pytest.mark.parametrize("options", [(), ("data.order=contiguous",)], ids=["windows", "streams"])
def test_validation_on_a_part_is_the_same_on_any_number_of_ranks(train, alone, options):
    options = (*options, "train.eval_tokens=1000", "train.steps=10")
    found, expected = (
        read_metrics(run / "metrics.jsonl", "val")
        for run in (train("run", *options, family="lstm"), alone(*options, family="lstm"))
    )
    assert [row["num_tokens"] for row in found] == [row["num_tokens"] for row in expected]
    assert 900 < found[0]["num_tokens"] < found[0]["split_tokens"] / 2
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in expected], rel=1e-5)


@on_two
@on_two_of_horovod
def test_a_run_that_begins_with_other_weights_is_the_same_on_any_number_of_ranks(train, alone):
    options = (f"init.from={alone()}", "init.optimizer=true", "train.steps=6", "optim.lr=1e-3")
    found, expected = losses(train("run", *options)), losses(alone(*options))
    assert found["train"] == pytest.approx(expected["train"], rel=1e-5)
    assert found["train"][0] < losses(alone())["train"][0] - 0.5


@on_two
def test_a_run_that_has_ended_tells_its_figures_again_at_any_number_of_ranks(world, data_dir, tmp_path):
    config = config_of(data_dir, tmp_path / "run", "train.steps=10")
    first = setup.train(config, world)
    assert first["val_loss"] == first["best_val_loss"] == losses(tmp_path / "run")["val"][-1]
    assert first["tokens"] == 10 * 12 * 32
    assert setup.train(config, world) == first
    again = world.on_root(lambda: setup.train(config, SerialWorld()))
    assert {**again, "sync": first["sync"]} == first


WRONG = {
    "batch": ("train.global_batch=14", "global_batch 14 is not a multiple of micro_batch 2 x 2 ranks = 4"),
    "data": ("data.path=/nowhere", "/nowhere/manifest.json: there is none, so this is no finished data set"),
    "sync": ("sync.kind=horovod", "sync: horovod needs world: horovod"),
    "seq_len": ("data.seq_len=99999999", "fewer than one sequence of 99999999 + 1"),
}


@on_two
@pytest.mark.parametrize("case", WRONG)
def test_what_a_user_must_mend_is_raised_on_all_ranks(world, data_dir, tmp_path, case):
    override, message = WRONG[case]
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        setup.train(make_config(data_dir, tmp_path / "run", override), world)
    assert caught.value.on_all_ranks


def damage(data, part):
    """What is wrong then."""
    if part == "tokenizer":
        (data / "tokenizer.json").write_text('{"hvdlm": "byte", "vocab_size": 257, "eos_id": 256} \n')
        manifest = (data / "manifest.json").read_text()
        (data / "manifest.json").write_text(manifest.replace('"tokenizer_digest": "', '"tokenizer_digest": "0'))
        return "tokenizer.json: is tokenizer"
    path = data / f"{part}-00000.h5"
    path.write_bytes(path.read_bytes()[:-100])
    return f"{path.name}: has"


@on_two
@pytest.mark.parametrize("part", ["tokenizer", "train", "val"])
def test_data_that_does_not_fit_together_is_refused(world, data_dir, tmp_path, part):
    data = tmp_path / "data"
    message = world.on_root(lambda: damage(shutil.copytree(data_dir, data), part))
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        setup.train(make_config(data, tmp_path / "run"), world)
    assert caught.value.on_all_ranks


# --- jobs of their own: a launcher, exit codes


@pytest.mark.parametrize(
    ("override", "message"),
    [WRONG["batch"], ("train.stepz=3", "unknown key 'train.stepz'; did you mean 'train.steps'?")],
)
def test_what_a_user_must_mend_is_one_line_and_exit_2(job, data_dir, tmp_path, override, message):
    """Whether ranks find it together, or each for itself."""
    config = write_config(tmp_path / "config.yaml", run_values(data_dir, tmp_path / "run"))
    done = job(2, "train", config, override, code=2, timeout_s=30)
    lines = [line for line in done.stderr.splitlines() if "hvdlm: error:" in line]
    assert len(lines) == 1, done.stderr
    assert message in lines[0]
    assert "Traceback" not in done.stderr


def test_horovodrun_over_gloo_trains_the_same(alone, data_dir, tmp_path):
    config = write_config(tmp_path / "gloo.yaml", run_values(data_dir, tmp_path / "gloo"))
    horovodrun = Path(sys.executable).parent / "horovodrun"
    done = run_ranks(0, [horovodrun, "--gloo", "-np", "2", *HVDLM, "train", config])
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "gloo")["train"] == pytest.approx(losses(alone())["train"], rel=1e-5)


def test_generation_under_a_launcher_is_that_of_one_process(alone, job):
    run_dir = alone("train.steps=2")
    texts = [job(ranks, "generate", run_dir, "--prompt", "the ", "--max-tokens", "20").stdout for ranks in (0, 2)]
    assert texts[0] == texts[1]
    assert texts[0].startswith("the ")
