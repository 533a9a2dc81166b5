"""Excerpts of a unit's text, the rarest and some ordinary ones: their ids are proven, and decoded again.

Encoders part, and vocabularies lose text, where text is unusual. So while a unit's documents stream by, a few
excerpts of them are kept: around the characters that were met last for the first time, of each unusual category of
Unicode, around names of special tokens, and of documents from everywhere in the unit. They follow from the unit
alone, so they are the same on whatever rank and after whatever kill.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from hvdlm.errors import UserError
from hvdlm.tokenizer import FastTokenizer, Tokenizer, loss_of
from hvdlm.tokenizer.backend import ENDS, BackendTokenizer
from hvdlm.tokenizer.interface import UNKNOWN, code_points
from hvdlm.tokenizer.word import WordTokenizer

from .documents import Document
from .fence import reason_of

NUM_CODE_POINTS = 0x110000
GROUP_CHARACTERS = 1 << 16  # of text looked through at once; more would leave the cache
MANY_UNITS = 8  # beyond which not every one is looked at, where encoding is fast
NEW_AT_ONCE = 1 << 10  # characters of a group that are met one by one before the others are compared with them
ALL = 1 << 62  # groups
MOST_NAMES = 8  # of special and added tokens
UNUSUAL = {"Cc", "Cf", "Cn", "Co", "Lt", "Mc", "Me", "Mn", "Nl", "No", "Zl", "Zp", "Zs"}  # categories of Unicode
BEYOND_BMP = "beyond U+FFFF"
SPACE = re.compile(r"\s")
ORDINARY = bytes([*b"\t\n\r", *range(0x20, 0x7F)])  # characters that no vocabulary finds unusual


class Excerpt(NamedTuple):
    """Text from a document; `ids` are those that go into the shards, where it is all of its document."""

    text: str
    position: int  # of the document
    part: int
    ids: np.ndarray | None = None  # eos among them


class OtherIds(Exception):
    """This excerpt went to other ids than the exact encoder gives it."""

    def __init__(self, excerpt: Excerpt) -> None:
        super().__init__(excerpt)
        self.excerpt = excerpt


@dataclass(frozen=True)
class Care:
    """How much is looked at, so that it costs about a hundredth of what encoding does."""

    units: int  # of which one is looked at
    groups: int  # of each 4 MB of text that are looked through
    rare: int  # excerpts around the characters that were met last for the first time
    documents: int  # from everywhere in the unit, of which there are excerpts
    characters: int  # of an excerpt
    names: tuple[str, ...]  # that are searched for


def care_for(tokenizer: Tokenizer, num_units: int) -> Care:
    """All that streams by, but of encoders of 100 MB/s, of which most lose nothing, as much as is cheap."""
    if isinstance(tokenizer, FastTokenizer) or tokenizer.kind == "byte":  # no character is taken unproven
        return Care(1 + num_units // MANY_UNITS, 2, 2, 1, 96, ())
    if tokenizer.kind in ("char", "word"):  # 10 to 50 MB/s
        return Care(1, 16, 8, 8, 128, ())
    own = tokenizer.added_names if isinstance(tokenizer, BackendTokenizer) else []
    return Care(1, ALL, 16, 16, 256, tuple(dict.fromkeys([*own, *ENDS, UNKNOWN]))[:MOST_NAMES])


class Excerpts:
    """Those of the unit that streams by."""

    def __init__(self, care: Care) -> None:
        self._care = care
        self._met = np.zeros(NUM_CODE_POINTS, dtype=bool)
        self._met[np.frombuffer(ORDINARY, np.uint8)] = True
        self._rare: deque[Excerpt] = deque(maxlen=care.rare)
        self._named: dict[str, Excerpt] = {}  # by category of Unicode or name of a token
        self._spread: list[Excerpt] = []
        self._stride = 1  # every so many documents one is in `_spread`
        self._num_documents = 0

    def __iter__(self) -> Iterator[Excerpt]:
        return itertools.chain(self._spread, self._rare, self._named.values())

    def look(self, documents: Sequence[Document], ids: np.ndarray, lengths: np.ndarray) -> None:
        """The next documents of the unit, with their flat ids and tokens a document, an eos among them."""
        self._spread_over(documents, ids, lengths)
        for group in itertools.islice(self._groups(documents), self._care.groups):
            self._look_through(group)

    def _groups(self, documents: Sequence[Document]) -> Iterator[list[Document]]:
        """Documents of GROUP_CHARACTERS in all; only such as are not ASCII where no names are searched for."""
        group: list[Document] = []
        held = 0
        for document in documents:
            if self._care.names or not document.text.isascii():
                group.append(document)
                held += len(document.text)
                if held >= GROUP_CHARACTERS:
                    yield group
                    group, held = [], 0
        if group:
            yield group

    def _spread_over(self, documents: Sequence[Document], ids: np.ndarray, lengths: np.ndarray) -> None:
        """Every `stride`-th document of the unit; the stride doubles when they become too many."""
        number, ends = -self._num_documents % self._stride, None
        while number < len(documents):
            ends = np.cumsum(lengths) if ends is None else ends
            document, nth = documents[number], self._num_documents + number
            found = self._excerpt(document, nth * 0x9E3779B1 % max(1, len(document.text)))
            if len(found.text) == len(document.text):
                found = found._replace(ids=ids[ends[number] - lengths[number] : ends[number]].copy())
            self._spread.append(found)
            if len(self._spread) == 2 * self._care.documents:
                self._spread, self._stride = self._spread[::2], 2 * self._stride
            number = nth - nth % self._stride + self._stride - self._num_documents
        self._num_documents += len(documents)

    def _look_through(self, group: Sequence[Document]) -> None:
        text = "".join(document.text for document in group)
        names = [name for name in self._care.names if name not in self._named and name[:1] in text]  # sooner said
        found = [(place, name) for name in names if (place := text.find(name)) >= 0]
        rare = [] if _is_ordinary(text) else self._meet(text)
        starts = list(itertools.accumulate((len(document.text) for document in group), initial=0))

        def excerpt(place: int) -> Excerpt:
            nth = bisect_right(starts, place) - 1
            return self._excerpt(group[nth], place - starts[nth])

        for place, name in found:
            self._named[name] = excerpt(place)
        for place in rare:
            name = BEYOND_BMP if text[place] > "\uffff" else unicodedata.category(text[place])
            if name not in self._named and (name in UNUSUAL or name == BEYOND_BMP):
                self._named[name] = excerpt(place)
        self._rare.extend(map(excerpt, rare[-self._care.rare :]))

    def _meet(self, text: str) -> list[int]:
        """Where the characters stand that the unit has not had before, each once."""
        codes = code_points(text)
        places = np.flatnonzero((codes > 126) | (codes < 32))
        met: list[int] = []
        while (places := places[~self._met.take(codes[places])]).size:
            first = places[NEW_AT_ONCE - 1 :: -1]  # backwards, so that the first place of each is kept
            met += sorted(dict(zip(codes[first].tolist(), first.tolist(), strict=True)).values())
            self._met[codes[first]] = True
            places = places[NEW_AT_ONCE:]
        return met

    def _excerpt(self, document: Document, place: int) -> Excerpt:
        return Excerpt(around(document.text, place, self._care.characters), document.position, document.part)


def _is_ordinary(text: str) -> bool:
    return text.isascii() and not text.encode().translate(None, ORDINARY)


def around(text: str, place: int, num_characters: int) -> str:
    """So many characters around a place at most, cut at white space where there is some.

    >>> around("one two three four", 9, 12)
    'two three'
    """
    if len(text) <= num_characters:
        return text
    first = max(0, min(place - num_characters // 2, len(text) - num_characters))
    last = first + num_characters
    if first and (space := SPACE.search(text, first, place)):
        first = space.end()
    if last < len(text) and len(words := text[place + 1 : last].rsplit(maxsplit=1)) == 2:
        last = text.index(words[0], place + 1) + len(words[0])
    return text[first:last]


def exactly_encoded(excerpts: Sequence[Excerpt], tokenizer: Tokenizer) -> list[Excerpt]:
    """The excerpts with the ids of the exact encoder; OtherIds of one that the fast encoder gave others.

    Where only one encodes, they stay as they are.
    """
    if not isinstance(tokenizer, FastTokenizer) or not excerpts:
        return list(excerpts)
    texts = [excerpt.text for excerpt in excerpts]
    used, exact = (_ids_of(texts, encoder) for encoder in (tokenizer, tokenizer.exact))
    for excerpt, ids, expected in zip(excerpts, used, exact, strict=True):
        if not np.array_equal(ids if excerpt.ids is None else excerpt.ids, expected):
            raise OtherIds(excerpt)
    return [excerpt._replace(ids=ids) for excerpt, ids in zip(excerpts, exact, strict=True)]


def found_wrong(documents: Sequence[Document], tokenizer: Tokenizer) -> Excerpt | None:
    """The text that the fast encoder found itself to encode otherwise, and the document that its middle is from."""
    if not isinstance(tokenizer, FastTokenizer) or (wrong := tokenizer.wrong) is None:
        return None
    place = "".join(document.text for document in documents).find(wrong) + len(wrong) // 2
    starts = list(itertools.accumulate((len(document.text) for document in documents[:-1]), initial=0))
    origin = documents[bisect_right(starts, place) - 1]
    return Excerpt(wrong, origin.position, origin.part)


def _ids_of(texts: list[str], tokenizer: Tokenizer) -> list[np.ndarray]:
    """Ids of each text as a document."""
    ids, lengths = tokenizer.encode_documents(texts)
    return np.split(ids, np.cumsum(lengths)[:-1])


def round_trip(excerpts: Sequence[Excerpt], tokenizer: Tokenizer) -> dict[str, Any]:
    """How many excerpts there are, how many come back from their ids changed, and an example of what changes.

    `white_space`: only white space is not the same, as in vocabularies of words. An excerpt that a library cannot
    take is none: its document, of which it is a part, could be taken. OtherIds of one with the ids of another text.
    """
    counts: dict[str, Any] = {"excerpts": 0, "changed": 0, "white_space": 0}
    for excerpt in excerpts:
        if excerpt.ids is None and isinstance(tokenizer, WordTokenizer) and tokenizer.has_unspaced_words:
            continue  # its ends may lie inside words, of which other ones are made; unknown ones are counted by ids
        try:
            what = _what_changes(excerpt, tokenizer)
            counts["excerpts"] += 1
            if what is None:
                continue
            counts[what] += 1
            is_first = counts["changed"] + counts["white_space"] == 1 or (what == "changed" and counts[what] == 1)
            if is_first:
                loss = loss_of(tokenizer, excerpt.text)
                if loss is None:  # though its ids give another text
                    raise OtherIds(excerpt)
                counts |= {"example": loss.example, "position": excerpt.position, "part": excerpt.part}
        except OtherIds:
            raise
        except UserError:
            continue
        except BaseException as error:
            _ = reason_of(error)  # raises what is no fault of the text
    return counts


def _what_changes(excerpt: Excerpt, tokenizer: Tokenizer) -> str | None:
    """As `loss_of` has it, which takes longer to tell more: a key of `round_trip`, None where nothing is lost."""
    back = tokenizer.decode(tokenizer.encode(excerpt.text) if excerpt.ids is None else excerpt.ids)
    if excerpt.text in (back, back.removeprefix(" ")):
        return None
    if "".join(excerpt.text.split()) != "".join(back.split()):
        return "changed"
    return None if excerpt.ids is not None and loss_of(tokenizer, excerpt.text) is None else "white_space"
