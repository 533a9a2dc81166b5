"""How a run validates: the protocol that follows from its config, and what is told of each result."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from hvdlm.checkpoint import AUTO
from hvdlm.data.corpora import Corpora
from hvdlm.errors import UserError
from hvdlm.session.metrics import RunLog
from hvdlm.tables import figure
from hvdlm.tasks.evaluate import Evaluation, Protocol, SplitEvaluation
from hvdlm.tasks.interface import Better, in_words
from hvdlm.tasks.record_evaluation import RecordEvaluation, RecordSplit
from hvdlm.tasks.records import RecordTask
from hvdlm.train.config import RunConfig
from hvdlm.train.learner import Learner

log = logging.getLogger("hvdlm")


class BestBy(NamedTuple):
    """The figure of validations by which a checkpoint is chosen."""

    figure: str
    better: Better

    def order(self, found: Mapping[str, Any]) -> tuple[float, float]:
        """Of `value` and `loss` of a validation: the better of two comes first, of equal ones that of less loss."""
        return -found["value"] if self.better == "more" else found["value"], found["loss"]


class Validation:
    """The validation splits of all corpora, opened once; nothing happens where the data has none."""

    def __init__(self, config: RunConfig, learner: Learner, corpora: Corpora) -> None:
        self._train, self._learner = config.train, learner
        self._split: SplitEvaluation | RecordSplit | None = None
        in_order, self.protocol = config.data.order == "contiguous", ""  # how it reads, in words
        known: Mapping[str, Better] = {}
        self._carries = config.reads_streams
        best = config.checkpoint.best
        judges = (
            best not in (None, AUTO)
            or config.train.patience
            or config.train.target_loss is not None
            or config.optim.needs_validation
        )
        if judges and not corpora.having("val"):
            raise UserError(
                f"{corpora}: has no validation split, which train.patience, train.target_loss, checkpoint.best and "
                "optim.schedule: plateau need; preprocess with split.val, or leave them out"
            )
        if corpora.having("val") and config.task.reads_records:
            self._split = self._of_records(corpora)
            self.protocol, known = str(self._split), self._split.better
        elif corpora.having("val"):
            protocol = Protocol(
                seq_len=config.data.seq_len,
                max_tokens=config.train.eval_tokens,
                streams=config.train.global_batch if in_order else int(self._carries),
                documents=config.data.order == "documents",
                forgets=config.model.forgets,
            )
            self._split = SplitEvaluation(corpora, "val", protocol)
            self.protocol, known = self._split.protocol, self._split.better(learner.task)
        self.best_by = self._best_by(best, known)

    def _best_by(self, best: str | None, known: Mapping[str, Better]) -> BestBy | None:
        """UserError, before the first step, for a figure that no validation will have."""
        if best is None or not known:
            return None
        name = next(iter(known)) if best == AUTO else best
        if name not in known:
            part = " (figures of the whole split need train.eval_tokens: null)" if self._train.eval_tokens else ""
            raise UserError(
                f"checkpoint.best: {best} is no figure of this task's validations; take {AUTO} for"
                f" {next(iter(known))}, or one of {', '.join(known)}{part}"
            )
        return BestBy(name, known[name])

    def _of_records(self, corpora: Corpora) -> RecordSplit:
        config, task = self._learner.config, self._learner.task
        assert isinstance(task, RecordTask)
        records = corpora.records("val")
        most = config.train.eval_tokens
        if most:  # about so many tokens, as of windows
            most = max(1, round(most * len(records) / max(1, int(records.num_tokens().sum()))))
        return RecordSplit(task, records, config.data.seq_len, most=most)

    def run(self, step: int, run_log: RunLog) -> Evaluation | RecordEvaluation | None:
        if self._split is None:
            return None
        if isinstance(self._split, RecordSplit):
            return self._look_at_records(self._split, step, run_log)
        train, model, readers = self._train, self._learner.model, self._learner.readers
        result, by_corpus = self._split.run(
            model, self._learner.task, batch=train.micro_batch, precision=train.precision, world=readers
        )
        values = {k: v for k, v in result.to_dict().items() if v is not None and k != "unigram_loss"}
        run_log.write(step, "val", **values, **{f"loss/{name}": part.loss for name, part in by_corpus.items()})
        log.info(
            "step %d: validation loss %.4f, perplexity %s%s, on %s%s",
            *(step, result.loss, figure(result.perplexity, 4), in_words(result.figures, ", "), result.coverage),
            f", {self.protocol}" if self._carries else "",
        )
        return result

    def _look_at_records(self, split: RecordSplit, step: int, run_log: RunLog) -> RecordEvaluation:
        learner = self._learner
        figures = list(split.task.better_predictions)
        result = split.evaluate(learner.model, self._train.precision, learner.readers, judges=bool(figures))
        run_log.write(step, "val", loss=result.loss, num_records=result.num_records, **result.numbers)
        own = in_words({name: result.numbers[name] for name in figures[:2] if name in result.numbers}, ", ")
        log.info("step %d: validation loss %.4f%s, on %s", step, result.loss, own, result.coverage)
        return result
