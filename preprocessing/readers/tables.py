"""Tables: a document a row of CSV, TSV or Parquet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from hvdlm.errors import UserError
from hvdlm.tokenizer.interface import require

from .. import documents
from ..compression import is_compressed
from ..documents import NOT_UTF8, BadRecord, Document, Part, ReadOptions

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

BOM = "\ufeff"


def larger_than_limit() -> str:
    """Why a row, cell, page or record is refused."""
    return f"larger than {documents.MAX_DOCUMENT_BYTES / 2**20:g} MiB"


def read_rows(file: BinaryIO, part: Part, options: ReadOptions, *, delimiter: str) -> Iterator[Document | BadRecord]:
    """A document a row of values between delimiters, quoted by RFC 4180; the first row names the columns."""
    rows = _rows(_Lines(file, options), delimiter)
    header = next(rows, "is empty; its first row must name the columns")
    if isinstance(header, str):
        yield BadRecord(f"{part.path}: header row", header)
        return
    indices = [None if name is None else header.index(name) for name in _wanted(header, part, options)]
    for number, cells in enumerate(rows):
        if isinstance(cells, str):
            yield BadRecord(f"{part.path}: row {number}", cells)
        elif len(cells) != len(header):
            yield BadRecord(f"{part.path}: row {number}", f"{len(cells)} cells under {len(header)} column names")
        else:
            text, id_, label = (None if index is None else cells[index] for index in indices)
            yield Document(text or "", number, id_, label)


def _rows(lines: _Lines, delimiter: str) -> Iterator[list[str] | str]:
    """Cells of every row that is not blank, or what is wrong with it."""
    csv.field_size_limit(max(csv.field_size_limit(), documents.MAX_DOCUMENT_BYTES))  # one for the whole process
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        lines.begin_row()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # " - do you need to open the file with newline=''" is advice to programmers
            yield f"wrong quoting or line end ({str(error).partition(' - ')[0]})"
        except _RowTooLarge:
            yield larger_than_limit()
        else:
            if lines.has_wrong_byte:
                yield NOT_UTF8
            elif cells:
                yield cells


class _RowTooLarge(Exception):
    """Raised through the csv module, which then begins a new row."""


class _Lines:
    """The lines that the csv module asks for, as text. It cannot make a row larger than a document may be."""

    def __init__(self, file: BinaryIO, options: ReadOptions) -> None:
        self._file = file
        self._errors = options.errors
        self._is_first = True
        self.begin_row()

    def begin_row(self) -> None:
        self.has_wrong_byte = False
        self._num_bytes = self._num_quotes = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        limit = documents.MAX_DOCUMENT_BYTES
        line = self._file.readline(limit + 1)
        if not line:
            raise StopIteration
        self._count(line)
        if self._num_bytes > limit:
            self._skip_row(line)
            raise _RowTooLarge
        text = self._decode(line)
        if self._is_first:
            self._is_first, text = False, text.removeprefix(BOM)
        return text

    def _count(self, line: bytes) -> None:
        self._num_bytes += len(line)
        self._num_quotes += line.count(b'"')

    def _skip_row(self, line: bytes) -> None:
        """To the line end that is outside quotes; not for ever, as the quote may be one that is never closed."""
        while line and not (
            line.endswith(b"\n") and (self._num_quotes % 2 == 0 or self._num_bytes > 8 * documents.MAX_DOCUMENT_BYTES)
        ):
            line = self._file.readline(1 << 20)
            self._count(line)

    def _decode(self, line: bytes) -> str:
        try:
            return line.decode("utf-8", self._errors)
        except UnicodeDecodeError:
            self.has_wrong_byte = True  # and read on, to stay in step with the rows
            return line.decode("utf-8", "replace")


def _wanted(names: Sequence[str], part: Part, options: ReadOptions) -> list[str | None]:
    """The columns of text, id and label, each of them in the table exactly once."""
    keys = {"text_key": options.text_key, "id_key": options.id_key, "label_key": options.label_key}
    for key, name in keys.items():
        if name is None:
            continue
        if name not in names:
            raise UserError(f"{part.path}: no column {name!r} (it has: {_listed(names)}); set {key}")
        if names.count(name) > 1:
            raise UserError(f"{part.path}: column {name!r} is there {names.count(name)} times; rename the others")
    return list(keys.values())


def _listed(names: Iterable[str]) -> str:
    """The first names of a table, on one line even where binary content was taken for a header."""
    shown = [name[:40] if name.isprintable() else repr(name[:40]) for name in names]
    return ", ".join(shown[:20]) + (", ..." if len(shown) > 20 else "")


def read_parquet(file: BinaryIO, part: Part, options: ReadOptions) -> Iterator[Document | BadRecord]:
    """A document a row of a Parquet file; where a row group is damaged, the next is read."""
    pyarrow = require("pyarrow", f"{part.path}: reading parquet")
    from pyarrow.parquet import ParquetFile

    faults = (pyarrow.ArrowException, OSError, UnicodeDecodeError)
    source = _seekable(file, part)
    if isinstance(source, BadRecord):
        yield source
        return
    try:
        table = ParquetFile(source, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True)
        columns = _wanted(table.schema_arrow.names, part, options)
        _check_is_text(table.schema_arrow.field(options.text_key).type, part, options)
    except faults as error:
        yield BadRecord(part.path, f"broken parquet ({_first_line(error)}); fetch it again")
        return
    file_bytes = source.seek(0, io.SEEK_END)
    position = 0
    for group in range(table.num_row_groups):
        num_rows = table.metadata.row_group(group).num_rows
        try:
            if _expands(table, group, file_bytes):
                raise OSError("it expands more than 100-fold; write it in smaller row groups")
            yield from _row_group(table, group, columns, position, part, options)
        except faults as error:
            place = f"{part.path}: rows {position} to {position + num_rows - 1}"
            yield BadRecord(place, f"cannot read their row group ({_first_line(error)})")
        position += num_rows


def _seekable(file: BinaryIO, part: Part) -> BinaryIO | BadRecord:
    """The file, or what a decompressor gives of it: Parquet is read from its end."""
    if file.seekable() and not is_compressed(part.path):
        return file
    limit = 8 * documents.MAX_DOCUMENT_BYTES
    content = io.BytesIO()
    while block := file.read(1 << 20):
        if content.tell() + len(block) > limit:
            return BadRecord(part.path, f"parquet of over {limit >> 20} MiB inside a compression; decompress it first")
        content.write(block)
    return content


def _check_is_text(kind: Any, part: Part, options: ReadOptions) -> None:
    from pyarrow import types  # type: ignore[import-untyped]

    value_kind = kind.value_type if types.is_dictionary(kind) else kind
    if not (types.is_string(value_kind) or types.is_large_string(value_kind)):
        raise UserError(f"{part.path}: column {options.text_key!r} is {_listed([str(kind)])}, not string; set text_key")


def _expands(table: ParquetFile, group: int, file_bytes: int) -> bool:
    """Whether a row group is large out of all proportion to the file.

    Not told by its columns: to ask pyarrow 26 for a damaged one's size is a C++ exception, which ends the process.
    """
    num_bytes = table.metadata.row_group(group).total_byte_size
    return num_bytes > 8 * documents.MAX_DOCUMENT_BYTES and num_bytes > 100 * file_bytes


def _row_group(
    table: ParquetFile, group: int, columns: list[str | None], position: int, part: Part, options: ReadOptions
) -> Iterator[Document | BadRecord]:
    """Rows of one group, so few at a time that even equal cells, stored once, do not fill memory."""
    names = sorted({name for name in columns if name is not None})
    num_bytes = max(1, table.metadata.row_group(group).total_byte_size)
    batch_size = max(1, min(64, 8 * documents.MAX_DOCUMENT_BYTES // num_bytes))
    for batch in table.iter_batches(batch_size=batch_size, row_groups=[group], columns=names):
        cells = [None if name is None else batch.column(name) for name in columns]
        for row in range(batch.num_rows):
            yield _document([None if column is None else column[row] for column in cells], position, part, options)
            position += 1


def _document(cells: list[Any], position: int, part: Part, options: ReadOptions) -> Document | BadRecord:
    text, id_, label = cells
    place = f"{part.path}: row {position}"
    if hasattr(text, "index"):  # of a dictionary
        text = text.value if text.is_valid else text
    if not text.is_valid:
        return BadRecord(place, f"{options.text_key!r} is null")
    data = text.as_buffer()
    if data.size > documents.MAX_DOCUMENT_BYTES:
        return BadRecord(place, larger_than_limit())
    try:
        return Document(str(memoryview(data), "utf-8", options.errors), position, _name(id_), _name(label))
    except UnicodeDecodeError:
        return BadRecord(place, NOT_UTF8)
    except (ValueError, OverflowError, ImportError) as error:  # a date that Python has none for
        return BadRecord(place, f"id or label has no value in Python ({_first_line(error)})")


def _name(cell: Any) -> str | None:
    """An id or a label of any type."""
    value = None if cell is None else cell.as_py()
    return None if value is None else str(value)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
