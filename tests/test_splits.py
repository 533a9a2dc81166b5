"""Predefined splits: what is given apart stays apart, whole, in order, and is told."""

import json
import random
from collections import Counter
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from harness import ROOT, documents_of, files_of, make_config, make_text, preprocess, run_training, texts_of

from hvdlm.cli.options import SPLIT
from hvdlm.config import load, to_yaml, validate
from hvdlm.data.bridges import convert
from hvdlm.data.inspection import inspect, to_text
from hvdlm.data.manifest import read_manifest
from hvdlm.data.verify import verify
from hvdlm.errors import UserError
from hvdlm.inference.evaluate import evaluate_checkpoint
from hvdlm.preprocessing import assemble, build
from hvdlm.preprocessing.plan import PreprocessConfig
from hvdlm.preprocessing.splits import named_as_splits
from hvdlm.tokenizer import load as load_tokenizer
from hvdlm.tokenizer.word import WordRule, WordTokenizer
from hvdlm.train.setup import train
from hvdlm.world.serial import SerialWorld

LINES = {
    "train": [f"{make_text(n, 5).strip()} {n}" for n in range(60)],
    "val": [f"held {n} zebra" for n in range(9)],
    "test": [f"last {n} okapi" for n in range(5)],
}


@pytest.fixture
def files(tmp_path):
    """A file of lines for each split, by split."""
    folder = tmp_path / "in"
    folder.mkdir()
    for split, lines in LINES.items():
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return {split: str(folder / f"{split}.txt") for split in LINES}


def of_splits(inputs, output, **changes):
    """Shards of `inputs` by split, a document a line."""
    return preprocess("", output, **{"input": inputs, "split": {}, "format": "lines", **changes})


@pytest.mark.parametrize("given", [str, lambda path: [path], lambda path: path.replace(".txt", ".t*t")])
def test_each_split_is_its_own_input_whole_and_in_order(files, tmp_path, given):
    inputs = {split: given(path) for split, path in files.items()}
    manifest = of_splits(inputs, tmp_path / "out")
    assert {split: texts_of(tmp_path / "out", split) for split in LINES} == LINES
    assert manifest.splitting.kind == "predefined"
    assert manifest.splitting.inputs == {
        split: tuple(path) if isinstance(path, list) else (path,) for split, path in inputs.items()
    }
    told = "".join(to_text(inspect(tmp_path / "out")).split())  # lines are wrapped
    assert f"valis{manifest.splitting.inputs['val'][0]};" in told
    assert verify(tmp_path / "out") == []


def test_a_manifest_may_name_held_out_splits_alone(files, tmp_path):
    """As one that another program wrote."""
    of_splits({"train": files["train"], "test": [files["test"]] * 7}, tmp_path)
    whole = json.loads((tmp_path / "manifest.json").read_text())
    test = whole["splits"]["test"]
    totals = {name: test[name] for name in ("num_tokens", "num_documents")}
    (tmp_path / "manifest.json").write_text(json.dumps({**whole, **totals, "splits": {"test": test}}))
    assert verify(tmp_path) == []
    assert set(inspect(tmp_path)["splits"]) == {"test"}
    assert to_text(inspect(tmp_path)).replace("\n ", "").count("test.txt") == 5
    assert "and 2 more" in " ".join(to_text(inspect(tmp_path)).split())
    convert(tmp_path, tmp_path / "there", to="jsonl")
    with pytest.raises(UserError, match=r"has no train tokens \(it has: test\)"):
        train(make_config(tmp_path, tmp_path / "run"), SerialWorld())


def test_one_input_is_parted_by_a_hash_as_ever_and_that_is_told(corpus, tmp_path):
    assert preprocess(corpus, tmp_path).splitting.model_dump() == {
        "kind": "hash",
        "inputs": {},
        "fractions": {"val": 0.15},
    }
    assert "splits: by a hash of the text val 0.15" in to_text(inspect(tmp_path))


def test_a_split_that_nobody_names_can_be_cut_out_of_train(files, tmp_path):
    """And a word that only the cut-out documents have is none of the vocabulary's."""
    words = {"kind": "word", "vocab_size": 1000}
    inputs = {"train": files["train"], "test": files["test"]}
    manifest = of_splits(inputs, tmp_path / "out", split={"val": 0.2}, tokenizer=words)
    train, val = (texts_of(tmp_path / "out", split) for split in ("train", "val"))
    assert 3 < len(val) < 25
    assert len(train) + len(val) == len(LINES["train"])
    assert [line for line in LINES["train"] if line in train] == train
    assert all(line.endswith("<unk>") for line in val)  # their last word is the line's number
    assert manifest.splits["test"].num_documents == len(LINES["test"])
    assert manifest.splitting.fractions == {"val": 0.2}


@pytest.mark.parametrize("kind", ["char", "word", "bpe"])
def test_a_vocabulary_is_learnt_from_train_alone(files, tmp_path, kind):
    tokenizer = {"kind": kind, "vocab_size": 300}
    of_splits(files, tmp_path / "all", tokenizer=tokenizer)
    of_splits({"train": files["train"]}, tmp_path / "train", tokenizer=tokenizer)
    assert (tmp_path / "all" / "tokenizer.json").read_bytes() == (tmp_path / "train" / "tokenizer.json").read_bytes()


def test_a_folder_of_held_out_data_alone_is_one_and_nobody_trains_on_it(files, tmp_path):
    of_splits(files, tmp_path / "all", tokenizer={"kind": "word"})
    held = tmp_path / "held"
    manifest = of_splits(
        {"test": files["test"]}, held, tokenizer={"kind": "word", "path": str(tmp_path / "all" / "tokenizer.json")}
    )
    whole = read_manifest(tmp_path / "all")
    assert manifest.tokenizer_digest == whole.tokenizer_digest
    assert manifest.splits["test"].digest == whole.splits["test"].digest
    assert (manifest.splits["test"].unigram_loss, whole.splits["test"].unigram_loss is None) == (None, False)
    assert "test: " in to_text(inspect(held))
    assert verify(held) == []
    convert(held, tmp_path / "n", to="nanogpt")
    convert(tmp_path / "n", tmp_path / "back", to="hvdlm")
    assert read_manifest(tmp_path / "back").splits["test"].digest == whole.splits["test"].digest
    with pytest.raises(UserError, match=r"held: has no train tokens \(it has: test\); evaluate on it, do not train"):
        train(make_config(held, tmp_path / "run"), SerialWorld())


def test_a_run_is_evaluated_on_any_split_of_any_folder_of_its_vocabulary(files, tmp_path):
    of_splits(files, tmp_path / "all")
    of_splits({"val": files["test"]}, tmp_path / "held")
    of_splits({"val": files["val"]}, tmp_path / "other", tokenizer={"kind": "word", "path": _words(tmp_path)})
    run_training(tmp_path / "all", tmp_path / "run", "train.steps=1")

    def found(split, folder):
        return evaluate_checkpoint(tmp_path / "run", (f"data.path={tmp_path / folder}",), split, SerialWorld())

    here, there = found("test", "all"), found("val", "held")
    assert there["loss"] == here["loss"]
    assert (here["num_tokens"], here["unigram_loss"] > 0) == (there["num_tokens"], True)
    assert there["unigram_loss"] is None
    assert found("train", "all")["num_tokens"] == sum(len(line.encode()) + 1 for line in LINES["train"])
    with pytest.raises(UserError, match=r"held: has no test tokens \(it has: val\); name one of these"):
        found("test", "held")
    with pytest.raises(UserError, match=r"other: was made with tokenizer .* set data.path to data of the same"):
        found("val", "other")


def _words(tmp_path):
    path = tmp_path / "words.json"
    path.write_text(WordTokenizer(["held"], WordRule()).to_json())
    return str(path)


FAULTS = {
    "twice": (
        {"val": "train"},
        r"train.txt: is a file of input.train '.*' and of input.val '.*'; a file belongs to one",
    ),
    "link": ({"test": "link"}, r"link.txt: is a file of input.train '.*' and of input.test '.*link.txt'; a file"),
    "glob": (
        {"train": "t*"},
        r"test.txt: is a file of input.train '.*t\*.txt' and of input.test '.*'; .* narrower glob",
    ),
    "empty": ({"test": "empty"}, r"input.test '.*empty.txt': nothing but empty files \(1\)"),
    "blank": ({"val": "blank"}, r"input.val '.*blank.txt': no document is left \(there was none\)"),
    "gone": ({"val": "gone"}, r"input.val '.*gone.txt': no such file, folder or match"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_split_is_said_with_its_key(files, tmp_path, fault):
    for name, content in {"empty": "", "blank": " \n\n"}.items():
        (tmp_path / "in" / f"{name}.txt").write_text(content)
    (tmp_path / "in" / "link.txt").symlink_to(files["train"])
    changed, message = FAULTS[fault]
    inputs = files | {split: f"{tmp_path}/in/{name}.txt" for split, name in changed.items()}
    with pytest.raises(UserError, match=message):
        of_splits(inputs, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


WORD = "tokenizer={kind: word}"
WRONG_CONFIGS = [
    (("input={train: a, valid: b}",), "unknown key 'input.valid'; did you mean 'input.val'?"),
    (("input={train: a, validation: b}",), "unknown key 'input.validation'; did you mean 'input.val'?"),
    (("input={train: a, dev: b}",), "unknown key 'input.dev'; did you mean 'input.val'?"),
    (("input={training: a}",), "unknown key 'input.training'; did you mean 'input.train'?"),
    (("input={train: a, other: b}",), "unknown key 'input.other'; valid keys: test, train, val"),
    (("split.dev=0.1",), "unknown key 'split.dev'; did you mean 'split.val'?"),
    (("train=a",), "unknown key 'train'; did you mean 'input.train'?"),
    (("input={}",), "input: names no split; give input.train, input.val or input.test"),
    (("input={train: }",), "input: names no split; give input.train, input.val or input.test"),
    (("input={train: a, val: []}",), "input.val: names no file; leave it out, or name some"),
    (("input={train: a, val: ''}",), "input.val: names no file; leave it out, or name some"),
    (("input=",), "input: names no file; name some"),
    (("input={train: {a: b}}",), "input.train: must be text or a list of text or null, got a section"),
    (("input=[{a: b}]",), "input.0: must be text, got a section"),
    (
        ("input={train: a, val: b}", "split.val=0.1"),
        "split.val 0.1 would come out of input.train, and input.val is named already; set split.val to 0, or leave",
    ),
    (("input={val: b}", "split.test=0.1"), "split.test 0.1 would come out of input.train, which is not there"),
    (("input={val: b}", WORD), "tokenizer: a word vocabulary is learnt from input.train, and there is none; set"),
    (("input.val=b",), "input is a value here; to make it a section, replace it: 'input={val: b}'"),
]


@pytest.mark.parametrize(("overrides", "message"), WRONG_CONFIGS)
def test_splits_that_contradict_themselves_are_one_line(tmp_path, overrides, message):
    (tmp_path / "c.yaml").write_text("input: a\noutput: b\ntokenizer: {kind: byte}\n")
    with pytest.raises(UserError) as error:
        load(PreprocessConfig, tmp_path / "c.yaml", overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_line_of_a_wrong_split_in_a_file_is_said(tmp_path):
    (tmp_path / "c.yaml").write_text("output: b\ninput:\n  train: a\n  dev: b\n")
    with pytest.raises(UserError, match=r"c.yaml:4: unknown key 'input.dev'; did you mean 'input.val'\?$"):
        load(PreprocessConfig, tmp_path / "c.yaml")


def test_a_resolved_config_is_read_back_as_it_is(tmp_path):
    values = {"input": {"train": ["a", "b"], "val": "c"}, "output": "d"}
    config = validate(PreprocessConfig, values, tmp_path)
    assert (config.split.val, config.split.test) == (0, 0)
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    assert load(PreprocessConfig, tmp_path / "c.yaml") == config
    changed = load(PreprocessConfig, tmp_path / "c.yaml", ("input.val=null", "split.val=0.1"))
    assert changed.splits.made == {"train", "val"}


@pytest.mark.parametrize("near", [False, True])
def test_dedup_takes_nothing_from_what_is_held_out(tmp_path, near):
    """Of train what is there twice goes, and what val or test have; these keep all, also what they have twice."""
    texts = [make_text(n, 60) for n in range(8)]
    lines = {"train": [0, 1, 1, 2, 3], "val": [3, 4, 4], "test": [4, 5, 2, 5]}
    for split, numbers in lines.items():
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps({"text": texts[n]}) + "\n" for n in numbers))
    inputs = {split: str(tmp_path / f"{split}.jsonl") for split in lines}
    manifest = of_splits(inputs, tmp_path / "out", format="auto", dedup={"exact": True, "near": near}, dropped=True)
    found = {split: [texts.index(text) for text in texts_of(tmp_path / "out", split)] for split in lines}
    assert found == {**lines, "train": [0, 1]}
    assert manifest.statistics["duplicate_documents"] == 3
    assert manifest.statistics["test_documents_in_val"] == 1
    assert manifest.statistics["val_documents_in_train"] == manifest.statistics["test_documents_in_train"] == 0
    dropped = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert {line["path"] for line in dropped} == {inputs["train"]}


def test_texts_that_stand_in_two_splits_are_counted_and_a_copied_file_is_remarked(files, tmp_path, caplog):
    with Path(files["test"]).open("a") as file:
        file.write(f"{LINES['train'][7]}\n{LINES['val'][0]}\n{LINES['val'][0]}\n")
    (tmp_path / "copy.txt").write_text("\n".join(LINES["train"]))
    statistics = of_splits(files, tmp_path / "out").statistics
    assert [statistics[f"{a}_documents_in_{b}"] for a, b in (("val", "train"), ("test", "train"), ("test", "val"))] == [
        *(0, 1, 2)
    ]
    assert "stand in" in caplog.text  # 2 of 8
    caplog.clear()
    of_splits(files | {"val": str(tmp_path / "copy.txt")}, tmp_path / "copied")
    assert "60 of 60 documents of val stand in train too; are these the files that you mean?" in caplog.text


def test_files_named_as_splits_in_one_pool_are_remarked(files, tmp_path, caplog):
    of_splits(str(tmp_path / "in"), tmp_path / "pool")
    (line,) = [line for line in caplog.messages if "named as splits" in line]
    assert f"input={{train: {files['train']}, val: {files['val']}, test: {files['test']}}}" in line
    caplog.clear()
    of_splits(files, tmp_path / "apart")
    assert "named as splits" not in caplog.text


@pytest.mark.parametrize(
    ("paths", "splits"),
    [
        (["x/train/pos/0.txt", "x/test/neg/0.txt"], ["train", "test"]),
        (["/test/train.txt", "/test/wiki.valid.tokens"], ["train", "val"]),
        (["train-00000-of-00001.parquet", "validation-00000-of-00001.parquet"], ["train", "val"]),
        (["trains.txt", "testament.txt", "evaluation.md"], []),
        (["train.txt", "more.txt"], []),
        (["a/val.txt", "a/test.txt"], []),  # such as unit tests have
        (["train.txt"], []),
    ],
)
def test_names_of_splits_are_whole_words(paths, splits):
    assert list(named_as_splits(paths)) == splits


@pytest.mark.parametrize("stage", [(build.Worker, "tokenize"), (assemble, "_write"), (build, "_finish")])
def test_an_interrupted_run_of_splits_continues_to_the_same_bytes(files, tmp_path, monkeypatch, stage):
    settings = {"tokenizer": {"kind": "char"}, "shard_tokens": 500, "dedup": {"exact": True}}
    monkeypatch.setattr("hvdlm.preprocessing.plan.MIN_UNIT_BYTES", 600)
    of_splits(files, tmp_path / "whole", **settings)
    real = getattr(*stage)
    calls = Counter()

    def dies(*arguments):
        calls["made"] += 1
        if calls["made"] == 2 or stage[1] == "_finish":
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(*stage, Mock(side_effect=dies) if stage[0] is not build.Worker else dies)
        of_splits(files, tmp_path / "resumed", **settings)
    of_splits(files, tmp_path / "resumed", **settings)
    assert files_of(tmp_path / "resumed") == files_of(tmp_path / "whole")


def test_another_way_to_split_the_same_files_is_another_data_set(files, tmp_path):
    of_splits(files, tmp_path / "out")
    assert of_splits(files, tmp_path / "out") == read_manifest(tmp_path / "out")
    with pytest.raises(UserError, match="holds another data set"):
        of_splits(files | {"val": files["test"], "test": files["val"]}, tmp_path / "out")


def test_the_names_of_splits_elsewhere_are_known_to_the_command_line():
    with pytest.raises(Exception, match="Did you mean 'val'"):
        SPLIT.convert("validation", None, None)
    assert SPLIT.convert("val", None, None) == "val"


# --- the benchmarks' own files


def ptb_like(folder):
    """Lines as PTB's: a blank at both ends, <unk> and N among the words; a line at the end is empty."""
    source, files = random.Random(4), {}
    words = [f"w{n}" for n in range(200)] + ["N", "<unk>", "'s", "u.s.", "Mixed-Case", "$"]
    for split, num_lines in {"train": 400, "valid": 30, "test": 40}.items():
        lines = [" ".join(source.choices(words, k=source.randint(1, 12))) for _ in range(num_lines)]
        lines[-1] += " " + " ".join(words) if split == "train" else ""
        files[split] = folder / f"ptb.{split}.txt"
        files[split].write_text("".join(f" {line} \n" for line in lines) + "\n" * (split == "test"))
    return files


def test_ptb_is_a_stream_of_its_words_with_an_end_at_each_line(tmp_path):
    """As its literature reads it: `open(...).read().replace("\\n", " <eos> ").split()`, of which all tokens count."""
    files = ptb_like(tmp_path)
    splits = {"train": "train", "val": "valid", "test": "test"}
    overrides = [f"input.{split}={files[name]}" for split, name in splits.items()]
    config = load(PreprocessConfig, ROOT / "configs/ptb-data.yaml", (*overrides, f"output={tmp_path / 'out'}"))
    manifest = build.build(config, SerialWorld())
    tokenizer = load_tokenizer(tmp_path / "out" / "tokenizer.json")
    expected = {
        split: files[name].read_text().rstrip("\n").replace("\n", " <eos> ").split() + ["<eos>"]
        for split, name in splits.items()
    }
    assert manifest.vocab_size == len(set(expected["train"])) == 207
    for split, words in expected.items():
        ids = np.concatenate(documents_of(tmp_path / "out", split))
        read = ["<eos>" if token == tokenizer.eos_id else tokenizer.decode(np.array([token])) for token in ids]
        assert read == words
        assert manifest.splits[split].num_documents == words.count("<eos>")
    assert manifest.statistics["unknown_tokens"] == sum(words.count("<unk>") for words in expected.values())
    assert tokenizer.encode("Mixed-Case mixed-case <unk> <eos>")[1:].tolist() == [tokenizer.unk_id] * 3


@pytest.mark.parametrize(("kind", "all_of_them"), [("word", 205), ("char", 30)])
def test_a_vocabulary_that_has_not_all_words_says_so(tmp_path, caplog, kind, all_of_them):
    """The default size has a place for fewer than a benchmark's."""
    files = ptb_like(tmp_path)
    what = {"word": "words", "char": "characters"}[kind]
    with caplog.at_level("INFO", "hvdlm"):
        for size in (all_of_them + 2, all_of_them + 1):
            assert "the most frequent of" not in caplog.text
            tokenizer = {"kind": kind, "vocab_size": size}
            of_splits({"train": str(files["train"])}, tmp_path / f"{size}", tokenizer=tokenizer)
    assert f"vocab_size {size}: has the most frequent of {all_of_them} {what}, the others are unknown" in caplog.text


def test_characters_of_a_file_are_one_text_with_its_line_ends(tmp_path):
    text = " First line:\nSecond, with\ta tab\n\n  É\n"
    for split, part in {"train": text, "val": text[5:20]}.items():
        (tmp_path / f"{split}.txt").write_text(part)
    overrides = [f"input.{split}={tmp_path}/{split}.txt" for split in ("train", "val")]
    config = load(PreprocessConfig, ROOT / "configs/shakespeare-char-data.yaml", (*overrides, f"output={tmp_path}/out"))
    manifest = build.build(config, SerialWorld())
    assert manifest.vocab_size == len(set(text)) + 2  # <unk> and <eos>
    assert texts_of(tmp_path / "out") == [text]
    assert texts_of(tmp_path / "out", "val") == [text[5:20]]
    assert [manifest.splits[split].num_tokens for split in ("train", "val")] == [len(text) + 1, 16]
