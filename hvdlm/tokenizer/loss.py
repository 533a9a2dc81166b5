"""What a text loses on its way to ids and back."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import islice

import numpy as np

from hvdlm.tokenizer.backend import BackendTokenizer
from hvdlm.tokenizer.interface import Tokenizer
from hvdlm.tokenizer.sentencepiece_model import SentencePieceTokenizer
from hvdlm.tokenizer.tiktoken_ranks import TiktokenTokenizer
from hvdlm.tokenizer.word import WordTokenizer

WINDOW = 40  # characters that are looked at to tell what became of the first one that differs


@dataclass(frozen=True)
class Loss:
    """How a text came back that is not the same.

    `num_characters`: of the text that do not come back, in any order; 0 where there are only new ones.
    `place`: index in the text of the first that differs. `is_white_space`: nothing else differs.
    """

    num_characters: int
    place: int
    example: str
    is_white_space: bool


def loss_of(tokenizer: Tokenizer, text: str) -> Loss | None:
    """What differs in decode(encode(text)), or None; a space that the vocabulary puts before a text is no loss.

    The example tells of letters, where any differ, rather than of white space. UserError of a text that the
    vocabulary cannot encode.

    >>> from hvdlm.tokenizer import CharTokenizer
    >>> loss_of(CharTokenizer("caf"), "café")
    Loss(num_characters=1, place=3, example="'é' came back as '\ufffd'", is_white_space=False)
    """
    back = tokenizer.decode(tokenizer.encode(text))
    if text in (back, back.removeprefix(" ")):
        return None
    letters, letters_back = "".join(text.split()), "".join(back.split())
    is_white_space = letters == letters_back
    if is_white_space:
        place, example = _first_difference(text, back)
    else:
        nth, example = _first_difference(letters, letters_back)
        places = (place for place, character in enumerate(text) if not character.isspace())
        place = next(islice(places, nth, None), len(text))
    return Loss((Counter(text) - Counter(back)).total(), place, example, is_white_space)


def num_lost(tokenizer: Tokenizer, texts: list[str], ids: np.ndarray | None = None) -> int:
    """Characters of these texts, white space aside, that their ids lack, without an unknown token in their place.

    `ids`: those of the texts, flat, where they are there already; some kinds are asked faster with them.
    """
    if isinstance(tokenizer, TiktokenTokenizer):
        return tokenizer.num_lost(texts, ids)
    if isinstance(tokenizer, (BackendTokenizer, SentencePieceTokenizer, WordTokenizer)):
        return tokenizer.num_lost(texts)
    return 0


def _first_difference(text: str, back: str) -> tuple[int, str]:
    same = next((at for at, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), min(len(text), len(back)))
    start = max(0, same - 1)  # something new is told together with what it follows
    ours, theirs = text[start : same + WINDOW], back[start : same + WINDOW]
    steps = SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes()
    _, first, last, first_back, last_back = next(step for step in steps if step[0] != "equal")
    if first == last and first:
        first, first_back = first - 1, first_back - 1
    lost, found = ours[first:last], theirs[first_back:last_back]
    return same, f"{lost!r} came back as {found!r}" if found else f"{lost!r} did not come back"
