"""`hvdlm export RUN --to hf`: what transformers loads has the run's logits, and its tokenizer the run's ids."""

import json

import numpy as np
import pytest
import torch
from harness import preprocess, run_training

from hvdlm.checkpoint import resolve
from hvdlm.errors import UserError
from hvdlm.exchange import TaskHead
from hvdlm.exchange.tokenizer_files import tokenizer_files
from hvdlm.inference.hf_files import export_hf
from hvdlm.inference.load import load_checkpoint_model
from hvdlm.tasks.language_model import LanguageModelling
from hvdlm.tokenizer import ByteTokenizer, from_json, load
from hvdlm.tokenizer.char import count_chars
from hvdlm.tokenizer.training import train_bpe, train_unigram, train_wordpiece
from hvdlm.world.place import find_place
from hvdlm.world.serial import SerialWorld

transformers = pytest.importorskip("transformers", reason="transformers (the test extra) is not installed")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

TEXTS = [
    "Hello world, it's 2024 already.",
    "语言模型从左到右写字。 中文 mixed with English",
    "tabs\tand\nlines\r\n\n  spaces  twice",
    "ümläuts, naïve, ﬁ 😀",
    "",
]
SAMPLE = [text * 3 for text in TEXTS]
KINDS = {
    "bpe": lambda: train_bpe(iter(SAMPLE), 400),
    "unigram": lambda: train_unigram(iter(SAMPLE), 120),
    "wordpiece": lambda: train_wordpiece(iter(SAMPLE), 200),
    "byte": ByteTokenizer,
    "char": lambda: count_chars(SAMPLE, 1000, 1),
}
TINY = ("train.steps=2", "train.eval_every=2")


def written(files, folder):
    (folder / "tokenizer.json").write_text(json.dumps(files.content))
    (folder / "tokenizer_config.json").write_text(json.dumps(files.config))
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_gives_the_same_ids_there_and_read_again(kind, tmp_path):
    ours = KINDS[kind]()
    theirs = written(tokenizer_files(ours), tmp_path)
    assert (theirs.eos_token_id, theirs.bos_token_id) == (ours.eos_id, None)
    again = load(tmp_path / "tokenizer.json", bos="auto")
    assert (again.eos_id, again.bos_id, again.vocab_size) == (ours.eos_id, None, ours.vocab_size)
    for text in TEXTS:
        ids = ours.encode(text)
        assert theirs(text)["input_ids"] == ids.tolist()
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids.tolist()
        assert np.array_equal(again.encode(text), ids)
        if kind in ("byte", "bpe"):
            assert theirs.decode(ids) == text


def test_a_beginning_of_text_is_put_there_too(tmp_path):
    plain = KINDS["bpe"]()
    content, bos_id = json.loads(plain.to_json()), plain.vocab_size
    content["added_tokens"].append({**content["added_tokens"][0], "id": bos_id, "content": "<s>"})
    wrapped = {"hvdlm": "tokenizers", "eos": None, "bos": "<s>", "tokenizer_json": json.dumps(content)}
    ours = from_json(json.dumps(wrapped))
    theirs = written(tokenizer_files(ours), tmp_path)
    for text in TEXTS:
        assert theirs(text)["input_ids"] == [bos_id, *ours.encode(text).tolist()]
    assert load(tmp_path / "tokenizer.json", bos="auto").bos_id == bos_id


def test_a_tokenizer_of_words_is_refused_in_one_line():
    words = {
        "hvdlm": "word",
        "words": "whitespace",
        "pattern": None,
        "line_ends": True,
        "vocabulary": ["<unk>", "<eos>"],
    }
    with pytest.raises(UserError, match="is of kind word, for which transformers has no file"):
        tokenizer_files(from_json(json.dumps(words)))


def loaded(run):
    return load_checkpoint_model(resolve(run), (), find_place(SerialWorld()))


def test_a_run_of_the_default_model_is_loaded_by_transformers(data_dir, tmp_path):
    run_training(data_dir, tmp_path / "run", *TINY)
    facts = export_hf(tmp_path / "run", tmp_path / "hf")
    assert facts["architecture"] == "GPTNeoXForCausalLM"
    names = {path.name for path in (tmp_path / "hf").iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ours = loaded(tmp_path / "run").model
    ids = torch.tensor([tokenizer("语言 and text " * 8)["input_ids"]])
    assert ids.shape[1] > 100
    with torch.no_grad():
        assert (model(ids).logits - ours.logits(ids)[0]).abs().max() < 1e-5
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 256
    written = model.generate(ids[:, :5], max_new_tokens=3, do_sample=False, pad_token_id=256)
    assert written.shape == (1, 8)
    with pytest.raises(UserError, match="is there already; name a new folder"):
        export_hf(tmp_path / "run", tmp_path / "hf")


BERT = "model={family: transformer, preset: bert-tiny, layers: 1, width: 32, heads: 2, token_types: 2}"


@pytest.mark.parametrize("kind", ["byte", "bert"])
def test_a_masked_model_is_exported_with_its_mask(kind, corpus, data_dir, tmp_path):
    """Without a mask in its vocabulary it gets one behind it; else ours, behind it, takes the place of theirs."""
    data = data_dir
    if kind == "bert":
        content = json.loads(train_wordpiece(iter([path.read_text() for path in corpus.iterdir()]), 200).to_json())
        special = content["added_tokens"][0]
        names = ["[CLS]", "[SEP]", "[MASK]", "[PAD]"]
        content["added_tokens"] += [{**special, "content": name, "id": 200 + n} for n, name in enumerate(names)]
        content["post_processor"] = {"type": "BertProcessing", "sep": ["[SEP]", 201], "cls": ["[CLS]", 200]}
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        data = tmp_path / "data"
        preprocess(corpus, data, tokenizer={"kind": "wordpiece", "path": str(tmp_path / "tokenizer.json")})
    run_training(data, tmp_path / "run", *TINY, BERT)
    export_hf(tmp_path / "run", tmp_path / "hf")
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "hf").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ours = loaded(tmp_path / "run")
    mask = ours.state["vocab_size"]
    ids = tokenizer(f"some text {tokenizer.mask_token} and more", return_tensors="pt")["input_ids"]
    assert set(tokenizer("one", "two")) == {"input_ids", "token_type_ids", "attention_mask"}
    own = torch.where(ids == tokenizer.mask_token_id, mask, ids)
    assert (own == mask).sum() == 1
    expected = ours.model.logits(own)[0]
    if kind == "bert":
        assert model.config.vocab_size == 204
        assert (ids[0, 0], ids[0, -1], model.config.pad_token_id) == (200, 201, 203)
        expected = torch.cat((expected[..., :202], expected[..., mask:], expected[..., 203:mask]), -1)
    assert (model(ids).logits - expected).abs().max().item() < 1e-5


def test_what_transformers_has_no_class_for_keeps_our_names(data_dir, tmp_path, caplog):
    run_training(data_dir, tmp_path / "run", *TINY, "model={family: lstm, layers: 1, width: 16}")
    export_hf(tmp_path / "run", tmp_path / "hf")
    assert "transformers has no class for a hvdlm_lstm" in caplog.text
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["hvdlm"]["model"]["family"] == "lstm"
    from safetensors.torch import load_file

    kept = load_file(tmp_path / "hf" / "model.safetensors")
    assert all(torch.equal(kept[name], tensor) for name, tensor in loaded(tmp_path / "run").model.named_parameters())


def test_a_head_of_a_task_keeps_its_labels_in_a_pipeline(data_dir, tmp_path, monkeypatch):
    run_training(
        data_dir, tmp_path / "run", *TINY, "model={family: transformer, preset: gpt2, layers: 1, heads: 2, width: 32}"
    )
    labels = ("bad", "good")
    state = {"weight": torch.zeros(2, 32), "bias": torch.tensor([1.0, 3.0])}
    head = TaskHead("classify", state, labels, "last")
    monkeypatch.setattr(LanguageModelling, "head_for_exchange", lambda task, model: head)
    with pytest.raises(UserError, match="GPT2ForSequenceClassification has no bias in its head"):
        export_hf(tmp_path / "run", tmp_path / "hf")  # of a matrix of zeros
    state["weight"] = torch.eye(2, 32)
    facts = export_hf(tmp_path / "run", tmp_path / "hf")
    assert facts["architecture"] == "GPT2ForSequenceClassification"
    ours = loaded(tmp_path / "run").model
    classify = transformers.pipeline("text-classification", model=str(tmp_path / "hf"), top_k=None)
    for text in ("some text", "语言"):
        with torch.no_grad():
            hidden = ours(torch.tensor([list(text.encode())]))[0][0, -1]
        expected = (hidden[:2] + state["bias"]).softmax(0)
        found = {entry["label"]: entry["score"] for entry in classify([text])[0]}
        assert found == pytest.approx(dict(zip(labels, expected.tolist(), strict=True)), abs=1e-5)


def test_a_model_that_no_layout_can_say_is_refused_by_the_setting(data_dir, tmp_path):
    run_training(data_dir, tmp_path / "run", *TINY, "model.qk_norm=true")
    with pytest.raises(UserError, match=r"step_00000002: model\.qk_norm: True: no layout of transformers") as error:
        export_hf(tmp_path / "run", tmp_path / "hf")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "hf").exists()
