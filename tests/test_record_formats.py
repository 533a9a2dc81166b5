"""What fields may ask of a format: what it cannot give is refused in one line, before any work."""

import json

import pytest
from harness import preprocess
from reading import fields_for, read
from test_records import CONLLU

from hvdlm.data.manifest import read_manifest
from hvdlm.data.shards import doc_column
from hvdlm.errors import UserError
from hvdlm.preprocessing import build
from hvdlm.preprocessing.documents import Document, ReadOptions

SQUAD = {"context": "Mrs Ada wrote.", "qas": [{"question": "who?", "answers": [{"text": "Ada", "answer_start": 4}]}]}
FILES = {
    "conllu": CONLLU,
    "conll": "EU NNP B-ORG\nrejects VBZ O\n",
    "csv": "text,label\na b,x\n",
    "jsonl": '{"text": "a b", "label": "x"}\n',
    "squad": json.dumps({"data": [{"paragraphs": [SQUAD]}]}),
    "parallel": "a b\n",
    "lines": "a b\n",
}
ANSWERED = {"text": {"type": "text", "raw": True}, "question": "pair", "answers": "span"}


def labels(key):
    return {"text": "text", "y": {"type": "labels", "key": key}}


UNKNOWN = [
    (
        "conllu",
        {"text": "text", "deprell": "labels"},
        r"fields.deprell.key: CoNLL-U has no 'deprell' .*'deprel'\?.*upos",
    ),
    ("conllu", labels("posu"), r"fields.y.key: CoNLL-U has no 'posu'.* set it to one of id, form"),
    ("conllu", {"text": "text", "good": "label"}, "fields.good.key: CoNLL-U has no 'good'"),
    ("conllu", {"text": "text", "upos": "number"}, "fields.upos.type: upos of CoNLL-U is of type text or labels, not"),
    ("conllu", {"text": "text", "predicate": "labels"}, "fields.predicate.type: .* is of type number, not labels"),
    ("conll", labels("3"), ":1: has 3 columns, and no column 3; set fields.y.key"),
    ("conll", labels("-4"), ":1: has 3 columns, and no column -4; set fields.y.key"),
    ("conll", labels("0"), "column 0 is that of text and of y; set fields.y.key"),
    ("conll", labels("pos"), "fields.y.key: 'pos' is no number of a column"),
    ("conll", labels("²"), "fields.y.key: '²' is no number of a column"),
    ("conll", {"text": "text", "y": "number"}, "fields.y.type: a column of words is of type text or labels, not"),
    ("csv", {"text": "text", "lable": "label"}, r"no column 'lable' \(it has: text, label\); set fields.lable.key"),
    ("jsonl", {"text": "text", "lable": "label"}, r":1: no key 'lable' \(it has: text, label\); set fields.lable.key"),
    ("squad", {**ANSWERED, "n": "number"}, r"question 0: no key 'n' \(it has: .*answers\); set fields.n.key"),
    ("parallel", {"text": {"type": "text", "key": "parallel"}, "y": "pair"}, "y: is not there .*; set fields.y.key"),
    ("lines", {"text": "text", "label": "label"}, "lines has texts alone; labelled records are of format: jsonl, "),
]


@pytest.mark.parametrize(("name", "fields", "told"), UNKNOWN)
def test_a_field_that_a_format_cannot_give_is_refused_before_any_work(name, fields, told, tmp_path, monkeypatch):
    """Also of the last file that is read, and with its name."""
    for split in ("train", "val"):
        (tmp_path / f"{split}.{name}").write_text(FILES[name])
    inputs = {split: str(tmp_path / f"{split}.{name}") for split in ("train", "val")}
    monkeypatch.setattr(build, "_find_tokenizer", lambda *_: pytest.fail("there was work before it"))
    with pytest.raises(UserError, match=told) as raised:
        preprocess(inputs, tmp_path / "out", input=inputs, format=name, split={"val": 0}, fields=fields)
    assert str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)


def test_a_column_that_the_last_split_alone_lacks_is_told_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("text,label\na,x\n")
    (tmp_path / "b.csv").write_text("text,class\na,x\n")
    inputs = {"train": str(tmp_path / "a.csv"), "val": str(tmp_path / "b.csv")}
    monkeypatch.setattr(build, "_find_tokenizer", lambda *_: pytest.fail("there was work before it"))
    with pytest.raises(UserError, match="b.csv: no column 'label'"):
        preprocess(inputs, tmp_path / "out", input=inputs, split={"val": 0}, fields={"text": "text", "label": "label"})


def test_where_all_records_are_passed_over_the_first_is_told(tmp_path):
    (tmp_path / "a.jsonl").write_text(FILES["jsonl"] * 2)
    settings = {"fields": {"text": "text", "lable": "label"}, "on_error": "skip", "tokenizer": {"kind": "word"}}
    with pytest.raises(UserError, match="no document of its sample is left .*: no key 'lable'"):
        preprocess(tmp_path / "a.jsonl", tmp_path / "out", split={"val": 0}, **settings)


ROLES = {"text": "text", "roles": "labels", "predicate": "number"}


@pytest.mark.parametrize("asked", ["auto", "conllu"])
def test_roles_are_spans_in_bio_unless_it_is_said_that_they_are_none(asked, tmp_path):
    (tmp_path / "a.conllu").write_text(CONLLU)
    for entry, scheme in (("labels", "BIO"), ({"type": "labels", "scheme": None}, None)):
        out = tmp_path / f"{scheme}"
        preprocess(tmp_path / "a.conllu", out, format=asked, split={"val": 0}, fields={**ROLES, "roles": entry})
        assert read_manifest(out).fields["roles"].scheme == scheme


def test_roles_of_several_predicates_want_to_know_which(tmp_path):
    (tmp_path / "two.conllu").write_text(CONLLU)
    rows = [line.split("\t") for line in CONLLU.splitlines()[1:]]
    kept = [["_" if cell == "buy.01" else cell for cell in row[:12]] for row in rows]  # the frame of gon alone
    (tmp_path / "one.conllu").write_text("".join("\t".join(row) + "\n" for row in kept))
    fields = {"text": "text", "roles": "labels"}
    with pytest.raises(UserError, match="two.conllu: .* roles of 2 predicates, .*; add predicate: number to fields"):
        preprocess(tmp_path / "two.conllu", tmp_path / "out", split={"val": 0}, fields=fields, on_error="skip")
    assert preprocess(tmp_path / "one.conllu", tmp_path / "one", split={"val": 0}, fields=fields).num_documents == 1
    named = {"text": "text", "roles": "labels", "which": {"type": "number", "key": "predicate"}}
    assert preprocess(tmp_path / "two.conllu", tmp_path / "named", split={"val": 0}, fields=named).num_documents == 2


def test_roles_of_a_file_without_frames(tmp_path):
    (tmp_path / "a.conllu").write_text("".join("\t".join(line.split("\t")[:10]) + "\n" for line in CONLLU.splitlines()))
    with pytest.raises(UserError, match="a.conllu: gives no record of the fields text, roles, predicate; .* frames"):
        preprocess(tmp_path / "a.conllu", tmp_path / "out", split={"val": 0}, fields=ROLES)


BLANKS = ["", " " * 80, " " * 81, " " * 300, "\t" * 200 + "\r", "\u3000" * 5, "\x0b" * 100 + "\u00a0"]


@pytest.mark.parametrize("blank", BLANKS, ids=["none", "80", "81", "300", "tabs", "ideographic", "other"])
def test_a_line_of_white_space_parts_sentences_however_long_and_wherever_a_file_is_cut(blank, tmp_path):
    sentences = [[f"w{n} O" for n in range(start, start + 1 + start % 3)] for start in range(6)]
    content = f"\n{blank}\n".join("\n".join(words) for words in sentences).encode()
    (tmp_path / "a.conll").write_bytes(content)
    options = ReadOptions(format="conll", fields=fields_for("conll"))

    def words_of(found):
        assert all(isinstance(one, Document) for one in found), found
        return [one.text.split() for one in found]

    whole = words_of(read(tmp_path / "a.conll", options))
    assert whole == [[word.split()[0] for word in words] for words in sentences]
    for cut in range(1, len(content)):
        parts = [read(tmp_path / "a.conll", options, *bounds) for bounds in ((0, cut), (cut, len(content)))]
        assert sum(map(words_of, parts), []) == whole, cut


def test_ids_of_questions_are_kept_and_those_of_sentences_are_none(tmp_path, caplog):
    questions = [{**SQUAD["qas"][0], "id": name} for name in ("q1", "q2")]
    (tmp_path / "a.json").write_text(json.dumps({"data": [{"paragraphs": [{**SQUAD, "qas": questions}]}]}))
    settings = {"split": {"val": 0}, "id_key": "id"}
    manifest = preprocess(tmp_path / "a.json", tmp_path / "out", format="squad", fields=ANSWERED, **settings)
    (shard,) = manifest.splits["train"].shards
    assert doc_column(tmp_path / "out", shard, "doc_ids") == ["q1", "q2"]
    assert "id_key has no effect" not in caplog.text
    (tmp_path / "a.conll").write_text(FILES["conll"])
    preprocess(tmp_path / "a.conll", tmp_path / "o", fields={"text": "text", "tags": "labels"}, **settings)
    assert "id_key has no effect: all input is conll" in caplog.text
