"""Learning by counting: a step is a pass over the train split, whose sums over all ranks give the next parameters.

For estimators that do not descend, as Baum-Welch (Dempster et al. 1977) or n-gram counts. What is counted at once is
a fixed part of the text, whoever counts it, and parts are added in one fixed tree: the same bits on any number of
ranks.
"""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from hvdlm import checkpoint
from hvdlm.compute.device import prepare_device
from hvdlm.data.manifest import Manifest
from hvdlm.data.stream import TokenStream
from hvdlm.errors import UserError
from hvdlm.parallel.axes import Axes
from hvdlm.parallel.sharing import Whole
from hvdlm.partition import slice_of
from hvdlm.sync.tree import Node, fold, nodes_of, push
from hvdlm.train.batch_plan import BatchPlan
from hvdlm.train.config import RunConfig, total_steps
from hvdlm.train.guard import Verdict
from hvdlm.train.learner import Learner, Source, StepResult
from hvdlm.train.parts import build_task, vocabulary_of
from hvdlm.train.trained import model_of
from hvdlm.world.place import Place

log = logging.getLogger("hvdlm")

MOST_UNITS, UNIT_TOKENS = 64, 1 << 14  # parts of a text, and what each has at least


class CountingLearner(Learner):
    """One corpus, read from its beginning to its end in each step."""

    descends = False
    passes: ClassVar[int | None] = None  # all that it takes; None: as many as the config says

    def __init__(self, config: RunConfig, source: Source, manifest: Manifest, axes: Axes, place: Place) -> None:
        if not isinstance(source, TokenStream):
            raise UserError(f"data.mixture: {config.model.family} is counted in one corpus; set data.path")
        train = config.train
        self.config, self.axes, self.world = config, axes, axes.world
        self.text, self.eos_id = source, manifest.eos_id
        self.device = prepare_device(train.device, place, threads=train.threads, deterministic=train.deterministic)
        self.plan = BatchPlan(1)
        self.epoch_samples = [1.0]
        self.total_steps = self.passes or total_steps(train, self.plan, self.epoch_samples, float(len(source)))
        vocabulary = vocabulary_of(manifest)
        self.task = build_task(config, vocabulary)
        self.model = model_of(config, vocabulary, self.task).to(self.device)
        self.whole = Whole.of(self.model)
        self.flops_per_token = self.task.flops_per_token(self.model, config.data.seq_len)
        self.val_losses: list[float] = []
        self._sent = 0

    def run(self, first: int, end: int) -> list[StepResult]:
        results = []
        for step in range(first, end):
            start = time.perf_counter()
            nats, num_tokens, comm_s = self._pass()
            sums = torch.tensor([nats, num_tokens], dtype=torch.float64)
            seconds = time.perf_counter() - start
            results.append(StepResult(step, sums, 1, torch.zeros(()), Verdict.APPLY, seconds, 0.0, comm_s))
            self.world.beats += 1
        return results

    @abstractmethod
    def _pass(self) -> tuple[float, float, float]:
        """Once through the text: this rank's (nats, tokens), seconds of waiting for others. Collective."""

    def tokens_before(self, step: int) -> int:
        return step * len(self.text)

    @property
    def step_in_words(self) -> str:
        return "a step is a pass over the train split: optim, sync and batches have no part in it"

    @property
    def bytes_sent(self) -> int:
        return self._sent

    def collect(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return {}, {"val_losses": self.val_losses}

    def restore(self, path: Path) -> int:
        checkpoint.load_model(path, self.model)
        state = checkpoint.read_state(path)
        self.val_losses = self.losses_in(state)
        return state["step"]

    def close(self) -> None:
        """Nothing was borrowed."""


class Summing(Protocol):
    """A model that is estimated from sums over its text."""

    def accumulate(self, ids: np.ndarray, *, is_beginning: bool) -> Sequence[Tensor]:
        """What a part of the text, int64 (n,), adds: float64 tensors, the last two log-likelihood and number of tokens.

        `is_beginning` says whether a document begins with it. The same bits for the same ids, on any rank.
        """

    def update(self, sums: Sequence[Tensor]) -> dict[str, float]:
        """Become what the sums over the whole text say; figures that are worth a place in the log."""


class SumsLearner(CountingLearner):
    """For models that are `Summing`."""

    def __init__(self, config: RunConfig, source: Source, manifest: Manifest, axes: Axes, place: Place) -> None:
        super().__init__(config, source, manifest, axes, place)
        self._units = units_of(self.text)
        self._figures: dict[str, float] = {}

    def _pass(self) -> tuple[float, float, float]:
        total, comm_s = self._sums()
        self._figures = cast(Summing, self.model).update(total)
        is_first = self.world.rank == 0  # it speaks for all
        return -float(total[-2]) * is_first, float(total[-1]) * is_first, comm_s

    def _sums(self) -> tuple[list[Tensor], float]:
        """What the model accumulates over the whole text, on every rank; seconds of waiting for others. Collective."""
        model, mine = cast(Summing, self.model), slice_of(self.world.rank, self.world.size, len(self._units) - 1)
        stack: list[tuple[Node, list[Tensor]]] = []
        for number in mine:
            start, end = self._units[number], self._units[number + 1]
            is_beginning = start == 0 or int(self.text.read(start - 1, 1)[0]) == self.eos_id
            sums = list(model.accumulate(self.text.read(start, end - start), is_beginning=is_beginning))
            push(stack, Node(0, number), sums, _added)
        begin = time.perf_counter()
        total = self._over_ranks(stack)
        return total, time.perf_counter() - begin

    def facts(self) -> dict[str, float]:
        return self._figures

    def _over_ranks(self, stack: list[tuple[Node, list[Tensor]]]) -> list[Tensor]:
        """The sum over all units in one tree, on every rank; `stack` holds the nodes of this rank's."""
        size, num_units = self.world.size, len(self._units) - 1
        nodes_by_rank = [
            nodes_of(part.start, part.stop) for part in (slice_of(r, size, num_units) for r in range(size))
        ]
        if size == 1:
            return fold(stack, _added)
        shapes = self._shapes(stack)
        total: list[tuple[Node, list[Tensor]]] = []
        rounds: list[list[Tensor]] = []
        for k in range(max(map(len, nodes_by_rank))):
            row = torch.cat([part.reshape(-1) for part in stack[k][1]]) if k < len(stack) else _zeros(shapes)
            rounds.append(list(self.world.gather_rows(row.cpu())))
            self._sent += row.nbytes
        for rank, nodes in enumerate(nodes_by_rank):
            for k, node in enumerate(nodes):
                push(total, node, _split(rounds[k][rank], shapes), _added)
        return fold(total, _added)

    def _shapes(self, stack: list[tuple[Node, list[Tensor]]]) -> list[torch.Size]:
        """Those of the sums; a rank without units asks the others."""
        mine = [part.shape for part in stack[0][1]] if stack else []
        return next(shapes for shapes in self.world.gather(mine) if shapes)


def units_of(text: TokenStream) -> list[int]:
    """Where the parts of a text begin, and its end: at beginnings of documents where there is one."""
    num = max(1, min(MOST_UNITS, len(text) // UNIT_TOKENS))
    documents = text.document_starts()
    bounds = [0]
    for part in (slice_of(number, num, len(text)) for number in range(1, num)):
        at = int(documents[np.searchsorted(documents, part.start)])
        bounds.append(at if at < part.stop else part.start)
    return [*bounds, len(text)]


def _added(left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
    return [one + other for one, other in zip(left, right, strict=True)]


def _zeros(shapes: list[torch.Size]) -> Tensor:
    return torch.zeros(sum(shape.numel() for shape in shapes), dtype=torch.float64)


def _split(row: Tensor, shapes: list[torch.Size]) -> list[Tensor]:
    parts = row.split([shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
