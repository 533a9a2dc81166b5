"""The training run: set up, resume, and step by step until done or asked to stop.

hvdlm train configs/quickstart.yaml
mpirun -np 2 hvdlm train configs/quickstart.yaml train.steps=20
"""

from __future__ import annotations

import logging
import math
import os
import time
from pathlib import Path

import torch
import yaml

from hvdlm import checkpoint
from hvdlm.config import to_yaml
from hvdlm.corpora import Corpora, SplitEvaluation, open_corpora
from hvdlm.durable import write_text_durably
from hvdlm.engine import Engine, StepResult
from hvdlm.errors import StoppedOnRequest, UserError
from hvdlm.evaluate import Evaluation
from hvdlm.host import affinity, find_place
from hvdlm.manifest import TOKENIZER
from hvdlm.models import num_parameters
from hvdlm.run import RunConfig
from hvdlm.runlog import Progress, RunLog
from hvdlm.stop import StopFlag
from hvdlm.tokenizer import load
from hvdlm.world.interface import World

log = logging.getLogger("hvdlm")

# What may differ when a run is resumed: none of it changes a number of the steps already made. Folders may
# move; that their tokens and weights are the same is known by digest.
FREE_ON_RESUME = {"run_dir", "log", "checkpoint", "world", "sync", "train.steps", "train.eval_every",
                  "train.eval_tokens", "train.threads", "train.device", "train.micro_batch", "data.path",
                  "data.mixture"}  # fmt: skip


def build_engine(config: RunConfig, world: World) -> tuple[Engine, Corpora]:
    """An engine for this config; what is wrong with the data or the numbers is raised on all ranks."""
    place = find_place(world)
    with world.together():
        corpora = open_corpora(config.data)
        engine = Engine(config, corpora.train_source(), corpora.manifest, world, place)
    engine.agree_on_weights()
    return engine, corpora


def train(config: RunConfig, world: World) -> dict:
    """Train to `train.steps`, from the newest complete checkpoint if there is one; returns a summary.

    Raises StoppedOnRequest after saving when some rank was asked to stop.
    """
    stop = StopFlag(config.run_dir, world)
    engine, corpora = build_engine(config, world)
    with world.together():
        validation = _Validation(config, engine, corpora)
    found = world.on_root(lambda: _claim_run_dir(config, corpora))
    first = 0
    if found is not None:
        with world.together():
            engine.restore(found)
            first = checkpoint.read_state(found)["step"]
        log.info("resuming from %s", found)
    _announce(engine, config, corpora, world)
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
                _save(config, done, engine, corpora)
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


def _claim_run_dir(config: RunConfig, corpora: Corpora) -> Path | None:
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
    if found is not None and checkpoint.read_state(found)["data_digest"] != corpora.digest:
        raise UserError(f"{corpora}: is not the data that {found} was trained on; put that back or set another run_dir")
    write_text_durably(kept, to_yaml(config))
    write_text_durably(config.run_dir / TOKENIZER, load(corpora.corpora[0].path / TOKENIZER).to_json())
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


def _announce(engine: Engine, config: RunConfig, corpora: Corpora, world: World) -> None:
    log.info(
        "%s world of %d, %s, %d threads a rank | %s of %s parameters | %d x %d sequences of %d a step | "
        "an epoch of %s steps",
        world.kind, world.size, engine.device, torch.get_num_threads(), config.model.family,
        f"{num_parameters(engine.model):,}", engine.passes * world.size, config.train.micro_batch, config.data.seq_len,
        ", ".join(
            f"{corpus.name} is {samples / config.train.global_batch:,.1f}"
            for corpus, samples in zip(corpora.corpora, engine.batches.epoch_samples, strict=True)
        ),
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
    unigram = corpora.unigram_loss("val")
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


def _save(config: RunConfig, step: int, engine: Engine, corpora: Corpora) -> None:
    """Rank 0 writes; a full disk or a lost folder ends the run on all ranks, older checkpoints stay."""
    start = time.monotonic()
    state = {
        "tokens": step * engine.tokens_per_step,
        "tokenizer_digest": corpora.manifest.tokenizer_digest,
        "data_digest": corpora.digest,
        "vocab_size": corpora.manifest.vocab_size,
        "eos_id": corpora.manifest.eos_id,
        "config": config.model_dump(mode="json"),
    }
    path = engine.world.on_root(
        lambda: checkpoint.save(
            config.run_dir, step, engine.model, engine.sync.optimizer, state, keep=config.checkpoint.keep
        )
    )
    log.info("saved %s in %.2f s", path, time.monotonic() - start)


class _Validation:
    """The validation splits of all corpora, opened once; nothing happens where the data has none."""

    def __init__(self, config: RunConfig, engine: Engine, corpora: Corpora) -> None:
        self._train, self._engine = config.train, engine
        self._split: SplitEvaluation | None = None
        if corpora.having("val"):
            self._split = SplitEvaluation(
                corpora, "val", seq_len=config.data.seq_len, max_tokens=config.train.eval_tokens
            )

    def run(self, step: int, run_log: RunLog) -> Evaluation | None:
        if self._split is None:
            return None
        result, by_corpus = self._split.run(
            self._engine.model, batch=self._train.micro_batch, precision=self._train.precision,
            world=self._engine.world,
        )  # fmt: skip
        values = {k: v for k, v in result.to_dict().items() if v is not None and k != "unigram_loss"}
        run_log.write(step, "val", **values, **{f"loss/{name}": part.loss for name, part in by_corpus.items()})
        log.info("step %d: validation loss %.4f, perplexity %.2f", step, result.loss, result.perplexity)
        return result
