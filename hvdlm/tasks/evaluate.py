"""Loss over a split, each token exactly once over all ranks: perplexity and bits per byte."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from hvdlm.compute.device import autocast
from hvdlm.data.corpora import Corpora, mean_by_tokens
from hvdlm.data.manifest import SplitEntry
from hvdlm.data.stream import TokenStream
from hvdlm.data.windows import IGNORED, EvaluationWindows
from hvdlm.world.interface import World


@dataclass(frozen=True)
class Evaluation:
    """`loss` is in nats per token; `bits_per_byte` counts the UTF-8 bytes of the documents.

    The end-of-text ids are predicted too and count in both. `unigram_loss` is what token frequencies
    alone reach on this split. A part of a split has no byte count, so no bits per byte.
    """

    loss: float
    perplexity: float
    bits_per_byte: float | None
    num_tokens: int
    unigram_loss: float | None

    def to_dict(self) -> dict:
        return asdict(self)


@torch.no_grad()
def evaluate(
    model: nn.Module, windows: EvaluationWindows, entry: SplitEntry, *, batch: int, precision: str, world: World
) -> Evaluation:
    """Evaluate the split that `entry` describes, `batch` windows at once; the result is equal on all ranks."""
    model.eval()
    device = next(model.parameters()).device
    total = np.zeros(2)  # nats, tokens: float64
    for inputs, targets in windows.batches(batch, rank=world.rank, size=world.size):
        with autocast(device, precision):
            logits = model(torch.from_numpy(inputs).to(device))  # (B, T, V)
        expected = torch.from_numpy(targets).to(device).flatten()
        total[0] += float(
            F.cross_entropy(logits.float().flatten(0, 1), expected, ignore_index=IGNORED, reduction="sum")
        )
        total[1] += int((targets >= 0).sum())
        world.beats += 1
    world.sum_(total)
    nats, num_tokens = float(total[0]), int(total[1])
    text_bytes = entry.text_bytes if num_tokens == entry.num_tokens else None
    return _evaluation(nats, nats / num_tokens, num_tokens, text_bytes, entry.unigram_loss)


def _evaluation(
    nats: float, loss: float, num_tokens: int, text_bytes: int | None, unigram_loss: float | None
) -> Evaluation:
    bits_per_byte = None if text_bytes is None else nats / math.log(2) / text_bytes
    return Evaluation(loss, math.exp(min(loss, 700.0)), bits_per_byte, num_tokens, unigram_loss)


class SplitEvaluation:
    """A split of all corpora, opened once: each token is a target exactly once.

    `max_tokens` keeps the beginning of each corpus's split, 0 all of it. UserError if no corpus has the split.
    """

    def __init__(self, corpora: Corpora, split: str, *, seq_len: int, max_tokens: int = 0) -> None:
        eos_id = corpora.manifest.eos_id
        self._parts: list[tuple[str, EvaluationWindows, SplitEntry]] = []
        for corpus in corpora.having(split) or corpora.corpora[:1]:
            stream = TokenStream(corpus.path, split, corpus.manifest)
            windows = EvaluationWindows(stream, seq_len, eos_id, max_tokens)
            self._parts.append((corpus.name, windows, corpus.manifest.splits[split]))
        self._has_several = len(corpora.corpora) > 1

    def run(
        self, model: nn.Module, *, batch: int, precision: str, world: World
    ) -> tuple[Evaluation, dict[str, Evaluation]]:
        """The result over all tokens, and by corpus where there are several; equal on all ranks."""
        results = [
            evaluate(model, windows, entry, batch=batch, precision=precision, world=world)
            for _, windows, entry in self._parts
        ]
        by_corpus = {name: result for (name, _, _), result in zip(self._parts, results, strict=True)}
        return pool(results, [entry for _, _, entry in self._parts]), by_corpus if self._has_several else {}


def pool(results: list[Evaluation], entries: list[SplitEntry]) -> Evaluation:
    """One result over the tokens of several splits; of one it is that one, to the last bit."""
    if len(results) == 1:
        return results[0]
    num_tokens = sum(result.num_tokens for result in results)
    loss = sum(result.loss * result.num_tokens for result in results) / num_tokens
    is_whole = all(result.bits_per_byte is not None for result in results)
    text_bytes = sum(entry.text_bytes for entry in entries) if is_whole else None
    unigram_loss = mean_by_tokens([(result.unigram_loss, result.num_tokens) for result in results])
    return _evaluation(loss * num_tokens, loss, num_tokens, text_bytes, unigram_loss)
