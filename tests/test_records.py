"""Labelled records from file to shards: typed fields, label lists, and what is wrong told with its place."""

import json
from pathlib import Path

import numpy as np
import pytest
from harness import files_of, preprocess

from hvdlm.data.fields import labels_digest
from hvdlm.data.manifest import read_manifest
from hvdlm.data.records import Records
from hvdlm.data.verify import verify
from hvdlm.errors import UserError
from hvdlm.tokenizer import load

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "ran", "中文", "很好"]
FIELDS = {
    "text": "text",
    "label": "label",
    "topics": {"type": "label", "several": True},
    "other": {"type": "pair", "raw": True},
    "score": "number",
}


def some_records(num, seed=0):
    random = np.random.default_rng(seed)
    for number in range(num):
        yield {
            "text": " ".join(random.choice(WORDS, random.integers(1, 9))),
            "label": str(random.choice(["neg", "pos"])),
            "topics": random.choice(["a", "b", "c"], random.integers(0, 3)).tolist(),
            "other": " ".join(random.choice(WORDS, random.integers(1, 5))),
            "score": number / 4,
        }


def as_lines(records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


@pytest.fixture
def inputs(tmp_path):
    for split, num in (("train", 60), ("val", 20)):
        (tmp_path / f"{split}.jsonl").write_text(as_lines(some_records(num, seed=num)))
    return {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "val")}


def make(inputs, out, **changes):
    settings = {"fields": FIELDS, "split": {"val": 0}, "tokenizer": {"kind": "word"}, **changes}
    return preprocess(inputs, out, input=inputs, **settings)


def told(records, number, tokenizer):
    """A record as the shards have it."""
    fields = records.fields
    return {
        "text": tokenizer.decode(records.tokens(number)[:-1]),
        "label": fields["label"].labels[records.values("label", number)[0]],
        "topics": [fields["topics"].labels[label] for label in records.values("topics", number)],
        "other": records.texts("other", number)[0],
        "score": float(records.values("score", number)[0]),
    }


def test_what_is_read_is_what_stands_in_the_shards(inputs, tmp_path):
    manifest = make(inputs, tmp_path / "out", shard_tokens=100)
    assert manifest.format_version == 2 and len(manifest.splits["train"].shards) > 2
    records, tokenizer = Records(tmp_path / "out", "train", manifest), load(tmp_path / "out" / "tokenizer.json")
    assert len(records) == 60
    for number, record in enumerate(some_records(60, seed=60)):
        record["topics"] = list(dict.fromkeys(record["topics"]))
        assert told(records, number, tokenizer) == record
        assert tokenizer.decode(records.ids("other", number)[:-1]) == record["other"]
    assert not verify(tmp_path / "out")


def test_labels_are_those_of_train_in_order_and_have_a_digest(inputs, tmp_path):
    make(inputs, tmp_path / "out")
    field = read_manifest(tmp_path / "out").fields["label"]
    assert field.labels == ("neg", "pos") and field.labels_digest == labels_digest(["neg", "pos"])


def test_labels_that_are_numbers_are_in_their_order(tmp_path):
    (tmp_path / "a.jsonl").write_text(as_lines({"text": "a b", "label": n} for n in (10, 9, 2, "1", 9.0)))
    preprocess(tmp_path / "a.jsonl", tmp_path / "out", split={"val": 0}, fields={"text": "text", "label": "label"})
    assert read_manifest(tmp_path / "out").fields["label"].labels == ("1", "2", "9", "10")


def test_a_folder_without_fields_is_of_version_1_with_the_same_bytes_as_ever(tmp_path):
    (tmp_path / "a.jsonl").write_text(as_lines({"text": "a b"} for _ in range(5)))
    preprocess(tmp_path / "a.jsonl", tmp_path / "out", split={"val": 0})
    content = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert content["format_version"] == 1 and "fields" not in content
    assert "fields" not in json.loads((tmp_path / "out" / "provenance.json").read_text())["config"]


def test_fields_are_read_alike_from_all_formats(tmp_path):
    records = [{**record, "topics": record["topics"] or ["a"]} for record in some_records(30)]
    (tmp_path / "a.jsonl").write_text(as_lines(records))
    (tmp_path / "a.json").write_text(json.dumps(records, indent=1))
    rows = [{**record, "topics": ";".join(record["topics"])} for record in records]
    for suffix, delimiter in (("csv", ","), ("tsv", "\t")):
        table = [delimiter.join(FIELDS), *(delimiter.join(str(row[key]) for key in FIELDS) for row in rows)]
        (tmp_path / f"a.{suffix}").write_text("\n".join(table) + "\n")
    suffixes = ["jsonl", "json", "csv", "tsv"]
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    import pyarrow.parquet  # noqa: F401

    arrow.parquet.write_table(arrow.Table.from_pylist(records), tmp_path / "a.parquet")
    suffixes.append("parquet")
    shards = []
    for suffix in suffixes:
        out = tmp_path / f"out-{suffix}"
        preprocess(tmp_path / f"a.{suffix}", out, split={"val": 0}, fields=FIELDS, tokenizer={"kind": "word"})
        shards.append((out / "train-00000.h5").read_bytes())
    assert all(shard == shards[0] for shard in shards[1:])


def test_words_come_with_their_tokens_and_labels(tmp_path):
    words = ["Wolff", "unbelievably", "ran", "北京"]
    (tmp_path / "a.jsonl").write_text(as_lines([{"text": words, "tags": ["B-PER", "O", "O", "B-LOC"]}]))
    fields = {"text": "text", "tags": {"type": "labels", "scheme": "BIO"}}
    preprocess(tmp_path / "a.jsonl", tmp_path / "out", split={"val": 0}, fields=fields)
    manifest, tokenizer = read_manifest(tmp_path / "out"), load(tmp_path / "out" / "tokenizer.json")
    records = Records(tmp_path / "out", "train", manifest)
    assert [manifest.fields["tags"].labels[n] for n in records.values("tags", 0)] == ["B-PER", "O", "O", "B-LOC"]
    ends = np.cumsum(records.values("text_words", 0))
    pieces = np.split(records.tokens(0)[:-1], ends[:-1])
    assert [tokenizer.decode(piece).strip() for piece in pieces] == words
    assert ends[-1] == len(records.tokens(0)) - 1


def test_answers_keep_their_characters_whatever_the_tokenizer(tmp_path):
    text = 'He said: "it cost $3.50, in 北京路 then".'
    (tmp_path / "a.jsonl").write_text(
        as_lines([{"context": text, "question": "how much?", "answers": {"text": ["$3.50"], "answer_start": [18]}}])
    )
    fields = {
        "text": {"type": "text", "key": "context", "raw": True},
        "question": "pair",
        "answers": "span",
    }
    preprocess(tmp_path / "a.jsonl", tmp_path / "out", split={"val": 0}, fields=fields)
    records = Records(tmp_path / "out", "train", read_manifest(tmp_path / "out"))
    assert records.texts("text", 0) == [text]
    start, stop = records.values("answers", 0)
    assert text[start:stop] == "$3.50"
    places = records.values("text_places", 0).reshape(-1, 2)
    assert "".join(text[a:b] for a, b in places) == "".join(text.split())


CONLL = "-DOCSTART- -X- O\n\nEU NNP B-ORG\nrejects VBZ O\n\nPeter NNP B-PER\nBlackburn NNP I-PER\n"


def test_conll_columns(tmp_path):
    (tmp_path / "a.conll").write_text(CONLL)
    fields = {"text": "text", "ner": {"type": "labels", "scheme": "BIO"}, "pos": {"type": "labels", "key": "1"}}
    del fields["pos"]
    preprocess(tmp_path / "a.conll", tmp_path / "out", split={"val": 0}, fields=fields, tokenizer={"kind": "word"})
    records = Records(tmp_path / "out", "train", read_manifest(tmp_path / "out"))
    labels = records.fields["ner"].labels
    assert [[labels[n] for n in records.values("ner", r)] for r in range(2)] == [["B-ORG", "O"], ["B-PER", "I-PER"]]


CONLLU = """# sent_id = 1
1\tShe\tshe\tPRON\t_\t_\t2\tnsubj\t_\t_\t_\tA0\tA0
2-3\tgonna\t_\t_\t_\t_\t_\t_\t_\t_\t_\t_\t_
2\tgon\tgo\tVERB\t_\t_\t0\troot\t_\t_\tgo.01\t_\t_
3\tna\tto\tPART\t_\t_\t4\tmark\t_\t_\t_\t_\t_
4\tbuy\tbuy\tVERB\t_\t_\t2\txcomp\t_\t_\tbuy.01\tA1\t_
"""


def test_frames_of_conllu_are_a_record_a_predicate(tmp_path):
    (tmp_path / "a.conllu").write_text(CONLLU)
    fields = {"text": "text", "roles": "labels", "predicate": "number"}
    preprocess(tmp_path / "a.conllu", tmp_path / "out", split={"val": 0}, fields=fields, tokenizer={"kind": "word"})
    records = Records(tmp_path / "out", "train", read_manifest(tmp_path / "out"))
    labels = records.fields["roles"].labels
    found = [
        (int(records.values("predicate", r)[0]), [labels[n] for n in records.values("roles", r)])
        for r in range(len(records))
    ]
    assert found == [(1, ["B-A0", "O", "O", "B-A1"]), (3, ["B-A0", "O", "O", "O"])]


def test_squad(tmp_path):
    question = {"question": "who?", "id": "q1", "answers": [{"text": "Ada", "answer_start": 4}]}
    impossible = {"question": "why?", "id": "q2", "answers": [], "is_impossible": True}
    content = {"data": [{"paragraphs": [{"context": "Mrs Ada wrote.", "qas": [question, impossible]}]}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    fields = {"text": {"type": "text", "raw": True}, "question": "pair", "answers": "span"}
    settings = {"format": "squad", "split": {"val": 0}, "fields": fields, "id_key": "id"}
    preprocess(tmp_path / "a.json", tmp_path / "out", **settings)
    records = Records(tmp_path / "out", "train", read_manifest(tmp_path / "out"))
    assert [records.values("answers", r).tolist() for r in range(2)] == [[4, 7], []]


def test_parallel_files(tmp_path):
    (tmp_path / "a.en").write_text("one two\nthree\n")
    (tmp_path / "a.de").write_text("eins zwei\ndrei")
    fields = {"text": {"type": "text", "key": "en"}, "target": {"type": "pair", "key": "de", "raw": True}}
    settings = {"format": "parallel", "split": {"val": 0}, "fields": fields}
    preprocess(tmp_path / "a.en", tmp_path / "out", **settings)
    records = Records(tmp_path / "out", "train", read_manifest(tmp_path / "out"))
    assert [records.texts("target", r)[0] for r in range(2)] == ["eins zwei", "drei"]
    inputs = json.loads((tmp_path / "out" / "provenance.json").read_text())["inputs"]
    assert [Path(one["path"]).name for one in inputs] == ["a.en", "a.de"]
    (tmp_path / "a.de").write_text("eins zwei\ndrei\nvier\n")
    with pytest.raises(
        UserError, match=r"a.en: the files have different numbers of lines \(.*a.en has 2, .*a.de has 3\)"
    ):
        preprocess(tmp_path / "a.en", tmp_path / "out2", **settings)


BAD = [
    ({"label": "x"}, "no key 'text'"),
    ({"text": "", "label": "x"}, "'text' is empty"),
    ({"text": " \n", "label": "x"}, "nothing but white space"),
    ({"text": "a", "label": None}, "'label' is empty"),
    ({"text": "a", "label": ""}, "'label' is empty"),
    ({"text": "a", "label": ["x"]}, "not a label"),
    ({"text": 5, "label": "x"}, "'text' is int, not text"),
]


@pytest.mark.parametrize(("record", "reason"), BAD)
def test_a_bad_record_is_told_with_its_line_or_counted(tmp_path, record, reason):
    source, fields = tmp_path / "a.jsonl", {"text": "text", "label": "label"}
    source.write_text(as_lines([{"text": "a", "label": "x"}, record, {"text": "b", "label": "x"}]))
    with pytest.raises(UserError, match=f"a.jsonl:2: .*{reason}"):
        preprocess(source, tmp_path / "out", split={"val": 0}, fields=fields)
    manifest = preprocess(source, tmp_path / "out", split={"val": 0}, fields=fields, on_error="skip")
    assert (manifest.num_documents, manifest.statistics["bad_records"]) == (2, 1)


WRONG = [
    ({"type": "labels"}, {"text": ["a", "b"], "y": ["O"]}, "has 1 labels for 2 words"),
    ({"type": "labels"}, {"text": ["a", "b c"], "y": ["O", "O"]}, "word 2 is 'b c'"),
    ({"type": "labels", "scheme": "BIO"}, {"text": ["a", "b"], "y": ["O", "I-X"]}, "word 2: I-X behind O breaks BIO"),
    ({"type": "label", "labels": ["x", "z"]}, {"text": "a", "y": "q"}, "'q' is none of fields.y.labels"),
    ({"type": "span"}, {"text": "a b", "y": [1, 9]}, r"\[1, 9\) is outside the text, which has 3 characters"),
    ({"type": "span"}, {"text": "a b", "y": {"text": "b", "answer_start": 0}}, "at 0 of the text is 'a', not 'b'"),
    ({"type": "number"}, {"text": "a", "y": "much"}, "'much', not a number"),
    ({"type": "number"}, {"text": "a", "y": True}, "True, not a number"),
    ({"type": "number"}, {"text": "a", "y": 10**400}, "not a number|cannot be read"),
    ({"type": "span"}, {"text": "a b", "y": {"text": None, "answer_start": None}}, "an answer is None at None"),
    ({"type": "span"}, {"text": "a b", "y": {"text": ["a"], "answer_start": 0}}, "not a text and a place"),
    ({"type": "span"}, {"text": "a b", "y": {"start": 1, "end": 3}}, "has the keys start, end, not text"),
    ({"type": "span"}, {"text": "a b", "y": [True, 2]}, "'y'.*True"),
    ({"type": "pair", "raw": True}, {"text": "a", "y": "b\0c"}, "holds the character NUL"),
    ({"type": "pair"}, {"text": "a", "y": " "}, "'y' is empty"),
]


@pytest.mark.parametrize(("field", "record", "reason"), WRONG)
def test_a_value_that_is_not_of_its_type(tmp_path, field, record, reason):
    (tmp_path / "a.jsonl").write_text("\n\n" + as_lines([record]))
    with pytest.raises(UserError, match=f"a.jsonl:3: .*{reason}"):
        preprocess(tmp_path / "a.jsonl", tmp_path / "out", split={"val": 0}, fields={"text": "text", "y": field})


def test_a_label_that_train_lacks_is_told_with_its_line_or_counted(inputs, tmp_path):
    with Path(inputs["val"]).open("a") as file:
        file.write(as_lines([{**next(some_records(1)), "label": "odd"}]))
    with pytest.raises(UserError, match=r"val.jsonl:21: label: 'odd' is no label of train \(neg, pos\)"):
        make(inputs, tmp_path / "out")
    manifest = make(inputs, tmp_path / "out", on_error="skip", dropped=True)
    assert manifest.splits["val"].num_documents == 20
    assert manifest.statistics["unknown_label_records"] == 1
    (line,) = (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == "unknown_label_records"


def test_a_config_that_contradicts_itself(inputs, tmp_path):
    for fields, reason in (
        ({"a": "label"}, "none is of type text"),
        ({"a": "text", "b": "text"}, "a and b are both of type text"),
        ({"text": "text", "Bad": "label"}, "a name has small letters"),
        ({"text": "text", "x_words": "label"}, "does not end with"),
        (
            {"text": "text", "x": {"type": "number", "labels": ["a"]}},
            "is of type label and labels, not number; leave it out",
        ),
        ({"text": "text", "x": {"type": "label", "labels": ["a", "a"]}}, "has a label twice"),
        ({"text": "text", "x": {"type": "label", "labels": [" a"]}}, "white space around one"),
    ):
        with pytest.raises(UserError, match=reason):
            make(inputs, tmp_path / "out", fields=fields)
    with pytest.raises(UserError, match="dedup.near: compares texts alone"):
        make(inputs, tmp_path / "o", dedup={"near": True})
    with pytest.raises(UserError, match="clean.unicode: would move characters of 'text'"):
        make(inputs, tmp_path / "o", fields={"text": "text", "y": "labels"}, clean={"unicode": "NFKC"})


@pytest.mark.parametrize(("field", "record"), [(field, record) for field, record, _ in WRONG])
def test_one_bad_record_costs_no_other(tmp_path, field, record):
    good = {"label": "x", "labels": ["O"], "span": [0, 1], "number": 1, "pair": "b"}[field["type"]]
    if "labels" in field:
        good = field["labels"][0]
    rows = [{"text": "a", "y": good}, record, {"text": "a", "y": good}]
    (tmp_path / "a.jsonl").write_text(as_lines(rows))
    fields = {"text": "text", "y": field}
    manifest = preprocess(tmp_path / "a.jsonl", tmp_path / "out", split={"val": 0}, fields=fields, on_error="skip")
    assert (manifest.num_documents, manifest.statistics["bad_records"]) == (2, 1)


def test_a_vocabulary_of_words_knows_what_is_encoded_word_by_word(tmp_path):
    lines = [{"text": "Ada's clock, (old).", "y": [[0, 3]]}] * 3
    (tmp_path / "a.jsonl").write_text(as_lines(lines))
    fields = {"text": {"type": "text", "raw": True}, "y": "span"}
    settings = {"split": {"val": 0}, "fields": fields, "tokenizer": {"kind": "word", "words": "whitespace"}}
    manifest = preprocess(tmp_path / "a.jsonl", tmp_path / "out", **settings)
    assert manifest.statistics.get("unknown_tokens", 0) == 0


def test_an_empty_cell_is_no_labels_where_there_may_be_several(tmp_path):
    (tmp_path / "a.csv").write_text("text,y\na,\nb,x;z\n")
    fields = {"text": "text", "y": {"type": "label", "several": True}}
    preprocess(tmp_path / "a.csv", tmp_path / "out", split={"val": 0}, fields=fields)
    records = Records(tmp_path / "out", "train", read_manifest(tmp_path / "out"))
    assert [records.values("y", number).tolist() for number in range(2)] == [[], [0, 1]]


def test_second_texts_are_cleaned_too(tmp_path):
    (tmp_path / "a.jsonl").write_text(as_lines([{"text": "ＡＢ", "y": "ＣＤ"}]))
    fields = {"text": {"type": "text", "raw": True}, "y": {"type": "pair", "raw": True}}
    preprocess(tmp_path / "a.jsonl", tmp_path / "out", split={"val": 0}, fields=fields, clean={"unicode": "NFKC"})
    records = Records(tmp_path / "out", "train", read_manifest(tmp_path / "out"))
    assert (records.texts("text", 0), records.texts("y", 0)) == (["AB"], ["CD"])


def test_the_digest_of_the_fields_says_nothing_of_shards_and_all_of_labels(inputs, tmp_path):
    one = make(inputs, tmp_path / "one").splits["train"]
    many = make(inputs, tmp_path / "many", shard_tokens=50).splits["train"]
    assert one.fields_digest == many.fields_digest != ""
    lines = [json.loads(line) for line in Path(inputs["train"]).read_text().splitlines()]
    lines[7]["label"] = "pos" if lines[7]["label"] == "neg" else "neg"
    Path(inputs["train"]).write_text(as_lines(lines))
    other = make(inputs, tmp_path / "other").splits["train"]
    assert other.digest == one.digest and other.fields_digest != one.fields_digest


def test_dedup_keeps_records_that_differ_in_a_label_alone(tmp_path):
    lines = [{"text": "a", "label": "x"}, {"text": "a", "label": "y"}, {"text": "a", "label": "x"}]
    (tmp_path / "a.jsonl").write_text(as_lines(lines))
    fields = {"text": "text", "label": "label"}
    manifest = preprocess(
        tmp_path / "a.jsonl", tmp_path / "out", split={"val": 0}, fields=fields, dedup={"exact": True}
    )
    assert manifest.num_documents == 2


def test_a_killed_job_goes_on_to_the_same_bytes(inputs, tmp_path, monkeypatch):
    make(inputs, tmp_path / "whole")
    from hvdlm.preprocessing import build

    def die(*_args, **_kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(build, "assemble", die)
        with pytest.raises(KeyboardInterrupt):
            make(inputs, tmp_path / "out")
    make(inputs, tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
