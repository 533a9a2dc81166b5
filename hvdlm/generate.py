"""Sampling text from a model: temperature, top-k, top-p, a seed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


def choose(logits: Tensor, *, temperature: float, top_k: int, top_p: float, random: torch.Generator) -> int:
    """One id from logits (V,). Temperature 0 takes the most likely; top_k 0 and top_p 1 keep all.

    top_p keeps the smallest set of likeliest ids whose probability reaches it (Holtzman et al. 2020).
    """
    if temperature == 0:
        return int(logits.argmax())
    logits = logits.float() / temperature
    if 0 < top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], float("-inf"))
    probabilities, ids = logits.softmax(-1).sort(descending=True)
    before = probabilities.cumsum(-1) - probabilities
    probabilities = probabilities.masked_fill(before >= top_p, 0.0)
    return int(ids[torch.multinomial(probabilities, 1, generator=random)])


@torch.no_grad()
def generate(
    model: nn.Module,
    prompt: list[int],
    *,
    seq_len: int,
    max_tokens: int,
    eos_id: int,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[int]:
    """Yield ids that continue `prompt` until the end of text or `max_tokens`; sees the last `seq_len` ids."""
    model.eval()
    random = torch.Generator().manual_seed(seed)
    ids = list(prompt) or [eos_id]
    device = next(model.parameters()).device
    for _ in range(max_tokens):
        logits = model(torch.tensor([ids[-seq_len:]], device=device))[0, -1]  # (V,)
        chosen = choose(logits.cpu(), temperature=temperature, top_k=top_k, top_p=top_p, random=random)
        if chosen == eos_id:
            return
        ids.append(chosen)
        yield chosen
