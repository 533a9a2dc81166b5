"""Plain text in its layouts: a document a file, a paragraph, a separated piece, a WikiText article.

Records are found by a regular expression for what lies between them, in blocks of bounded size, from
any byte range: a record belongs to the range that holds its first byte, whoever reads it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from hvdlm.data.compression import BeforeBreak, read_before_break
from hvdlm.errors import UserError

from .. import documents
from ..documents import BadRecord, Document, LongDocument, Part, ReadOptions
from . import cutting

BLOCK_BYTES = 4 << 20
SMALL_BLOCK_BYTES = 64 << 10
BOM = b"\xef\xbb\xbf"


class Boundary(NamedTuple):
    """What lies between two records."""

    pattern: re.Pattern[bytes] | bytes  # its one group holds all of the match; or what is always the same
    reach: int  # bytes before and after a place that decide whether a record starts there
    lead: re.Pattern[bytes] | None = None  # what may still stand before a record, and is none of it


class RawRecord(NamedTuple):
    """A piece of the file; a record over MAX_DOCUMENT_BYTES comes in several, all but the last `is_cut`."""

    position: int
    data: bytes
    is_cut: bool


LINES = Boundary(b"\n", 1)
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
        complete, used = _split(held, boundary, is_cut, is_last=broken is not None or not block)
        complete = complete[:-1] if broken and not broken.is_all_given else complete  # the last one may be half
        for offset, data in complete:
            start = position + offset
            if not (is_foreign or is_cut) and part.stop is not None and start >= part.stop:
                return
            if not is_foreign and (is_cut or start >= part.start):
                yield from in_chunks(RawRecord(start, data, False))
            is_foreign = is_cut = False
        if broken:
            raise broken
        held, position = held[used:], position + used
        if not block or _is_over(part, position, len(held) - boundary.reach if is_foreign else 0, is_cut):
            return
        while len(held) > documents.MAX_DOCUMENT_BYTES + 2 * boundary.reach:  # no boundary begins before the limit
            lead = boundary.lead.match(held) if boundary.lead and not is_cut else None
            start, end = lead.end() if lead else 0, documents.MAX_DOCUMENT_BYTES
            is_cut = not is_foreign and (is_cut or position >= part.start)
            is_foreign = not is_cut
            if is_cut:
                yield RawRecord(position + start, held[start:end], True)
            held, position = held[end:], position + end


def _is_over(part: Part, position: int, searched: int, is_cut: bool) -> bool:
    """Whether no record can start in the part any more; `searched` bytes from here hold no boundary."""
    return part.stop is not None and not is_cut and position + max(0, searched) >= part.stop


def _split(held: bytes, boundary: Boundary, is_begun: bool, is_last: bool) -> tuple[list[tuple[int, bytes]], int]:
    """(offset, record) of all records whose end is certain, and how many bytes they take.

    `is_begun`: the first is the rest of a record, whose beginning was given before.
    """
    found: list[bytes]
    gaps: Iterator[int]  # bytes between two records
    if isinstance(boundary.pattern, bytes):
        found = held.split(boundary.pattern)
        gaps = itertools.repeat(len(boundary.pattern), len(found) - 1)
    else:
        pieces = boundary.pattern.split(held)
        found, gaps = pieces[::2], map(len, pieces[1::2])
    sure = len(held) - (0 if is_last else boundary.reach)  # a match nearer to the end may turn out longer
    complete, used = [], 0
    for record, gap in zip(found, gaps, strict=False):  # what is behind the last gap has no end yet
        after = used + len(record) + gap
        if after > sure:
            break
        complete.append((used, record))
        used = after
    if is_last:
        complete.append((used, held[used:]))
        used = len(held)
    if boundary.lead is not None:
        leads = [lead.end() if (lead := boundary.lead.match(record)) else 0 for _, record in complete]
        leads[:is_begun] = [0] * len(leads[:is_begun])
        complete = [(offset + n, record[n:]) for (offset, record), n in zip(complete, leads, strict=True)]
    return complete, used


def _block_bytes(part: Part, position: int, held: int) -> int:
    """How much to read: beyond the part's end only the rest of a record, and more of one that goes on and on."""
    left = BLOCK_BYTES if part.stop is None else part.stop - position
    return min(BLOCK_BYTES, max(left, held, SMALL_BLOCK_BYTES))


def in_chunks(record: RawRecord) -> Iterator[RawRecord]:
    """A record in pieces of at most MAX_DOCUMENT_BYTES."""
    limit, size = documents.MAX_DOCUMENT_BYTES, len(record.data)
    if size <= limit:
        yield record
        return
    for start in range(0, size, limit):
        is_cut = record.is_cut or start + limit < size
        yield RawRecord(record.position + start, record.data[start : start + limit], is_cut)


def chunks_of(first: RawRecord, rest: Iterator[RawRecord | BadRecord]) -> Iterator[bytes]:
    """The bytes of one record, which are those of `first` and of what comes next while that is cut."""
    yield first.data
    piece: RawRecord | BadRecord = first
    while isinstance(piece, RawRecord) and piece.is_cut:
        piece = next(rest)
        assert isinstance(piece, RawRecord)
        yield piece.data


def decode(data: bytes, position: int, part: Part, options: ReadOptions) -> str | BadRecord:
    """`cutting.decode`; a byte order mark at the start of the file is no text."""
    if position == 0 and data.startswith(BOM):
        data, position = data[len(BOM) :], len(BOM)
    return cutting.decode(data, position, part, options)


def read_between(
    file: BinaryIO, part: Part, options: ReadOptions, *, boundary: Boundary
) -> Iterator[Document | LongDocument | BadRecord]:
    """A document a piece of text between boundaries, without the line ends around it; blank ones are none."""
    found = records(file, part, boundary)
    for record in found:
        if record.is_cut:
            yield from _long_record(record, found)
        elif not record.data.isspace() and record.data:
            text = decode(record.data, record.position, part, options)
            yield text if isinstance(text, BadRecord) else Document(text.strip("\r\n"), record.position)


def _long_record(first: RawRecord, rest: Iterator[RawRecord]) -> Iterator[LongDocument]:
    chunks, position = chunks_of(first, rest), first.position
    if position == 0 and first.data.startswith(BOM):
        chunks, position = itertools.chain([first.data[len(BOM) :]], itertools.islice(chunks, 1, None)), len(BOM)
    for chunk in chunks:
        text = chunk.lstrip(b"\r\n")
        position += len(chunk) - len(text)
        if text:
            yield LongDocument(_without_last_ends(text, chunks), position, is_verbatim=True)


def _without_last_ends(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    """A text without the line ends that may be its last bytes."""
    ends = b""
    for chunk in itertools.chain([first], rest):
        text = chunk.rstrip(b"\r\n")
        if text or len(ends) > documents.MAX_DOCUMENT_BYTES:  # a file of line ends shall not fill memory
            yield ends + text
            ends = b""
        ends += chunk[len(text) :]


def read_separated(file: BinaryIO, part: Part, options: ReadOptions) -> Iterator[Document | LongDocument | BadRecord]:
    """A document a piece between occurrences of `separator`."""
    separator = (options.separator or "").encode()
    if not separator:
        raise UserError(
            "format: separated needs a separator, such as <|endoftext|> (to YAML a bare --- is null: quote it, as in "
            "separator: '---', on a command line \"separator='---'\")"
        )
    yield from read_between(file, part, options, boundary=Boundary(separator, len(separator)))


def overlaps_itself(separator: str | None) -> bool:
    """Whether two occurrences can share bytes, as of `---` in `----`: which of them cuts depends on what is before."""
    data = (separator or "").encode()
    return any(data.startswith(data[-n:]) for n in range(1, len(data)))


def read_file(file: BinaryIO, part: Part, options: ReadOptions) -> Iterator[LongDocument]:
    """A document a file; a range of it is the pieces that begin there; nothing of a last piece that is not whole."""
    sound = BeforeBreak(file)
    start = sound.read(len(BOM))
    skipped = len(BOM) if start == BOM else 0
    step, _ = cutting.step_and_reach()
    first = -(-part.start // step)
    if first:
        file.seek(skipped + first * step)
        start = b""
    if part.stop is None or first * step < part.stop:
        yield LongDocument(
            itertools.chain([start[skipped:]], _all_of(sound)), skipped, first=first, stop=part.stop, is_verbatim=True
        )
        sound.end()


def _all_of(sound: BeforeBreak) -> Iterator[bytes]:
    while chunk := sound.read(1 << 20):
        yield chunk
    if sound.is_cut:
        sound.end()
