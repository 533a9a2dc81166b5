"""The state of a run on disk."""

from hvdlm.checkpoint.boxes import Box, Cut, Piece
from hvdlm.checkpoint.finding import newest, resolve
from hvdlm.checkpoint.folder import complete_steps, path_of
from hvdlm.checkpoint.links import best_of, point_best
from hvdlm.checkpoint.reading import (
    ENGINE,
    MODEL,
    OPTIMIZER,
    Checkpoint,
    TakesShapes,
    load_model,
    load_optimizer,
    load_tensors,
    model_state,
    read_state,
    read_weights,
)
from hvdlm.checkpoint.record import STATE
from hvdlm.checkpoint.retention import prune
from hvdlm.checkpoint.saver import Saved, Saver, SaveState, Unsaved
from hvdlm.checkpoint.soundness import damage
from hvdlm.checkpoint.store import (
    AUTO,
    CheckpointConfig,
    NotFiniteError,
    Shares,
    pieces_of,
    prepare,
    save,
    weights_digest,
)

__all__ = [
    "AUTO",
    "ENGINE",
    "MODEL",
    "OPTIMIZER",
    "STATE",
    "Box",
    "Checkpoint",
    "CheckpointConfig",
    "Cut",
    "NotFiniteError",
    "Piece",
    "SaveState",
    "Saved",
    "Saver",
    "Shares",
    "TakesShapes",
    "Unsaved",
    "best_of",
    "complete_steps",
    "damage",
    "load_model",
    "load_optimizer",
    "load_tensors",
    "model_state",
    "newest",
    "path_of",
    "pieces_of",
    "point_best",
    "prepare",
    "prune",
    "read_state",
    "read_weights",
    "resolve",
    "save",
    "weights_digest",
]
