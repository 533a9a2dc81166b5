"""What `hvdlm scale --work infer` times: passes of inference over records, as `hvdlm infer` makes them.

A pass writes texts after train.global_batch prompts, which ranks draw in units of train.micro_batch from a shared
counter. Prompts are the first halves of training windows of data.seq_len tokens; as many tokens are written as the
second halves have, so that a pass has global_batch x seq_len tokens whatever the weights are.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from hvdlm.data.corpora import Corpora
from hvdlm.errors import UserError
from hvdlm.inference.engine import Engine, Request
from hvdlm.inference.listeners import Heard
from hvdlm.inference.load import context_of
from hvdlm.inference.matrices import pack
from hvdlm.inference.sampling import Sampling
from hvdlm.models import Vocabulary
from hvdlm.train.step import GradientLearner
from hvdlm.world.interface import Counters


class Passes:
    """Runs passes on the model that a learner has; all ranks call it alike."""

    def __init__(self, learner: GradientLearner, corpora: Corpora) -> None:
        config, manifest = learner.config, corpora.manifest
        if config.task.reads_records or not learner.task.predicts_text:
            raise UserError.shared(f"--work infer: task: {config.task.kind} writes no text after a prompt")
        self._learner, self._world, self._rows = learner, learner.world, config.train.micro_batch
        self._vocabulary = Vocabulary(manifest.vocab_size, manifest.eos_id, manifest.bos_id)
        self._context = context_of(config)
        self._num_read = max(1, config.data.seq_len // 2)
        self._num_new = max(1, config.data.seq_len - self._num_read)
        self._num_units = config.train.global_batch // self._rows
        self.nats = 0.0  # of the tokens that this rank has written in the first pass
        pack(learner.model)

    @property
    def num_written(self) -> int:
        """Tokens that all ranks write in a pass."""
        return self._num_units * self._rows * self._num_new

    def run(self, num: int) -> list[float]:
        """This rank's seconds in each pass, from when all begin until no unit is left for it."""
        counters = self._world.counters(num)
        times = []
        for number in range(num):
            self._world.barrier()
            start = time.perf_counter()
            for unit in self._units(counters, number):
                self._write(unit, is_first=number == 0)
            times.append(time.perf_counter() - start)
            self._world.beats += 1
        if counters is not None:
            self._world.barrier()
            counters.close()
        return times

    def _units(self, counters: Counters | None, number: int) -> Iterator[int]:
        if counters is None:
            yield from range(self._world.rank, self._num_units, self._world.size)
            return
        while (drawn := counters.add(number, 1)) < self._num_units:
            yield drawn

    def _write(self, unit: int, *, is_first: bool) -> None:
        learner = self._learner
        engine = Engine(learner.model, self._vocabulary, context=self._context, rows=self._rows)
        places = np.arange(unit * self._rows, (unit + 1) * self._rows, dtype=np.int64)
        heard = []
        for ids in learner.examples.batches.windows(places, 0)[:, : self._num_read].tolist():
            asked = Request(tuple(ids), self._num_new, Sampling(temperature=0), logprobs=0 if is_first else None)
            heard.append(Heard())
            engine.add(asked, heard[-1])
        engine.run()
        if is_first:
            self.nats -= sum(token.log_prob or 0.0 for one in heard for token in one.tokens[0])
