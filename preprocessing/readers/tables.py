"""Tables: what all kinds share, and Parquet, a document a row."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from hvdlm.errors import UserError
from hvdlm.tokenizer.interface import require

from .. import documents
from ..documents import NOT_UTF8, BadRecord, Document, Part, ReadOptions, is_compressed

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]


def larger_than_limit() -> str:
    """Why a row, cell, page or record is refused."""
    return f"larger than {documents.MAX_DOCUMENT_BYTES / 2**20:g} MiB"


def wanted_columns(names: Sequence[str], part: Part, options: ReadOptions) -> list[str | None]:
    """The columns of text, id and label, each of them in the table exactly once."""
    keys = {"text_key": options.text_key, "id_key": options.id_key, "label_key": options.label_key}
    for key, name in keys.items():
        if name is None:
            continue
        if name not in names:
            hint = " or table.delimiter" if len(names) == 1 and re.search(r"[,;|\t]", names[0]) else ""
            raise UserError(f"{part.path}: no column {name!r} (it has: {_listed(names)}); set {key}{hint}")
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
        columns = wanted_columns(table.schema_arrow.names, part, options)
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
