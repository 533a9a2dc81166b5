"""Words in columns: a line a word, a blank line between sentences (CoNLL), and CoNLL-U with its frames.

A field's key is the number of a column, negative ones from the end; of CoNLL-U also its name. The text is the list of
words, labels are those of a column.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

from hvdlm.errors import UserError

from ..documents import BadRecord, Document, Part, ReadOptions
from .text import BLANK_LINES, RawRecord, chunks_of, decode, records

DOCUMENT_MARK = "-DOCSTART-"
NOTHING = "_"  # of CoNLL-U
OUTSIDE = "O"
UNIVERSAL = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
WORD_NUMBER = re.compile(r"\d+([-.]\d+)?")  # of a word, of a range of them, of an empty node
ROLES, PREDICATE = "roles", "predicate"  # keys of what frames give: the roles of a predicate's words, and its place
NAMES = (*UNIVERSAL, ROLES, PREDICATE)


class Line(NamedTuple):
    """A word's."""

    position: int
    cells: list[str]


def read_conll(file: BinaryIO, part: Part, options: ReadOptions) -> Iterator[Document | BadRecord]:
    """A record a sentence; by default the first column has the words and the last one the labels."""
    keys = _keys(part, options)
    columns = [_number(name, key, kind) for name, key, kind in keys]
    for found in _sentences(file, part, options, comments=False):
        if isinstance(found, BadRecord):
            yield found
            continue
        position, lines = found
        width = len(lines[0].cells)
        odd = next((line for line in lines if len(line.cells) != width), None)
        if odd is not None:
            reason = f"has {len(odd.cells)} columns, the lines before it {width}; mend it, or put a blank line between"
            yield BadRecord(f"{part.path}: byte {odd.position}", reason, odd.position)
            continue
        lacking = next((column for column in columns if not -width <= column < width), None)
        if lacking is not None:
            yield BadRecord(
                f"{part.path}: byte {position}", f"has {width} columns, and no column {lacking}; set its key", position
            )
            continue
        yield Document("", position, raw=tuple([line.cells[column] for line in lines] for column in columns))


def read_conllu(file: BinaryIO, part: Part, options: ReadOptions) -> Iterator[Document | BadRecord]:
    """A record a sentence, or where roles are asked for one of each predicate (Universal Propositions)."""
    wanted = []
    for name, key, kind in _keys(part, options):
        is_said = key != name or key in NAMES
        wanted.append(key if is_said else "form" if kind == "text" else "upos")
    for key in wanted:
        if key not in NAMES:
            known = ", ".join(NAMES)
            raise UserError(f"{part.path}: CoNLL-U has no column {key!r}; a field's key is one of {known}")
    has_frames = ROLES in wanted or PREDICATE in wanted
    for found in _sentences(file, part, options, comments=True):
        if isinstance(found, BadRecord):
            yield found
            continue
        position, lines = found
        words = [line for line in lines if line.cells[0].isdigit()]  # neither ranges of words nor empty nodes
        odd = next((line for line in lines if not WORD_NUMBER.fullmatch(line.cells[0])), None)
        if odd is not None:
            reason = f"begins with {odd.cells[0][:20]!r}, and each line of CoNLL-U with its word's number"
            yield BadRecord(f"{part.path}: byte {odd.position}", reason, odd.position)
            continue
        odd = next((line for line in words if len(line.cells) < len(UNIVERSAL)), None)
        if odd is not None:
            reason = f"has {len(odd.cells)} columns, CoNLL-U has {len(UNIVERSAL)}, parted by tabs"
            yield BadRecord(f"{part.path}: byte {odd.position}", reason, odd.position)
            continue
        frames = _frames(words) if has_frames else [(0, [])]
        if frames is None:
            reason = "its frames are not a column of predicates and one of roles for each of them"
            yield BadRecord(f"{part.path}: byte {position}", reason, position)
            continue
        for predicate, roles in frames:
            own = {ROLES: roles, PREDICATE: predicate}
            raw = [own[key] if key in own else [line.cells[UNIVERSAL.index(key)] for line in words] for key in wanted]
            yield Document("", position, raw=tuple(raw))


def _frames(words: Sequence[Line]) -> list[tuple[int, list[str]]] | None:
    """Each predicate's place, and the roles of all words to it as BIO; None where the columns do not fit together."""
    width = {len(word.cells) for word in words}
    if len(width) != 1:
        return None
    (num_columns,) = width
    for column in (len(UNIVERSAL), len(UNIVERSAL) + 1):  # the predicate's sense; some have a flag before it
        if num_columns <= column:
            return []
        places = [place for place, word in enumerate(words) if word.cells[column] != NOTHING]
        if num_columns == column + 1 + len(places):
            break
    else:
        return None
    found = []
    for nth, place in enumerate(places):
        roles = [word.cells[column + 1 + nth] for word in words]
        found.append((place, [OUTSIDE if role == NOTHING else f"B-{role}" for role in roles]))
    return found


def _keys(part: Part, options: ReadOptions) -> list[tuple[str, str, str]]:
    """Name, key and type of each field."""
    if options.fields is None:
        raise UserError(
            f"{part.path}: words in columns are labelled records; set `fields`, as text: text, tags: labels"
        )
    entries = options.fields.entries
    return [(name, key, entries[name].type) for name, key in zip(entries, options.fields.keys, strict=True)]


def _number(name: str, key: str, kind: str) -> int:
    if key.removeprefix("-").isdigit():
        return int(key)
    if key == name and kind in ("text", "labels"):
        return 0 if kind == "text" else -1
    raise UserError(f"fields.{name}.key: {key!r} is no number of a column; CoNLL has no names: set 0, 1 … or -1")


def _sentences(
    file: BinaryIO, part: Part, options: ReadOptions, *, comments: bool
) -> Iterator[tuple[int, list[Line]] | BadRecord]:
    """Lines of words, sentence by sentence, with the place of its first byte."""
    found = records(file, part, BLANK_LINES)
    for record in found:
        if record.is_cut:
            size = sum(map(len, chunks_of(record, found)))
            place = f"{part.path}: byte {record.position}"
            yield BadRecord(place, f"{size} bytes without a blank line", record.position)
            continue
        text = decode(record.data, record.position, part, options)
        if isinstance(text, BadRecord):
            yield text
            continue
        lines = list(_lines(record, text, comments=comments))
        if lines:
            yield lines[0].position, lines


def _lines(record: RawRecord, text: str, *, comments: bool) -> Iterator[Line]:
    position = record.position
    for line in text.split("\n"):
        is_mark = line.startswith(DOCUMENT_MARK) or (comments and line.startswith("#"))
        if line.strip() and not is_mark:
            yield Line(position, line.rstrip("\r").split("\t") if "\t" in line else line.split())
        position += len(line.encode()) + 1
