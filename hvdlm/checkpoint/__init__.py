"""The state of a run on disk."""

from hvdlm.checkpoint.record import STATE
from hvdlm.checkpoint.store import (
    CheckpointConfig,
    NotFiniteError,
    complete_steps,
    damage,
    load_model,
    load_optimizer,
    load_tensors,
    newest,
    path_of,
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
    "complete_steps",
    "damage",
    "load_model",
    "load_optimizer",
    "load_tensors",
    "newest",
    "path_of",
    "prepare",
    "prune",
    "read_state",
    "resolve",
    "save",
]
