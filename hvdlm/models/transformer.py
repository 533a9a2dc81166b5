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
from hvdlm.models.interface import FamilyConfig

ROTARY_BASE = 10_000.0
ROTARY_TABLE = 4096  # positions whose rotation is kept; of longer sequences it is computed at each pass


class TransformerConfig(FamilyConfig):
    """`model: {family: transformer, …}`."""

    family: Literal["transformer"] = "transformer"
    layers: int = Field(4, ge=1, le=10_000, description="blocks of attention and MLP")
    heads: int = Field(4, ge=1, description="of attention in each block; they share the width")
    width: int = Field(128, ge=2, le=1_000_000, description="size of the residual stream, C")
    dropout: float = Field(0.0, ge=0, lt=1, description="of the three kinds below where they say nothing else")
    embed_dropout: float | None = Field(None, ge=0, lt=1, description="after the embedding")
    residual_dropout: float | None = Field(None, ge=0, lt=1, description="of what a block adds to the stream")
    attention_dropout: float | None = Field(None, ge=0, lt=1, description="of attention weights; slow, all are built")
    activation_checkpointing: Free[bool] = Field(
        False, description="keep each block's input alone and compute the rest again in the backward pass"
    )
    tie_embeddings: bool = Field(True, description="the output layer shares the input embedding")

    of_training = frozenset({"activation_checkpointing"})

    @model_validator(mode="after")
    def _check(self) -> TransformerConfig:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} is not a multiple of 2 x heads {self.heads} (rotary pairs)")
        return self

    def build(self, vocab_size: int) -> nn.Module:
        return Transformer(self, vocab_size)

    def attention_flops(self, seq_len: int) -> int:
        return 12 * self.layers * self.width * seq_len


class Transformer(nn.Module):
    """(B, T) ids -> (B, T, V) logits."""

    cos: Tensor  # of `rotary`, (ROTARY_TABLE, head_width / 2)
    sin: Tensor

    def __init__(self, config: TransformerConfig, vocab_size: int) -> None:
        super().__init__()
        self.head_width = config.width // config.heads
        self.dropout = _dropout_of(config, config.embed_dropout)
        self.activation_checkpointing = config.activation_checkpointing
        self.embed = nn.Embedding(vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config, first_site=1 + 3 * layer) for layer in range(config.layers))
        # A compiled model would else compute a power, a sine and a cosine for each value that it rotates: 26 % of the
        # step of GPT-2 124M on an H100.
        for name, part in zip(("cos", "sin"), rotary(ROTARY_TABLE, self.head_width, torch.device("cpu")), strict=True):
            self.register_buffer(name, part, persistent=False)
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

    def forward(self, ids: Tensor, draws: Draws | None = None) -> Tensor:
        x = dropout(self.embed(ids), self.dropout, draws, 0)  # (B, T, C)
        rotation = self.rotation(ids.shape[1])
        for block in self.blocks:
            if self.activation_checkpointing and torch.is_grad_enabled():
                # Draws are keyed, so the second pass draws the same; torch's generator has no part in it.
                x = checkpoint(block, x, rotation, draws, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, rotation, draws)
        return self.head(self.norm(x))

    def rotation(self, time: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines for the positions from 0, each (T, head_width / 2)."""
        if time <= ROTARY_TABLE:
            return self.cos[:time], self.sin[:time]
        return rotary(time, self.head_width, self.cos.device)


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

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], draws: Draws | None) -> Tensor:
        mixed = self.attention(self.norm1(x), rotation, draws)
        x = x + dropout(mixed, self.dropout, draws, self.first_site + 1)
        return x + dropout(self.mlp(self.norm2(x)), self.dropout, draws, self.first_site + 2)


class Attention(nn.Module):
    def __init__(self, config: TransformerConfig, *, site: int) -> None:
        super().__init__()
        self.heads, self.head_width = config.heads, config.width // config.heads
        self.dropout, self.site = _dropout_of(config, config.attention_dropout), site
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.out = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], draws: Draws | None) -> Tensor:
        batch, time, width = x.shape
        # Heads stay beside their position in memory, as the product before and the one after have them.
        q, k, v = self.qkv(x).view(batch, time, 3, self.heads, self.head_width).unbind(2)  # each (B, T, H, C / H)
        q, k, v = (part.transpose(1, 2) for part in (rotate(q, rotation), rotate(k, rotation), v))  # (B, H, T, C / H)
        if draws is None or self.dropout == 0:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            mixed = self._with_dropout(q, k, v, draws)
        return self.out(mixed.transpose(1, 2).reshape(batch, time, width))

    def _with_dropout(self, q: Tensor, k: Tensor, v: Tensor, draws: Draws) -> Tensor:
        """Attention with its weights (B, H, T, T) built, for torch's fused kernels know no keyed mask."""
        future = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).triu(1)
        scores = (q * self.head_width**-0.5 @ k.transpose(-1, -2)).masked_fill(future, float("-inf"))
        weights = dropout(scores.softmax(-1, dtype=torch.float32), self.dropout, draws, self.site)
        return weights.to(v.dtype) @ v


def _dropout_of(config: TransformerConfig, kind: float | None) -> float:
    return config.dropout if kind is None else kind


def rotary(time: int, head_width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each (T, head_width / 2), of position x frequency."""
    frequency = ROTARY_BASE ** (-torch.arange(0, head_width, 2, device=device, dtype=torch.float32) / head_width)
    angle = torch.outer(torch.arange(time, device=device, dtype=torch.float32), frequency)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (first half, second half) of the last axis of x (B, T, H, C / H) by its position's angle."""
    cos, sin = (part.to(x.dtype).unsqueeze(1) for part in rotation)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)
