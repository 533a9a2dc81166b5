"""Ranks that share a model begin with another one's weights as one process does, and train to what it does."""

import json
from functools import partial

import pytest
import torch
from harness import make_config, preprocess, run_training, run_values
from labelled import make_data, run_of
from meshes import trained, whole
from test_begin_elsewhere import SHAPES, hf_folder

from hvdlm.config import validate
from hvdlm.errors import UserError
from hvdlm.train.config import RunConfig
from hvdlm.train.initial_weights import pinned
from hvdlm.train.setup import train
from hvdlm.world.serial import SerialWorld

MODEL = "model={family: transformer, layers: 4, width: 32, heads: 4}"
STEPS = 2
MESHES = [
    (2, "pipeline: 2"),
    (4, "pipeline: 2, zero: 1"),
    (2, "pipeline: 2, schedule: interleaved, chunks: 2"),
    (2, "tensor: 2"),
    (4, "tensor: 2, pipeline: 2, sequence: true"),
]


@pytest.fixture(autouse=True)
def made_late(monkeypatch):
    """As large weights are, where a rank has a part of a model."""
    monkeypatch.setattr("hvdlm.models.unmade.LARGE", 64)


@pytest.fixture(scope="module")
def source(data_dir, tmp_path_factory):
    """A run of some steps with a running mean."""
    folder = tmp_path_factory.mktemp("source") / "run"
    run_training(data_dir, folder, MODEL, "ema.decay=0.9", "optim.lr=1e-2", "train.steps=4", "train.eval_every=4")
    return folder


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """(labelled data, a run that classifies them)."""
    folder = tmp_path_factory.mktemp("labelled")
    data = make_data(folder, SerialWorld())
    train(classifier(data, folder / "run", "task.label=label", "train.steps=2"), SerialWorld())
    return data, folder / "run"


def classifier(data, run_dir, *overrides):
    return run_of(data, run_dir, "train.epochs=null", "model.layers=2", "data.seq_len=16", "sync=tree", *overrides)


def check_same(make, size, parallel):
    """A run that `make` gives the config of begins and trains on the mesh as by one process."""
    alone, path = pinned(make())
    (expected,) = trained(alone, 1, STEPS, path)
    found = trained(pinned(make(f"parallel={{{parallel}}}"))[0], size, STEPS, path)
    before = whole([each.before for each in found])
    assert before.keys() == expected.before.tensors.keys()
    for name, tensor in expected.before.tensors.items():
        assert torch.equal(before[name], tensor), name
    after = whole([each.after for each in found])
    if "tensor" in parallel:
        assert found[0].norms == pytest.approx(expected.norms, rel=1e-5)
        for name, tensor in expected.after.tensors.items():
            torch.testing.assert_close(after[name], tensor, rtol=1e-5, atol=1e-5)
        return
    assert found[0].norms == expected.norms
    assert [name for name, tensor in expected.after.tensors.items() if not torch.equal(after[name], tensor)] == []


@pytest.mark.parametrize(("size", "parallel"), MESHES)
@pytest.mark.parametrize("words", ["init.ema=false", "init.optimizer=true", "lora={rank: 2}"])
def test_a_mesh_begins_with_a_run_as_one_process(data_dir, tmp_path, source, size, parallel, words):
    if "lora" in words and "tensor" in parallel:
        pytest.skip("adapters lie on whole layers")
    make = partial(make_config, data_dir, tmp_path / "new", MODEL, "sync=tree", f"init.from={source}", words)
    check_same(lambda *more: make(*more), size, parallel)


@pytest.mark.parametrize(("size", "parallel"), MESHES)
def test_a_head_that_begins_anew_is_that_of_one_process(labelled, tmp_path, size, parallel):
    data, run = labelled
    if "chunks" in parallel:
        pytest.skip("of two layers")
    check_same(lambda *more: classifier(data, tmp_path, "task.label=topics", f"init.from={run}", *more), size, parallel)
