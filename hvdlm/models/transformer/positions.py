"""How a transformer knows where a token stands: POSITIONS."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn

from hvdlm.config import Section, by_name, tagged_union
from hvdlm.errors import UserError

ROTARY_TABLE = 4096  # positions whose rotation is kept; of longer sequences it is computed at each pass

Rotation = tuple[Tensor, Tensor]


class Positions(nn.Module):
    """What positions do to a model: nothing, where a kind does not say otherwise."""

    def added(self, first: int, time: int) -> Tensor | None:
        """(T, C), to add to the embeddings of the positions first, first + 1, …"""
        return None

    def rotation(self, end: int, device: torch.device) -> Rotation | None:
        """Of keys and queries, for the positions [0, end)."""
        return None

    # (H, T, S), to add to the scores of keys so far before the query, a distance (T, S).
    bias: Callable[[Tensor], Tensor] | None = None


class PositionsConfig(Section, ABC):
    """`positions: {kind: …, …}`, or the kind alone."""

    kind: str

    # Whether only distances count, so that a sequence may go on for ever.
    is_relative: ClassVar[bool] = True

    @abstractmethod
    def build(self, width: int, heads: int, head_width: int) -> Positions: ...

    def for_sequences(self, seq_len: int) -> PositionsConfig:
        """Itself for sequences of that length; ValueError where they are too long."""
        return self


class ScalingConfig(Section, ABC):
    """`scaling: {kind: …, …}`: how rotary frequencies are changed for sequences longer than those first trained on."""

    kind: str

    def scaled(self, base: float, head_width: int) -> Tensor:
        """The frequencies, float32 (head_width / 2,)."""
        return frequencies(base, head_width)


class NoScaling(ScalingConfig):
    """`scaling: none`."""

    kind: Literal["none"] = "none"


class LinearScaling(ScalingConfig):
    """`scaling: {kind: linear, …}`: positions divided by the factor (Chen et al. 2023)."""

    kind: Literal["linear"] = "linear"
    factor: float = Field(ge=1, description="how many times longer sequences are")

    def scaled(self, base: float, head_width: int) -> Tensor:
        return frequencies(base, head_width) / self.factor


class NtkScaling(ScalingConfig):
    """`scaling: {kind: ntk, …}`: a base so large that the slowest pair turns `factor` times slower (bloc97 2023).

    One base for all lengths, where Hugging Face's `dynamic` takes another one for each.
    """

    kind: Literal["ntk"] = "ntk"
    factor: float = Field(ge=1, description="how many times longer sequences are")

    def scaled(self, base: float, head_width: int) -> Tensor:
        return frequencies(base * self.factor ** (head_width / max(1, head_width - 2)), head_width)


class Llama3Scaling(ScalingConfig):
    """`scaling: {kind: llama3, …}`: slow pairs as linear, fast ones as they are, a ramp between (Dubey et al. 2024).

    The keys are those of Hugging Face's rope_scaling; original_len is its original_max_position_embeddings.
    """

    kind: Literal["llama3"] = "llama3"
    factor: float = Field(8.0, ge=1, description="how many times longer sequences are")
    low_freq_factor: float = Field(
        1.0, gt=0, description="pairs that turn less often than so in original_len are slowed down in full"
    )
    high_freq_factor: float = Field(4.0, gt=0, description="pairs that turn more often than so stay as they are")
    original_len: int = Field(8192, ge=1, description="tokens of the sequences first trained on")

    @model_validator(mode="after")
    def _check(self) -> Llama3Scaling:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(
                f"high_freq_factor {self.high_freq_factor:g} is not above low_freq_factor {self.low_freq_factor:g}"
            )
        return self

    def scaled(self, base: float, head_width: int) -> Tensor:
        frequency = frequencies(base, head_width)
        turns = self.original_len * frequency / (2 * math.pi)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = kept.clamp(0, 1)
        return kept * frequency + (1 - kept) * frequency / self.factor


SCALINGS: dict[str, type[ScalingConfig]] = {
    "none": NoScaling,
    "linear": LinearScaling,
    "ntk": NtkScaling,
    "llama3": Llama3Scaling,
}


class RotaryConfig(PositionsConfig):
    """`positions: {kind: rotary, …}`: keys and queries turned by their position (Su et al. 2021).

    A pair is an element of a head's first half and the one at the same place of its second half, as in GPT-NeoX and in
    Hugging Face's Llama; Meta's own files of Llama have neighbours for pairs.
    """

    kind: Literal["rotary"] = "rotary"
    base: float = Field(10_000.0, gt=1, description="the slowest pair turns about once in 2 pi base tokens")
    scaling: Annotated[ScalingConfig, tagged_union(SCALINGS, "kind"), BeforeValidator(by_name("kind"))] = Field(
        NoScaling(), description="for sequences longer than those first trained on"
    )

    def build(self, width: int, heads: int, head_width: int) -> Positions:
        return Rotary(self, head_width)


class LearnedConfig(PositionsConfig):
    """`positions: {kind: learned, …}`: a vector a position, learnt, added to the embedding (Gehring et al. 2017)."""

    kind: Literal["learned"] = "learned"
    max_seq_len: int | None = Field(
        None, ge=1, le=1 << 24, description="positions there are; null: as many as data.seq_len, noted here"
    )

    is_relative: ClassVar[bool] = False

    def build(self, width: int, heads: int, head_width: int) -> Positions:
        return Learned(self, width)

    def for_sequences(self, seq_len: int) -> PositionsConfig:
        if self.max_seq_len is None:
            return self.model_copy(update={"max_seq_len": seq_len})
        if seq_len > self.max_seq_len:
            raise ValueError(
                f"data.seq_len {seq_len} is more than the {self.max_seq_len} learned positions of the model"
                " (model.positions.max_seq_len); make sequences shorter, or begin a model with more"
            )
        return self


class SinusoidalConfig(PositionsConfig):
    """`positions: sinusoidal`: sines and cosines, added to the embedding (Vaswani et al. 2017)."""

    kind: Literal["sinusoidal"] = "sinusoidal"

    is_relative: ClassVar[bool] = False

    def build(self, width: int, heads: int, head_width: int) -> Positions:
        return Sinusoidal(width)


class AlibiConfig(PositionsConfig):
    """`positions: alibi`: scores fall with the distance, in each head at another slope (Press et al. 2022)."""

    kind: Literal["alibi"] = "alibi"

    def build(self, width: int, heads: int, head_width: int) -> Positions:
        return Alibi(heads)


class NoPositionsConfig(PositionsConfig):
    """`positions: none`: a causal model can count (Haviv et al. 2022), a bidirectional one sees a bag of tokens."""

    kind: Literal["none"] = "none"

    def build(self, width: int, heads: int, head_width: int) -> Positions:
        return Positions()


POSITIONS: dict[str, type[PositionsConfig]] = {
    "rotary": RotaryConfig,
    "learned": LearnedConfig,
    "sinusoidal": SinusoidalConfig,
    "alibi": AlibiConfig,
    "none": NoPositionsConfig,
}
AnyPositionsConfig = Annotated[PositionsConfig, tagged_union(POSITIONS, "kind"), BeforeValidator(by_name("kind"))]


class Rotary(Positions):
    """Cosines and sines, each (T, head_width / 2), of position x frequency.

    Those of the first ROTARY_TABLE positions are kept: a compiled model would else compute a power, a sine and a cosine
    for each value that it rotates, 26 % of the step of GPT-2 124M on an H100.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: RotaryConfig, head_width: int) -> None:
        super().__init__()
        self._config, self._head_width = config, head_width
        for name, part in zip(("cos", "sin"), self._computed(ROTARY_TABLE, torch.device("cpu")), strict=True):
            self.register_buffer(name, part, persistent=False)

    def rotation(self, end: int, device: torch.device) -> Rotation:
        if end <= ROTARY_TABLE:
            return self.cos[:end], self.sin[:end]
        return self._computed(end, device)

    def _computed(self, end: int, device: torch.device) -> Rotation:
        frequency = self._config.scaling.scaled(self._config.base, self._head_width).to(device)
        angle = torch.outer(torch.arange(end, device=device, dtype=torch.float32), frequency)
        return angle.cos(), angle.sin()


class Learned(Positions):
    def __init__(self, config: LearnedConfig, width: int) -> None:
        super().__init__()
        assert config.max_seq_len is not None, "a run's config tells it"
        self.table = nn.Embedding(config.max_seq_len, width)

    def added(self, first: int, time: int) -> Tensor:
        there = self.table.num_embeddings
        if first + time > there:
            raise UserError(
                f"a sequence of {first + time} tokens is longer than the {there} learned positions of the model"
                " (model.positions.max_seq_len)"
            )
        return self.table.weight[first : first + time]


class Sinusoidal(Positions):
    """Sines at even places of a vector, cosines at odd ones."""

    frequency: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self._width = width
        self.register_buffer("frequency", frequencies(10_000.0, width + width % 2), persistent=False)

    def added(self, first: int, time: int) -> Tensor:
        places = torch.arange(first, first + time, device=self.frequency.device, dtype=torch.float32)
        angle = torch.outer(places, self.frequency)
        return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)[:, : self._width]


class Alibi(Positions):
    slopes: Tensor

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.register_buffer("slopes", torch.tensor(alibi_slopes(heads)), persistent=False)

    def bias(self, distance: Tensor) -> Tensor:
        return -self.slopes.view(-1, 1, 1) * distance.abs()


def frequencies(base: float, width: int) -> Tensor:
    """Angle of each pair from one position to the next, float32 (width / 2,), on the CPU.

    To the last bit those of transformers: at position 4000 a bit is 2e-4 of a turn's radians.
    """
    return 1.0 / base ** (torch.arange(0, width, 2, dtype=torch.float32, device="cpu") / width)


def alibi_slopes(heads: int) -> list[float]:
    """A geometric series from 2^(-8 / heads) down; for other numbers than powers of 2 as the authors' code has it.

    >>> alibi_slopes(4), alibi_slopes(3)
    ([0.25, 0.0625, 0.015625, 0.00390625], [0.0625, 0.00390625, 0.25])
    """
    whole = 1 << heads.bit_length() - 1
    slopes = [2.0 ** (-8 * (number + 1) / whole) for number in range(whole)]
    between = [2.0 ** (-4 * (number + 1) / whole) for number in range(0, 2 * whole, 2)]
    return slopes + between[: heads - whole]


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn each pair (first half, second half) of the last axis of x (B, H, T, D) by its position's angle.

    Those are (T, D / 2), or of rows at different places (B, T, D / 2).

    In memory the heads stay beside their position, as the product before and the one after have them.
    """
    cos, sin = (part.to(x.dtype).unsqueeze(-2) for part in rotation)  # (T, 1, D / 2)
    first, second = x.transpose(1, 2).chunk(2, dim=-1)  # (B, T, H, D / 2)
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1).transpose(1, 2)
