"""Text written after one prompt."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hvdlm import checkpoint
from hvdlm.errors import UserError
from hvdlm.inference.engine import LENGTH, Engine, Request, Token
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


@dataclass
class Heard:
    """A listener that keeps what it hears of one text."""

    is_cancelled: bool = False
    tokens: list[Token] = field(default_factory=list)
    reason: str = ""

    def read(self, tokens: Sequence[Token]) -> None:
        """Nobody asked for the prompt."""

    def take(self, choice: int, token: Token) -> bool:
        self.tokens.append(token)
        return False

    def end(self, choice: int, reason: str) -> None:
        self.reason = reason


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
        yield from (token.id for token in heard.tokens)
        heard.tokens.clear()


def continue_text(
    target: Path, overrides: tuple[str, ...], prompt: str, how: Texts, *, int8: bool = False
) -> Iterator[str]:
    """The text that a checkpoint's model writes after `prompt`, piece by piece."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"--prompt: character {error.start} is not UTF-8") from None
    path = checkpoint.resolve(target)
    loaded = load_checkpoint_model(path, overrides, find_place(SerialWorld()))
    loaded.check_writes(path)
    tokenizer = tokenizer_of(path, loaded.state)
    return _pieces(prepare(loaded, path, tokenizer, int8=int8), tokenizer, prompt, how)


def _pieces(loaded: Loaded, tokenizer: Tokenizer, prompt: str, how: Texts) -> Iterator[str]:
    ids = tokenizer.encode(prompt).tolist()
    if num_unknown := count_unknown(tokenizer, prompt, ids):
        text = "--prompt: %d of %d tokens are unknown to the vocabulary, so the model does not see what they are"
        log.warning(text, num_unknown, len(ids))
    engine, heard = Engine(loaded.model, loaded.vocabulary, context=context_of(loaded), rows=1), Heard()
    request = Request(loaded.prompt_of(ids), how.max_tokens, how.sampling, loaded.ends, slides=how.slides)
    if fault := engine.fault(request):
        raise UserError(f"--prompt: {fault}; shorten it, or take --slide, which forgets what is long past")
    engine.add(request, heard)
    before = [] if loaded.task.continues_whole else ids
    return _written(engine, heard, TextWriter(tokenizer, before, how.stops), how.max_tokens)


def _written(engine: Engine, heard: Heard, writer: TextWriter, max_tokens: int) -> Iterator[str]:
    while engine.step() and not writer.is_stopped:
        for token in heard.tokens:
            yield writer.take(token.id)
        heard.tokens.clear()
    yield writer.finish()
    if heard.reason == LENGTH and engine.counts.written_tokens < max_tokens:
        log.warning("the text ends where the model's context of %s tokens is full; --slide goes on", engine.context)


def count_unknown(tokenizer: Tokenizer, prompt: str, ids: list[int]) -> int:
    """How many of a prompt's ids stand for text that the vocabulary lacks; 0 if the prompt spells the unknown token."""
    if tokenizer.unk_id is None or tokenizer.decode(np.array([tokenizer.unk_id])).strip() in prompt.split():
        return 0
    return ids.count(tokenizer.unk_id)
