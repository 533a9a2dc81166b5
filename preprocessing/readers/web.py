"""Web pages and archives: a document the main text of a page, or a record of extracted text.

WARC records are found here and not by warcio: that reads lines of any length, and loses all that
follows a damaged record.
"""

from __future__ import annotations

import codecs
import itertools
import logging
import re
import tempfile
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import IO, BinaryIO, NamedTuple

from hvdlm.data.compression import BeforeBreak, BrokenStream
from hvdlm.errors import UserError
from hvdlm.tables import counted

from .. import documents
from ..documents import BadRecord, Document, LongDocument, Part, ReadOptions, record_limit
from .jsonl import whole_characters
from .tables import larger_than_limit

log = logging.getLogger("hvdlm")

MAX_TAGS = 100_000  # trafilatura needs up to 4 KB and 0.2 ms for each
BLOCK_BYTES = 1 << 20  # of a long record
WARC = b"WARC/"  # how a record begins
AGAIN_BYTES = 1 << 30  # of a file that are read a second time for records that a wrong length took for content
MAX_HEAD_BYTES = 1 << 16  # of the headers of a record, or of a response
CACHED_PAGE_CHARACTERS = 1 << 16  # trafilatura keeps a thousand lines, whatever their length

HOLD_CONTENT = {"response", "conversion", "resource"}  # types of records; others are about them
READ_BY = {"response": "warc", "conversion": "wet"}  # the format that reads all of such a type
MOST_KINDS = 5  # that are named

BOMS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
CHARSET = re.compile(
    rb"<(?:meta\b[^>]{0,300}?\bcharset|\?xml\b[^>]{0,100}?\bencoding)\s*=\s*[\"']?\s*([\w.:-]{2,40})", re.I
)
# What a label means to browsers (https://encoding.spec.whatwg.org/#names-and-labels) where Python takes it
# more narrowly. A label that could be read at all is in no wide encoding.
LABELS = {
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "iso8859-1": "cp1252",
    "ascii": "cp1252",
    "iso8859-9": "cp1254",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
    "utf-16": "utf-8",
    "utf-16-le": "utf-8",
    "utf-16-be": "utf-8",
}
NOT_CHARSETS = {"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "utf-7"}


class _Refused(Exception):
    """Why there is no text."""


class _PassedOver(Exception):
    """Of which kind a record is that is not asked for."""


def read_html(file: BinaryIO, part: Part, options: ReadOptions) -> Iterator[Document | BadRecord]:
    """The main text of a page as the one document of a file."""
    _check_trafilatura(part)
    sound = BeforeBreak(file)
    data = sound.read(record_limit() + 1)
    if sound.is_cut:
        sound.end()
    try:
        if len(data) > record_limit():
            raise _Refused(larger_than_limit())
        yield Document(_main_text(_decoded(data, None, options)), 0)
    except _Refused as error:
        yield BadRecord(part.path, str(error))
    sound.end()


def read_warc(file: BinaryIO, part: Part, options: ReadOptions) -> Iterator[Document | LongDocument | BadRecord]:
    """The main text of every page in an archive of HTTP responses (ISO 28500); its id is the address."""
    _check_trafilatura(part)
    yield from _read_archive(file, part, options, _text_of_response)


def read_wet(file: BinaryIO, part: Part, options: ReadOptions) -> Iterator[Document | LongDocument | BadRecord]:
    """Every extracted text in an archive of conversion records, as it stands; its id is the address."""
    yield from _read_archive(file, part, options, _text_of_conversion)


def _read_archive(
    file: BinaryIO, part: Part, options: ReadOptions, text_of: TextOf
) -> Iterator[Document | LongDocument | BadRecord]:
    passed, num_documents = Counter[str](), 0
    try:
        for found in _texts(file, part, options, text_of, passed):
            num_documents += not isinstance(found, BadRecord)
            yield found
    except BrokenStream:
        _tell_passed(passed, num_documents, part)
        raise
    _tell_passed(passed, num_documents, part)


def _texts(
    file: BinaryIO, part: Part, options: ReadOptions, text_of: TextOf, passed: Counter[str]
) -> Iterator[Document | LongDocument | BadRecord]:
    """What the records hold; those of other kinds are counted in `passed`."""
    with tempfile.SpooledTemporaryFile(documents.MAX_DOCUMENT_BYTES) as aside:
        archive = _Archive(file, aside)
        for number in itertools.count():
            try:
                headers = archive.begin_record()
                if headers is None:
                    return
                try:
                    text = text_of(archive, headers, options)
                finally:
                    archive.end_record()  # a record that does not end where it says is none, whatever it held
                address = headers.get("warc-target-uri", "").strip("<> ") or None
                if isinstance(text, str):
                    yield Document(text, number, address)
                else:
                    yield LongDocument(iter(lambda: aside.read(BLOCK_BYTES), b""), number, address)
            except _PassedOver as error:
                passed[str(error)] += 1
            except _Refused as error:
                yield BadRecord(f"{part.path}: record {number}", str(error))


def _tell_passed(passed: Counter[str], num_documents: int, part: Part) -> None:
    """One line a file for records that might have held text: a warning where there was no other."""
    held = Counter({kind: number for kind, number in passed.items() if kind.partition(" ")[0] in HOLD_CONTENT})
    if not held:
        return
    listed = ", ".join(f"{kind} {number:,}" for kind, number in held.most_common(MOST_KINDS))
    more = ", ..." if len(held) > MOST_KINDS else ""
    remedy = next((f"; set format: {name}" for kind, name in READ_BY.items() if held[kind]), "")
    log.log(
        logging.INFO if num_documents else logging.WARNING,
        "%s: passed over %s of other kinds (%s%s)%s",
        documents.one_line(part.path),
        counted(held.total(), "record"),
        listed,
        more,
        remedy,
    )


class _Archive:
    """A stream of uncompressed WARC records, each begun, read as far as wanted, and ended.

    A record never goes on where another one begins with a stream of the compression (a member of gzip).
    """

    def __init__(self, file: BinaryIO, aside: IO[bytes]) -> None:
        self._file, self.aside = BeforeBreak(file), aside  # aside: for the text of a long record
        self._plain = file if file.seekable() else None
        self._starts: deque[int] = getattr(getattr(file, "raw", None), "starts", deque())
        self._position = self._content_start = 0  # of the next byte; of the content under way
        self._num_again = AGAIN_BYTES  # that may still be read a second time
        self._ahead: bytes | None = None  # a line that was read to see where a record ends
        self.num_left = 0  # bytes of the record under way

    def begin_record(self) -> dict[str, str] | None:
        """The headers of the next record, names in lower case; None at the end."""
        line = self._read_line()
        while line and not line.strip():
            line = self._read_line()
        if not line:
            self._file.end()
            return None
        if not line.startswith(WARC):
            self._find_record()
            raise _Refused("bytes that are no WARC record; fetch the file again, or set its format")
        head, num_bytes = [], 0
        while (line := self._read_line()).strip():
            head.append(line)
            num_bytes += len(line)
            if num_bytes > MAX_HEAD_BYTES:
                self._find_record()
                raise _Refused("headers of a WARC record without an end")
        if not line:
            self._file.end()
        headers = _headers(b"".join(head))
        length = headers.get("content-length", "")
        if not re.fullmatch("[0-9]{1,18}", length):
            self._find_record()
            raise _Refused("a WARC record without a Content-Length")
        self.num_left, self._content_start = int(length), self._position
        return headers

    def read(self, size: int) -> bytes:
        """So many bytes of the record under way; fewer at its end, or where another one begins."""
        pieces: list[bytes] = []
        size = min(size, self.num_left)
        while size and not self._begins_record():
            start = self._starts[0] if self._starts else self._position + size
            piece = self._file.read_some(min(size, start - self._position))
            if not piece:
                break
            pieces.append(piece)
            self._position += len(piece)
            self.num_left -= len(piece)
            size -= len(piece)
        return b"".join(pieces)

    def _begins_record(self) -> bool:
        """Whether a stream of the compression begins here, and a record with it."""
        if self._plain:
            return False
        ahead = self._file.peek()[: len(WARC)]
        while self._starts and self._starts[0] < self._position:
            self._starts.popleft()
        is_start = bool(self._starts) and self._starts[0] == self._position
        if is_start and not ahead.startswith(WARC[: len(ahead) or 1]):
            while self._starts and self._starts[0] == self._position:  # several, behind empty streams
                self._starts.popleft()
            return False
        return is_start

    def end_record(self) -> None:
        """Goes past what is left of a record, to the next one."""
        while self.num_left:
            if not self.read(1 << 20):
                num_missing, self.num_left = self.num_left, 0
                if self._begins_record():
                    raise _Refused("goes on, by its Content-Length, where the next member of the compression begins")
                self._file.end()
                self._find_record_within()
                raise _Refused(f"cut short: {counted(num_missing, 'byte')} missing at its end; fetch the file again")
        line = self._read_line()
        if line.startswith(WARC):
            self._ahead = line
        elif line.strip():
            self._find_record_within()
            raise _Refused("does not end where its Content-Length says")

    def _read_line(self) -> bytes:
        line = self._ahead
        if line is None:
            line = self._file.readline(MAX_HEAD_BYTES)
            self._position += len(line)
        self._ahead = None
        return line

    def _find_record_within(self) -> None:
        """The next record, which a wrong length may have taken for content; a plain file is read again for it."""
        num_again = self._position - self._content_start
        if self._plain and num_again <= self._num_again:
            self._num_again -= num_again
            self._plain.seek(self._content_start)
            self._position = self._content_start
        self._find_record()

    def _find_record(self) -> None:
        line = self._read_line()
        while line and not line.startswith(WARC):
            line = self._read_line()
        self._ahead = line or None


# The text of a record with these headers; _PassedOver where it is none of interest.
TextOf = Callable[[_Archive, dict[str, str], ReadOptions], str | IO[bytes]]


def _headers(head: bytes) -> dict[str, str]:
    """`Name: value` lines of a record or a response; the first of equal names counts."""
    headers: dict[str, str] = {}
    for line in head.decode("utf-8", "replace").split("\n"):
        name, _, value = line.partition(":")
        headers.setdefault(name.strip().lower(), value.strip())
    return headers


def _text_of_conversion(archive: _Archive, headers: dict[str, str], options: ReadOptions) -> str | IO[bytes]:
    kind = _content_type(headers)
    if headers.get("warc-type") != "conversion":
        raise _PassedOver(headers.get("warc-type", "none"))
    if kind.name != "text/plain":
        raise _PassedOver(f"conversion of {kind.name or 'no type'}")
    charset = kind.charset or options.encoding
    if archive.num_left > documents.MAX_DOCUMENT_BYTES:
        return _laid_aside(archive, charset, options)
    return _strictly(archive.read(archive.num_left), charset, options)


def _laid_aside(archive: _Archive, charset: str, options: ReadOptions) -> IO[bytes]:
    """A long text as UTF-8 in the archive's temporary file, until the record is known to be whole."""
    try:
        b"".decode(charset)
    except LookupError:
        charset = options.encoding
    archive.aside.seek(0)
    archive.aside.truncate()
    try:
        for words in codecs.iterdecode(iter(lambda: archive.read(BLOCK_BYTES), b""), charset, options.errors):
            archive.aside.write(whole_characters(words).encode())
    except UnicodeDecodeError:
        raise _Refused(f"its text is not {charset}; set encoding, or errors: replace") from None
    archive.aside.seek(0)
    return archive.aside


def _text_of_response(archive: _Archive, headers: dict[str, str], options: ReadOptions) -> str:
    if headers.get("warc-type") != "response":
        raise _PassedOver(headers.get("warc-type", "none"))
    if (protocol := _content_type(headers).name) != "application/http":
        raise _PassedOver(f"response of {protocol or 'no type'}")
    start = archive.read(MAX_HEAD_BYTES)
    found = re.match(rb"HTTP/[0-9.]+ +([0-9]{3})\b[^\n]*\n(.*?\n)??\r?\n", start, re.DOTALL)
    if not found:
        raise _Refused("a response without HTTP headers")
    http = _headers(found[2] or b"")
    kind = _content_type(http)
    if found[1] != b"200":
        raise _PassedOver(f"response {found[1].decode()}")
    if kind.name not in ("text/html", "application/xhtml+xml"):
        raise _PassedOver(f"response of {kind.name or 'no type'}")
    page = _whole_block(archive, start[found.end() :])
    if http.get("transfer-encoding", "").lower() == "chunked":
        page = _dechunked(page)
    return _main_text(_decoded(_decompressed(page, http), kind.charset, options))


def _whole_block(archive: _Archive, start: bytes) -> bytes:
    """All of a record, of which `start` was read before."""
    if len(start) + archive.num_left > record_limit():
        raise _Refused(larger_than_limit())
    return start + archive.read(archive.num_left)


class _ContentType(NamedTuple):
    name: str
    charset: str | None


def _content_type(headers: dict[str, str]) -> _ContentType:
    name, *parameters = headers.get("content-type", "").lower().split(";")
    charsets = (
        value.strip(" \"'") for key, _, value in (p.partition("=") for p in parameters) if key.strip() == "charset"
    )
    return _ContentType(name.strip(), next(charsets, None) or None)


def _dechunked(data: bytes) -> bytes:
    """The content of HTTP chunks; data as it is where an archiver had joined them and kept the header."""
    chunks, position = [], 0
    while size := re.compile(rb"\s*([0-9A-Fa-f]{1,8})[^\n]{0,200}\n").match(data, position):
        position = size.end() + int(size[1], 16)
        chunks.append(data[size.end() : position])
        if size.end() == position:
            break
    return b"".join(chunks) if chunks else data


def _decompressed(data: bytes, http: dict[str, str]) -> bytes:
    """Content without its Content-Encoding, which some archivers undo and do not strike out."""
    encoding = http.get("content-encoding", "").lower()
    if encoding in ("br", "zstd"):
        raise _Refused(f"a page in content encoding {encoding}, which is not read")
    is_gzip = data.startswith(b"\x1f\x8b")
    if not is_gzip and (encoding != "deflate" or data.lstrip().startswith(b"<")):
        return data
    has_zlib_header = len(data) > 1 and data[0] & 15 == 8 and (data[0] << 8 | data[1]) % 31 == 0
    wbits = 31 if is_gzip else 15 if has_zlib_header else -15
    try:
        data = zlib.decompressobj(wbits).decompress(data, record_limit() + 1)
    except zlib.error as error:
        raise _Refused(f"a page with a broken content encoding ({error})") from None
    if len(data) > record_limit():
        raise _Refused(larger_than_limit())
    return data


def _decoded(data: bytes, charset: str | None, options: ReadOptions) -> str:
    """A page as text, in the charset of its byte order mark, its transport, its head, or the options."""
    for bom, name in BOMS.items():
        if data.startswith(bom):
            return _strictly(data[len(bom) :], name, options)
    declared = CHARSET.search(data[:4096])
    label = charset or (declared[1].decode() if declared else options.encoding)
    try:
        name = codecs.lookup(label).name
    except (LookupError, ValueError):
        name = options.encoding
    return _strictly(data, options.encoding if name in NOT_CHARSETS else LABELS.get(name, name), options)


def _strictly(data: bytes, encoding: str, options: ReadOptions) -> str:
    try:
        return data.decode(encoding, options.errors)
    except UnicodeDecodeError as error:
        raise _Refused(f"byte {error.start} of the page is not {encoding}; set encoding, or errors: replace") from None
    except LookupError:  # no encoding, or one from bytes to bytes
        return _strictly(data, options.encoding, options)


def _check_trafilatura(part: Part) -> None:
    try:
        import trafilatura  # noqa: F401
    except ImportError as error:
        why = str(error).partition("\n")[0]
        raise UserError(f"{part.path}: reading html needs trafilatura ({why}); pip install 'hvdlm[text]'") from None
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)  # a line for every page without text


def _main_text(page: str) -> str:
    """A page without its navigation, its footers and the comments of its readers."""
    import trafilatura.meta

    if page.count("<") > MAX_TAGS:
        raise _Refused(f"a page of over {MAX_TAGS} tags")
    try:
        text = trafilatura.extract(page, include_comments=False, include_tables=True, with_metadata=False)
    except Exception as error:  # whatever a page from anywhere brings three parsers to
        raise _Refused(f"a page that trafilatura cannot read ({type(error).__name__})") from None
    if len(page) > CACHED_PAGE_CHARACTERS:
        trafilatura.meta.reset_caches()
    if not text or not text.strip():
        raise _Refused("a page without main text")
    return whole_characters(text)
