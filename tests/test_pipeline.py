"""Between file and tokenizer: cleaned, masked, filtered; every document that is left out is accounted for."""

import json

import pytest
import yaml
from harness import preprocess, texts_of

from hvdlm.data.manifest import read_manifest
from hvdlm.data.shards import doc_column
from hvdlm.errors import UserError
from hvdlm.preprocessing import documents

LINES = [
    {"text": "Ｈｅｌｌｏ  ｗｏｒｌｄ, this is long enough to stay", "id": 1, "kind": "a"},
    {"text": "write to a.person@example.org or call 138-0013-8000 today please", "id": 2, "kind": "b"},
    {"text": "short", "id": 3},
    {"text": 5, "id": 4},
    {"text": "   ", "id": 5},
    {"text": "这是一个足够长的中文句子，所以它应该留下来，不会被过滤掉的。", "id": 6},
]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in with 'quotes' and\nnewline" / "a.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in LINES))
    return path


SETTINGS = yaml.safe_load("""
split: {val: 0}
id_key: id
label_key: kind
on_error: skip
dropped: true
clean: {width: letters, whitespace: true}
pii: {email: true, phone: true}
filter: {min_chars: 20}
""")


def test_texts_that_were_cut_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 1000)
    texts = ["short", "word " * 1000, "x" * 1000, "x" * 1001]
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    manifest = preprocess(source, tmp_path / "out", split={"val": 0})
    assert manifest.statistics["cut_documents"] == 2
    assert "".join(texts_of(tmp_path / "out")) == "".join(texts)


def test_every_document_is_kept_or_accounted_for(source, tmp_path):
    manifest = preprocess(source, tmp_path / "out", **SETTINGS)
    assert texts_of(tmp_path / "out") == [
        "Hello world, this is long enough to stay",
        "write to <EMAIL> or call <PHONE> today please",
        LINES[5]["text"],
    ]
    counts = manifest.statistics
    reasons = ("filter_min_chars", "bad_records", "empty_documents", "pii_email", "pii_phone", "clean_width")
    assert {name: counts[name] for name in ("documents", *reasons)} == {"documents": 3, **dict.fromkeys(reasons, 1)}
    dropped = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert [line["reason"].split(":")[0] for line in dropped] == ["filter_min_chars", "bad record", "empty_documents"]
    assert dropped[0]["id"] == "3"
    assert dropped[0]["position"] == source.read_bytes().index(b'{"text": "short"')
    assert "example.org" not in (tmp_path / "out" / "dropped.jsonl").read_text()
    (shard,) = read_manifest(tmp_path / "out").splits["train"].shards
    assert doc_column(tmp_path / "out", shard, "doc_ids") == ["1", "2", "6"]
    assert doc_column(tmp_path / "out", shard, "doc_labels") == ["a", "b", ""]


def test_a_bad_record_is_fatal_unless_it_may_be_skipped(source, tmp_path, caplog):
    with pytest.raises(UserError, match=r"a.jsonl:4: 'text' is int, not text \(on_error: skip would pass"):
        preprocess(source, tmp_path / "strict", **SETTINGS | {"on_error": "fail"})
    assert not (tmp_path / "strict" / "manifest.json").exists()
    with caplog.at_level("ERROR", "hvdlm"):
        preprocess(source, tmp_path / "lenient", **SETTINGS)
    assert "'text' is int, not text; skipped" in caplog.text


def test_many_bad_records_are_reported_once_and_counted(tmp_path, caplog):
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n' + "bad\n" * 1000)
    with caplog.at_level("ERROR", "hvdlm"):
        manifest = preprocess(tmp_path / "a.jsonl", tmp_path / "out", split={"val": 0}, on_error="skip")
    assert manifest.statistics["bad_records"] == 1000
    assert len(caplog.records) < 10


def test_provenance_names_everything_that_was_read(source, tmp_path):
    import xxhash

    preprocess(source, tmp_path / "out", **SETTINGS)
    found = json.loads((tmp_path / "out" / "provenance.json").read_text())
    (part,) = found["inputs"]
    assert part["xxh3_128"] == xxhash.xxh3_128_hexdigest(source.read_bytes())
    assert found["config"]["pii"]["email"] is True
    assert {"hvdlm", "python", "numpy", "h5py"} <= set(found["versions"])


def test_the_summary_tells_where_time_went(source, tmp_path):
    preprocess(source, tmp_path / "out", **SETTINGS)
    found = json.loads((tmp_path / "out" / "preprocess.json").read_text())
    assert found["num_documents"] == 3
    assert set(found["seconds"]) >= {"plan", "vocabulary", "tokenize", "shards", "read back"}
    assert found["imbalance"] == 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoding": "klingon"}, "encoding 'klingon' is no text encoding"),
        ({"encoding": "base64"}, "encoding 'base64' is no text encoding"),
        ({"encoding": "punycode"}, "encoding 'punycode' is no text encoding"),
        ({"encoding": "idna"}, "encoding 'idna' is no text encoding"),
        ({"separator": "x"}, "format: separated and separator go together"),
        ({"format": "separated"}, "format: separated and separator go together"),
    ],
)
def test_settings_that_cannot_be(source, tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        preprocess(source, tmp_path / "out", **settings)


def test_a_file_of_unknown_format_is_found_before_any_work(source, tmp_path):
    (source.parent / "b.xyz").write_text("x")
    with pytest.raises(UserError, match=r"b.xyz: cannot tell its format"):
        preprocess(source.parent, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_contains_itself_by_a_link(source, tmp_path):
    (source.parent / "loop").symlink_to(source.parent)
    manifest = preprocess(source.parent, tmp_path / "out", **SETTINGS)
    assert manifest.num_documents == 3
