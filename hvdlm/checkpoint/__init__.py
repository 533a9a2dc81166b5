"""The state of a run on disk."""

from hvdlm.checkpoint.record import STATE
from hvdlm.checkpoint.store import (
    CheckpointConfig,
    NotFiniteError,
    TakesShapes,
    complete_steps,
    damage,
    load_model,
    load_optimizer,
    load_tensors,
    model_state,
    newest,
    path_of,
    prepare,
    prune,
    read_state,
    read_weights,
    resolve,
    save,
)

__all__ = [
    "STATE",
    "CheckpointConfig",
    "NotFiniteError",
    "TakesShapes",
    "complete_steps",
    "damage",
    "load_model",
    "load_optimizer",
    "load_tensors",
    "model_state",
    "newest",
    "path_of",
    "prepare",
    "prune",
    "read_state",
    "read_weights",
    "resolve",
    "save",
]
