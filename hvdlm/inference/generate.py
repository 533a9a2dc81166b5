"""Text written after one prompt."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from hvdlm import checkpoint
from hvdlm.decoding import decode
from hvdlm.errors import UserError
from hvdlm.inference.engine import LENGTH, Engine, Request
from hvdlm.inference.listeners import Written
from hvdlm.inference.load import Loaded, context_of, load_writer
from hvdlm.inference.sampling import Sampling
from hvdlm.inference.search import room_after, search_of, text_of
from hvdlm.inference.texts import TextWriter
from hvdlm.tokenizer import Tokenizer
from hvdlm.world.place import find_place
from hvdlm.world.serial import SerialWorld

log = logging.getLogger("hvdlm")


@dataclass(frozen=True)
class Texts:
    """What is to be written after a prompt."""

    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 200
    stops: Sequence[str] = ()
    slides: bool = False


class Text(NamedTuple):
    text: str
    finish_reason: str
    num_tokens: int  # that were written


@dataclass(frozen=True)
class Writer:
    """A checkpoint's model before a prompt: `ids` as it reads it, `before` those that the text goes on from."""

    loaded: Loaded
    tokenizer: Tokenizer
    ids: tuple[int, ...]
    before: Sequence[int]
    how: Texts

    def pieces(self) -> Iterator[str]:
        """The text, piece by piece as it is written."""
        return self._given(*self._begun(1))

    def _given(self, engine: Engine, written: Written) -> Iterator[str]:
        while engine.step():
            yield from written.pieces[0]
            written.pieces[0].clear()
        if written.reasons == [LENGTH] and engine.counts.written_tokens < self.how.max_tokens:
            log.warning("the text ends where the model's context of %s tokens is full; --slide goes on", engine.context)

    def shown(self, prompt: str) -> str:
        """What stands before the text on a terminal: of a model of pairs nothing, its text is another one."""
        return "" if self.loaded.task.continues_whole else prompt

    def several(self, choices: int) -> list[Text]:
        """So many texts that were drawn apart; the first is that of `pieces`, but for rounding."""
        engine, written = self._begun(choices)
        engine.run()
        return [Text(*found) for found in zip(written.texts, written.reasons, map(len, written.tokens), strict=True)]

    def searched(self, beams: int, num: int) -> list[Text]:
        """The `num` best texts that a search with so many beams finds; nothing is drawn."""
        search = search_of(self.loaded, room_after(self.loaded, len(self.ids), self.how.max_tokens), beams)
        (found,) = decode(self.loaded.model, torch.tensor([self.ids]), None, search)
        return [Text(*text_of(one, self._writer()), len(one.ids)) for one in found[:num]]

    def _begun(self, choices: int) -> tuple[Engine, Written]:
        loaded, how, ids = self.loaded, self.how, self.ids
        engine = Engine(loaded.model, loaded.vocabulary, context=context_of(loaded.config), rows=choices)
        if how.slides and engine.context is not None and (num_cut := len(ids) - engine.context) > 0:
            log.warning("--prompt: its first %d of %d tokens have no room in the context", num_cut, len(ids))
            ids = ids[num_cut:]
        request = Request(ids, how.max_tokens, how.sampling, loaded.ends, choices, slides=how.slides)
        if fault := engine.fault(request):
            if fault.startswith("logit_bias"):
                raise UserError(f"--logit-bias{fault.removeprefix('logit_bias')}")
            raise UserError(f"--prompt: {fault}; shorten it, or take --slide, which forgets what is long past")
        written = Written([self._writer() for _ in range(choices)])
        engine.add(request, written)
        return engine, written

    def _writer(self) -> TextWriter:
        return TextWriter(self.tokenizer, self.before, self.how.stops)


def open_writer(target: Path, overrides: tuple[str, ...], prompt: str, how: Texts, *, int8: bool = False) -> Writer:
    """UserError for a prompt that is no text, and for a model that writes none."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"--prompt: character {error.start} is not UTF-8") from None
    loaded, tokenizer = load_writer(checkpoint.resolve(target), overrides, find_place(SerialWorld()), int8=int8)
    ids = tokenizer.encode(prompt).tolist()
    if num_unknown := count_unknown(tokenizer, prompt, ids):
        text = "--prompt: %d of %d tokens are unknown to the vocabulary, so the model does not see what they are"
        log.warning(text, num_unknown, len(ids))
    before = [] if loaded.task.continues_whole else ids
    return Writer(loaded, tokenizer, loaded.prompt_of(ids), before, how)


def continue_text(target: Path, overrides: tuple[str, ...], prompt: str, how: Texts) -> Iterator[str]:
    """The text that a checkpoint's model writes after `prompt`, piece by piece."""
    return open_writer(target, overrides, prompt, how).pieces()


def count_unknown(tokenizer: Tokenizer, prompt: str, ids: list[int]) -> int:
    """How many of a prompt's ids stand for text that the vocabulary lacks; 0 if the prompt spells the unknown token."""
    if tokenizer.unk_id is None or tokenizer.decode(np.array([tokenizer.unk_id])).strip() in prompt.split():
        return 0
    return ids.count(tokenizer.unk_id)
