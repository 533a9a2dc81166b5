"""Delimited tables: a document a row of CSV or TSV.

CSV is read by RFC 4180. TSV as most corpora have it knows no quoting: a quote there is text. The `table` section
tells of other habits.
"""

from __future__ import annotations

import csv
import logging
from collections import deque
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

from .. import documents
from ..documents import NOT_UTF8, BadRecord, Document, Part, ReadOptions, TableConfig
from .tables import larger_than_limit, wanted_columns

log = logging.getLogger("hvdlm")

BOM = "\ufeff"


class Dialect(NamedTuple):
    """How cells are written."""

    delimiter: str
    quote: str | None
    escape: str | None = None

    def asked(self, table: TableConfig) -> Dialect:
        """This one, but for what the config says.

        >>> Dialect(",", '"').asked(TableConfig(delimiter=";"))
        Dialect(delimiter=';', quote='"', escape=None)
        """
        quote = self.quote if table.quote == "auto" else None if table.quote in ("none", None) else table.quote
        return Dialect(table.delimiter or self.delimiter, quote, table.escape)

    @property
    def settings(self) -> dict[str, Any]:
        """Of the csv module, as keywords."""
        quoting: dict[str, Any] = {"quotechar": self.quote} if self.quote else {"quoting": csv.QUOTE_NONE}
        return {"delimiter": self.delimiter, "escapechar": self.escape, "strict": True, **quoting}


CSV = Dialect(",", '"')
TSV = Dialect("\t", None)


class _Row(NamedTuple):
    """Cells of a row or what is wrong with it, and the lines it takes in the file, from 1."""

    cells: list[str]
    fault: str | None
    first_line: int
    last_line: int

    def place(self, part: Part, number: int) -> str:
        is_one = self.first_line == self.last_line
        lines = f"line {self.first_line}" if is_one else f"lines {self.first_line} to {self.last_line}"
        return f"{part.path}: row {number} ({lines})"


def read_rows(file: BinaryIO, part: Part, options: ReadOptions, *, dialect: Dialect) -> Iterator[Document | BadRecord]:
    """A document a row of values between delimiters; the first row names the columns unless `table.header` does."""
    dialect = dialect.asked(options.table)
    reader = _RowReader(file, options, dialect)
    header = options.table.header
    if header is None:
        first = reader.next_row()
        if first is None or first.fault:
            reason = first.fault if first and first.fault else "is empty; its first row must name the columns"
            yield BadRecord(f"{part.path}: header row", reason)
            return
        header = first.cells
    reader.num_columns = len(header)
    indices = [None if name is None else header.index(name) for name in wanted_columns(header, part, options)]
    number, is_remarked = 0, False
    while (row := reader.next_row()) is not None:
        if row.fault:
            yield BadRecord(row.place(part, number), row.fault)
        elif len(row.cells) != len(header):
            yield BadRecord(
                row.place(part, number), f"{len(row.cells)} cells under {len(header)} column names{reader.hint()}"
            )
        else:
            text, id_, label = (None if index is None else row.cells[index] for index in indices)
            if not is_remarked and (remark := reader.remark(text or "")):
                log.warning("%s: %s", row.place(part, number), remark)
                is_remarked = True
            yield Document(text or "", number, id_, label)
        number += 1


class _RowReader:
    """Rows of a table. What a stray quote took for one cell is given back where it looks like rows."""

    num_columns = 0  # unknown before the header

    def __init__(self, file: BinaryIO, options: ReadOptions, dialect: Dialect) -> None:
        csv.field_size_limit(max(csv.field_size_limit(), documents.MAX_DOCUMENT_BYTES))  # one for the whole process
        self._dialect = dialect
        self._lines = _Lines(file, options, dialect)
        self._reader = csv.reader(self._lines, **dialect.settings)

    def next_row(self) -> _Row | None:
        """The next row that is not blank; None at the end."""
        while True:
            self._lines.begin_row()
            first_line = self._lines.number + 1
            cells: list[str] = []
            try:
                cells = next(self._reader)
                fault = NOT_UTF8 if self._lines.has_wrong_byte else None
            except StopIteration:
                return None
            except csv.Error as error:
                # " - do you need to open the file with newline=''" is advice to programmers
                fault = f"wrong quoting or line end ({str(error).partition(' - ')[0]}){self._give_back()}"
            except _RowTooLarge:
                fault = larger_than_limit() + self._give_back()
                if not self._lines.has_more:
                    self._lines.skip_row()
            if cells or fault:
                return _Row(cells, fault, first_line, max(first_line, self._lines.number))

    def remark(self, text: str) -> str | None:
        """What is odd about the row that was read last, if a setting may be wrong."""
        quote = self._dialect.quote
        if quote is None:
            is_quoted = len(text) > 1 and text[0] == text[-1] == '"'
            return (
                "quotes around a cell are kept as text; if they are not, set table.quote: '\"'" if is_quoted else None
            )
        if self._lines.row_is_many(self.num_columns):
            return f"a {quote} joins lines that look like rows of their own; if quotes are text, set table.quote: none"
        return None

    def hint(self) -> str:
        """Which setting may be wrong where a row has too few or too many cells."""
        if self._dialect.quote is None:
            return "; if quotes join its cells or lines, set table.quote: '\"'" if self._lines.row_has(b'"') else ""
        is_joined = self._lines.row_has(self._dialect.quote.encode())
        return f"; if a {self._dialect.quote} is text here, set table.quote: none" if is_joined else ""

    def _give_back(self) -> str:
        """Makes all lines but the first of a wrong row be read again, if they look like rows; tells the remedy."""
        if self._dialect.quote is None or not self._lines.row_has_lines:
            return ""
        if self._lines.row_is_many(self.num_columns):
            self._lines.give_back()
        return f"; if a {self._dialect.quote} is text here, set table.quote: none"


class _RowTooLarge(Exception):
    """Raised through the csv module, which then begins a new row."""


class _Lines:
    """The lines that the csv module asks for, as text. It cannot make a row larger than a document may be."""

    def __init__(self, file: BinaryIO, options: ReadOptions, dialect: Dialect) -> None:
        self._file = file
        self._errors = options.errors
        self._delimiter = dialect.delimiter.encode()
        self._quote = (dialect.quote or "").encode()
        self._again: deque[bytes] = deque()  # lines that were given back
        self._row: list[bytes] = []
        self.number = 0  # of lines read
        self.begin_row()

    def begin_row(self) -> None:
        self.has_wrong_byte = False
        self._row = []
        self._num_bytes = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        limit = documents.MAX_DOCUMENT_BYTES
        line = self._again.popleft() if self._again else self._file.readline(limit + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self._row.append(line)
        self._num_bytes += len(line)
        if self._num_bytes > limit:
            raise _RowTooLarge
        text = self._decode(line)
        return text.removeprefix(BOM) if self.number == 1 else text

    @property
    def row_has_lines(self) -> bool:
        return len(self._row) > 1

    def row_has(self, text: bytes) -> bool:
        return any(text in line for line in self._row)

    @property
    def has_more(self) -> bool:
        """Whether lines were given back."""
        return bool(self._again)

    def row_is_many(self, num_columns: int) -> bool:
        """Whether most lines of this row have the delimiters of a row of their own."""
        if len(self._row) < 2 or num_columns < 2:
            return False
        num_alike = sum(line.count(self._delimiter) == num_columns - 1 for line in self._row)
        return 2 * num_alike > len(self._row)

    def give_back(self) -> None:
        self._again.extendleft(reversed(self._row[1:]))
        self.number -= len(self._row) - 1

    def skip_row(self) -> None:
        """To the line end that is outside quotes; not for ever, as the quote may be one that is never closed."""
        num_quotes = sum(line.count(self._quote) for line in self._row) if self._quote else 0
        num_bytes, line = self._num_bytes, self._row[-1]
        self.number -= not line.endswith(b"\n")  # its end is counted below
        while line and not (
            line.endswith(b"\n") and (num_quotes % 2 == 0 or num_bytes > 8 * documents.MAX_DOCUMENT_BYTES)
        ):
            line = self._file.readline(1 << 20)
            num_bytes += len(line)
            num_quotes += line.count(self._quote) if self._quote else 0
            self.number += line.endswith(b"\n")

    def _decode(self, line: bytes) -> str:
        try:
            return line.decode("utf-8", self._errors)
        except UnicodeDecodeError:
            self.has_wrong_byte = True  # and read on, to stay in step with the rows
            return line.decode("utf-8", "replace")
