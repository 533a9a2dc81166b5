"""Whatever a library raises over a document becomes a bad record with its place; what is no fault of it passes."""

from __future__ import annotations

from collections.abc import Iterator

from hvdlm.data.compression import open_plain
from hvdlm.errors import StoppedOnRequest, UserError
from hvdlm.tokenizer.backend import reason_of as told_by

from .documents import BadRecord, Document, Part, ReadOptions
from .readers import FORMATS, format_of, read_documents
from .readers.labelled import refused as of_record

PASSES = (UserError, StoppedOnRequest, OSError, KeyboardInterrupt, SystemExit, GeneratorExit)
MOST_SHOWN = 200  # characters of a library's message, which may hold the text


def reason_of(error: BaseException) -> str:
    """What a library raised, as part of one line; a Rust panic, which is no Exception, too.

    Raises what is not about the text: UserError, OSError, a stop; and a lack of memory as UserError, as another
    machine would have had enough and the output must not depend on it.
    """
    if isinstance(error, PASSES):
        raise error
    if isinstance(error, MemoryError):
        raise UserError("not enough memory for the document under way; start fewer ranks a node") from None
    message = told_by(error)[:MOST_SHOWN]
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def refused(document: Document, part: Part, options: ReadOptions, reason: str) -> BadRecord:
    """The bad record that a document is for `reason`."""
    return of_record(document, FORMATS[format_of(part.path, options.format)].counts, part, reason)


def place_of(position: int, part: Part, options: ReadOptions) -> str:
    """A document's place for a message."""
    return f"{part.path}: {FORMATS[format_of(part.path, options.format)].counts} {position}"


def line_or_place(position: int, part: Part, options: ReadOptions) -> str:
    """The same with a line number, which is counted, where there are lines."""
    if FORMATS[format_of(part.path, options.format)].counts == "byte":
        return line_of(part.path, position)
    return place_of(position, part, options)


def line_of(path: str, position: int) -> str:
    """`PATH:LINE` of a position in the uncompressed file; counted only when something is wrong there."""
    line = 1
    with open_plain(path) as file:
        while position > 0 and (block := file.read(min(position, 1 << 20))):
            line += block.count(b"\n") or block.count(b"\r")  # alone, as before Mac OS X
            position -= len(block)
    return f"{path}:{line}"


def found_in(part: Part, options: ReadOptions) -> Iterator[Document | BadRecord]:
    """`read_documents`, in which a library's surprise ends the part with a bad record."""
    try:
        yield from read_documents(part, options)
    except BaseException as error:
        yield BadRecord(part.path, f"cannot be read on from somewhere in it ({reason_of(error)}); make it again")
