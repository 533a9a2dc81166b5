"""A new run that begins with the weights of another one, or of one of its checkpoints.

    hvdlm train configs/quickstart.yaml run_dir=runs/tuned init.from=runs/tour optim.lr=3e-4 data.path=runs/mine

Steps, schedule, data order and validation losses are the new run's own and begin at 0.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hvdlm import checkpoint
from hvdlm.errors import UserError
from hvdlm.train.config import RunConfig
from hvdlm.train.init_config import InitConfig
from hvdlm.train.step import Engine

log = logging.getLogger("hvdlm")


def pinned(config: RunConfig) -> tuple[RunConfig, Path | None]:
    """The config with `init.step` and `init.digest` filled in, and the checkpoint to begin with.

    Rank 0 calls it. A run that has checkpoints of its own begins with none: what it once began with is filled in from
    them, and the folder in `init.from` may be gone. UserError if there is no such checkpoint.
    """
    if config.init is None:
        return config, None
    init, run_dir = config.init, config.run_dir
    if run_dir.resolve() in (init.source.resolve(), _run_of(init.source)):
        raise UserError(
            f"init.from: {init.source} is of this run itself, which goes on from its newest checkpoint; "
            "set another run_dir, or leave init out"
        )
    if steps := checkpoint.complete_steps(run_dir):
        return _filled(config, _noted(run_dir / "checkpoints" / f"step_{steps[-1]:08d}")), None
    path = _find(init)
    state = checkpoint.read_state(path)
    digest = state["files"]["model.safetensors"]["sha256"]
    if init.digest is not None and init.digest != digest:
        raise UserError(
            f"init.digest: {init.digest}, but the weights of {path} have {digest}: it is another run, or was made anew;"
            " set init.digest: null to take it"
        )
    return _filled(config, {"from": str(init.source), "step": state["step"], "digest": digest}), path


def _run_of(source: Path) -> Path | None:
    """The run that a checkpoint's folder, `latest` included, is in."""
    return source.parent.resolve().parent if source.parent.name == "checkpoints" else None


def _noted(path: Path) -> dict[str, Any]:
    """`init` as a checkpoint's run had it; one that cannot be read is judged where it is loaded."""
    try:
        return checkpoint.read_state(path)["config"]["init"] or {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _filled(config: RunConfig, noted: dict[str, Any]) -> RunConfig:
    assert config.init is not None
    if noted.get("from") != str(config.init.source):
        return config
    missing = {key: noted.get(key) for key in ("step", "digest") if getattr(config.init, key) is None}
    return config.model_copy(update={"init": config.init.model_copy(update=missing)})


def _find(init: InitConfig) -> Path:
    source = init.source
    if not source.is_dir():
        raise UserError(f"init.from: {source}: there is no such folder; give a run folder or RUN/checkpoints/step_…")
    if init.step is not None and _run_of(source) is None:
        source = source / "checkpoints" / f"step_{init.step:08d}"
        if not source.is_dir():
            have = ", ".join(map(str, checkpoint.complete_steps(init.source))) or "none"
            raise UserError(f"init.step: {init.source} has no checkpoint of step {init.step}; it has {have}")
    try:
        path = checkpoint.resolve(source)
    except UserError as error:
        raise UserError(f"init.from: {error}") from None
    step = checkpoint.read_state(path)["step"]
    if init.step not in (None, step):
        raise UserError(f"init.step: {init.step}, but init.from: {source} is the checkpoint of step {step}")
    return path


def begin_with(path: Path, engine: Engine, tokenizer_digest: str) -> None:
    """Give this rank's model (and optimizer) what the checkpoint holds; every rank reads the same files.

    UserError if it is of another tokenizer or model, or not finite.
    """
    init, state = engine.config.init, checkpoint.read_state(path)
    assert init is not None
    if state["tokenizer_digest"] != tokenizer_digest:
        raise UserError(
            f"init.from: {path} was trained with tokenizer {state['tokenizer_digest']}, the data were made with "
            f"{tokenizer_digest}; preprocess them with tokenizer.path: {path.resolve().parent.parent}/tokenizer.json"
        )
    _check_same_model(path, state["config"]["model"], engine)
    takes_mean = load_weights(path, engine.model, mean=not init.optimizer if init.ema is None else init.ema)
    if init.ema and not takes_mean:
        raise UserError(f"init.ema: {path} holds no running mean of the weights; set it to false")
    if init.optimizer:
        name = state["config"]["optim"]["name"]
        if name != engine.config.optim.name:
            raise UserError(
                f"init.optimizer: {path} has the state of optim.name: {name}, this run's is {engine.config.optim.name};"
                " set it the same, or init.optimizer: false"
            )
        checkpoint.load_optimizer(path, engine.model, engine.sync.optimizer)
    _check_finite(path, engine)
    what = "the running mean of the weights" if takes_mean else "the weights"
    also = " and the optimizer's state" if init.optimizer else ""
    log.info("beginning with %s%s of %s (%.12s…)", what, also, path, init.digest)


def load_weights(path: Path, model: nn.Module, *, mean: bool) -> bool:
    """The checkpoint's weights, or with `mean` their running mean where there is one; whether it was that."""
    checkpoint.load_model(path, model)
    means = checkpoint.load_tensors(path) if mean else {}
    takes_mean = False
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f"ema/{name}" in means:
                parameter.copy_(means[f"ema/{name}"])
                takes_mean = True
    return takes_mean


def _check_same_model(path: Path, theirs: dict[str, Any], engine: Engine) -> None:
    model = engine.config.model
    keys = {"family": model.family, **model.architecture}
    defaults = {name: field.default for name, field in type(model).model_fields.items()}
    other = [
        f"model.{key} is {theirs.get(key, defaults[key])} there and {ours} here"
        for key, ours in keys.items()
        if theirs.get(key, defaults[key]) != ours
    ]
    if other:
        raise UserError(f"init.from: {path} is of another model: {'; '.join(other)}; make it the same")


def _check_finite(path: Path, engine: Engine) -> None:
    tensors = dict(engine.model.named_parameters())
    state = engine.sync.optimizer.state
    moments = {
        f"the optimizer's {entry} of {name}": value
        for name, parameter in tensors.items()
        for entry, value in state.get(parameter, {}).items()
        if isinstance(value, torch.Tensor)
    }
    for name, tensor in {**tensors, **moments}.items():
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"init.from: {path}: {name} holds inf or nan; take an earlier checkpoint by init.step")
