"""GPT-2 and its training as one writes them by hand in torch: the peer of `hvdlm bench gpu`.

The model of Radford et al. 2019 (learned positions, pre-norm, GELU, tied head) and a loop of autocast, fused AdamW,
clipping and gradient accumulation on batches that are in pinned memory already. Nothing of hvdlm is in it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class GptShape:
    """The size of a model and its sequences."""

    layers: int
    heads: int
    width: int
    seq_len: int
    vocab_size: int


class PlainBlock(nn.Module):
    def __init__(self, shape: GptShape) -> None:
        super().__init__()
        width, self.heads = shape.width, shape.heads
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, width = x.shape
        q, k, v = (
            part.view(batch, time, self.heads, -1).transpose(1, 2) for part in self.qkv(self.norm1(x)).split(width, 2)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, time, width))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class PlainGpt(nn.Module):
    """(B, T) ids and targets -> mean loss in nats."""

    def __init__(self, shape: GptShape) -> None:
        super().__init__()
        self.tokens = nn.Embedding(shape.vocab_size, shape.width)
        self.places = nn.Embedding(shape.seq_len, shape.width)
        self.blocks = nn.ModuleList(PlainBlock(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width, bias=False)
        self.head = nn.Linear(shape.width, shape.vocab_size, bias=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(self.norm(x)).float().flatten(0, 1), targets.flatten())


class PlainTraining:
    """Steps of `passes` micro-batches."""

    def __init__(
        self,
        shape: GptShape,
        micro_batch: int,
        passes: int,
        *,
        compiled: bool,
        device: torch.device,
        precision: str,
    ) -> None:
        torch.manual_seed(0)
        self._model = PlainGpt(shape).to(device)
        self._loss_of = torch.compile(self._model) if compiled else self._model
        self._device, self._dtype, self._micro_batch = device, DTYPES[precision], micro_batch
        self._optimizer = torch.optim.AdamW(self._model.parameters(), lr=6e-4, betas=(0.9, 0.95), fused=True)
        self._ids = torch.randint(shape.vocab_size, (passes * micro_batch, shape.seq_len + 1))
        if device.type == "cuda":
            self._ids = self._ids.pin_memory()

    def run(self, num_steps: int) -> None:
        """Start so many steps; on a GPU they may still be under way."""
        for _ in range(num_steps):
            for rows in self._ids.split(self._micro_batch):
                ids = rows.to(self._device, non_blocking=True)
                with torch.autocast(self._device.type, dtype=self._dtype, enabled=self._dtype != torch.float32):
                    loss = self._loss_of(ids[:, :-1], ids[:, 1:])
                (loss * (self._micro_batch / len(self._ids))).backward()
            nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
            self._optimizer.step()
            self._optimizer.zero_grad()
