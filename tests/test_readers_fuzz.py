"""Whatever the bytes, a reader gives documents or says what is wrong with them; ranges share a file without loss."""

import gzip
import io
import itertools
import json
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from reading import COMPRESS, fields_for
from reading import read as read_range

from hvdlm.errors import UserError
from hvdlm.preprocessing import documents
from hvdlm.preprocessing.documents import BadRecord, Part, ReadOptions
from hvdlm.preprocessing.readers import FORMATS, can_split, read_documents, text
from hvdlm.preprocessing.readers.sniffing import foreign

try:
    import trafilatura  # noqa: F401

    PAGES = ["html", "warc"]
except ImportError:
    PAGES = []
NAMES = [name for name in FORMATS if name not in ("html", "warc")] + PAGES
SPLITTABLE = [name for name, format_ in FORMATS.items() if format_.splittable]
LIMIT, BLOCK = 4096, 1024  # instead of 4 MiB each, so that small files cross them


def bounded(num_examples):
    return settings(
        max_examples=num_examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a"


@pytest.fixture
def small_limits(monkeypatch):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", LIMIT)
    monkeypatch.setattr(text, "BLOCK_BYTES", BLOCK)


def options_for(name, **changes):
    return ReadOptions(**{"format": name, "separator": "<|end|>", "fields": fields_for(name), **changes})


def read(path, content, options):
    """Documents and bad records, each of them fit to be used; a UserError is fit where it is one line."""
    path.write_bytes(content)
    found = []
    try:
        for item in read_documents(Part(str(path), 0, None), options):
            found.append(item)
            if isinstance(item, BadRecord):
                assert item.place.startswith(str(path)), item
                assert "\n" not in item.place + item.reason, item
            else:
                assert isinstance(item.position, int)
                for words in (item.text, item.id, item.label):
                    (words or "").encode()
    except UserError as error:
        assert "\n" not in str(error), str(error)
        assert len(str(error)) < 5000
    return found


PIECES = [
    *(b"\n", b"\r\n", b"\n\n", b"\n \t\r\n", b"\r", b" ", b"a", b"word ", b"\0", b"\x0c", b"\xff", b"\xed\xa0\x80"),
    *(words.encode() for words in ("\ufeff", "é", "中文。", "😀", "\u2028\x85")),
    *(b"\xc3", b"<|end|>", b"<|end", b"|>", b"\n = Title = \n", b"\n = = Part = = \n", b" = ", b"="),
    *(b'{"text": "a\\u4e2d"}\n', b'{"text": "', b'"}\n', b'{"id": 3, "text": "b"}\n', b"\\ud83d", b"\\", b'"', b","),
    *(b"\t", b"text", b"text,id\n", b"text\n", b"{}", b"[" * 2000, b'{"a":' * 500, b"9" * 5000, b'{"text": 1}\n'),
    *(b'{"text": null}\n', b'[{"text": "a"}]\n', b"NaN\n", b"<p>", b"<html><body>", b"</p>", b"&#xd800;", b"<!--"),
    *(b"WARC/1.0\r\n", b"WARC-Type: conversion\r\n", b"WARC-Type: response\r\n", b"Content-Type: text/plain\r\n"),
    *(b"Content-Type: application/http\r\n", b"Content-Length: 7\r\n", b"Content-Length: 99999999999\r\n"),
    *(b"HTTP/1.1 200 OK\r\n", b"Content-Type: text/html\r\n\r\n", b"PAR1", b"\x1f\x8b", b"<![CDATA["),
]
# Long runs cross the limits: of a block, of a document, of what decides where a record begins.
RUNS = st.tuples(st.sampled_from(PIECES), st.sampled_from([1, 1, 1, 1, 2, 3, 17, 90, 600, 3000])).map(
    lambda p: p[0] * p[1]
)
CONTENT = st.lists(st.one_of(RUNS, st.binary(max_size=20)), max_size=12).map(lambda pieces: b"".join(pieces)[:40_000])


@pytest.mark.parametrize("name", SPLITTABLE)
@bounded(80)
@given(content=CONTENT.filter(len), data=st.data(), errors=st.sampled_from(["strict", "replace"]))
def test_any_partition_gives_what_the_whole_file_gives(name, content, data, errors, path, small_limits):
    options = options_for(name, errors=errors)
    whole = read(path, content, options)
    assume(can_split(str(path), options))
    cuts = data.draw(st.lists(st.integers(0, len(content)), max_size=6))
    bounds = sorted({0, len(content), *cuts})
    assert sum((read_range(path, options, *cut) for cut in itertools.pairwise(bounds)), []) == whole


SMALL = {
    "txt": ("\ufeffone\r\n\r\nzwei ü\n" + "b中文c\n" * 4).encode(),
    "paragraphs": b"\n\none\nmore\r\n \t\r\n\ntwo\r\n\r\n\xe4\xb8\xad\n\n",
    "separated": b"<|end|>one<|end|><|end|>t<|en\xc3\xa9<|end|>\n",
    "lines": b"\xef\xbb\xbf one \r\n\n \t\nzw\xc3\xa9i\n\n\xe4\xb8\xad c",
    "wikitext": b" \n = A = \n text \n = = B = = \n more \n\n = C = \n x = y = \n",
    "md": "# Title\n\n*é*\n\n---\n* one\n* two\nend".encode(),
    "conll": b"-DOCSTART- O\n\nEU B-ORG\nsays\tO\r\n\n\nodd\nPeter B-PER I\n\n\xe4\xb8\xad O\n",
    "conllu": b"# a\n" + b"".join(b"%d\tw\t_\tX%s\n\n" % (n, b"\t_" * 6) for n in (1, 2)) + b"1\tw\t_\n",
    "jsonl": b'\xef\xbb\xbf{"text":"a"}\n\n{"text":"b\\ud83d"}\r\n{"text":}\n{"text":"c\xc3\xa9"}',
}


@pytest.mark.parametrize("name", SPLITTABLE)
@pytest.mark.parametrize("limit", [32, documents.MAX_DOCUMENT_BYTES])
def test_every_cut_of_a_small_file(name, limit, path, monkeypatch):
    """A document belongs to the range in which it starts, wherever the cuts fall and blocks end."""
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", limit)
    options = options_for(name, errors="replace")
    whole = read(path, SMALL[name], options)
    assert can_split(str(path), options)
    assert len(whole) > 1 or (name in ("txt", "md") and limit > 32)
    size = len(SMALL[name])
    for block in (1, 5, text.BLOCK_BYTES):
        monkeypatch.setattr(text, "BLOCK_BYTES", block)
        assert read_range(path, options) == whole
        for cuts in itertools.combinations_with_replacement(range(size + 1), 2) if block > 1 else [(7, 11)]:
            bounds = sorted({0, *cuts, size})
            assert sum((read_range(path, options, *cut) for cut in itertools.pairwise(bounds)), []) == whole, bounds


@pytest.mark.parametrize("name", NAMES)
@bounded(50)
@given(content=CONTENT, encoding=st.sampled_from(["utf-8", "utf-8", "gb18030", "utf-16", "latin-1", "ascii"]))
@example(content=b"", encoding="utf-8")
@example(content=b"", encoding="utf-16")
@example(content=b"\xef\xbb\xbf", encoding="utf-8")
@example(content=b"text\n" + b"\n" * 9, encoding="utf-8")
@example(content=b"x" * 20_000, encoding="utf-8")
@example(content=b"\\" * 20_000, encoding="utf-8")
@example(content=b"\xbf" * 12_000, encoding="utf-8")
def test_any_bytes_are_read_or_refused(name, content, encoding, path, small_limits):
    for errors in ("strict", "replace"):
        read(path, content, options_for(name, encoding=encoding, errors=errors))


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("name", ["txt", "paragraphs", "jsonl", "csv", "wet"])
def test_a_damaged_compression_is_a_bad_record(suffix, name, path):
    noise = random.Random(1)
    packed = COMPRESS[suffix](VALID[name] * 20)
    path, options = path.with_suffix(suffix), options_for(name)
    whole = read(path, packed, options)
    read(path, b"", options)
    for damaged in (b"no archive at all", *(packed[:cut] for cut in (1, 3, 5, len(packed) // 2, len(packed) - 1))):
        *good, bad = read(path, damaged, options)
        assert good == whole[: len(good)]
        assert bad.place == str(path)
        start = "is not" if damaged.startswith(b"no") else "broken"
        assert bad.reason.startswith(f"{start} {suffix[1:]}")
    for _ in range(25):
        read(path, flipped(packed, noise), options)
    read(path, noise.randbytes(500), options)
    read(path, packed + b"rest", options)


def flipped(content, noise):
    damaged = bytearray(content)
    for _ in range(noise.choice([1, 1, 2, 8])):
        damaged[noise.randrange(len(damaged))] ^= 1 << noise.randrange(8)
    return bytes(damaged)


def record(kind, content_type, block):
    return (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: http://a/中\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(block)}\r\n\r\n"
    ).encode() + (block + b"\r\n\r\n")


PAGE = (
    f"<html><head><meta charset=utf-8></head><body><nav>menu</nav><p>{'A sentence of the page. ' * 9}</p></body></html>"
)
HTTP = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + PAGE.encode()


def parquet_bytes(compression):
    rows = {"text": ["one", "中文", None, "x" * 300] * 10, "id": list(range(40)), "label": ["a", "b"] * 20}
    file = io.BytesIO()
    pq.write_table(pa.table(rows), file, row_group_size=16, compression=compression)
    return file.getvalue()


VALID = {
    "txt": "some text\nwith lines 中文\n".encode(),
    "paragraphs": "one\nmore\n\ntwo 中文\n\n".encode(),
    "lines": "one\n\ntwo 中文\n".encode(),
    "jsonl": b'{"text": "one \\u4e2d", "id": 1}\n{"text": "two", "label": [1, {"a": null}]}\n',
    "csv": 'text,id\n"one, ""two""\nmore",1\n中文,2\n'.encode(),
    "tsv": 'text\tid\n"one\ttwo"\t1\n中文\t2\n'.encode(),
    "wet": record("conversion", "text/plain", "some 中文".encode()),
    "warc": record("warcinfo", "application/warc-fields", b"a: b\r\n") + record("response", "application/http", HTTP),
    "html": PAGE.encode(),
    "parquet": parquet_bytes("none"),
}


@pytest.mark.parametrize("name", [name for name in VALID if name in NAMES])
def test_a_file_with_wrong_bits_is_read_or_refused(name, path):
    noise = random.Random(2)
    variants = [VALID[name]] if name != "parquet" else [VALID[name], parquet_bytes("snappy"), parquet_bytes("zstd")]
    options = options_for(name, id_key="id" if name in ("csv", "tsv", "parquet", "jsonl") else None)
    for content in variants:
        for _ in range(25 if name in PAGES else 150):
            read(path, flipped(content, noise), options)
            read(path, content[: noise.randrange(len(content))], options)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "id", "label", "a"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@bounded(150)
@given(records=st.lists(JSON, max_size=5), ascii_only=st.booleans())
def test_any_json_is_read_or_refused_line_by_line(records, ascii_only, path):
    lines = [json.dumps(record, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass") for record in records]
    found = read(path, b"\n".join(lines), options_for("jsonl", id_key="id", label_key="label"))
    assert len(found) == len(records)
    for record, item in zip(records, found, strict=True):
        is_text = isinstance(record, dict) and isinstance(record.get("text"), str)
        if isinstance(item, BadRecord):
            assert not is_text or b"\xed" in lines[records.index(record)], item
        else:
            expected = record["text"]
            is_whole = not any("\ud800" <= character <= "\udfff" for character in expected)
            assert item.text == expected if is_whole else "\ufffd" in item.text


WORDS = ["a", "é", "中", "😀", " ", "\\", '"', "\n", "\1", "word " * 40, "x" * 700]


@bounded(60)
@given(words=st.lists(st.sampled_from(WORDS), min_size=900, max_size=2000), is_ascii=st.booleans())
def test_a_long_json_text_comes_in_pieces_without_loss(words, is_ascii, path, small_limits):
    content = "".join(words)
    record = {"id": 7, "meta": {"text": "not this"}, "text": content, "rest": "z" * 9000}
    line = json.dumps(record, ensure_ascii=is_ascii)
    found = read(path, f'{{"text":"before"}}\n{line}\n{{"text":"after"}}\n'.encode(), options_for("jsonl", id_key="id"))
    assert "".join(item.text for item in found[1:-1]) == content
    assert {item.id for item in found[1:-1]} == {"7"}
    assert (found[0].text, found[-1].text) == ("before", "after")
    assert max(len(item.text.encode()) for item in found) <= LIMIT


@pytest.mark.parametrize("name", ["txt", "md"])
@bounded(60)
@given(content=CONTENT)
def test_a_long_text_comes_in_pieces_without_loss(name, content, path, small_limits):
    content = content.decode("utf-8", "ignore").lstrip("\ufeff").encode()
    assume(foreign(content, "utf-8") is None)
    found = read(path, content, options_for(name))
    assert "".join(item.text for item in found).encode() == content


# Not ru_maxrss: a child begins with that of its parent.
MEASURE = """
import re, sys
from pathlib import Path
from hvdlm.preprocessing import documents
from hvdlm.preprocessing.documents import Part, ReadOptions
from hvdlm.preprocessing.readers import can_split, read_documents, text
import pyarrow.parquet
try:
    import trafilatura
except ImportError:
    pass
documents.MAX_DOCUMENT_BYTES, text.BLOCK_BYTES = 1 << 20, 1 << 18
sys.path.insert(0, sys.argv[3])
from reading import fields_for
options = ReadOptions(sys.argv[2], separator="<|end|>", fields=fields_for(sys.argv[2]))
peak_kib = lambda: int(re.search("VmHWM: *\\t* *([0-9]+)", Path("/proc/self/status").read_text())[1])
before = peak_kib()
for item in read_documents(Part(sys.argv[1], 0, None), options):
    pass
print(peak_kib() - before)
"""
# How it begins, and what it repeats.
BOMBS = {"zeros": (b"", b"\0"), "a quote": (b'text\n"', b"x"), "a line": (b'{"text": "', b"x")}
BOMBS["line ends"] = b"text\n", b"\n"


# A line end is a record of its own to jsonl and csv, so a file of them takes time, not memory.
BOMBED = [(name, "zeros") for name in NAMES]
BOMBED += [(name, "line ends") for name in ("txt", "paragraphs")]
BOMBED += [("paragraphs", "a line"), ("jsonl", "a line"), ("csv", "a quote")]


@pytest.mark.parametrize(("name", "bomb"), BOMBED)
def test_a_file_that_expands_without_measure_needs_little_memory(name, bomb, tmp_path):
    start, byte = BOMBS[bomb]
    path = tmp_path / "a.gz"
    size = 50 << 20 if byte != b"\n" else 16 << 20
    path.write_bytes(gzip.compress(start + byte * size, 1))
    command = [sys.executable, "-c", MEASURE, str(path), name, str(Path(__file__).parent)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) << 10 < min(size, 20 << 20)
