"""A new run that begins with the weights of another one, of one of its checkpoints, or of a Hugging Face folder.

    hvdlm train configs/quickstart.yaml run_dir=runs/tuned init.from=runs/tour optim.lr=3e-4 data.path=runs/mine
    hvdlm train configs/finetune.yaml init.from=downloads/gpt2 data.path=runs/mine

A run for another task takes the body, and its head begins anew. Steps, schedule, data order and validation losses are
the new run's own and begin at 0.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from hvdlm import checkpoint
from hvdlm.checkpoint import Checkpoint, Cut
from hvdlm.data.manifest import TOKENIZER
from hvdlm.errors import UserError
from hvdlm.exchange import Imported, is_folder, read_model, weights_digest
from hvdlm.exchange.tokenizer_files import MASK, encodes_alike, tokenizer_files
from hvdlm.models import FamilyConfig
from hvdlm.models.lora import LoraConfig, is_of_adapter, merged, with_adapter
from hvdlm.optim.roles import HEAD
from hvdlm.tokenizer import AUTO, load
from hvdlm.train.config import RunConfig
from hvdlm.train.init_config import InitConfig
from hvdlm.train.learner import Learner
from hvdlm.train.taken_weights import Shape, Source, Taken, Target, head_shapes, take, take_parts

log = logging.getLogger("hvdlm")

MEAN = f"{checkpoint.ENGINE}ema/"  # what the keys of the weights' running mean begin with


def pinned(config: RunConfig) -> tuple[RunConfig, Path | None]:
    """The config with `init.step` and `init.digest` filled in, and the checkpoint to begin with.

    Rank 0 calls it. A run that has checkpoints of its own begins with none: its `init` is filled in from them, and the
    folder that it names may be gone. UserError if there is no such checkpoint.
    """
    if steps := checkpoint.complete_steps(config.run_dir):
        _refuse_own(config)
        return _as_noted(config, [checkpoint.path_of(config.run_dir, step) for step in reversed(steps)]), None
    if config.init is None:
        return config, None
    _refuse_own(config)
    path = _find(config.init)
    digest = _digest_of(path)
    if config.init.digest not in (None, digest):
        raise UserError(
            f"init.digest: {config.init.digest}, but the weights of {path} have {digest}: it is another run, or was"
            " made anew; set init.digest: null to take it"
        )
    step = {} if is_folder(path) else {"step": checkpoint.read_state(path)["step"]}
    return _with(config, {**step, "digest": digest}), path


def _refuse_own(config: RunConfig) -> None:
    if config.init is not None:
        source = config.init.source
        is_checkpoint = source.parent.name == "checkpoints"
        run_of = Path(os.path.realpath(source.parent)).parent if is_checkpoint else Path(os.path.realpath(source))
        if run_of == Path(os.path.realpath(config.run_dir)):  # Path.resolve raises where a link leads to itself
            raise UserError(
                f"init.from: {source} is of this run itself, which goes on from its newest checkpoint; "
                "set another run_dir, or leave init out"
            )


def _as_noted(config: RunConfig, paths: Iterable[Path]) -> RunConfig:
    """With the `init` that the first readable checkpoint notes; what this config says of it otherwise is refused later.

    A checkpoint that cannot be read is judged where it is loaded.
    """
    for path in paths:
        try:
            noted = checkpoint.read_state(path)["config"].get("init")
            init = InitConfig.model_validate(noted) if noted else None
        except (UserError, ValueError):
            continue
        if init is None:
            return config
        if config.init is None:
            return config.model_copy(update={"init": init})
        known = {key: getattr(init, key) for key in ("step", "digest") if getattr(config.init, key) is None}
        if _is_moved(init, config.init):
            known["from"] = init.source
        return _with(config, known)
    return config


def _is_moved(noted: InitConfig, given: InitConfig) -> bool:
    """Whether the folder that is given now holds, or is, what the run began with."""
    if os.path.realpath(noted.source) == os.path.realpath(given.source):
        return True
    try:
        return _digest_of(_find(given.model_copy(update={"step": noted.step}))) == noted.digest
    except UserError:
        return False


def _digest_of(path: Path) -> str:
    """sha256 of a checkpoint's weights, as its state.json has it; of a Hugging Face folder that of its files."""
    if is_folder(path):
        return weights_digest(path)
    return checkpoint.weights_digest(checkpoint.read_state(path))


def _with(config: RunConfig, values: dict[str, Any]) -> RunConfig:
    assert config.init is not None
    return config.model_copy(update={"init": config.init.model_copy(update=values)})


def _find(init: InitConfig) -> Path:
    source = init.source
    if not source.is_dir():
        raise UserError(f"init.from: {source}: there is no such folder; give a run folder or RUN/checkpoints/step_…")
    if is_folder(source):
        for key in ("step", "optimizer", "ema"):
            if getattr(init, key):
                raise UserError(f"init.{key}: a folder of Hugging Face's, {source}, has none; leave it out")
        return source
    if init.step is not None and source.parent.name != "checkpoints":
        source = checkpoint.path_of(source, init.step)
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


def begin_with(path: Path, learner: Learner, tokenizer_digest: str) -> None:
    """Give this rank's model (and optimizer) what the checkpoint or folder holds; every rank reads what it has of it.

    UserError if it is of another tokenizer or model, or not finite.
    """
    if is_folder(path):
        what, taken = _begin_with_folder(path, learner)
    else:
        what, taken = _begin_with_run(path, learner, tokenizer_digest)
    _check_finite(path, learner)
    assert learner.config.init is not None
    log.info("beginning with %s of %s (%.12s…)%s", what, path, learner.config.init.digest, taken and f": {taken}")


def _begin_with_run(path: Path, learner: Learner, tokenizer_digest: str) -> tuple[str, str]:
    """What it is, and what was taken of it where that is not all."""
    init, found = learner.config.init, Checkpoint(path)
    state = found.state
    assert init is not None
    if state["tokenizer_digest"] != tokenizer_digest:
        without = " and tokenizer.bos: none" if state.get("bos_id") is None else ""
        raise UserError(
            f"init.from: {path} was trained with tokenizer {state['tokenizer_digest']}, the data were made with "
            f"{tokenizer_digest}; preprocess them with tokenizer.path: {path.resolve().parent.parent}/tokenizer.json"
            f"{without}"
        )
    _check_same_model(path, state["config"].get("model", {}), learner)
    mean = not init.optimizer if init.ema is None else init.ema
    if is_same := _is_same_model(found, learner):
        takes_mean, taken = load_weights(found, learner.model, mean=mean, cuts=learner.cuts or None), ""
    else:
        takes_mean, taken = _take_body(found, learner, mean=mean)
    if init.ema and not takes_mean:
        raise UserError(f"init.ema: {path} holds no running mean of the weights; set it to false")
    if init.optimizer:
        if state.get("averaged"):
            raise UserError(f"init.optimizer: {path} is a mean of checkpoints, without such a state; set it to false")
        name = state["config"].get("optim", {}).get("name")
        if name != learner.config.optim.name:
            raise UserError(
                f"init.optimizer: {path} has the state of optim.name: {name}, this run's is"
                f" {learner.config.optim.name}; set it the same, or init.optimizer: false"
            )
        if not is_same:
            raise UserError(
                f"init.optimizer: {path} has the state of another head, of adapters, or of other frozen weights;"
                " set init.optimizer: false"
            )
        learner.load_optimizer(path)
    also = " and the optimizer's state" if init.optimizer else ""
    return f"{'the running mean of the weights' if takes_mean else 'the weights'}{also}", taken


def _is_same_model(found: Checkpoint, learner: Learner) -> bool:
    """Whether the checkpoint holds this very model, head and all, for the same kind of task."""
    if isinstance(learner.model, checkpoint.TakesShapes):
        return True
    if any(found.state["config"].get(key) or getattr(learner.config, key) for key in ("lora", "freeze")):
        return False
    is_same_task = _task_of(found.state, learner) == learner.config.task.kind
    return is_same_task and found.shapes(checkpoint.MODEL) == learner.whole.shapes


def _task_of(state: dict[str, Any], learner: Learner) -> str:
    """The kind of the checkpoint's task; those of old versions do not tell it, and had what their family is for."""
    return state["config"].get("task", {}).get("kind", learner.config.model.tasks[0])


def _take_body(found: Checkpoint, learner: Learner, *, mean: bool) -> tuple[bool, str]:
    """Whether it was the running mean, and what was taken; adapters of the source are merged into its matrices."""
    weights, means = found.shapes(checkpoint.MODEL), found.shapes(MEAN) if mean else {}
    lora = found.state["config"].get("lora")
    scale = LoraConfig.model_validate(lora).scale if lora else 0.0

    def stored(name: str) -> torch.Tensor:
        return found.read(MEAN if name in means else checkpoint.MODEL, [name])[name]

    def read(name: str) -> torch.Tensor:
        return merged({each: stored(each) for each in with_adapter(name) if each in weights}, scale)[name]

    is_same_task = _task_of(found.state, learner) == learner.config.task.kind
    shapes = {name: shape for name, shape in (weights | means).items() if not (lora and is_of_adapter(name))}
    source = Source(str(found.path), shapes, read, found.state["vocab_size"], same_extras=is_same_task)
    taken = take(_target(learner), source, with_head=is_same_task and _has_our_head(shapes, learner))
    _check_new_head_is_trained(taken, learner)
    return bool(means), str(taken)


def _target(learner: Learner) -> Target:
    return Target(learner.whole.shapes, checkpoint.model_state(learner.model), learner.cuts)


def _has_our_head(shapes: Mapping[str, Shape], learner: Learner) -> bool:
    return head_shapes(shapes) == head_shapes(learner.whole.shapes)


def _begin_with_folder(path: Path, learner: Learner) -> tuple[str, str]:
    """The same of a Hugging Face folder."""
    found = read_model(path)
    theirs = load(found.tokenizer, bos=AUTO)
    data = learner.config.data.corpora[0].path / TOKENIZER
    tokenizer = load(data)
    if not encodes_alike(tokenizer, theirs):
        raise UserError(
            f"init.from: {path} has another vocabulary than the data, {data.parent}; preprocess them with"
            f" tokenizer.path: {found.tokenizer}"
        )
    _check_same_model(path, found.section, learner)
    tensors = {**found.body, **found.head}
    extra = tokenizer_files(theirs).id_of(MASK)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    source = Source(str(path), shapes, tensors.__getitem__, tokenizer.vocab_size, extra=extra)
    target = _target(learner)
    taken = take(target, source, with_head=_has_our_head(shapes, learner))
    take_parts(target, _parts_of_head(found, learner), taken)
    _check_new_head_is_trained(taken, learner)
    return f"the {found.model_type} weights", str(taken)


def _parts_of_head(found: Imported, learner: Learner) -> dict[str, torch.Tensor]:
    """What a folder has of a task's head: BERT's pooler, and the last layer where task and labels are the same.

    Its rows go by the names of the labels, which may have another order there; that of a number has no name here.
    """
    parts = {f"{HEAD}.transform.{part}": tensor for part, tensor in found.pooler.items()}
    head = found.task_head
    labels = learner.task.outputs or (() if head is None else head.labels)
    if head is not None and head.kind == learner.config.task.kind and sorted(head.labels) == sorted(labels):
        rows = [head.labels.index(label) for label in labels]
        parts |= {f"{HEAD}.out.{part}": head.state[part][rows] for part in ("weight", "bias") if part in head.state}
    return parts


def _check_new_head_is_trained(taken: Taken, learner: Learner) -> None:
    whole = learner.whole
    if dead := [name for name in taken.new_head if name in whole.names and name not in whole.trained]:
        remedy = "set lora.full: [^head]" if learner.config.lora else "leave it out of freeze"
        raise UserError(f"init.from: {', '.join(dead)} would begin anew and never learn: it is frozen; {remedy}")


def load_weights(
    source: Path | Checkpoint, model: nn.Module, *, mean: bool, cuts: Mapping[str, Cut] | None = None
) -> bool:
    """The checkpoint's weights, or with `mean` their running mean where there is one; whether it was that.

    With `cuts` the model is this rank's part of the whole one.
    """
    found = Checkpoint(source) if isinstance(source, Path) else source
    checkpoint.load_model(found, model, rounded=True, cuts=cuts)
    means = found.shapes(MEAN) if mean else {}
    if not means:
        return False
    learnt = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    ours = {name: cuts[name].shape if cuts else tuple(parameter.shape) for name, parameter in learnt.items()}
    names = ours if cuts else ours | means  # else other ranks may have the others
    if odd := [name for name in names if means.get(name) != ours.get(name)]:
        told = ", ".join(sorted(odd)[:3])
        raise UserError(f"{found.path}: its running mean of the weights is of another model ({told} …)")
    tensors = found.read(MEAN, learnt, cuts or {})
    with torch.no_grad():
        for name, parameter in learnt.items():
            parameter.copy_(tensors[name])
    return True


def _check_same_model(path: Path, theirs: dict[str, Any], learner: Learner) -> None:
    model = learner.config.model
    there = architecture_of(type(model), theirs)
    other = [
        f"model.{key} is {there.get(key)} there and {ours} here"
        for key, ours in model.architecture.items()
        if there.get(key) != ours
    ]
    if other:
        raise UserError(f"init.from: {path} is of another model: {'; '.join(other)}; make it the same")


def architecture_of(section: type[FamilyConfig], written: dict[str, Any]) -> dict[str, Any]:
    """That of a model as a checkpoint notes it, with the defaults of keys that have come since."""
    try:
        return section.model_validate(written).architecture
    except ValidationError:  # of another family, or with keys that are gone
        return written


def _check_finite(path: Path, learner: Learner) -> None:
    tensors = dict(learner.model.named_parameters())
    moments = {}
    for piece in learner.pieces({})[0]:
        if piece.key.startswith(checkpoint.OPTIMIZER):
            name, _, entry = piece.key.removeprefix(checkpoint.OPTIMIZER).rpartition("/")
            moments[f"the optimizer's {entry} of {name}"] = piece.tensor
    remedy = "copy it again, or take another" if is_folder(path) else "take an earlier checkpoint by init.step"
    for name, tensor in {**tensors, **moments}.items():
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"init.from: {path}: {name} holds inf or nan; {remedy}")
