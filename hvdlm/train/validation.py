"""How a run validates: the protocol that follows from its config, and what is told of each result."""

from __future__ import annotations

import logging

from hvdlm.data.corpora import Corpora
from hvdlm.errors import UserError
from hvdlm.session.metrics import RunLog
from hvdlm.tables import figure
from hvdlm.tasks.evaluate import Evaluation, Protocol, SplitEvaluation
from hvdlm.tasks.interface import in_words
from hvdlm.train.config import RunConfig
from hvdlm.train.learner import Learner

log = logging.getLogger("hvdlm")


class Validation:
    """The validation splits of all corpora, opened once; nothing happens where the data has none."""

    def __init__(self, config: RunConfig, learner: Learner, corpora: Corpora) -> None:
        self._train, self._learner = config.train, learner
        self._split: SplitEvaluation | None = None
        in_order, self.protocol = config.data.order == "contiguous", ""  # how it reads, in words
        self._carries = config.reads_streams
        judges = config.train.patience or config.train.target_loss is not None or config.optim.needs_validation
        if judges and not corpora.having("val"):
            raise UserError(
                f"{corpora}: has no validation split, which train.patience, train.target_loss and optim.schedule: "
                "plateau need; preprocess with split.val, or leave them out"
            )
        if corpora.having("val"):
            protocol = Protocol(
                seq_len=config.data.seq_len,
                max_tokens=config.train.eval_tokens,
                streams=config.train.global_batch if in_order else int(self._carries),
                documents=config.data.order == "documents",
                forgets=config.model.forgets,
            )
            self._split = SplitEvaluation(corpora, "val", protocol)
            self.protocol = self._split.protocol

    def run(self, step: int, run_log: RunLog) -> Evaluation | None:
        if self._split is None:
            return None
        train, model, world = self._train, self._learner.model, self._learner.world
        result, by_corpus = self._split.run(
            model, self._learner.task, batch=train.micro_batch, precision=train.precision, world=world
        )
        values = {k: v for k, v in result.to_dict().items() if v is not None and k != "unigram_loss"}
        run_log.write(step, "val", **values, **{f"loss/{name}": part.loss for name, part in by_corpus.items()})
        log.info(
            "step %d: validation loss %.4f, perplexity %s%s, on %s%s",
            *(step, result.loss, figure(result.perplexity, 4), in_words(result.figures, ", "), result.coverage),
            f", {self.protocol}" if self._carries else "",
        )
        return result
