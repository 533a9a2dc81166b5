"""From a checkpoint folder alone to a model."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import nn

from hvdlm import checkpoint
from hvdlm.compute.device import prepare_device
from hvdlm.config import validate
from hvdlm.models import build_model
from hvdlm.train.config import RunConfig
from hvdlm.train.initial_weights import load_weights
from hvdlm.world.place import Place

log = logging.getLogger("hvdlm")


def load_checkpoint_model(path: Path, overrides: tuple[str, ...], place: Place) -> tuple[nn.Module, RunConfig, dict]:
    """The model of a checkpoint on this rank's device, its config with overrides, its state.

    Where the run kept a running mean of the weights, that is the model.
    """
    state = checkpoint.read_state(path)
    config = validate(RunConfig, state["config"], path / checkpoint.STATE, overrides)
    device = prepare_device(config.train.device, place, threads=config.train.threads)
    model = build_model(config.model, state["vocab_size"], config.seed)
    load_weights(path, model, mean=True)
    return model.to(device), config, state
