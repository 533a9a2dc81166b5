"""`model: {family: conv, …}`: blocks of dilated causal convolutions, each with a residual connection.

Sources: Bai et al. 2018 (temporal convolutional networks: `preset: tcn`), Dauphin et al. 2017 (gated linear units:
`preset: gcnn`), Salimans and Kingma 2016 (weight normalization).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from hvdlm.compute.draws import Draws
from hvdlm.config import choice_of
from hvdlm.models.interface import LanguageModel, OfTraining, State, Vocabulary
from hvdlm.models.presets import departures, filled
from hvdlm.models.stack import Dropout, Stack, StackConfig, fitted
from hvdlm.tables import counted

# How many values of a convolution an activation makes one of, and the activation.
ACTIVATIONS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {"glu": (2, F.glu), "relu": (1, F.relu)}

MOST_SEEN = 1 << 20  # the state holds so many vectors for each sample

PRESETS: dict[str, dict[str, Any]] = {
    "none": {},
    "tcn": {"activation": "relu", "convolutions": 2, "dilation": 2, "weight_norm": True},
    "gcnn": {"activation": "glu", "convolutions": 1, "dilation": 1, "weight_norm": True},
}


class ConvConfig(StackConfig):
    """`model: {family: conv, …}`: gated, dilated causal convolutions; the state is the past that each of them sees."""

    family: Literal["conv"] = "conv"
    layers: int = Field(4, ge=1, le=10_000, description="blocks, one above the other")
    preset: OfTraining[Annotated[str, choice_of(PRESETS)]] = Field(
        "none", description="shape of blocks in Bai et al. 2018 or Dauphin et al. 2017: fills what is not said here"
    )
    activation: Literal["glu", "relu"] = Field("glu", description="glu: half of the values gate the others")
    convolutions: int = Field(2, ge=1, le=64, description="in each block")
    dilation: int = Field(2, ge=1, le=64, description="inputs of block n are dilation^n apart, n from 0")
    weight_norm: bool = Field(True, description="learn length and direction of each convolution's weights apart")
    kernel: int = Field(3, ge=1, le=1024, description="inputs that a convolution sees")

    carries_state = True
    drops_within_layers = True
    presets = PRESETS

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        return filled(values, cls.presets)

    @model_validator(mode="after")
    def _check(self) -> ConvConfig:
        if self.receptive_field > MOST_SEEN:
            raise ValueError(
                f"with kernel {self.kernel}, dilation {self.dilation}, layers {self.layers} and convolutions"
                f" {self.convolutions} a token would see more than {MOST_SEEN:,} others; lower one of them"
            )
        return self

    @property
    def receptive_field(self) -> int:
        """So many inputs, its own and those before, a position's output depends on."""
        return 1 + sum(self.convolutions * (self.kernel - 1) * self.dilation**block for block in range(self.layers))

    @property
    def facts(self) -> str:
        return f"a token sees {counted(self.receptive_field, 'token')}"

    @property
    def remarks(self) -> tuple[str, ...]:
        return (*departures(self, self.preset, PRESETS[self.preset]), *super().remarks)

    @property
    def state_shapes(self) -> list[list[tuple[int, ...]]]:
        pasts = [(self.kernel - 1) * self.dilation**number for number in range(self.layers)]
        return [
            [(past, width) for width in (inputs, *[outputs] * (self.convolutions - 1))]
            for past, inputs, outputs in zip(pasts, self.widths, self.widths[1:], strict=False)
        ]

    def build(self, vocabulary: Vocabulary) -> LanguageModel:
        return Convolutional(self, vocabulary.size)


class Convolutional(Stack):
    """Embedding, blocks, head. The state is of each convolution the inputs (B, (K - 1) x dilation, C) it still sees."""

    def __init__(self, config: ConvConfig, vocab_size: int) -> None:
        super().__init__(config, vocab_size, (Block(config, number) for number in range(config.layers)))


class Block(nn.Module):
    """Convolutions, each with its activation and dropout, added to the block's input."""

    def __init__(self, config: ConvConfig, number: int) -> None:
        super().__init__()
        inputs, outputs = config.widths[number : number + 2]
        num_halves, self.activation = ACTIVATIONS[config.activation]
        self.ends_in_activation = config.activation == "relu"  # as in Bai et al.
        widths = [inputs, *[outputs] * config.convolutions]
        self.convolutions = nn.ModuleList(
            CausalConvolution(
                width, num_halves * outputs, config.kernel, config.dilation**number, weight_norm=config.weight_norm
            )
            for width in widths[:-1]
        )
        p, first = config.dropout_of(config.layer_dropout), 1 + config.layers + number * config.convolutions
        self.dropouts = nn.ModuleList(
            Dropout(p, first + place, shared_dims=config.shared_dims) for place in range(config.convolutions)
        )
        self.residual = fitted(inputs, outputs)

    def forward(self, x: Tensor, past: State, draws: Draws | None) -> tuple[Tensor, State]:
        made, after = x, []
        for convolution, drop, before in zip(self.convolutions, self.dropouts, past, strict=True):
            made, seen = convolution(made, before)
            made = drop(self.activation(made), draws)
            after.append(seen)
        made = made + self.residual(x)
        return F.relu(made) if self.ends_in_activation else made, tuple(after)


class Taps(nn.Linear):
    """A matrix that is read, and no layer that is called."""


class CausalConvolution(nn.Module):
    """Of an input and the `kernel` - 1 before it that are `dilation` apart; before the first there are zeros.

    A product with one matrix (outputs, kernel x inputs), the oldest input first, which is faster on CPUs than torch's
    convolution over so few positions.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, dilation: int, *, weight_norm: bool) -> None:
        super().__init__()
        self.kernel, self.dilation = kernel, dilation
        self.linear = Taps(kernel * inputs, outputs)
        self.length = nn.Parameter(self.linear.weight.detach().norm(dim=1)) if weight_norm else None  # of each row

    def forward(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, T, inputs) and the (kernel - 1) x dilation before -> (B, T, outputs), and the past of the next."""
        seen, time = torch.cat((past.to(x.dtype), x), dim=1), x.shape[1]
        taps = [seen[:, place * self.dilation :][:, :time] for place in range(self.kernel)]
        weight = self.linear.weight
        if self.length is not None:
            weight = weight * (self.length / weight.norm(dim=1)).unsqueeze(1)
        return F.linear(torch.cat(taps, dim=-1), weight, self.linear.bias), seen[:, time:]
