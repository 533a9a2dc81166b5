"""What ranks say on the terminal of `hvdlm launch`: their lines as they come, and the bar of rank 0 below them."""

from __future__ import annotations

import re
import sys
import threading
from typing import BinaryIO

from hvdlm.session.progress import BAR_LINE, Row, row_in

LABEL = rb"(?:\d+: |\[[\d,]+\]<\w+>: ?)?"  # srun and horovodrun say whose line it is
BAR = re.compile(LABEL + re.escape(BAR_LINE).encode() + rb".*")
BEGINNING = re.compile(LABEL + rb"(?P<word>.*)")
AWAY = b"\r\x1b[K"  # to the row's beginning, and nothing stays in it


class Screen:
    """A terminal that several streams of bytes are shown on; calls may come from several threads.

    While there is a bar it takes whole lines only, so that none tears another or the bar. Before, and in a line that
    cannot become one of the bar's, all passes at once, as without a terminal.
    """

    def __init__(self, terminal: BinaryIO) -> None:
        self._terminal, self._lock = terminal, threading.Lock()
        self._bar = b""  # as it is drawn now
        self._lines: dict[int, bytes] = {}  # the last line of each stream, as far as it has come
        self._shown: dict[int, int] = {}  # how many bytes of it are shown

    @property
    def gap(self) -> bytes:
        """What has to be written before words that others write to the terminal."""
        return AWAY if self._bar else b""

    def take(self, stream: int, piece: bytes) -> list[bytes]:
        """Show what a stream has brought; its whole lines are returned, but for those of the bar."""
        with self._lock:
            *lines, rest = (self._lines.get(stream, b"") + piece).split(b"\n")
            told = []
            for line in lines:
                if not self._take_line(line, self._shown.pop(stream, 0)):
                    told.append(line)
            if not self._bar and not _may_become_bar(rest):
                self._write(rest[self._shown.get(stream, 0) :])
                self._shown[stream] = len(rest)
            self._lines[stream] = rest
            return told

    def end(self, stream: int) -> bytes:
        """A stream is over: show what is left of it, and let the bar stand as it is."""
        with self._lock:
            rest = self._lines.pop(stream, b"")
            self._settle()
            self._write(rest[self._shown.pop(stream, 0) :])
            return rest

    def _take_line(self, line: bytes, num_shown: int) -> bool:
        """Whether it was one of the bar's; else it is shown, but for the bytes that are."""
        found = BAR.search(line)
        if found is None:
            self._write(self.gap + line[num_shown:] + b"\n" + self._bar)
            return False
        if found.start() or num_shown:  # somebody else's words without an end
            self._write(self.gap + line[num_shown : found.start()] + b"\n")
        self._take_bar(found[0])
        return True

    def _take_bar(self, line: bytes) -> None:
        try:
            row = row_in(line.decode(errors="replace"))
        except ValueError:  # torn: the next one comes soon
            return
        if row is None:
            self._settle()
        else:
            gap, self._bar = self.gap, _drawn(row)
            self._write(gap + self._bar)

    def _settle(self) -> None:
        if self._bar:
            self._write(b"\n")
        self._bar = b""

    def _write(self, text: bytes) -> None:
        if text:
            self._terminal.write(text)
            self._terminal.flush()


def _may_become_bar(rest: bytes) -> bool:
    """Whether the beginning of a line may be that of one of the bar's."""
    found = BEGINNING.match(rest)
    word = found["word"] if found else b""
    begins = BAR_LINE.encode()
    return word.startswith(begins) or begins.startswith(word)


def _drawn(row: Row) -> bytes:
    from rich.console import Console

    console = Console(file=sys.stderr)
    with console.capture() as capture:
        console.print(row.drawn(console.width), end="")
    return capture.get().rstrip("\n").encode(errors="replace")
