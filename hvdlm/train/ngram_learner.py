"""An n-gram model learns in one pass: each rank counts its parts of the text, and all of them share the counts."""

from __future__ import annotations

import time

import numpy as np
import torch

from hvdlm.models.ngram import Ngram
from hvdlm.models.ngram.counts import NgramTable, empty_table, merge
from hvdlm.partition import slice_of
from hvdlm.sync.tree import Node, push
from hvdlm.train.counting import CountingLearner, units_of
from hvdlm.train.ngram_exchange import share_counts

EVALUATED_AT_ONCE = 1 << 16  # tokens


class NgramLearner(CountingLearner):
    passes = 1

    @property
    def size_in_words(self) -> str:
        return "of as many parameters as the text has n-grams"

    @property
    def step_in_words(self) -> str:
        return "the one step counts the train split: optim, sync, batches and steps have no part in it"

    def _pass(self) -> tuple[float, float, float]:
        assert isinstance(self.model, Ngram)
        units = units_of(self.text)
        mine = slice_of(self.world.rank, self.world.size, len(units) - 1)
        table = self._counted([(units[number], units[number + 1]) for number in mine])
        start = time.perf_counter()
        levels, sent = share_counts(table, self.world)
        self._sent += sent
        comm_s = time.perf_counter() - start
        self.model.update(levels)
        first, end = units[mine.start], units[mine.stop]
        return self._nats(first, end), float(end - first), comm_s

    def _counted(self, units: list[tuple[int, int]]) -> NgramTable:
        """What stands in units [start, end) of the text. Only tables of one size are merged, as in a binary counter."""
        assert isinstance(self.model, Ngram)
        stack: list[tuple[Node, NgramTable]] = []
        for number, (start, end) in enumerate(units):
            table = self.model.count(self.text.read(start, end - start), self._history(start))
            push(stack, Node(0, number), table, merge)
        return merge(empty_table(self.model.config.order), *(table for _, table in stack))

    def _history(self, start: int) -> np.ndarray:
        """The ids before a place that an n-gram may begin with; the end of text where the text begins."""
        assert isinstance(self.model, Ngram)
        first = max(0, start - max(1, self.model.config.order - 1))
        ids = self.text.read(first, start - first)
        return ids if first else np.concatenate(([self.eos_id], ids))

    def _nats(self, start: int, end: int) -> float:
        """What a part of the text that was counted costs in the model."""
        assert isinstance(self.model, Ngram)
        state = self.model.initial_state(1)
        before = torch.from_numpy(self._history(start)[None]).to(self.device)
        nats = 0.0
        for first in range(start, end, EVALUATED_AT_ONCE):
            targets = torch.from_numpy(self.text.read(first, min(EVALUATED_AT_ONCE, end - first))[None]).to(self.device)
            hidden, after = self.model(torch.cat((before, targets[:, :-1]), 1), state)
            nats -= float(self.model.target_log_probs(hidden[:, before.shape[1] - 1 :], targets).sum())
            state, before = after, targets[:, -1:]
        return nats
