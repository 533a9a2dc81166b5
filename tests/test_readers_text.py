"""Text formats: ranges share a file without loss, memory is bounded, and a fault is named with its place."""

import json

import pytest
from reading import COMPRESS, STRICT, write_packed
from reading import read as found

from hvdlm.errors import UserError
from hvdlm.preprocessing import documents
from hvdlm.preprocessing.documents import BadRecord, Document, ReadOptions, find_files
from hvdlm.preprocessing.readers import FORMATS, text


def read(path, options=STRICT):
    """The texts; a bad record, which has none, is a failure."""
    return [item.text for item in found(path, options)]


@pytest.fixture(params=["", *COMPRESS])
def write(request, tmp_path):
    return lambda name, content: write_packed(tmp_path / (name + request.param), content)


def test_txt_is_a_document_a_file(write):
    assert read(write("a.txt", "one\n\ntwo é\n".encode())) == ["one\n\ntwo é\n"]


def test_paragraphs_are_documents_between_blank_lines(write):
    options = ReadOptions("paragraphs")
    path = write("a.txt", "\n\none\nmore é\n \n\ntwo\n\nthree".encode())
    assert read(path, options) == ["one\nmore é", "two", "three"]
    good, bad = found(write("b.txt", b"one\n\n\nab\xff\n"), options)
    assert good.text == "one"
    assert bad.place.endswith(": byte 8")
    assert "is not UTF-8" in bad.reason


def test_separated_documents(write):
    options = ReadOptions("separated", separator="<|endoftext|>")
    assert read(write("a.txt", "eins\n<|endoftext|>\nzwei ü<|endoftext|>".encode()), options) == ["eins", "zwei ü"]
    with pytest.raises(UserError, match="overlaps itself"):
        read(write("b.txt", b"x"), ReadOptions("separated", separator="---"))


def test_wikitext_is_a_document_an_article(write):
    content = b" \n = One = \n \n text \n = = Section = = \n more \n \n = Two = \n \n second \n"
    articles = read(write("a.tokens", content))
    assert [article.split("=")[1].strip() for article in articles] == ["One", "Two"]
    assert "= = Section = =" in articles[0]


def test_other_encodings(write):
    options = ReadOptions(encoding="gb18030")
    assert read(write("a.txt", "中文，句子".encode("gb18030")), options) == ["中文，句子"]
    (bad,) = found(write("b.txt", "中文".encode("gb18030") + b"\xff\xff"), options)
    assert bad == BadRecord(bad.place, "is not gb18030; set another encoding, or errors: replace")
    assert bad.place.endswith("byte 4")
    path = write("c.jsonl", '{"text": "é"}\n{"text": "b"}'.encode("utf-16"))
    assert read(path, ReadOptions(encoding="utf-16")) == ["é", "b"]


def test_a_byte_order_mark_is_no_text(write):
    assert read(write("a.txt", b"\xef\xbb\xbfabc")) == ["abc"]
    assert read(write("a.jsonl", b'\xef\xbb\xbf{"text": "abc"}')) == ["abc"]


def test_ids_and_labels(write):
    path = write("a.jsonl", b'{"text": "a", "id": 7, "kind": "news"}\n{"text": "b"}')
    one, two = found(path, ReadOptions(id_key="id", label_key="kind"))
    assert (one.id, one.label) == ("7", "news")
    assert (two.id, two.label) == (None, None)


WRITTEN = {
    "7": "7",
    "-9007199254740993": "-9007199254740993",
    "123456789012345678901234567890": "123456789012345678901234567890",
    "1e3": "1e3",
    "1.50": "1.50",
    "0.1000000000000000055": "0.1000000000000000055",
    '"007"': "007",
    '"\\u4e2d\\ud800"': "中\ufffd",
    "true": "true",
    "null": None,
    "[1.0,  2e1]": "[1.0,  2e1]",
    '{"a": 1.0}': '{"a": 1.0}',
    "NaN": "NaN",
}


@pytest.mark.parametrize("value", WRITTEN)
def test_ids_and_labels_are_kept_as_written(write, value):
    line = f'{{"id": 1.25, "skip": ["{{", 1e5], "text": "中", "id": {value} , "meta": {{"label":{value}}}}}'
    (one,) = found(write("a.jsonl", b"\xef\xbb\xbf" + line.encode()), ReadOptions(id_key="id", label_key="meta.label"))
    assert (one.text, one.id, one.label) == ("中", WRITTEN[value], WRITTEN[value])


NESTED = {
    '{"a": {"b": {"c": "deep"}}}': "deep",
    '{"a": {"b.c": "dot inside"}}': "dot inside",
    '{"a.b": {"c": "dot before"}, "a": {"b": {"c": "no"}}}': "dot before",
    '{"a.b.c": "whole name", "a": {"b": {"c": "no"}}}': "whole name",
    '{"a.b": 1, "a": {"x": {}, "b": {"c": "second try"}}}': "second try",
}


@pytest.mark.parametrize("line", NESTED)
def test_a_key_leads_into_objects_unless_a_name_has_the_dots(tmp_path, line, monkeypatch):
    (tmp_path / "a.jsonl").write_text(line)
    assert read(tmp_path / "a.jsonl", ReadOptions(text_key="a.b.c")) == [NESTED[line]]
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 1000)
    text = "long " * 2000
    head, _, tail = line.rpartition(json.dumps(NESTED[line]))
    (tmp_path / "a.jsonl").write_text(f"{head}{json.dumps(text)}{tail}")
    if '"no"' not in tail:  # what stands behind the text of a long line is not looked at
        assert "".join(read(tmp_path / "a.jsonl", ReadOptions(text_key="a.b.c"))) == text


def test_an_id_that_is_nested_too_deeply_for_python_is_a_bad_record(write):
    content = '{"text": "a", "id": ' + "[" * 1000 + "]" * 1000 + '}\n{"text": "b", "id": 1.0}'
    deep, good = found(write("a.jsonl", content.encode()), ReadOptions(id_key="id"))
    assert "nested too deeply" in deep.reason if isinstance(deep, BadRecord) else deep.id == "[" * 1000 + "]" * 1000
    assert good.id == "1.0"


def test_a_nested_key_that_is_not_there_is_a_bad_record(write):
    (bad,) = found(write("a.jsonl", b'{"a": {"x": "y"}, "a.b": []}'), ReadOptions(text_key="a.b.c"))
    assert bad.reason == "no key 'a.b.c' (it has: a, a.b); set text_key"


def test_jsonl_is_a_document_a_line(write):
    lines = [{"text": "one\nwith newline"}, {"id": 3, "text": "zwei ü"}]
    content = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    assert read(write("a.jsonl", content.encode())) == ["one\nwith newline", "zwei ü"]
    assert read(write("b.jsonl", content.encode() + b"\n\n")) == ["one\nwith newline", "zwei ü"]


def test_half_a_surrogate_pair_becomes_a_replacement_character(write):
    (text,) = read(write("a.jsonl", b'{"text": "a\\ud83dz"}'))
    assert text == "a\ufffdz"


def test_a_long_text_is_cut_at_line_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 1000)
    lines = [f"line {number}: äöü\n" for number in range(400)]
    (tmp_path / "a.txt").write_text("".join(lines))
    pieces = read(tmp_path / "a.txt")
    assert "".join(pieces) == "".join(lines)
    assert all(piece.endswith("\n") for piece in pieces)
    assert max(map(len, pieces)) < 1100


def test_a_line_without_end_is_cut_between_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 1000)
    monkeypatch.setattr(text, "BLOCK_BYTES", 64)
    (tmp_path / "a.txt").write_text("中" * 2000)
    assert "".join(read(tmp_path / "a.txt")) == "中" * 2000
    assert "".join(read(tmp_path / "a.txt", ReadOptions("paragraphs"))) == "中" * 2000


def test_a_long_line_without_the_key_is_one_bad_record(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 1000)
    (tmp_path / "a.jsonl").write_text(json.dumps({"body": "x" * 9000}) + '\n{"text": "z"}\n')
    bad, good = found(tmp_path / "a.jsonl")
    assert isinstance(bad, BadRecord)
    assert good.text == "z"


NO_KEY = "no key 'text'"
FAULTS = {
    "missing key": ("a.jsonl", b'{"text": "a"}\n{"body": "b"}\n', 14, f"{NO_KEY} (it has: body); set text_key"),
    "many keys": ("a.jsonl", b'{"body": "b", "id": 1}\n', 0, f"{NO_KEY} (it has: body, id); set text_key"),
    "not JSON": ("a.jsonl", b'{"text": "a"}\n\n{"text": \n', 15, "not valid JSON"),
    "nested too deeply": ("a.jsonl", b"[" * 200_000, 0, "not valid JSON"),
    "not an object": ("a.jsonl", b"[1]\n", 0, f"{NO_KEY} (it has: list)"),
    "not text": ("a.jsonl", b'{"text": 5}\n', 0, "'text' is int, not text"),
    "not UTF-8 in jsonl": ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', 24, "is not UTF-8"),
    "not UTF-8": ("a.txt", b"abc\xe9def", 3, "is not UTF-8; set encoding, or errors: replace"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_is_named_with_its_place_and_the_rest_is_read(case, write):
    name, content, position, reason = FAULTS[case]
    path = write(name, content)
    *good, bad = found(path)
    assert all(isinstance(item, Document) for item in good)
    assert bad.place == f"{path}: byte {position}"
    assert bad.reason.startswith(reason)
    assert "\n" not in bad.reason


def test_an_unknown_suffix(write):
    with pytest.raises(UserError, match=r"cannot tell its format from '.xyz'; set format: txt, paragraphs, "):
        read(write("a.xyz", b"abc"))


def test_replace_keeps_what_can_be_read(write):
    assert read(write("a.txt", b"abc\xe9def"), ReadOptions(errors="replace")) == ["abc\ufffddef"]


def test_every_format_has_a_suffix_or_must_be_asked_for():
    assert {name for name, format_ in FORMATS.items() if not format_.suffixes} == {"paragraphs", "separated"}


def test_sources_are_files_folders_globs_and_lists(tmp_path):
    for name in ("b.txt", "a.txt", "sub/c.txt", ".hidden", ".git/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    names = [path.removeprefix(str(tmp_path) + "/") for path, _ in find_files([str(tmp_path)])]
    assert names == ["a.txt", "b.txt", "sub/c.txt"]
    assert len(find_files([f"{tmp_path}/*.txt", f"{tmp_path}/a.txt"])) == 2  # each file once
    assert [size for _, size in find_files([f"{tmp_path}/**/c.txt"])] == [1]
    with pytest.raises(UserError, match=r"input '.*nothing': no such file, folder or match"):
        find_files([str(tmp_path / "nothing")])


def test_the_builtin_corpus_is_tens_of_megabytes_of_real_text():
    files = find_files(["python-stdlib"])
    assert sum(size for _, size in files) > 8e6
    assert not any("site-packages" in path for path, _ in files)


RECORDS = [
    {"text": 'a "quoted" ] } \\\\', "id": 1, "n": [[], {"x": "]"}]},
    {"id": 2, "text": "zwei \U0001f600 ü"},
    {"text": ""},
] * 20
LAYOUTS = {
    "an array": lambda: json.dumps(RECORDS),
    "an array in lines": lambda: json.dumps(RECORDS, indent=2, ensure_ascii=False),
    "objects in lines": lambda: "\n".join(json.dumps(record, indent=4) for record in RECORDS),
    "objects without anything between": lambda: "".join(map(json.dumps, RECORDS)),
    "two arrays": lambda: json.dumps(RECORDS[:7]) + "\n" + json.dumps(RECORDS[7:]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("limit", [100, 101, 4096])
def test_json_is_a_document_a_record(write, monkeypatch, layout, limit):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", limit + 60)
    content = b"\xef\xbb\xbf" + LAYOUTS[layout]().encode()
    documents_ = found(write("a.json", content), ReadOptions(id_key="id"))
    assert [d.text for d in documents_] == [record["text"] for record in RECORDS]
    assert [d.id for d in documents_] == [record.get("id") and str(record["id"]) for record in RECORDS]
    assert all(content[d.position : d.position + 1] == b"{" for d in documents_)


@pytest.mark.parametrize("large", [b'{"text": "' + b"x\\\\]" * 500 + b'"}', b'"' + b'\\"' * 900 + b'"', b"1" * 3000])
def test_what_is_no_record_does_not_lose_the_next(write, monkeypatch, large):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 200)
    middle = [b'"word"', b"12", b"{]", large, b'{"body": 1}', b"[1]"]
    first, *bad, last = found(write("a.json", b'[{"text": "a"}, ' + b", ".join(middle) + b', {"text": "b"}]'))
    assert (first.text, last.text) == ("a", "b")
    assert [type(b) for b in bad[:2]] == [BadRecord] * 2
    no_key = "no key 'tex"
    assert [b.reason[:11] for b in bad] == [no_key, no_key, "not valid J", "larger than", no_key, no_key]


@pytest.mark.parametrize("tail", [b"", b",", b', {"text": "b', b', {"text": "b"', b', {"text": "' + b"b" * 999])
def test_json_without_an_end_is_told(write, monkeypatch, tail):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 200)
    first, *bad = found(write("a.json", b'[{"text": "a"}' + tail))
    assert first.text == "a"
    assert bad[-1].reason.startswith("cut short")
