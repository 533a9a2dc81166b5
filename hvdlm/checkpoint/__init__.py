"""The state of a run on disk."""

from hvdlm.checkpoint.record import STATE
from hvdlm.checkpoint.store import (
    CheckpointConfig,
    NotFiniteError,
    best_of,
    complete_steps,
    damage,
    load_model,
    load_optimizer,
    load_tensors,
    newest,
    path_of,
    point_best,
    prepare,
    prune,
    read_state,
    resolve,
    save,
)

__all__ = [
    "STATE",
    "CheckpointConfig",
    "NotFiniteError",
    "best_of",
    "complete_steps",
    "damage",
    "load_model",
    "load_optimizer",
    "load_tensors",
    "newest",
    "path_of",
    "point_best",
    "prepare",
    "prune",
    "read_state",
    "resolve",
    "save",
]
