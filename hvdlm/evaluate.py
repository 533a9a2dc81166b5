"""Loss over a split, each token exactly once over all ranks: perplexity and bits per byte."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from hvdlm.batches import IGNORED, EvaluationWindows
from hvdlm.device import autocast
from hvdlm.manifest import SplitEntry
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
    model: nn.Module,
    windows: EvaluationWindows,
    entry: SplitEntry,
    *,
    batch: int,
    precision: str,
    world: World,
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
    is_whole = num_tokens == entry.num_tokens
    return Evaluation(
        loss=nats / num_tokens,
        perplexity=math.exp(min(nats / num_tokens, 700.0)),
        bits_per_byte=nats / math.log(2) / entry.text_bytes if is_whole else None,
        num_tokens=num_tokens,
        unigram_loss=entry.unigram_loss,
    )
