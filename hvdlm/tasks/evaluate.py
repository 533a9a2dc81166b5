"""Loss over a split, each token exactly once over all ranks: perplexity and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hvdlm.compute.device import autocast
from hvdlm.data.corpora import Corpora, mean_by_tokens
from hvdlm.data.manifest import SplitEntry
from hvdlm.data.stream import TokenStream
from hvdlm.data.windows import IGNORED, EvaluationStreams, EvaluationWindows
from hvdlm.world.interface import World


@dataclass(frozen=True)
class Evaluation:
    """`loss` is in nats per token; `bits_per_byte` counts the UTF-8 bytes of the documents.

    The end-of-text ids are predicted too and count in both. `num_tokens` of the split's `split_tokens` were predicted;
    where they are not all, they are an estimate, and without bits per byte, since nobody counted the bytes of a part.
    `unigram_loss` is what token frequencies alone reach on the whole split.
    """

    loss: float
    perplexity: float
    bits_per_byte: float | None
    num_tokens: int
    split_tokens: int
    unigram_loss: float | None

    def to_dict(self) -> dict:
        return asdict(self)

    @property
    def coverage(self) -> str:
        """How much of the split it is about, in words."""
        if self.num_tokens == self.split_tokens:
            return f"all {self.split_tokens:,} tokens"
        return f"{self.num_tokens:,} of {self.split_tokens:,} tokens"


@torch.no_grad()
def evaluate(
    model: nn.Module,
    read: EvaluationWindows | EvaluationStreams,
    entry: SplitEntry,
    *,
    batch: int,
    precision: str,
    world: World,
) -> Evaluation:
    """Evaluate on what is read of the split that `entry` describes, at most `batch` windows' tokens at once.

    The result is equal on all ranks, and but for rounding the same at any number of them.
    """
    model.eval()
    device = next(model.parameters()).device
    total = np.zeros(2)  # nats, tokens: float64
    for logits, targets in _predictions(model, read, batch, precision, world):
        expected = torch.from_numpy(targets).to(device).flatten()
        total[0] += float(
            F.cross_entropy(logits.float().flatten(0, 1), expected, ignore_index=IGNORED, reduction="sum")
        )
        total[1] += int((targets >= 0).sum())
        world.beats += 1
    world.sum_(total)
    nats, num_tokens = float(total[0]), int(total[1])
    text_bytes = entry.text_bytes if num_tokens == entry.num_tokens else None
    return _evaluation(nats, nats / num_tokens, num_tokens, entry.num_tokens, text_bytes, entry.unigram_loss)


def _predictions(
    model: Any, read: EvaluationWindows | EvaluationStreams, batch: int, precision: str, world: World
) -> Iterator[tuple[Tensor, np.ndarray]]:
    """Logits (B, T, V) and targets (B, T) of what this rank reads."""
    device = next(model.parameters()).device
    if isinstance(read, EvaluationWindows):
        for inputs, targets in read.batches(batch, rank=world.rank, size=world.size):
            with autocast(device, precision):
                logits = model(torch.from_numpy(inputs).to(device))
            yield logits, targets
        return
    for group in read.groups(batch, rank=world.rank, size=world.size):
        state = model.initial_state(len(group), device)
        for inputs, targets in read.chunks(group, read.seq_len * (batch // len(group))):  # any length is the same sum
            with autocast(device, precision):
                logits, state = model.forward_from(torch.from_numpy(inputs).to(device), None, state)
            yield logits, targets


def _evaluation(
    nats: float,
    loss: float,
    num_tokens: int,
    split_tokens: int,
    text_bytes: int | None,
    unigram_loss: float | None,
) -> Evaluation:
    bits_per_byte = None if text_bytes is None else nats / math.log(2) / text_bytes
    return Evaluation(loss, math.exp(min(loss, 700.0)), bits_per_byte, num_tokens, split_tokens, unigram_loss)


class SplitEvaluation:
    """A split of all corpora, opened once: each token is a target exactly once.

    `max_tokens` of each corpus's split are read, spread over it; 0 is all of it. With `streams` that many streams run
    through each split, with the model's state carried along; 0 is windows, each for itself. UserError if no corpus
    has the split.
    """

    def __init__(self, corpora: Corpora, split: str, *, seq_len: int, max_tokens: int = 0, streams: int = 0) -> None:
        eos_id = corpora.manifest.eos_id
        self._parts: list[tuple[str, EvaluationWindows | EvaluationStreams, SplitEntry]] = []
        for corpus in corpora.having(split) or corpora.corpora[:1]:
            stream = TokenStream(corpus.path, split, corpus.manifest)
            read: EvaluationWindows | EvaluationStreams = (
                EvaluationStreams(stream, seq_len, eos_id, streams, max_tokens)
                if streams
                else EvaluationWindows(stream, seq_len, eos_id, max_tokens)
            )
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

    def run(
        self, model: nn.Module, *, batch: int, precision: str, world: World
    ) -> tuple[Evaluation, dict[str, Evaluation]]:
        """The result over all tokens, and by corpus where there are several; equal on all ranks."""
        results = [
            evaluate(model, read, entry, batch=batch, precision=precision, world=world)
            for _, read, entry in self._parts
        ]
        by_corpus = {name: result for (name, _, _), result in zip(self._parts, results, strict=True)}
        return pool(results, [entry for _, _, entry in self._parts]), by_corpus if self._has_several else {}


def pool(results: list[Evaluation], entries: list[SplitEntry]) -> Evaluation:
    """One result over the tokens of several splits; of one it is that one, to the last bit.

    A split counts by its own tokens, not by how many of them were read: the estimate is of all splits as they are.
    """
    if len(results) == 1:
        return results[0]
    num_tokens = sum(result.num_tokens for result in results)
    split_tokens = sum(result.split_tokens for result in results)
    loss = sum(result.loss * result.split_tokens for result in results) / split_tokens
    is_whole = all(result.bits_per_byte is not None for result in results)
    text_bytes = sum(entry.text_bytes for entry in entries) if is_whole else None
    unigram_loss = mean_by_tokens([(result.unigram_loss, result.split_tokens) for result in results])
    return _evaluation(loss * split_tokens, loss, num_tokens, split_tokens, text_bytes, unigram_loss)
