"""The errors that people meet most on this stack, by their exact text, with cause and cure."""

from __future__ import annotations

import functools
import io
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hvdlm.errors import UserError
from hvdlm.launch.installation import setup_remedy

PIECE_BYTES = 1 << 20
LONGEST_LINE = 1 << 16  # of a longer one the pieces count as lines
MAX_REMEMBERED = 100_000  # lines, to read none twice that differ in their numbers alone

# A line of any known error holds one of these in small letters; all others are passed over.
_SIGN_WORDS = (
    "error|fail|not |no |unable|invalid|kill|cancel|memory|exceed|refused|denied|interrupt|exclusive|busy|slots|alloc"
    "|detected|different|lost|unreachable|limit|bus|segmentation|illegal|bind|retry|undefined|missing|mismatch|reset"
    "|expired|script|mkdir|connect|signature|version|read-only|stale|address|submitted|too old|insufficient|accepted"
    "|shut down|required|c++17|eof|direct launched|timed out|daemon|interpreter|removed|world|munge|framework|timeout"
    "|truncated|numpy|unknown|singleton"
)
SIGNS = tuple(word.encode() for word in _SIGN_WORDS.split("|"))
_PREFIX = re.compile(r"^(\d+: |\[\d+(,\d+)?\]<std(out|err)>: ?)")  # srun --label, mpirun --tag-output, horovodrun
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class KnownError:
    """An error of another program: `pattern` is found in one line of what it prints, and `example` is such a line."""

    name: str
    title: str
    pattern: str
    example: str
    cause: str
    cure: str
    source: str
    also: tuple[str, ...] = ()  # a line of each other form
    follows: bool = False  # often an echo of what another rank or an earlier line says
    unless: tuple[str, ...] = ()  # names of errors that say it better, before it or after

    @property
    def cure_here(self) -> str:
        """What this installation has: one of pip's has no `make setup`."""
        by_pip = "`make setup` (of a checkout of hvdlm)"
        return self.cure.replace("`make setup`", by_pip) if setup_remedy(by_pip) == by_pip else self.cure


@functools.cache
def known_errors() -> tuple[KnownError, ...]:
    """All of them, from known_errors.yaml; read when first asked for, since nearly every command starts without."""
    import yaml

    text = Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8")
    lists = ("also", "unless")
    listed = [values | {name: tuple(values.get(name, ())) for name in lists} for values in yaml.safe_load(text)]
    return tuple(KnownError(**values) for values in listed)


class Search:
    """Known errors in lines that come one after another."""

    def __init__(self) -> None:
        self._left = [(known, re.compile(known.pattern)) for known in known_errors()]
        self._seen: set[bytes] = set()
        self._found: list[KnownError] = []

    def read(self, line: bytes) -> None:
        """One line, without its end."""
        without_numbers = line.translate(None, b"0123456789")
        if without_numbers in self._seen:
            return
        if len(self._seen) < MAX_REMEMBERED:
            self._seen.add(without_numbers)
        small = line.lower()
        if not any(sign in small for sign in SIGNS):
            return
        self._search(_PREFIX.sub("", _ESCAPES.sub("", line.decode(errors="replace")).rstrip()))

    def _search(self, text: str) -> None:
        places = [(match.start(), known) for known, pattern in self._left if (match := pattern.search(text))]
        new = [known for _, known in sorted(places, key=lambda place: place[0])]
        if new:
            self._found += new
            self._left = [(known, pattern) for known, pattern in self._left if known not in new]

    def found(self) -> list[KnownError]:
        """In the order in which they first appeared. What follows from others is named only as the first."""
        names = {known.name for known in self._found}
        own = [known for number, known in enumerate(self._found) if not (known.follows and number)]
        return [known for known in own if names.isdisjoint(known.unless)]


def explain(text: str) -> list[KnownError]:
    """The known errors that a log shows, in the order in which they first appear, without their echoes.

    >>> [known.name for known in explain("noise\\nOSError: [Errno 28] No space left on device\\n")]
    ['no-space']
    """
    return explain_stream(io.BytesIO(text.encode(errors="replace")))


def explain_stream(log: BinaryIO) -> list[KnownError]:
    """`explain` for a log of any length, which may be gzipped. UserError if it is no text."""
    search = Search()
    for line in _lines(_pieces(log)):
        search.read(line)
    return search.found()


def _pieces(log: BinaryIO) -> Iterator[bytes]:
    first = log.read(PIECE_BYTES)
    if first.startswith(b"\x1f\x8b"):
        yield from _unzipped(first, log)
        return
    start = first[:4096]
    if len(start.translate(None, b"\0\1\2\3\4\5\6\x0e\x0f\x10\x11\x12\x13\x14")) < 0.9 * len(start):
        raise UserError("is no text, so no log")
    while first:
        yield first
        first = log.read(PIECE_BYTES)


def _unzipped(first: bytes, rest: BinaryIO) -> Iterator[bytes]:
    """What is whole of a gzipped log: a job that was killed leaves the last piece torn."""
    inflate = zlib.decompressobj(wbits=31)
    piece = first
    while piece:
        try:
            yield inflate.decompress(piece)
        except zlib.error:
            raise UserError("looks like a gzipped file, but is damaged; unzip what is left of it (`zcat`)") from None
        while inflate.eof and inflate.unused_data:  # files that were zipped one after another
            piece, inflate = inflate.unused_data, zlib.decompressobj(wbits=31)
            yield inflate.decompress(piece)
        piece = rest.read(PIECE_BYTES)


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).replace(b"\r", b"\n").split(b"\n")
        yield from whole
        if len(rest) > LONGEST_LINE:
            yield rest
            rest = b""
    yield rest


def to_text(found: list[KnownError]) -> str:
    """Cause and cure of each, for a terminal."""
    return "\n".join(f"{known.title}\n  cause: {known.cause}\n  cure:  {known.cure_here}" for known in found)


def to_markdown() -> str:
    """All known errors as a table for the documentation."""
    rows = [
        f"| {_as_code(known.example)} | {known.cause} | {known.cure} |".replace("||", "| |") for known in known_errors()
    ]
    return "\n".join(["| what is printed | cause | cure |", "|---|---|---|", *rows]) + "\n"


def _as_code(text: str) -> str:
    return f"`` {text} ``" if "`" in text else f"`{text}`"
