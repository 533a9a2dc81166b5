"""The records of a file, a line each: looked through once, then read in units that any rank can take.

A file of JSON lines (.jsonl, .ndjson, .json) has an object a line, any other one a text. Blank lines are no records.
A line ends at LF or CR LF; a byte order mark at the beginning is left out. Files may be compressed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from hvdlm.data.compression import BrokenStream, open_plain, plain_suffix
from hvdlm.errors import UserError
from hvdlm.files import open_regular

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TEXT_SUFFIXES = (".txt", ".text", "")
MOST_LINE_BYTES = 64 << 20
SKIP_BYTES = 1 << 20
BOM = b"\xef\xbb\xbf"
UNITS_WANTED, MOST_BLOCKS = 4096, 64  # units, and blocks of `rows` records in one
Stamp = tuple[int, int, int]  # of a file: bytes, time of the last change in ns, inode


class Line(NamedTuple):
    """A record as it stands in a file: values by key of JSON, a text otherwise."""

    number: int  # of the line, from 1
    values: dict[str, Any] | str


@dataclass(frozen=True)
class Unit:
    """Records that one rank takes together: bytes [start, stop) of the file."""

    number: int
    first: int  # its first record, from 0
    num_records: int
    line: int  # and that one's line
    start: int
    stop: int


@dataclass(frozen=True)
class Source:
    """A file that was looked through."""

    path: Path
    stamp: Stamp
    sha256: str
    num_records: int
    num_blank: int
    units: tuple[Unit, ...]


class _Block(NamedTuple):
    num_records: int
    line: int
    start: int


@functools.cache  # it is asked of each line
def is_json(path: Path) -> bool:
    """UserError for a name that says neither."""
    suffix = plain_suffix(str(path))
    if suffix in JSON_SUFFIXES:
        return True
    if suffix in TEXT_SUFFIXES:
        return False
    raise UserError(f"{path}: is neither JSON lines ({' '.join(JSON_SUFFIXES)}) nor lines of text (.txt); convert it")


def stamp_of(path: Path) -> Stamp:
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def look_through(path: Path, check: Callable[[dict[str, Any] | str], object], rows: int) -> Source:
    """Every record held against `check`, which raises ValueError for one that is none; UserError with its line.

    Units follow from the file and from `rows`, the records that are computed together, alone.
    """
    stamp, _ = stamp_of(path), is_json(path)
    digest, blocks = hashlib.sha256(), [_Block(0, 1, 0)]
    num_blank = number = place = 0
    with _opened(path) as file, _naming_breaks(path):
        for number, data in enumerate(_lines(path, file), 1):
            digest.update(data)
            found = _record(path, number, data)
            if found is None:
                num_blank += 1
            else:
                try:
                    check(found)
                except ValueError as error:
                    raise UserError(f"{path}:{number}: {error}") from None
                if blocks[-1].num_records == rows:
                    blocks.append(_Block(0, number, place))
                blocks[-1] = blocks[-1]._replace(num_records=blocks[-1].num_records + 1)
            place += len(data)
    if stamp_of(path) != stamp:
        raise UserError(f"{path}: changed while it was read; start again when it is whole")
    num_records = sum(block.num_records for block in blocks)
    return Source(path, stamp, digest.hexdigest(), num_records, num_blank, _units(blocks, place))


def _units(blocks: list[_Block], end: int) -> tuple[Unit, ...]:
    """As few blocks a unit as make no more than UNITS_WANTED: a rank that is done early finds another one."""
    if not blocks[-1].num_records:
        return ()
    few = 1 if len(blocks) < UNITS_WANTED // 16 else 4  # a unit's last texts are written beside few others
    size = min(MOST_BLOCKS, max(few, -(-len(blocks) // UNITS_WANTED)))
    units: list[Unit] = []
    first = 0
    for place in range(0, len(blocks), size):
        part = blocks[place : place + size]
        stop = blocks[place + size].start if place + size < len(blocks) else end
        num = sum(block.num_records for block in part)
        units.append(Unit(len(units), first, num, part[0].line, part[0].start, stop))
        first += num
    return tuple(units)


class UnitReader:
    """Reads units of a file that was looked through; of a compressed one those that ascend at no further cost."""

    def __init__(self, source: Source) -> None:
        self._source, self._at = source, 0
        self._file: BinaryIO | None = None

    def __enter__(self) -> UnitReader:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()

    def read(self, unit: Unit) -> list[Line]:
        """UserError if the file is not what it was."""
        path = self._source.path
        if stamp_of(path) != self._source.stamp:
            raise UserError(f"{path}: has changed since the job began; start again with another --out")
        file = self._file_before(unit.start)
        with _naming_breaks(path):
            while self._at < unit.start and (skipped := file.read(min(SKIP_BYTES, unit.start - self._at))):
                self._at += len(skipped)
            data = file.read(unit.stop - unit.start)
        self._at += len(data)
        found = [(number, _record(path, number, line)) for number, line in enumerate(data.split(b"\n"), unit.line)]
        lines = [Line(number, values) for number, values in found if values is not None]
        assert len(lines) == unit.num_records, "the stamp is that of the file that was looked through"
        return lines

    def _file_before(self, place: int) -> BinaryIO:
        """The file, at that place if it can be put there, else read no further."""
        if self._file is None or place < self._at:
            if self._file is not None:
                self._file.close()
            self._file, self._at = _opened(self._source.path), 0
        if self._file.seekable():
            self._at = self._file.seek(place)
        return self._file


def _opened(path: Path) -> BinaryIO:
    with open_regular(path):  # no pipe, whose bytes come once
        return open_plain(str(path))


@contextmanager
def _naming_breaks(path: Path) -> Iterator[None]:
    try:
        yield
    except BrokenStream as error:
        raise UserError(f"{path}: {error}") from None


def _lines(path: Path, file: BinaryIO) -> Iterator[bytes]:
    number = 0
    while data := file.readline(MOST_LINE_BYTES + 1):
        number += 1
        if len(data) > MOST_LINE_BYTES:
            raise UserError(f"{path}:{number}: has more than {MOST_LINE_BYTES >> 20} MiB; is it a line a record?")
        yield data


def _record(path: Path, number: int, data: bytes) -> dict[str, Any] | str | None:
    """What a line holds; None for a blank one."""
    if number == 1:
        data = data.removeprefix(BOM)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{number}: byte {error.start + 1} is not UTF-8; convert the file (iconv)") from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text.strip():
        return None
    return _object(path, number, text) if is_json(path) else text


def _object(path: Path, number: int, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{number}: is no JSON ({error.msg}, column {error.colno}); mend the line") from None
    except (RecursionError, ValueError):
        raise UserError(f"{path}:{number}: is no JSON that can be read: nested too deeply, or a huge number") from None
    if not isinstance(found, dict):
        raise UserError(f'{path}:{number}: is {type(found).__name__}, not an object such as {{"prompt": …}}')
    return found


def id_of(values: Mapping[str, Any] | str) -> dict[str, Any]:
    """The `id` of a record, where it has one; ValueError for one that is no name."""
    if isinstance(values, str) or values.get("id") is None:
        return {}
    name = values["id"]
    is_number = isinstance(name, int) or (isinstance(name, float) and math.isfinite(name))  # an int of any size
    if isinstance(name, bool) or (not isinstance(name, str) and not is_number):
        raise ValueError("'id' is neither a text nor a number; mend it or leave it out")
    return {"id": encodable("id", name) if isinstance(name, str) else name}


def text_at(values: Mapping[str, Any], key: str) -> str:
    """The text under a key; ValueError where there is none."""
    if key not in values:
        has = ", ".join(map(repr, values)) or "no keys"
        raise ValueError(f"has no {key!r} (it has {has}); a record here is {{{key!r}: TEXT}}")
    if not isinstance(values[key], str):
        raise ValueError(f"{key!r} is {type(values[key]).__name__}, not text")
    return encodable(key, values[key])


def encodable(key: str, text: str) -> str:
    """The text; ValueError, which names its key, for one that no UTF-8 stands for."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{key!r}: character {error.start + 1} is a lone surrogate, no character; mend it") from None
    return text
