"""A GPT-style decoder: pre-norm blocks of causal attention and an MLP, rotary positions.

Sources: Radford et al. 2019 (GPT-2 layout and initialization), Su et al. 2021 (rotary embedding),
Press and Wolf 2017 (tied embeddings).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hvdlm.compute.draws import Draws, dropout
from hvdlm.config import Free
from hvdlm.models.interface import FamilyConfig, LanguageModel, OfTraining, State, Vocabulary

ROTARY_BASE = 10_000.0

Rotation = tuple[Tensor, Tensor]


class TransformerConfig(FamilyConfig):
    """`model: {family: transformer, …}`."""

    family: Literal["transformer"] = "transformer"
    layers: int = Field(4, ge=1, le=10_000, description="blocks of attention and MLP")
    heads: int = Field(4, ge=1, description="of attention in each block; they share the width")
    width: int = Field(128, ge=2, le=1_000_000, description="size of the residual stream, C")
    dropout: OfTraining[float] = Field(
        0.0, ge=0, lt=1, description="of the three kinds below where they say nothing else"
    )
    embed_dropout: OfTraining[float | None] = Field(None, ge=0, lt=1, description="after the embedding")
    residual_dropout: OfTraining[float | None] = Field(
        None, ge=0, lt=1, description="of what a block adds to the stream"
    )
    attention_dropout: OfTraining[float | None] = Field(
        None, ge=0, lt=1, description="of attention weights; slow, all are built"
    )
    activation_checkpointing: OfTraining[Free[bool]] = Field(
        False, description="keep each block's input alone and compute the rest again in the backward pass"
    )
    tie_embeddings: bool = Field(True, description="the output layer shares the input embedding")

    @model_validator(mode="after")
    def _check(self) -> TransformerConfig:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} is not a multiple of 2 x heads {self.heads} (rotary pairs)")
        return self

    def build(self, vocabulary: Vocabulary) -> LanguageModel:
        return Transformer(self, vocabulary.size)


class Transformer(LanguageModel):
    """Embedding, blocks, head. The state is each block's keys, then values: (B, H, T so far, C / H)."""

    def __init__(self, config: TransformerConfig, vocab_size: int) -> None:
        super().__init__()
        self.heads, self.head_width = config.heads, config.width // config.heads
        self.dropout = _dropout_of(config, config.embed_dropout)
        kinds = config.embed_dropout, config.residual_dropout, config.attention_dropout
        self.takes_draws = any(_dropout_of(config, kind) for kind in kinds)
        self.activation_checkpointing = config.activation_checkpointing
        self.embed = nn.Embedding(vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config, first_site=1 + 3 * layer) for layer in range(config.layers))
        self.norm = nn.LayerNorm(config.width, bias=False)
        self.head = nn.Linear(config.width, vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embed.weight
        self._initialize(config)

    def _initialize(self, config: TransformerConfig) -> None:
        """N(0, 0.02), and layers that write into the residual stream scaled by 1 / sqrt(2 x layers)."""
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                into_stream = name.endswith(("attention.out.weight", "mlp.2.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * config.layers) ** 0.5 if into_stream else 0.02)

    def initial_state(self, num: int) -> State:
        empty = torch.zeros(num, self.heads, 0, self.head_width, device=self.device)
        return (empty,) * (2 * len(self.blocks))

    def forward(
        self, ids: Tensor, state: State | None = None, draws: Draws | None = None
    ) -> tuple[Tensor, State | None]:
        x = dropout(self.embed(ids), self.dropout, draws, 0)  # (B, T, C)
        first = 0 if state is None else state[0].shape[2]
        rotation = rotary(first + ids.shape[1], self.head_width, x.device, first=first)
        after: list[Tensor] = []
        for number, block in enumerate(self.blocks):
            past = None if state is None else state[2 * number : 2 * number + 2]
            if self.activation_checkpointing and torch.is_grad_enabled():
                # Draws are keyed, so the second pass draws the same; torch's generator has no part in it.
                x, seen = checkpoint(block, x, rotation, draws, past, use_reentrant=False, preserve_rng_state=False)
            else:
                x, seen = block(x, rotation, draws, past)
            after += seen
        return self.norm(x), None if state is None else tuple(after)

    def flops_per_token(self, seq_len: int) -> int:
        """Attention adds 12 x layers x width x seq_len, the causal half not taken off.

        Source: Chowdhery et al. 2022, "PaLM", appendix B.
        """
        return super().flops_per_token(seq_len) + 12 * len(self.blocks) * self.heads * self.head_width * seq_len


class Block(nn.Module):
    """One layer; its draws have the sites first_site, + 1 and + 2."""

    def __init__(self, config: TransformerConfig, *, first_site: int) -> None:
        super().__init__()
        self.dropout, self.first_site = _dropout_of(config, config.residual_dropout), first_site
        self.norm1 = nn.LayerNorm(config.width, bias=False)
        self.attention = Attention(config, site=first_site)
        self.norm2 = nn.LayerNorm(config.width, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, 4 * config.width, bias=False),
            nn.GELU(approximate="tanh"),
            nn.Linear(4 * config.width, config.width, bias=False),
        )

    def forward(self, x: Tensor, rotation: Rotation, draws: Draws | None, past: State | None) -> tuple[Tensor, State]:
        """What it makes of the stream, and with a `past` the keys and values that it has seen."""
        mixed, seen = self.attention(self.norm1(x), rotation, draws, past)
        x = x + dropout(mixed, self.dropout, draws, self.first_site + 1)
        return x + dropout(self.mlp(self.norm2(x)), self.dropout, draws, self.first_site + 2), seen


class Attention(nn.Module):
    def __init__(self, config: TransformerConfig, *, site: int) -> None:
        super().__init__()
        self.heads, self.head_width = config.heads, config.width // config.heads
        self.dropout, self.site = _dropout_of(config, config.attention_dropout), site
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, rotation: Rotation, draws: Draws | None, past: State | None) -> tuple[Tensor, State]:
        batch, time, width = x.shape
        heads = self.qkv(x).view(batch, time, 3, self.heads, self.head_width).permute(2, 0, 3, 1, 4)
        q, k, v = heads.unbind(0)  # each (B, H, T, C / H)
        q, k = rotate(q, rotation), rotate(k, rotation)
        if past is not None:
            k, v = (torch.cat((before.to(now.dtype), now), dim=2) for before, now in zip(past, (k, v), strict=True))
        if draws is None or self.dropout == 0:
            mixed = self._fused(q, k, v)
        else:
            mixed = self._with_dropout(q, k, v, draws)
        mixed = self.out(mixed.transpose(1, 2).reshape(batch, time, width))
        return mixed, () if past is None else (k, v)  # what nobody asked for is kept by nobody

    def _fused(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.shape[2] == k.shape[2]:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mask = None if q.shape[2] == 1 else ~_future(q, k)  # one position sees all
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def _with_dropout(self, q: Tensor, k: Tensor, v: Tensor, draws: Draws) -> Tensor:
        """Attention with its weights (B, H, T, S) built, for torch's fused kernels know no keyed mask."""
        scores = (q * self.head_width**-0.5 @ k.transpose(-1, -2)).masked_fill(_future(q, k), float("-inf"))
        weights = dropout(scores.softmax(-1, dtype=torch.float32), self.dropout, draws, self.site)
        return weights.to(v.dtype) @ v


def _future(q: Tensor, k: Tensor) -> Tensor:
    """Which keys come after a query, (T, S) bool; the last query is the last key's."""
    time, seen = q.shape[2], k.shape[2]
    return torch.ones(time, seen, dtype=torch.bool, device=q.device).triu(1 + seen - time)


def _dropout_of(config: TransformerConfig, kind: float | None) -> float:
    return config.dropout if kind is None else kind


def rotary(end: int, head_width: int, device: torch.device, *, first: int = 0) -> Rotation:
    """Cosines and sines, each (T, head_width / 2), of position x frequency, for positions [first, end)."""
    frequency = ROTARY_BASE ** (-torch.arange(0, head_width, 2, device=device, dtype=torch.float32) / head_width)
    angle = torch.outer(torch.arange(first, end, device=device, dtype=torch.float32), frequency)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair (first half, second half) of the last axis by its position's angle."""
    cos, sin = (part.to(x.dtype) for part in rotation)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)
