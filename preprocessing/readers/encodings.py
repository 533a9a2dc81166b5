"""Streams in other encodings as UTF-8, in which a wrong byte stays one: readers then lose the record that holds it."""

from __future__ import annotations

import codecs
import io
from collections import deque
from collections.abc import Generator
from typing import BinaryIO, cast

from hvdlm.data.compression import BrokenStream, ChunkStream, read_before_break

from ..documents import NOT_UTF8, BadRecord, Part, ReadOptions

WRONG, WRONG_CHARACTER = b"\xff", "\udcff"  # stands for wrong bytes; no UTF-8 holds it
BLOCK_BYTES = 1 << 16
WINDOW = 64  # characters that are looked at together
MAX_PLACES = 1 << 16  # to remember, of wrong bytes that no reader has asked for

_found: list[int] = []  # by the decoder that runs: an error handler has no other place


def _mark(error: UnicodeError) -> tuple[str | bytes, int]:
    if isinstance(error, UnicodeDecodeError):
        _found.append(error.start)
        return WRONG_CHARACTER, error.end
    if isinstance(error, UnicodeEncodeError):  # halves of surrogate pairs, which some encodings can spell
        halves = error.object[error.start : error.end]
        return b"".join(WRONG if half == WRONG_CHARACTER else b"?" for half in halves), error.end
    raise error


codecs.register_error("hvdlm.mark", _mark)


def _shifted_from(text: str) -> int | None:
    """The first of WINDOW characters that are Western ones read from their second byte on: U+6100 for an a.

    They are told by their lower bytes, which are zero, and from a line of U+2500 by their variety.
    """
    codes = text.encode("utf-16-le", "surrogatepass")
    if codes[::2].count(0) < WINDOW // 2:
        return None
    for start in range(0, len(text), WINDOW):
        zeros = [char for char in text[start : start + WINDOW] if not ord(char) & 0xFF and char != "\0"]
        if 2 * len(zeros) > WINDOW and len(set(zeros)) >= WINDOW // 8:
            return start
    return None


class Recoded:
    """A file in `options.encoding`, readable as UTF-8."""

    def __init__(self, file: BinaryIO, options: ReadOptions) -> None:
        self._source, self._options = file, options
        self._places: deque[tuple[int, int]] = deque(maxlen=MAX_PLACES)  # of wrong bytes: here, in the source
        self.file = cast(BinaryIO, io.BufferedReader(ChunkStream(self._chunks())))

    def explained(self, bad: BadRecord, part: Part) -> BadRecord:
        """A bad record as the user sees it: in the encoding and at the place of the source."""
        if bad.reason != NOT_UTF8:
            return bad
        bad = bad._replace(reason=f"is not {self._options.encoding}; set another encoding, or errors: replace")
        if bad.wrong_byte is None:
            return bad
        while self._places and self._places[0][0] < bad.wrong_byte:
            self._places.popleft()
        is_known = self._places and self._places[0][0] == bad.wrong_byte
        position = self._places[0][1] if is_known else None
        place = part.path if position is None else f"{part.path}: byte {position}"
        return bad._replace(place=place, position=position)

    def _chunks(self) -> Generator[bytes, None, None]:
        errors = "hvdlm.mark" if self._options.errors == "strict" else self._options.errors
        decoder = codecs.getincrementaldecoder(self._options.encoding)(errors)
        is_utf16 = codecs.lookup(self._options.encoding).name.startswith("utf-16")
        num_read, num_given, is_last = 0, 0, False
        while not is_last:
            block, broken = read_before_break(self._source, BLOCK_BYTES)
            is_last, num_pending = not block, len(decoder.getstate()[0])
            _found.clear()
            decoded = decoder.decode(block, final=broken.is_all_given if broken else is_last)
            if is_utf16 and (shifted := _shifted_from(decoded)) is not None:
                place = num_read - num_pending + 2 * shifted
                broken = BrokenStream(f"has lost a byte near byte {place}: what follows is no UTF-16; fetch it again")
                decoded = decoded[:shifted]
                del _found[decoded.count(WRONG_CHARACTER) :]
            text = decoded.encode("utf-8", "hvdlm.mark")
            if _found:
                self._remember(text, num_given, num_read - num_pending)
            num_read, num_given = num_read + len(block), num_given + len(text)
            yield text
            if broken:
                raise broken

    def _remember(self, text: bytes, num_given: int, start: int) -> None:
        place = -1
        for found in _found:
            place = text.index(WRONG, place + 1)
            self._places.append((num_given + place, start + found))
