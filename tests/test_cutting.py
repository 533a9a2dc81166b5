"""A long text is cut by itself alone: the same pieces in every format, encoding and range of a file."""

import csv
import io
import itertools
import json
import random
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reading import COMPRESS
from reading import read as read_range
from test_readers_fuzz import bounded

from hvdlm.preprocessing import documents
from hvdlm.preprocessing.documents import BadRecord, Document, Part, ReadOptions
from hvdlm.preprocessing.readers import FORMATS, can_split, read_documents, text
from hvdlm.preprocessing.readers.cutting import cut, step_and_reach

LIMIT = 640


def a_csv(words, **settings):
    file = io.StringIO()
    csv.writer(file, lineterminator="\n", **settings).writerows([["id", "text"], ["i", words], ["j", "next"]])
    return file.getvalue().encode()


def an_arrow(words):
    table = pa.table({"id": ["i", "j"], "text": [words, "next"]})
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def a_parquet(words):
    sink = io.BytesIO()
    pq.write_table(pa.table({"id": ["i", "j"], "text": [words, "next"]}), sink)
    return sink.getvalue()


def a_wet(words):
    kind = "WARC/1.0\r\nWARC-Type: conversion\r\nContent-Type: text/plain\r\n"
    head = kind + "WARC-Target-URI: {}\r\nContent-Length: {}\r\n\r\n"
    pairs = [("i", words.encode()), ("j", b"next")]
    return b"".join(head.format(name, len(data)).encode() + data + b"\r\n\r\n" for name, data in pairs)


def records(words):
    return [{"id": "i", "text": words}, {"id": "j", "text": "next"}]


# How a long text with the id i, and a short one behind it, are written.
WRITE = {
    "txt": lambda words: words.encode(),
    "md": lambda words: b"\xef\xbb\xbf" + words.encode(),
    "paragraphs": lambda words: b"\n\n\r\n" + words.encode() + b"\n\n\nnext",
    "separated": lambda words: words.encode() + b"\r\n<|end|>\nnext",
    "lines": lambda words: b"\n\r\n" + words.encode() + b"\r\nnext\n\n",
    "wikitext": lambda words: words.encode() + b"\n = next = \n",
    "jsonl": lambda words: "".join(json.dumps(record) + "\n" for record in records(words)).encode(),
    "json": lambda words: json.dumps(records(words), ensure_ascii=False, indent=1).encode(),
    "csv": a_csv,
    "tsv": lambda words: a_csv(words, delimiter="\t", quoting=csv.QUOTE_NONE),
    "parquet": a_parquet,
    "arrow": an_arrow,
    "wet": a_wet,
}
WHOLE_FILES = ("txt", "md")
NAMED = ("jsonl", "json", "csv", "tsv", "parquet", "arrow")
WORDS = st.lists(
    st.tuples(st.sampled_from(["word", "é", "中文。", "😀", '"', "\\", "\\u00e9", ",", "="]), st.integers(1, 400)),
    min_size=1,
    max_size=12,
)


def in_pieces(path, options):
    return list(read_documents(Part(str(path), 0, None), options))


def options_of(name, **changes):
    return ReadOptions(**{"format": name, "id_key": "id" if name in NAMED else None, "separator": "<|end|>", **changes})


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", LIMIT)


def test_every_format_that_holds_texts_is_here():
    of_pages, of_records = {"html", "warc"}, {"conll", "conllu", "squad", "parallel"}  # records are not cut
    assert WRITE.keys() == FORMATS.keys() - of_pages - of_records


def expected_pieces(words):
    return [piece.data.decode() for piece in cut([words.encode()])]


@bounded(40)
@given(parts=WORDS, between=st.sampled_from([" ", "\n", "", "x"]), block=st.sampled_from([64, 1000, 1 << 20]))
def test_the_same_text_gives_the_same_pieces_in_every_format(parts, between, block, tmp_path, small):
    plain = between.join(word * count for word, count in parts)
    for name, write in WRITE.items():
        if (name in ("tsv", "lines") and between == "\n") or (name == "tsv" and '"' in plain):
            continue  # which it cannot hold
        words = plain.replace("=", "e") if name == "wikitext" else plain
        path = tmp_path / "a"
        path.write_bytes(write(words))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(text, "BLOCK_BYTES", block)
            *found, last = in_pieces(path, options_of(name))
        if name in WHOLE_FILES:
            found = [*found, last]
        else:
            assert "next" in last.text
            assert last.piece == 0
        assert [document.text for document in found] == expected_pieces(words), name
        assert [document.piece for document in found] == list(range(len(found)))
        assert {document.id for document in found} == ({"i"} if name in (*NAMED, "wet") else {None})


@pytest.mark.parametrize("size", [LIMIT - 1, LIMIT, LIMIT + 1, 2 * LIMIT, 2 * LIMIT - 40, 7 * LIMIT + 3])
@pytest.mark.parametrize("unit", ["word ", "x", "中", "line\n", "😀\n\n"])
def test_pieces_are_no_longer_than_the_limit_and_end_where_they_should(small, unit, size):
    words = (unit * size)[:size]
    data = words.encode()
    pieces = [piece.data for piece in cut([data])]
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) <= LIMIT
    assert (len(pieces) == 1) == (len(data) <= LIMIT)
    ends = {piece[-1:] for piece in pieces[:-1]}
    assert ends <= {b"\n"} if "\n" in unit else ends <= {b" "} if " " in unit else True
    assert [piece.data for piece in cut(data[n : n + 1] for n in range(len(data)))] == pieces
    for piece in pieces:  # what was cut once is never cut again
        assert [again.data for again in cut([piece])] == [piece]


def test_a_cut_is_made_within_its_reach_or_not_at_all(small):
    step, reach = step_and_reach()
    for far, end in ((reach - 1, step + reach), (reach, step)):  # where the only line end stands behind the place
        words = b"x" * (step + far) + b"\n" + b"x" * step
        assert len(next(cut([words])).data) == end


@pytest.mark.parametrize("name", ["paragraphs", "separated"])
def test_line_ends_inside_a_long_text_stay(tmp_path, small, name):
    words = "a" * (LIMIT - 1) + "\n" + "b" * (LIMIT - 2) + "\r\n" + "c" * LIMIT
    (tmp_path / "a").write_bytes(f"\r\n{words}\n".encode())
    assert "".join(document.text for document in in_pieces(tmp_path / "a", options_of(name))) == words


@pytest.mark.parametrize("size", [10, 2 * LIMIT])
def test_a_blank_line_before_a_paragraph_is_none_of_it(tmp_path, small, size, monkeypatch):
    monkeypatch.setattr(text, "BLOCK_BYTES", 64)
    (tmp_path / "a").write_bytes(b"first" + b"\n" * 514 + b" \t\n" + b"x" * size)
    first, *found = in_pieces(tmp_path / "a", options_of("paragraphs"))
    assert (first.text, "".join(document.text for document in found)) == ("first", "x" * size)


def test_long_texts_of_an_archive_stay_apart(tmp_path, small):
    texts = ["a " * 3000, "b " * 1000, "c"]
    (tmp_path / "a").write_bytes(b"".join(a_wet(words) for words in texts))
    whole = {"i": "", "j": ""}
    for document in in_pieces(tmp_path / "a", options_of("wet")):
        whole[document.id] += document.text
    assert whole == {"i": "".join(texts), "j": "next" * 3}


def test_a_piece_is_found_without_those_before_it(small):
    data = ("wörter und\n" * 500).encode()
    pieces, (step, _) = list(cut([data])), step_and_reach()
    for first, stop in itertools.product(range(len(pieces) + 2), [None, *range(0, len(data), 300)]):
        wanted = [piece for piece in pieces[first:] if stop is None or piece.number * step < stop]
        if wanted or first:
            assert list(cut([data[first * step :]], first, stop)) == (wanted or pieces[first:first][:0]), (first, stop)


@pytest.mark.parametrize("name", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_compressed_file_gives_the_same(tmp_path, small, name, suffix):
    words = "some words, and\nmore " * 200
    path = tmp_path / f"a{suffix}"
    path.write_bytes(COMPRESS[suffix](WRITE[name](words)))
    *found, _ = in_pieces(path, options_of(name))
    assert [document.text for document in found] == expected_pieces(words)


@pytest.mark.parametrize("name", ["txt", "jsonl", "csv", "json", "paragraphs"])
@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "utf-16-le"])
def test_another_encoding_gives_the_same(tmp_path, small, name, encoding):
    words = "中文 и слова " * 200
    path = tmp_path / "a"
    path.write_bytes(WRITE[name](words).decode().encode(encoding))
    found = in_pieces(path, options_of(name, encoding=encoding))[: len(expected_pieces(words))]
    assert [document.text for document in found] == expected_pieces(words)


def test_ranges_of_a_file_with_a_byte_order_mark(tmp_path, small):
    path, options = tmp_path / "a.txt", ReadOptions()
    path.write_bytes(b"\xef\xbb\xbf" + b"word " * 1000)
    assert can_split(str(path), options)
    whole = read_range(path, options)
    assert [document.text for document in whole] == expected_pieces("word " * 1000)
    assert [document.position for document in whole] == [3 + piece.offset for piece in cut([b"word " * 1000])]
    for middle in range(0, 5003, 7):
        assert read_range(path, options, 0, middle) + read_range(path, options, middle, 5003) == whole


@pytest.mark.parametrize("name", ["txt", "paragraphs", "separated"])
def test_a_wrong_byte_in_a_long_text_costs_its_piece_and_has_its_place(tmp_path, small, name):
    data = b"\r\nword " + b"word " * 400
    wrong = data[:1000] + b"\xff" + data[1001:]
    path = tmp_path / "a.txt"
    path.write_bytes(wrong)
    found = in_pieces(path, options_of(name))
    (bad,) = [item for item in found if isinstance(item, BadRecord)]
    assert bad.place == f"{path}: byte 1000"
    kept = "".join(item.text for item in found if isinstance(item, Document))
    assert len(data) - LIMIT - 3 <= len(kept) < len(data) - LIMIT // 2
    assert in_pieces(path, options_of(name, errors="replace"))[1].text.count("\ufffd") == 1


FAULTS = {
    "a wrong byte": (b'{"text": "%s\xff"}', "is not UTF-8"),
    "a wrong escape": (b'{"text": "%s\\q"}', "not valid JSON"),
    "a control character": (b'{"text": "%s\x01"}', "not valid JSON"),
    "text behind it": (b'{"text": "%s" x}', "not valid JSON"),
    "no key": (b'{"body": "%s"}', r"(no key 'text'|larger than .* bytes\), without 'text')"),
    "no object": (b'"%s"', r"(no key 'text'|larger than .* bytes\), without 'text')"),
    "no text": (b'{"text": ["%s"]}', r"('text' is list|larger than)"),
}


@pytest.mark.parametrize("name", ["jsonl", "json"])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("size", [10, 2000, 9000])
def test_a_record_with_a_fault_is_one_bad_record_whatever_its_size(tmp_path, small, name, fault, size):
    line, reason = FAULTS[fault]
    path = tmp_path / "a"
    path.write_bytes(line % (b"x" * size) + b'\n{"text": "next"}\n')
    bad, good = in_pieces(path, ReadOptions(name))
    assert bad.place.startswith(f"{path}: byte ")
    assert re.match(reason, bad.reason)
    assert good.text == "next"


@pytest.mark.parametrize("name", ["jsonl", "json"])
def test_the_text_may_stand_behind_a_long_value(tmp_path, small, name):
    path = tmp_path / "a"
    path.write_text(json.dumps({"html": "<p>" * 500, "text": "short", "id": 1.50}) + '\n{"text": "next"}\n')
    found = in_pieces(path, ReadOptions(name, id_key="id"))
    assert [(document.text, document.id) for document in found] == [("short", "1.5"), ("next", None)]


@pytest.mark.parametrize("seed", range(20))
def test_escapes_are_not_torn_wherever_blocks_end(seed, tmp_path, small, monkeypatch):
    monkeypatch.setattr("hvdlm.preprocessing.readers.jsonl.BLOCK_BYTES", 13)
    pieces = ["\\\\", "\\n", '\\"', "\\ud83d\\ude00", "\\ud83d", "\\ude00", "ud83d", "é", "😀", "x", "中"]
    spelled = "".join(random.Random(seed).choices(pieces, k=3000))
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "' + spelled + '"}\n')
    expected = re.sub("[\ud800-\udfff]", "\ufffd", json.loads(f'"{spelled}"'))
    assert "".join(document.text for document in in_pieces(path, ReadOptions())) == expected
