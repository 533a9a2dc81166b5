"""Loss over a split, each token exactly once over all ranks: perplexity and bits per byte."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import nn

from hvdlm.batches import evaluation_batches
from hvdlm.engine import token_loss
from hvdlm.shards import SplitEntry, TokenStream
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
    stream: TokenStream,
    entry: SplitEntry,
    *,
    seq_len: int,
    eos_id: int,
    batch: int,
    precision: str,
    device: torch.device,
    world: World,
    max_tokens: int = 0,
) -> Evaluation:
    """Evaluate a split with windows of `seq_len`; the result is equal on all ranks."""
    model.eval()
    total = np.zeros(2)  # nats, tokens: float64
    for inputs, targets in evaluation_batches(
        stream, seq_len=seq_len, eos_id=eos_id, batch=batch, rank=world.rank, size=world.size, max_tokens=max_tokens
    ):
        ids = torch.from_numpy(inputs).to(device)
        total[0] += float(token_loss(model, ids, torch.from_numpy(targets).to(device), precision, reduction="sum"))
        total[1] += int((targets >= 0).sum())
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
