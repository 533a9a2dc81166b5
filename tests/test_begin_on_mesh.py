"""Ranks that share a model begin with another one's weights as one process does, and train to what it does."""

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
    train(classifier(data, folder / "run", "task.label=label"), SerialWorld())
    return data, folder / "run"


def classifier(data, run_dir, *overrides):
    return run_of(
        data,
        run_dir,
        "train.epochs=null",
        "train.steps=2",
        "model.layers=4",
        "data.seq_len=16",
        "sync=tree",
        *overrides,
    )


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


@pytest.mark.parametrize(
    ("size", "parallel", "words"),
    [
        *((size, parallel, words) for size, parallel in MESHES for words in ("init.ema=true", "init.optimizer=true")),
        *((size, parallel, "lora={rank: 2}") for size, parallel in MESHES if "tensor" not in parallel),
    ],
)
def test_a_mesh_begins_with_a_run_as_one_process(data_dir, tmp_path, source, size, parallel, words):
    make = partial(make_config, data_dir, tmp_path / "new", MODEL, "sync=tree", f"init.from={source}", words)
    check_same(lambda *more: make(*more), size, parallel)


@pytest.mark.parametrize(("size", "parallel"), MESHES)
def test_a_head_that_begins_anew_is_that_of_one_process(labelled, tmp_path, size, parallel):
    data, run = labelled
    check_same(lambda *more: classifier(data, tmp_path, "task.label=score", f"init.from={run}", *more), size, parallel)


@pytest.mark.parametrize(("size", "parallel"), [(2, "pipeline: 2"), (2, "tensor: 2"), (4, "tensor: 2, pipeline: 2")])
@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_a_mesh_begins_with_a_published_model_as_one_process(kind, corpus, tmp_path, size, parallel):
    """BERT's mask lies behind our vocabulary, in the part of the last rank.

    Of keys' biases, on which nothing depends, Adam makes steps of mere rounding.
    """
    texts = [path.read_text() for path in sorted(corpus.iterdir())]
    hf_folder(kind, texts, tmp_path / "hf")
    preprocess(corpus, tmp_path / "data", tokenizer={"path": str(tmp_path / "hf" / "tokenizer.json")})
    shape = {"family": "transformer", **SHAPES[kind]}
    values = {**run_values(tmp_path / "data", tmp_path / "run"), "sync": "tree", "model": shape}
    values |= {"init": {"from": str(tmp_path / "hf")}, "optim": {"name": "sgd", "lr": 0.1}}
    check_same(lambda *more: validate(RunConfig, values, "test", more), size, parallel)


def test_what_does_not_fit_is_told_as_by_one_process(labelled, tmp_path):
    """By the first stage too, which has neither the head nor the last layer."""
    data, run = labelled
    for words, told in (
        (("freeze=['^head']",), "head.out.weight, head.out.bias would begin anew and never learn"),
        (("model.layers=3",), "model.layers is 4 there and 3 here"),
        (("init.optimizer=true",), "has the state of another head"),
    ):
        make = partial(classifier, data, tmp_path, "task.label=score", f"init.from={run}", *words)
        for size, parallel in ((1, "pipeline: 1"), (2, "pipeline: 2"), (2, "tensor: 2")):
            config, path = pinned(make(f"parallel={{{parallel}}}"))
            with pytest.raises(UserError, match=told):
                trained(config, size, 0, path)
