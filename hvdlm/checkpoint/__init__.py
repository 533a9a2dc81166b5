"""The state of a run on disk."""

from hvdlm.checkpoint.store import (
    STATE,
    CheckpointConfig,
    complete_steps,
    damage,
    load_model,
    load_optimizer,
    load_tensors,
    newest,
    read_state,
    resolve,
    save,
)

__all__ = [
    "STATE",
    "CheckpointConfig",
    "complete_steps",
    "damage",
    "load_model",
    "load_optimizer",
    "load_tensors",
    "newest",
    "read_state",
    "resolve",
    "save",
]
