"""Who hears of a request's texts: one that keeps ids, and one that makes text of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hvdlm.inference.engine import STOP, Token
from hvdlm.inference.texts import TextWriter


@dataclass
class Heard:
    """Keeps the ids of each choice, and why each ended."""

    choices: int = 1
    is_cancelled: bool = False
    tokens: list[list[Token]] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    echoed: list[Token] = field(default_factory=list)  # the prompt, if it was asked for

    def __post_init__(self) -> None:
        self.tokens, self.reasons = [[] for _ in range(self.choices)], [""] * self.choices

    def read(self, tokens: Sequence[Token]) -> None:
        self.echoed = list(tokens)

    def take(self, choice: int, token: Token) -> bool:
        self.tokens[choice].append(token)
        return False

    def end(self, choice: int, reason: str) -> None:
        self.reasons[choice] = reason


class Written(Heard):
    """Makes text of them too, each choice with a writer of its own; a stop string ends a text."""

    def __init__(self, writers: Sequence[TextWriter]) -> None:
        super().__init__(len(writers))
        self._writers = writers
        self.pieces: list[list[str]] = [[] for _ in writers]

    @property
    def texts(self) -> list[str]:
        return ["".join(pieces) for pieces in self.pieces]

    def take(self, choice: int, token: Token) -> bool:
        super().take(choice, token)
        self.pieces[choice].append(self._writers[choice].take(token.id))
        return self._writers[choice].is_stopped

    def end(self, choice: int, reason: str) -> None:
        self.pieces[choice].append(self._writers[choice].finish())
        super().end(choice, STOP if self._writers[choice].is_stopped else reason)
