"""Models of tasks as transformers uses them: its pipelines give our labels and our probabilities."""

import json

import pytest
import torch
from labelled import TAGGED, make_data, run_of, tagged

from hvdlm.checkpoint import read_weights, resolve
from hvdlm.errors import UserError
from hvdlm.inference.evaluate import evaluate_checkpoint
from hvdlm.inference.hf_files import export_hf
from hvdlm.inference.load import load_checkpoint_model
from hvdlm.tasks.interface import Batch
from hvdlm.tokenizer import load
from hvdlm.train.initial_weights import begin_with, pinned
from hvdlm.train.setup import build_learner, train
from hvdlm.world.place import find_place
from hvdlm.world.serial import SerialWorld

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

BERT = {"family": "transformer", "preset": "bert-tiny", "layers": 1, "width": 16, "positions": {"kind": "learned"}}
GPT2 = {"family": "transformer", "preset": "gpt2", "layers": 1, "heads": 2, "width": 16}
BPE = {"kind": "bpe", "vocab_size": 300}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("labelled"), SerialWorld(), tokenizer=BPE)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    fields = {"text": "text", "label": "label"}
    return make_data(tmp_path_factory.mktemp("texts"), SerialWorld(), fields=fields, tokenizer=BPE)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_classifier_is_a_pipeline_with_its_labels(kind, data, texts, tmp_path):
    model, task = {
        "bert": ({**BERT, "token_types": 2}, {"pooling": "cls", "transform": True}),
        "gpt2": (GPT2, {"pooling": "last", "bias": False}),
    }[kind]
    pair = {"pair": "other"} if kind == "bert" else {}
    fields = data if kind == "bert" else texts
    task = {"kind": "classify", "label": "label", **pair, **task}
    train(run_of(fields, tmp_path / "run", "train.epochs=3", model=model, task=task), SerialWorld())
    lines = tmp_path / "lines.jsonl"
    evaluate_checkpoint(tmp_path / "run", (), "test", SerialWorld(), predictions=lines)
    facts = export_hf(tmp_path / "run", tmp_path / "hf")
    assert facts["architecture"].endswith("ForSequenceClassification")
    pipeline = transformers.pipeline("text-classification", model=str(tmp_path / "hf"))
    source = [json.loads(line) for line in (fields.parent / "test.jsonl").read_text().splitlines()]
    for record, line in zip(source[:12], map(json.loads, lines.read_text().splitlines()), strict=False):
        given = {"text": record["text"], **({"text_pair": record["other"]} if pair else {})}
        found = pipeline(given)
        found = found[0] if isinstance(found, list) else found
        assert found["label"] == line["predicted"] and found["score"] == pytest.approx(line["probability"], abs=1e-5)


@pytest.mark.parametrize("label", ["topics", "score"])
def test_several_labels_and_numbers_are_what_the_pipeline_says_and_go_on_from_there(label, data, tmp_path):
    task = {"kind": "classify", "label": label, "pooling": "cls", "transform": True}
    model = {**BERT, "token_types": 2}
    train(run_of(data, tmp_path / "run", "train.epochs=3", model=model, task=task), SerialWorld())
    export_hf(tmp_path / "run", tmp_path / "hf")
    lines = tmp_path / "lines.jsonl"
    evaluate_checkpoint(tmp_path / "run", (), "test", SerialWorld(), predictions=lines)
    pipeline = transformers.pipeline("text-classification", model=str(tmp_path / "hf"), top_k=None)
    source = [json.loads(line) for line in (data.parent / "test.jsonl").read_text().splitlines()]
    for record, line in zip(source[:12], map(json.loads, lines.read_text().splitlines()), strict=False):
        found = pipeline({"text": record["text"], "text_pair": record["other"]})
        found = found[0] if isinstance(found[0], list) else found
        if label == "score":
            assert (found[0]["label"], found[0]["score"]) == ("score", pytest.approx(line["predicted"], abs=1e-5))
        else:
            assert sorted(one["label"] for one in found if one["score"] > 0.5) == sorted(line["predicted"])
    init = {"from": str(tmp_path / "hf")}
    config, path = pinned(run_of(data, tmp_path / "again", model={}, task=task, init=init))
    learner, corpora = build_learner(config, SerialWorld())
    begin_with(path, learner, corpora.manifest.tokenizer_digest)
    kept = read_weights(resolve(tmp_path / "run"))
    assert all(torch.equal(kept[name], tensor) for name, tensor in learner.model.named_parameters())


LAST = {"pooling": "last", "bias": False}
CLASSIFIERS = {
    "bert": (BERT, {"pooling": "cls", "transform": True}),
    "gpt2": ({**GPT2, "positions": {"kind": "learned"}}, LAST),
    "llama": ({"norm": "rmsnorm", "activation": "swiglu", "layers": 1, "heads": 2, "width": 16}, LAST),
    "gpt_neox": ({"layers": 1, "heads": 2, "width": 16}, LAST),
}


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_batches_of_texts_of_all_lengths_have_our_logits(kind, texts, tmp_path):
    """No vocabulary here has a token for padding, and an end of text, which stands in each text, is none."""
    model, task = CLASSIFIERS[kind]
    model, task = {"family": "transformer", **model}, {"kind": "classify", **task}
    config = run_of(texts, tmp_path / "run", "train.epochs=3", "data.seq_len=20", model=model, task=task)
    train(config, SerialWorld())
    export_hf(tmp_path / "run", tmp_path / "hf")
    given = ["w1", "w3 w4 w5", "", "w0 w4 " * 30, "w2 w2", "w5 " * 9]
    pipeline = transformers.pipeline("text-classification", model=str(tmp_path / "hf"), top_k=None)
    assert pipeline.model.config.model_type == kind
    found = pipeline(given, batch_size=4, padding=True, truncation=True, function_to_apply="none")
    ours = load_checkpoint_model(resolve(tmp_path / "run"), (), find_place(SerialWorld()))
    tokenizer = load(tmp_path / "run" / "tokenizer.json")
    for text, scores in zip(given, found, strict=True):
        ids = [*tokenizer.encode(text).tolist()[:19], tokenizer.eos_id]
        assert pipeline.tokenizer(text, truncation=True)["input_ids"] == ids
        batch = Batch(torch.tensor([ids]), torch.tensor([[0]]), torch.tensor([len(ids)]))
        with torch.no_grad():
            expected = ours.task.logits(ours.model, batch, None)[0].tolist()
        logits = {one["label"]: one["score"] for one in scores}
        assert logits == pytest.approx(dict(zip(ours.task.outputs, expected, strict=True)), abs=1e-5)


def test_a_tagger_with_a_crf_is_refused_and_one_without_it_that_began_with_it_exported(tmp_path):
    words = make_data(tmp_path / "words", SerialWorld(), tagged, TAGGED, tokenizer=BPE)
    for crf in (True, False):
        init = None if crf else {"from": str(tmp_path / "run-True")}
        task = {"kind": "tag", "crf": crf}
        train(run_of(words, tmp_path / f"run-{crf}", model=BERT, task=task, init=init), SerialWorld())
    with pytest.raises(
        UserError, match=r"crf: true: transformers has no such head; train on with task\.crf=false and init.from"
    ):
        export_hf(tmp_path / "run-True", tmp_path / "no")
    facts = export_hf(tmp_path / "run-False", tmp_path / "hf")
    assert facts["architecture"] == "BertForTokenClassification"
    model = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "hf")
    assert model.config.id2label == {0: "B-G", 1: "I-G", 2: "O"}
    ours = load_checkpoint_model(tmp_path / "run-False" / "checkpoints" / "latest", (), find_place(SerialWorld())).model
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = ours.head(ours(ids, lengths=torch.tensor([4]))[0])
        torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=1e-5)
