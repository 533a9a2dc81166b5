"""ARPA text to the tables of an n-gram model, whoever wrote it; UserError that names file and line for what is none."""

from __future__ import annotations

import gzip
import logging
import math
import re
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from hvdlm.errors import UserError
from hvdlm.files import open_regular
from hvdlm.models.ngram.arpa import BEGIN, END, UNKNOWN, ZERO, ids_at
from hvdlm.models.ngram.kneser_ney import BackoffTable, find
from hvdlm.models.ngram.model import BackoffTrie

log = logging.getLogger("hvdlm")

LONGEST_LINE = 1 << 20
SIZE = re.compile(rb"ngram\s+(\d{1,3})\s*=\s*(\d{1,18})")
SPECIAL = {BEGIN, END, UNKNOWN, "<UNK>"}
NATS = math.log(10)
LN_ZERO = ZERO * NATS
REMEDY = "write the file anew, or copy it again"


class Section(NamedTuple):
    """The n-grams of one order as they stand in the file: (n, order) places in its list of words, log10 (n,) each."""

    words: np.ndarray
    probs: np.ndarray
    backoffs: np.ndarray


@dataclass(frozen=True)
class ArpaFile:
    """What stands in a file: the words in the order of section 0, which holds them alone."""

    path: Path
    words: list[str]
    sections: list[Section]

    @property
    def own_words(self) -> list[str]:
        """Without the border and the unknown word."""
        return [word for word in self.words if word not in SPECIAL]

    @property
    def reaches_across(self) -> bool:
        """Whether n-grams go on behind an end of text."""
        end = self.words.index(END) if END in self.words else -1
        return any((section.words[:, :-1] == end).any() for section in self.sections)


class _Lines:
    """The lines of a plain or gzipped file, stripped, with their numbers."""

    def __init__(self, path: Path) -> None:
        self.path, self.number = path, 0

    def __iter__(self) -> Iterator[bytes]:
        try:
            with open_regular(self.path) as raw:
                is_packed = raw.read(2) == b"\x1f\x8b"
                raw.seek(0)
                with gzip.open(raw) if is_packed else raw as file:
                    while line := file.readline(LONGEST_LINE):
                        self.number += 1
                        if len(line) == LONGEST_LINE:
                            raise self.fault("a line of more than a MiB: is no ARPA file")
                        yield line.strip()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{self.path}: is damaged or cut short ({error}); copy it again") from None

    def fault(self, what: str) -> UserError:
        return UserError(f"{self.path}: line {self.number}: {what}")


def parse_arpa(path: Path) -> ArpaFile:
    """What an ARPA file says."""
    lines = _Lines(path)
    rest = iter(lines)
    if b"\\data\\" not in rest:  # whatever stands before is a comment
        raise UserError(f"{path}: has no line \\data\\: is no ARPA file")
    sizes, title = _sizes(lines, rest)
    sections: list[Section] = []
    place_of: dict[bytes, int] = {}
    for order, size in enumerate(sizes, 1):
        if title != f"\\{order}-grams:".encode():
            raise lines.fault(f"\\{order}-grams: is expected here; {REMEDY}")
        section, title = _section(lines, rest, place_of, order)
        if len(section.probs) != size:
            raise lines.fault(f"{len(section.probs)} {order}-grams end here, \\data\\ says {size}; {REMEDY}")
        sections.append(section)
    if title != b"\\end\\":
        raise lines.fault(f"\\end\\ is expected here; {REMEDY}")
    try:
        return ArpaFile(path, [word.decode() for word in place_of], sections)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the word {error.object!r} is not UTF-8; convert the file") from None


def _sizes(lines: _Lines, rest: Iterator[bytes]) -> tuple[list[int], bytes]:
    """How many n-grams of each order there are, and the line that comes after."""
    sizes: list[int] = []
    for line in rest:
        if line.startswith(b"\\"):
            break
        found = SIZE.fullmatch(line)
        if line and (found is None or int(found[1]) != len(sizes) + 1):
            raise lines.fault(f"`ngram {len(sizes) + 1}=NUMBER` is expected here; {REMEDY}")
        if found:
            sizes.append(int(found[2]))
    else:
        line = b""
    if not sizes:
        raise lines.fault(f"\\data\\ names no number of n-grams; {REMEDY}")
    return sizes, line


def _section(lines: _Lines, rest: Iterator[bytes], place_of: dict[bytes, int], order: int) -> tuple[Section, bytes]:
    """The n-grams of one order, and the line that comes after them. Single words are given their places."""
    words, probs, backoffs = array("q"), array("d"), array("d")
    end = b""
    for line in rest:
        if line.startswith(b"\\") and line.endswith((b"-grams:", b"\\end\\")):
            end = line
            break
        parts = line.split()
        if not parts:
            continue
        if len(parts) not in (order + 1, order + 2):
            raise lines.fault(f"{len(parts)} columns, a {order}-gram has {order + 1} or {order + 2}; {REMEDY}")
        if order == 1 and place_of.setdefault(parts[1], len(place_of)) != len(probs):
            raise lines.fault(f"{parts[1].decode(errors='replace')!r} stands here again; {REMEDY}")
        try:
            prob = float(parts[0])
            backoff = float(parts[order + 1]) if len(parts) > order + 1 else 0.0
            words.extend([place_of[word] for word in parts[1 : order + 1]])
        except (ValueError, KeyError) as error:
            what = f"{error.args[0].decode(errors='replace')!r} is no 1-gram" if isinstance(error, KeyError) else error
            raise lines.fault(f"{what}; {REMEDY}") from None
        if not prob <= 0 or not backoff < math.inf:
            raise lines.fault(f"log10 of a probability is at most 0, and that of a backoff finite; {REMEDY}")
        probs.append(max(prob, ZERO))
        backoffs.append(max(backoff, ZERO))
    return Section(np.array(words).reshape(-1, order), np.array(probs), np.array(backoffs)), end


def tables_of(arpa: ArpaFile, names: Sequence[str]) -> list[BackoffTable]:
    """The tables for a vocabulary of these names, in which every word of the file must be.

    Ids that the file does not have get a probability of 10^-99, with a remark. Beginnings of n-grams that are not
    there, as in a pruned file, get the probability that they have by backing off.
    """
    token_of = _tokens(arpa, names)
    begin = arpa.words.index(BEGIN) if BEGIN in arpa.words else -1
    parts = []
    for section in arpa.sections[1:]:
        if (section.words[:, 1:] == begin).any():
            raise UserError(f"{arpa.path}: has <s> within an n-gram; {REMEDY}")
        ids = token_of[section.words]
        keep = (ids >= 0).all(1)
        parts.append(Section(ids[keep], section.probs[keep], section.backoffs[keep]))
    tables = [_unigrams(arpa, token_of, len(names))]
    for ids, probs, backoffs in _with_beginnings(parts):
        logs = probs * NATS
        if (is_new := np.isnan(probs)).any():
            logs[is_new] = _backed_off(tables, ids[is_new])
        tables.append(_level(arpa.path, tables, Section(ids, logs, backoffs * NATS)))
    return tables


def _tokens(arpa: ArpaFile, names: Sequence[str]) -> np.ndarray:
    """The ids of the file's words; <s> and </s> are one, and -1 is an unknown word in a vocabulary that has none."""
    token_of = {name: token for token, name in enumerate(names)}
    unknown = token_of.get(UNKNOWN, -1)
    known = {**token_of, BEGIN: token_of[END], UNKNOWN: unknown, "<UNK>": token_of.get("<UNK>", unknown)}
    if (word := next((word for word in arpa.words if word not in known), None)) is not None:
        raise UserError(
            f"{arpa.path}: has the word {word!r}, which the vocabulary has not; leave --data out to take the file's own"
            " words"
        )
    if unknown < 0 and UNKNOWN in arpa.words:
        log.warning("%s: has %s, the vocabulary has not: its probability is lost", arpa.path, UNKNOWN)
    return np.array([known[word] for word in arpa.words], np.int64)


def _unigrams(arpa: ArpaFile, token_of: np.ndarray, vocab_size: int) -> BackoffTable:
    """</s> gives the probability of an end of text, and its backoff where <s> gives none."""
    log_probs, log_backoffs = np.full(vocab_size, LN_ZERO), np.zeros(vocab_size)
    places, probs, backoffs = arpa.sections[0]
    is_begin = np.array([word == BEGIN for word in arpa.words])
    tokens = token_of[places[:, 0]]
    is_word = (tokens >= 0) & ~is_begin
    log_probs[tokens[is_word]] = probs[is_word] * NATS
    log_backoffs[tokens[is_word]] = backoffs[is_word] * NATS
    is_begin &= backoffs != 0
    log_backoffs[tokens[is_begin]] = backoffs[is_begin] * NATS
    if num := vocab_size - len(set(tokens[is_word].tolist())):
        log.warning("%s: lacks %d of the vocabulary's %d ids, which get a probability of 0", arpa.path, num, vocab_size)
    return BackoffTable(np.arange(vocab_size), log_probs, log_backoffs)


def _with_beginnings(parts: list[Section]) -> list[Section]:
    """Sections of ids, with NaN for the probability of n-grams that are not there and that longer ones begin with."""
    completed = list(parts)
    for number in range(len(parts) - 1, 0, -1):
        level, probs, backoffs = completed[number - 1]
        needed = np.unique(completed[number][0][:, :-1], axis=0)
        both = np.concatenate((level, needed))
        _, first, num = np.unique(both, axis=0, return_index=True, return_counts=True)
        missing = first[(num == 1) & (first >= len(level))]
        unknown, none = np.full(len(missing), np.nan), np.zeros(len(missing))
        added = np.concatenate((probs, unknown)), np.concatenate((backoffs, none))
        completed[number - 1] = Section(np.concatenate((level, both[missing])), *added)
    return completed


def _backed_off(tables: list[BackoffTable], ids: np.ndarray) -> np.ndarray:
    """Log-probabilities of last words (n,) of n-grams one longer than those of the tables."""
    nothing = BackoffTable(np.empty(0, np.int64), np.empty(0), np.empty(0))
    trie = BackoffTrie([*tables, nothing])
    seen = torch.from_numpy(np.concatenate((np.full((len(ids), 1), -1), ids[:, :-1]), 1))
    return trie.log_probs(trie.places(seen), torch.from_numpy(ids[:, -1:].copy()))[:, 0].numpy()


def _level(path: Path, tables: list[BackoffTable], part: Section) -> BackoffTable:
    """A level of the trie above the tables that are there, from ids and nats."""
    ids, log_probs, log_backoffs = part
    order, vocab_size = ids.shape[1], len(tables[0].keys)
    place = ids[:, 0]
    for table, column in zip(tables[1:], ids.T[1:], strict=False):
        place = find(table.keys, place * vocab_size + column)
    keys = place * vocab_size + ids[:, -1]
    ascending = np.argsort(keys, kind="stable")
    table = BackoffTable(keys[ascending], log_probs[ascending], log_backoffs[ascending])
    twice = np.flatnonzero(table.keys[1:] == table.keys[:-1])
    if twice.size:
        found = ids_at([*tables, table], order, twice[:1])[0].tolist()
        raise UserError(f"{path}: has a {order}-gram twice, of the ids {found}; {REMEDY}")
    return table
