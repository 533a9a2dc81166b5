"""What is asked of a text, and what a task shows of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hvdlm.inference.inspect.passages import Passage
from hvdlm.inference.load import Loaded
from hvdlm.tokenizer import Tokenizer


@dataclass(frozen=True)
class Asked:
    """A text and how it is looked at."""

    text: str | None = None  # None: neighbours alone
    pair: str | None = None  # the second input of a task that has two
    likeliest: int = 5  # alternatives of each token
    stride: int | None = None  # as of `hvdlm eval`
    label: str | None = None  # of a classifier: what the tokens speak for; None: its prediction
    attends: bool = False  # whether maps of attention are wanted
    layer: int | None = None  # None: the last
    head: int | None = None  # None: all
    neighbours: tuple[str, ...] = ()
    num_neighbours: int = 10


class Looked(NamedTuple):
    """What is shown of a text, and one pass over it for those who look into the model."""

    passage: Passage
    read: Callable[[], object]
    inputs: Sequence[int]  # ids that the body reads in it
    source: Sequence[int] = ()  # and those that its encoder does


class Subject(NamedTuple):
    """A trained model with its tokenizer."""

    loaded: Loaded
    tokenizer: Tokenizer
