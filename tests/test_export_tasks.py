"""Models of tasks as transformers uses them: its pipelines give our labels and our probabilities."""

import json

import pytest
import torch
from labelled import TAGGED, make_data, run_of, tagged

from hvdlm.errors import UserError
from hvdlm.inference.evaluate import evaluate_checkpoint
from hvdlm.inference.hf_files import export_hf
from hvdlm.train.setup import train
from hvdlm.world.serial import SerialWorld

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

BERT = {"family": "transformer", "preset": "bert-tiny", "layers": 1, "width": 16, "positions": {"kind": "learned"}}
GPT2 = {"family": "transformer", "preset": "gpt2", "layers": 1, "heads": 2, "width": 16}
BPE = {"kind": "bpe", "vocab_size": 300}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("labelled"), SerialWorld(), tokenizer=BPE)


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_classifier_is_a_pipeline_with_its_labels(kind, data, tmp_path):
    model, task = {
        "bert": ({**BERT, "token_types": 2}, {"pooling": "cls", "transform": True}),
        "gpt2": (GPT2, {"pooling": "last", "bias": False}),
    }[kind]
    pair = {"pair": "other"} if kind == "bert" else {}
    fields = (
        data
        if kind == "bert"
        else make_data(tmp_path / "one", SerialWorld(), fields={"text": "text", "label": "label"}, tokenizer=BPE)
    )
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


def test_a_tagger_without_crf_is_exported_and_one_with_it_is_refused(tmp_path):
    words = make_data(tmp_path / "words", SerialWorld(), tagged, TAGGED, tokenizer=BPE)
    for crf in (True, False):
        run = tmp_path / f"run-{crf}"
        train(run_of(words, run, model=BERT, task={"kind": "tag", "crf": crf}), SerialWorld())
    with pytest.raises(UserError, match="task.crf: true: transformers has no such head"):
        export_hf(tmp_path / "run-True", tmp_path / "no")
    facts = export_hf(tmp_path / "run-False", tmp_path / "hf")
    assert facts["architecture"] == "BertForTokenClassification"
    model = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path / "hf")
    assert model.config.id2label == {0: "B-G", 1: "I-G", 2: "O"}
    from hvdlm.inference.load import load_checkpoint_model
    from hvdlm.world.place import find_place

    ours = load_checkpoint_model(tmp_path / "run-False" / "checkpoints" / "latest", (), find_place(SerialWorld())).model
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = ours.head(ours(ids, lengths=torch.tensor([4]))[0])
        torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=1e-5)
