"""The state of a run on disk."""

from hvdlm.checkpoint.store import (
    ENGINE,
    LATEST,
    MODEL,
    OPTIMIZER,
    STATE,
    CheckpointConfig,
    complete_steps,
    damage,
    folder_of,
    load_model,
    load_optimizer,
    load_tensors,
    newest,
    read_state,
    resolve,
    save,
)

__all__ = [
    "ENGINE",
    "LATEST",
    "MODEL",
    "OPTIMIZER",
    "STATE",
    "CheckpointConfig",
    "complete_steps",
    "damage",
    "folder_of",
    "load_model",
    "load_optimizer",
    "load_tensors",
    "newest",
    "read_state",
    "resolve",
    "save",
]
