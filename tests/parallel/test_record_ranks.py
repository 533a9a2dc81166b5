"""Labelled records at any number of ranks: the same shards, the same weights, the same figures to the last bit."""

import hashlib
import json
from pathlib import Path

import h5py
import pytest
from harness import files_of
from labelled import TAGGED, make_data, run_of, tagged, write_lines

from hvdlm.checkpoint import read_weights
from hvdlm.config import validate
from hvdlm.errors import UserError
from hvdlm.inference.evaluate import evaluate_checkpoint
from hvdlm.preprocessing.build import build
from hvdlm.preprocessing.plan import PreprocessConfig
from hvdlm.train.setup import train
from hvdlm.world.serial import SerialWorld

KINDS = {"records": (), "tagged": (tagged, TAGGED)}
TASKS = {
    "records": {"kind": "classify", "label": "label", "pair": "other", "dropout": 0.2},
    "tagged": {"kind": "tag", "dropout": 0.2},
}
MODEL = {"family": "lstm", "bidirectional": True, "layers": 1, "width": 16, "dropout": 0.2}


@pytest.fixture
def alone(made_once):
    """Data of each kind, made by one process; and a run over them."""

    def data(kind):
        return made_once(f"labelled-{kind}", lambda folder: make_data(folder, SerialWorld(), *KINDS[kind])) / "data"

    def run(kind, *words):
        name = hashlib.blake2b(repr((kind, words)).encode(), digest_size=8).hexdigest()
        return made_once(f"run-{name}", lambda folder: train(config(data(kind), folder, kind, *words), SerialWorld()))

    return data, run


def config(data, folder, kind, *words):
    words = ("sync=tree", "train.epochs=2", "train.micro_batch=4", *words)
    return run_of(data, folder, *words, model=MODEL, task=TASKS[kind])


@pytest.mark.on_ranks(2, 3)
@pytest.mark.parametrize("how", [{"shard_tokens": 500}, {"layout": "mpio"}], ids=["shards", "mpio"])
@pytest.mark.parametrize("kind", KINDS)
def test_shards_are_the_same_at_any_number_of_ranks(kind, how, world, tmp_path):
    if "layout" in how and not h5py.get_config().mpi:
        pytest.skip("h5py here is not built against parallel HDF5")
    made = make_data(tmp_path / "made", world, *KINDS[kind], **how)
    expected = make_data(tmp_path / "one", SerialWorld(), *KINDS[kind], **how) if world.rank == 0 else None
    if expected is not None:
        ours, theirs = files_of(made), files_of(expected)
        for name in ("provenance.json", "manifest.json"):  # they name the folders
            ours.pop(name), theirs.pop(name)
        assert ours == theirs and len(ours) >= 4
        fields = [json.loads((folder / "manifest.json").read_text())["fields"] for folder in (made, expected)]
        assert fields[0] == fields[1]


@pytest.mark.on_ranks(2, 3)
@pytest.mark.parametrize("words", [(), ("train.batch_tokens=100",)], ids=["equal batches", "budget"])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_the_same_at_any_number_of_ranks(kind, words, world, tmp_path, alone):
    """With a budget some micro-batches of the last steps are empty."""
    data, run = alone
    expected = read_weights(run(kind, *words) / "checkpoints" / "latest")
    train(config(data(kind), tmp_path / "run", kind, *words), world)
    found = read_weights(tmp_path / "run" / "checkpoints" / "latest")
    assert all((found[name] == tensor).all() for name, tensor in expected.items())


@pytest.mark.on_ranks(2, 3)
@pytest.mark.parametrize("kind", KINDS)
def test_figures_are_the_same_to_the_last_bit_and_each_record_counts_once(kind, world, tmp_path, alone):
    _, run = alone
    lines = tmp_path / "lines.jsonl"
    found = evaluate_checkpoint(run(kind), (), "test", world, predictions=lines)
    assert found["num_records"] == 61
    own = tmp_path / f"own{world.rank}.jsonl"
    expected = evaluate_checkpoint(run(kind), (), "test", SerialWorld(), predictions=own)
    assert json.dumps(found) == json.dumps(expected)
    world.broadcast(None)  # rank 0 has written
    assert lines.read_text() == own.read_text()


@pytest.mark.on_ranks(2)
def test_a_run_that_was_stopped_in_an_epoch_goes_on_bit_by_bit(world, tmp_path, alone):
    data, run = alone
    words = ("train.batch_tokens=100", "optim.schedule=constant")
    expected = read_weights(run("tagged", *words) / "checkpoints" / "latest")
    train(config(data("tagged"), tmp_path / "run", "tagged", *words, "train.steps=17"), world)
    train(config(data("tagged"), tmp_path / "run", "tagged", *words), world)
    found = read_weights(tmp_path / "run" / "checkpoints" / "latest")
    assert all((found[name] == tensor).all() for name, tensor in expected.items())


@pytest.mark.on_ranks(2)
def test_a_wrong_label_ends_all_ranks_with_one_line(world, tmp_path):
    good = [{"text": "a b", "label": "x"}, {"text": "c d", "label": "y"}]
    if world.rank == 0:
        write_lines(tmp_path / "train.jsonl", good)
        write_lines(tmp_path / "val.jsonl", [*good, {"text": "e", "label": "z"}])
    world.broadcast(None)
    inputs = {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "val")}
    values = {"input": inputs, "fields": {"text": "text", "label": "label"}, "output": str(tmp_path / "out")}
    with pytest.raises(UserError, match=r"val.jsonl:3: label: 'z' is no label of train \(x, y\)"):
        build(validate(PreprocessConfig, values, Path("test")), world)
    assert not (tmp_path / "out" / "manifest.json").exists()
