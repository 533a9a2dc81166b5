"""One row of a table that is too long to be held in memory."""

from __future__ import annotations

import codecs
import re
import tempfile
from collections.abc import Iterator, Sequence
from enum import Enum, auto

from .. import documents
from ..documents import NOT_UTF8, record_limit
from .table_lines import Dialect
from .tables import larger_than_limit

READ_BYTES = 1 << 20
NEW_LINE = "new-line"  # in the csv module's words for a carriage return alone
HALF_OF_PAIR = re.compile("[\ud800-\udfff]")  # in decoded text: a wrong byte
WRONG_QUOTING = "wrong quoting or line end"


class State(Enum):
    """Where in a row: the csv module's states, by other names."""

    START = auto()  # of a cell
    CELL = auto()
    ESCAPED = auto()
    QUOTED = auto()
    ESCAPED_IN_QUOTES = auto()
    AFTER_QUOTE = auto()  # which ends the cell, or stands for a quote if another one follows
    RETURN = auto()  # behind a carriage return
    WRONG = auto()  # up to the line end
    ENDED = auto()


class LongRow:
    """A row parsed piece by piece, as the csv module does it when it is strict.

    The text goes to a temporary file; id and label are held, and other cells are empty. `wanted` are their columns.
    """

    def __init__(self, dialect: Dialect, errors: str, wanted: Sequence[int | None]) -> None:
        self._delimiter, self._quote, self._escape = dialect.delimiter, dialect.quote, dialect.escape
        signs = {State.CELL: f"\r\n{self._delimiter}{self._escape or ''}", State.WRONG: "\n"}
        signs |= {State.QUOTED: f"{self._quote}{self._escape or ''}"} if self._quote else {}
        self._passed = {state: re.compile(f"[^{re.escape(of)}]*") for state, of in signs.items()}
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors)
        self._state, self._text, self._kept = State.START, wanted[0], wanted[1:]
        self._spool = tempfile.SpooledTemporaryFile(documents.MAX_DOCUMENT_BYTES)  # noqa: SIM115 - closed by `text`
        self._cell: list[str] = []
        self._cell_chars = 0
        self.cells: list[str] = []
        self.fault: str | None = None

    @property
    def has_ended(self) -> bool:
        return self._state is State.ENDED

    def feed(self, data: bytes) -> bytes:
        """Take on the bytes that follow, none at the end of the file; gives back those behind the row."""
        text, place = self._decoder.decode(data, final=not data), 0
        while place < len(text) and not self.has_ended:
            if passed := self._passed.get(self._state):
                found = passed.match(text, place)
                assert found, "any number of characters"
                self._write(text[place : found.end()])
                place = found.end()
            if place < len(text):
                self._state = self._after(text[place])
                place += 1
        if not text.isascii() and HALF_OF_PAIR.search(text, 0, place):
            self.fault = NOT_UTF8
        if not data:
            self._end()
        if not self.has_ended:
            return b""
        return text[place:].encode("utf-8", "surrogateescape") + self._decoder.getstate()[0]

    def text(self) -> Iterator[bytes]:
        """The bytes of the text in UTF-8, once."""
        with self._spool as spool:
            spool.seek(0)
            while chunk := spool.read(READ_BYTES):
                yield chunk

    def close(self) -> None:
        """Give up the text, if it is not wanted."""
        self._spool.close()

    def _end(self) -> None:
        """At the end of the file."""
        if self._state in (State.QUOTED, State.ESCAPED, State.ESCAPED_IN_QUOTES):
            self._wrong("unexpected end of data")
        elif self._state in (State.START, State.CELL, State.AFTER_QUOTE):
            self._end_cell()
        self._state = State.ENDED

    def _after(self, char: str) -> State:
        """The state behind a character that may be a sign in this one."""
        state = self._state
        if state is State.START and char == self._quote:
            return State.QUOTED
        if state in (State.QUOTED, State.CELL) and char == self._escape:
            return State.ESCAPED if state is State.CELL else State.ESCAPED_IN_QUOTES
        if state in (State.ESCAPED, State.ESCAPED_IN_QUOTES):
            self._write(char)
            return State.CELL if state is State.ESCAPED else State.QUOTED
        if state is State.QUOTED:
            return State.AFTER_QUOTE
        if state is State.AFTER_QUOTE and char == self._quote:
            self._write(char)
            return State.QUOTED
        return self._after_cell(char)

    def _after_cell(self, char: str) -> State:
        """The state behind a character where a cell may end."""
        state = self._state
        if state in (State.RETURN, State.WRONG):
            if char == "\n":
                return State.ENDED
            return state if char == "\r" else self._wrong(f"{NEW_LINE} character seen in unquoted field")
        if char == self._delimiter or char in "\r\n":
            self._end_cell()
            return State.START if char == self._delimiter else State.ENDED if char == "\n" else State.RETURN
        if state is State.AFTER_QUOTE:
            return self._wrong(f"'{self._delimiter}' expected after '{self._quote}'")
        if char == self._escape:
            return State.ESCAPED
        self._write(char)
        return State.CELL

    def _wrong(self, fault: str) -> State:
        self.fault = self.fault or f"{WRONG_QUOTING} ({fault})"
        return State.WRONG

    def _write(self, text: str) -> None:
        if self._state is State.WRONG:
            return
        if len(self.cells) == self._text:
            self._spool.write(text.encode("utf-8", "surrogateescape"))
        elif len(self.cells) in self._kept:
            self._cell_chars += len(text)
            if self._cell_chars <= record_limit():
                self._cell.append(text)
            else:
                self.fault = f"its id or label is {larger_than_limit()}"

    def _end_cell(self) -> None:
        self.cells.append("".join(self._cell))
        self._cell, self._cell_chars = [], 0
