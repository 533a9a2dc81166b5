"""A file of JSON records that need no line of their own: an array of them, or one after another, pretty-printed or not.

Where a record ends is found by its brackets, in a window of bounded size. One whose structure is broken costs what
lies up to the next place that begins a record.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO, NoReturn

from hvdlm.data.compression import BeforeBreak

from .. import documents
from ..documents import NOT_UTF8, BadRecord, Document, LongDocument, Part, ReadOptions
from .json_grammar import SCALARS, Expects, Structure
from .jsonl import INVALID, read_long_record, read_record
from .text import RawRecord, in_chunks

# Between values: blanks, commas, marks of files put behind one another, and what begins a text of RFC 7464.
BETWEEN = re.compile(rb"[\s,\x1e]*(?:\xef\xbb\xbf[\s,\x1e]*)*")
SCALAR = re.compile(rb'[^][{}",\s]+')
OUTSIDE_STRING, INSIDE_STRING = re.compile(rb'[][{}"]'), re.compile(rb'["\\]')
STRAY_BRACKETS = re.compile(rb"[]}]+")
MAY_FOLLOW = {b"", *(b"%c" % char for char in b'",]}[{ \t\r\n\x1e\xef')}

KEY = rb'"(?:[^"\\\x00-\x1f]|\\.){0,512}"'  # the limit bounds what is searched again behind a border of windows
MEMBER = re.compile(b"(" + KEY + rb")\s*:")
OPENING = re.compile(rb"\{\s*(?:(" + KEY + rb")\s*:|([^][\"{}:,\s][^]{}:,\s]{0,64}))")
FIRST_KEY = re.compile(rb"\{\s*(" + KEY + rb')()\s*[{"\[]')  # where no colon tells that it is one
BEHIND_ARRAY = re.compile(rb"[],\s]*")
CONTEXT_BYTES = 4096  # before a place, that stay in the window

NO_END = "cut short, or a quote or bracket is missing: its JSON has no end; fetch the file again, or mend it"


class _Damage(Exception):
    """Why a value is not to be followed further."""


def read_json(file: BinaryIO, part: Part, options: ReadOptions) -> Iterator[Document | LongDocument | BadRecord]:
    """A document a record, under `text_key`."""
    window = _Window(file)
    has_end = True
    while window.find_value():
        start = window.place
        try:
            data = window.whole_value()
            if data is None:
                pieces = window.long_value()
                yield from read_long_record(next(pieces), pieces, part, options)
                continue
            found = read_record(data, start, part, options)
            if isinstance(found, BadRecord) and found.reason.startswith((INVALID, NOT_UTF8)):
                window.check_value()
            window.check_behind()
        except _Damage as damage:
            has_end = window.find_record(start)
            reason = str(damage)
            passed = f"{window.place - start} bytes are passed over, to the {'next record' if has_end else 'end'}"
            reason += f" ({passed})" if reason == NO_END else f"; {passed}; mend it, or fetch the file again"
            yield BadRecord(f"{part.path}: byte {start}", reason, start)
        else:
            if isinstance(found, Document):
                window.opening = data[:CONTEXT_BYTES]
            yield found
    window.end()
    if window.is_array and has_end:
        yield BadRecord(f"{part.path}: byte {window.place}", NO_END, window.place)


class _Like:
    """What a damaged record, and the last sound one, tell about how records begin in this file."""

    def __init__(
        self, damaged: re.Match[bytes] | None, last: re.Match[bytes] | None, indentation: bytes | None
    ) -> None:
        self._keys = {found[1] for found in (damaged, last) if found and found[1]}
        self._word = damaged[2] if damaged else None  # in place of a key in double quotes
        self._indentation = indentation

    def is_record(self, found: re.Match[bytes], is_nested: bool | None, indentation: bytes | None) -> bool:
        """Whether an object begins a record; where nothing tells whether it is nested, one that begins alike does."""
        if is_nested or (found[2] and found[2] != self._word):
            return False
        is_same_key = not self._keys or not found[1] or found[1] in self._keys
        if is_nested is None:
            return is_same_key if None in (indentation, self._indentation) else indentation == self._indentation
        return is_same_key or self._indentation in (None, indentation)

    def begins_line(self, found: re.Match[bytes], indentation: bytes | None) -> bool:
        """Whether an object begins its line as these records do theirs."""
        return indentation is not None and indentation == self._indentation and found[1] in self._keys


class _Window:
    """What is held of a file, around the value under way."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = BeforeBreak(file)
        self._limit = documents.MAX_DOCUMENT_BYTES
        self._data, self._position = self._file.read(2 * self._limit), 0  # position: of the first byte in the file
        self._at = self._start = 0  # the next byte to look at; where the last value began
        self.is_array = False
        self.opening = b""  # how the last sound record began

    @property
    def place(self) -> int:
        """Of the next byte to look at, in the file."""
        return self._position + self._at

    def end(self) -> None:
        """Raises the break that ended the file, if one did."""
        self._file.end()

    def find_value(self) -> bool:
        """Goes to the next value, a member of an array or one that stands in none; False at the end."""
        while True:
            self._at = _skip(self._data, self._at)
            if self._is_near_end() and self._read_on(min(self._start, self._at)):
                continue
            if self._data[self._at : self._at + 1] != (b"]" if self.is_array else b"["):
                self._start = self._at
                return self._at < len(self._data)
            self.is_array = not self.is_array
            self._at += 1

    def whole_value(self) -> bytes | None:
        """The value that begins here, if its end is in the window."""
        if stray := STRAY_BRACKETS.match(self._data, self._at):
            self._at = stray.end()
            raise _Damage(f"{INVALID} (a closing bracket without its opening one)")
        end, is_scalar, is_whole = _end_of_value(self._data, self._at)
        is_at_end = len(self._data) - self._at <= self._limit
        if not is_whole and not (is_at_end and is_scalar):
            if is_at_end:
                self.check_value()
                self._pass_unclosed()
                self._no_end()
            return None
        self._at = end
        value = self._data[self._start : end]
        if is_scalar and not SCALARS.fullmatch(value):
            raise self._fault(self._start, Expects.VALUE)
        return value

    def long_value(self) -> Iterator[RawRecord]:
        """The value that begins here, whose end is behind the window, in pieces."""
        if self.is_array and self._data[self._at : self._at + 1] == b"[":
            self._begins_twice()
        value = Structure(self._at)
        while True:
            if not value.follow(self._data):
                self._at = value.token
                raise self._fault(value.at, value.expects)
            cut = value.at if value.is_whole else min(value.at, len(self._data) - CONTEXT_BYTES)
            if cut > self._at:
                piece = RawRecord(self.place, self._data[self._at : cut], not value.is_whole)
                self._start = self._at = cut
                yield from in_chunks(piece)
            if value.is_whole:
                return
            before = self._position
            if not self._read_on(self._at):
                self._no_end()
            value.shift(self._position - before)

    def check_value(self) -> None:
        """Raises _Damage if the structure of the last value is broken."""
        value = Structure(self._start)
        if not value.follow(self._data):
            self._at = value.token
            raise self._fault(value.at, value.expects)

    def check_behind(self) -> None:
        """Raises _Damage if the last value goes on behind its end, as by a brace too many."""
        if self._is_near_end():
            self._read_on(self._start)
        first, char = self._data[self._start : self._start + 1], self._data[self._at : self._at + 1]
        is_parted = char in MAY_FOLLOW or (char == b":" and first == b"{")
        self._at = _skip(self._data, self._at)
        if first == b"[" and self.is_array and self._at == len(self._data):  # its end is that of the array around it
            self._begins_twice()
        goes_on = self._data[self._at : self._at + 1] == b'"' and self._goes_on(self._start, self._at)
        if goes_on or not is_parted:
            fault = self._fault(self._at, Expects.NEXT)
            self._at = self._at if first == b"{" else self._start + 1
            raise fault

    def _begins_twice(self) -> NoReturn:
        self._at = self._start + 1
        raise _Damage(f"{INVALID} (an opening bracket too many, or an array of arrays)")

    def find_record(self, start: int) -> bool:
        """Goes to the next place that begins a record, behind the damaged one at place `start`; False if none does.

        An object in quotes that are sound has backslashes; one inside the damaged record is told by what follows it.
        """
        like = self._like(start - self._position)
        known_to, is_nested = 0, None
        while True:
            found = OPENING.search(self._data, self._at)
            self._at = found.start() if found else max(self._at, len(self._data) - CONTEXT_BYTES)
            before = self._position
            if (found is None or self._is_near_end()) and self._read_on(self._at):
                known_to -= self._position - before
                continue
            if found is None:
                self._at = self._start = len(self._data)
                return False
            is_second = self._data[max(0, start - self._position) : self._at].strip() == b"{"  # brace, right behind
            is_inside = not is_second and self._before(self._at) in (b":", b"{")
            if not is_inside and self._at >= known_to:
                is_nested, known_to = self._follow_run(self._at)
            if not is_inside and like.is_record(found, is_nested, self._indentation(self._at)):
                self._start = self._at
                return True
            value = Structure(self._at)
            is_sound = value.follow(self._data) and value.is_whole
            self._at = known_to if is_nested and not is_inside else value.at if is_sound else self._at + 1

    def _like(self, own: int) -> _Like:
        """By the damaged record, which begins at `own` in the window, unless it is no longer there."""
        damaged = OPENING.match(self._data, own) or FIRST_KEY.match(self._data, own) if own >= 0 else None
        return _Like(damaged, OPENING.match(self.opening), self._indentation(own) if own >= 0 else None)

    def _follow_run(self, start: int) -> tuple[bool | None, int]:
        """Whether the values from `start` on stand in an object, and how far that is known; None: it cannot be told."""
        at = start
        while True:
            value = Structure(at)
            if not value.follow(self._data):
                return None, value.at
            is_first = at == start
            at = _skip(self._data, value.at)
            char = self._data[at : at + 1]
            if not value.is_whole or not char:
                return False, at
            if char == b"]":
                behind = BEHIND_ARRAY.match(self._data, at)
                assert behind, "any number"
                return self._data[behind.end() : behind.end() + 1] in (b"}", b'"'), behind.end()
            if is_first and self._goes_on(start, at):
                return True, at
            if char not in (b"{", b"["):
                return None, at

    def _goes_on(self, start: int, behind: int) -> bool:
        """Whether an object from `start` to `behind` is followed by more of the one that it is in."""
        member, own = MEMBER.match(self._data, behind), OPENING.match(self._data, start)
        if self._data[behind : behind + 1] == b"}":
            is_value = self._data[max(0, start - CONTEXT_BYTES) : start].rstrip(b"]}, \t\r\n").endswith(b":")
            return is_value or self._before(start) not in (b",", b"}", b"]", b"")
        return bool(member and not (own and member[1] == own[1]))  # else another record, which has lost its brace

    def _before(self, at: int) -> bytes:
        """The last byte before a place that is not blank."""
        return self._data[max(0, at - CONTEXT_BYTES) : at].rstrip()[-1:]

    def _indentation(self, at: int) -> bytes | None:
        """The blanks before a place, if nothing else stands before it on its line."""
        line = self._data[max(0, at - CONTEXT_BYTES) : at]
        indentation = line[line.rfind(b"\n") + 1 :] if b"\n" in line or at <= CONTEXT_BYTES else b"?"
        return None if indentation.strip() else indentation

    def _is_near_end(self) -> bool:
        return len(self._data) - self._at <= self._limit

    def _read_on(self, kept: int) -> bool:
        """Reads a block; the window then begins shortly before the byte `kept`. False at the end of the file."""
        block = self._file.read(self._limit)
        if block:
            gone = max(0, kept - CONTEXT_BYTES)
            self._data = self._data[gone:] + block
            self._position += gone
            self._at, self._start = self._at - gone, max(0, self._start - gone)
        return bool(block)

    def _pass_unclosed(self) -> None:
        """Raises _Damage if a line behind the value, which has no end, begins as its own: then brackets are missing."""
        like = self._like(self._start)
        for found in OPENING.finditer(self._data, self._start + 1):
            if like.begins_line(found, self._indentation(found.start())):
                self._at = found.start()
                raise _Damage(f"{INVALID} (no closing bracket before a line that begins like it)")

    def _no_end(self) -> NoReturn:
        self._at = len(self._data)
        self.end()
        raise _Damage(NO_END)

    def _fault(self, at: int, expects: Expects) -> _Damage:
        place = self._position + at
        return _Damage(f"{INVALID} (at byte {place} no {expects.value}: before it a quote, comma or bracket is wrong)")


def _skip(window: bytes, at: int) -> int:
    """Past blanks and commas, and marks of files that were put behind one another."""
    between = BETWEEN.match(window, at)
    return between.end() if between else at


def _end_of_value(data: bytes, at: int) -> tuple[int, bool, bool]:
    """(where the value that begins here ends, or the data do; whether it is a scalar; whether it ends)."""
    if scalar := SCALAR.match(data, at):
        return scalar.end(), True, scalar.end() < len(data)
    depth, pattern = 0, OUTSIDE_STRING
    while found := pattern.search(data, at):
        at, sign = found.end(), found[0]
        if sign == b"\\":  # it takes the next byte along
            at += 1
            continue
        if sign == b'"':
            pattern = INSIDE_STRING if pattern is OUTSIDE_STRING else OUTSIDE_STRING
        else:
            depth += 1 if sign in b"[{" else -1
        if depth <= 0 and pattern is OUTSIDE_STRING:
            return at, False, True
    return max(at, len(data)), False, False
