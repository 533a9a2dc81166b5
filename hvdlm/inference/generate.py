"""Sampling text from a model: temperature, top-k, top-p, a seed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hvdlm import checkpoint
from hvdlm.decoding import refuse_diverged
from hvdlm.errors import UserError
from hvdlm.inference.load import load_checkpoint_model, tokenizer_of
from hvdlm.models import LanguageModel
from hvdlm.tokenizer import Tokenizer
from hvdlm.world.place import find_place
from hvdlm.world.serial import SerialWorld

log = logging.getLogger("hvdlm")


@dataclass(frozen=True)
class Sampling:
    """How an id is drawn. Temperature 0 takes the likeliest; top_k 0 and top_p 1 keep all.

    top_p keeps the smallest set of likeliest ids whose probability reaches it (Holtzman et al. 2020).
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0


def choose(logits: Tensor, sampling: Sampling, random: torch.Generator) -> int:
    """One id from logits (V,), which must be finite."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    # In float64, and with the largest at 0: then any temperature above 0 leaves it likely and overflows nowhere.
    logits = (logits.double() - logits.max()) / sampling.temperature
    if 0 < sampling.top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[-1], float("-inf"))
    probabilities, ids = logits.softmax(-1).float().sort(descending=True)
    is_beyond = probabilities.cumsum(-1) - probabilities >= sampling.top_p
    is_beyond[0] = False  # a top_p that is 0 in float32 keeps the likeliest
    probabilities = probabilities.masked_fill(is_beyond, 0.0)
    return int(ids[torch.multinomial(probabilities, 1, generator=random)])


@torch.no_grad()
def generate(
    model: LanguageModel, prompt: list[int], sampling: Sampling, *, seq_len: int | None, max_tokens: int, eos_id: int
) -> Iterator[int]:
    """Yield ids that continue `prompt` until the end of text or `max_tokens`.

    The model's state goes from id to id. Of a model whose state grows, it holds the last `seq_len` ids and no more.
    """
    model.eval()
    random = torch.Generator().manual_seed(sampling.seed)
    ids = list(prompt) or [eos_id]
    beginning = model.sampled_state(1, random)
    unread, state = ids[-seq_len:] if seq_len else ids, beginning
    num_read = 0
    for _ in range(max_tokens):
        if seq_len and num_read + len(unread) > seq_len:
            unread, state, num_read = ids[-seq_len:], beginning, 0
        num_read += len(unread)
        everywhere, after = model.logits(torch.tensor([unread], device=model.device), state)
        assert after is not None, "a state was given"
        state, logits = after, everywhere[0, -1]  # (V,)
        refuse_diverged(logits)
        chosen = choose(logits.cpu(), sampling, random)
        if chosen == eos_id:
            return
        ids.append(chosen)
        unread = [chosen]
        yield chosen


def continue_text(target: Path, overrides: tuple[str, ...], prompt: str, sampling: Sampling, max_tokens: int) -> str:
    """The text that a checkpoint's model writes after `prompt`."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"--prompt: character {error.start} is not UTF-8") from None
    path = checkpoint.resolve(target)
    loaded = load_checkpoint_model(path, overrides, find_place(SerialWorld()))
    config, state = loaded.config, loaded.state
    tokenizer = tokenizer_of(path, state)
    first = state["eos_id"] if tokenizer.bos_id is None else tokenizer.bos_id  # as before each document's text
    ids = [first, *tokenizer.encode(prompt).tolist()]
    if num_unknown := _num_unknown(tokenizer, prompt, ids[1:]):
        text = "--prompt: %d of %d tokens are unknown to the vocabulary, so the model does not see what they are"
        log.warning(text, num_unknown, len(ids) - 1)
    seq_len = None if config.model.carries_state else config.data.seq_len
    written = generate(loaded.model, ids, sampling, seq_len=seq_len, max_tokens=max_tokens, eos_id=state["eos_id"])
    return added_text(tokenizer, ids[1:], list(written))


def _num_unknown(tokenizer: Tokenizer, prompt: str, ids: list[int]) -> int:
    """How many of a prompt's ids stand for text that the vocabulary lacks; 0 if the prompt spells the unknown token."""
    if tokenizer.unk_id is None or tokenizer.decode(np.array([tokenizer.unk_id])).strip() in prompt.split():
        return 0
    return ids.count(tokenizer.unk_id)


def added_text(tokenizer: Tokenizer, read: list[int], written: list[int]) -> str:
    """What ids add to the text of those before them: of a vocabulary of words, the space between them too."""
    before, whole = (tokenizer.decode(np.array(ids, dtype=np.int64)) for ids in (read, read + written))
    if whole.startswith(before):
        return whole[len(before) :]
    return tokenizer.decode(np.array(written, dtype=np.int64))
