"""A run begins with the body of another run's model, or with a folder of Hugging Face's, whose model it then is."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from harness import make_config, preprocess, run_training, run_values
from labelled import WORDS, make_data
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import nn

from hvdlm.checkpoint import model_state, read_weights
from hvdlm.config import validate
from hvdlm.data.manifest import read_manifest
from hvdlm.data.records import Records
from hvdlm.errors import UserError
from hvdlm.exchange import exported
from hvdlm.exchange.tokenizer_files import encodes_alike
from hvdlm.inference.hf_files import export_hf
from hvdlm.models import Vocabulary, build_model
from hvdlm.models.transformer import TransformerConfig
from hvdlm.parallel.sharing import Whole
from hvdlm.tokenizer import load
from hvdlm.tokenizer.training import train_bpe, train_wordpiece
from hvdlm.train.config import RunConfig
from hvdlm.train.initial_weights import begin_with, pinned
from hvdlm.train.setup import build_learner, train
from hvdlm.world.serial import SerialWorld

TINY = ("train.steps=2", "train.eval_every=2")
SHAPES = {
    "gpt2": {
        "layers": 2,
        "heads": 2,
        "width": 32,
        "positions": {"kind": "learned", "max_seq_len": 40},
        "bias": True,
        "dropout": 0.1,
    },
    "llama": {"layers": 2, "heads": 2, "kv_heads": 1, "width": 32, "norm": "rmsnorm", "activation": "swiglu"},
    "bert": {"preset": "bert-tiny", "layers": 2, "width": 32, "heads": 2, "token_types": 2},
}
SHAPES["llama"]["tie_embeddings"] = False


@pytest.fixture(scope="module")
def texts(corpus):
    return [path.read_text() for path in sorted(corpus.iterdir())]


def hf_folder(kind, texts, folder, *, padding=3):
    """Random weights with rows that no id reaches, as published vocabularies are padded, and a tokenizer."""
    folder.mkdir()
    tokenizer = train_wordpiece(iter(texts), 200) if kind == "bert" else train_bpe(iter(texts), 300)
    content, size = json.loads(tokenizer.to_json()), tokenizer.vocab_size
    if kind == "bert":
        special = content["added_tokens"][0]
        names = ["[CLS]", "[SEP]", "[MASK]"]
        content["added_tokens"] += [{**special, "content": name, "id": size + n} for n, name in enumerate(names)]
        content["post_processor"] = {"type": "BertProcessing", "sep": ["[SEP]", size + 1], "cls": ["[CLS]", size]}
        size += 3
    (folder / "tokenizer.json").write_text(json.dumps(content, ensure_ascii=False))
    options = TransformerConfig.model_validate(SHAPES[kind])
    model = build_model(options, Vocabulary(size + padding, 1), 7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    found = exported(options, dict(model.named_parameters()), Vocabulary(size + padding, 1))
    (folder / "config.json").write_text(json.dumps(found.config))
    save_file(found.tensors, folder / "model.safetensors", {"format": "pt"})
    return model, size


def data_of(folder, corpus, tmp_path):
    preprocess(corpus, tmp_path / "data", tokenizer={"path": str(folder / "tokenizer.json")})
    return tmp_path / "data"


def values_of(data, run, folder, **changes):
    """A config that says nothing of the model."""
    values = {**run_values(data, run), "init": {"from": str(folder)}, **changes}
    if "model" not in changes:
        del values["model"]
    return values


def begun(values):
    config, path = pinned(validate(RunConfig, values, "test"))
    learner, corpora = build_learner(config, SerialWorld())
    begin_with(path, learner, corpora.manifest.tokenizer_digest)
    return learner


@pytest.mark.parametrize("kind", SHAPES)
def test_the_model_is_that_of_the_folder_and_so_are_its_logits(kind, corpus, texts, tmp_path):
    model, size = hf_folder(kind, texts, tmp_path / "hf")
    learner = begun(values_of(data_of(tmp_path / "hf", corpus, tmp_path), tmp_path / "run", tmp_path / "hf"))
    assert learner.config.model.layers == model.options.layers
    assert learner.config.task.kind == ("mlm" if kind == "bert" else "lm")
    if kind == "gpt2":
        assert learner.config.model.dropout == 0.1  # theirs, as everything
    ids = torch.randint(0, size, (2, 32))
    with torch.no_grad():
        ours, theirs = learner.model.logits(ids)[0], model.logits(ids)[0]
        assert torch.equal(ours[..., :size], theirs[..., :size])
        assert ours.shape[-1] == size + (kind == "bert")
        if kind == "bert":  # our mask, behind the vocabulary, is theirs, and not a row of the padding
            mask = size - 1
            assert torch.equal(ours[..., size], theirs[..., mask])
            seen = ids.clone()
            ids[:, 3], seen[:, 3] = size, mask
            assert torch.equal(learner.model.logits(ids)[0][..., :size], model.logits(seen)[0][..., :size])


def test_it_is_told_what_the_model_is_and_said_again_or_contradicted(corpus, texts, tmp_path):
    hf_folder("llama", texts, tmp_path / "hf")
    data = data_of(tmp_path / "hf", corpus, tmp_path)
    said = {"family": "transformer", "kv_heads": 1, "attention_dropout": 0.2}
    learner = begun(values_of(data, tmp_path / "run", tmp_path / "hf", model=said))
    assert (learner.config.model.norm, learner.config.model.attention_dropout) == ("rmsnorm", 0.2)
    without_family = validate(
        RunConfig, values_of(data, tmp_path / "run", tmp_path / "hf"), "test", ("model.dropout=0.3",)
    )
    assert (without_family.model.dropout, without_family.model.norm) == (0.3, "rmsnorm")
    for key, value, text in (("layers", 3, "2 there and 3 here"), ("norm_eps", 1e-6, "1e-05 there and 1e-06 here")):
        with pytest.raises(UserError, match=f"is of another model: model.{key} is {text}"):
            begun(values_of(data, tmp_path / "run", tmp_path / "hf", model={key: value}))
    with pytest.raises(UserError, match="model.family is transformer there and lstm here"):
        begun(values_of(data, tmp_path / "run", tmp_path / "hf", model={"family": "lstm"}))


OWN = {
    "transformer": {"layers": 3, "width": 24, "heads": 2, "norm": "rmsnorm", "dropout": 0.1},
    "lstm": {"layers": 1, "width": 24},
}


@pytest.mark.parametrize("family", OWN)
def test_of_a_run_too_the_model_is_taken_and_said_again_or_contradicted(family, data_dir, tmp_path):
    run_training(data_dir, tmp_path / "run", *TINY, "model=" + json.dumps({"family": family, **OWN[family]}))
    for place in (tmp_path / "run", tmp_path / "run" / "checkpoints" / "latest"):
        learner = begun(values_of(data_dir, tmp_path / "new", place))
        assert learner.config.model.model_dump().items() >= {"family": family, **OWN[family]}.items()
    learner = begun(values_of(data_dir, tmp_path / "new", place, model={"width": 24, "dropout": 0.3}))
    assert (learner.config.model.layers, learner.config.model.dropout) == (OWN[family]["layers"], 0.3)
    with pytest.raises(UserError, match=f"model.layers is {OWN[family]['layers']} there and 2 here; make it the same$"):
        begun(values_of(data_dir, tmp_path / "new", place, model={"layers": 2}))
    with pytest.raises(UserError, match=f"model.family is {family} there and conv here"):
        begun(values_of(data_dir, tmp_path / "new", place, model={"family": "conv"}))


@pytest.mark.parametrize("is_run", [True, False])
def test_a_preset_that_is_another_model_contradicts_too(is_run, data_dir, corpus, texts, tmp_path):
    if is_run:
        run_training(data_dir, tmp_path / "there", *TINY)
    else:
        hf_folder("llama", texts, tmp_path / "there")
        data_dir = data_of(tmp_path / "there", corpus, tmp_path)
    small = {"preset": "gpt2", "layers": 2, "heads": 2, "width": 32}
    with pytest.raises(UserError, match=r"model\.positions is .*rotary.* there and .*learned.* here"):
        begun(values_of(data_dir, tmp_path / "new", tmp_path / "there", model=small))


@pytest.mark.parametrize("is_run", [True, False])
def test_a_run_that_says_nothing_of_the_model_resumes_without_its_source(is_run, data_dir, corpus, texts, tmp_path):
    source = tmp_path / "there"
    if is_run:
        run_training(data_dir, source, *TINY, "model.layers=1")
    else:
        hf_folder("gpt2", texts, source)
        data_dir = data_of(source, corpus, tmp_path)
    values = values_of(data_dir, tmp_path / "new", source)
    for steps in (2, 4):
        config = validate(RunConfig, values, "test", ("train.eval_every=2", f"train.steps={steps}"))
        assert train(config, SerialWorld())["step"] == steps
        shutil.rmtree(source, ignore_errors=True)


def test_data_of_another_vocabulary_are_refused_with_the_remedy(corpus, data_dir, texts, tmp_path):
    hf_folder("gpt2", texts, tmp_path / "hf")
    with pytest.raises(UserError, match=rf"another vocabulary than the data.*: {tmp_path}/hf/tokenizer.json$"):
        begun(values_of(data_dir, tmp_path / "run", tmp_path / "hf"))


def test_a_run_trains_from_it_and_resumes_without_it(corpus, texts, tmp_path):
    hf_folder("gpt2", texts, tmp_path / "hf")
    data = data_of(tmp_path / "hf", corpus, tmp_path)
    words = ("train.eval_every=2", "checkpoint.every=2", f"init.from={tmp_path / 'hf'}")
    shape = "model=" + json.dumps({"family": "transformer"})
    run_training(data, tmp_path / "run", *words, shape, "train.steps=2")
    noted = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (noted["model"]["bias"], noted["init"]["step"]) == (True, None)
    assert run_training(data, tmp_path / "run", *words, shape, "train.steps=4")["step"] == 4
    shutil.rmtree(tmp_path / "hf")
    full = "model=" + json.dumps(noted["model"])
    assert run_training(data, tmp_path / "run", *words, full, "train.steps=6")["step"] == 6


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"step": 3}, "init.step: a folder of Hugging Face's"),
        ({"optimizer": True}, "init.optimizer: a folder of Hugging Face's"),
        ({"digest": "abc"}, "init.digest: abc, but the weights of"),
    ],
)
def test_what_a_folder_has_not_is_not_asked_of_it(words, message, corpus, data_dir, texts, tmp_path):
    hf_folder("gpt2", texts, tmp_path / "hf")
    init = {"from": str(tmp_path / "hf"), **words}
    with pytest.raises(UserError, match=message):
        pinned(validate(RunConfig, values_of(data_dir, tmp_path / "run", "", init=init), "test"))


def test_a_broken_folder_is_told_when_the_config_is_read(data_dir, tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match="has no config.json, which says what model"):
        validate(RunConfig, values_of(data_dir, tmp_path / "run", tmp_path), "test")


@pytest.mark.parametrize("is_same", [True, False])
def test_what_was_exported_can_be_begun_with(is_same, data_dir, corpus, tmp_path):
    """The way round: a run, its export, the same data or those by the exported tokenizer, a run that begins with it."""
    run_training(data_dir, tmp_path / "run", *TINY)
    export_hf(tmp_path / "run", tmp_path / "hf")
    data = data_dir if is_same else data_of(tmp_path / "hf", corpus, tmp_path)
    learner = begun(values_of(data, tmp_path / "next", tmp_path / "hf"))
    before = read_weights(tmp_path / "run" / "checkpoints" / "step_00000002")
    state = model_state(learner.model)
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    assert all(not bool(state[name].any()) for name in state.keys() - before.keys())  # biases, which are 0


def test_of_a_run_for_another_task_the_body_is_taken_alone(data_dir, tmp_path, caplog):
    caplog.set_level("INFO", "hvdlm")
    run_training(data_dir, tmp_path / "run", *TINY, "model.tie_embeddings=false")
    words = (f"init.from={tmp_path / 'run'}", "model.tie_embeddings=false")
    config, path = pinned(make_config(data_dir, tmp_path / "new", *words))
    learner, corpora = build_learner(config, SerialWorld())
    learner.model.head = head = nn.Linear(32, 3)
    learner.whole = Whole.of(learner.model)
    first = head.weight.clone()
    begin_with(path, learner, corpora.manifest.tokenizer_digest)
    saved = read_weights(path)
    state = model_state(learner.model)
    assert all(torch.equal(state[name], tensor) for name, tensor in saved.items() if not name.startswith("head."))
    assert torch.equal(head.weight, first)
    assert "head.weight, head.bias begin anew" in caplog.text
    learner.model.extra = nn.Linear(2, 2)
    learner.whole = Whole.of(learner.model)
    with pytest.raises(UserError, match="lacks extra.weight, extra.bias"):
        begin_with(path, learner, corpora.manifest.tokenizer_digest)


def test_rows_of_a_tasks_own_ids_are_dropped_or_begin_at_the_mean(data_dir, tmp_path):
    bert = "model=" + json.dumps({"family": "transformer", **SHAPES["bert"]})
    run_training(data_dir, tmp_path / "run", *TINY, bert)
    config, path = pinned(make_config(data_dir, tmp_path / "new", bert, f"init.from={tmp_path / 'run'}"))
    learner, corpora = build_learner(config, SerialWorld())
    saved = read_weights(path)["embed.weight"]
    assert len(saved) == 258
    for rows in (257, 260):
        learner.model.embed = nn.Embedding(rows, 32)
        learner.model.head = nn.Linear(32, 3)
        learner.whole = Whole.of(learner.model)
        begin_with(path, learner, corpora.manifest.tokenizer_digest)
        weight = learner.model.embed.weight
        assert torch.equal(weight[:257], saved[:257])
        assert torch.allclose(weight[257:], saved[:257].mean(0).expand(rows - 257, 32))


def test_a_head_that_begins_anew_may_not_be_frozen(data_dir, tmp_path):
    run_training(data_dir, tmp_path / "run", *TINY)
    config, path = pinned(
        make_config(data_dir, tmp_path / "new", f"init.from={tmp_path / 'run'}", "freeze=['^blocks']")
    )
    learner, corpora = build_learner(config, SerialWorld())
    learner.model.head = nn.Linear(32, 3).requires_grad_(False)
    learner.whole = Whole.of(learner.model)
    with pytest.raises(UserError, match="head.weight, head.bias would begin anew and never learn"):
        begin_with(path, learner, corpora.manifest.tokenizer_digest)


def test_vocabularies_are_the_same_whatever_stands_before_and_behind_texts(texts, tmp_path):
    hf_folder("bert", texts, tmp_path / "hf")
    path = tmp_path / "hf" / "tokenizer.json"
    one, two = load(path, bos="auto"), load(path, bos="none")
    assert (one.bos_id, two.bos_id) != (None, None)
    assert encodes_alike(one, two)
    content = json.loads(path.read_text())
    content["model"]["vocab"] = dict(reversed(content["model"]["vocab"].items()))
    path.write_text(json.dumps(content))
    assert encodes_alike(one, load(path, bos="auto"))  # the order of a mapping is none
    words = list(content["model"]["vocab"])
    vocab = content["model"]["vocab"]
    vocab[words[0]], vocab[words[1]] = vocab[words[1]], vocab[words[0]]
    path.write_text(json.dumps(content))
    assert not encodes_alike(one, load(path, bos="auto"))


@pytest.mark.parametrize("kind", ["classify", "mlm"])
def test_tokens_that_an_export_adds_make_no_other_vocabulary(kind, corpus, tmp_path):
    """Padding of a classifier, a mask: the data of the run that was exported go on being read."""
    bert = {"family": "transformer", **SHAPES["bert"]}
    if kind == "mlm":
        preprocess(corpus, tmp_path / "data", tokenizer={"kind": "bpe", "vocab_size": 300})
        values = {**run_values(tmp_path / "data", tmp_path / "run"), "model": bert}
    else:
        make_data(tmp_path, SerialWorld(), tokenizer={"kind": "bpe", "vocab_size": 300})
        task = {"kind": "classify", "label": "label", "pooling": "cls", "transform": True}
        values = {**run_values(tmp_path / "data", tmp_path / "run"), "model": bert, "task": task}
    train(validate(RunConfig, values, "test", TINY), SerialWorld())
    export_hf(tmp_path / "run", tmp_path / "hf")
    before = read_weights(tmp_path / "run" / "checkpoints" / "step_00000002")
    del values["model"]
    again = begun({**values, "run_dir": str(tmp_path / "again"), "init": {"from": str(tmp_path / "hf")}})
    state = model_state(again.model)
    assert state.keys() == before.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("labels", [("down", "up"), ("up", "down"), ("no", "yes")])
def test_a_classifier_goes_on_where_its_labels_are_the_same_and_takes_the_pooler(labels, texts, tmp_path):
    hf_folder("bert", texts, tmp_path / "hf", padding=0)
    folder = tmp_path / "hf"
    random = torch.Generator().manual_seed(1)
    head = {
        "classifier.weight": torch.randn(2, 32, generator=random),
        "classifier.bias": torch.randn(2, generator=random),
        "bert.pooler.dense.weight": torch.randn(32, 32, generator=random),
        "bert.pooler.dense.bias": torch.ones(32),
    }
    body = {name: t for name, t in load_file(folder / "model.safetensors").items() if not name.startswith("cls.")}
    save_file({**body, **head}, folder / "model.safetensors")
    named = {"architectures": ["BertForSequenceClassification"], "id2label": dict(enumerate(labels))}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **named}))
    data = make_data(tmp_path / "records", SerialWorld(), tokenizer={"path": str(folder / "tokenizer.json")})
    task = {"kind": "classify", "label": "label", "pooling": "cls", "transform": True}
    learner = begun(values_of(data, tmp_path / "run", folder, task=task))
    state = model_state(learner.model)
    assert torch.equal(state["head.transform.weight"], head["bert.pooler.dense.weight"])
    if set(labels) == {"down", "up"}:
        order = [labels.index("down"), labels.index("up")]
        assert torch.equal(state["head.out.weight"], head["classifier.weight"][order])
        assert torch.equal(state["head.out.bias"], head["classifier.bias"][order])
    else:
        assert not torch.equal(state["head.out.weight"], head["classifier.weight"])
        assert not state["head.out.bias"].any()


def test_a_pair_of_texts_is_one_example_as_bert_has_it(tmp_path):
    """One [CLS], and [SEP] behind each: what the post_processor of the folder makes of two texts."""
    hf_folder("bert", [" ".join(WORDS) * 9], tmp_path / "hf")
    path = tmp_path / "hf" / "tokenizer.json"
    data = make_data(tmp_path / "records", SerialWorld(), tokenizer={"path": str(path), "eos": "[SEP]"})
    task = {"kind": "classify", "label": "label", "pair": "other", "pooling": "cls"}
    learner = begun(values_of(data, tmp_path / "run", tmp_path / "hf", task=task))
    layout = learner.task.layout(Records(data, "test", read_manifest(data)), 40)
    theirs = Tokenizer.from_file(str(path))
    lines = (tmp_path / "records" / "test.jsonl").read_text().splitlines()
    for number, record in enumerate(map(json.loads, lines[:20])):
        row = layout.rows(np.array([number]))[0, 1:]
        assert row.tolist() == theirs.encode(record["text"], record["other"]).ids
        assert layout.lengths[number] == len(row)
