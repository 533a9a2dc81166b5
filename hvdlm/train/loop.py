"""The training loop: interval after interval, and what is due between them."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
from collections.abc import Iterator

import torch

from hvdlm import checkpoint
from hvdlm.checkpoint import Saved, Saver, Unsaved
from hvdlm.data.corpora import Corpora
from hvdlm.errors import StoppedOnRequest, UserError
from hvdlm.session.metrics import ENDED, LEFT_OUT, RESUMED, REWOUND, STARTED, STOPPED, RunLog
from hvdlm.session.progress import Progress
from hvdlm.session.stop import SAVE, StopFlag, Wish
from hvdlm.session.watchdog import watchdog
from hvdlm.tasks.evaluate import Evaluation
from hvdlm.tasks.record_evaluation import RecordEvaluation
from hvdlm.train.config import TrainConfig
from hvdlm.train.guard import Verdict
from hvdlm.train.interval import Interval, IntervalMeter, StepFacts
from hvdlm.train.learner import Learner
from hvdlm.train.parts import extension_digests
from hvdlm.train.replicas import are_equal, digests_of, name_stray
from hvdlm.train.validation import Validation

log = logging.getLogger("hvdlm")

DIVERGED = (
    "the run has diverged; start another run_dir with a lower optim.lr or a smaller optim.clip, or see guard.nonfinite"
    " and guard.spike"
)


class Loop:
    """One run from its first step to its end."""

    def __init__(
        self,
        learner: Learner,
        corpora: Corpora,
        validation: Validation,
        run_log: RunLog,
        stop: StopFlag,
        spent_s: float,
    ) -> None:
        self.learner, self.config, self.stop = learner, learner.config, stop
        self.saver = Saver(learner.config.run_dir, learner.world)
        stop.saves_when_continued = learner.config.sync.keeps_replicas_equal
        self.corpora, self.validation, self.run_log = corpora, validation, run_log
        self.spent_s = spent_s  # training, over all resumptions; rank 0's clock
        self.step = self.first = 0
        self.tokens, self.seconds = 0, 0.0  # of this process
        self.ending = ""  # why it ends before the last step
        self.is_stopped = False  # on request, to be resumed
        self.fault = ""  # why what it ends with is no result
        self.updates = 0  # applied to this rank's weights since the run began
        self.is_proven = False  # a step after the newest checkpoint has shown that it is sound
        self.unsound: set[int] = set()  # checkpoints that were passed over; of rank 0
        self.rewinds, self.rewound_to = 0, -1
        self.best: dict = {}  # by checkpoint.best: `figure`, `step`, `value` and `loss` of the best validation so far
        self._candidate: dict = {}  # what will be, once its checkpoint is there
        self.loss: float | None = None
        self.evaluation: Evaluation | RecordEvaluation | None = None
        self.validated: int | None = None  # the step of the last validation
        self.figures: dict = {}  # as of the last save; of a checkpoint that was resumed, its own

    def run(self, first: int, progress: Progress) -> None:
        """From step `first` to an end. Every decision follows from numbers that all ranks have."""
        self.step = self.first = first
        self.ending = ending(self.config.train, self.learner.val_losses, self.spent_s)
        if first >= self.learner.total_steps or self.ending:
            why = self.ending and f": {self.ending}"
            log.info("%s is at step %d of %d already%s", self.config.run_dir, first, self.learner.total_steps, why)
            self._check_result()
            return
        self.fault = ""  # it goes on
        self._find_unsound()
        size = self.learner.world.size
        mesh = self.config.parallel.in_words(size)
        facts = {"ranks": size, "total_steps": self.learner.total_steps, **({"mesh": mesh} if mesh else {})}
        self.run_log.tell(first, RESUMED if first else STARTED, **facts, **self.stop.place)
        meter = IntervalMeter(self.learner, self.config.log.every)
        with watchdog(self.learner.world, self.config.guard.stall_s), self._finishing():
            self._train(meter, progress)
        self.learner.world.on_root(self.run_log.check)
        if self.is_stopped:
            self.run_log.tell(self.step, STOPPED, reason=self.stop_reason, seconds=round(self.spent_s, 3))
        else:
            self._check_result()
            self.run_log.tell(self.step, ENDED, reason=self.ending or "all steps", seconds=round(self.spent_s, 3))

    @contextlib.contextmanager
    def _finishing(self) -> Iterator[None]:
        """Whatever all ranks end the body for: a checkpoint that was begun before is worth the wait."""
        try:
            yield
        except UserError as error:
            if error.on_all_ranks:
                with contextlib.suppress(UserError):
                    self._finish_save()
            raise

    @property
    def stop_reason(self) -> str:
        return self.stop.reason or "a signal to another rank"

    def _check_result(self) -> None:
        """UserError for a run that has reached its end with nothing to show for it; all that was saved is kept."""
        if self.fault:
            raise UserError.shared(
                f"{self.config.run_dir}: ended at step {self.step} without a result: {self.fault}: {DIVERGED}"
            )

    def _find_unsound(self) -> None:
        """On rank 0: later checkpoints than the one that was loaded were damaged or not finite."""
        if self.learner.world.rank == 0:
            self.unsound = {step for step in checkpoint.complete_steps(self.config.run_dir) if step > self.step}

    def _train(self, meter: IntervalMeter, progress: Progress) -> None:
        while self.step < self.learner.total_steps and not self.ending and not self.is_stopped:
            end = meter.next_end(self.step)
            results = self.learner.run(self.step, end)
            self.updates += sum(result.verdict == Verdict.APPLY for result in results)
            wish = Wish.FAULT if self.run_log.fault else Wish.NONE
            wish = max(wish, self.stop.look())
            interval = meter.agree(self.step, end, results, wish=wish, save=self.saver.state())
            self._obey(interval)
            culprit = self._take(self.saver.settle(interval.saves, self._check_owner))
            if self._judge(interval) or (culprit and self._is_left_for(interval, culprit)):
                progress.reach(self.step, f"rewound to step {self.step}")
                meter.restart_clock()
                continue
            self._prune(interval.steps[0])
            self._log(interval)
            progress.reach(end, interval.line)
            self._after(interval)
            meter.restart_clock()
            self.is_stopped = interval.wish >= Wish.STOP and not self.ending and end < self.learner.total_steps

    def _obey(self, interval: Interval) -> None:
        """End at once where nothing may be written any more."""
        run_dir, world = self.config.run_dir, self.learner.world
        if interval.wish == Wish.KILL:
            raise StoppedOnRequest(
                f"ended before step {interval.end} by {run_dir}/KILL; remove it to go on from the last checkpoint"
            )
        if interval.wish == Wish.OUSTED:
            world.on_root(self._check_owner)

    def _check_owner(self) -> None:
        """On rank 0: UserError if another job has taken the run folder over."""
        if ouster := self.stop.ouster():
            raise UserError(f"{self.config.run_dir}: was taken over by {ouster}; this job ends and writes nothing more")

    def _after(self, interval: Interval) -> None:
        """Validation, the question whether this is the end, and a checkpoint."""
        self.step, train = interval.end, self.config.train
        self.loss = interval.steps[-1].loss
        self.tokens, self.seconds = self.tokens + interval.tokens, self.seconds + interval.seconds
        self.spent_s += interval.seconds
        self.ending = ending(train, [], self.spent_s)
        is_last = self.step == self.learner.total_steps or bool(self.ending)
        if is_last or self.step % train.eval_every == 0:
            self._validate()
            is_last = is_last or bool(self.ending)
        if is_last:
            self.fault = self._find_fault()
        is_best = self._candidate.get("step") == self.step
        if is_last or is_best or interval.wish >= Wish.SAVE or self.step % self.config.checkpoint.every == 0:
            ends = is_last or is_best or interval.wish >= Wish.SAVE  # nobody looks whether it is there later
            if self._save_or_rewind(interval, waits=ends or not self.config.checkpoint.asynchronous):
                return
            if is_best:
                self.best, self._candidate = self._candidate, {}
                self.learner.world.on_root(lambda: checkpoint.point_best(self.config.run_dir, self.step))
            gc.collect()
        if self.ending:
            log.info("ending at step %d: %s", self.step, self.ending)
        if is_last and not self.fault:
            self._prune(interval.steps[-1])

    def _find_fault(self) -> str:
        """Why what this run ends with is no result, or nothing. Collective."""
        if not sum(self.learner.world.gather(self.updates)):
            return "every update was left out"
        if self.evaluation is not None and not math.isfinite(self.evaluation.loss):
            return f"validation loss {self.evaluation.loss}"
        if self.evaluation is None and self.loss is not None and not math.isfinite(self.loss):
            return f"loss {self.loss}"
        return ""

    def _prune(self, facts: StepFacts) -> None:
        """On rank 0: drop old checkpoints, once a step has shown that the weights of the newest give a finite loss."""
        if self.is_proven or not (math.isfinite(facts.loss) and math.isfinite(facts.grad_norm)):
            return
        self.is_proven = True
        if self.learner.world.rank == 0 and not self.stop.ouster():
            keep = self.config.checkpoint.keep
            every = self.config.checkpoint.keep_every
            checkpoint.prune(self.config.run_dir, keep=keep, keep_every=every, last=self.step, unsound=self.unsound)

    def _validate(self) -> None:
        with self.learner.evaluated():
            self.evaluation = self.validation.run(self.step, self.run_log)
        if self.evaluation is not None:
            self.validated = self.step
            self.learner.val_losses.append(self.evaluation.loss)
            self._judge_best(self.evaluation)
            self.ending = self.ending or ending(self.config.train, self.learner.val_losses, self.spent_s)

    def _judge_best(self, found: Evaluation | RecordEvaluation) -> None:
        """Note whether this validation is the best so far; one whose figure is not finite never is."""
        by = self.validation.best_by
        if by is None:
            return
        value = found.to_dict().get(by.figure, math.nan)
        now = {"figure": by.figure, "step": self.step, "value": value, "loss": found.loss}
        if not (math.isfinite(value) and math.isfinite(found.loss)):
            log.warning("step %d: %s is undefined here, so that this is not the best by it", self.step, by.figure)
        elif not self.best or by.order(now) < by.order(self.best):
            self._candidate = now

    def settle_best(self, state: dict) -> None:
        """After a checkpoint was loaded: the best is what it knows, by the same figure, and the link says so."""
        best, by = state.get("best", {}), self.validation.best_by
        self.best = best if by is not None and best.get("figure") == by.figure and "loss" in best else {}
        self._candidate = {}
        if self.learner.world.rank == 0:
            checkpoint.point_best(self.config.run_dir, self.best.get("step"))

    def _judge(self, interval: Interval) -> bool:
        """Stop the job for replicas that differ or a gradient that forbids to go on; True after a rewind."""
        learner = self.learner
        if not interval.replicas_equal:
            raise self._stray_at(interval.end)
        bad = next((s for s in interval.steps if not (math.isfinite(s.loss) and math.isfinite(s.grad_norm))), None)
        verdict, reason = interval.verdict, learner.take_reason()
        if bad is not None and verdict == Verdict.APPLY:  # nobody had looked before
            verdict = Verdict.STOP
        if verdict == Verdict.REWIND:
            self._rewind(interval, reason or "a gradient on another rank")
            return True
        if verdict == Verdict.STOP:
            step = bad or interval.steps[-1]
            reason = reason or f"loss {step.loss}, gradient norm {step.grad_norm}"
            raise UserError.shared(f"step {step.step}: {reason}: {DIVERGED}{self._doubt()}")
        if verdict == Verdict.SKIP:
            self.run_log.tell(interval.end, LEFT_OUT, reason=reason or "fp16 overflow")
            log.warning("steps up to %d: left out an update (%s)", interval.end, reason or "fp16 overflow")
        return False

    def _compare_replicas(self) -> None:
        """Before a checkpoint keeps what is wrong: each rank writes a share of what all hold. Collective."""
        learner = self.learner
        if learner.config.train.digest_every and learner.config.sync.keeps_replicas_equal:
            own = digests_of(learner.model, learner.names_cut)
            if not are_equal(learner.axes.mesh, learner.world.gather(own)):
                raise self._stray_at(self.step)

    def _stray_at(self, step: int) -> UserError:
        """For replicas that differ; collective."""
        learner = self.learner
        every = learner.config.train.digest_every
        stray = name_stray(learner.model, learner.world, learner.axes.mesh, learner.names_cut)
        return UserError.shared(
            f"step {step}: {stray} (checked every {every} steps and before each save): memory or network corrupted it;"
            " run `hvdlm doctor`, then the same command resumes from the last checkpoint"
        )

    def _doubt(self) -> str:
        """What else may help, if no step since the checkpoint that was loaded has been sound."""
        if self.is_proven or not self.first or self.step != self.first:
            return ""
        return f"; step {self.first} was loaded just before: remove that checkpoint to go on from the one before it"

    def _rewind(self, interval: Interval, reason: str) -> None:
        """Back to the last checkpoint, and past the samples since then: with them it would happen again."""
        learner, world, run_dir = self.learner, self.learner.world, self.config.run_dir
        self._finish_save()
        self.rewinds += 1
        before = self.step if self.step == self.rewound_to and not self.is_proven else None  # it broke there again
        path = checkpoint.newest(run_dir, world, before=before) or checkpoint.newest(run_dir, world)
        if path is None or self.rewinds > self.config.guard.max_skips:
            why = "there is no checkpoint yet" if path is None else f"{self.rewinds - 1} times already"
            raise UserError.shared(f"step {interval.end}: {reason}, and cannot rewind: {why}; lower optim.lr")
        left_out = learner.left_out
        with world.together():
            self.step = self.rewound_to = learner.restore(path)
            self.settle_best(checkpoint.read_state(path))
            self.run_log.rewind(self.step)
        learner.agree()
        learner.left_out = left_out + learner.plan.samples_before(interval.end) - learner.plan.samples_before(self.step)
        self.is_proven = False
        self.run_log.tell(self.step, REWOUND, reason=reason, before=interval.end)
        log.warning("%s: back to step %d, and past the samples up to step %d", reason, self.step, interval.end)
        self._find_unsound()

    def _log(self, interval: Interval) -> None:
        for facts in interval.steps:
            live = interval.live if facts.step == interval.end else {}
            descent = {} if facts.lr is None else {"lr": facts.lr, "grad_norm": facts.grad_norm}
            values = {**facts.figures, **descent}
            tokens = self.learner.tokens_before(facts.step)
            self.run_log.write(facts.step, "train", **values, tokens=tokens, **live)

    def _save_or_rewind(self, interval: Interval, *, waits: bool) -> bool:
        """True if a state was not finite, and the run is back at the checkpoint before it."""
        culprit = self._save(waits=waits)
        return bool(culprit) and self._is_left_for(interval, culprit)

    def _is_left_for(self, interval: Interval, culprit: str) -> bool:
        """A state that is not finite is no checkpoint: it ends the run, or is left for the one before it (True)."""
        if self.config.guard.nonfinite != "rewind":
            raise UserError.shared(f"{culprit}, and is not saved: {DIVERGED}")
        self.ending = ""
        self._rewind(interval, culprit)
        return True

    def _save(self, *, waits: bool) -> str:
        """Save from a copy, or wait until that is done; a full disk or a lost folder ends the run on all ranks.

        Older checkpoints stay. Returns what is not finite, where nothing was saved for it.
        """
        if self.saver.is_busy and not waits and self.config.checkpoint.unfinished == "skip":
            log.warning("step %d: not saved, the save before it is not over (checkpoint.unfinished: skip)", self.step)
            return ""
        if culprit := self._finish_save():
            return culprit
        self._compare_replicas()
        tensors, scalars = self.learner.collect()
        manifest = self.corpora.manifest
        self.figures = self._figures()
        state = {
            "tokens": self.learner.tokens_before(self.step),
            "seconds": self.spent_s,
            "fault": self.fault,
            "updates": self.updates,
            **({} if self.validated is None else {"validated": self.validated}),
            **({"best": best} if (best := self._best_of_all) else {}),
            "ranks": self.learner.world.size,
            "threads": torch.get_num_threads(),  # a rank; another number may change last bits
            "tokenizer_digest": manifest.tokenizer_digest,
            "data_digest": self.corpora.digest,
            "vocab_size": manifest.vocab_size,
            "eos_id": manifest.eos_id,
            **({} if manifest.bos_id is None else {"bos_id": manifest.bos_id}),
            **({"fields": told} if (told := self._fields()) else {}),
            **({"extensions": extensions} if (extensions := extension_digests(self.config)) else {}),
            "engine": scalars,
            "figures": self.figures,
            "config": self.config.model_dump(mode="json"),
        }
        pieces, of_optimizer = self.learner.pieces(tensors)
        self.saver.begin(self.step, pieces, of_optimizer, state)
        return self._finish_save() if waits else ""

    def _finish_save(self) -> str:
        """Wait until the save under way, if there is one, is there; returns as `_take`."""
        try:
            return self._take(self.saver.finish(self._check_owner))
        except UserError:  # the new owner removes what the old one left half written
            self.learner.world.on_root(self._check_owner)
            raise

    def _take(self, saved: Saved | Unsaved | None) -> str:
        """What follows from a checkpoint's being there; what is not finite, where it will not be."""
        if saved is None:
            return ""
        if isinstance(saved, Unsaved):
            return f"step {saved.step}: {saved.culprit} is not finite"
        self.is_proven = False
        self.unsound.discard(saved.step)
        if self.learner.world.rank == 0:
            (self.config.run_dir / SAVE).unlink(missing_ok=True)
        self.stop.saved(saved.seconds)
        log.info("%s", saved.line)
        return ""

    def _fields(self) -> dict:
        """What the numbers in labelled records stand for, where the task reads any."""
        if not self.config.task.reads_records:
            return {}
        return {name: field.model_dump(mode="json") for name, field in self.corpora.manifest.fields.items()}

    def summary(self) -> dict:
        """What `hvdlm train --json` prints: of a run that had ended before, what it printed then."""
        known = {name: self.figures.get(name, value) for name, value in self._figures().items()}
        known["ending"] = self.ending or known["ending"]
        return {"run_dir": str(self.config.run_dir), "step": self.step, **known, "sync": self.learner.sync_kind}

    @property
    def _best_of_all(self) -> dict:
        """The best so far, be its checkpoint there or about to be written."""
        return self._candidate or self.best

    def _figures(self) -> dict:
        """Speed and traffic are those of the process that made the last step."""
        steps, found, losses = self.step - self.first, self.evaluation, self.learner.val_losses
        best = self._best_of_all
        return {
            "ending": self.ending or "all steps",
            "loss": self.loss,
            "val_loss": found.loss if found else losses[-1] if losses else None,
            "val_tokens": found.num_tokens if found else None,
            "val_split_tokens": found.split_tokens if found else None,
            "val_protocol": self.validation.protocol or None,
            "best_val_loss": min(losses, default=None),
            **({"best_step": best["step"], "best_figure": best["figure"]} if best else {}),
            "parameters": self.learner.num_parameters,
            "tokens": self.learner.tokens_before(self.step),
            "seconds": round(self.seconds, 3),
            "tokens_per_s": self.tokens / self.seconds if self.seconds else None,
            "bytes_per_step": self.learner.bytes_sent / steps if steps > 0 else None,
        }


def ending(train: TrainConfig, val_losses: list[float], seconds: float) -> str:
    """Why training shall end before its last step, or nothing."""
    if train.minutes is not None and seconds >= 60 * train.minutes:
        return f"train.minutes: {train.minutes} are over"
    if val_losses and train.target_loss is not None and val_losses[-1] <= train.target_loss:
        return f"validation loss {val_losses[-1]:.4f} has reached train.target_loss: {train.target_loss}"
    patience = train.patience or len(val_losses)
    known = [loss if math.isfinite(loss) else math.inf for loss in val_losses]
    if patience < len(known) and min(known[-patience:]) >= min(known[:-patience]):
        return f"no better validation loss in the last {patience} (train.patience)"
    return ""
