"""From a checkpoint folder alone to a model."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from hvdlm import checkpoint
from hvdlm.compute.device import prepare_device
from hvdlm.config import validate
from hvdlm.data.fields import FieldEntry
from hvdlm.data.manifest import TOKENIZER
from hvdlm.errors import UserError
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

log = logging.getLogger("hvdlm")


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint holds: the model on this rank's device, its config with overrides, its state."""

    model: LanguageModel
    task: Task
    config: RunConfig
    state: dict


def load_checkpoint_model(path: Path, overrides: tuple[str, ...], place: Place) -> Loaded:
    """A checkpoint's model; where the run kept a running mean of the weights, that is it."""
    state = checkpoint.read_state(path)
    _check_extensions(path, state)
    config = validate(RunConfig, state["config"], path / checkpoint.STATE, overrides)
    remark_edited(config, state, path)
    device = prepare_device(config.train.device, place, threads=config.train.threads)
    vocabulary = Vocabulary(state["vocab_size"], state["eos_id"], state.get("bos_id"))
    task = build_task(config, vocabulary, fields_in(state), lambda: tokenizer_of(path, state))
    model = model_of(config, vocabulary, task)
    load_weights(path, model, mean=True)
    return Loaded(model.to(device), task, config, state)


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
