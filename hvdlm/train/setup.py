"""The training run: set up, resume, and interval by interval until an end is reached or it is asked to stop.

hvdlm train configs/quickstart.yaml
mpirun -np 2 hvdlm train configs/quickstart.yaml train.steps=20
"""

from __future__ import annotations

import gc
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml
from pydantic import ValidationError

from hvdlm import checkpoint
from hvdlm.compute.device import check_own_gpu
from hvdlm.config import changes, free_on_resume, to_yaml
from hvdlm.data.corpora import Corpora, open_corpora
from hvdlm.data.manifest import TOKENIZER
from hvdlm.errors import StoppedOnRequest, UserError
from hvdlm.exchange import is_folder
from hvdlm.exchange.manners import keep_manners
from hvdlm.files import read_text, write_text_durably
from hvdlm.host import affinity, has_bf16
from hvdlm.launch.environment import memory_is_tuned
from hvdlm.parallel.axes import axes_of
from hvdlm.parallel.telling import mesh_lines, mesh_warning
from hvdlm.session.metrics import FAILED, STOPPED, RunLog
from hvdlm.session.progress import Progress
from hvdlm.session.stop import KILL, BatchJob, StopFlag, stop_flag
from hvdlm.tables import count, counted
from hvdlm.tasks.language_model import LanguageModelling
from hvdlm.tasks.records import RecordTask
from hvdlm.tokenizer import load
from hvdlm.train.config import RunConfig
from hvdlm.train.initial_weights import begin_with, pinned
from hvdlm.train.learner import Learner
from hvdlm.train.learners import LEARNERS
from hvdlm.train.loop import Loop
from hvdlm.train.parts import is_imported, remark_edited
from hvdlm.train.remarks import remarks
from hvdlm.train.step import GradientLearner
from hvdlm.train.trained import in_words, trained_of
from hvdlm.train.validation import Validation
from hvdlm.world.bindings import Binding, binding_map
from hvdlm.world.interface import World
from hvdlm.world.place import find_place

log = logging.getLogger("hvdlm")

CONFIG = "config.yaml"  # in a run's folder, for people and `hvdlm train RUN/config.yaml`

# None of these changes a number of the steps already made. Folders may move: that their tokens and weights are the
# same is known by digest.
FREE_ON_RESUME = free_on_resume(RunConfig)


def build_learner(config: RunConfig, world: World) -> tuple[Learner, Corpora]:
    """A learner for this config; what is wrong with the data or the numbers is raised on all ranks."""
    place = find_place(world)
    axes = axes_of(world, config.parallel)
    with world.together():
        corpora = open_corpora(config.data)
        source = corpora.records("train") if config.task.reads_records else corpora.train_source()
    with world.together():
        learner = LEARNERS[config.model.learner](config, source, corpora.manifest, axes, place)
        if is_imported(config.model) and isinstance(learner.task, LanguageModelling):
            _refuse_foresight(learner, corpora.manifest.vocab_size)
    check_own_gpu(learner.device, world)
    learner.agree()
    return learner, corpora


@torch.no_grad()
def _refuse_foresight(learner: Learner, vocab_size: int) -> None:
    """UserError for a model of the user's own whose output at some token depends on a later one.

    Its loss would be that of looking ahead, and be lower than any honest one.
    """
    length = learner.config.data.seq_len
    ids = torch.arange(length, device=learner.device).remainder(vocab_size).unsqueeze(0)
    other = ids.clone()
    other[:, -1] = (ids[:, -1] + 1) % vocab_size
    learner.model.eval()
    one, two = (learner.model(given)[0][:, :-1] for given in (ids, other))
    if not torch.allclose(one, two, rtol=1e-3, atol=1e-5):
        raise UserError(
            f"model.family: {learner.config.model.family} sees tokens that it is to predict: what it makes of the first"
            f" {length - 1} tokens changes with token {length}; see Causality in docs/extending.md"
        )


def train(config: RunConfig, world: World, job: BatchJob = BatchJob()) -> dict:  # noqa: B008 - frozen
    """Train to the end that the config names, from the newest complete checkpoint if there is one; a summary.

    Raises StoppedOnRequest after saving when some rank was asked to stop, or when the time of `job` runs out.
    """
    with stop_flag(config.run_dir, world, job) as stop:
        return _train(config, world, stop)


def _train(config: RunConfig, world: World, stop: StopFlag) -> dict:
    if world.on_root((config.run_dir / KILL).exists):
        raise StoppedOnRequest(f"{config.run_dir / KILL} is there: nothing was started; remove it to go on")
    config, source = world.on_root(lambda: pinned(config))
    learner, corpora = build_learner(config, world)
    with world.together():
        if source is not None:
            begin_with(source, learner, corpora.manifest.tokenizer_digest)
        validation = Validation(config, learner, corpora)
    if source is not None:
        learner.agree()
    world.on_root(lambda: _make_run_dir(config))
    found = checkpoint.newest(config.run_dir, world)
    world.on_root(lambda: _claim_run_dir(config, corpora, stop, learner.total_steps, found))
    if source is not None and learner.task.predicts_tokens:
        folder = source if is_folder(source) else source.resolve().parent.parent  # of RUN/checkpoints/step_…
        world.on_root(lambda: keep_manners(folder, config.run_dir))
    first, saved = 0, {}
    if found is not None:
        with world.together():
            first = learner.restore(found)
            saved = checkpoint.read_state(found)
        learner.agree()
        log.info("resuming from %s%s", found, "; init.from is not read again" if config.init else "")
    _announce(learner, config, corpora, world, saves_best=validation.best_by is not None)
    with world.together():
        run_log = RunLog(config.log, config.run_dir, world, step=first)
    stop.expect(3 * sum(parameter.nbytes for parameter in learner.model.parameters()))  # Adam keeps two more of each
    loop = Loop(learner, corpora, validation, run_log, stop, saved.get("seconds", 0.0))
    loop.fault, loop.updates = saved.get("fault", ""), saved.get("updates", first)
    loop.figures, loop.validated = saved.get("figures", {}), saved.get("validated")
    with world.together():
        loop.settle_best(saved)
    with (
        run_log,
        quiet_gc(),
        Progress("train", learner.total_steps, "steps", world, done=first, every=config.log.every) as progress,
    ):
        try:
            loop.run(first, progress)
        except (UserError, StoppedOnRequest) as end:
            run_log.tell(loop.step, STOPPED if isinstance(end, StoppedOnRequest) else FAILED, reason=str(end))
            if isinstance(end, StoppedOnRequest) or end.on_all_ranks:
                learner.close()
            raise
    learner.close()
    if loop.is_stopped:
        raise StoppedOnRequest(
            f"stopped at step {loop.step} of {count(learner.total_steps)} by {loop.stop_reason}, saved; the same"
            " command resumes"
        )
    return loop.summary()


@contextmanager
def quiet_gc() -> Iterator[None]:
    """No garbage collection in the body but where it is asked for: a rank that collects keeps all others waiting."""
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def _make_run_dir(config: RunConfig) -> None:
    """On rank 0."""
    config.run_dir.mkdir(parents=True, exist_ok=True)
    checkpoint.prepare(config.run_dir)


def _claim_run_dir(config: RunConfig, corpora: Corpora, stop: StopFlag, total_steps: int, found: Path | None) -> None:
    """On rank 0: make the folder ours and write config.yaml and tokenizer.json, if `found` is to be resumed so."""
    if found is not None:
        _check_same(config, corpora, found)
    write_text_durably(config.run_dir / CONFIG, to_yaml(config))
    write_text_durably(config.run_dir / TOKENIZER, load(corpora.corpora[0].path / TOKENIZER).to_json())
    stop.own(total_steps=total_steps)


def _check_same(config: RunConfig, corpora: Corpora, found: Path) -> None:
    """UserError if a checkpoint was made with other settings or data; its own word counts, not that of config.yaml."""
    state, now = checkpoint.read_state(found), config.model_dump(mode="json")
    if state.get("averaged"):
        raise UserError(
            f"{found}: is the mean of other checkpoints, without the state of an optimizer to go on with; begin a run"
            f" with it: init.from={config.run_dir} and another run_dir"
        )
    if changed := changes(_completed(state["config"]), now, free=FREE_ON_RESUME):
        raise UserError(
            f"{config.run_dir}: was started with other settings ({'; '.join(changed)}); set another run_dir"
        )
    if state["data_digest"] != corpora.digest:
        raise UserError(f"{corpora}: is not the data that {found} was trained on; put that back or set another run_dir")
    remark_edited(config, state, found)
    kept = config.run_dir / CONFIG
    try:
        written = yaml.safe_load(read_text(kept))
        edited = (
            changes(_completed(written), now, free=FREE_ON_RESUME) if isinstance(written, dict) else ["no settings"]
        )
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        edited = ["missing or damaged"]
    if edited:
        log.warning("%s: is not what %s was trained with (%s): it is written anew", kept, found.name, "; ".join(edited))


def _completed(values: dict) -> dict:
    """Settings that were written down, with what later versions have added to them."""
    try:
        return RunConfig.model_validate(values).model_dump(mode="json")
    except ValidationError:  # of a version that had other keys: all that differs is named
        return values


def _announce(learner: Learner, config: RunConfig, corpora: Corpora, world: World, *, saves_best: bool) -> None:
    train, batch = config.train, config.train.global_batch
    names = ", ".join(corpus.name for corpus in corpora.corpora)
    size = f"{config.model.family} {learner.size_in_words}"
    epochs = ", ".join(f"{samples / batch:,.1f}" for samples in learner.epoch_samples)
    epoch = f", an epoch of {names} is {epochs}" if learner.descends else ""
    log.info(
        f"{world.kind} world of {world.size}, sync {learner.sync_kind}, {learner.device},"
        f" {counted(torch.get_num_threads(), 'thread')} a rank, {train.precision}"
        f" | {', '.join(filter(None, (size, config.model.facts)))}"
        f" | {learner.step_in_words} | {counted(learner.total_steps, 'step')}{epoch}"
    )
    if learner.optimizer is not None and (config.init or config.lora or config.freeze or config.optim.has_own_rates):
        for line in in_words(world.gather(trained_of(learner.model, learner.groups, learner.cuts))):
            log.info("%s", line)
    memory = "as the user's malloc settings say" if memory_is_tuned() else "kept by the process (mallopt)"
    log.info("%s, freed memory %s", ", ".join(world.settings()) or "no MPI", memory)
    cores, total = affinity(), os.cpu_count() or 1
    if learner.device.type == "cpu" and len(cores) < total // world.size and not train.threads:
        remedy = "start with `mpirun --bind-to none`, or srun --cpus-per-task"
        log.warning("this rank may use %d of %d cores; %s", len(cores), total, remedy)
    if learner.device.type == "cpu" and train.precision == "bf16" and not has_bf16():
        log.warning("train.precision: bf16: this processor has no instructions for it; fp32 is as fast, or faster")
    own = Binding(world.rank, socket.gethostname(), cores, torch.get_num_threads(), str(learner.device))
    bindings = world.gather(own)
    for line in binding_map(bindings).splitlines() if world.rank == 0 and world.size > 1 else ():
        log.info("%s", line)
    if isinstance(learner, GradientLearner) and learner.axes.mesh.cuts_model:
        _announce_mesh(learner, [each.host for each in bindings])
    _announce_validation(corpora, is_text=not config.task.reads_records)
    if isinstance(learner, GradientLearner) and isinstance(learner.task, RecordTask):
        _announce_records(learner, corpora, learner.task.fields)
    epoch_samples = learner.epoch_samples if learner.descends else []
    parts = learner.axes.data.size if isinstance(learner, GradientLearner) else world.size
    for remark in remarks(config, learner.plan, learner.total_steps, epoch_samples, size=parts, saves_best=saves_best):
        log.warning("%s", remark)


def _announce_mesh(learner: GradientLearner, hosts: list[str]) -> None:
    mesh = learner.axes.mesh
    for line in mesh_lines(mesh, learner.shared.layout, learner.config.parallel.schedule, hosts):
        log.info("%s", line)
    if remark := mesh_warning(mesh, hosts):
        log.warning("%s", remark)


def _announce_records(learner: GradientLearner, corpora: Corpora, fields: Sequence[str]) -> None:
    """What may not be as it was meant of labelled records, and of the fields that are read of them."""
    for name in fields:
        field = corpora.manifest.fields[name]
        if len(field.labels) == 1 and not field.several:
            log.warning("%s: has %r for its only label, so that there is nothing to tell apart", name, field.labels[0])
    if cut := learner.num_cut:
        text = "%s of %s are longer than data.seq_len: %d tokens, and are cut"
        log.warning(text, counted(cut, "record"), f"{learner.epoch_samples[0]:,.0f}", learner.config.data.seq_len)
    if learner.data_remark:
        log.warning("%s", learner.data_remark)


def _announce_validation(corpora: Corpora, *, is_text: bool) -> None:
    """On what it validates, and what token frequencies would reach there."""
    having = corpora.having("val")
    lacking = [corpus.name for corpus in corpora.corpora if corpus not in having]
    if lacking:
        rest = f"validation is on {', '.join(corpus.name for corpus in having)}" if having else "nothing is validated"
        log.info("%s: no validation split (preprocess with split.val or input.val); %s", ", ".join(lacking), rest)
    unigram = corpora.unigram_loss("val") if is_text else None
    if unigram is not None:
        num_tokens = sum(corpus.manifest.splits["val"].num_tokens for corpus in having)
        text = "validation loss to beat: %.4f (token frequencies alone, on all %s tokens)"
        log.info(text, unigram, f"{num_tokens:,}")
