"""From a checkpoint folder alone to a model that evaluates and writes."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hvdlm import checkpoint
from hvdlm.config import validate
from hvdlm.corpora import SplitEvaluation, open_corpora
from hvdlm.device import prepare_device
from hvdlm.errors import UserError
from hvdlm.generate import Sampling, generate
from hvdlm.host import Place, find_place
from hvdlm.manifest import TOKENIZER
from hvdlm.models import build_model
from hvdlm.run import RunConfig
from hvdlm.tokenizer import Tokenizer, digest, load
from hvdlm.world.interface import World
from hvdlm.world.serial import SerialWorld

log = logging.getLogger("hvdlm")

EVAL_BATCH_TOKENS = 8192


def restore(path: Path, overrides: tuple[str, ...], place: Place) -> tuple[nn.Module, RunConfig, dict]:
    """The model of a checkpoint on this rank's device, its config with overrides, its state.

    Where the run kept a running mean of the weights, that is the model.
    """
    state = checkpoint.read_state(path)
    config = validate(RunConfig, state["config"], path / checkpoint.STATE, overrides)
    device = prepare_device(config.train, place)
    model = build_model(config.model, state["vocab_size"], config.seed)
    checkpoint.load_model(path, model)
    means = checkpoint.load_tensors(path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f"ema/{name}" in means:
                parameter.copy_(means[f"ema/{name}"])
    return model.to(device), config, state


def evaluate_checkpoint(target: Path, overrides: tuple[str, ...], split: str, world: World) -> dict:
    """Evaluate a checkpoint on a whole split with all ranks; the result is equal on each."""
    path = world.on_root(lambda: checkpoint.resolve(target))
    place = find_place(world)
    with world.together():
        model, config, state = restore(path, overrides, place)
        corpora = open_corpora(config.data)
        found = corpora.manifest.tokenizer_digest
        if found != state["tokenizer_digest"]:
            raise UserError(
                f"{corpora}: was made with tokenizer {found}, {path} was trained with "
                f"{state['tokenizer_digest']}; set data.path to data of the same tokenizer"
            )
        evaluation = SplitEvaluation(corpora, split, seq_len=config.data.seq_len)
    batch = max(1, EVAL_BATCH_TOKENS // config.data.seq_len)
    result, by_corpus = evaluation.run(model, batch=batch, precision=config.train.precision, world=world)
    parts = {"corpora": {name: part.to_dict() for name, part in by_corpus.items()}} if by_corpus else {}
    return {**result.to_dict(), **parts, "split": split, "step": state["step"], "checkpoint": str(path)}


def continue_text(target: Path, overrides: tuple[str, ...], prompt: str, sampling: Sampling, max_tokens: int) -> str:
    """The text that a checkpoint's model writes after `prompt`."""
    path = checkpoint.resolve(target)
    model, config, state = restore(path, overrides, find_place(SerialWorld()))
    tokenizer = _tokenizer_of(path, state)
    ids = [state["eos_id"], *tokenizer.encode(prompt).tolist()]
    written = generate(model, ids, sampling, seq_len=config.data.seq_len, max_tokens=max_tokens, eos_id=state["eos_id"])
    return tokenizer.decode(np.array(list(written), dtype=np.int64))


def _tokenizer_of(path: Path, state: dict) -> Tokenizer:
    """RUN/tokenizer.json, found from RUN/checkpoints/step_…; it must be the one trained with."""
    file = path.resolve().parent.parent / TOKENIZER
    tokenizer = load(file)
    if digest(tokenizer) != state["tokenizer_digest"]:
        raise UserError(f"{file}: is not the tokenizer that {path} was trained with ({state['tokenizer_digest']})")
    return tokenizer
