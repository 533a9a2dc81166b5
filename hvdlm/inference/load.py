"""From a checkpoint folder alone to a model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hvdlm import checkpoint
from hvdlm.compute.device import prepare_device
from hvdlm.config import changes, validate
from hvdlm.data.fields import FieldEntry
from hvdlm.data.manifest import TOKENIZER
from hvdlm.errors import UserError
from hvdlm.exchange.manners import ends_in, turn_ends
from hvdlm.inference.matrices import pack, quantize
from hvdlm.launch.words import import_words
from hvdlm.models import MODELS, LanguageModel, Vocabulary
from hvdlm.sync.strategies import ALL_SYNCS
from hvdlm.tasks import TASKS, Task
from hvdlm.tokenizer import Tokenizer, digest, load
from hvdlm.train.config import RunConfig
from hvdlm.train.initial_weights import load_weights
from hvdlm.train.parts import build_task, remark_edited
from hvdlm.train.trained import model_of
from hvdlm.world.place import Place

INT8 = "matrices as int8"

log = logging.getLogger("hvdlm")


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint holds: the model on this rank's device, its config with overrides, its state."""

    model: LanguageModel
    task: Task
    config: RunConfig
    state: dict
    vocabulary: Vocabulary
    ends: frozenset[int] = frozenset()  # ids that end a text
    changes: tuple[str, ...] = ()  # settings of the model that are not those of its training

    @property
    def how(self) -> dict[str, Any]:
        """By what it is measured, beside the protocol; numbers of other settings are not to be compared."""
        settings = self.config.task.measuring
        found = {"settings": settings, "model_changes": list(self.changes)}
        return {name: value for name, value in found.items() if value}

    def prompt_of(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Ids of a text as the model was trained to see them before what it writes."""
        if not self.task.continues_whole:
            return (self.vocabulary.first_id, *ids)
        begin = () if self.vocabulary.bos_id is None else (self.vocabulary.bos_id,)
        return (*begin, *ids, self.vocabulary.eos_id)

    def check_writes(self, name: object) -> None:
        """UserError where it gives no text."""
        if not self.task.predicts_tokens:
            kind = self.config.task.kind
            raise UserError(f"{name}: task: {kind} writes no text; `hvdlm infer` says what such a model makes of texts")
        if not self.model.reads_source:
            self.model.initial_state(1)


def context_of(config: RunConfig) -> int | None:
    """Tokens that a model reads at once, those that it writes among them; None where its state has a fixed size."""
    return None if config.model.carries_state else config.data.seq_len


def prepare(loaded: Loaded, path: Path, tokenizer: Tokenizer, *, int8: bool = False) -> Loaded:
    """The same to be used and not trained: with matrices laid out anew or as int8, and all that may end a text.

    That is its end of text, ends of turns in its vocabulary, and what RUN/generation_config.json names.
    """
    known = range(loaded.vocabulary.size)
    others = turn_ends(tokenizer) | ends_in(path.resolve().parent.parent)
    loaded = replace(loaded, ends=loaded.ends | {token for token in others if token in known})
    if int8:
        return as_int8(loaded)
    pack(loaded.model)
    return loaded


def load_writer(
    path: Path, overrides: tuple[str, ...], place: Place, *, int8: bool = False
) -> tuple[Loaded, Tokenizer]:
    """A checkpoint's model that writes text, prepared, and its tokenizer; UserError for one that writes none."""
    loaded = load_checkpoint_model(path, overrides, place)
    loaded.check_writes(path)
    tokenizer = tokenizer_of(path, loaded.state)
    return prepare(loaded, path, tokenizer, int8=int8), tokenizer


def as_int8(loaded: Loaded) -> Loaded:
    """With matrices as int8, which changes what it says."""
    quantize(loaded.model)
    return replace(loaded, changes=(*loaded.changes, INT8))


def load_checkpoint_model(path: Path, overrides: tuple[str, ...], place: Place) -> Loaded:
    """A checkpoint's model; where the run kept a running mean of the weights, that is it.

    UserError for overrides that would make another task of it; what they change of the model is said.
    """
    state = checkpoint.read_state(path)
    _check_extensions(path, state)
    config = validate(RunConfig, state["config"], path / checkpoint.STATE, overrides)
    changed = _changes(validate(RunConfig, state["config"], path / checkpoint.STATE), config, path) if overrides else ()
    remark_edited(config, state, path)
    device = prepare_device(config.train.device, place, threads=config.train.threads)
    vocabulary = Vocabulary(state["vocab_size"], state["eos_id"], state.get("bos_id"))
    task = build_task(config, vocabulary, fields_in(state), lambda: tokenizer_of(path, state))
    model = model_of(config, vocabulary, task)
    load_weights(path, model, mean=True)
    return Loaded(model.to(device), task, config, state, vocabulary, frozenset({vocabulary.eos_id}), changed)


def _changes(trained: RunConfig, now: RunConfig, path: Path) -> tuple[str, ...]:
    """What makes other numbers of the same weights: of a model it may be meant, of a task and its head it is not."""
    computing = [
        {
            "model": config.model.architecture,
            "task": config.task.model_dump(exclude=set(config.task.measuring)),
            "lora": config.lora and config.lora.model_dump(),
        }
        for config in (trained, now)
    ]
    found = changes(*computing)
    if other := next((line for line in found if not line.startswith("model.")), ""):
        known = ", ".join(f"task.{name}" for name in now.task.measuring) or "no other keys of the task"
        raise UserError(
            f"{other}: {path} was trained with the former; leave it out, or train anew ({known} may be set)"
        )
    for line in found:
        log.warning("%s: not as %s was trained; the weights are taken as they are", line, path)
    return tuple(found)


def fields_in(state: dict) -> dict[str, FieldEntry]:
    """The fields of the records that a checkpoint was trained on, as its state tells."""
    return {name: FieldEntry.model_validate(field, strict=False) for name, field in state.get("fields", {}).items()}


def tokenizer_of(path: Path, state: dict) -> Tokenizer:
    """RUN/tokenizer.json, found from RUN/checkpoints/step_…; it must be the one trained with."""
    file = path.resolve().parent.parent / TOKENIZER
    tokenizer = load(file)
    if digest(tokenizer) != state["tokenizer_digest"]:
        raise UserError(f"{file}: is not the tokenizer that {path} was trained with ({state['tokenizer_digest']})")
    return tokenizer


def _check_extensions(path: Path, state: dict) -> None:
    """UserError if what a file of --import had registered is not there now."""
    config = state["config"]
    named = (
        (config["model"]["family"], MODELS),
        (config.get("task", {}).get("kind", "lm"), TASKS),
        (config["sync"]["kind"], ALL_SYNCS),
    )
    if (files := state.get("extensions")) and any(name not in registry for name, registry in named):
        raise UserError(f"{path}: was trained with {' '.join(import_words(files))}; give that again")
