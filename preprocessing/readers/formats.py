"""Parts of files to documents: FORMATS is the one list of what can be read."""

from __future__ import annotations

import codecs
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

from hvdlm.errors import UserError
from hvdlm.records.fields import Fields
from hvdlm.tables import counted

from ..compression import BrokenStream, break_of, is_compressed, open_plain, plain_suffix
from ..documents import BadRecord, Document, LongDocument, Part, ReadOptions, one_line
from . import columnar, conll, delimited, json_values, jsonl, parallel, squad, text, web
from .cutting import in_pieces
from .encodings import Recoded
from .labelled import any_fields, typed
from .sniffing import foreign, has_old_line_ends, head_of, looks_like_utf8, markup, other_kind, with_new_line_ends

log = logging.getLogger("hvdlm")

Reader = Callable[[BinaryIO, Part, ReadOptions], Iterator[Document | LongDocument | BadRecord]]


@dataclass(frozen=True)
class Format:
    """One way that documents lie in a file."""

    read: Reader
    suffixes: tuple[str, ...] = ()
    splittable: bool = False  # byte ranges can be read apart
    has_lines: bool = True  # line ends part its records; else they are text like any other
    is_table: bool = False  # of JSON records or of rows: no markup
    is_text: bool = True  # made of characters in `encoding`, not of a binary layout of its own
    counts: str = "byte"  # what a document's position is the number of
    fit: Callable[[Fields], Fields] | None = None  # of records: fields as it gives them; UserError for what it cannot


FORMATS: dict[str, Format] = {
    "txt": Format(text.read_file, (".txt",), splittable=True, has_lines=False),
    "paragraphs": Format(partial(text.read_between, boundary=text.BLANK_LINES), splittable=True),
    "separated": Format(text.read_separated, splittable=True),
    "lines": Format(partial(text.read_between, boundary=text.LINES), splittable=True),
    "wikitext": Format(partial(text.read_between, boundary=text.ARTICLES), (".tokens",), splittable=True),
    "md": Format(text.read_file, (".md", ".markdown"), splittable=True, has_lines=False),
    "jsonl": Format(jsonl.read_json_lines, (".jsonl", ".ndjson"), splittable=True, is_table=True, fit=any_fields),
    "json": Format(json_values.read_json, (".json",), is_table=True, fit=any_fields),
    "csv": Format(
        partial(delimited.read_rows, dialect=delimited.CSV), (".csv",), is_table=True, counts="row", fit=any_fields
    ),
    "tsv": Format(
        partial(delimited.read_rows, dialect=delimited.TSV), (".tsv",), is_table=True, counts="row", fit=any_fields
    ),
    "parquet": Format(columnar.read_parquet, (".parquet",), is_text=False, counts="row", fit=any_fields),
    "arrow": Format(columnar.read_arrow, (".arrow", ".feather", ".ipc"), is_text=False, counts="row", fit=any_fields),
    "conll": Format(conll.read_conll, (".conll", ".bio", ".bmes", ".bioes"), splittable=True, fit=conll.fit_conll),
    "conllu": Format(conll.read_conllu, (".conllu",), splittable=True, fit=conll.fit_conllu),
    "squad": Format(squad.read_squad, is_table=True, counts="question", fit=any_fields),
    "parallel": Format(parallel.read_parallel, counts="line", fit=any_fields),
    "html": Format(web.read_html, (".html", ".htm", ".xhtml"), is_text=False),
    "warc": Format(web.read_warc, (".warc",), is_text=False, counts="record"),
    "wet": Format(web.read_wet, (".wet",), is_text=False, counts="record"),
}
OTHER_TABLES = {
    ".orc": "an ORC table; write it as parquet",
    ".avro": "an Avro table; write it as parquet",
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "a spreadsheet; save it as csv"),
    **dict.fromkeys((".sqlite", ".sqlite3", ".db"), "a database; export its table as csv"),
    **dict.fromkeys((".pkl", ".pickle"), "a pickle, which may run code; write it as parquet or jsonl"),
    **dict.fromkeys((".tar", ".tgz", ".tbz2", ".txz", ".zip", ".7z", ".rar"), "an archive of files; unpack it"),
    **dict.fromkeys((".lz4", ".br", ".z", ".lz", ".sz"), "compressed in a way that is not read; unpack it"),
}  # what is met in folders of data and not read
SUFFIXES = {suffix: name for name, format_ in FORMATS.items() for suffix in format_.suffixes}


def format_of(path: str, asked: str) -> str:
    """The format of a file: as asked, else by its suffix before that of a compression."""
    if asked != "auto":
        return asked
    suffix = plain_suffix(path)
    if suffix in OTHER_TABLES:
        raise UserError(f"{path}: is {OTHER_TABLES[suffix]}, or name the files you mean by a glob")
    if suffix not in SUFFIXES:
        raise UserError(
            f"{path}: cannot tell its format from {suffix or 'no suffix'!r}; set format: {', '.join(FORMATS)}; "
            "or name the files you mean by a glob"
        )
    return SUFFIXES[suffix]


def check_formats(paths: Iterable[str], asked: str) -> None:
    """UserError for a file that cannot be read; a remark on several formats, as of a README beside data."""
    first: dict[str, str] = {}
    number = Counter[str]()
    for path in paths:
        if not os.access(path, os.R_OK):
            raise UserError(f"{one_line(path)}: may not be read (permission denied)")
        name = format_of(path, asked)
        first.setdefault(name, path)
        number[name] += 1
    if len(number) > 1:
        told = "; ".join(
            f"{counted(n, 'file')} as {name}, such as {one_line(first[name])}" for name, n in number.items()
        )
        log.warning("the input is of several formats: %s. If not all are data, name those that are by a glob", told)


def first_of_formats(paths: Iterable[str], asked: str) -> dict[str, str]:
    """The first of some files in each of the formats that they have."""
    first: dict[str, str] = {}
    for path in paths:
        first.setdefault(format_of(path, asked), path)
    return first


def fitted(fields: Fields, paths: Iterable[str], asked: str) -> Fields:
    """Fields as the formats of these files give them; UserError for one that one of them cannot give."""
    for name, path in first_of_formats(paths, asked).items():
        fit = FORMATS[name].fit
        if fit is None:
            able = ", ".join(name for name, format_ in FORMATS.items() if format_.fit)
            raise UserError(
                f"{one_line(path)}: fields: {name} has texts alone; labelled records are of format: {able}; or name"
                " the files you mean by a glob"
            )
        try:
            fields = fit(fields)
        except UserError as error:
            raise UserError(f"{one_line(path)}: {error}") from None
    return fields


def can_split(path: str, options: ReadOptions) -> bool:
    """Whether byte ranges of this file can be read apart."""
    name = format_of(path, options.format)
    return (
        FORMATS[name].splittable
        and codecs.lookup(options.encoding).name == "utf-8"
        and not (name == "separated" and text.overlaps_itself(options.separator))
        and not is_compressed(path)
        and not (FORMATS[name].has_lines and _has_old_line_ends(path))
    )


def _has_old_line_ends(path: str) -> bool:
    try:
        with open_plain(path) as file:
            return has_old_line_ends(head_of(file))
    except OSError:  # told by who reads it
        return False


def read_documents(part: Part, options: ReadOptions) -> Iterator[Document | BadRecord]:
    """The documents that start in a part, in file order, and what is none of them.

    A UserError is a mistake in the settings or a file that cannot be opened; bad content never is one.
    """
    name = format_of(part.path, options.format)
    format_ = FORMATS[name]
    try:
        with open_plain(part.path) as file:
            if format_.is_text:
                yield from _read_text(format_, file, part, options)
            elif reason := other_kind(name, head_of(file)):
                yield BadRecord(part.path, reason)
            else:
                yield from _given(format_, file, part, options)
    except UnicodeError as error:  # of a whole stream, such as UTF-16 without a byte order mark
        yield BadRecord(part.path, f"is not {options.encoding} ({error}); set another encoding")
    except OSError as error:
        if error.errno is not None:
            raise UserError(f"{part.path}: cannot read it ({error.strerror})") from None
        yield BadRecord(part.path, f"is broken ({error}); fetch it again")
    except BrokenStream as error:
        yield BadRecord(part.path, str(error))
    except UserError:  # such as names of columns that are noise
        broken = break_of(part.path)
        if broken is None:
            raise
        yield BadRecord(part.path, str(broken))


def _given(format_: Format, file: BinaryIO, part: Part, options: ReadOptions) -> Iterator[Document | BadRecord]:
    """What a reader gives: texts in pieces, and labelled records typed."""
    found = in_pieces(format_.read(file, part, options), part, options)
    return typed(found, format_.counts, part, options.fields) if options.fields else found


def _read_text(format_: Format, file: BinaryIO, part: Part, options: ReadOptions) -> Iterator[Document | BadRecord]:
    """What a format of characters reads, if there are any; in its encoding, with its line ends."""
    head = head_of(file)
    may_be_markup = not format_.is_table or options.table.header is not None
    if reason := foreign(head, options.encoding) or (None if may_be_markup else markup(head)):
        if part.start == 0:  # once a file, whoever reads the rest of it
            yield BadRecord(part.path, reason)
        return
    if looks_like_utf8(head, options.encoding):
        log.warning(
            "%s: is read as %s, and looks like UTF-8 by its first bytes; if its text is noise, set encoding: utf-8",
            one_line(part.path),
            options.encoding,
        )
    recoded = Recoded(file, options) if codecs.lookup(options.encoding).name != "utf-8" else None
    if recoded:
        file, head = recoded.file, head_of(recoded.file)
    if format_.has_lines and has_old_line_ends(head):
        file = with_new_line_ends(file)
    given = _given(format_, file, part, options)
    if recoded is None:
        yield from given
        return
    for found in given:
        yield recoded.explained(found, part) if isinstance(found, BadRecord) else found
