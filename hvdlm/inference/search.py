"""The likeliest texts after a prompt, by beam search: as a checkpoint's model ends them, and within its context."""

from __future__ import annotations

from hvdlm.decoding import Decoding, Hypothesis, never_written
from hvdlm.inference.engine import LENGTH, STOP
from hvdlm.inference.load import Loaded, context_of
from hvdlm.inference.texts import TextWriter


def room_after(loaded: Loaded, num_prompt: int, most: int) -> int:
    """How many of `most` tokens there is room for after a prompt of so many; one in any case."""
    context = context_of(loaded.config)
    if context is None:
        return most
    return min(most, context if loaded.model.reads_source else max(1, context - num_prompt))


def search_of(loaded: Loaded, most: int, beams: int) -> Decoding:
    """A search for texts of at most `most` tokens."""
    never = never_written(loaded.model, loaded.vocabulary)
    return Decoding(most, loaded.vocabulary.eos_id, beams=beams, never=never, other_ends=tuple(loaded.ends))


def text_of(found: Hypothesis, writer: TextWriter) -> tuple[str, str]:
    """The text of a hypothesis, and why it ends: STOP or LENGTH."""
    text = "".join([*map(writer.take, found.ids), writer.finish()])
    return text, STOP if found.ended or writer.is_stopped else LENGTH
