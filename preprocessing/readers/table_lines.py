"""Lines of a table as the csv module asks for them; those of the row under way can be read again."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import IO, Any, BinaryIO, NamedTuple

from hvdlm.data.compression import BrokenStream, read_before_break

from .. import documents
from ..documents import TableConfig

BLOCK_BYTES = 1 << 17


class Dialect(NamedTuple):
    """How cells are written."""

    delimiter: str
    quote: str | None
    escape: str | None = None

    def asked(self, table: TableConfig) -> Dialect:
        """This one, but for what the config says.

        >>> Dialect(",", '"').asked(TableConfig(delimiter=";"))
        Dialect(delimiter=';', quote='"', escape=None)
        """
        quote = self.quote if table.quote == "auto" else None if table.quote in ("none", None) else table.quote
        return Dialect(table.delimiter or self.delimiter, quote, table.escape)

    @property
    def settings(self) -> dict[str, Any]:
        """Of the csv module, as keywords."""
        quoting: dict[str, Any] = {"quotechar": self.quote} if self.quote else {"quoting": csv.QUOTE_NONE}
        return {"delimiter": self.delimiter, "escapechar": self.escape, "strict": True, **quoting}


class RowTooLong(Exception):
    """Raised through the csv module, which then begins a new row; what was read of it is `Lines.row`."""


class Lines:
    """The lines of a file as text, read in blocks. Strictly, a wrong byte is half a surrogate pair there."""

    def __init__(self, file: BinaryIO, errors: str) -> None:
        self._file = file
        self.errors = errors if errors == "replace" else "surrogateescape"
        self.has_wrong_bytes = False  # whether there were any so far
        self._again: deque[bytes | IO[bytes]] = deque()  # to be read before the file
        self._broken: BrokenStream | None = None
        self._block, self._is_utf8 = io.BytesIO(), True
        self._start = 0  # of the row under way, in the block
        self._before: list[bytes] = []  # what the blocks before hold of it
        self.put_back(self.take().removeprefix(codecs.BOM_UTF8))

    def __iter__(self) -> Iterator[str]:
        return itertools.chain(self._decoded(), itertools.chain.from_iterable(self._blocks()))

    def begin_row(self) -> None:
        self._start = self._block.tell()
        if self._before:
            self._before = []

    @property
    def row(self) -> bytes:
        """All lines of the row under way."""
        return b"".join([*self._before, self._block.getbuffer()[self._start : self._block.tell()]])

    def first_line(self) -> bytes:
        """The first line of the file, as far as the first block holds it."""
        data = self.take()
        self.put_back(data)
        return data.split(b"\n", 1)[0]

    def skip_line(self) -> None:
        """Of the first block."""
        self.put_back(self.take().partition(b"\n")[2])

    def take(self) -> bytes:
        """The next bytes, which may end anywhere; none at the end."""
        while self._again:
            again = self._again.popleft()
            if isinstance(again, bytes):
                return again
            if data := again.read(_block_bytes()):
                self._again.appendleft(again)
                return data
            again.close()
        data = b""
        if not self._broken:
            data, self._broken = read_before_break(self._file, _block_bytes())
        if self._broken and not data and not self._broken.is_all_given:
            raise self._broken
        return data

    def end(self) -> None:
        """Raises the break that the file ends at, if all its rows are whole."""
        if self._broken:
            raise self._broken

    def put_back(self, data: bytes) -> None:
        """Make these bytes the next ones, before what is left of the block under way."""
        if left := self._block.read():
            self._again.appendleft(left)
        size = _block_bytes()
        self._again.extendleft(data[start : start + size] for start in reversed(range(0, len(data), size)))
        self._block = io.BytesIO()
        self.begin_row()

    def put_back_file(self, data: IO[bytes]) -> None:
        """Make what is left of a file the next bytes, where no block is under way; it is closed at its end."""
        self._again.appendleft(data)

    def put_back_end(self, data: bytes) -> None:
        """Make these bytes, as long as the end of the row under way, the next ones instead of it."""
        if len(data) <= self._block.tell() - self._start:  # at little cost, as there may be thousands in a block
            self._block.seek(-len(data), io.SEEK_CUR)
            self._block.write(data)
            self._block.seek(-len(data), io.SEEK_CUR)
        else:
            self.put_back(data)

    def _blocks(self) -> Iterator[Iterator[str]]:
        while True:
            if begun := bytes(self._block.getbuffer()[self._start :]):
                self._before.append(begun)
            self._block, self._start = io.BytesIO(), 0
            if sum(map(len, self._before)) > documents.MAX_DOCUMENT_BYTES:
                raise RowTooLong
            data = self._whole_lines()
            if not data:
                return
            self._block = io.BytesIO(data)
            self._is_utf8 = is_utf8(data)
            self.has_wrong_bytes |= not self._is_utf8
            yield self._decoded()

    def _decoded(self) -> Iterator[str]:
        """The lines that are left in the block; by C alone, as this is where the time goes."""
        if self._is_utf8:
            return map(bytes.decode, self._block)
        return map(partial(str, encoding="utf-8", errors=self.errors), self._block)

    def _whole_lines(self) -> bytes:
        """As many as a block holds, but at least one, unless it is longer than a document."""
        data = self.take()
        while b"\n" not in data and (more := self.take()):
            data += more
            if len(data) > documents.MAX_DOCUMENT_BYTES:
                self._before.append(data)
                raise RowTooLong
        end = data.rfind(b"\n") + 1 or len(data)
        if end < len(data):
            self._again.appendleft(data[end:])
        return data[:end]


def is_utf8(data: bytes) -> bool:
    try:
        return data.isascii() or bool(data.decode())
    except UnicodeDecodeError:
        return False


def _block_bytes() -> int:
    return min(BLOCK_BYTES, documents.MAX_DOCUMENT_BYTES)
