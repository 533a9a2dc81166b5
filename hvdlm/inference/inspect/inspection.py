"""A text looked at with a checkpoint's model: all that applies to its family and its task."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hvdlm import checkpoint
from hvdlm.errors import UserError
from hvdlm.inference.generate import count_unknown
from hvdlm.inference.inspect.asked import Asked, Looked, Subject
from hvdlm.inference.inspect.attention import AttentionMap, maps_of, sites_of
from hvdlm.inference.inspect.neighbours import Neighbours, neighbours_of
from hvdlm.inference.inspect.occlusion import look_without_each
from hvdlm.inference.inspect.passages import Passage
from hvdlm.inference.inspect.reading import look_behind_masks, look_on, look_through
from hvdlm.inference.inspect.verdicts import look_at_target, look_at_words, look_for_answer
from hvdlm.inference.load import Loaded, load_checkpoint_model, tokenizer_of
from hvdlm.tasks import Task
from hvdlm.tasks.classify import Classify
from hvdlm.tasks.elbo import Elbo
from hvdlm.tasks.language_model import LanguageModelling
from hvdlm.tasks.masked import MaskedTokens
from hvdlm.tasks.seq2seq import Seq2seq
from hvdlm.tasks.span import Span
from hvdlm.tasks.tag import Tag
from hvdlm.tokenizer import Tokenizer
from hvdlm.world.place import find_place
from hvdlm.world.serial import SerialWorld

log = logging.getLogger("hvdlm")

# What each task shows of a text.
LOOKS: dict[type[Task], Callable[[Subject, Asked], Looked]] = {
    LanguageModelling: look_on,
    Elbo: look_through,
    MaskedTokens: look_behind_masks,
    Classify: look_without_each,
    Tag: look_at_words,
    Span: look_for_answer,
    Seq2seq: look_at_target,
}


@dataclass(frozen=True)
class Inspection:
    """What was found, for pages, terminals and programs."""

    checkpoint: str
    step: int
    family: str
    task: str
    passage: Passage | None = None
    attention: tuple[AttentionMap, ...] = ()
    neighbours: tuple[Neighbours, ...] = ()

    @property
    def headline(self) -> str:
        return f"{self.checkpoint}: model.family: {self.family}, task: {self.task}, step {self.step:,}"

    def numbers(self, *, attention: bool = True) -> dict[str, Any]:
        """All that was found; a map of attention is thousands of numbers, which not everybody wants."""
        found: dict[str, Any] = {name: getattr(self, name) for name in ("checkpoint", "step", "family", "task")}
        if self.passage is not None:
            found |= {"shown": self.passage.title, **self.passage.numbers}
        if self.attention and attention:
            found["attention"] = [one.numbers() for one in self.attention]
        if self.neighbours:
            found["neighbours"] = [one.numbers() for one in self.neighbours]
        return found


@torch.no_grad()
def inspect_text(target: Path, overrides: tuple[str, ...], asked: Asked) -> Inspection:
    """What a checkpoint's model makes of a text; UserError for what it cannot be asked."""
    for option, text in (("TEXT", asked.text), ("--pair", asked.pair)):
        _check_text(option, text)
    path = checkpoint.resolve(target)
    loaded = load_checkpoint_model(path, overrides, find_place(SerialWorld()))
    loaded.model.eval()
    subject = Subject(loaded, tokenizer_of(path, loaded.state))
    passage, maps = None, list[AttentionMap]()
    if asked.text is not None:
        _check_options(asked, loaded)
        _remark_unknown(subject.tokenizer, asked.text)
        looked = _look_of(loaded.task)(subject, asked)
        passage = looked.passage
        is_named = asked.layer is not None or asked.head is not None
        if is_named or (asked.attends and sites_of(loaded.model)):
            maps = maps_of(subject, looked, asked)
    near = tuple(neighbours_of(subject, word, asked.num_neighbours) for word in asked.neighbours)
    config, step = loaded.config, int(loaded.state["step"])
    return Inspection(str(path), step, config.model.family, config.task.kind, passage, tuple(maps), near)


def _look_of(task: Task) -> Callable[[Subject, Asked], Looked]:
    """That of the task's class, or of the nearest one that it is made from."""
    for kind in type(task).__mro__:
        if kind in LOOKS:
            return LOOKS[kind]
    raise UserError(f"TEXT: a task of class {type(task).__name__} shows nothing of a text; ask for --neighbours alone")


def _check_options(asked: Asked, loaded: Loaded) -> None:
    """UserError for what would have no effect."""
    kind, reads_records = loaded.config.task.kind, loaded.config.task.reads_records
    is_labelled = isinstance(loaded.task, Classify)
    given = (
        ("--pair", asked.pair is not None and not reads_records, "reads one text"),
        ("--stride", asked.stride is not None and reads_records, "reads a record as a whole"),
        ("--label", asked.label is not None and not is_labelled, "gives no text a label"),
    )
    for option, is_odd, why in given:
        if is_odd:
            raise UserError(f"{option}: task: {kind} {why}; leave it out")


def _remark_unknown(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).tolist()
    if num_unknown := count_unknown(tokenizer, text, ids):
        remark = "TEXT: %d of %d tokens are unknown to the vocabulary, so the model does not see what they are"
        log.warning(remark, num_unknown, len(ids))


def _check_text(option: str, text: str | None) -> None:
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{option}: character {error.start} is not UTF-8; mend the text") from None
