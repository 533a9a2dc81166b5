"""Text written after one prompt."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from hvdlm import checkpoint
from hvdlm.decoding import Decoding, decode
from hvdlm.errors import UserError
from hvdlm.inference.engine import LENGTH, Engine, Request, never
from hvdlm.inference.listeners import Heard, Written
from hvdlm.inference.load import Loaded, context_of, load_checkpoint_model, prepare, tokenizer_of
from hvdlm.inference.sampling import Sampling
from hvdlm.inference.texts import TextWriter
from hvdlm.models import LanguageModel, Vocabulary
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


def generate(  # noqa: PLR0913 - a request, as its parts
    model: LanguageModel,
    vocabulary: Vocabulary,
    prompt: Sequence[int],
    sampling: Sampling,
    *,
    max_tokens: int,
    context: int | None = None,
    slides: bool = False,
) -> Iterator[int]:
    """Yield ids that continue `prompt` until the end of text, `max_tokens`, or the end of a `context` that stays."""
    engine, heard = Engine(model, vocabulary, context=context, rows=1), Heard()
    ids = tuple(prompt) or (vocabulary.eos_id,)
    engine.add(Request(ids, max_tokens, sampling, frozenset({vocabulary.eos_id}), slides=slides), heard)
    while engine.step():
        yield from (token.id for token in heard.tokens[0])
        heard.tokens[0].clear()


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

    def several(self, choices: int) -> list[str]:
        """So many texts that were drawn apart; the first is that of `pieces`, but for rounding."""
        engine, written = self._begun(choices)
        engine.run()
        return written.texts

    def searched(self, beams: int, num: int) -> list[str]:
        """The `num` best texts that a search with so many beams finds; nothing is drawn."""
        model, vocabulary, context = self.loaded.model, self.loaded.vocabulary, context_of(self.loaded)
        most = self.how.max_tokens
        if context is not None:
            most = min(most, context if model.reads_source else max(1, context - len(self.ids)))
        search = Decoding(most, vocabulary.eos_id, beams=beams, never=never(model, vocabulary))
        (found,) = decode(model, torch.tensor([self.ids]), None, search)
        return [self._text(hypothesis.ids) for hypothesis in found[:num]]

    def _begun(self, choices: int) -> tuple[Engine, Written]:
        loaded, how = self.loaded, self.how
        engine = Engine(loaded.model, loaded.vocabulary, context=context_of(loaded), rows=choices)
        request = Request(self.ids, how.max_tokens, how.sampling, loaded.ends, choices, slides=how.slides)
        if fault := engine.fault(request):
            raise UserError(f"--prompt: {fault}; shorten it, or take --slide, which forgets what is long past")
        written = Written([self._writer() for _ in range(choices)])
        engine.add(request, written)
        return engine, written

    def _writer(self) -> TextWriter:
        return TextWriter(self.tokenizer, self.before, self.how.stops)

    def _text(self, ids: Sequence[int]) -> str:
        writer = self._writer()
        return "".join([*map(writer.take, ids), writer.finish()])


def open_writer(target: Path, overrides: tuple[str, ...], prompt: str, how: Texts, *, int8: bool = False) -> Writer:
    """UserError for a prompt that is no text, and for a model that writes none."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"--prompt: character {error.start} is not UTF-8") from None
    path = checkpoint.resolve(target)
    loaded = load_checkpoint_model(path, overrides, find_place(SerialWorld()))
    loaded.check_writes(path)
    tokenizer = tokenizer_of(path, loaded.state)
    ids = tokenizer.encode(prompt).tolist()
    if num_unknown := count_unknown(tokenizer, prompt, ids):
        text = "--prompt: %d of %d tokens are unknown to the vocabulary, so the model does not see what they are"
        log.warning(text, num_unknown, len(ids))
    before = [] if loaded.task.continues_whole else ids
    return Writer(prepare(loaded, path, tokenizer, int8=int8), tokenizer, loaded.prompt_of(ids), before, how)


def continue_text(target: Path, overrides: tuple[str, ...], prompt: str, how: Texts) -> Iterator[str]:
    """The text that a checkpoint's model writes after `prompt`, piece by piece."""
    return open_writer(target, overrides, prompt, how).pieces()


def count_unknown(tokenizer: Tokenizer, prompt: str, ids: list[int]) -> int:
    """How many of a prompt's ids stand for text that the vocabulary lacks; 0 if the prompt spells the unknown token."""
    if tokenizer.unk_id is None or tokenizer.decode(np.array([tokenizer.unk_id])).strip() in prompt.split():
        return 0
    return ids.count(tokenizer.unk_id)
