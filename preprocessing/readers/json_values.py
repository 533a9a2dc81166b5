"""A file of JSON records that need no line of their own: an array of them, or one after another, pretty-printed or not.

Where a record ends is found by its brackets, in a window of bounded size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from .. import documents
from ..compression import BeforeBreak
from ..documents import BadRecord, Document, LongDocument, Part, ReadOptions
from .jsonl import read_long_record, read_record
from .text import RawRecord, in_chunks

BETWEEN, SCALAR = re.compile(rb"[\s,]*(?:\xef\xbb\xbf[\s,]*)*"), re.compile(rb'[^][{},"\s]+')
OUTSIDE_STRING, INSIDE_STRING = re.compile(rb'[][{}"]'), re.compile(rb'["\\]')

NO_END = "cut short: its JSON has no end; fetch the file again"


def read_json(file: BinaryIO, part: Part, options: ReadOptions) -> Iterator[Document | LongDocument | BadRecord]:
    """A document a record, under `text_key`."""
    values = _values(file, part)
    for value in values:
        if isinstance(value, BadRecord):
            yield value
        elif value.is_cut:
            yield from read_long_record(value, values, part, options)
        else:
            yield read_record(value.data, value.position, part, options)


def _values(file: BinaryIO, part: Part) -> Iterator[RawRecord | BadRecord]:
    """The members of arrays, and values that stand in none; one of over MAX_DOCUMENT_BYTES in several pieces."""
    limit = documents.MAX_DOCUMENT_BYTES
    sound = BeforeBreak(file)
    window, position = sound.read(2 * limit), 0  # position: of the window's first byte
    at = 0
    is_array = False
    while True:
        at = _skip(window, at)
        if len(window) - at <= limit and (block := sound.read(limit)):
            window, position, at = window[at:] + block, position + at, 0
        elif at == len(window):
            break
        elif window[at : at + 1] == (b"]" if is_array else b"["):
            is_array, at = not is_array, at + 1
        else:
            start, scan = at, _scan(window, _Scan(at))
            is_open = not scan.is_whole and len(window) - start > limit  # else the file ends inside
            if scan.is_whole or is_open:
                yield from in_chunks(RawRecord(position + start, window[start : scan.at], is_open))
            else:
                sound.end()
                yield BadRecord(f"{part.path}: byte {position + start}", NO_END, position + start)
            while not scan.is_whole and window:
                overshoot, position = scan.at - len(window), position + len(window)
                window = sound.read(limit)
                scan = _scan(window, scan._replace(at=overshoot))
                if is_open:
                    yield RawRecord(position, window[: scan.at], not scan.is_whole and bool(window))
            at = min(scan.at, len(window))
    sound.end()
    if is_array:
        yield BadRecord(f"{part.path}: byte {position + at}", NO_END, position + at)


def _skip(window: bytes, at: int) -> int:
    """Past blanks and commas, and marks of files that were put behind one another."""
    between = BETWEEN.match(window, at)
    return between.end() if between else at


class _Scan(NamedTuple):
    """How far a value was followed."""

    at: int  # the next byte to look at
    depth: int = 0  # of brackets that are open
    is_string: bool = False
    is_scalar: bool = False
    is_whole: bool = False


def _scan(data: bytes, scan: _Scan) -> _Scan:
    """Follows a value to its end, or to that of the data."""
    at, depth, is_string = scan.at, scan.depth, scan.is_string
    scalar = None if depth or is_string else SCALAR.match(data, at)
    if scalar or scan.is_scalar:
        end = scalar.end() if scalar else at
        return _Scan(end, is_scalar=True, is_whole=end < len(data))
    while found := (INSIDE_STRING if is_string else OUTSIDE_STRING).search(data, at):
        at = found.end()
        if is_string:
            is_string = found[0] != b'"'
            at += is_string  # a backslash takes the next byte along
        elif found[0] == b'"':
            is_string = True
        else:
            depth += 1 if found[0] in b"[{" else -1
        if depth <= 0 and not is_string:
            return _Scan(at, is_whole=True)
    return _Scan(max(at, len(data)), depth, is_string=is_string)
