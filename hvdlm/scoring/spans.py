"""Entities, chunks and arguments that tags of words spell, and how many of them were found.

A tag is `O` or a letter and a type, `B-PER`; a letter alone, `B`, has the empty type (word segmentation). Two readings
of tags that break the rules of their scheme are in use, and differ (seqeval issues 23 and 57):

- `strict`: only what is whole by the scheme is an entity; seqeval's strict mode.
- `conlleval`: any other type, or a letter that cannot go on, begins one; the script of the CoNLL-2000 shared task
  (Tjong Kim Sang and Buchholz 2000), and seqeval's default.

Of tags that break no rule both make the same entities.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from hvdlm.errors import UserError
from hvdlm.scoring.intervals import bootstrap, ratio

Reading = Literal["strict", "conlleval"]


class Scheme(NamedTuple):
    """How letters mark where an entity begins and ends."""

    letters: dict[str, str]  # as written -> B(egin), I(nside), E(nd), S(ingle)
    begins: str = "B"  # the letter of a first word; I of IOB1, where B only parts two of the same type
    marks_ends: bool = False


SCHEMES: dict[str, Scheme] = {
    "BIO": Scheme({"B": "B", "I": "I"}),  # IOB2; Ratnaparkhi 1998
    "IOB1": Scheme({"B": "B", "I": "I"}, begins="I"),  # Ramshaw and Marcus 1995; CoNLL-2003 as published
    "BIOES": Scheme({"B": "B", "I": "I", "E": "E", "S": "S"}, marks_ends=True),
    "BMES": Scheme({"B": "B", "M": "I", "E": "E", "S": "S", "W": "S"}, marks_ends=True),  # W: as BMEWO writes S
}


class Entity(NamedTuple):
    """Words `start` to `end`, which is the first behind it."""

    type: str
    start: int
    end: int


class Argument(NamedTuple):
    """An argument of a predicate, in one piece or several: (start, end) each."""

    type: str
    pieces: tuple[tuple[int, int], ...]


class Transitions(NamedTuple):
    """Which labels may stand where; bool."""

    start: np.ndarray  # (K,) at the first word
    end: np.ndarray  # (K,) at the last
    pairs: np.ndarray  # (K, K): one (row) before another (column)


class Fault(NamedTuple):
    """The first word, from 0, whose tag breaks its scheme, and how in words."""

    place: int
    reason: str


class _Tag(NamedTuple):
    letter: str  # B, I, E, S or O
    type: str


_OUTSIDE = _Tag("O", "")


@functools.lru_cache(maxsize=1 << 16)
def _parsed(tag: str, scheme: str) -> _Tag:
    if tag == "O":
        return _OUTSIDE
    written, _, kind = tag.partition("-")
    letters = _scheme(scheme).letters
    if written not in letters:
        raise UserError(f"tag {tag!r}: {scheme} has O and {', '.join(f'{letter}-TYPE' for letter in letters)}")
    return _Tag(letters[written], kind)


def _scheme(name: str) -> Scheme:
    if name not in SCHEMES:
        raise UserError(f"tagging scheme {name!r}: there are {', '.join(SCHEMES)}")
    return SCHEMES[name]


def _fault_between(before: _Tag, after: _Tag, scheme: Scheme) -> bool:
    """Whether the second must not follow the first; before the first word and behind the last stands an O."""
    same = before.letter != "O" and before.type == after.type
    if scheme.marks_ends:
        is_open, goes_on = before.letter in "BI", after.letter in "IE"
        return is_open != goes_on or (is_open and not same)
    return not same and after.letter == ("B" if scheme.begins == "I" else "I")


def validate(tags: Sequence[str], scheme: str) -> Fault | None:
    """The first tag that breaks the rules, or None.

    >>> validate(["O", "I-PER", "O"], "BIO")
    Fault(place=1, reason='I-PER behind O breaks BIO')
    >>> validate(["O", "B-PER"], "BIOES")
    Fault(place=1, reason='B-PER at the end breaks BIOES')
    """
    rules, before = _scheme(scheme), _OUTSIDE
    for place, tag in enumerate(tags):
        try:
            after = _parsed(tag, scheme)
        except UserError as error:
            return Fault(place, str(error))
        if _fault_between(before, after, rules):
            where = f"behind {tags[place - 1]}" if place else "at the beginning"
            return Fault(place, f"{tag} {where} breaks {scheme}")
        before = after
    if _fault_between(before, _OUTSIDE, rules):
        return Fault(len(tags) - 1, f"{tags[-1]} at the end breaks {scheme}")
    return None


def legal_transitions(labels: Sequence[str], scheme: str) -> Transitions:
    """What the scheme allows, by the numbers of the labels.

    >>> legal_transitions(["B-PER", "I-PER", "O"], "BIO").pairs.astype(int).tolist()
    [[1, 1, 1], [1, 1, 1], [1, 0, 1]]
    """
    rules, tags = _scheme(scheme), [_parsed(label, scheme) for label in labels]
    start = np.array([not _fault_between(_OUTSIDE, tag, rules) for tag in tags])
    end = np.array([not _fault_between(tag, _OUTSIDE, rules) for tag in tags])
    pairs = np.array([[not _fault_between(before, after, rules) for after in tags] for before in tags])
    return Transitions(start, end, pairs.reshape(len(tags), len(tags)))


def types_of(labels: Iterable[str], scheme: str) -> list[str]:
    """The types that labels have, sorted.

    >>> types_of(["B-PER", "I-PER", "O", "B-LOC"], "BIO")
    ['LOC', 'PER']
    """
    return sorted({tag.type for tag in (_parsed(label, scheme) for label in labels) if tag.letter != "O"})


def entities(tags: Sequence[str], scheme: str, *, reading: Reading = "strict") -> list[Entity]:
    """The entities that a sentence's tags spell, in order; a tag that the scheme has not is an error.

    >>> tags = ["I-PER", "O", "B-PER", "I-LOC"]
    >>> entities(tags, "BIO")
    [Entity(type='PER', start=2, end=3)]
    >>> entities(tags, "BIO", reading="conlleval")
    [Entity(type='PER', start=0, end=1), Entity(type='PER', start=2, end=3), Entity(type='LOC', start=3, end=4)]
    """
    rules = _scheme(scheme)
    parsed = [_parsed(tag, scheme) for tag in tags]
    return _strict(parsed, rules) if reading == "strict" else _by_conlleval(parsed)


def _strict(tags: Sequence[_Tag], scheme: Scheme) -> list[Entity]:
    found: list[Entity] = []
    start, before = -1, _OUTSIDE  # -1 while no entity is open
    for place, tag in enumerate([*tags, _OUTSIDE]):
        same = before.letter != "O" and before.type == tag.type
        if start >= 0 and not (same and tag.letter in "IE"):
            if not scheme.marks_ends:
                found.append(Entity(before.type, start, place))
            start = -1
        if tag.letter == "S":
            found.append(Entity(tag.type, place, place + 1))
        elif tag.letter == "E" and start >= 0:
            found.append(Entity(tag.type, start, place + 1))
            start = -1
        elif (start < 0 and tag.letter == scheme.begins) or (tag.letter == "B" and same):
            start = place
        before = tag
    return found


def _by_conlleval(tags: Sequence[_Tag]) -> list[Entity]:
    """Without the scheme: what the letters B, I, E and S mean is the same in all."""
    found: list[Entity] = []
    start, before = 0, _OUTSIDE
    for place, tag in enumerate([*tags, _OUTSIDE]):
        if before.type != tag.type or before.letter in "ESO" or tag.letter in "BSO":
            if before.letter != "O":
                found.append(Entity(before.type, start, place))
            start = place
        before = tag
    return found


def arguments(found: Iterable[Entity]) -> list[Argument]:
    """Semantic roles as the CoNLL-2005 shared task counts them (Carreras and Marquez 2005, its srl-eval.pl).

    `C-A1` continues the last `A1`, and the argument is right when all pieces are; without one it is an `A1`. `R-A0`, a
    reference, is an argument of its own type. The predicate, V, is left out of the sums.

    >>> arguments([Entity("A1", 0, 2), Entity("V", 2, 3), Entity("C-A1", 4, 5), Entity("R-A0", 6, 7)])
    [Argument(type='A1', pieces=((0, 2), (4, 5))), Argument(type='R-A0', pieces=((6, 7),))]
    """
    pieces: list[tuple[str, list[tuple[int, int]]]] = []
    last: dict[str, list[tuple[int, int]]] = {}
    for entity in found:
        kind = entity.type.removeprefix("C-")
        if kind == entity.type or kind not in last:
            last[kind] = []
            pieces.append((kind, last[kind]))
        last[kind].append((entity.start, entity.end))
    return [Argument(kind, tuple(parts)) for kind, parts in pieces if kind != "V"]


def argument_types(types: Iterable[str]) -> list[str]:
    """The types that `arguments` leaves of those of the labels, sorted."""
    return sorted({kind.removeprefix("C-") for kind in types} - {"V"})


def count(
    gold: Iterable[Entity | Argument], predicted: Iterable[Entity | Argument], types: Sequence[str]
) -> np.ndarray:
    """Found, wrong and missed of each type in a sentence: int64 (T, 3), which adds up over sentences.

    Right is what has type and borders right.
    """
    wanted, given = set(gold), set(predicted)
    sums, row_of = np.zeros((len(types), 3), dtype=np.int64), {kind: row for row, kind in enumerate(types)}
    for column, part in enumerate((wanted & given, given - wanted, wanted - given)):
        for item in part:
            sums[row_of[item.type], column] += 1
    return sums


def figures(counts: np.ndarray, types: Sequence[str]) -> dict[str, Any]:
    """Of `count` of each sentence, (n, T, 3): micro precision, recall and F1 with intervals; of each type without.

    The intervals are by bootstrap over sentences. What would be divided by 0 is 0.
    """
    by_sentence = counts.sum(1)
    told: dict[str, Any] = {}
    for name, figure in FIGURES.items():
        told[name] = figure(by_sentence.sum(0))
        told[f"{name}_interval"] = bootstrap(by_sentence, figure)
    told["by_type"] = {
        kind: {name: figure(row) for name, figure in FIGURES.items()} | {"support": int(row[0] + row[2])}
        for kind, row in zip(types, counts.sum(0), strict=True)
    }
    return told


def precision(sums: np.ndarray) -> float:
    """Of found, wrong and missed (3,)."""
    return ratio(sums[0], sums[0] + sums[1])


def recall(sums: np.ndarray) -> float:
    return ratio(sums[0], sums[0] + sums[2])


def f1(sums: np.ndarray) -> float:
    return ratio(2 * sums[0], 2 * sums[0] + sums[1] + sums[2])


FIGURES = {"f1": f1, "precision": precision, "recall": recall}
