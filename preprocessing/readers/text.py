"""Plain text in its layouts: a document a file, a paragraph, a separated piece, a WikiText article.

Records are found by a regular expression for what lies between them, in blocks of bounded size, from
any byte range: a record belongs to the range that holds its first byte, whoever reads it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from hvdlm.errors import UserError

from .. import documents
from ..compression import read_before_break
from ..documents import NOT_UTF8, BadRecord, Document, Part, ReadOptions

BLOCK_BYTES = 4 << 20
SMALL_BLOCK_BYTES = 64 << 10
BOM = b"\xef\xbb\xbf"


class Boundary(NamedTuple):
    """What lies between two records."""

    pattern: re.Pattern[bytes]  # its one group holds all of the match
    reach: int  # bytes before and after a place that decide whether a record starts there
    lead: re.Pattern[bytes] | None = None  # what may still stand before a record, and is none of it


class RawRecord(NamedTuple):
    """A piece of the file; a record over MAX_DOCUMENT_BYTES comes in several, all but the last `is_cut`."""

    position: int
    data: bytes
    is_cut: bool


LINES = Boundary(re.compile(rb"(\n)"), 1)
# A line of more than 80 blanks counts as text: what decides must lie within reach. A long run of blank lines
# comes as several boundaries, since a repeated group takes memory for each time; the last one may stay over.
BLANK_LINES = Boundary(re.compile(rb"(\n(?:[ \t\r]{0,80}\n){1,256})"), 82, re.compile(rb"[ \t\r]{0,80}\n"))
# An article opens with ` = Title = `; ` = = Section = = ` is inside one.
ARTICLES = Boundary(re.compile(rb"(\n)(?= = [^=\n]{1,500} = ?\r?\n)"), 512)


def records(file: BinaryIO, part: Part, boundary: Boundary) -> Iterator[RawRecord]:
    """The records that start in a part, in file order, in bounded memory."""
    position = max(0, part.start - boundary.reach)
    if position:
        file.seek(position)
    held = b""
    is_foreign, is_cut = position > 0, False  # the record under way: began before this part; was given in part
    while True:
        block, broken = read_before_break(file, _block_bytes(part, position + len(held), len(held)))
        held += block
        complete, used = _split(held, boundary, is_last=broken is not None or not block)
        complete = complete[:-1] if broken else complete  # the last one may be half
        for offset, data in complete:
            start = position + offset
            if not (is_foreign or is_cut) and part.stop is not None and start >= part.stop:
                return
            if not is_foreign and (is_cut or start >= part.start):
                yield from _cut(RawRecord(start, data, False))
            is_foreign = is_cut = False
        if broken:
            raise broken
        held, position = held[used:], position + used
        if not block or _is_over(part, position, len(held) - boundary.reach if is_foreign else 0, is_cut):
            return
        while len(held) > documents.MAX_DOCUMENT_BYTES + 2 * boundary.reach:  # no boundary begins before the limit
            end = place_to_cut(held)
            is_cut = not is_foreign and (is_cut or position >= part.start)
            is_foreign = not is_cut
            if is_cut:
                yield RawRecord(position, held[:end], True)
            held, position = held[end:], position + end


def _is_over(part: Part, position: int, searched: int, is_cut: bool) -> bool:
    """Whether no record can start in the part any more; `searched` bytes from here hold no boundary."""
    return part.stop is not None and not is_cut and position + max(0, searched) >= part.stop


def _split(held: bytes, boundary: Boundary, is_last: bool) -> tuple[list[tuple[int, bytes]], int]:
    """(offset, record) of all records whose end is certain, and how many bytes they take."""
    pieces = boundary.pattern.split(held)
    sure = len(held) - (0 if is_last else boundary.reach)  # a match nearer to the end may turn out longer
    complete, used = [], 0
    for record, between in zip(pieces[:-1:2], pieces[1::2], strict=True):
        after = used + len(record) + len(between)
        if after > sure:
            break
        complete.append((used, record))
        used = after
    if is_last:
        complete.append((used, held[used:]))
        used = len(held)
    if boundary.lead is not None:
        leads = [lead.end() if (lead := boundary.lead.match(record)) else 0 for _, record in complete]
        complete = [(offset + n, record[n:]) for (offset, record), n in zip(complete, leads, strict=True)]
    return complete, used


def _block_bytes(part: Part, position: int, held: int) -> int:
    """How much to read: beyond the part's end only the rest of a record, and more of one that goes on and on."""
    left = BLOCK_BYTES if part.stop is None else part.stop - position
    return min(BLOCK_BYTES, max(left, held, SMALL_BLOCK_BYTES))


def _cut(record: RawRecord) -> Iterator[RawRecord]:
    while len(record.data) > documents.MAX_DOCUMENT_BYTES:
        end = place_to_cut(record.data)
        yield RawRecord(record.position, record.data[:end], True)
        record = RawRecord(record.position + end, record.data[end:], False)
    yield record


def place_to_cut(data: bytes) -> int:
    """Where to cut a long document: after the last line end or blank of the limit, else between characters."""
    limit = documents.MAX_DOCUMENT_BYTES
    for between in (b"\n", b" "):
        if (found := data.rfind(between, limit // 2, limit)) >= 0:
            return found + 1
    return character_start(data, limit)


def character_start(data: bytes, place: int) -> int:
    """The start of the UTF-8 character at `place`; a character has at most 4 bytes, what has more is noise."""
    return next((n for n in range(place, max(place - 4, 0), -1) if data[n] & 0xC0 != 0x80), place)


def decode(data: bytes, position: int, part: Part, options: ReadOptions) -> str | BadRecord:
    """Text of UTF-8 bytes by the error policy; a byte order mark at the start of the file is none of it."""
    if position == 0 and data.startswith(BOM):
        data, position = data[len(BOM) :], len(BOM)
    try:
        return data.decode("utf-8", options.errors)
    except UnicodeDecodeError as error:
        place = position + error.start
        return BadRecord(f"{part.path}: byte {place}", NOT_UTF8, wrong_byte=place)


def read_between(
    file: BinaryIO, part: Part, options: ReadOptions, *, boundary: Boundary
) -> Iterator[Document | BadRecord]:
    """A document a piece of text between boundaries; blank ones are none."""
    for record in records(file, part, boundary):
        if not record.data.isspace() and record.data:
            text = decode(record.data, record.position, part, options)
            yield text if isinstance(text, BadRecord) else Document(text.strip("\r\n"), record.position)


def read_separated(file: BinaryIO, part: Part, options: ReadOptions) -> Iterator[Document | BadRecord]:
    """A document a piece between occurrences of `separator`."""
    separator = (options.separator or "").encode()
    if not separator:
        raise UserError(
            "format: separated needs a separator, such as <|endoftext|> (to YAML a bare --- is null: quote it, as in "
            "separator: '---', on a command line \"separator='---'\")"
        )
    boundary = Boundary(re.compile(b"(" + re.escape(separator) + b")"), len(separator))
    yield from read_between(file, part, options, boundary=boundary)


def overlaps_itself(separator: str | None) -> bool:
    """Whether two occurrences can share bytes, as of `---` in `----`: which of them cuts depends on what is before."""
    data = (separator or "").encode()
    return any(data.startswith(data[-n:]) for n in range(1, len(data)))


def read_file(file: BinaryIO, part: Part, options: ReadOptions) -> Iterator[Document | BadRecord]:
    """A document a file. A long file is cut near multiples of the limit, wherever reading begins."""
    limit = documents.MAX_DOCUMENT_BYTES
    nominal = -(-part.start // limit) * limit
    if nominal:
        file.seek(nominal)
    window = file.read(limit + (limit >> 4) + 4)  # as far as the next cut may look
    while (window or not nominal) and (part.stop is None or nominal < part.stop):
        start = _next_line(window, 0) if nominal else 0
        end = _next_line(window, limit) if len(window) > limit else len(window)
        if end > start or not nominal:
            text = decode(window[start:end], nominal + start, part, options)
            yield text if isinstance(text, BadRecord) else Document(text, nominal + start)
        window = window[limit:] + file.read(limit)
        nominal += limit


def _next_line(window: bytes, start: int) -> int:
    """The first line start at or after `start`, within a fixed distance; else the next character's start."""
    found = window.find(b"\n", start, start + (documents.MAX_DOCUMENT_BYTES >> 4))
    if found >= 0:
        return found + 1
    while start < len(window) and window[start] & 0xC0 == 0x80:
        start += 1
    return start
