"""Texts line by line in several files (`format: parallel`): line n of each is one record.

The input names the files of the text; a field's key is the ending in which its file differs: train.en has train.de
beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from hvdlm.data.compression import open_plain
from hvdlm.errors import UserError

from ..documents import BadRecord, Document, Part, ReadOptions, Stamp, stamp_of, stat_of
from .sniffing import has_old_line_ends, head_of
from .text import LINES, RawRecord, chunks_of, decode, records

COUNT_BYTES = 1 << 20


def files_of(path: str, options: ReadOptions) -> list[str]:
    """The file of each field, in their order. UserError where one is not there."""
    if options.fields is None:
        raise UserError(f"{path}: parallel files are labelled records; set `fields`, each with the ending of its file")
    text, keys = options.fields.text, options.fields.keys
    own = keys[options.fields.names.index(text)]
    if not path.endswith(own):
        raise UserError(f"{path}: does not end with {own!r}; set fields.{text}.key to the ending of the input's files")
    files = [path.removesuffix(own) + key for key in keys]
    for file, name in zip(files, options.fields.names, strict=True):
        if not Path(file).is_file():
            raise UserError(f"{file}: is not there beside {path}; set fields.{name}.key to the ending of its file")
    return files


def read_parallel(file: BinaryIO, part: Part, options: ReadOptions) -> Iterator[Document | BadRecord]:
    """A record a line."""
    paths = files_of(part.path, options)
    stamps = [stamp_of(stat_of(path)) for path in paths]
    for path in paths:
        with open_plain(path) as one:
            if has_old_line_ends(head_of(one)):
                yield BadRecord(path, "carriage returns alone end its lines; write it with line feeds")
                return
    counts = [_num_lines(path) for path in paths]
    if len(set(counts)) > 1:
        told = ", ".join(f"{path} has {count}" for path, count in zip(paths, counts, strict=True))
        yield BadRecord(
            part.path, f"the files have different numbers of lines ({told}); mend them, so that each has as many"
        )
        return
    with ExitStack() as stack:
        texts = [_lines(stack.enter_context(open_plain(path)), Part(path, 0, None), options) for path in paths]
        for number, found in enumerate(zip(*texts, strict=True)):
            bad = next((one for one in found if isinstance(one, BadRecord)), None)
            if bad is not None:
                yield bad
            else:
                yield Document("", number, raw=found, place=f"{part.path}: line {number + 1}")
    _check_unchanged(paths, stamps)


def _check_unchanged(paths: Sequence[str], stamps: Sequence[Stamp]) -> None:
    """UserError for a file that was written to while it was read; the input itself is checked elsewhere."""
    for path, stamp in zip(paths, stamps, strict=True):
        if stamp_of(stat_of(path)) != stamp:
            raise UserError(f"{path}: changed while it was read; run the same command again")


def _lines(file: BinaryIO, part: Part, options: ReadOptions) -> Iterator[str | BadRecord]:
    found = records(file, part, LINES)
    last: list[RawRecord] = []  # what stands behind the last line end is a line where it holds something
    for record in found:
        yield from (_text(one, part, options) for one in last)
        if record.is_cut:
            size = sum(map(len, chunks_of(record, found)))
            yield BadRecord(f"{part.path}: byte {record.position}", f"a line of {size} bytes", record.position)
            last = []
        else:
            last = [record]
    yield from (_text(one, part, options) for one in last if one.data)


def _text(record: RawRecord, part: Part, options: ReadOptions) -> str | BadRecord:
    text = decode(record.data, record.position, part, options)
    return text.removesuffix("\r") if isinstance(text, str) else text


def _num_lines(path: str) -> int:
    """Line ends, and the last line where it has none."""
    count, last = 0, b"\n"
    with open_plain(path) as file:
        while block := file.read(COUNT_BYTES):
            count += block.count(b"\n")
            last = block[-1:]
    return count + (last != b"\n")
