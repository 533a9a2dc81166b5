"""What every kind of inference over files does: read a line's record, and make the lines of a unit."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from hvdlm.inference.engine import Token
from hvdlm.inference.infer.lines import Line, Unit
from hvdlm.tokenizer import Tokenizer
from hvdlm.tokenizer.interface import shown

Values = dict[str, Any] | str  # of a line: an object of JSON, or a text


class Tell(Protocol):
    """How much of a unit was done since, in the order of `Work.counted`.

    It may leave by an exception, and then what was done of the unit is lost: never after the last of it.
    """

    def __call__(self, *amounts: int, is_last: bool = False) -> None: ...


class Work(ABC):
    """What a line out says of a record follows from the record, its number and the settings alone."""

    rows: int  # records that are computed together, at most
    counted: tuple[str, ...]  # what `tell` is told, in words
    keys: tuple[str, ...] = ()  # of a record that are read; empty: others are not told of
    seconds: Mapping[str, float] = {}  # by these words, what this rank spent with each, where that is known apart

    @abstractmethod
    def check(self, values: Values) -> None:
        """ValueError, which says what is wrong, for a record that is none."""

    def unread(self, values: Values) -> list[str]:
        """Keys of a record that say nothing to anybody, as misspelt ones do."""
        return [] if isinstance(values, str) or not self.keys else [key for key in values if key not in self.keys]

    @abstractmethod
    def lines(self, unit: Unit, given: Sequence[Line], tell: Tell) -> tuple[list[dict[str, Any]], Counter[str]]:
        """A line out for each of a unit's records, and what was counted of them."""


def seed_of(seed: int, index: int) -> int:
    """That of a record's texts: no neighbour has a part in it.

    >>> seed_of(0, 1) != seed_of(1, 0)
    True
    """
    return int.from_bytes(hashlib.blake2b(f"{seed} {index}".encode(), digest_size=7).digest(), "little")


def told_of(tokens: Sequence[Token], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Tokens with their log-probabilities, as lines have them."""
    return [
        {
            "id": token.id,
            "text": shown(tokenizer, token.id),
            "log_prob": None if token.log_prob is None else nats(token.log_prob),
            **({"top": [_likely(tokenizer, *pair) for pair in token.top]} if token.top else {}),
        }
        for token in tokens
    ]


def _likely(tokenizer: Tokenizer, token: int, log_prob: float) -> dict[str, Any]:
    return {"id": token, "text": shown(tokenizer, token), "log_prob": nats(log_prob)}


def nats(value: float) -> float:
    """A log-probability as lines tell it; more digits differ from machine to machine."""
    return round(float(np.float64(value)), 6)
