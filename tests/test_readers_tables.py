"""Rows of CSV, TSV, Parquet and Arrow become documents, and a wrong row does not lose the next."""

import csv
import gzip
import io
import re
import sys
from dataclasses import replace
from datetime import date
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reading import STRICT, only_bad, write_packed
from reading import read as read_with

from hvdlm.errors import UserError
from hvdlm.preprocessing import documents
from hvdlm.preprocessing.documents import NOT_UTF8, BadRecord, Document, ReadOptions, TableConfig
from hvdlm.preprocessing.readers import delimited as delimited_reader
from hvdlm.preprocessing.readers.columnar import WRONG_TEXT
from hvdlm.preprocessing.readers.long_rows import LongRow
from hvdlm.preprocessing.readers.table_lines import Dialect

TEXTS = ["one, two", 'she said "no"', "first\nsecond\r\nthird", "中文，带逗号的句子。", "", "naïve 😀"]
NAMED = ReadOptions(id_key="id", label_key="label")


def read(path, options=NAMED):
    return read_with(path, options)


def expected(texts):
    return [Document(text, i, str(i * 7), f"类{i % 2}") for i, text in enumerate(texts)]


@pytest.fixture(params=["", ".gz"])
def write(request, tmp_path):
    return lambda name, content: write_packed(tmp_path / (name + request.param), content)


def delimited(texts, suffix, line_end="\r\n"):
    lines = io.StringIO()
    writer = csv.writer(lines, delimiter="," if suffix == ".csv" else "\t", lineterminator=line_end)
    writer.writerow(["id", "text", "unused", "label"])
    writer.writerows([i * 7, text, "x", f"类{i % 2}"] for i, text in enumerate(texts))
    return lines.getvalue().encode()


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_rows_are_what_the_csv_module_wrote(write, suffix, line_end, bom):
    path = write("a" + suffix, bom + delimited(TEXTS, suffix, line_end))
    assert read(path, replace(NAMED, table=TableConfig(quote='"'))) == expected(TEXTS)


def test_a_csv_in_another_encoding(write):
    path = write("a.csv", delimited(TEXTS[:4], ".csv").decode().encode("gb18030"))
    assert read(path, ReadOptions(id_key="id", label_key="label", encoding="gb18030")) == expected(TEXTS[:4])


WRONG_ROWS = {
    "too few cells": (b"only one", "1 cells under 2 column names"),
    "too many cells": (b"a,b,c", "3 cells under 2 column names"),
    "not UTF-8": (b"caf\xe9,1", NOT_UTF8),
    "text after a closing quote": (b'"a"b,1', r"wrong quoting or line end \("),
    "a lone carriage return": (b"a\rb,1", r"wrong quoting or line end \(.*unquoted field\)"),
    "a long line with too few cells": (b"x" * 5000, "1 cells under 2 column names"),
    "a long line that is not UTF-8": (b"x" * 5000 + b"\xe9,1", NOT_UTF8),
    "a long cell with text behind it": (b'"' + b"y\n" * 3000 + b'"b,1', r"wrong quoting or line end \(','"),
}


@pytest.mark.parametrize("case", WRONG_ROWS)
def test_a_wrong_row_does_not_lose_the_next(case, write, monkeypatch):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 2000)
    row, pattern = WRONG_ROWS[case]
    path = write("a.csv", b"text,n\r\nbefore,1\r\n" + row + b"\r\n\r\nafter,2\r\n")
    found = read(path, STRICT)
    assert found[0] == Document("before", 0)
    assert found[-1] == Document("after", len(found) - 1)
    assert isinstance(found[1], BadRecord)
    assert found[1].place == f"{path}: row 1 (line 3)" or case == "a long cell with text behind it"
    assert re.match(pattern, found[1].reason)


def test_an_open_quote_at_the_end_is_no_row(write):
    first, last = read(write("a.csv", b'text\none\n"two and no end\n'), STRICT)
    assert first == Document("one", 0)
    assert isinstance(last, BadRecord)


def test_replace_keeps_what_can_be_read(write):
    found = read(write("a.csv", b"text\ncaf\xe9\n\xed\xa0\x80\n"), ReadOptions(errors="replace"))
    assert found == [Document("caf\ufffd", 0), Document("\ufffd\ufffd\ufffd", 1)]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the csv module of Python 3.10 takes no NUL")
def test_a_nul_is_a_character(write):
    assert read(write("a.csv", b"text\na\0b\n"), STRICT) == [Document("a\0b", 0)]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe,a\n"])
def test_a_table_without_a_header_is_one_bad_record(write, content):
    assert only_bad(write("a.csv", content)).place.endswith(": header row")


@pytest.mark.parametrize("key", ["text_key", "id_key", "label_key"])
def test_a_column_that_is_not_there_is_named_with_those_that_are(write, key):
    with pytest.raises(UserError, match=rf"a.csv.*: no column 'body' \(it has: id, text\); set {key}$"):
        read(write("a.csv", b"id,text\n1,a\n"), ReadOptions(**{key: "body"}))


def test_a_column_that_is_there_twice_is_refused(write):
    with pytest.raises(UserError, match="column 'text' is there 2 times"):
        read(write("a.csv", b"text,text\n1,a\n"), STRICT)


def test_a_header_of_noise_is_shown_on_one_line(write):
    with pytest.raises(UserError) as caught:
        read(write("a.csv", b'"a\nb",' + b"\x01" * 100 + b",c" * 100 + b"\n"), STRICT)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def texts_and_lines(found):
    """Texts of documents, and the lines that the place of a bad record names."""
    return [f.text if isinstance(f, Document) else re.search(r"\(lines? (.*)\)$", f.place)[1] for f in found]


def test_a_quote_in_tsv_is_text(write, caplog):
    content = b'text\tlabel\n"He said\t1\nplain\t0\nbye"\t0\n"a"b\t1\n"whole"\t1\na\\b\t1\n'
    found = read(write("a.tsv", content), ReadOptions(label_key="label"))
    assert texts_and_lines(found) == ['"He said', "plain", 'bye"', '"a"b', '"whole"', "a\\b"]
    assert [f.label for f in found] == list("100111")
    assert [m for m in caplog.messages if "row 4 (line 6): quotes around a cell are kept" in m]
    assert len(caplog.messages) == 1


STRAY = "".join(f"row {n},1\n" for n in range(50))


@pytest.mark.parametrize("limit", [100, 1 << 20])
def test_a_quote_without_end_loses_its_own_line_alone(write, monkeypatch, limit):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", limit)
    found = read(write("a.csv", f'text,n\nfirst,1\n"Oops,0\n{STRAY}'.encode()), STRICT)
    assert texts_and_lines(found) == ["first", "3", *(f"row {n}" for n in range(50))]
    assert [f.position for f in found if isinstance(f, Document)] == [0, *range(2, 52)]
    assert found[1].reason.endswith('; if a " is text here, set table.quote: none')


def test_a_quote_that_ends_in_a_later_row_loses_its_own_line_alone(write):
    found = read(write("a.csv", b'text,n\n"Oops,0\nplain,1\nsaid "no" and,1\nlast,1\n'), STRICT)
    assert texts_and_lines(found) == ["2", "plain", 'said "no" and', "last"]


@pytest.mark.parametrize("row", ['"He said,1\nplain,0\nbye",0', '"x,1\ny",0\n"u,1\nv",1'])
def test_rows_that_may_be_joined_by_a_stray_quote_are_remarked_once(write, caplog, row):
    read(write("a.csv", f"text,n\n{row}\n".encode()), STRICT)
    assert [m.partition(": row ")[2][:16] for m in caplog.messages] == [f"0 (lines 2 to {4 if 'said' in row else 3})"]


def test_lines_in_quotes_that_look_like_no_rows_are_a_cell(write, caplog):
    (found,) = read(write("a.csv", b'text,n\n"one\ntwo, three, four\nfive",1\n'), STRICT)
    assert found.text == "one\ntwo, three, four\nfive"
    assert not caplog.messages


def test_places_count_physical_lines(write, monkeypatch):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 2000)
    wrong = [b'"a\nb",1,2', b"x" * 9000, b'"' + b"y\n" * 3000 + b'",1,2', b"1,2,3"]
    found = read(write("a.csv", b"text,n\n\n" + b"\n".join(wrong) + b"\nlast,1"), STRICT)
    assert texts_and_lines(found) == ["3 to 4", "5", "6 to 3006", "3007", "last"]


BOOK = 'one, two\r\nsaid "no"\n中é😀\rend. ' * 400
LONG_ROWS = {
    "a long text": [BOOK, "i", ""],
    "a text with the delimiters of rows": ["a,b,c\n" * 2500, "i", ""],
    "a long line": ["word " * 3000, "i", ""],
    "another column is long": ["short", "i", BOOK],
    "all is long": [BOOK, BOOK[:9000], BOOK],
}


@pytest.mark.parametrize("case", LONG_ROWS)
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_text_of_any_length_comes_in_pieces(write, monkeypatch, caplog, case, suffix):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 2000)
    rows = io.StringIO()
    writer = csv.writer(rows, delimiter="," if suffix == ".csv" else "\t", lineterminator="\n")
    writer.writerows([["text", "id", "x"], ["before", "0", ""], LONG_ROWS[case], ["after", "2", ""]])
    options = ReadOptions(id_key="id", table=TableConfig(quote='"'))
    before, *pieces, after = read(write("a" + suffix, rows.getvalue().encode()), options)
    assert (before, after) == (Document("before", 0, "0"), Document("after", 2, "2"))
    assert "".join(piece.text for piece in pieces) == LONG_ROWS[case][0]
    assert {(piece.position, piece.id) for piece in pieces} == {(1, LONG_ROWS[case][1])}
    assert [piece.piece for piece in pieces] == list(range(len(pieces)))
    assert bool([m for m in caplog.messages if "joins lines" in m]) == (
        "delimiters of rows" in case and suffix == ".csv"
    )


@pytest.mark.parametrize(
    "dialect", [Dialect(",", '"'), Dialect("→", "'", "\\"), Dialect("\t", None, "\\"), Dialect(";", None)]
)
@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(data=st.data())
def test_a_long_row_is_parsed_as_the_csv_module_does(dialect, data):
    nul = ["\0x"] * (sys.version_info >= (3, 11))  # which the csv module of Python 3.10 does not take
    signs = st.sampled_from(["a", "é", ",", ";", "\t", "→", '"', "'", "\\", "\n", "\r", *nul])
    content = "x" + "".join(data.draw(st.lists(signs, max_size=20))) + "z\n"
    size = data.draw(st.integers(1, 5))
    row = LongRow(dialect, "surrogateescape", [0, 1, 2])
    pieces = [content.encode()[n : n + size] for n in range(0, len(content.encode()), size)]
    rest = b""
    for piece in [*pieces, b""]:
        rest = rest + piece if row.has_ended else row.feed(piece)
    text = b"".join(row.text()).decode()
    try:
        lines = io.StringIO(content, newline="\n")
        cells = next(csv.reader(lines, **dialect.settings))
    except csv.Error as error:
        assert row.fault
        assert row.fault.startswith(f"wrong quoting or line end ({str(error).partition(' - ')[0]}")
    else:
        assert row.fault is None
        assert [text, *row.cells[1:3]] == cells[:3]
        assert len(row.cells) == len(cells)
        assert rest.decode() == lines.read()


@pytest.mark.parametrize("num_held", [8, 256])
def test_a_stray_quote_costs_its_line_wherever_it_is(write, monkeypatch, num_held):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 500)  # and 4,000 of a row are held in memory
    monkeypatch.setattr(delimited_reader, "HELD_DOCUMENTS", num_held)
    for header, end in (("text,n", ",1"), ("text", "")):
        rows = [f"row {n}{end}" for n in range(900)]
        for place in (3, 600, 898, 899):
            stray = [*rows[:place], '"' + rows[place], *rows[place + 1 :]]
            found = read(write("a.csv", "\n".join([header, *stray, ""]).encode()), STRICT)
            assert [n for n, one in enumerate(found) if isinstance(one, BadRecord)] == [place], (header, place)
            assert ("larger than" in found[place].reason) == (place == 3 and num_held == 8)
            assert [one.text for one in found if isinstance(one, Document)] == [
                f"row {n}" for n in range(900) if n != place
            ]


@pytest.mark.parametrize("header", ["text", "text,n"])
def test_a_cell_of_any_size_may_hold_lines_that_look_like_rows(write, monkeypatch, caplog, header):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 500)
    end = header.removeprefix("text").replace("n", "1")
    text = f"line of a book{end}\n" * 900
    found = read(write("a.csv", f'{header}\nfirst{end}\n"{text}"{end}\nlast{end}\n'.encode()), STRICT)
    assert "".join(f.text for f in found) == f"first{text}last"
    assert ["if quotes are text, set table.quote: none" in m for m in caplog.messages] == [True]


def test_a_stray_quote_loses_no_line_before_a_break(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 500)
    rows = "".join(f"row {n},1\n" for n in range(300))
    packed = gzip.compress(f'text,n\n"stray,1\n{rows}'.encode(), 0)
    path = tmp_path / "a.csv.gz"
    path.write_bytes(packed[:-8])
    found = read(path, STRICT)
    assert [f.text for f in found if isinstance(f, Document)] == [f"row {n}" for n in range(300)]
    assert len([f for f in found if isinstance(f, BadRecord)]) == 2


def test_a_cell_without_end_that_looks_like_no_rows_is_one_bad_record(write, monkeypatch):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 500)
    content = b'text,n\nfirst,1\n"' + b"line of a long text\n" * 900
    assert texts_and_lines(read(write("a.csv", content), STRICT)) == ["first", "3 to 902"]


@pytest.mark.parametrize("limit", [40, 1 << 20])
@pytest.mark.parametrize("head", ["text,n\n", "text,n\r\n", "text,n\r"])
def test_line_ends_may_change_in_a_file(write, monkeypatch, caplog, limit, head):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", limit)
    content = head + "".join(
        f'row {n},1{end}"a, b",2{end}' for n, end in enumerate(["\r"] * 9 + ["\n"] * 2 + ["\r"] * 9)
    )
    found = read(write("a.csv", content.encode()), STRICT)
    assert [f.text for f in found] == [text for n in range(20) for text in (f"row {n}", "a, b")]
    assert [m for m in caplog.messages if "a carriage return alone ends rows here" in m]


@pytest.mark.parametrize("limit", [10, 1 << 20])
def test_a_carriage_return_in_the_cell_of_a_single_column_may_be_text(write, monkeypatch, limit):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", limit)
    found = read(write("a.csv", b"text\none\ntwo\rand\rmore of it\nthree\n"), STRICT)
    assert texts_and_lines(found) == ["one", "3", "three"]
    assert found[1].reason.endswith("; a cell that holds a carriage return needs quotes around it") == (limit > 10)


@pytest.mark.parametrize("first", ["sep=;\n", '"sep=;"\r\n', "\ufeffsep=;\n"])
def test_the_line_of_excel_that_tells_the_delimiter(write, first):
    content = f"{first}text;n\na,b;1\nc;\n".encode()
    assert texts_and_lines(read(write("a.csv", content), STRICT)) == ["a,b", "c"]
    bad = read(write("a.csv", content[:-1] + b";x\n"), STRICT)[-1]
    assert bad.place.endswith("(line 4)")
    with pytest.raises(UserError, match="no column 'text'"):
        read(write("a.csv", content), ReadOptions(table=TableConfig(delimiter=",")))


def test_a_header_that_comes_again_is_remarked(write, caplog):
    found = read(write("a.csv", b"text,n\na,1\ntext,n\ntext,2\n"), STRICT)
    assert texts_and_lines(found) == ["a", "text", "text"]
    assert [m.partition(": row ")[2][:11] for m in caplog.messages] == ["1 (line 3):"]


@pytest.mark.parametrize("header", ["text,n", '"text","n"'])
@pytest.mark.parametrize("order", [1, -1])
def test_a_header_that_comes_again_behind_a_mark_is_the_same(write, caplog, header, order):
    header = ",".join(header.split(",")[::order])
    content = f"\ufeff{header}\n{','.join(['a', '1'][::order])}\n".encode() * 2
    found = read(write("a.csv", content), ReadOptions(id_key="n"))
    assert [(f.text, f.id) for f in found] == [("a", "1"), ("text", "n"), ("a", "1")]
    assert ["is the header again" in m for m in caplog.messages] == [True]


def test_a_mark_before_a_row_is_kept_with_a_remark(write, caplog):
    table = TableConfig(header=["n", "text"])
    found = read(write("a.csv", "\ufeff1,a\n\ufeff1,b\n".encode()), ReadOptions(id_key="n", table=table))
    assert [f.id for f in found] == ["1", "\ufeff1"]
    assert [m.partition(": row ")[2][:11] for m in caplog.messages] == ["1 (line 2):"]


@pytest.mark.parametrize("row", ['"He said \\"hi\\" ok",1', '"\\"hi\\", she said",1', '"a \\"b\\"",1\n"c",2'])
def test_a_backslash_before_a_quote_names_the_escape(write, row):
    content = f"text,n\n{row}\nlast,2\n".encode()
    bad = [f for f in read(write("a.csv", content), STRICT) if isinstance(f, BadRecord)]
    assert [b.reason.endswith("set table.escape: '\\'") for b in bad] == [True]
    good = read(write("b.csv", content), ReadOptions(table=TableConfig(escape="\\")))
    assert good[0].text == next(csv.reader(row.splitlines(), escapechar="\\", doublequote=False))[0]


@pytest.mark.parametrize(
    ("row", "remark"),
    [
        (r'"He said \"', "set table.escape: '\\'"),
        ("'whole'", """set table.quote: "'\""""),
        (' "whole"', "write no blanks between delimiter and quote"),
        (r"C:\dir" + "\\", None),
        ("'tis it", None),
        (' so "he said', None),
        ('"""whole"""', None),
        ("'", None),
    ],
)
def test_cells_that_tell_of_another_habit_are_remarked(write, caplog, row, remark):
    read(write("a.csv", f"n,text\n1,{row}\n2,{row}\n".encode()), STRICT)
    assert [m.endswith(remark or "?") for m in caplog.messages] == [True] * bool(remark)


@pytest.mark.parametrize(
    ("table", "hint"),
    [
        ({"escape": '"'}, "a quote doubled inside quotes needs no escape"),
        ({"delimiter": "\\t"}, 'a tab is "\\\\t", in'),
    ],
)
def test_settings_that_clash_or_are_no_character_have_a_remedy(table, hint):
    with pytest.raises(ValueError, match=hint):
        TableConfig(**table)
    TableConfig(escape='"', quote="none")


@pytest.mark.parametrize(
    ("table", "content", "texts"),
    [
        ({"delimiter": ";"}, "text;n\na,b;1\n", ["a,b"]),
        ({"delimiter": "\t"}, 'text\tn\n"a\tb"\t1\n', ["a\tb"]),
        ({"quote": "none"}, 'text,n\n"a,1\nb",2\n', ['"a', 'b"']),
        ({"quote": None}, 'text,n\n"a,1\n', ['"a']),
        ({"quote": "'"}, "text,n\n'it''s, \"so\"',1\n", ['it\'s, "so"']),
        ({"quote": "none", "escape": "\\"}, "text,n\na\\,b\\\\,1\nc\\\nd,1\n", ["a,b\\", "c\nd"]),
        ({"escape": "\\"}, 'text,n\n"a\\"b",1\n', ['a"b']),
        ({"header": ["n", "text"]}, "1,a\n2,b\n", ["a", "b"]),
    ],
)
def test_habits_of_tables_are_settings(write, table, content, texts):
    found = read(write("a.csv", content.encode()), ReadOptions(table=TableConfig(**table)))
    assert texts_and_lines(found) == texts


@pytest.mark.parametrize(
    "table", [{"delimiter": ", "}, {"quote": "\n"}, {"escape": ""}, {"delimiter": "|", "quote": "|"}]
)
def test_a_table_needs_different_single_characters(table):
    with pytest.raises(ValueError, match="different single characters"):
        TableConfig(**table)


def test_rows_of_a_wrong_shape_name_the_setting(write):
    (first, *_) = read(write("a.tsv", b'text\tn\n"a\nb"\t1\n'), STRICT)
    assert first.reason == "1 cells under 2 column names; if quotes join its cells or lines, set table.quote: '\"'"
    (bad,) = read(write("a.csv", b"a;1\n"), ReadOptions(table=TableConfig(header=["text", "n"])))
    assert bad.reason == "1 cells under 2 column names; if a ';' parts them, set table.delimiter"
    with pytest.raises(UserError, match=r"it has: text;n\); set text_key or table.delimiter"):
        read(write("a.csv", b"text;n\na;1\n"), STRICT)


def parquet(table, **settings):
    file = io.BytesIO()
    pq.write_table(table, file, **settings)
    return file.getvalue()


def a_table(texts, kind="string"):
    rows = range(len(texts))
    ids, labels = [i * 7 for i in rows], [f"类{i % 2}" for i in rows]
    return pa.table({"id": ids, "text": pa.array(texts, kind), "x": [1.5] * len(texts), "label": labels})


KINDS = {"string": pa.string(), "large_string": pa.large_string(), "dictionary": pa.dictionary(pa.int32(), pa.string())}
MORE_KINDS = {
    "string_view": pa.string_view(),
    "binary": pa.binary(),
    "large_binary": pa.large_binary(),
    "binary_view": pa.binary_view(),
    "bytes of a dictionary": pa.dictionary(pa.int8(), pa.binary()),
    "large strings of a dictionary": pa.dictionary(pa.int32(), pa.large_string()),
}


def arrow_file(table, new=pa.ipc.new_file, **settings):
    content = io.BytesIO()
    with new(content, table.schema, options=pa.ipc.IpcWriteOptions(compression=settings.get("compression"))) as writer:
        writer.write_table(table, max_chunksize=settings.get("max_chunksize"))
    return content.getvalue()


def arrow_stream(table, **settings):
    return arrow_file(table, pa.ipc.new_stream, **settings)


def feather(table):
    content = io.BytesIO()
    pa.feather.write_feather(table, content)
    return content.getvalue()


def packed(suffix, table):
    return {".parquet": parquet, ".arrow": arrow_stream, ".ipc": arrow_file, ".feather": feather}[suffix](table)


COLUMNAR = [".parquet", ".arrow", ".ipc", ".feather"]


@pytest.mark.parametrize("suffix", COLUMNAR)
@pytest.mark.parametrize("kind", MORE_KINDS)
def test_text_of_any_type(write, suffix, kind):
    texts = [*TEXTS, None]
    is_bytes = "binary" in str(MORE_KINDS[kind])
    column = pa.array([text.encode() if text is not None and is_bytes else text for text in texts], MORE_KINDS[kind])
    *found, bad = read(write("a" + suffix, packed(suffix, pa.table({"text": column}))), STRICT)
    assert found == [Document(text, i) for i, text in enumerate(TEXTS)]
    assert bad.reason == "'text' is null"


@pytest.mark.parametrize("suffix", [".arrow", ".ipc"])
def test_text_of_a_union(write, suffix):
    """Parquet and Feather have no place for one."""
    numbers, texts = pa.array([0, 1, 1, 0], pa.int8()), pa.array(["eins", "b", "c", "四"])
    sparse = pa.UnionArray.from_sparse(numbers, [texts, pa.array(["a", "zwei", None, "d"], pa.large_string())])
    children = [pa.array(["eins", "四"]), pa.array([b"zwei", None], pa.binary())]
    dense = pa.UnionArray.from_dense(numbers, pa.array([0, 0, 1, 1], pa.int32()), children)
    mixed = pa.UnionArray.from_dense(numbers, pa.array([0, 0, 1, 1], pa.int32()), [children[0], pa.array([2, 3])])
    path = write("a" + suffix, packed(suffix, pa.table({"sparse": sparse, "dense": dense, "mixed": mixed})))
    for key in ("sparse", "dense"):
        one, two, bad, four = read(path, ReadOptions(text_key=key, id_key=key, label_key="mixed"))
        assert [(d.text, d.id, d.label) for d in (one, two, four)] == [
            ("eins", "eins", "eins"),
            ("zwei", "zwei", "2"),
            ("四", "四", "四"),
        ]
        assert bad.reason == f"{key!r} is null"
    with pytest.raises(UserError, match="column 'mixed' is dense_union.*, not string"):
        read(path, ReadOptions(text_key="mixed"))


@pytest.mark.parametrize("suffix", COLUMNAR)
def test_text_that_is_json_or_bytes_of_one_size_or_null(write, suffix):
    json_column = pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": 1.0}', None]))
    columns = {"json": json_column, "fixed": pa.array([b"abc", b"de\xe9"], pa.binary(3)), "null": pa.nulls(2)}
    path = write("a" + suffix, packed(suffix, pa.table(columns)))
    one, bad = read(path, ReadOptions(text_key="json"))
    assert (one.text, bad.reason) == ('{"a": 1.0}', "'json' is null")
    one, bad = read(path, ReadOptions(text_key="fixed"))
    assert (one.text, bad.reason) == ("abc", WRONG_TEXT)
    assert [bad.reason for bad in read(path, ReadOptions(text_key="null"))] == ["'null' is null"] * 2


@pytest.mark.parametrize("suffix", COLUMNAR)
def test_a_key_leads_into_structs(write, suffix):
    rows = [{"b": {"c": "deep", "id": 1.0}, "d.e": "dots"}, None, {"b": None, "d.e": None}]
    path = write("a" + suffix, packed(suffix, pa.table({"a": rows, "a.d": ["top", "x", "y"]})))
    one, *bad = read(path, ReadOptions(text_key="a.b.c", id_key="a.b.id", label_key="a.d.e"))
    assert one == Document("deep", 0, "1.0", "dots")
    assert [b.reason for b in bad] == ["'a.b.c' is null"] * 2
    assert [d.text for d in read(path, ReadOptions(text_key="a.d"))] == ["top", "x", "y"]
    with pytest.raises(UserError, match=r"no column 'a.b.x' \(it has: a, a.d\); set id_key"):
        read(path, ReadOptions(text_key="a.d", id_key="a.b.x"))
    with pytest.raises(UserError, match=r"column 'a.b' is struct<c: string, id: double>, not string"):
        read(path, ReadOptions(text_key="a.b"))


NAMES = {
    "beyond 2^53": (pa.array([9007199254740993]), "9007199254740993"),
    "float32": (pa.array([0.1], pa.float32()), "0.1"),
    "float64": (pa.array([0.1]), "0.1"),
    "decimal": (pa.array([Decimal("1000")]).cast(pa.decimal128(9, 2)), "1000.00"),
    "date": (pa.array([date(2020, 2, 3)]), "2020-02-03"),
    "nanoseconds": (pa.array([1], pa.timestamp("ns")), "1970-01-01 00:00:00.000000001"),
    "bytes": (pa.array(["中".encode()]), "中"),
    "bytes that are no text": (pa.array([b"\xff\x00"]), "ff00"),
    "list": (pa.array([["中", None]]), '["中", null]'),
    "struct": (pa.array([{"a": 1}]), '{"a": 1}'),
    "dictionary": (pa.array(["x"]).dictionary_encode(), "x"),
    "null": (pa.nulls(1), None),
    "float16": (pa.array([0.1], pa.float16()), "0.1"),
    "floats in a list": (pa.array([[0.1]], pa.list_(pa.float32())), "[0.1]"),
    "bytes in a list": (pa.array([["中".encode(), b"\xff", None]]), '["中", "ff", null]'),
    "nanoseconds in a struct": (
        pa.array([{"a": 1}], pa.struct([("a", pa.timestamp("ns"))])),
        '{"a": "1970-01-01 00:00:00.000000001"}',
    ),
    "nanoseconds in a map": (
        pa.array([[("k", 1)]], pa.map_(pa.string(), pa.timestamp("ns"))),
        '[["k", "1970-01-01 00:00:00.000000001"]]',
    ),
    "a span of nanoseconds": (pa.array([1], pa.duration("ns")), "1 ns"),
    "spans in a list": (pa.array([[1, 1000]], pa.list_(pa.duration("ns"))), '["1 ns", "0:00:00.000001"]'),
    "a date beyond Python's": (pa.array([10**7], pa.date32()), "29349-01-26"),
    "a date before Python's": (pa.array([-(10**6)], pa.date32()), "-0768-02-04"),
    "a time beyond Python's": (pa.array([3 * 10**14], pa.timestamp("ms")), "11476-08-15 05:20:00.000"),
    "a time in a list beyond Python's": (
        pa.array([[3 * 10**14]], pa.list_(pa.timestamp("ms"))),
        '["11476-08-15 05:20:00.000"]',
    ),
    "nested twice": (pa.array([{"a": [{"b": True}, None]}]), '{"a": [{"b": true}, null]}'),
}


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("kind", NAMES)
def test_ids_and_labels_of_any_type_lose_nothing(write, suffix, kind):
    values, name = NAMES[kind]
    table = pa.table({"text": ["a"], "id": values, "label": values})
    assert read(write("a" + suffix, packed(suffix, table))) == [Document("a", 0, name, name)]


def test_a_name_that_cannot_be_shown_costs_its_own_row_alone(write):
    zones = pa.array([0, 0], pa.timestamp("s", "Nowhere/Such"))
    path = write("a.arrow", arrow_stream(pa.table({"text": ["a", "b"], "id": zones, "label": ["x", "y"]})))
    found = read(path)
    assert ["its id or label cannot be shown" in bad.reason for bad in found] == [True] * 2
    assert [bad.place for bad in found] == [f"{path}: row {n}" for n in range(2)]


def test_an_id_that_is_no_text_costs_its_own_row_alone(write):
    ids = pa.array([[b"\xff"], [b"ok"]]).view(pa.list_(pa.string()))
    bad, good = read(write("a.parquet", parquet(pa.table({"text": ["a", "b"], "id": ids, "label": ["x", "y"]}))))
    assert (bad.reason, good.id) == (WRONG_TEXT, '["ok"]')


@pytest.mark.parametrize("suffix", [".arrow", ".ipc"])
def test_text_in_runs_is_text(write, suffix):
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), pa.array(["x", None]))
    one, two, bad = read(
        write("a" + suffix, packed(suffix, pa.table({"text": runs, "id": runs}))), ReadOptions(id_key="id")
    )
    assert (one, two) == (Document("x", 0, "x"), Document("x", 1, "x"))
    assert bad.reason == "'text' is null"


@pytest.mark.parametrize("suffix", COLUMNAR)
def test_files_put_one_behind_the_other_lose_nothing_in_silence(write, suffix):
    first, other = packed(suffix, a_table(["a", "b"])), packed(suffix, a_table(["c", "d", "e"], "large_string"))
    assert len(read(write("one" + suffix, first))) == 2
    for number, joined in enumerate(
        (first + other, first + first, other + first + first, first + packed(suffix, a_table([])))
    ):
        found = read(write(f"{number}{suffix}", joined))
        if suffix == ".arrow":  # streams, which go on
            texts = ["abcde", "abab", "cdeabab", "ab"][number]
            assert [(f.text, f.position) for f in found] == [(text, n) for n, text in enumerate(texts)]
        else:
            assert ["put one behind the other" in bad.reason for bad in found] == [True]


@pytest.mark.parametrize("behind", [b"x", b"garbage" * 99, b"\xff" * 8, b"\0" * 64 + b"x", "file"])
def test_bytes_behind_the_end_of_a_stream_are_told(write, behind):
    stream = arrow_stream(a_table(["a", "b"]))
    behind = arrow_file(a_table(["c"])) if behind == "file" else behind
    *found, bad = read(write("a.arrow", stream + behind))
    assert [f.text for f in found] == ["a", "b"]
    assert f"behind the end of the stream, byte {len(stream)}, none begins" in bad.reason


def test_zeros_behind_the_end_of_a_stream_are_padding(write):
    assert len(read(write("a.arrow", arrow_stream(a_table(["a", "b"])) + bytes(64)))) == 2


@pytest.mark.parametrize("suffix", COLUMNAR)
def test_a_file_may_hold_what_stands_between_files(write, suffix):
    seams = ["PAR1PAR1", "\x04\0\0\0PAR1PAR1", "ARROW1", "ARROW1ARROW1\0\0"]
    content = packed(suffix, a_table(seams)) if suffix != ".parquet" else parquet(a_table(seams), compression="none")
    assert [f.text for f in read(write("a" + suffix, content))] == seams


@pytest.mark.parametrize("pack", [arrow_file, arrow_stream])
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_batches_of_arrow_are_read_in_order(write, pack, compression):
    content = pack(a_table(TEXTS * 30), max_chunksize=7, compression=compression)
    assert read(write("a.arrow", content)) == expected(TEXTS * 30)
    assert read(write("b.arrow", pack(a_table([])))) == []


def test_a_damaged_arrow_file_is_told(write):
    content = arrow_file(pa.table({"text": ["unmistakable"] * 9}), max_chunksize=3)
    offsets = np.array([0, 12, 24, 36], np.int32).tobytes()
    place = content.index(offsets)
    damaged = content[:place] + np.array([0, 1 << 30, 24, 36], np.int32).tobytes() + content[place + 16 :]
    bad, *rest = read(write("a.arrow", damaged), STRICT)
    assert bad.place.endswith("a.arrow: record batch 0") or bad.place.endswith("a.arrow.gz: record batch 0")
    assert [d.text for d in rest] == ["unmistakable"] * 6
    stream = arrow_stream(pa.table({"text": ["unmistakable"] * 9}), max_chunksize=3)
    *rest, bad = read(write("b.arrow", stream[: len(stream) * 3 // 4]), STRICT)
    assert "record batch" in bad.place
    assert 0 < len(rest) < 9
    for broken in (b"", b"x\0" * 99, content[:50], b"FEA1" + b"x" * 99):
        assert re.match("broken arrow|is Feather version 1", only_bad(write("c.arrow", broken)).reason)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row_group_size", [1, 4, 1000])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_rows_are_what_pyarrow_wrote(write, kind, row_group_size, compression):
    table = a_table(TEXTS * 30, KINDS[kind])
    path = write("a.parquet", parquet(table, row_group_size=row_group_size, compression=compression))
    assert read(path) == expected(TEXTS * 30)


def test_only_the_text_column_is_needed(write):
    assert read(write("a.parquet", parquet(a_table(["a"]))), STRICT) == [Document("a", 0)]


def test_ids_of_any_type_become_text(write):
    columns = {"text": ["a", "b"], "id": [1.5, None], "label": [True, False]}
    found = read(write("a.parquet", parquet(pa.table(columns))))
    assert found == [Document("a", 0, "1.5", "true"), Document("b", 1, None, "false")]


@pytest.mark.parametrize("kind", ["string", "dictionary"])
def test_a_null_or_large_cell_does_not_lose_the_next(write, monkeypatch, kind):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 2000)
    path = write("a.parquet", parquet(a_table(["a", None, "é" * 1001, "b"], KINDS[kind])))
    first, null, *large, last = read(path, STRICT)
    assert (first, last) == (Document("a", 0), Document("b", 3))
    assert null == BadRecord(f"{path}: row 1", "'text' is null")
    assert "".join(piece.text for piece in large) == "é" * 1001
    assert [(piece.position, piece.piece) for piece in large] == [(2, 0), (2, 1)]


def test_a_long_cell_with_a_wrong_byte_follows_the_error_policy(write, monkeypatch):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 2000)
    text = pa.array([b"a", b"x" * 3000 + b"\xff" + b"y" * 3000]).view(pa.string())
    path = write("a.parquet", parquet(pa.table({"text": text})))
    assert read(path, STRICT) == [Document("a", 0), BadRecord(f"{path}: row 1", WRONG_TEXT)]
    _, *pieces = read(path, ReadOptions(errors="replace"))
    assert "".join(piece.text for piece in pieces) == "x" * 3000 + "\ufffd" + "y" * 3000


def test_bytes_that_are_no_text_follow_the_error_policy(write):
    text = pa.array([b"a", b"caf\xe9", b"\xed\xa0\x80"]).view(pa.string())
    path = write("a.parquet", parquet(pa.table({"text": text})))
    first, *wrong = read(path, STRICT)
    assert first == Document("a", 0)
    assert wrong == [BadRecord(f"{path}: row {row}", WRONG_TEXT) for row in (1, 2)]
    texts = [found.text for found in read(path, ReadOptions(errors="replace"))]
    assert texts == ["a", "caf\ufffd", "\ufffd\ufffd\ufffd"]


def test_a_column_of_numbers_is_no_text(write):
    path = write("a.parquet", parquet(a_table(["a"])))
    with pytest.raises(UserError, match="column 'id' is int64, not string; set text_key"):
        read(path, ReadOptions(text_key="id"))
    with pytest.raises(UserError, match=r"no column 'body' \(it has: id, text, x, label\); set text_key"):
        read(path, ReadOptions(text_key="body"))


@pytest.mark.parametrize(
    "damage", [lambda d: d[:-5], lambda d: d[: len(d) // 2], lambda d: b"", lambda d: b"x\0" * 999]
)
def test_a_parquet_file_without_a_footer_is_one_bad_record(write, damage):
    assert re.fullmatch("broken parquet .*", only_bad(write("a.parquet", damage(parquet(a_table(TEXTS))))).reason)


def test_a_damaged_row_group_does_not_lose_the_next(write):
    settings = {"row_group_size": 4, "compression": "none", "use_dictionary": False, "write_page_checksum": True}
    content = parquet(pa.table({"text": [f"unmistakable {i}" for i in range(12)]}), **settings)
    path = write("a.parquet", content.replace(b"unmistakable 5", b"unmistakable X", 1))
    found = read(path, STRICT)
    assert [f.position for f in found if isinstance(f, Document)] == [0, 1, 2, 3, 8, 9, 10, 11]
    (bad,) = (f for f in found if isinstance(f, BadRecord))
    assert bad.place == f"{path}: rows 4 to 7"


def test_a_row_group_that_expands_without_measure_is_not_read(write, monkeypatch):
    monkeypatch.setattr(documents, "MAX_DOCUMENT_BYTES", 1 << 18)
    content = parquet(pa.table({"text": ["0" * (20 << 20)]}), compression="zstd")
    assert "expands more than 100-fold" in only_bad(write("a.parquet", content)).reason


def test_parquet_without_pyarrow_names_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(parquet(a_table(["a"])))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"a.parquet: reading parquet needs pyarrow; pip install 'hvdlm\[text\]'"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize(("suffix", "remedy"), [(".orc", "parquet"), (".xlsx", "csv"), (".sqlite", "csv")])
def test_other_tables_are_told_with_a_remedy(write, suffix, remedy):
    with pytest.raises(UserError, match=rf"a{suffix}.*: is an? .*as {remedy}"):
        read(write("a" + suffix, b"x"))
