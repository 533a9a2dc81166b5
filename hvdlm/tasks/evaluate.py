"""Loss over a split, each token exactly once over all ranks: perplexity and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from hvdlm.compute.device import autocast
from hvdlm.compute.draws import draws_for
from hvdlm.data.corpora import Corpora, mean_by_tokens
from hvdlm.data.manifest import SplitEntry
from hvdlm.data.stream import TokenStream
from hvdlm.data.windows import EvaluationDocuments, EvaluationStreams, EvaluationWindows, Examples
from hvdlm.models import LanguageModel, State
from hvdlm.partition import slice_of, spread
from hvdlm.tasks.interface import Batch, Better, Sums, Task, less
from hvdlm.tasks.readers import Readers
from hvdlm.world.interface import World

Read = EvaluationWindows | EvaluationStreams | EvaluationDocuments


@dataclass(frozen=True)
class Evaluation:
    """`loss` is in nats per target, of which there are `num_tokens`; `bits_per_byte` counts the documents' UTF-8 bytes.

    Where every token is a target, the end-of-text ids are too and count in both. Where `num_tokens` are not all of the
    split's `split_tokens`, loss and perplexity are an estimate, and there are no bits per byte, since nobody counted
    the bytes of a part. `unigram_loss` is what token frequencies alone reach on the whole split. `figures` are the
    task's own.
    """

    loss: float
    perplexity: float
    bits_per_byte: float | None
    num_tokens: int
    split_tokens: int
    unigram_loss: float | None
    figures: dict[str, float] = field(default_factory=dict)
    sums: dict[str, float] = field(default_factory=dict)  # that the figures are made of

    def to_dict(self) -> dict:
        values = asdict(self)
        figures, _ = values.pop("figures"), values.pop("sums")
        return {**values, **figures}

    @property
    def coverage(self) -> str:
        """How much of the split it is about, in words."""
        if self.num_tokens == self.split_tokens:
            return f"all {self.split_tokens:,} tokens"
        return f"{self.num_tokens:,} of {self.split_tokens:,} tokens"


@torch.no_grad()
def evaluate(  # noqa: PLR0913 - model, task and data, and how they meet
    model: LanguageModel,
    task: Task,
    read: Read,
    entry: SplitEntry,
    *,
    batch: int,
    precision: str,
    world: World | Readers,
) -> Evaluation:
    """Evaluate on what is read of the split that `entry` describes, at most `batch` windows' tokens at once.

    The result is equal on all ranks, and but for rounding the same at any number of them.
    """
    readers = world if isinstance(world, Readers) else Readers.each_of(world)
    model.eval()
    total = np.zeros(len(task.sums))  # float64
    sample = _Sample(task, read, readers)
    state: State | None = None
    for examples, state_before in in_pieces(model, read, batch, readers):
        state = state_before if state_before is not None else state
        said = _sums_of(model, task, examples, state, precision, readers)
        readers.world.beats += 1
        if said is not None:
            sums, state = said
            total += sums.values.cpu().numpy() if readers.speaks else 0.0
            sample.take(len(examples), sums.rows if readers.speaks else None)
    readers.world.sum_(total)
    sums_by_name = task.named(total)
    figures = {**task.figures(sums_by_name), **sample.figures()}
    loss, num_tokens = figures.pop("loss"), round(sums_by_name["targets"])
    is_text = task.predicts_text and num_tokens == entry.num_tokens
    text_bytes = entry.text_bytes if is_text else None
    nats = sums_by_name["loss"]
    found = _evaluation(nats, loss, num_tokens, entry.num_tokens, text_bytes, entry.unigram_loss, figures)
    return replace(found, sums=sums_by_name)


def _sums_of(
    model: LanguageModel, task: Task, examples: Examples, state: State | None, precision: str, readers: Readers
) -> tuple[Sums, State | None] | None:
    batch = batch_of(model, task, examples)
    with autocast(model.device, precision):
        return readers.ask(model, batch, lambda model: task.loss(model, batch, state, None))


def batch_of(model: LanguageModel, task: Task, examples: Examples) -> Batch:
    """Examples as a task is evaluated on them."""
    device = model.device
    draws = draws_for(0, 0, examples.places).to(device) if task.evaluation_takes_draws else None
    context = torch.from_numpy(examples.context).to(device) if examples.context.any() else None
    return task.batch(torch.from_numpy(examples.ids).to(device), context, draws, training=False)


class _Sample:
    """The rows of `task.num_rows` examples from all over what is read, the same ones at any number of ranks."""

    def __init__(self, task: Task, read: Read, readers: Readers) -> None:
        self._task, self._world = task, readers.world
        total = 0 if isinstance(read, EvaluationStreams) else read.num_examples
        num = min(task.num_rows, total)
        self._chosen = spread(np.arange(num), num, total) if num else np.empty(0, dtype=np.int64)
        self._next = slice_of(readers.rank, readers.size, total).start  # number of the next example
        self._rows: list[np.ndarray] = []

    def take(self, num: int, rows: Tensor | None) -> None:
        """The rows (num, K) of this rank's next examples."""
        numbers = np.arange(self._next, self._next + num)
        self._next += num
        if rows is not None and (is_chosen := np.isin(numbers, self._chosen)).any():
            self._rows.append(rows[torch.from_numpy(is_chosen).to(rows.device)].float().cpu().numpy())

    def figures(self) -> dict[str, float]:
        """What the task says of them; collective."""
        if not len(self._chosen):
            return {}
        everybody = [rows for part in self._world.gather(self._rows) for rows in part]
        return self._task.figures_of_rows(np.concatenate(everybody)) if everybody else {}


def in_pieces(
    model: LanguageModel, read: Read, batch: int, world: World | Readers
) -> Iterator[tuple[Examples, State | None]]:
    """What this rank reads, piece after piece, and the state where streams begin."""
    if not isinstance(read, EvaluationStreams):
        for examples in read.batches(batch, rank=world.rank, size=world.size):
            yield examples, None
        return
    for group in read.groups(batch, rank=world.rank, size=world.size):
        state: State | None = model.initial_state(len(group))
        for examples in read.chunks(group, read.seq_len * (batch // len(group))):  # any length is the same sum
            yield examples, state
            state = None


def _evaluation(  # noqa: PLR0913 - an Evaluation from what it is computed from
    nats: float,
    loss: float,
    num_tokens: int,
    split_tokens: int,
    text_bytes: int | None,
    unigram_loss: float | None,
    figures: dict[str, float],
) -> Evaluation:
    bits_per_byte = None if text_bytes is None else nats / math.log(2) / text_bytes
    perplexity = math.exp(min(loss, 700.0))
    return Evaluation(loss, perplexity, bits_per_byte, num_tokens, split_tokens, unigram_loss, figures)


@dataclass(frozen=True)
class Protocol:
    """How a split is read; numbers of different protocols are not to be compared.

    As windows of seq_len, each for itself, or with a `stride` each with a past; in so many `streams` with the model's
    state carried along; or document by document. `max_tokens` of each corpus are read, spread over it; 0 is all.
    """

    seq_len: int
    max_tokens: int = 0
    streams: int = 0
    stride: int = 0
    documents: bool = False
    forgets: bool = False  # of streams: whether the model itself begins anew at each document

    def reader(self, stream: TokenStream, eos_id: int) -> Read:
        if self.documents:
            return EvaluationDocuments(stream, self.seq_len, eos_id, self.max_tokens)
        if self.streams:
            return EvaluationStreams(stream, self.seq_len, eos_id, self.streams, self.max_tokens, self.forgets)
        return EvaluationWindows(stream, self.seq_len, eos_id, self.max_tokens, self.stride)


class SplitEvaluation:
    """A split of all corpora, opened once: each token is a target exactly once. UserError if no corpus has it."""

    def __init__(self, corpora: Corpora, split: str, protocol: Protocol) -> None:
        eos_id = corpora.manifest.eos_id
        self._parts: list[tuple[str, Read, SplitEntry]] = []
        for corpus in corpora.having(split) or corpora.corpora[:1]:
            read = protocol.reader(TokenStream(corpus.path, split, corpus.manifest), eos_id)
            self._parts.append((corpus.name, read, corpus.manifest.splits[split]))
        self._has_several = len(corpora.corpora) > 1

    @property
    def most_streams(self) -> int:
        """As many as each split has windows."""
        return min(-(-entry.num_tokens // read.seq_len) for _, read, entry in self._parts)

    @property
    def protocol(self) -> str:
        """How it is read, in words: numbers of different protocols are not to be compared."""
        return "; ".join(dict.fromkeys(str(read) for _, read, _ in self._parts))

    def better(self, task: Task) -> dict[str, Better]:
        """Figures of `run` by which a checkpoint may be chosen, the task's main one first."""
        is_whole = all(read.num_tokens == entry.num_tokens for _, read, entry in self._parts)
        has_bytes = task.predicts_text and is_whole
        return {**task.better, **less("perplexity", *(("bits_per_byte",) if has_bytes else ()))}

    def run(
        self, model: LanguageModel, task: Task, *, batch: int, precision: str, world: World | Readers
    ) -> tuple[Evaluation, dict[str, Evaluation]]:
        """The result over all tokens, and by corpus where there are several; equal on all ranks."""
        results = [
            evaluate(model, task, read, entry, batch=batch, precision=precision, world=world)
            for _, read, entry in self._parts
        ]
        by_corpus = {name: result for (name, _, _), result in zip(self._parts, results, strict=True)}
        return pool(task, results, [entry for _, _, entry in self._parts]), by_corpus if self._has_several else {}


def pool(task: Task, results: list[Evaluation], entries: list[SplitEntry]) -> Evaluation:
    """One result over the tokens of several splits; of one it is that one, to the last bit.

    A split counts by its own tokens, not by how many of them were read: the estimate is of all splits as they are. What
    is no sum over examples, but of one split's examples together, is told of each alone.
    """
    if len(results) == 1:
        return results[0]
    num_tokens = sum(result.num_tokens for result in results)
    split_tokens = sum(result.split_tokens for result in results)
    loss = sum(result.loss * result.split_tokens for result in results) / split_tokens
    is_whole = all(result.bits_per_byte is not None for result in results)
    text_bytes = sum(entry.text_bytes for entry in entries) if is_whole else None
    unigram_loss = mean_by_tokens([(result.unigram_loss, result.split_tokens) for result in results])
    parts = [(result.sums, result.split_tokens / max(1, result.num_tokens)) for result in results]
    figures = task.figures({name: sum(sums[name] * scale for sums, scale in parts) for name in task.sums})
    del figures["loss"]
    return _evaluation(loss * split_tokens, loss, num_tokens, split_tokens, text_bytes, unigram_loss, figures)
