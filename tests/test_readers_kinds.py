"""A file of another kind than its name says is told from its first bytes, with the format that reads it."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import lzma
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import only_bad, read

from hvdlm.preprocessing.documents import BadRecord, Document, ReadOptions
from hvdlm.preprocessing.readers import FORMATS

TABLE = pa.table({"text": ["alpha one", "beta two"]})
LINES = b'{"text": "alpha"}\n{"text": "beta"}\n'


def of_parquet():
    file = io.BytesIO()
    pq.write_table(TABLE, file)
    return file.getvalue()


def of_arrow(new):
    file = io.BytesIO()
    with new(file, TABLE.schema) as writer:
        writer.write_table(TABLE)
    return file.getvalue()


def of_old_tar():
    """Of before POSIX: what marks the newer kinds is zero."""
    info = tarfile.TarInfo("a.txt")
    info.size = 5
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    header[257:] = bytes(len(header) - 257)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + b"hello".ljust(512, b"\0") + bytes(1024)


KINDS = {  # content, the formats that read it, what is said of it
    "parquet": (of_parquet(), {"parquet"}, "Parquet; set format: parquet, or name it .parquet"),
    "arrow file": (of_arrow(pa.ipc.new_file), {"arrow"}, "an Arrow file; set format: arrow, or name it .arrow"),
    "arrow stream": (of_arrow(pa.ipc.new_stream), {"arrow"}, "an Arrow stream (set format: arrow, "),
    "zip": (b"PK\x03\x04\x14\0\0\0", set(), "a zip archive (or an office document); unpack it"),
    "picture": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", set(), "a picture (PNG)"),
    "gif": (b"GIF89a\x01\0\x01\0\x80", set(), "a picture (GIF)"),
    "pdf": (b"%PDF-1.4\n%comment\n1 0 obj\n<< /Type /Catalog >>\n", set(), "a PDF; extract its text first"),
    "zeros": (bytes(3000), set(), "zeros alone by its first bytes, as of a download that was cut; fetch it again"),
    "old tar": (of_old_tar(), set(), "a tar archive; unpack it"),
}


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FORMATS)
def test_no_format_reads_another_kind(name, kind, suffix, tmp_path):
    content, readers, said = KINDS[kind]
    if name not in readers:
        (tmp_path / f"a{suffix}").write_bytes(gzip.compress(content) if suffix else content)
        bad = only_bad(tmp_path / f"a{suffix}", ReadOptions(name, separator="|"))
        assert bad.place == str(tmp_path / f"a{suffix}")
        assert said in bad.reason
        is_text = FORMATS[name].is_text
        assert bad.reason.startswith("is no text but " if is_text else f"is not {name} but ")


TEXTS = {
    "JSON lines": (LINES, "JSON; set format: jsonl, or json"),
    "a JSON array": (b'[\n  {"text": "a"}\n]', "JSON; set format: json"),
    "WARC": (b"WARC/1.0\r\nWARC-Type: conversion\r\n", "WARC; set format: warc, or wet for its texts"),
    "a page": (b"<!DOCTYPE html><html>404</html>", "an HTML page, perhaps an error message; fetch it again"),
    "csv": (b"text,id\na,1\n", "text (b'text,id\\na,1\\n'); fetch it again, or set its format"),
    "an error": (b"Entry not found", "text (b'Entry not found'); fetch it again, or set its format"),
}


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather", "a.html", "a.warc", "a.wet"])
def test_text_under_a_name_of_another_kind(name, kind, tmp_path):
    content, said = TEXTS[kind]
    format_ = {"a.feather": "arrow"}.get(name, name[2:])
    may_be = {"html": {"a page", "csv", "an error"}, "warc": {"WARC"}, "wet": {"WARC"}}.get(format_, set())
    for packed in (content, gzip.compress(content)):
        (tmp_path / name).write_bytes(packed)
        if kind not in may_be and not (name[2:] in ("warc", "wet") and kind in ("csv", "an error")):
            assert only_bad(tmp_path / name).reason.startswith(f"is not {format_} but {said}")
        elif format_ in ("warc", "wet") and kind != "WARC":
            assert only_bad(tmp_path / name).reason.endswith("fetch the file again, or set its format")


def test_a_damaged_first_record_loses_no_other_one(tmp_path):
    record = b"WARC/1.0\r\nWARC-Type: conversion\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nalpha\r\n\r\n"
    for damaged in (b"<html>" + record, b'{"a": 1}\n' + record, b"\0" * 9 + record):
        (tmp_path / "a.wet").write_bytes(damaged + record)
        assert [item.text for item in read(tmp_path / "a.wet") if isinstance(item, Document)][-1] == "alpha"


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        ("PAR1 é and more".encode("latin-1"), "latin-1"),
        ("%PDF-1.4 é and more\n".encode("latin-1"), "latin-1"),
        ("%PDF-1.4\nis how a PDF begins, é".encode("latin-1"), "latin-1"),
        ("]一 and more".encode("utf-16-le"), "utf-16-le"),
        (b"\0" * 9, "utf-8"),
    ],
)
def test_a_text_that_begins_like_another_kind_is_read(content, encoding, tmp_path):
    (tmp_path / "a.txt").write_bytes(content)
    (item,) = read(tmp_path / "a.txt", ReadOptions(encoding=encoding))
    assert item.text == content.decode(encoding)


@pytest.mark.parametrize("preset", range(10))
def test_lzma_of_any_preset_is_known_whatever_it_is_called(preset, tmp_path):
    (tmp_path / "a.txt").write_bytes(lzma.compress(b"some words", lzma.FORMAT_ALONE, preset=preset))
    assert [item.text for item in read(tmp_path / "a.txt")] == ["some words"]


@pytest.mark.parametrize("between", ["\n\x1e", "", " ", ", ", "\x1e"])
def test_records_on_one_line_name_the_format_that_reads_them(between, tmp_path):
    records = [json.dumps({"text": text}) for text in ("a", "b")]
    content = between.join(records) if between != "\n\x1e" else "".join(f"\x1e{record}\n" for record in records)
    (tmp_path / "a.jsonl").write_text(content)
    for bad, _ in itertools.zip_longest(read(tmp_path / "a.jsonl"), [None]):
        assert isinstance(bad, BadRecord)
        assert "; format: json reads several records on a line, and those of RFC 7464" in bad.reason
    assert [item.text for item in read(tmp_path / "a.jsonl", ReadOptions("json"))] == ["a", "b"]


def test_a_line_with_something_behind_its_record_names_no_format(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"} # words\n{"text": "a"}}\n')
    assert all("format: json" not in bad.reason for bad in read(tmp_path / "a.jsonl"))
