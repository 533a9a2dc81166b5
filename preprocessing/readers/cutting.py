"""Where long texts are cut, by the text alone: the same pieces whatever file it lies in and wherever reading begins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .. import documents
from ..documents import NOT_UTF8, BadRecord, Document, LongDocument, Part, ReadOptions


class Piece(NamedTuple):
    """Piece `number` of a text, whose first byte is byte `offset` of it."""

    number: int
    offset: int
    data: bytes


def step_and_reach() -> tuple[int, int]:
    """Bytes from one place to cut to the next, and within how many behind such a place the cut is made."""
    reach = max(documents.MAX_DOCUMENT_BYTES >> 4, 4)  # no less than a character
    return documents.MAX_DOCUMENT_BYTES - reach, reach


def cut(chunks: Iterable[bytes], first: int = 0, stop: int | None = None) -> Iterator[Piece]:
    """A text of UTF-8 in pieces of at most MAX_DOCUMENT_BYTES.

    Cut k lies behind the first line end from byte k * step on, else behind the first blank, else between two
    characters; it is made where more than `reach` bytes follow. So a piece can be found without those before it:
    with `first` the chunks begin at byte first * step, and pieces from number `first` on are given, as far as
    piece k has k * step < stop.
    """
    step, reach = step_and_reach()
    held, offset, number, is_begun = bytearray(), first * step, first, not first
    for chunk in chunks:
        held += chunk
        while len(held) > (place := (number + is_begun) * step - offset) + reach:
            end = _place_to_cut(held, place, reach)
            if is_begun:
                yield Piece(number, offset, bytes(held[:end]))
                number += 1
            is_begun = True
            del held[:end]
            offset += end
            if stop is not None and number * step >= stop:
                return
    if is_begun and (held or not number):
        yield Piece(number, offset, bytes(held))


def _place_to_cut(data: bytearray, start: int, reach: int) -> int:
    for between in (b"\n", b" "):
        if (found := data.find(between, start, start + reach)) >= 0:
            return found + 1
    return next((n for n in range(start, start + 4) if data[n] & 0xC0 != 0x80), start)  # what has more is noise


def in_pieces(
    given: Iterable[Document | LongDocument | BadRecord], part: Part, options: ReadOptions
) -> Iterator[Document | BadRecord]:
    """What a reader gives, no text longer than a document may be; a piece that is not UTF-8 is a bad record."""
    short = documents.MAX_DOCUMENT_BYTES // 4  # characters that are no longer than a document may be
    for found in given:
        if isinstance(found, LongDocument):
            yield from _pieces_of_long(found, part, options)
        elif isinstance(found, BadRecord) or len(found.text) <= short:
            yield found
        else:
            for piece in cut([found.text.encode()]):
                yield found._replace(text=piece.data.decode(), piece=piece.number)


def _pieces_of_long(found: LongDocument, part: Part, options: ReadOptions) -> Iterator[Document | BadRecord]:
    for piece in cut(found.chunks, found.first, found.stop):
        position = found.position + (piece.offset if found.is_verbatim else 0)
        text = decode(piece.data, position, part, options)
        if isinstance(text, str):
            yield Document(text, position, found.id, found.label, piece=piece.number)
        else:
            yield text


def decode(data: bytes, position: int, part: Part, options: ReadOptions) -> str | BadRecord:
    """Text of UTF-8 bytes by the error policy; `position` is that of the first byte in the file."""
    try:
        return data.decode("utf-8", options.errors)
    except UnicodeDecodeError as error:
        place = position + error.start
        return BadRecord(f"{part.path}: byte {place}", NOT_UTF8, place, wrong_byte=place)
