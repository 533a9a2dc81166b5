"""Delimited tables: a document a row of CSV or TSV.

CSV is read by RFC 4180. TSV as most corpora have it knows no quoting: a quote there is text. The `table` section
tells of other habits.
"""

from __future__ import annotations

import contextlib
import csv
import logging
import re
import tempfile
from collections.abc import Iterator
from typing import IO, BinaryIO

from hvdlm.data.compression import BrokenStream

from .. import documents
from ..documents import NOT_UTF8, BadRecord, Document, LongDocument, Part, ReadOptions, record_limit
from .long_rows import NEW_LINE, WRONG_QUOTING, LongRow
from .table_lines import Dialect, Lines, RowTooLong, is_utf8
from .tables import larger_than_limit, wanted_columns

log = logging.getLogger("hvdlm")

EXCEL_LINE = re.compile(r'"?sep=(.)"?\s*')  # a first line that only tells the delimiter
LINE_END = re.compile(r"\r\n?|\n")
LONE_RETURN = re.compile(rb"\r(?!\n)")
LOOKED_AT = 1 << 20  # bytes of a row that show whether it is many
HELD_DOCUMENTS = 256  # as many times the largest document, 1 GiB, a quote is followed to its end
DELIMITERS = ",;|\t"  # that are met

BOM = "\ufeff"
SIGNS = frozenset("\"' " + BOM)  # first characters of a text that may tell of another habit

QUOTES_KEPT = "quotes around a cell are kept as text; if they are not, set table.quote: "
AS_YAML = {'"': "'\"'", "'": '"\'"'}
BLANK_BEFORE_QUOTE = "a quote behind a blank is text; if it is not, write no blanks between delimiter and quote"
ESCAPED_QUOTES = "a backslash stands before a quote; if it makes the quote text, set table.escape: '\\'"
MARK_KEPT = "begins with a byte order mark, as where files were put one behind the other; it is kept in the first cell"
HEADER_AGAIN = "is the header again, as where files were put one behind the other; it is read as a document"
RETURNS_END_ROWS = "a carriage return alone ends rows here"


CSV = Dialect(",", '"')
TSV = Dialect("\t", None)


def read_rows(
    file: BinaryIO, part: Part, options: ReadOptions, *, dialect: Dialect
) -> Iterator[Document | LongDocument | BadRecord]:
    """A document a row of values between delimiters; the first row names the columns unless `table.header` does."""
    table = _Table(file, part, options, dialect.asked(options.table))
    rows = table.rows()
    header = options.table.header or next(rows, "is empty; its first row must name the columns")
    if isinstance(header, LongRow):
        header.close()
        header = "too long for the names of columns"
    if isinstance(header, str):
        yield BadRecord(f"{part.path}: header row", header)
        return
    wanted = [None if name is None else header.index(name) for name in wanted_columns(header, part, options)]
    if options.fields:
        yield from _labelled(table, header, wanted)
        return
    text_at, id_at, label_at = wanted
    assert text_at is not None, "wanted_columns has found it"
    table.expect(header, wanted)
    for row in rows:
        if isinstance(row, str):
            yield BadRecord(table.place, row)
            continue
        cells = row if isinstance(row, list) else row.cells
        if cells[0][:1] == BOM:
            table.unmark(cells)
        id_ = None if id_at is None else cells[id_at]
        label = None if label_at is None else cells[label_at]
        if isinstance(row, LongRow):
            yield LongDocument(row.text(), table.number, id_, label)
            continue
        text = cells[text_at]
        if text[:1] in SIGNS or text[-1:] == "\\" or text == header[text_at]:
            table.remark_on(cells, text)
        yield Document(text, table.number, id_, label)


def _labelled(table: _Table, header: list[str], wanted: list[int | None]) -> Iterator[Document | BadRecord]:
    """Rows of labelled records; `wanted` are the columns of id, label and fields."""
    id_at, label_at, *fields_at = wanted
    table.expect(header, [fields_at[0], id_at, label_at])
    for row in table.rows():
        if isinstance(row, LongRow):
            row.close()
            row = f"{larger_than_limit(documents.MAX_DOCUMENT_BYTES)}; a labelled record is read as a whole"
        if isinstance(row, str):
            yield BadRecord(table.place, row)
            continue
        if row[0][:1] == BOM:
            table.unmark(row)
        id_, label = (None if at is None else row[at] for at in (id_at, label_at))
        raw = tuple(row[at] for at in fields_at if at is not None)
        first = raw[0]
        if first[:1] in SIGNS or first[-1:] == "\\" or row == header:
            table.remark_on(row, first)
        yield Document("", table.number, id_, label, raw=raw, place=table.place)


class _Table:
    """Rows of a file. What a stray quote took for one cell is given back where it looks like rows."""

    def __init__(self, file: BinaryIO, part: Part, options: ReadOptions, dialect: Dialect) -> None:
        # One limit for the whole process; a row that ends in its last block may be larger than a document.
        csv.field_size_limit(max(csv.field_size_limit(), 2 * documents.MAX_DOCUMENT_BYTES))
        self._part, self._dialect = part, dialect
        self._lines = Lines(file, options.errors)
        self._header: list[str] = []  # there is none before it was read
        self._wanted: list[int | None] = [0, None, None]
        self._remarks: set[str] = set()
        self.number = -1  # of the last row
        if first := EXCEL_LINE.fullmatch(self._lines.first_line().decode("utf-8", "replace")):
            self._lines.skip_line()
            if options.table.delimiter is None:
                self._dialect = dialect._replace(delimiter=first[1])
        self._read_on(1 if first else 0, 0)

    def _read_on(self, num_lines: int, of_row: int) -> None:
        """By a new reader, behind so many lines of the file, the last ones of which are of the last row."""
        self._num_lines, self._before_row = num_lines, -of_row
        self._reader = csv.reader(self._lines, **self._dialect.settings)

    def expect(self, header: list[str], wanted: list[int | None]) -> None:
        """The names of all columns, and where text, id and label are; the next row is number 0."""
        self._header, self._wanted, self.number = header, wanted, -1

    @property
    def _first_line(self) -> int:
        """Of the last row, from 1."""
        return self._num_lines + self._before_row + 1

    @property
    def place(self) -> str:
        """Of the last row: its number, from 0, and its lines in the file, from 1."""
        first = self._first_line
        last = max(first, self._num_lines + self._reader.line_num)
        lines = f"line {last}" if last == first else f"lines {first} to {last}"
        return f"{self._part.path}: row {self.number} ({lines})"

    def rows(self) -> Iterator[list[str] | LongRow | str]:
        """Cells of every row that is not blank, or what is wrong with it."""
        lines, begin_row = self._lines, self._lines.begin_row
        while True:
            begin_row()
            reader = self._reader
            self._before_row = before = reader.line_num
            self.number += 1
            found: list[str] | LongRow | str | None
            try:
                found = cells = next(reader)
                is_plain = reader.line_num == before + 1 and len(cells) == len(self._header)
                if lines.has_wrong_bytes or not is_plain:
                    found = self._checked(cells)
            except StopIteration:
                lines.end()
                return
            except csv.Error as error:
                # " - do you need to open the file with newline=''" is advice to programmers
                row = lines.row
                found = self._refuse(f"{WRONG_QUOTING} ({str(error).partition(' - ')[0]}){self._quote_hint(row)}", row)
            except RowTooLong:
                found = self._long_row()
            if found:
                yield found
            else:
                self.number -= 1

    def remark_on(self, cells: list[str], text: str) -> None:
        """Tell of a row that is right by the settings, where they may be wrong."""
        quote = self._dialect.quote
        if len(text) > 1 and text[0] == text[-1] in AS_YAML and text[0] != quote:
            self._remark(QUOTES_KEPT + AS_YAML[text[0]])
        elif quote and text[:1] == " " and text.lstrip()[:1] == text[-1] == quote:
            self._remark(BLANK_BEFORE_QUOTE)
        elif text[-1:] == "\\" and self._has_escaped_quote(self._lines.row):
            self._remark(ESCAPED_QUOTES)
        elif cells == self._header:
            self._remark(HEADER_AGAIN)

    def unmark(self, cells: list[str]) -> None:
        """Take the byte order mark off a header that comes again; any other row keeps it, with a remark."""
        bare = cells[0].removeprefix(BOM)
        quote = self._dialect.quote or ""  # not known as one behind a mark
        if cells[1:] == self._header[1:] and self._header[0] in (bare, bare.removeprefix(quote).removesuffix(quote)):
            cells[0] = self._header[0]
        else:
            self._remark(MARK_KEPT)

    def _has_escaped_quote(self, row: bytes) -> bool:
        quote, escape = self._dialect.quote, self._dialect.escape
        return quote is not None and escape is None and f"\\{quote}".encode() in row

    def _remark(self, words: str) -> None:
        """Once a file."""
        if words not in self._remarks:
            self._remarks.add(words)
            log.warning("%s: %s", self.place, words)

    def _remark_joined(self, row: bytes, *, is_large: bool = False) -> None:
        """In a single column every line looks like a row; there only a large cell is told."""
        quote = self._dialect.quote
        if self._has_escaped_quote(row):
            self._remark(ESCAPED_QUOTES)
        elif len(self._header) > 1 or is_large:
            self._remark(
                f"a {quote} joins lines that look like rows of their own; if quotes are text, set table.quote: none"
            )

    def _checked(self, cells: list[str]) -> list[str] | str | None:
        """A row that is not as plain as most; no cells if it is blank."""
        row = self._lines.row
        if self._lines.errors != "replace" and not is_utf8(row):
            return NOT_UTF8
        if cells and (fault := self._wrong_number(cells, row)):
            return self._refuse(fault + self._quote_hint(row), row)
        if self._looks_like_rows(row):
            self._remark_joined(row)
        return cells

    def _refuse(self, fault: str, row: bytes) -> str | None:
        """What is wrong with a row, most lines of which may be read again; nothing if all of it is."""
        if NEW_LINE in fault:
            fault += "; a cell that holds a carriage return needs quotes around it"
        if not self._looks_like_rows(row):
            return fault
        behind_first = row.find(b"\n") + 1
        is_one_line = not 0 < behind_first < len(row)
        if len(self._header) != 1 and (NEW_LINE in fault or is_one_line):
            self._remark(RETURNS_END_ROWS)
            self._lines.put_back_end(LONE_RETURN.sub(b"\n", row))
            self._read_on(self._first_line - 1, 0)
            return None
        if not is_one_line:
            self._lines.put_back_end(row[behind_first:])
            self._read_on(self._first_line, 1)
        return fault

    def _long_row(self) -> LongRow | str | None:
        """The row under way, too long for the csv module; or what is wrong with it, as `_refuse` does."""
        begun = self._lines.row
        self._lines.put_back(begun)
        can_part = self._looks_like_rows(begun) and (len(self._header) != 1 or b"\n" in begun)
        row = LongRow(self._dialect, self._lines.errors, self._wanted)
        with contextlib.ExitStack() as stack:
            stack.callback(row.close)
            held = tempfile.SpooledTemporaryFile(record_limit()) if can_part else None  # noqa: SIM115 - read again
            rest, num_lines = self._follow(row, begun, held)
            fault = row.fault or self._wrong_number(row.cells, begun)
            if held and fault:
                return self._refuse_held(fault + self._quote_hint(begun), held, begun)
            if not fault:
                stack.pop_all()  # the text is wanted
        self._lines.put_back(rest)
        self._read_on(self._first_line - 1 + num_lines, num_lines)
        if fault:
            return fault + self._quote_hint(begun)
        if held:
            self._remark_joined(begun, is_large=held.tell() > record_limit())
            held.close()
        return row

    def _follow(self, row: LongRow, begun: bytes, held: IO[bytes] | None) -> tuple[bytes, int]:
        """Read a row to its end, or to what is wrong with it: the bytes behind it, and its line ends.

        What is read goes to `held` too, as long as that is not too much.
        """
        limit = HELD_DOCUMENTS * documents.MAX_DOCUMENT_BYTES if b"\n" in begun else record_limit()
        rest, num_lines = b"", 0
        while not row.has_ended and not (row.fault and held and held.tell() >= len(begun)):
            try:
                data = self._lines.take()
            except BrokenStream:  # which is raised again behind what was read before
                if held is None:
                    raise
                row.fault = f"{WRONG_QUOTING} (unexpected end of data)"
                break
            rest = row.feed(data)
            num_lines += data.count(b"\n") - rest.count(b"\n")
            if held:
                held.write(data)
                if held.tell() > limit and not (row.has_ended or row.fault):
                    row.fault = f"{larger_than_limit(limit)}, and what is in quotes looks like rows"
        return rest, num_lines

    def _refuse_held(self, fault: str, held: IO[bytes], begun: bytes) -> str | None:
        """As `_refuse` does; what is much is read again from the file that holds it."""
        first_bytes = begun.find(b"\n") + 1
        if held.tell() > record_limit() and first_bytes:
            held.seek(first_bytes)
            self._lines.put_back_file(held)
            self._read_on(self._first_line, 1)
            return fault
        held.seek(0)
        with held:
            return self._refuse(fault, held.read())

    def _looks_like_rows(self, row: bytes) -> bool:
        """Whether most lines of a row have as many cells as a row of their own; a single column always has."""
        lines = LINE_END.split(row[:LOOKED_AT].rstrip(b"\r\n").decode("utf-8", "replace"))
        num_columns = max(1, len(self._header))
        if len(lines) == 1 or num_columns == 1:
            return len(lines) > 1
        num_parted = sum(line.count(self._dialect.delimiter) == num_columns - 1 for line in lines)
        rows = csv.reader(lines[1:], **{**self._dialect.settings, "strict": False})
        num_parsed = sum(len(cells) == num_columns for cells in rows)  # more, where cells hold delimiters in quotes
        return 2 * max(num_parted, num_parsed) > len(lines)

    def _wrong_number(self, cells: list[str], row: bytes) -> str:
        """What is wrong with a row of too few or too many cells, and which setting may be; else nothing."""
        if len(cells) == len(self._header) or not self._header:
            return ""
        fault = f"{len(cells)} cells under {len(self._header)} column names"
        for other in DELIMITERS if len(cells) == 1 else "":
            if other != self._dialect.delimiter and row.count(other.encode()) == len(self._header) - 1:
                return f"{fault}; if a {other!r} parts them, set table.delimiter"
        if self._dialect.quote is None and b'"' in row:
            return f"{fault}; if quotes join its cells or lines, set table.quote: '\"'"
        return fault

    def _quote_hint(self, row: bytes) -> str:
        quote = self._dialect.quote
        if self._has_escaped_quote(row):
            return f"; {ESCAPED_QUOTES}"
        return f"; if a {quote} is text here, set table.quote: none" if quote and quote.encode() in row else ""
