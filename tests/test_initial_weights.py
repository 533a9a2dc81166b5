"""A new run begins with another one's weights, bit for bit, or says in one line why it cannot."""

import shutil

import pytest
import torch
import yaml
from harness import make_config, make_text, preprocess, run_training
from saved import rewrite, tensors_in

from hvdlm import checkpoint
from hvdlm.errors import UserError
from hvdlm.train.initial_weights import begin_with, pinned
from hvdlm.train.setup import build_learner, train
from hvdlm.world.serial import SerialWorld


@pytest.fixture(scope="module")
def source(data_dir, tmp_path_factory):
    """A run of 20 steps with a running mean of its weights, and checkpoints of steps 10 and 20."""
    folder = tmp_path_factory.mktemp("source") / "run"
    run_training(data_dir, folder, "ema.decay=0.9", "optim.lr=1e-2")
    return folder


def begun(data_dir, tmp_path, source, *overrides):
    """(engine, resolved config) of a new run, before its first step."""
    config, path = pinned(make_config(data_dir, tmp_path / "new", f"init.from={source}", *overrides))
    engine, corpora = build_learner(config, SerialWorld())
    begin_with(path, engine, corpora.manifest.tokenizer_digest)
    return engine, config


def same(engine, tensors, prefix=""):
    return all(torch.equal(p, tensors[prefix + name]) for name, p in engine.model.named_parameters())


@pytest.mark.parametrize(
    ("overrides", "holds"),
    [
        ((), "ema/"),
        (("init.ema=false",), ""),
        (("init.optimizer=true",), ""),
        (("init.optimizer=true", "init.ema=true"), "ema/"),
    ],
)
def test_the_weights_before_the_first_step_are_the_sources(data_dir, tmp_path, source, overrides, holds):
    changed = ("seed=9", "optim.lr=1e-4", "data.seq_len=16", "train.global_batch=4", "model.dropout=0.1")
    engine, config = begun(data_dir, tmp_path, source, *overrides, *changed)
    path = source / "checkpoints" / "step_00000020"
    tensors = {**checkpoint.read_weights(path), **checkpoint.load_tensors(path)}
    assert same(engine, tensors, holds)
    assert not same(engine, tensors, "" if holds else "ema/")
    state = engine.sync.optimizer.state
    first = next(engine.model.named_parameters())
    if config.init.optimizer:
        moments = tensors_in(path, "optimizer/")
        assert torch.equal(state[first[1]]["exp_avg"], moments[f"{first[0]}/exp_avg"])
    else:
        assert not state
    assert engine.val_losses == []


@pytest.mark.parametrize("place", ["checkpoints/latest", "checkpoints/step_00000010", "step"])
def test_a_checkpoint_of_the_run_can_be_named(data_dir, tmp_path, source, place):
    named = (source, "init.step=10") if place == "step" else (source / place,)
    _, config = begun(data_dir, tmp_path, *named)
    step = 20 if place.endswith("latest") else 10
    state = checkpoint.read_state(source / "checkpoints" / f"step_{step:08d}")
    assert (config.init.step, config.init.digest) == (step, checkpoint.weights_digest(state))


def test_training_on_other_data_goes_on_from_what_was_learnt(data_dir, tmp_path):
    """Half the way again from the weights is further than from nothing; the new run has its own steps."""
    (tmp_path / "text").mkdir()
    for number in range(20):
        (tmp_path / "text" / f"{number}.txt").write_text(make_text(500 + number, 300), encoding="utf-8")
    preprocess(tmp_path / "text", tmp_path / "other")
    run_training(data_dir, tmp_path / "source", "optim.lr=1e-2", "train.steps=40")
    options = ("optim.lr=5e-3", "train.steps=10")
    scratch = run_training(tmp_path / "other", tmp_path / "scratch", *options)
    tuned = run_training(tmp_path / "other", tmp_path / "tuned", *options, f"init.from={tmp_path / 'source'}")
    assert tuned["step"] == 10
    assert tuned["val_loss"] < scratch["val_loss"] - 0.3


def test_a_run_remembers_what_it_began_with_and_resumes_without_it(data_dir, tmp_path, source):
    shutil.copytree(source, tmp_path / "source")
    options = ("train.steps=4", "checkpoint.every=4")
    begin = (*options, f"init.from={tmp_path / 'source'}")
    run_training(data_dir, tmp_path / "new", *begin)
    noted = yaml.safe_load((tmp_path / "new" / "config.yaml").read_text())["init"]
    digest = checkpoint.weights_digest(checkpoint.read_state(source / "checkpoints" / "step_00000020"))
    assert (noted["from"], noted["step"], noted["digest"]) == (str(tmp_path / "source"), 20, digest)
    shutil.rmtree(tmp_path / "source")
    for words in (begin, options):  # named again, or not
        assert run_training(data_dir, tmp_path / "new", *words, "train.steps=8")["step"] == 8
        assert yaml.safe_load((tmp_path / "new" / "config.yaml").read_text())["init"] == noted
    (tmp_path / "new" / "checkpoints" / "step_00000008" / "state.json").write_text("{")
    moved = (*options, f"init.from={source}")  # the same weights in another place
    assert run_training(data_dir, tmp_path / "new", *moved, "train.steps=12")["step"] == 12
    run_training(data_dir, tmp_path / "fresh", "train.steps=2")
    with pytest.raises(UserError, match=r"was started with other settings \(init.from: .*source -> .*fresh\); set"):
        run_training(data_dir, tmp_path / "new", *options, f"init.from={tmp_path / 'fresh'}", "train.steps=16")
    with pytest.raises(UserError, match=r"other settings \(init.from: None -> .*; init.optimizer: None -> False\)"):
        run_training(data_dir, tmp_path / "fresh", "train.steps=4", f"init.from={source}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("model.width=64", "model.layers=1"),
            "model.layers is 2 there and 1 here; model.width is 32 there and 64 here",
        ),
        (("model.heads=4",), "model.heads is 2 there and 4 here"),
        (("model.tie_embeddings=false",), "model.tie_embeddings is True there and False here"),
        (("model={family: lstm, width: 32}",), "model.family is transformer there and lstm here"),
        (("init.optimizer=true", "optim.name=sgd"), "has the state of optim.name: adamw, this run's is sgd"),
        (("init.step=15",), "has no checkpoint of step 15; it has 10, 20"),
        (("init.digest=abc",), "init.digest: abc, but the weights of"),
    ],
)
def test_what_does_not_fit_is_one_line_and_leaves_no_run(data_dir, tmp_path, source, overrides, message):
    with pytest.raises(UserError, match="^init[.]") as caught:
        run_training(data_dir, tmp_path / "new", f"init.from={source}", *overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_a_source_of_another_tokenizer_is_refused(corpus, tmp_path, source):
    preprocess(corpus, tmp_path / "bpe", tokenizer={"kind": "bpe", "vocab_size": 300})
    with pytest.raises(UserError, match=r"trained with tokenizer \w+, the data were made with \w+; preprocess"):
        run_training(tmp_path / "bpe", tmp_path / "new", f"init.from={source}")


def test_a_run_cannot_begin_with_itself(data_dir, tmp_path, source):
    shutil.copytree(source, tmp_path / "run", symlinks=True)
    for own in (tmp_path / "run", tmp_path / "run/checkpoints/latest", tmp_path / "else/../run"):
        (tmp_path / "else").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=r"is of this run itself, which goes on from its newest checkpoint"):
            train(make_config(data_dir, tmp_path / "run", f"init.from={own}", "ema.decay=0.9"), SerialWorld())
    inside = tmp_path / "run" / "pretrained"
    shutil.copytree(source, inside)
    assert pinned(make_config(data_dir, tmp_path / "other", f"init.from={inside}"))[1] is not None


@pytest.mark.parametrize(("what", "message"), [("nowhere", "there is no such folder"), ("data", "no complete check")])
def test_a_folder_that_is_no_run_is_named(data_dir, tmp_path, what, message):
    place = data_dir if what == "data" else tmp_path / what
    with pytest.raises(UserError, match=rf"^init.from: {place}: .*{message}"):
        pinned(make_config(data_dir, tmp_path / "new", f"init.from={place}"))


@pytest.mark.parametrize(("file", "key"), [("model", "norm.weight"), ("optimizer", "norm.weight/exp_avg")])
def test_weights_or_moments_that_are_not_finite_are_refused(data_dir, tmp_path, source, file, key):
    shutil.copytree(source, tmp_path / "broken", symlinks=True)
    path = tmp_path / "broken" / "checkpoints" / "step_00000020"

    def poison(tensors):
        tensors[f"{file}/{key}"][0] = float("nan")

    rewrite(path, poison)
    with pytest.raises(
        UserError, match=r"norm\.weight.* (is not finite; use another|holds inf or nan; take an earlier)"
    ):
        begun(data_dir, tmp_path, path, "init.optimizer=true")
