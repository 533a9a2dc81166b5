"""A document a line of JSON. A line of any length is read in bounded memory."""

from __future__ import annotations

import contextlib
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

MISSING = object()
DECODER = json.JSONDecoder(parse_int=str, parse_float=str)
BEFORE_NAME, COLON = re.compile(r'[\s,]*(?=")'), re.compile(r"\s*:\s*")
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
            yield read_record(line.data, line.position, part, options)


def read_record(line: bytes, position: int, part: Part, options: ReadOptions) -> Document | BadRecord:
    """The document of a JSON object, whose first byte is at `position` of the file."""
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
    value = _value(record, options.text_key)
    if value is MISSING:
        keys = ", ".join(list(record)[:20]) if isinstance(record, dict) else type(record).__name__
        return _bad(part, position, f"no key {options.text_key!r} (it has: {keys}); set text_key")
    if not isinstance(value, str):
        return _bad(part, position, f"{options.text_key!r} is {type(value).__name__}, not text")
    if options.id_key is None and options.label_key is None:
        return Document(as_text(value), position)
    try:
        return Document(as_text(value), position, *_id_and_label(record, line, options))
    except RecursionError:
        return _bad(part, position, "nested too deeply to tell how its id or label is written")


def _dict(value: Any) -> dict[str, Any] | None:
    return value if isinstance(value, dict) else None


def _value(record: Any, key: str, members: Callable[[Any], dict[str, Any] | None] = _dict) -> Any:
    """What stands under a key, which may lead into objects (`meta.text`); a name that has dots of its own wins."""
    fields = members(record)
    if fields is None:
        return MISSING
    if key in fields:
        return fields[key]
    dot = key.rfind(".")
    while dot >= 0:
        if key[:dot] in fields and (found := _value(fields[key[:dot]], key[dot + 1 :], members)) is not MISSING:
            return found
        dot = key.rfind(".", 0, dot)
    return MISSING


def _id_and_label(record: Any, line: bytes, options: ReadOptions) -> tuple[str | None, str | None]:
    keys = (options.id_key, options.label_key)
    id_, label = (None if key is None else _name(_value(record, key), key, line) for key in keys)
    return id_, label


def _name(value: Any, key: str, line: bytes) -> str | None:
    """An id or a label as it is written: a number keeps its digits, what is nested stays JSON."""
    if value is None or value is MISSING:
        return None
    if isinstance(value, str):
        return whole_characters(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    return whole_characters(_value(line.decode("utf-8", "replace").lstrip("\ufeff \t\r"), key, _written_members))


def _written_members(text: str) -> dict[str, str] | None:
    """The members of a valid JSON object, each as the text that spells its value.

    >>> _written_members('{"a": 1e3, "b": [1.50]}')
    {'a': '1e3', 'b': '[1.50]'}
    """
    if not text.startswith("{"):
        return None
    members, end = {}, 1
    while found := BEFORE_NAME.match(text, end):
        name, end = DECODER.raw_decode(text, found.end())
        colon = COLON.match(text, end)
        assert colon, "a valid object"
        start = colon.end()
        _, end = DECODER.raw_decode(text, start)
        members[name] = text[start:end]
    return members


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
    found = _opening(held, options)
    if found is None:
        yield _bad(
            part, first.position, f"a line of over {len(held)} bytes, without {options.text_key!r} near its start"
        )
        for _ in pieces:
            pass
        return
    with tempfile.SpooledTemporaryFile(max_size=documents.MAX_DOCUMENT_BYTES) as spool:
        tail = _spool_string(held[found:], pieces, spool)
        line = held[: found - 1] + b'""' + (tail if isinstance(tail, bytes) else b"")
        labels = tail if isinstance(tail, str) else _around_text(line, options)
        if isinstance(labels, str):
            yield _bad(part, first.position, labels)
            return
        spool.seek(0)
        yield from _pieces_of_string(spool, first.position + found, part, labels)


def _opening(held: bytes, options: ReadOptions) -> int | None:
    """Where the text's string begins, or None if nowhere."""
    key = options.text_key
    names = [key[start:] for start in (0, *(dot.end() for dot in re.finditer(r"\.", key)))]
    pattern = b"|".join(re.escape(json.dumps(name)[1:-1].encode()) for name in names)
    for found in re.finditer(rb'[{,]\s*"(?:' + pattern + rb')"\s*:\s*"', held):
        for depth in range(1, len(names) + 1):
            with contextlib.suppress(ValueError, RecursionError):
                head = json.loads(held[: found.end() - 1] + b'""' + b"}" * depth)  # only where all objects are closed
                if _value(head, key) == "":
                    return found.end()
    return None


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


def _around_text(line: bytes, options: ReadOptions) -> tuple[str | None, str | None] | str:
    """Id and label of a line that has an empty string for its text, or what is wrong with it."""
    try:
        record = json.loads(line)
        is_once = _value(record, options.text_key) == ""
        return _id_and_label(record, line, options) if is_once else f"the key {options.text_key!r} is there twice"
    except UnicodeDecodeError:
        return NOT_UTF8
    except (ValueError, RecursionError) as error:
        return f"not valid JSON behind its text ({str(error).partition(': line')[0] or 'nested too deeply'})"


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
