"""Text formats: ranges share a file without loss, memory is bounded, and a fault is named with its place."""

import bz2
import gzip
import itertools
import json
import lzma
import os
import pickle
import re
import zlib

import pytest
import zstandard
from reading import COMPRESS, STRICT, write_packed
from reading import read as found

from hvdlm.errors import UserError
from hvdlm.preprocessing import documents
from hvdlm.preprocessing.documents import BadRecord, Document, ReadOptions, TableConfig, find_files
from hvdlm.preprocessing.readers import FORMATS, can_split, check_formats, encodings, text


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


def test_lines_are_documents_and_blank_ones_are_none(write):
    """What stands in a line stays as it is: blanks, and what other languages take for a line's end."""
    options = ReadOptions("lines")
    path = write("a.txt", " one <unk> \n\ntwo\x0b\u2028é\r\n \t\nthree\n\n".encode())
    assert read(path, options) == [" one <unk> ", "two\x0b\u2028é", "three"]
    *good, bad, last = found(write("b.txt", b"one\nab\xff\ntwo"), options)
    assert [item.text for item in (*good, last)] == ["one", "two"]
    assert bad.place.endswith(": byte 6")


def test_separated_documents(write):
    options = ReadOptions("separated", separator="<|endoftext|>")
    assert read(write("a.txt", "eins\n<|endoftext|>\nzwei ü<|endoftext|>".encode()), options) == ["eins", "zwei ü"]


def test_wikitext_is_a_document_an_article(write):
    content = b" \n = One = \n \n text \n = = Section = = \n more \n \n = Two = \n \n second \n"
    articles = read(write("a.tokens", content))
    assert [article.split("=")[1].strip() for article in articles] == ["One", "Two"]
    assert "= = Section = =" in articles[0]


def test_other_encodings(write):
    options = ReadOptions(encoding="gb18030")
    assert read(write("a.txt", "中文，句子".encode("gb18030")), options) == ["中文，句子"]
    (bad,) = found(write("b.txt", "中文".encode("gb18030") + b"\xff\xff"), options)
    assert bad.reason == "is not gb18030; set another encoding, or errors: replace"
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
    "0": "0",
    "-0": "-0",
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


@pytest.mark.parametrize("between", ["\n", "\r", "\r\n", "\r\r"])
def test_lines_may_end_in_several_ways(write, between):
    content = '{"text": "one"}\n' + between.join(['{"text": "two"}', '{"text": ]', '{"text": "three"}']) + "\n"
    path = write("a.jsonl", content.encode())
    one, two, bad, three = found(path)
    assert [one.text, two.text, three.text] == ["one", "two", "three"]
    wrong = content.index('{"text": ]')
    assert bad.place == f"{path}: byte {wrong}"
    (alone,) = found(write("b.jsonl", b'{"text": \r "a" \r ]}\n'))
    assert alone.reason.startswith("not valid JSON")


def test_files_with_a_byte_order_mark_may_be_put_together(write):
    assert read(write("a.jsonl", b'\xef\xbb\xbf{"text": "a"}\n' * 2)) == ["a", "a"]


SEVERAL_LINES = {
    "pretty-printed": json.dumps({"text": "a, b", "meta": {"k": [1, "x"]}}, indent=2),
    "an array": '[{"text": "a"}, {"text": "b"}]',
    "an array in lines": '[\n{"text": "a"},\n{"text": "b"},\n]',
    "commas at the ends": '{"text": "a"},\r\n{"text": "b"},',
}


@pytest.mark.parametrize("case", SEVERAL_LINES)
def test_json_over_several_lines_names_the_format_that_reads_it(tmp_path, monkeypatch, case):
    for limit in (4096,) if case == "commas at the ends" else (4096, 8):
        monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", limit)
        (tmp_path / "a.jsonl").write_text(SEVERAL_LINES[case])
        first = next(item for item in found(tmp_path / "a.jsonl") if isinstance(item, BadRecord))
        assert first.reason.endswith("; format: json reads arrays, and objects over several lines")
    monkeypatch.undo()
    assert read(tmp_path / "a.jsonl", ReadOptions("json"))[0][:1] == "a"


def test_other_wrong_lines_do_not(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"\n{"body": "a"}\nwords\n"text"\n{"text": "\xff"}\n')
    assert [bad for bad in found(tmp_path / "a.jsonl") if "format: json" in bad.reason] == []


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
    "a key of lines": ("a.jsonl", b'{"a\\nb": 1}\n', 0, f"{NO_KEY} (it has: 'a\\nb'); set text_key"),
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
    asked_for = {name for name, format_ in FORMATS.items() if not format_.suffixes}
    assert asked_for == {"paragraphs", "separated", "lines", "squad", "parallel"}


def test_sources_are_files_folders_globs_and_lists(tmp_path):
    for name in ("b.txt", "a.txt", "sub/c.txt", ".hidden", ".git/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    names = [path.removeprefix(str(tmp_path) + "/") for path, _ in find_files([str(tmp_path)])]
    assert names == ["a.txt", "b.txt", "sub/c.txt"]
    assert len(find_files([f"{tmp_path}/*.txt", f"{tmp_path}/a.txt"])) == 2  # each file once
    assert [size for _, size in find_files([f"{tmp_path}/**/c.txt"])] == [1]
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    wrong = {
        "nothing": "no such file, folder or match",
        "empty": "no file in this folder",
        "pipe": "is no regular file",
    }
    for name, reason in wrong.items():
        with pytest.raises(UserError, match=f"input '.*{name}': {reason}"):
            find_files([str(tmp_path / name)])


def test_a_folder_is_read_through_links_and_what_is_passed_over_is_told(tmp_path, caplog):
    caplog.set_level("INFO")
    for name in ("d/a.txt", "d/_SUCCESS", "d/.hidden", "e/b.txt", "e/deep/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("x")
    for link, target in (("d/circle", "../d"), ("d/linked", "../e"), ("e/up", ".."), ("d/again.txt", "a.txt")):
        (tmp_path / link).symlink_to(target)
    os.mkfifo(tmp_path / "d" / "pipe.txt")
    names = [path.removeprefix(str(tmp_path)) for path, _ in find_files([str(tmp_path / "d")])]
    assert names == ["/d/a.txt", "/d/linked/b.txt", "/d/linked/deep/c.txt"]
    assert [m.partition(" passed over ")[2] for m in caplog.messages] == [
        f"3 files (hidden, unfinished, no regular file, or a program's own), such as {tmp_path}/d/.hidden"
    ]


HF_CACHES = ("cache-0123456789abcdef.arrow", "cache-0123456789abcdef_00001_of_00004.arrow")


@pytest.mark.parametrize("table", ["data-00000-of-00002.arrow", "dataset.arrow", "wiki-train.arrow"])
def test_what_lies_beside_the_tables_of_hugging_face_is_no_data(table, tmp_path, caplog):
    caplog.set_level("INFO")
    notes = ("state.json", "dataset_info.json", *HF_CACHES, "tmpab12_9xy", "builder.lock")
    names = (table, *notes, "new.incomplete/wiki-train.arrow")
    for name in ("dataset_dict.json", *(f"train/{name}" for name in names)):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    assert [path for path, _ in find_files([str(tmp_path)])] == [f"{tmp_path}/train/{table}"]
    assert f"passed over {len(names)} files" in caplog.text
    caplog.clear()
    assert len(find_files([f"{tmp_path}/train/cache-*.arrow"])) == 2  # who names them means them
    assert not caplog.messages


@pytest.mark.parametrize(
    ("names", "glob", "remark"),
    [
        (("a.jsonl", "a.jsonl.gz", "b.jsonl.gz"), "", "1 file may hold once more what the unpacked file beside it has"),
        (
            ("data-00000-of-00001.arrow", *HF_CACHES),
            "/*.arrow",
            "2 files may hold once more what the tables",
        ),
        (("a.jsonl", "b.jsonl.gz", "cache-1.arrow"), "", None),
    ],
)
def test_what_may_be_read_twice_is_remarked(names, glob, remark, tmp_path, caplog):
    for name in names:
        (tmp_path / name).touch()
    assert len(find_files([f"{tmp_path}{glob}"])) == len(names)
    assert [remark in message for message in caplog.messages] == [True] * bool(remark)


def test_the_names_of_hugging_face_are_data_where_none_of_its_tables_lie(tmp_path):
    names = ["cache-0123456789abcdef.arrow", "indices.arrow", "state.json", "wiki-train.arrow"]
    for name in names:
        (tmp_path / name).touch()
    assert [path for path, _ in find_files([str(tmp_path)])] == [f"{tmp_path}/{name}" for name in names]


def test_tables_of_which_rows_are_selected_are_refused(tmp_path):
    for name in ("data-00000-of-00001.arrow", "indices.arrow"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"indices.arrow: selects rows of the tables .* flatten_indices"):
        find_files([str(tmp_path)])


def test_several_formats_are_remarked_with_a_file_of_each(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    remedies = {"a.tar.gz": "unpack", "a.zip": "unpack", "a.jsonl.Z": "unpack", "part-0": "set format"}
    for name in ("a.jsonl", "b.jsonl.gz", "READ\nME.md", "b.jsonl.xz", *remedies):
        (tmp_path / name).write_bytes(b"")
    check_formats(["a.jsonl", "b.jsonl.gz", "READ\nME.md"], "auto")
    (message,) = caplog.messages
    assert "2 files as jsonl, such as a.jsonl; 1 file as md, such as READ\\nME.md" in message
    check_formats(["a.jsonl", "READ\nME.md"], "txt")
    check_formats(["a.jsonl", "b.jsonl.xz"], "auto")
    assert len(caplog.messages) == 1
    for name, remedy in remedies.items():
        with pytest.raises(UserError, match=f"{name}: .*{remedy}.*glob"):
            check_formats(["a.jsonl", name], "auto")
    monkeypatch.setattr(os, "access", lambda path, mode: path != "b.jsonl.gz")  # as it is for others than root
    with pytest.raises(UserError, match=r"^b.jsonl.gz: may not be read \(permission denied\)$"):
        check_formats(["a.jsonl", "b.jsonl.gz"], "auto")


def test_the_builtin_corpus_is_tens_of_megabytes_of_real_text():
    files = find_files(["python-stdlib"])
    assert sum(size for _, size in files) > 8e6
    assert not any("site-packages" in path for path, _ in files)


JSON_RECORDS = [
    {"text": 'a "quoted" ] } \\\\', "id": 1, "n": [[], {"x": "]"}]},
    {"id": 2, "text": "zwei \U0001f600 ü"},
    {"text": ""},
] * 20
LAYOUTS = {
    "an array": lambda: json.dumps(JSON_RECORDS),
    "an array in lines": lambda: json.dumps(JSON_RECORDS, indent=2, ensure_ascii=False),
    "objects in lines": lambda: "\n".join(json.dumps(record, indent=4) for record in JSON_RECORDS),
    "objects without anything between": lambda: "".join(map(json.dumps, JSON_RECORDS)),
    "two arrays": lambda: json.dumps(JSON_RECORDS[:7]) + "\n" + json.dumps(JSON_RECORDS[7:]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("limit", [100, 101, 4096])
def test_json_is_a_document_a_record(write, monkeypatch, layout, limit):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", limit + 60)
    content = b"\xef\xbb\xbf" + LAYOUTS[layout]().encode()
    documents_ = found(write("a.json", content), ReadOptions(id_key="id"))
    assert [d.text for d in documents_] == [record["text"] for record in JSON_RECORDS]
    assert [d.id for d in documents_] == [record.get("id") and str(record["id"]) for record in JSON_RECORDS]
    assert all(content[d.position : d.position + 1] == b"{" for d in documents_)


@pytest.mark.parametrize("large", [b'{"text": "' + b"x\\\\]" * 500 + b'"}', b'"' + b'\\"' * 900 + b'"', b"1" * 3000])
def test_what_is_no_record_does_not_lose_the_next(write, monkeypatch, large):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 200)
    middle = [b'"word"', b"12", large.replace(b"text", b"body"), b'{"body": 1}', b"[1]", b"{]"]
    first, *bad, last = found(write("a.json", b'[{"text": "a"}, ' + b", ".join(middle) + b', {"text": "b"}]'))
    assert (first.text, last.text) == ("a", "b")
    assert [type(b) for b in bad[:2]] == [BadRecord] * 2
    no_key = "no key 'tex"
    assert [b.reason[:11] for b in bad] == [no_key, no_key, "larger than", no_key, no_key, "not valid J"]


@pytest.mark.parametrize("tail", [b"", b",", b', {"text": "b', b', {"text": "b"', b', {"text": "' + b"b" * 999])
def test_json_without_an_end_is_told(write, monkeypatch, tail):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 200)
    first, *bad = found(write("a.json", b'[{"text": "a"}' + tail))
    assert first.text == "a"
    assert bad[-1].reason.startswith("cut short")


RECORDS = [b'{"text": "%d"}\n' % n for n in range(30)]
STREAMS = (RECORDS[:10], RECORDS[10:20], RECORDS[20:])


def packed(suffix):
    return [COMPRESS[suffix](b"".join(lines)) for lines in STREAMS]


SKIPPABLE = b"\x5e\x2a\x4d\x18\x04\0\0\0skip"
SOUND_FILES = {
    "streams": lambda suffix: b"".join(packed(suffix)),
    "an empty stream": lambda suffix: COMPRESS[suffix](b"") + b"".join(packed(suffix)),
    "padding": lambda suffix: b"".join(s + (b"" if suffix == ".zst" else bytes(8)) for s in packed(suffix)),
    "skippable frames": lambda suffix: b"".join((SKIPPABLE if suffix == ".zst" else b"") + s for s in packed(suffix)),
}


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("case", SOUND_FILES)
@pytest.mark.parametrize("name", ["a.jsonl{}", "a.jsonl", "A.JSONL{}"])
def test_every_stream_of_a_compressed_file_is_read_whatever_it_is_called(tmp_path, suffix, case, name):
    path = tmp_path / name.format(suffix.upper())
    path.write_bytes(SOUND_FILES[case](suffix))
    assert read(path) == [str(n) for n in range(30)]


BREAKS = {  # what becomes of three streams -> how many whole documents stand before the break
    "a stream that begins wrong": (lambda a, b, c: a + b"\1\2" + b[2:] + c, 10),
    "garbage behind the end": (lambda a, b, c: a + b + c + b"garbage that is no stream", 30),
    "one byte behind the end": (lambda a, b, c: a + b + c + b"\n", 30),
    "cut short between its bytes": (lambda a, b, c: a + b + c[:2], 20),
    "an error page": (lambda a, b, c: b"<html>not found</html>", 0),
    "empty": (lambda a, b, c: b"", 0),
}


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("case", BREAKS)
@pytest.mark.parametrize("name", ["jsonl", "paragraphs", "separated", "lines", "csv", "utf-16"])
def test_all_whole_documents_before_a_break_are_kept_and_its_place_is_named(tmp_path, monkeypatch, suffix, case, name):
    damage, expected = BREAKS[case]
    options = ReadOptions("jsonl" if name == "utf-16" else name, separator="<>")
    lines = {
        "jsonl": RECORDS,
        "paragraphs": [b"%d\n\n" % n for n in range(30)],
        "separated": [b"%d<>" % n for n in range(30)],
        "lines": [b"%d\n" % n for n in range(30)],
        "csv": [b"text\n0\n"] + [b"%d\n" % n for n in range(1, 30)],
        "utf-16": [line.decode().encode("utf-16-le") for line in RECORDS],
    }[name]
    if name == "utf-16":
        options = ReadOptions("jsonl", encoding="utf-16-le")
    streams = [COMPRESS[suffix](b"".join(lines[start : start + 10])) for start in (0, 10, 20)]
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(damage(*streams))
    *good, bad = found(path, options)
    if not expected and name == "csv":
        good = []  # a header row that is missing
    assert [item.text for item in good] == [str(n) for n in range(expected)]
    place = {10: len(streams[0]), 20: sum(map(len, streams[:2])) + 2, 30: sum(map(len, streams)), 0: 0}[expected]
    assert bad.place == str(path)
    start = f"is not {suffix[1:]}, whatever its name" if case == "an error page" else f"broken {suffix[1:]} (at byte "
    assert bad.reason.startswith(start)
    if case in ("a stream that begins wrong", "garbage behind the end"):
        assert f"at byte {place} of" in bad.reason


def test_what_a_damaged_member_holds_before_the_damage_is_kept(tmp_path):
    lines = [b'{"text": "%d %s"}\n' % (n, str(n * n).encode() * 9) for n in range(20_000)]
    packed = bytearray(gzip.compress(b"".join(lines)))
    packed[len(packed) // 2] ^= 0xFF
    (tmp_path / "a.jsonl.gz").write_bytes(packed)
    *good, bad = found(tmp_path / "a.jsonl.gz")
    assert len([item for item in good if isinstance(item, Document)]) > 9_000
    assert "broken gz (at byte " in bad.reason


PACKED_LINES = [b'{"text": "%d %s"}\n' % (n, str(n * n).encode() * 9) for n in range(300)]
CHECKED = {  # a stream with a check -> its bytes, and where the check lies, from its end
    "gz, CRC": (".gz", gzip.compress, -8),
    "gz, length": (".gz", gzip.compress, -1),
    "bz2": (".bz2", bz2.compress, -2),
    "xz, index": (".xz", lzma.compress, -1),
    "xz, check": (".xz", lzma.compress, -29),
    "zst": (".zst", zstandard.ZstdCompressor(write_checksum=True).compress, -1),
}


@pytest.mark.parametrize("case", CHECKED)
@pytest.mark.parametrize("name", ["jsonl", "json", "wet", "second stream"])
def test_what_stands_before_a_wrong_check_is_kept(tmp_path, case, name):
    suffix, compress, place = CHECKED[case]
    form = b"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s\r\n\r\n"
    lines = [form % (len(line), line) for line in PACKED_LINES] if name == "wet" else PACKED_LINES
    before = compress(b"".join(lines)) if name == "second stream" else b""
    damaged = bytearray(compress(b"".join(lines)))
    damaged[place] ^= 0xFF
    path = tmp_path / f"a.{'wet' if name == 'wet' else 'json' if name == 'json' else 'jsonl'}{suffix}"
    path.write_bytes(before + damaged)
    *good, bad = found(path)
    assert len(good) == (600 if before else 300)
    assert all(isinstance(item, Document) for item in good)
    size = len(b"".join(lines)) * (2 if before else 1)
    at, content = map(int, re.match(r"broken \w+ \(at byte (\d+) .*, behind (\d+) bytes", bad.reason).groups())
    assert content == size
    assert 0 <= at - (len(before + damaged) + place) < 8  # where the check is, or its last byte


@pytest.mark.parametrize("suffix", COMPRESS)
def test_whole_json_values_before_a_break_are_kept(tmp_path, suffix):
    streams = [COMPRESS[suffix](b",".join(PACKED_LINES[n : n + 100])) for n in (0, 100, 200)]
    path = tmp_path / f"a.json{suffix}"
    path.write_bytes(streams[0] + b"\1\2" + streams[1])
    *good, bad = found(path)
    assert len(good) == 100
    assert f"at byte {len(streams[0])} of" in bad.reason
    path.write_bytes(COMPRESS[suffix](b"[" + b",".join(PACKED_LINES) + b',{"text": "half') + b"\1\2")
    *good, bad = found(path)
    assert len(good) == 300
    assert "broken " in bad.reason


def test_a_name_that_promises_a_compression_is_told(tmp_path):
    for suffix, content in itertools.product([*COMPRESS, ".lzma"], [b"plain text\n" * 99, b"x"]):
        (tmp_path / f"a.txt{suffix}").write_bytes(content)
        (bad,) = found(tmp_path / f"a.txt{suffix}")
        assert bad.reason.startswith(f"is not {suffix[1:]}, whatever its name says (it begins with b'{chr(content[0])}")
        assert f"rename it without {suffix}" in bad.reason


def test_a_zst_that_needs_a_dictionary_is_told(tmp_path):
    dictionary = zstandard.train_dictionary(1000, PACKED_LINES)
    packed = zstandard.ZstdCompressor(dict_data=dictionary).compress(b"".join(PACKED_LINES))
    (tmp_path / "a.jsonl.zst").write_bytes(packed)
    (bad,) = found(tmp_path / "a.jsonl.zst")
    assert bad.reason.startswith("is zst that needs a dictionary")


def test_a_mark_between_json_values_is_no_value(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf[{"text": "a"}]\n\xef\xbb\xbf{"text": "b"}')
    assert read(tmp_path / "a.json") == ["a", "b"]


def test_a_zst_of_the_longest_window_is_read(tmp_path):
    parameters = zstandard.ZstdCompressionParameters(window_log=31, compression_level=3)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    (tmp_path / "a.jsonl.zst").write_bytes(stream.compress(b'{"text": "one"}\n') + stream.flush())
    assert read(tmp_path / "a.jsonl.zst") == ["one"]


WIDE = ["gbk", "gb18030", "big5", "shift_jis", "euc_kr", "euc_jp", "utf-16", "utf-16-be", "utf-32", "ascii", "cp1252"]


@pytest.mark.parametrize("encoding", [*WIDE, "iso2022_jp", "hz", "utf-7"])
@pytest.mark.parametrize("name", ["jsonl", "csv", "paragraphs"])
def test_a_wrong_byte_costs_one_record_in_any_encoding(tmp_path, monkeypatch, encoding, name):
    monkeypatch.setattr(encodings, "BLOCK_BYTES", 64)  # wrong bytes and characters at the ends of blocks
    word = "ab" if encoding in ("ascii", "cp1252", "euc_kr") else "日本"
    form = {"jsonl": '{{"text": "{}"}}\n', "csv": "{}\n", "paragraphs": "{}\n\n"}[name]
    wrongs = {"utf-16": b"\0\xdc", "utf-16-be": b"\xdc\0", "utf-32": b"\0\0\0\xff", "cp1252": b"\x81"}
    wrong = wrongs.get(encoding, b"\xff")
    codec = encoding + "-le" if encoding in ("utf-16", "utf-32") else encoding  # no byte order mark a piece
    lines = [form.format(f"{word}{n}").encode(codec) for n in range(60)]
    start = len(form.split("{}")[0].replace("{{", "{").encode(codec))
    lines[30] = lines[30][:start] + wrong + lines[30][start:]
    header = "text\n" if name == "csv" else ""
    lines.insert(0, (header if codec == encoding else "\ufeff" + header).encode(codec))
    (tmp_path / "a").write_bytes(b"".join(lines))
    items = found(tmp_path / "a", ReadOptions(name, encoding=encoding))
    bad = [item for item in items if isinstance(item, BadRecord)]
    assert [item.text for item in items if isinstance(item, Document)] == [f"{word}{n}" for n in range(60) if n != 30]
    assert [item.reason for item in bad] == [f"is not {encoding}; set another encoding, or errors: replace"]
    place = f"byte {b''.join(lines).index(wrong)}" if name != "csv" else "row 30 (line 32)"
    assert bad[0].place.endswith(place)


@pytest.mark.parametrize("separator", ["---", "=====", "\n\n\n", "\n---\n", "abab", "aa", "中中"])
@pytest.mark.parametrize("limit", [16, 4 << 20])
def test_a_separator_may_overlap_itself(tmp_path, monkeypatch, separator, limit):
    """The leftmost occurrence counts, as in `str.split`, however the file comes in blocks."""
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", limit)
    path, options = tmp_path / "a.txt", ReadOptions("separated", separator=separator)
    for content in itertools.product(["x", separator, separator[0], separator + separator[:1]], repeat=5):
        joined = "".join(content)
        path.write_text(joined)
        pieces = [piece for piece in joined.split(separator) if piece.strip()]
        for block in (1, 3, 4 << 20) if len(joined) < 12 else (4 << 20,):
            monkeypatch.setattr(text, "BLOCK_BYTES", block)
            texts = read(path, options)
            if all(len(piece.encode()) <= limit for piece in pieces):
                assert texts == [piece.strip("\r\n") for piece in pieces]
            else:
                assert "".join(texts) == "".join(pieces)


def test_a_separator_that_overlaps_itself_is_searched_from_the_start(tmp_path):
    path = write_packed(tmp_path / "a.txt", b"one")
    assert not can_split(str(path), ReadOptions("separated", separator="-----"))
    assert can_split(str(path), ReadOptions("separated", separator="<|end|>"))


@pytest.mark.parametrize("separator", [None, ""])
def test_no_separator_names_what_yaml_makes_of_one(tmp_path, separator):
    with pytest.raises(UserError, match="quote it"):
        read(write_packed(tmp_path / "a.txt", b"one"), ReadOptions("separated", separator=separator))


def test_a_long_document_is_not_cut_inside_its_separator(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 100)
    for length, block in itertools.product(range(70, 130), (1, 7, 64)):
        monkeypatch.setattr(text, "BLOCK_BYTES", block)
        monkeypatch.setattr(text, "SMALL_BLOCK_BYTES", block)
        (tmp_path / "a.txt").write_text("x" * length + "\n- - -\n" + "y" * 9)
        assert (
            "".join(read(tmp_path / "a.txt", ReadOptions("separated", separator="\n- - -\n"))) == "x" * length + "y" * 9
        )


OLD_LINES = {
    "jsonl": '{"text": "one é"}\r\r{"text": "two"}\r',
    "csv": 'id,text\r1,one é\r2,"two"\r',
    "tsv": "id\ttext\r1\tone é\r2\ttwo",
    "paragraphs": "\r\rone é\r \r\rtwo\r\r",
    "separated": "one é\r---\rtwo",
    "lines": "\rone é\r \rtwo\r",
    "wikitext": " = One é = \r two\r = Two = \r three",
}


@pytest.mark.parametrize("name", OLD_LINES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_old_line_ends_part_records_as_new_ones_do(write, name, encoding):
    options = ReadOptions(name, encoding=encoding, separator="\n---\n")
    old = write("a", OLD_LINES[name].encode(encoding))
    assert not can_split(str(old), options)
    new = found(write("b", OLD_LINES[name].replace("\r", "\n").encode(encoding)), options)
    assert found(old, options) == new
    assert len([item for item in new if isinstance(item, Document)]) == 2


def test_a_file_that_is_one_document_keeps_its_line_ends(write):
    assert read(write("a.txt", b"one\rtwo\r")) == ["one\rtwo\r"]
    assert read(write("b.txt", b"one\r\ntwo\n\rthree\r"), ReadOptions("paragraphs")) == ["one\r\ntwo\n\rthree"]


CONTENTS = {  # what is no text -> (how it begins, what is said)
    "zip": (b"PK\x03\x04\x14\0\0\0", "no text but a zip archive"),
    "parquet": (b"PAR1\x15\x04\0", "no text but Parquet; set format: parquet"),
    "arrow": (b"ARROW1\0\0", "no text but an Arrow file"),
    "hdf5": (b"\x89HDF\r\n\x1a\n\0", "no text but HDF5"),
    "pdf": (b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n", "no text but a PDF"),
    "lz4": (b"\x04\x22\x4d\x18\x64\x40\xa7", "no text but lz4"),
    "lzip": (b"LZIP\x01\x14\0\xff", "no text but lzip"),
    ".Z": (b"\x1f\x9d\x90abc", "no text but compressed by compress"),
    "7z": (b"7z\xbc\xaf\x27\x1c\0", "no text but a 7z archive"),
    "tar": (b"a.txt".ljust(257, b"\0") + b"ustar\x0000", "no text but a tar archive"),
    "UTF-16": ("日本語\n".encode("utf-16"), "but, by its first bytes, utf-16; set encoding: utf-16"),
    "UTF-16 without BOM": ("text in ascii\n".encode("utf-16-le"), "set encoding: utf-16-le"),
    "UTF-16, big": ("text in ascii\n".encode("utf-16-be"), "set encoding: utf-16-be"),
    "UTF-32": ("日本語\n".encode("utf-32"), "set encoding: utf-32"),
    "UTF-32 without BOM": ("text in ascii\n".encode("utf-32-le"), "set encoding: utf-32-le"),
    "elf": (b"\x7fELF\x02\x01\x01\0\0", "no text but a program (ELF)"),
    "gif": (b"GIF89a\x01\0\x01\0\x80", "no text but a picture (GIF)"),
    "orc": (b"ORC\n\x0b\n\x03\0\0\0\x12", "no text but an ORC table"),
    "avro": (b"Obj\x01\x04\x16avro.schema\xf0", "no text but an Avro table"),
    "pickle 2": (pickle.dumps(["a text"], 2), "no text but a pickle"),
    "pickle 4": (pickle.dumps(["a text"], 4), "no text but a pickle"),
    "zlib": (zlib.compress(b"some text, and more of it" * 99), "no text but compressed by zlib"),
    "zlib, fast": (zlib.compress(b"short", 1), "no text but compressed by zlib"),
    "snappy": (b"\xff\x06\0\0sNaPpY\x01", "no text but compressed by snappy"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "git lfs pull"),
    "lfs, old line ends": (b"version https://git-lfs.github.com/spec/v1\r\noid sha256:4d7a\r\n", "git lfs pull"),
    "pdf in ascii": (b"%PDF-1.4\n%comment\n1 0 obj\n<< /Type /Catalog >>\n", "no text but a PDF"),
    "rtf": (rb"{\rtf1\ansi\deff0 {\fonttbl {\f0 Times;}} Words\par}", "no text but RTF"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "no text but PostScript"),
    "twice": (gzip.compress(gzip.compress(b"text")), "is compressed twice (inside it is .gz)"),
}


WESTERN = "".join(f"line {n}: the quick brown fox jumps over the lazy dog\n\n" for n in range(2000))
EASTERN = "────────────────\u3000\u3000\u3000\u3000一一一一一一一一\u3000\u3000가가가가가가가가\uff00\n\n" * 2000


@pytest.mark.parametrize("is_marked", [True, False])
@pytest.mark.parametrize("order", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("asked", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"])
def test_wide_text_in_the_other_byte_order_is_told(tmp_path, is_marked, order, asked):
    path = tmp_path / "a.txt"
    path.write_bytes((("\ufeff" if is_marked else "") + "a few words").encode(order))
    (one,) = found(path, ReadOptions(encoding=asked))
    if asked == order or (is_marked and order.startswith(asked)):
        assert one.text == "a few words"
    else:
        assert one.reason.endswith(f"set encoding: {order[:6] if is_marked else order}")


@pytest.mark.parametrize("lost", [20_001, 150_000])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_a_lost_byte_of_wide_text_ends_it(tmp_path, lost, encoding):
    content, path = WESTERN.encode(encoding), tmp_path / "a.txt"
    path.write_bytes(content[:lost] + content[lost + 1 :])
    *whole, bad = found(path, ReadOptions("paragraphs", encoding=encoding))
    place = int(re.match(r"has lost a byte near byte (\d+): what follows is no UTF-16", bad.reason)[1])
    assert abs(place - lost) <= 2 * encodings.WINDOW
    texts = WESTERN.split("\n\n")
    assert [document.text for document in whole] == texts[: len(whole)]
    assert abs(2 * len("\n\n".join(texts[: len(whole)])) - lost) < 1000


def test_wide_text_of_characters_whose_lower_byte_is_zero_is_read(tmp_path):
    (tmp_path / "a.txt").write_bytes(EASTERN.encode("utf-16"))
    assert read(tmp_path / "a.txt", ReadOptions(encoding="utf-16")) == [EASTERN]


@pytest.mark.parametrize("name", ["a.txt", "a.txt.lzma", "a.txt.xz"])
def test_the_old_kind_of_lzma_is_read_whatever_it_is_called(tmp_path, name):
    packed = lzma.compress(b"one and more\n" * 99, format=lzma.FORMAT_ALONE)
    (tmp_path / name).write_bytes(packed * 2)
    assert read(tmp_path / name) == ["one and more\n" * 198]
    (tmp_path / name).write_bytes(packed[:-9])
    assert "broken lzma (at byte" in found(tmp_path / name)[-1].reason


@pytest.mark.parametrize("case", CONTENTS)
@pytest.mark.parametrize("name", ["txt", "md", "paragraphs", "lines", "separated", "wikitext", "jsonl", "csv", "tsv"])
def test_what_is_no_text_is_never_taken_for_text(tmp_path, case, name):
    content, reason = CONTENTS[case]
    path = tmp_path / "a"
    path.write_bytes(content)
    for errors, encoding in itertools.product(("strict", "replace"), ("utf-8", "latin-1", "gb18030")):
        options = ReadOptions(name, errors=errors, encoding=encoding, separator="|")
        (bad,) = found(path, options)
        assert bad.place == str(path)
        assert reason in bad.reason
        assert found(path, options, 3, None) == []  # said once, by the part that begins the file


TEXTS = [
    b"PK is a name",
    b"PAR1, a text",
    b"BZh91, a text",
    b"%PDF-1.4 as text",
    b"7z",
    b"P*M",
    b"LZIP",
    b"\xef\xbb\xbfa",
    b"version https://git-lfs.github.com/spec/v1 is how a pointer begins",
    b"%PDF-1.4\nis how a PDF begins",
    rb"{\rtf1 is how RTF begins",
    b"%!PS\nis how PostScript begins",
    b"GIF89a, ORC, MZ",
    b"x^2 + 1",
    b"<html> is how a page begins",
]


@pytest.mark.parametrize("content", [*TEXTS, b"a\0b", b"\0", "(µ/ý".encode("latin-1")])
def test_what_may_be_text_is_read(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    (item,) = found(tmp_path / "a.txt", ReadOptions(errors="replace"))
    assert isinstance(item, Document) == (not content.startswith(b"(\xb5"))


PAGES = [
    b"<!DOCTYPE html>\n<html>\n<title>404</title>",
    b"\n<HTML lang=en><body>No",
    b'<?xml version="1.0"?>\n<Error/>',
]


@pytest.mark.parametrize("name", ["jsonl", "json", "csv", "tsv"])
def test_an_error_page_is_no_table(tmp_path, name):
    for page in PAGES:
        (tmp_path / "a").write_bytes(page)
        (bad,) = found(tmp_path / "a", ReadOptions(name))
        assert re.fullmatch("is no table but (an HTML page|XML), perhaps .*; fetch it again", bad.reason)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.wet", "a.wet.gz", "a.jsonl.zst"])
def test_a_pointer_of_git_lfs_is_told_in_place_of_any_format(tmp_path, name):
    (tmp_path / name).write_bytes(CONTENTS["lfs"][0])
    (bad,) = found(tmp_path / name)
    assert re.match("is not (parquet|arrow|wet|gz|zst) but the pointer of git-LFS to its content", bad.reason)


def test_rows_without_a_header_may_be_pages(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"<html>one\n<html>two\n")
    assert read(tmp_path / "a.csv", ReadOptions(table=TableConfig(header=["text"]))) == ["<html>one", "<html>two"]


UTF8 = {
    "ascii": b"a few words\n",
    "ascii in colour": b"a log \x1b[31merror\x1b[0m of many words\n" * 99,
    "ascii without blanks": b"antidisestablishmentarianism",
    "marked": b"\xef\xbb\xbfx",
    "utf-8": "日本語のテキスト、長い".encode(),
}
NOT_ASCII = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "cp037", "cp500"]


@pytest.mark.parametrize("case", UTF8)
@pytest.mark.parametrize("encoding", [*NOT_ASCII, "gbk", "gb18030", "latin-1", "shift_jis", "cp1252", "utf-7"])
def test_utf8_in_an_encoding_that_makes_noise_of_it_is_told(tmp_path, case, encoding):
    (tmp_path / "a.txt").write_bytes(UTF8[case])
    items = found(tmp_path / "a.txt", ReadOptions(encoding=encoding))
    if case == "marked" or encoding in NOT_ASCII:
        assert [bad.reason for bad in items] == [
            f"is not {encoding} but, by its first bytes, utf-8; set encoding: utf-8"
        ]
    elif "ascii" in case and encoding != "utf-7":
        assert [item.text.encode() for item in items] == [UTF8[case]]


@pytest.mark.parametrize("encoding", ["gbk", "gb18030", "latin-1", "cp1252", "utf-8", "utf-8-sig"])
def test_text_that_looks_like_utf8_in_another_encoding_is_remarked(tmp_path, caplog, encoding):
    (tmp_path / "a.txt").write_bytes("naïve Größe, größer\n".encode() * 9)
    found(tmp_path / "a.txt", ReadOptions(encoding=encoding, errors="replace"))
    assert ("looks like UTF-8 by its first bytes" in caplog.text) == (not encoding.startswith("utf-8"))
    caplog.clear()
    for content, other in (("naïve Größe\n" * 99, "latin-1"), ("中文的文本在这里\n" * 99, "gbk")):
        (tmp_path / "a.txt").write_bytes(content.encode(other))
        assert read(tmp_path / "a.txt", ReadOptions(encoding=other)) == [content]
    assert caplog.text == ""


@pytest.mark.parametrize("encoding", ["utf-8-sig", "UTF8", "U8"])
def test_marked_text_is_read_in_utf8_by_any_name(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfword")
    assert read(tmp_path / "a.txt", ReadOptions(encoding=encoding)) == ["word"]


@pytest.mark.parametrize(
    "text", ["中", "中文", "中国人民", "者一", "考一", "码", "一", "…", "“中”", "日本語", "中文字中文字中文字。\n"]
)
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16", "utf-32-le"])
def test_short_wide_text_that_looks_like_utf8_is_read(tmp_path, text, encoding):
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    assert read(tmp_path / "a.txt", ReadOptions(encoding=encoding)) == [text]


@pytest.mark.parametrize("errors", ["strict", "replace"])
def test_a_lost_byte_beside_half_a_pair_ends_wide_text_and_loses_none_before(tmp_path, errors):
    texts = WESTERN.split("\n\n")
    content = bytearray(WESTERN.encode("utf-16-le"))
    del content[20_001]
    content[30_000:30_000] = b"\0\xdc"
    content[10_000:10_000] = b"\0\xdc"
    (tmp_path / "a.txt").write_bytes(content)
    *items, bad = found(tmp_path / "a.txt", ReadOptions("paragraphs", encoding="utf-16-le", errors=errors))
    assert bad.reason.startswith("has lost a byte near byte ")
    wrong = [item for item in items if isinstance(item, BadRecord)]
    assert [item.place for item in wrong] == ([f"{tmp_path / 'a.txt'}: byte 10000"] if errors == "strict" else [])
    whole = [item.text for item in items if isinstance(item, Document)]
    assert set(whole) - set(texts[: len(items)]) == set() if errors == "strict" else len(whole) > 150


TAILS = {  # behind a long text -> id and label, or what is said
    ', "id": 7, "kind": "news"}': ("7", "news"),
    ', "other": ["x", {"y": null}], "kind": "\\ud83d"}': (None, "\ufffd"),
    "}": (None, None),
    " GARBAGE [[[": "not valid JSON behind its text",
    "": "not valid JSON behind its text",
    "} {": "not valid JSON behind its text",
    ', "text": 5}': "'text' is there twice, and last int, not text",
    ', "id": "\udcff"}': "is not UTF-8",
    ', "other": "' + "x" * 9000 + '"}': "a line with over ",
}


@pytest.mark.parametrize("tail", TAILS, ids=range(len(TAILS)))
@pytest.mark.parametrize("block", [7, 64, 4 << 20])
def test_what_stands_behind_a_long_text_counts_as_in_a_short_line(tmp_path, monkeypatch, tail, block):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 1000)
    monkeypatch.setattr(text, "BLOCK_BYTES", block)
    long_text = 'word \\ "quoted" é\n' * 200 + "\\" * 1999
    line = '{"a": 1, "text": ' + json.dumps(long_text) + tail + '\n{"text": "short", "id": "s"}\n'
    (tmp_path / "a.jsonl").write_bytes(line.encode("utf-8", "surrogateescape"))
    *pieces, last = found(tmp_path / "a.jsonl", ReadOptions(id_key="id", label_key="kind"))
    assert (last.text, last.id) == ("short", "s")
    if isinstance(TAILS[tail], str):
        (bad,) = pieces
        assert TAILS[tail] in bad.reason
        assert bad.position == 0
    else:
        assert "".join(piece.text for piece in pieces) == long_text
        assert {(piece.id, piece.label) for piece in pieces} == {TAILS[tail]}


@pytest.mark.parametrize("start", [b"\xef\xbb\xbf{", b'{"a": NaN, ', b'{"a": "\\ud83d", ', b'{"b": {"text": "x"}, '])
def test_what_stands_before_a_long_text_is_as_in_a_short_line(tmp_path, monkeypatch, start):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 1000)
    for size in (9, 9000):
        (tmp_path / "a.jsonl").write_bytes(start + b'"text": "' + b"x" * size + b'", "id": "i"}')
        items = found(tmp_path / "a.jsonl", ReadOptions(id_key="id"))
        assert ["".join(item.text for item in items), {item.id for item in items}] == ["x" * size, {"i"}]
