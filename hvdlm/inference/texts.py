"""Ids to text as they are written: piece by piece, never half a character, and no further than a stop string."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hvdlm.tokenizer import Tokenizer

UNKNOWN = "\N{REPLACEMENT CHARACTER}"  # what a decoder makes of bytes that are no character, or not yet one
CONTEXT = 8  # ids that are decoded before others, whose text may depend on them, as a space
MOST_HELD = 16  # ids; no character has so many bytes, so what is no character by then never will be


class TextWriter:
    """The text of ids that continue `prompt_ids`; all its pieces together are the whole decoded at once.

    Of the text what stands before the first of the `stops` is given; what may be a stop string's beginning, or a part
    of a character, is held back until it is known. Tokenizers of all kinds are asked for short runs of ids alone.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, [stop for stop in stops if stop]
        self._window = list(prompt_ids[-CONTEXT:])  # ids that are decoded each time: the last ones
        self._given = self._decoded(self._window)  # of their text
        self._num_new = 0  # of them, since text was last given
        self._held = ""  # text behind that which was given
        self.is_stopped = False

    def take(self, token: int) -> str:
        """The next piece; "" where it must wait for what follows."""
        if self.is_stopped:
            return ""
        self._window.append(token)
        self._num_new += 1
        text = self._decoded(self._window)
        known = text.rstrip(UNKNOWN)
        if is_forced := self._num_new > MOST_HELD:
            known = text[: max(len(known), len(text) - 3)]
        if not known.startswith(self._given) or len(known) == len(self._given):
            return ""
        piece = known[len(self._given) :]
        if known == text:
            self._window = self._window[-self._num_new :]
            self._given, self._num_new = self._decoded(self._window), 0
        elif is_forced:
            self._window = self._window[-MOST_HELD:]
            text = self._decoded(self._window)
            self._given = text[: max(len(text.rstrip(UNKNOWN)), len(text) - 3)]
        else:
            self._given = known
        return self._before_stop(piece)

    def finish(self) -> str:
        """The rest, when no id follows any more."""
        if self.is_stopped:
            return ""
        text = self._decoded(self._window)
        if text.startswith(self._given):
            piece = text[len(self._given) :]
        else:
            piece = self._decoded(self._window[-self._num_new :])
        rest = self._before_stop(piece)
        if not self.is_stopped:
            rest, self._held = rest + self._held, ""
        return rest

    def _before_stop(self, piece: str) -> str:
        text = self._held + piece
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.is_stopped, self._held = True, ""
            return text[: min(found)]
        num_held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def _decoded(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(np.array(ids, dtype=np.int64))


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text begin a stop string.

    >>> _overlap("a\\nUs", "\\nUser:"), _overlap("aaa", "ab"), _overlap("b", "ab")
    (3, 1, 0)
    """
    return next((num for num in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:num])), 0)
