"""A document a line of JSON. A line of any length is read in bounded memory."""

from __future__ import annotations

import itertools
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Any, BinaryIO

import orjson

from .. import documents
from ..documents import NOT_UTF8, BadRecord, Document, Part, ReadOptions
from .text import LINES, RawRecord, character_start, decode, records

SURROGATE = re.compile("[\ud800-\udfff]")
HIGH_SURROGATE = re.compile(rb"\\u[dD][89abAB]")
BACKSLASH = ord("\\")
ESCAPE_BYTES = 6  # backslash, u, four digits; a surrogate pair takes two


def read_json_lines(file: BinaryIO, part: Part, options: ReadOptions) -> Iterator[Document | BadRecord]:
    """A document a line, under `text_key`; blank lines are none."""
    lines = records(file, part, LINES)
    for line in lines:
        if line.is_cut:
            yield from _long_line(line, lines, part, options)
        elif line.data and not line.data.isspace():
            yield _document(line.data, line.position, part, options)


def _document(line: bytes, position: int, part: Part, options: ReadOptions) -> Document | BadRecord:
    try:
        record = orjson.loads(line)
        as_text: Callable[[str], str] = str  # it lets no half surrogate pair pass
    except orjson.JSONDecodeError:  # or not UTF-8, a byte order mark, half a surrogate pair, NaN
        as_text = whole_characters
        text = decode(line, position, part, options)
        if isinstance(text, BadRecord):
            return text
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            return _bad(part, position, f"not valid JSON ({error or 'nested too deeply'})")
    if not isinstance(record, dict) or options.text_key not in record:
        keys = ", ".join(list(record)[:20]) if isinstance(record, dict) else type(record).__name__
        return _bad(part, position, f"no key {options.text_key!r} (it has: {keys}); set text_key")
    value = record[options.text_key]
    if not isinstance(value, str):
        return _bad(part, position, f"{options.text_key!r} is {type(value).__name__}, not text")
    if options.id_key is None and options.label_key is None:
        return Document(as_text(value), position)
    return Document(as_text(value), position, *_id_and_label(record, options))


def _id_and_label(record: dict[str, Any], options: ReadOptions) -> tuple[str | None, str | None]:
    found = [record.get(key) if key else None for key in (options.id_key, options.label_key)]
    id_, label = (None if value is None else whole_characters(str(value)) for value in found)
    return id_, label


def _bad(part: Part, position: int, reason: str) -> BadRecord:
    return BadRecord(f"{part.path}: byte {position}", reason, position)


def whole_characters(text: str) -> str:
    """JSON can spell half of a surrogate pair, which is no character and has no UTF-8: it becomes U+FFFD."""
    return text if text.isascii() else SURROGATE.sub("\ufffd", text)


def _long_line(
    first: RawRecord, rest: Iterator[RawRecord], part: Part, options: ReadOptions
) -> Iterator[Document | BadRecord]:
    """Documents from the pieces of one line that is longer than a document may be.

    The text's string is laid aside until the whole line is known to be valid, with the keys behind the text. What
    stands before the text must fit into the first piece.
    """
    pieces = _pieces(first, rest)
    held = next(pieces)
    opening = re.compile(rb'[{,]\s*"' + re.escape(json.dumps(options.text_key)[1:-1].encode()) + rb'"\s*:\s*"')
    head = None
    for found in opening.finditer(held):
        try:  # only before a top-level key does the line so far close to a valid object
            head = json.loads(held[: found.end() - 1] + b'""}')
            break
        except (ValueError, RecursionError):
            continue
    if head is None:
        yield _bad(
            part, first.position, f"a line of over {len(held)} bytes, without {options.text_key!r} near its start"
        )
        for _ in pieces:
            pass
        return
    with tempfile.SpooledTemporaryFile(max_size=documents.MAX_DOCUMENT_BYTES) as spool:
        tail = _spool_string(held[found.end() :], pieces, spool)
        record = tail if isinstance(tail, str) else _around_text(held[: found.end() - 1] + b'""' + tail, options)
        if isinstance(record, str):
            yield _bad(part, first.position, record)
            return
        spool.seek(0)
        yield from _pieces_of_string(spool, first.position + found.end(), part, _id_and_label(record, options))


def _max_tail_bytes() -> int:
    return 8 * documents.MAX_DOCUMENT_BYTES


def _spool_string(data: bytes, pieces: Iterator[bytes], spool: IO[bytes]) -> bytes | str:
    """What stands behind the string that `data` is inside of, or what is wrong; the string goes to `spool`.

    All pieces are read, to the end of the line.
    """
    tail, is_open, num_behind = b"", True, 0
    for piece in itertools.chain([data], pieces):
        behind = piece
        if is_open:
            data = tail + piece  # of an open string only the backslash that escapes what follows is kept
            end, is_open = _end_of_string(data)
            end -= (end - len(data.rstrip(b"\\"))) % 2 if is_open else 0
            spool.write(data[:end])
            tail, behind = (data[end:], b"") if is_open else (b"", data[end + 1 :])
        num_behind += len(behind)
        tail += behind if num_behind <= _max_tail_bytes() else b""
    if is_open:
        return "not valid JSON (the text has no end)"
    if num_behind > _max_tail_bytes():
        return f"a line with over {_max_tail_bytes() / 2**20:g} MiB behind its text; put the text last"
    return tail


def _around_text(line: bytes, options: ReadOptions) -> dict[str, Any] | str:
    """The record of a line that has an empty string for its text, or what is wrong with it."""
    try:
        record = json.loads(line)
    except UnicodeDecodeError:
        return NOT_UTF8
    except (ValueError, RecursionError) as error:
        return f"not valid JSON behind its text ({str(error).partition(': line')[0] or 'nested too deeply'})"
    return record if record[options.text_key] == "" else f"the key {options.text_key!r} is there twice"


def _pieces_of_string(
    spool: IO[bytes], position: int, part: Part, labels: tuple[str | None, str | None]
) -> Iterator[Document | BadRecord]:
    held = spool.read(2 * documents.MAX_DOCUMENT_BYTES)
    while len(held) > documents.MAX_DOCUMENT_BYTES:
        cut = _safe_cut(held)
        yield _piece_of_string(held[:cut], position, part, labels)
        held, position = held[cut:] + spool.read(cut), position + cut
    yield _piece_of_string(held, position, part, labels)


def _pieces(first: RawRecord, rest: Iterator[RawRecord]) -> Iterator[bytes]:
    yield first.data
    for piece in rest:
        yield piece.data
        if not piece.is_cut:
            return


def _end_of_string(data: bytes) -> tuple[int, bool]:
    """Where the string's closing quote is, or (length, True) while it is open."""
    found = data.find(b'"')
    while found >= 0:
        start = found
        while start and data[start - 1] == BACKSLASH:
            start -= 1
        if (found - start) % 2 == 0:
            return found, False
        found = data.find(b'"', found + 1)
    return len(data), True


def _safe_cut(data: bytes) -> int:
    """A place near the limit that is inside no escape and no character."""
    cut = documents.MAX_DOCUMENT_BYTES
    if (blank := data.rfind(b" ", cut // 2, cut)) >= 0:
        return blank + 1
    escape = data.rfind(b"\\", max(0, cut - ESCAPE_BYTES), cut)
    if escape < 0:
        return character_start(data, cut)
    while escape > 0 and data[escape - 1 : escape] == b"\\":
        escape -= 1
    if HIGH_SURROGATE.match(data, escape - 6):
        escape -= 6
    return escape if escape > 0 else cut


def _piece_of_string(
    data: bytes, position: int, part: Part, labels: tuple[str | None, str | None]
) -> Document | BadRecord:
    try:
        text = json.loads(b'"' + data + b'"')
    except ValueError as error:
        return _bad(part, position, f"not valid JSON ({error})")
    return Document(whole_characters(text), position, *labels)
