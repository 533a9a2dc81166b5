"""What a transformer is made of: the options that its layers read."""

from __future__ import annotations

from abc import ABC
from typing import Annotated, Literal

from pydantic import Field, model_validator

from hvdlm.config import Free, choice_of
from hvdlm.models.interface import FamilyConfig, OfTraining
from hvdlm.models.transformer.layers import ACTIVATIONS, NORMS
from hvdlm.models.transformer.positions import AnyPositionsConfig, RotaryConfig
from hvdlm.models.transformer.presets import PRESETS


class Options(FamilyConfig, ABC):
    """The keys below `model:`, but for the family."""

    preset: OfTraining[Annotated[str, choice_of(PRESETS)]] = Field(
        "none", description="shape of a published model: fills what is not said here"
    )
    layers: int = Field(4, ge=1, le=10_000, description="blocks of attention and MLP")
    heads: int = Field(4, ge=1, description="of attention in each block; they share the width")
    width: int = Field(128, ge=2, le=1_000_000, description="size of the residual stream, C")
    kv_heads: int | None = Field(
        None, ge=1, description="heads of keys and values, each for a group of heads; null: as many as heads"
    )
    head_width: int | None = Field(None, ge=1, le=1_000_000, description="of each head; null: width / heads")
    mlp_width: int | None = Field(
        None, ge=1, le=10_000_000, description="null: 4 x width; of swiglu 8/3 x width, up to the next multiple of 8"
    )
    causal: bool = Field(True, description="false: tokens see both sides, as task: mlm needs")
    encoder_layers: int = Field(0, ge=0, le=10_000, description="blocks that read a source; 0: there is none")
    decoder_start: int | None = Field(
        None, ge=0, description="id before the first target of a model with an encoder; null: the end of text"
    )
    positions: AnyPositionsConfig = Field(RotaryConfig(), description="how it knows where a token stands")
    window: int | None = Field(None, ge=1, description="tokens that attention sees, itself among them; null: all")
    norm: Annotated[str, choice_of(NORMS)] = Field("layernorm", description="layernorm, or rmsnorm: no mean taken off")
    norm_eps: float = Field(1e-5, gt=0, lt=1, description="added to the variance in a norm")
    norm_position: Literal["pre", "post"] = Field(
        "pre", description="before each layer, and at the end; or behind each sum, as in BERT"
    )
    bias: bool = Field(False, description="in all layers and norms but the embedding and the head")
    activation: Annotated[str, choice_of(ACTIVATIONS)] = Field(
        "gelu_tanh", description="of the MLP; swiglu has a gate beside it, gelu_tanh is GPT-2's gelu"
    )
    qk_norm: bool = Field(False, description="a norm of each head's queries and keys")
    embed_scale: bool = Field(False, description="embeddings times the square root of width")
    embed_norm: bool = Field(False, description="a norm of the embeddings")
    token_types: int = Field(
        0, ge=0, le=1000, description="kinds of text in one example, as BERT's pairs have 2: a learnt vector each"
    )
    attention_softcap: float | None = Field(
        None, gt=0, description="scores s become c tanh(s / c); slow, all are built"
    )
    logit_softcap: float | None = Field(None, gt=0, description="logits x become c tanh(x / c)")
    head_transform: bool = Field(False, description="layer, activation and norm before the head, as in BERT")
    head_bias: bool = Field(False, description="in the head")
    tie_embeddings: bool = Field(True, description="the output layer shares the input embedding")
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

    @model_validator(mode="after")
    def _check(self) -> Options:
        if isinstance(self.positions, RotaryConfig):
            if self.head_width is None and self.width % (2 * self.heads):
                raise ValueError(f"width {self.width} is not a multiple of 2 x heads {self.heads} (rotary pairs)")
            if self.width_of_head % 2:
                raise ValueError(f"head_width {self.head_width} is odd (rotary pairs)")
        elif self.head_width is None and self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}; or set head_width")
        if self.heads % self.num_kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.encoder_layers and not self.causal:
            raise ValueError("causal: false is of a model without a decoder; set encoder_layers: 0")
        if self.encoder_layers and self.token_types:
            raise ValueError("token_types is of a model that reads one sequence; set encoder_layers: 0")
        if self.decoder_start is not None and not self.encoder_layers:
            raise ValueError("decoder_start is of a model with an encoder; set encoder_layers")
        return self

    @property
    def num_kv_heads(self) -> int:
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def width_of_head(self) -> int:
        return self.width // self.heads if self.head_width is None else self.head_width

    @property
    def width_of_mlp(self) -> int:
        if self.mlp_width is not None:
            return self.mlp_width
        return 4 * self.width if self.activation != "swiglu" else -(-self.width // 3) * 8

    @property
    def carries_state(self) -> bool:  # type: ignore[override]
        """What lies behind the window is forgotten; without a window the state grows."""
        return self.window is not None and self.may_forget

    @property
    def may_forget(self) -> bool:
        """Whether a window would make its state one of fixed size."""
        return self.causal and self.positions.is_relative and not self.encoder_layers

    @property
    def keep(self) -> int | None:
        """Keys that a state of fixed size holds; None: it grows."""
        return self.window - 1 if self.window is not None and self.carries_state else None

    def num_seen(self, seq_len: int, *, causal: bool) -> int:
        """Keys of a query in sequences of that length, those after it counted as well."""
        if self.window is None:
            return seq_len
        return min(seq_len, self.window if causal else 2 * self.window - 1)

    def dropout_of(self, kind: float | None) -> float:
        return self.dropout if kind is None else kind
