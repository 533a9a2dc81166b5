"""The texts of one prompt in the making: what the engine tells of ids, told on as pieces of text."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from hvdlm.inference.engine import CANCELLED, STOP, Request, Token
from hvdlm.inference.texts import CONTEXT, TextWriter
from hvdlm.serve.measures import Measures
from hvdlm.tokenizer import Tokenizer
from hvdlm.tokenizer.interface import shown

ERROR = "error"


class Likely(NamedTuple):
    """An id that could stand somewhere."""

    id: int
    text: str
    log_prob: float | None


class Told(NamedTuple):
    """A token with its text, the characters of the choice's text before it, and what else could stand there."""

    likely: Likely
    offset: int
    top: tuple[Likely, ...]


class Place(NamedTuple):
    """A token where it stands: what `told` makes texts of, which takes long and is not for the engine's thread."""

    token: Token
    context: tuple[int, ...]  # the ids before it
    offset: int


class Piece(NamedTuple):
    """What comes next in a choice; `reason` with the last of them, and ERROR has a message for text."""

    choice: int
    text: str
    tokens: tuple[Place, ...] = ()
    reason: str = ""


@dataclass
class _Choice:
    """`held` are tokens whose text was not given yet."""

    writer: TextWriter
    places: TextWriter  # the same without stop strings: how far the text has come
    context: tuple[int, ...]
    held: list[Place] = field(default_factory=list)
    num_known: int = 0  # characters, of `places`
    num_given: int = 0
    prefix: str = ""  # the prompt, where it is echoed
    told_s: float = 0.0  # when its last token came
    num_tokens: int = 0
    is_over: bool = False


class Writing:
    """The engine's Listener for a request. Its choices have numbers from `first` on among all of a client's.

    The texts continue that of the ids `before`. `tell` is called in the engine's thread, and must be quick.
    """

    def __init__(  # noqa: PLR0913 - what a text is made with
        self,
        request: Request,
        tokenizer: Tokenizer,
        tell: Callable[[Piece], None],
        measures: Measures,
        *,
        stops: Sequence[str] = (),
        first: int = 0,
        echo: bool = False,
        before: Sequence[int] = (),
    ) -> None:
        self.request, self._first = request, first
        self._tell, self._measures = tell, measures
        self._choices = [
            _Choice(TextWriter(tokenizer, before, stops), TextWriter(tokenizer, before), tuple(before[-CONTEXT:]))
            for _ in range(request.choices)
        ]
        self.is_cancelled = False
        text = tokenizer.decode(np.array(request.prompt, dtype=np.int64)) if echo else ""
        is_marked = request.echo and request.logprobs is not None
        self._offsets = _offsets(tokenizer, request.prompt) if is_marked else []
        for choice in self._choices:
            choice.prefix, choice.num_known, choice.told_s = text, len(text), time.perf_counter()

    @property
    def num_written(self) -> int:
        """Tokens, those of a stop string among them."""
        return sum(choice.num_tokens for choice in self._choices)

    @property
    def is_over(self) -> bool:
        return all(choice.is_over for choice in self._choices)

    def read(self, tokens: Sequence[Token]) -> None:
        if not self._offsets:
            return
        ids = self.request.prompt
        places = [
            Place(token, ids[max(0, number - CONTEXT) : number], offset)
            for number, (token, offset) in enumerate(zip(tokens, self._offsets, strict=True))
        ]
        for choice in self._choices:
            choice.held = list(places)

    def take(self, choice: int, token: Token) -> bool:
        one, now = self._choices[choice], time.perf_counter()
        times = self._measures.token_s if one.num_tokens else self._measures.first_token_s
        times.add(now - one.told_s)
        one.told_s = now
        one.num_tokens += 1
        if self.request.logprobs is not None:
            one.held.append(Place(token, one.context, one.num_known))
            one.num_known += len(one.places.take(token.id))
            one.context = (*one.context, token.id)[-CONTEXT:]
        if text := one.writer.take(token.id):
            self._give(one, choice, text, "")
        return one.writer.is_stopped

    def end(self, choice: int, reason: str) -> None:
        one = self._choices[choice]
        if one.is_over:  # it has failed
            return
        one.is_over = True
        if reason == CANCELLED:  # mostly nobody reads it any more
            self._tell(Piece(self._first + choice, "this was given up before it was done", reason=ERROR))
            return
        text = one.writer.finish()
        self._give(one, choice, text, STOP if one.writer.is_stopped else reason)

    def fail(self, message: str) -> int:
        """Whatever is open ends with an error; how many texts that were."""
        failed = [(number, choice) for number, choice in enumerate(self._choices) if not choice.is_over]
        for number, choice in failed:
            choice.is_over = True
            self._tell(Piece(self._first + number, message, reason=ERROR))
        return len(failed)

    def _give(self, one: _Choice, choice: int, text: str, reason: str) -> None:
        """Text, and the tokens that begin in it; at the end all others too, but for those of a stop string."""
        text, one.prefix = one.prefix + text, ""
        one.num_given += len(text)
        takes_all = bool(reason) and not one.writer.is_stopped
        ready = [place for place in one.held if takes_all or place.offset < one.num_given]
        del one.held[: len(ready)]
        self._tell(Piece(self._first + choice, text, tuple(ready), reason))


def _offsets(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """Characters before each id in the text of all of them."""
    writer, num, offsets = TextWriter(tokenizer, ()), 0, []
    for token in ids:
        offsets.append(num)
        num += len(writer.take(token))
    return offsets


def told(tokenizer: Tokenizer, places: Sequence[Place]) -> list[Told]:
    """With the texts of tokens and of what else could stand there: some decodings for each."""

    def likely(place: Place, token: int, log_prob: float | None) -> Likely:
        return Likely(token, _text_of(tokenizer, place.context, token), log_prob)

    return [
        Told(
            likely(place, place.token.id, place.token.log_prob),
            place.offset,
            tuple(likely(place, *pair) for pair in place.token.top),
        )
        for place in places
    ]


def _text_of(tokenizer: Tokenizer, context: Sequence[int], token: int) -> str:
    """What an id adds to the text before it; of one that is no text, what it is."""
    writer = TextWriter(tokenizer, context)
    return writer.take(token) + writer.finish() or shown(tokenizer, token)
