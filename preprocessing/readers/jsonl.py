"""A document a line of JSON. A line of any length is read in bounded memory."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import logging
import re
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from typing import IO, Any, BinaryIO, TypeVar

import orjson

from hvdlm.json_members import written_members

from .. import documents
from ..documents import NOT_UTF8, BadRecord, Document, LongDocument, Part, ReadOptions, one_line, record_limit
from .tables import larger_than_limit, listed
from .text import LINES, RawRecord, chunks_of, decode, records

log = logging.getLogger("hvdlm")

AnyFound = TypeVar("AnyFound", bound=Document | LongDocument | BadRecord)
MISSING = object()
SURROGATE = re.compile("[\ud800-\udfff]")
HIGH_SURROGATE = re.compile(rb"\\u[dD][89abAB]")
# An array, a bracket, a member of an object, or a value with a comma behind it.
SEVERAL_LINES = re.compile(rb'\[.*|[][{}]+,?|"(?:[^"\\]|\\.)*"\s*:.*|.*,', re.DOTALL)
OVER_SEVERAL_LINES = "format: json reads arrays, and objects over several lines"
SEPARATOR = b"\x1e"  # before each record of RFC 7464
SEVERAL_RECORDS = re.compile(rb"\}[\s,\x1e]*\{")
ON_ONE_LINE = "format: json reads several records on a line, and those of RFC 7464 (JSON text sequences)"
INVALID = "not valid JSON"
LOOKED_AT, SHORT_BYTES = 16, 200  # records that are searched for a second text: short ones, and one of so many
MOST_PLACES = 100  # of a text's beginning, of which each takes a look at all before it
MOST_DIGITS = 4000  # of an int: Python converts no more than 4300
BACKSLASH = ord("\\")
ESCAPE_BYTES = 6  # backslash, u, four digits; a surrogate pair takes two
BLOCK_BYTES = 1 << 20  # of a long text on its way through temporary files


def read_json_lines(file: BinaryIO, part: Part, options: ReadOptions) -> Iterator[Document | LongDocument | BadRecord]:
    """A document a line, under `text_key`; blank lines are none."""
    lines = records(file, part, LINES)
    for line in lines:
        if line.is_cut:
            for item in read_long_record(line, lines, part, options):
                yield _with_remedy(item, line.data)
        elif line.data and not line.data.isspace():
            found = read_record(line.data, line.position, part, options)
            if isinstance(found, Document):
                yield found
            elif b"\r" in line.data.strip():
                yield from _parted_by_returns(line, part, options) or [_with_remedy(found, line.data)]
            else:
                yield _with_remedy(found, line.data)


def _with_remedy(found: AnyFound, line: bytes) -> AnyFound:
    """A wrong line that looks like JSON that is not laid out in lines, with the format that reads it."""
    if not isinstance(found, BadRecord) or found.reason == NOT_UTF8:
        return found
    if SEVERAL_LINES.fullmatch(line.strip()):
        return found._replace(reason=f"{found.reason}; {OVER_SEVERAL_LINES}")
    if line.lstrip().startswith(SEPARATOR) or ("Extra data" in found.reason and SEVERAL_RECORDS.search(line)):
        return found._replace(reason=f"{found.reason}; {ON_ONE_LINE}")
    return found


def _parted_by_returns(line: RawRecord, part: Part, options: ReadOptions) -> list[Document | BadRecord]:
    """What a wrong line holds if a carriage return alone ends lines in it; nothing unless one is a record."""
    found: list[Document | BadRecord] = []
    position = line.position
    for data in line.data.split(b"\r"):
        if data and not data.isspace():
            found.append(read_record(data, position, part, options))
        position += len(data) + 1
    return found if any(isinstance(one, Document) for one in found) else []


def read_record(line: bytes, position: int, part: Part, options: ReadOptions) -> Document | BadRecord:
    """The document of a JSON object, whose first byte is at `position` of the file."""
    parsed = _parsed(line, position, part, options)
    if isinstance(parsed, BadRecord):
        return parsed
    record, as_text = parsed
    if options.fields:
        found = _labelled(record, line, position, part, options)
        if as_text is str or isinstance(found, BadRecord):
            return found
        return found._replace(raw=tuple(map(whole_value, found.raw)))
    key = options.text_key
    value = record[key] if isinstance(record, dict) and key in record else _value(record, key)
    if value is MISSING:
        keys = listed(record) if isinstance(record, dict) else type(record).__name__
        return _bad(part, position, f"no key {options.text_key!r} (it has: {keys}); set text_key")
    if not isinstance(value, str):
        return _bad(part, position, f"{options.text_key!r} is {type(value).__name__}, not text")
    is_looked_at = len(line) <= SHORT_BYTES or not (position * 0x9E3779B1 >> 16) % LOOKED_AT
    if is_looked_at and line.count(f'{key.rpartition(".")[2]}"'.encode()) > 1 and _is_twice(line, key):
        _tell_twice(part.path, key)
    if options.id_key is None and options.label_key is None:
        return Document(as_text(value), position)
    try:
        return Document(as_text(value), position, *_id_and_label(record, line, options))
    except RecursionError:
        return _bad(part, position, "nested too deeply to tell how its id or label is written")


def _parsed(
    line: bytes, position: int, part: Part, options: ReadOptions
) -> tuple[Any, Callable[[str], str]] | BadRecord:
    """A record, and what its texts have to go through."""
    try:
        return orjson.loads(line), str  # it lets no half surrogate pair pass
    except orjson.JSONDecodeError:  # or not UTF-8, a byte order mark, half a surrogate pair, NaN
        text = decode(line, position, part, options)
        if isinstance(text, BadRecord):
            return text
        try:
            return _loads(text.removeprefix("\ufeff")), whole_characters  # of a file that was put behind another one
        except (ValueError, RecursionError) as error:
            return _bad(part, position, f"{INVALID} ({error or 'nested too deeply'})")


def _labelled(record: Any, line: bytes, position: int, part: Part, options: ReadOptions) -> Document | BadRecord:
    """A record whose fields are typed behind the readers."""
    assert options.fields is not None
    members = record if isinstance(record, dict) else {}
    values = [members[key] if key in members else _value(record, key) for key in options.fields.keys]
    for (setting, key), value in zip(options.fields.asked.items(), values, strict=True):
        if value is MISSING:
            keys = listed(record) if isinstance(record, dict) else type(record).__name__
            return _bad(part, position, f"no key {key!r} (it has: {keys}); set {setting}")
        head = key.rpartition(".")[2]
        if line.count(f'{head}"'.encode()) > 1 and _is_twice(line, key):
            return _bad(part, position, f"{key!r} is there twice; leave one of them")
    try:
        return Document("", position, *_id_and_label(record, line, options), raw=tuple(values))
    except RecursionError:
        return _bad(part, position, "nested too deeply to tell how its id or label is written")


def whole_value(value: Any) -> Any:
    """`whole_characters` of all strings in it."""
    if isinstance(value, str):
        return whole_characters(value)
    if isinstance(value, list):
        return [whole_value(one) for one in value]
    return {name: whole_value(one) for name, one in value.items()} if isinstance(value, dict) else value


def _loads(data: str | bytes) -> Any:
    """JSON in which a number may have any number of digits: one for which an id or a label is not made of the value."""
    return json.loads(data, parse_int=lambda digits: int(digits) if len(digits) <= MOST_DIGITS else float(digits))


@functools.lru_cache
def _tell_twice(path: str, key: str) -> None:
    log.warning("%s: has records with the key %r twice, of which the last is read; remove one", one_line(path), key)


def _is_twice(line: bytes, key: str) -> bool:
    """Whether a valid object has two members of this key, of which parsers take one without a word."""

    def is_repeated(value: Any, key: str) -> bool:
        if not isinstance(value, tuple):
            return False
        names = [name for name, _ in value]
        if key in names:
            return names.count(key) > 1
        heads = [key[: dot.start()] for dot in re.finditer(r"\.", key) if key[: dot.start()] in names]
        return any(names.count(head) > 1 or is_repeated(dict(value)[head], key[len(head) + 1 :]) for head in heads)

    text = line.decode("utf-8", "replace").lstrip("\ufeff")
    try:
        return is_repeated(json.loads(text, parse_int=str, object_pairs_hook=tuple), key)
    except RecursionError:  # orjson goes deeper
        return False


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
    if isinstance(value, int) and value:  # zero may be written as -0
        return str(value)
    return whole_characters(_value(line.decode("utf-8", "replace").lstrip("\ufeff \t\r"), key, written_members))


def _bad(part: Part, position: int, reason: str) -> BadRecord:
    return BadRecord(f"{part.path}: byte {position}", reason, position)


def whole_characters(text: str) -> str:
    """JSON can spell half of a surrogate pair, which is no character and has no UTF-8: it becomes U+FFFD."""
    return text if text.isascii() else SURROGATE.sub("\ufffd", text)


def read_long_record(
    first: RawRecord, rest: Iterator[RawRecord | BadRecord], part: Part, options: ReadOptions
) -> Iterator[Document | LongDocument | BadRecord]:
    """The document of a JSON object that comes in several pieces, of any length; one of blanks is none."""
    pieces = chunks_of(first, rest)
    held: deque[bytes] = deque()
    num_bytes = 0
    for piece in pieces:
        held.append(piece)
        num_bytes += len(piece)
        if num_bytes > record_limit():
            yield from _larger_record(_all_of(held, pieces), first.position, part, options)
            return
    record = b"".join(held)
    if not record.isspace():
        yield read_record(record, first.position, part, options)


def _all_of(held: deque[bytes], rest: Iterator[bytes]) -> Iterator[bytes]:
    """What is held, piece by piece let go, and the rest."""
    while held:
        yield held.popleft()
    yield from rest


def _larger_record(
    pieces: Iterator[bytes], position: int, part: Part, options: ReadOptions
) -> Iterator[LongDocument | BadRecord]:
    """The document of a record that is not to be held as a whole.

    The text's string is laid aside until the whole object is known to be valid, with the keys behind the text. What
    stands before the text must fit into the first piece.
    """
    start = next(pieces)
    if options.fields:
        size = len(start) + sum(map(len, pieces))
        yield _bad(part, position, f"{larger_than_limit()} ({size} bytes); a labelled record is read as a whole")
        return
    found = _opening(start, options)
    if found is None:
        size = len(start) + sum(map(len, pieces))
        reason = f"{larger_than_limit()} ({size} bytes), without {options.text_key!r} in its first {len(start)} bytes"
        yield _bad(part, position, f"{reason}; put it first")
        return
    limit = documents.MAX_DOCUMENT_BYTES
    with tempfile.SpooledTemporaryFile(limit) as spelled, tempfile.SpooledTemporaryFile(limit) as text:
        tail = _spool_string(start[found:], pieces, spelled)
        line = start[: found - 1] + b'""' + (tail if isinstance(tail, bytes) else b"")
        around = tail if isinstance(tail, str) else _around_text(line, options)
        fault = around if isinstance(around, str) else _unescape(spelled, text, options)
        if isinstance(around, str) or fault:
            yield _bad(part, position, str(fault))
            return
        last, id_, label = around
        if last or _is_twice(line, options.text_key):
            _tell_twice(part.path, options.text_key)
            yield LongDocument(iter([whole_characters(last).encode()]), position, id_, label)
            return
        text.seek(0)
        yield LongDocument(iter(lambda: text.read(BLOCK_BYTES), b""), position, id_, label)


def _opening(held: bytes, options: ReadOptions) -> int | None:
    """Where the text's string begins, or None if nowhere."""
    key = options.text_key
    names = [key[start:] for start in (0, *(dot.end() for dot in re.finditer(r"\.", key)))]
    pattern = b"|".join(b"".join(map(_spellings, name)) for name in names)
    places = re.finditer(rb'[{,]\s*"(?:' + pattern + rb')"\s*:\s*"', held)
    for found in itertools.islice(places, MOST_PLACES):
        for depth in range(1, len(names) + 1):
            with contextlib.suppress(ValueError, RecursionError):
                head = _loads(held[: found.end() - 1] + b'""' + b"}" * depth)  # only where all objects are closed
                if _value(head, key) == "":
                    return found.end()
    return None


def _spellings(char: str) -> bytes:
    """A pattern for a character inside a string: itself, or escaped."""
    escaped = json.dumps(char)[1:-1].encode()  # a sign, or by numbers where it is not ASCII
    units = char.encode("utf-16-be", "surrogatepass")
    by_number = b"".join(rb"\\u(?i:%04x)" % int.from_bytes(units[at : at + 2], "big") for at in range(0, len(units), 2))
    return b"(?:%s|%s|%s)" % (re.escape(char.encode("utf-8", "surrogatepass")), re.escape(escaped), by_number)


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
        tail += behind if num_behind <= record_limit() else b""
    if is_open:
        return f"{INVALID} (the text has no end)"
    if num_behind > record_limit():
        return f"a line with over {record_limit() / 2**20:g} MiB behind its text; put the text last"
    return tail


def _around_text(line: bytes, options: ReadOptions) -> tuple[str, str | None, str | None] | str:
    """The text, id and label of a line that has an empty string for its text, or what is wrong with it.

    The text is another one where its key comes again.
    """
    try:
        record = _loads(line)
        last = _value(record, options.text_key)
        if not isinstance(last, str):
            return f"{options.text_key!r} is there twice, and last {type(last).__name__}, not text"
        return last, *_id_and_label(record, line, options)
    except UnicodeDecodeError:
        return NOT_UTF8
    except (ValueError, RecursionError) as error:
        return f"{INVALID} behind its text ({str(error).partition(': line')[0] or 'nested too deeply'})"


def _unescape(spelled: IO[bytes], text: IO[bytes], options: ReadOptions) -> str | None:
    """What the inside of a string spells, as UTF-8; returns what is wrong."""
    spelled.seek(0)
    held = b""
    while block := spelled.read(BLOCK_BYTES):
        held += block
        end = _end_of_whole(held)
        if fault := _unescape_block(held[:end], text, options):
            return fault
        held = held[end:]
    return _unescape_block(held, text, options)


def _unescape_block(data: bytes, text: IO[bytes], options: ReadOptions) -> str | None:
    try:
        text.write(whole_characters(json.loads('"' + data.decode("utf-8", options.errors) + '"')).encode())
    except UnicodeDecodeError:
        return NOT_UTF8
    except ValueError as error:
        return f"not valid JSON in its text ({str(error).partition(': line')[0]})"
    return None


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


def _end_of_whole(data: bytes) -> int:
    """How much of the inside of a string ends with no part of an escape, of a surrogate pair or of a character."""
    end = len(data)
    escape = data.rfind(b"\\", max(0, end - ESCAPE_BYTES))
    if escape >= 0 and _opens_escape(data, escape):
        before = escape - ESCAPE_BYTES
        is_pair = before >= 0 and HIGH_SURROGATE.match(data, before) and _opens_escape(data, before)
        return before if is_pair else escape
    start = next((n for n in range(end - 1, max(end - 4, 0) - 1, -1) if data[n] & 0xC0 != 0x80), end)
    return start if start < end and data[start] >= 0xC0 else end


def _opens_escape(data: bytes, place: int) -> bool:
    """Whether the backslash at `place` is none that another one escapes."""
    return (place - len(data[:place].rstrip(b"\\"))) % 2 == 0
