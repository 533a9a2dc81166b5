"""Words in columns: a line a word, a blank line between sentences (CoNLL), and CoNLL-U with its frames.

A field's key is the number of a column, negative ones from the end; of CoNLL-U its name. The text is the list of words,
labels are those of a column.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO, NamedTuple

from hvdlm.errors import UserError
from hvdlm.records.fields import Fields
from hvdlm.tables import counted

from ..documents import BadRecord, Document, Part, ReadOptions
from .text import BLANK_LINES, chunks_of, decode, records

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


def fit_conll(fields: Fields) -> Fields:
    """UserError for a field that no column can be."""
    for name, field in fields.items():
        _number(name, field.key or name, field.type)
    return fields


def fit_conllu(fields: Fields) -> Fields:
    """The same; roles are spans, written as BIO."""
    keys = {name: _named(name, field.key or name, field.type) for name, field in fields.items()}
    return {
        name: field.model_copy(update={"scheme": "BIO"})
        if keys[name] == ROLES and "scheme" not in field.model_fields_set
        else field
        for name, field in fields.items()
    }


def read_conll(file: BinaryIO, part: Part, options: ReadOptions) -> Iterator[Document | BadRecord]:
    """A record a sentence; by default the first column has the words and the last one the labels."""
    columns = {name: _number(name, key, kind) for name, key, kind in _keys(part, options)}
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
        elif reason := _lacking(columns, width):
            yield BadRecord(f"{part.path}: byte {position}", reason, position)
        else:
            yield Document(
                "", position, raw=tuple([line.cells[column] for line in lines] for column in columns.values())
            )


def _lacking(columns: Mapping[str, int], width: int) -> str:
    """What is wrong with the fields' columns in lines of `width` of them."""
    there = counted(width, "column")
    owners: dict[int, str] = {}
    for name, column in columns.items():
        if not -width <= column < width:
            return f"has {there}, and no column {column}; set fields.{name}.key"
        other = owners.setdefault(column % width, name)
        if other != name:
            return f"has {there}, and column {column} is that of {other} and of {name}; set fields.{name}.key"
    return ""


def read_conllu(file: BinaryIO, part: Part, options: ReadOptions) -> Iterator[Document | BadRecord]:
    """A record a sentence, or where roles are asked for one of each predicate (Universal Propositions)."""
    wanted = [_named(*of_field) for of_field in _keys(part, options)]
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
        if len(frames) > 1 and PREDICATE not in wanted:
            raise UserError(
                f"{part.path}: byte {position}: a sentence has roles of {len(frames)} predicates, a record of one, and"
                f" no field says which; add {PREDICATE}: number to fields"
            )
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
    """The column of CoNLL that a field is."""
    _check_type(name, kind, ("text", "labels"), "a column of words")
    if key.removeprefix("-").isdecimal():
        return int(key)
    if key == name:
        return 0 if kind == "text" else -1
    raise UserError(f"fields.{name}.key: {key!r} is no number of a column; CoNLL has no names; set 0, 1 … or -1")


def _named(name: str, key: str, kind: str) -> str:
    """The column of CoNLL-U that a field is, or what it is of its frames."""
    if kind == "text" and key == name and key not in NAMES:
        return "form"
    if key not in NAMES:
        near = difflib.get_close_matches(key, NAMES, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise UserError(f"fields.{name}.key: CoNLL-U has no {key!r}{hint}; set it to one of {', '.join(NAMES)}")
    types = {ROLES: ("labels",), PREDICATE: ("number",)}
    _check_type(name, kind, types.get(key, ("text", "labels")), f"{key} of CoNLL-U")
    return key


def _check_type(name: str, kind: str, types: Sequence[str], what: str) -> None:
    if kind not in types:
        raise UserError(f"fields.{name}.type: {what} is of type {' or '.join(types)}, not {kind}")


def _sentences(
    file: BinaryIO, part: Part, options: ReadOptions, *, comments: bool
) -> Iterator[tuple[int, list[Line]] | BadRecord]:
    """Lines of words, sentence by sentence, with the place of its first byte."""
    found = records(file, part, BLANK_LINES)
    for record in found:
        if record.is_cut:
            size = sum(map(len, chunks_of(record, found)))
            place = f"{part.path}: byte {record.position}"
            yield BadRecord(place, f"{size} bytes without an empty line; put one between sentences", record.position)
            continue
        text = decode(record.data, record.position, part, options)
        if isinstance(text, BadRecord):
            yield text
            continue
        for lines in _parted(record.position, text, comments=comments):
            yield lines[0].position, lines


def _parted(position: int, text: str, *, comments: bool) -> Iterator[list[Line]]:
    """Lines of words between blank ones: BLANK_LINES knows none of more than 80 blanks, or of another white space."""
    lines: list[Line] = []
    for line in text.split("\n"):
        is_mark = line.startswith(DOCUMENT_MARK) or (comments and line.startswith("#"))
        if not line.strip():
            if lines:
                yield lines
            lines = []
        elif not is_mark:
            lines.append(Line(position, line.rstrip("\r").split("\t") if "\t" in line else line.split()))
        position += len(line.encode()) + 1
    if lines:
        yield lines
