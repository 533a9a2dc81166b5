"""The training run: set up, resume, and step by step until done or asked to stop.

hvdlm train configs/quickstart.yaml
mpirun -np 2 hvdlm train configs/quickstart.yaml train.steps=20
"""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from pathlib import Path

import torch
import yaml

from hvdlm import checkpoint, shards
from hvdlm.batches import EvaluationWindows
from hvdlm.config import to_yaml
from hvdlm.durable import write_text_durably
from hvdlm.engine import Engine, StepResult
from hvdlm.errors import StoppedOnRequest, UserError
from hvdlm.evaluate import Evaluation, evaluate
from hvdlm.host import affinity, find_place
from hvdlm.models import num_parameters
from hvdlm.run import RunConfig
from hvdlm.runlog import Progress, RunLog
from hvdlm.shards import Manifest, TokenStream
from hvdlm.tokenizer import digest, load
from hvdlm.world.interface import World

log = logging.getLogger("hvdlm")

# What may differ when a run is resumed: none of it changes a number of the steps already made.
FREE_ON_RESUME = {"run_dir", "log", "checkpoint", "world", "sync", "train.steps", "train.eval_every",
                  "train.eval_tokens", "train.threads", "train.device", "train.micro_batch", "data.path"}  # fmt: skip


class StopFlag:
    """Set by SIGTERM or SIGUSR1 on any rank, or by a file RUN/STOP; read once a step."""

    def __init__(self, run_dir: Path, world: World) -> None:
        self._file = run_dir / "STOP" if world.rank == 0 else None
        self._signalled = False
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self._signalled = True  # no more here: ranks are at different points

    def is_set(self) -> bool:
        return self._signalled or (self._file is not None and self._file.exists())


def open_data(path: Path) -> Manifest:
    """The manifest of a data folder, after checking that tokenizer.json is the shards' own."""
    manifest = shards.read_manifest(path)
    found = digest(load(path / shards.TOKENIZER))
    if found != manifest.tokenizer_digest:
        raise UserError(
            f"{path / shards.TOKENIZER}: is tokenizer {found}, the shards were made with "
            f"{manifest.tokenizer_digest}; put theirs back or rerun `hvdlm preprocess`"
        )
    return manifest


def build_engine(config: RunConfig, world: World) -> tuple[Engine, Manifest]:
    """An engine for this config; what is wrong with the data or the numbers is raised on all ranks."""
    place = find_place(world)
    with world.together():
        manifest = open_data(config.data.path)
        engine = Engine(config, TokenStream(config.data.path, "train", manifest), manifest, world, place)
    engine.agree_on_weights()
    return engine, manifest


def train(config: RunConfig, world: World) -> dict:
    """Train to `train.steps`, from the newest complete checkpoint if there is one; returns a summary.

    Raises StoppedOnRequest after saving when some rank was asked to stop.
    """
    stop = StopFlag(config.run_dir, world)
    engine, manifest = build_engine(config, world)
    with world.together():
        validation = _Validation(config, engine, manifest)
    found = world.on_root(lambda: _claim_run_dir(config, manifest))
    first = 0
    if found is not None:
        with world.together():
            engine.restore(found)
            first = checkpoint.read_state(found)["step"]
        log.info("resuming from %s", found)
    _announce(engine, config, manifest, world)
    with world.together():
        run_log = RunLog(config.log, config.run_dir, world, step=first)
    started = time.monotonic()
    result, evaluation = None, None
    steps = config.train.steps
    with (
        run_log,
        Progress("train", steps, "steps", world, done=first, every=config.log.every) as progress,
    ):
        for step in range(first, steps):
            result = engine.run(step, stop=stop.is_set())
            done = step + 1
            _log_step(run_log, done, result, engine)
            _stop_unless_finite(result, done)
            progress.advance(1, f"loss {result.loss:.4f} | {engine.tokens_per_step / result.step_s:,.0f} tokens/s")
            if done % config.train.eval_every == 0 or done == steps:
                evaluation = validation.run(done, run_log)
            if done % config.checkpoint.every == 0 or done == steps or result.stop:
                _save(config, done, engine, manifest)
            if result.stop and done < steps:
                raise StoppedOnRequest(f"stopped at step {done} of {steps}, saved; the same command resumes")
    if first >= steps:
        log.info("%s is at step %d of %d already", config.run_dir, first, steps)
    return {
        "run_dir": str(config.run_dir),
        "step": max(first, steps),
        "loss": result.loss if result else None,
        "val_loss": evaluation.loss if evaluation else None,
        "seconds": round(time.monotonic() - started, 3),
    }


def _claim_run_dir(config: RunConfig, manifest: Manifest) -> Path | None:
    """On rank 0: write config.yaml and tokenizer.json, and find the checkpoint to resume from."""
    config.run_dir.mkdir(parents=True, exist_ok=True)
    kept = config.run_dir / "config.yaml"
    found = checkpoint.newest(config.run_dir)
    if found is not None and kept.exists():
        changed = _changes(yaml.safe_load(kept.read_text()), config.model_dump(mode="json"))
        if changed:
            raise UserError(
                f"{config.run_dir}: was started with other settings ({'; '.join(changed)}); set another run_dir"
            )
    if found is not None and checkpoint.read_state(found)["data_digest"] != manifest.train_digest:
        raise UserError(
            f"{config.data.path}: is not the data that {found} was trained on; put that back or set another run_dir"
        )
    write_text_durably(kept, to_yaml(config))
    write_text_durably(config.run_dir / shards.TOKENIZER, load(config.data.path / shards.TOKENIZER).to_json())
    (config.run_dir / "STOP").unlink(missing_ok=True)
    return found


def _changes(before: dict, now: dict, prefix: str = "") -> list[str]:
    """`key: old -> new` for every setting that may not change on resume."""
    changed = []
    for key in sorted(before.keys() | now.keys()):
        name, old, new = prefix + key, before.get(key), now.get(key)
        if name in FREE_ON_RESUME or old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            changed += _changes(old, new, f"{name}.")
        else:
            changed.append(f"{name}: {old} -> {new}")
    return changed


def _announce(engine: Engine, config: RunConfig, manifest: Manifest, world: World) -> None:
    log.info(
        "%s world of %d, %s, %d threads a rank | %s of %s parameters | %d x %d sequences of %d a step | "
        "an epoch is %s steps",
        world.kind, world.size, engine.device, torch.get_num_threads(), config.model.family,
        f"{num_parameters(engine.model):,}", engine.passes * world.size, config.train.micro_batch, config.data.seq_len,
        f"{engine.batches.num_samples / config.train.global_batch:,.1f}",
    )  # fmt: skip
    if (
        engine.device.type == "cpu"
        and len(affinity()) < (os.cpu_count() or 1) // world.size
        and not config.train.threads
    ):
        log.warning(
            "this rank may use %d of %d cores; start with `mpirun --bind-to none`, or srun --cpus-per-task",
            len(affinity()),
            os.cpu_count(),
        )
    unigram = manifest.splits["val"].unigram_loss
    if unigram is not None:
        log.info("validation loss to beat: %.4f (token frequencies alone)", unigram)


def _log_step(run_log: RunLog, step: int, result: StepResult, engine: Engine) -> None:
    run_log.write(
        step, "train", loss=result.loss, lr=result.lr, grad_norm=result.grad_norm, tokens=step * engine.tokens_per_step,
        tokens_per_s=engine.tokens_per_step / result.step_s, data_wait_s=result.data_wait_s,
    )  # fmt: skip


def _stop_unless_finite(result: StepResult, step: int) -> None:
    if math.isfinite(result.loss) and math.isfinite(result.grad_norm):
        return
    raise UserError.shared(
        f"step {step}: loss {result.loss}, gradient norm {result.grad_norm}: the run has diverged; "
        "start another run_dir with a lower optim.lr or a smaller optim.clip"
    )


def _save(config: RunConfig, step: int, engine: Engine, manifest: Manifest) -> None:
    """Rank 0 writes; a full disk or a lost folder ends the run on all ranks, older checkpoints stay."""
    start = time.monotonic()
    state = {
        "tokens": step * engine.tokens_per_step,
        "tokenizer_digest": manifest.tokenizer_digest,
        "data_digest": manifest.train_digest,
        "vocab_size": manifest.vocab_size,
        "eos_id": manifest.eos_id,
        "config": config.model_dump(mode="json"),
    }
    path = engine.world.on_root(
        lambda: checkpoint.save(
            config.run_dir, step, engine.model, engine.sync.optimizer, state, keep=config.checkpoint.keep
        )
    )
    log.info("saved %s in %.2f s", path, time.monotonic() - start)


class _Validation:
    """The validation split, opened once; nothing happens where the data has none."""

    def __init__(self, config: RunConfig, engine: Engine, manifest: Manifest) -> None:
        self._config, self._engine = config, engine
        self._entry = manifest.splits["val"]
        self._windows: EvaluationWindows | None = None
        if self._entry.num_tokens:
            stream = TokenStream(config.data.path, "val", manifest)
            self._windows = EvaluationWindows(stream, config.data.seq_len, manifest.eos_id, config.train.eval_tokens)

    def run(self, step: int, run_log: RunLog) -> Evaluation | None:
        if self._windows is None:
            return None
        engine = self._engine
        result = evaluate(
            engine.model, self._windows, self._entry,
            batch=self._config.train.micro_batch, precision=self._config.train.precision, world=engine.world,
        )  # fmt: skip
        values = {k: v for k, v in result.to_dict().items() if v is not None and k != "unigram_loss"}
        run_log.write(step, "val", **values)
        log.info("step %d: validation loss %.4f, perplexity %.2f", step, result.loss, result.perplexity)
        return result
