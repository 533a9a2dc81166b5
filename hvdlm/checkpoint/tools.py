"""What people ask of checkpoints beside training: what is there, is it sound, what differs, one file of weights."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from hvdlm.checkpoint.boxes import Piece, whole
from hvdlm.checkpoint.finding import newest
from hvdlm.checkpoint.folder import complete_steps, path_of
from hvdlm.checkpoint.links import best_of, named
from hvdlm.checkpoint.reading import ENGINE, MODEL, Checkpoint, read_state
from hvdlm.checkpoint.retention import outdated
from hvdlm.checkpoint.soundness import damage
from hvdlm.checkpoint.store import CheckpointConfig, prepare, write
from hvdlm.errors import UserError
from hvdlm.files import naming, replace_durably
from hvdlm.tables import counted

KEPT_FILES = ("config.yaml", "tokenizer.json", "chat_template.jinja", "generation_config.json")  # beside checkpoints


class Listed(NamedTuple):
    """A checkpoint as `ckpt ls` tells it; what cannot be read has a `fault` and no more."""

    path: Path
    step: int
    marks: list[str]  # latest, best
    parts: int
    bytes: int
    schema: int
    val_loss: float | None  # of these very weights
    fault: str


def listed(run_dir: Path) -> list[Listed]:
    """The checkpoints of a run, oldest first; their files are not read. UserError where there are none."""
    steps = complete_steps(run_dir)
    if not steps:
        raise UserError(f"{run_dir}: holds no complete checkpoint; give a run folder")
    best, found = best_of(run_dir), []
    for step in steps:
        path = path_of(run_dir, step)
        marks = ["latest"] * (step == steps[-1]) + ["best"] * (path == best)
        try:
            state = read_state(path)
        except UserError as error:
            found.append(Listed(path, step, marks, 0, 0, 0, None, str(error)))
            continue
        files = state["files"].values()
        losses = [loss for loss in state.get("engine", {}).get("val_losses", []) if loss is not None]
        num_bytes = sum(facts["bytes"] for facts in files)
        loss = losses[-1] if losses and state.get("validated") == step else None
        found.append(Listed(path, step, marks, len(files), num_bytes, state.get("schema", 1), loss, ""))
    return found


def chosen(target: Path) -> list[Path]:
    """The checkpoint that a user names, or all of the run that he names."""
    if (itself := named(target)) is not None:
        return [itself]
    steps = complete_steps(target)
    if not steps:
        raise UserError(f"{target}: holds no complete checkpoint; give a run folder or RUN/checkpoints/step_…")
    return [path_of(target, step) for step in steps]


def verified(target: Path) -> Iterator[tuple[Path, str | None]]:
    """Of each checkpoint what is wrong with it, or None: every file is hashed, every number looked at."""
    for path in chosen(target):
        yield path, damage(path)


class Difference(NamedTuple):
    """A tensor of two checkpoints that is not the same in both."""

    key: str
    what: str
    largest: float | None  # of the elements' differences


def differences(one: Checkpoint, other: Checkpoint) -> Iterator[Difference]:
    """Tensor by tensor, whatever mesh wrote them; of both only one tensor is in memory at a time."""
    for key in sorted(one.entries.keys() | other.entries.keys()):
        if key not in one.entries or key not in other.entries:
            yield Difference(key, f"only in the {'first' if key in one.entries else 'second'}", None)
            continue
        a, b = (each.read("", [key])[key] for each in (one, other))
        if a.shape != b.shape or a.dtype != b.dtype:
            yield Difference(key, f"{a.dtype} {tuple(a.shape)} and {b.dtype} {tuple(b.shape)}", None)
        elif (differs := (_bytes_of(a) != _bytes_of(b)).any(1)).any():
            what = f"{int(differs.sum()):,} of {counted(a.numel(), 'element')} differ"
            gap = a.view(-1)[differs].double() - b.view(-1)[differs].double() if a.is_floating_point() else None
            yield Difference(key, what, None if gap is None else float(gap.abs().max()))


GOES_ON_WITH = ("step", "updates", "data_digest", "tokenizer_digest", "engine", "optimizer_scalars")


def plain_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterator[str]:
    """Of two records, the plain values that training goes on with and that are not the same, a line each."""
    first, second = (_flat({name: state.get(name) for name in GOES_ON_WITH}) for state in (one, other))
    for name in sorted(first.keys() | second.keys()):
        if first.get(name) != second.get(name):
            yield f"{name}: {first.get(name)} and {second.get(name)}"


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """By the way to each."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {f"{before}{name}": value}
    return found


def _bytes_of(tensor: Tensor) -> Tensor:
    """Of each element, uint8 (n, size): 0.0 and -0.0 are not the same, and a NaN is the same as itself."""
    return tensor.contiguous().view(-1).view(torch.uint8).view(tensor.numel(), tensor.element_size())


def weights_in(path: Path, *, mean: bool) -> dict[str, Tensor]:
    """The model's weights in serial names and shapes; with `mean` the running mean where one was kept of them."""
    found = Checkpoint(path)
    weights = found.read(MODEL)
    if mean:
        means = found.read(f"{ENGINE}ema/")
        if not means:
            raise UserError(f"{path}: holds no running mean of the weights; leave --ema out")
        weights |= means
    return weights


def consolidate(path: Path, file: Path, *, mean: bool = False) -> int:
    """Write the weights to one file of safetensors; its size in bytes."""
    weights = {name: tensor.contiguous() for name, tensor in weights_in(path, mean=mean).items()}
    aside = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        with naming(file):
            aside.touch()
            mode = aside.stat().st_mode  # as the user has it; the library would let nobody else read the file
            save_file(weights, aside, {"format": "pt"})
            aside.chmod(mode)
            replace_durably(aside, file)
    except SafetensorError as error:  # as it tells a full disk
        raise UserError(f"{file}: cannot be written ({error})") from None
    finally:
        aside.unlink(missing_ok=True)
    return file.stat().st_size


def _means(opened: Sequence[Checkpoint]) -> Iterator[tuple[str, Tensor]]:
    """Of each tensor of the model; what is counted and not measured is as in the last."""
    names = opened[-1].names(MODEL)
    for each in opened:
        if each.names(MODEL) != names:
            raise UserError(f"{each.path}: is of another model than {opened[-1].path}; average those of one run")
    for name in names:
        tensors = [each.read(MODEL, [name])[name] for each in opened]
        if any(tensor.shape != tensors[0].shape for tensor in tensors):
            raise UserError(f"{name}: has another shape in each; average checkpoints of one run")
        last = tensors[-1]
        is_real = last.is_floating_point()
        yield name, torch.stack([tensor.double() for tensor in tensors]).mean(0).to(last.dtype) if is_real else last


def average(paths: Sequence[Path], run_dir: Path) -> Path:
    """The mean of the weights of several checkpoints, as the only one of a new run (Vaswani et al. 2017).

    It has no optimizer's state: such a run is for evaluation, for what uses models, and to begin others with.
    """
    if complete_steps(run_dir):
        raise UserError(f"{run_dir}: has checkpoints of its own; name a new folder")
    for path in paths:
        if fault := damage(path, finite=(MODEL,)):
            raise UserError(f"{path}: {fault}; leave it out")
    opened = [Checkpoint(path) for path in paths]
    if len({each.state["tokenizer_digest"] for each in opened}) > 1:
        raise UserError(f"{opened[-1].path}: its ids are another tokenizer's than some other's; average those of one")
    pieces = [
        Piece(f"{MODEL}{name}", mean, tuple(mean.shape), whole(tuple(mean.shape))) for name, mean in _means(opened)
    ]
    state: dict[str, Any] = dict(opened[-1].state)
    for gone in ("files", "tensors", "digest", "optimizer_scalars", "figures", "best", "validated"):
        state.pop(gone, None)
    state["averaged"] = [str(each.path) for each in opened]
    was_there = run_dir.exists()
    try:
        prepare(run_dir)
        source = opened[-1].path.resolve().parent.parent
        for file in KEPT_FILES:
            if (source / file).is_file():
                with naming(run_dir / file):
                    shutil.copyfile(source / file, run_dir / file)
        return write(run_dir, state["step"], pieces, state)
    except BaseException:
        if not was_there:
            shutil.rmtree(run_dir, ignore_errors=True)
        raise


def going(run_dir: Path, *, keep: int | None = None, keep_every: int | None = None) -> list[Path]:
    """What `outdated` tells with these settings, or the run's own, but for the newest sound one."""
    sound = newest(run_dir)
    if sound is None:
        raise UserError(f"{run_dir}: holds no complete checkpoint; give a run folder")
    own = CheckpointConfig.model_validate(read_state(sound)["config"].get("checkpoint", {}))
    keep, keep_every = keep or own.keep, own.keep_every if keep_every is None else keep_every
    return [path for path in outdated(run_dir, keep=keep, keep_every=keep_every) if path != sound]
