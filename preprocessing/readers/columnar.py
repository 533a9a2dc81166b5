"""Tables by column: a document a row of Parquet or Arrow (IPC file and stream, Feather 2).

A key may lead into structs: `meta.text`. Text may have any type of characters or bytes; ids and labels any at all.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from hvdlm.data.compression import BrokenStream, is_compressed, read_before_break
from hvdlm.errors import UserError
from hvdlm.tokenizer.interface import require

from .. import documents
from ..documents import BadRecord, Document, LongDocument, Part, ReadOptions, record_limit
from .cell_names import NO_VALUE, name_of
from .joined import ARROW_MAGIC, ARROW_START_BYTES, REMEDY, is_joined_arrow, is_joined_parquet
from .tables import listed, wanted_columns

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

# By pyarrow's names; `null` is what writers take for a column that holds nothing else.
TEXT_TYPES = re.compile(r"(large_)?(string|binary)|(string|binary)_view|fixed_size_binary\[\d+\]|null")
CHUNK_BYTES = 1 << 20  # of a long cell
FEATHER_1_MAGIC = b"FEA1"
WRONG_TEXT = "is not UTF-8, as all text is in such a table; set errors: replace, or write the table again"

FieldPath = list[str]  # names of a column and of the fields inside it


def read_parquet(file: BinaryIO, part: Part, options: ReadOptions) -> Iterator[Document | LongDocument | BadRecord]:
    """A document a row of a Parquet file; where a row group is damaged, the next is read."""
    pyarrow = require("pyarrow", f"{part.path}: reading parquet")
    from pyarrow.parquet import ParquetFile

    faults = (pyarrow.ArrowException, OSError, UnicodeDecodeError)
    source, broken = _seekable(file, part)
    if isinstance(source, BadRecord):
        yield source
        return
    if broken and not broken.is_all_given:  # what tells where everything is stands at the end
        raise broken
    try:
        table = ParquetFile(source, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True)
        columns = _wanted(table.schema_arrow, part, options)
        is_joined = is_joined_parquet(source)
    except faults as error:
        yield BadRecord(part.path, f"broken parquet ({_first_line(error)}); fetch it again")
        return
    if is_joined:
        yield BadRecord(part.path, REMEDY)
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
    if broken:
        raise broken


def _seekable(file: BinaryIO, part: Part) -> tuple[BinaryIO | BadRecord, BrokenStream | None]:
    """The file, or what a decompressor gives of it up to a break: a table by columns is not read in one go."""
    if file.seekable() and not is_compressed(part.path):
        return file, None
    limit = record_limit()
    content, broken = read_before_break(file, limit + 1)
    if len(content) > limit:
        reason = f"a table of over {limit >> 20} MiB inside a compression; decompress it first"
        return BadRecord(part.path, reason), None
    return io.BytesIO(content), broken


def _wanted(schema: Any, part: Part, options: ReadOptions) -> list[FieldPath | None]:
    """Where what the options ask for is: text, id and label, or with fields id, label and these."""
    keys = tuple(options.keys.values())
    paths = [None if key is None else _field_path(schema, key) for key in keys]
    if any(key is not None and path is None for key, path in zip(keys, paths, strict=True)):
        wanted_columns(schema.names, part, options, [key for key, path in zip(keys, paths, strict=True) if path])
    kind = schema
    for name in paths[0] or []:
        kind = kind.field(name).type
    if not options.fields and not _is_text(kind):
        raise UserError(f"{part.path}: column {options.text_key!r} is {listed([str(kind)])}, not string; set text_key")
    return paths


def _field_path(fields: Any, key: str) -> FieldPath | None:
    """Where a key leads to in a schema or a struct; a name that has dots of its own wins."""
    if fields.get_field_index(key) >= 0:
        return [key]
    for dot in reversed([found.start() for found in re.finditer(r"\.", key)]):
        index = fields.get_field_index(key[:dot])
        kind = fields.field(index).type if index >= 0 else None
        rest = _field_path(kind, key[dot + 1 :]) if hasattr(kind, "get_field_index") else None
        if rest:
            return [key[:dot], *rest]
    return None


def _is_text(kind: Any) -> bool:
    while str(kind).startswith(("dictionary", "run_end_encoded")):
        kind = kind.value_type
    if str(kind).startswith(("sparse_union", "dense_union")):
        return all(_is_text(kind.field(number).type) for number in range(kind.num_fields))
    storage = getattr(kind, "storage_type", None)  # of an extension, such as JSON; not of UUIDs, which are bytes
    return bool(TEXT_TYPES.fullmatch(str(storage or kind))) and "binary" not in str(storage)


def _cells(batch: Any, path: FieldPath | None) -> Any:
    """A column of a batch, or the values of a field inside one."""
    import pyarrow.compute  # type: ignore[import-untyped]

    if path is None:
        return None
    column = batch.column(path[0])
    return pyarrow.compute.struct_field(column, path[1:]) if path[1:] else column


def _expands(table: ParquetFile, group: int, file_bytes: int) -> bool:
    """Whether a row group is large out of all proportion to the file.

    Not told by its columns: to ask pyarrow 26 for a damaged one's size is a C++ exception, which ends the process.
    """
    num_bytes = table.metadata.row_group(group).total_byte_size
    return num_bytes > 64 * documents.MAX_DOCUMENT_BYTES and num_bytes > 100 * file_bytes


def _row_group(
    table: ParquetFile, group: int, columns: list[FieldPath | None], position: int, part: Part, options: ReadOptions
) -> Iterator[Document | LongDocument | BadRecord]:
    """Rows of one group, so few at a time that even equal cells, stored once, do not fill memory."""
    names = sorted({".".join(path) for path in columns if path})
    num_bytes = max(1, table.metadata.row_group(group).total_byte_size)
    batch_size = max(1, min(64, record_limit() // num_bytes))
    for batch in table.iter_batches(batch_size=batch_size, row_groups=[group], columns=names):
        yield from _rows(batch, columns, position, part, options)
        position += batch.num_rows


def _rows(
    batch: Any, columns: list[FieldPath | None], position: int, part: Part, options: ReadOptions
) -> Iterator[Document | LongDocument | BadRecord]:
    cells = [_cells(batch, path) for path in columns]
    for row in range(batch.num_rows):
        yield _document([None if column is None else column[row] for column in cells], position + row, part, options)


def _document(cells: list[Any], position: int, part: Part, options: ReadOptions) -> Document | LongDocument | BadRecord:
    place = f"{part.path}: row {position}"
    if options.fields:
        return _labelled(cells, position, place)
    text, id_, label = cells
    while text.is_valid and not hasattr(text, "as_buffer"):
        text = text.value  # of a dictionary, an extension, a run or a union
    if not text.is_valid:
        return BadRecord(place, f"{options.text_key!r} is null")
    data = memoryview(text.as_buffer())
    try:
        if len(data) > documents.MAX_DOCUMENT_BYTES:
            for _ in codecs.iterdecode(_chunks(data), "utf-8", options.errors):
                pass  # a wrong byte costs the row, as in a short one
            return LongDocument(_chunks(data), position, name_of(id_), name_of(label))
        return Document(str(data, "utf-8", options.errors), position, name_of(id_), name_of(label))
    except UnicodeDecodeError:
        return BadRecord(place, WRONG_TEXT)
    except NO_VALUE as error:
        return BadRecord(place, f"its id or label cannot be shown ({_first_line(error)})")


def _labelled(cells: list[Any], position: int, place: str) -> Document | BadRecord:
    """A row of labelled records."""
    id_, label, *fields = cells
    try:
        raw = tuple(cell.as_py() for cell in fields)
        return Document("", position, name_of(id_), name_of(label), raw=raw)
    except UnicodeDecodeError:
        return BadRecord(place, WRONG_TEXT)
    except NO_VALUE as error:
        return BadRecord(place, f"one of its values cannot be shown ({_first_line(error)})")


def _chunks(data: memoryview) -> Iterator[bytes]:
    return (bytes(data[start : start + CHUNK_BYTES]) for start in range(0, len(data), CHUNK_BYTES))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def read_arrow(file: BinaryIO, part: Part, options: ReadOptions) -> Iterator[Document | LongDocument | BadRecord]:
    """A document a row of Arrow's IPC file or stream; behind a damaged batch a file is read on, a stream is not.

    A file whose footer is missing or damaged is read as the stream that it begins with.
    """
    pyarrow = require("pyarrow", f"{part.path}: reading arrow")
    magic = file.peek(len(ARROW_MAGIC)) if hasattr(file, "peek") else b""
    if magic.startswith(FEATHER_1_MAGIC):
        yield BadRecord(part.path, "is Feather version 1; write it again as version 2")
        return
    content, broken = _seekable(file, part) if is_compressed(part.path) else (None, None)
    if isinstance(content, BadRecord):
        yield content
        return
    try:
        source = pyarrow.memory_map(part.path) if content is None else pyarrow.BufferReader(content.read())
        batches = _Batches(pyarrow, source, magic.startswith(ARROW_MAGIC), part, options)
        is_joined = batches.are_known and is_joined_arrow(source)
    except _faults(pyarrow) as error:
        if broken:
            raise broken from None
        yield BadRecord(part.path, f"broken arrow ({_first_line(error)}); fetch it again")
        return
    if is_joined:
        yield BadRecord(part.path, REMEDY)
        return
    yield from _batch_by_batch(pyarrow, batches, broken, part, options)
    if broken:
        raise broken
    if batches.fault:
        yield BadRecord(part.path, f"broken arrow ({batches.fault}; batches are read up to there); fetch it again")


def _faults(pyarrow: Any) -> tuple[type[Exception], ...]:
    return pyarrow.ArrowException, OSError, UnicodeDecodeError


def _batch_by_batch(
    pyarrow: Any, batches: _Batches, broken: BrokenStream | None, part: Part, options: ReadOptions
) -> Iterator[Document | LongDocument | BadRecord]:
    """The rows of all batches; of a content that is cut, up to there."""
    number = position = 0
    while True:
        try:
            batch = batches.read(number)
            if batch is None:
                return
            yield from _rows(batch, batches.columns, position, part, options)
            position += batch.num_rows
        except _faults(pyarrow) as error:
            if not batches.are_known and (broken or batches.fault):  # which is told once
                return
            yield BadRecord(f"{part.path}: record batch {number}", f"cannot read it ({_first_line(error)})")
            if not batches.are_known:
                return
        number += 1


class _Batches:
    """The record batches of an IPC file or of streams one behind the other, of which wanted columns alone are read."""

    def __init__(self, pyarrow: Any, source: Any, is_file: bool, part: Part, options: ReadOptions) -> None:
        self._pyarrow, self._source, self._part, self._options = pyarrow, source, part, options
        self.are_known = is_file
        self.fault: str | None = None  # of a file that has no footer
        try:
            self._open(0)
        except _faults(pyarrow) as error:
            if not is_file:
                raise
            self.are_known, self.fault = False, _first_line(error)
            self._open(ARROW_START_BYTES)

    def _open(self, start: int) -> None:
        """The file, or the stream that begins at this byte; its columns are of its own schema."""
        ipc = self._pyarrow.ipc
        open_: Callable[..., Any] = ipc.open_file if self.are_known else ipc.open_stream
        self._source.seek(start)
        schema = open_(self._source).schema
        self.columns = _wanted(schema, self._part, self._options)
        self._source.seek(start)
        wanted = sorted({schema.get_field_index(path[0]) for path in self.columns if path})
        self._reader = open_(self._source, options=ipc.IpcReadOptions(included_fields=wanted))

    def read(self, number: int) -> Any:
        """A batch that is safe to look into; None at the end."""
        if self.are_known:
            batch = self._reader.get_batch(number) if number < self._reader.num_record_batches else None
        else:
            batch = next(self._reader, None)
            while batch is None and not self.fault and self._open_next():
                batch = next(self._reader, None)
        for column in batch.columns if batch is not None else []:
            _check_offsets(column)
        return batch

    def _open_next(self) -> bool:
        """Whether another stream begins behind the one that ended; zeros there are padding."""
        start = self._source.tell()
        while (block := self._source.read(CHUNK_BYTES)) and not any(block):
            pass
        if not block:
            return False
        try:
            self._open(start)
        except (self._pyarrow.ArrowException, OSError) as error:
            raise OSError(f"behind the end of the stream, byte {start}, none begins: {_first_line(error)}") from None
        return True


def _check_offsets(column: Any) -> None:
    """Raises where a damaged column points outside its data; bytes that are no text are found by each cell."""
    kind = str(column.type)
    if kind in ("string", "large_string", "string_view"):
        column = column.view(kind.replace("string", "binary"))
    column.validate(full=True)
