"""Recurrent language models: stacks of simple, gated or long short-term memory layers.

Over independent windows, or over a stream whose state is carried from window to window (truncated backpropagation
through time: Zaremba et al. 2014). Dropout of the hidden-to-hidden weights, of words, and with one mask for all time
steps are those of AWD-LSTM (Merity et al. 2018).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from hvdlm.compute.draws import Draws
from hvdlm.errors import UserError
from hvdlm.models.interface import BODY_TASKS, LanguageModel, OfTraining, State, Vocabulary
from hvdlm.models.padding import backwards, known_of, only, turned
from hvdlm.models.stack import Dropout, InitRange, Stack, StackConfig, begin_within


class RecurrentConfig(StackConfig):
    """What the recurrent families share; each says which layer it is made of."""

    bidirectional: bool = Field(
        False,
        description="each layer reads both ways, width / 2 of its values either way (Graves and Schmidhuber 2005), for"
        " tasks with a head of their own",
    )
    weight_dropout: OfTraining[float] = Field(
        0.0, ge=0, lt=1, description="of the hidden-to-hidden weights: the same ones in all of a step"
    )
    init_range: InitRange = None

    num_states: ClassVar[int] = 1  # of a layer: its output, and what else it remembers

    @model_validator(mode="after")
    def _check(self) -> RecurrentConfig:
        if self.bidirectional and self.width % 2:
            raise ValueError(f"width {self.width} is odd; with bidirectional: true half of it is read either way")
        return self

    @property
    def carries_state(self) -> bool:  # type: ignore[override]
        return not self.bidirectional

    @property
    def predicts_tokens(self) -> bool:
        return not self.bidirectional

    @property
    def tasks(self) -> tuple[str, ...]:
        return BODY_TASKS if self.bidirectional else super().tasks

    @property
    def task_remedy(self) -> str:
        return "; model.bidirectional: false makes it one for lm" if self.bidirectional else ""

    @property
    def state_remedy(self) -> str:
        return ", or set model.bidirectional: false" if self.bidirectional else ""

    @abstractmethod
    def layer(self, inputs: int, width: int) -> nn.RNNBase:
        """Of so many inputs and hidden units, with `batch_first`."""

    @property
    def state_shapes(self) -> list[list[tuple[int, ...]]]:
        return [[(width,)] * self.num_states for width in self.widths[1:]]

    def build(self, vocabulary: Vocabulary) -> LanguageModel:
        return (Bidirectional if self.bidirectional else Recurrent)(self, vocabulary.size)


class RnnConfig(RecurrentConfig):
    """`model: {family: rnn, …}`: simple recurrent layers (Elman 1990), h' = f(W x + U h + b)."""

    family: Literal["rnn"] = "rnn"
    nonlinearity: Literal["tanh", "relu"] = Field("tanh", description="f")

    def layer(self, inputs: int, width: int) -> nn.RNNBase:
        return nn.RNN(inputs, width, nonlinearity=self.nonlinearity, batch_first=True)


class GruConfig(RecurrentConfig):
    """`model: {family: gru, …}`: gated recurrent units (Cho et al. 2014), torch's variant: the reset gate after U h."""

    family: Literal["gru"] = "gru"

    def layer(self, inputs: int, width: int) -> nn.RNNBase:
        return nn.GRU(inputs, width, batch_first=True)


class LstmConfig(RecurrentConfig):
    """`model: {family: lstm, …}`: long short-term memory (Hochreiter and Schmidhuber 1997), with a forget gate."""

    family: Literal["lstm"] = "lstm"
    forget_bias: OfTraining[float | None] = Field(
        None, description="what the forget gate's bias begins with (Jozefowicz et al. 2015: 1); null: as the others"
    )

    without_cpu_fp16: ClassVar[str] = "an LSTM"
    num_states: ClassVar[int] = 2

    def layer(self, inputs: int, width: int) -> nn.RNNBase:
        return nn.LSTM(inputs, width, batch_first=True)

    def build(self, vocabulary: Vocabulary) -> LanguageModel:
        model = super().build(vocabulary)
        if self.forget_bias is not None:
            for layer in model.modules():
                if isinstance(layer, nn.LSTM):
                    forget = slice(layer.hidden_size, 2 * layer.hidden_size)  # gates: input, forget, cell, output
                    with torch.no_grad():  # torch adds two biases
                        layer.get_parameter("bias_ih_l0")[forget] = self.forget_bias
                        layer.get_parameter("bias_hh_l0")[forget] = 0.0
        return model


class Recurrent(Stack):
    """Embedding, layers, head. The state is of each layer its output (B, C), and of an LSTM then its cell."""

    def __init__(self, config: RecurrentConfig, vocab_size: int) -> None:
        super().__init__(config, vocab_size, self.layers_of(config))
        if config.init_range is not None:
            begin_within(self, config.init_range)
        self.weight_dropout = config.weight_dropout
        self.weight_dropouts = nn.ModuleList(
            Dropout(config.weight_dropout, 1 + number, of_step=True) for number in range(len(self.layers))
        )
        self.takes_draws |= config.weight_dropout > 0

    @staticmethod
    def layers_of(config: RecurrentConfig) -> Iterable[nn.RNNBase]:
        return (config.layer(inputs, width) for inputs, width in pairwise(config.widths))

    def layer(self, number: int) -> nn.RNNBase:
        layer = self.layers[number]
        assert isinstance(layer, nn.RNNBase)
        return layer

    def run_layer(self, number: int, x: Tensor, past: State, draws: Draws | None) -> tuple[Tensor, State]:
        before = tuple(part.to(x.dtype).unsqueeze(0) for part in past)  # each (1, B, C)
        x, after = self.read(number, x, before if len(before) > 1 else before[0], draws)
        return x, tuple(part.squeeze(0) for part in (after if isinstance(after, tuple) else (after,)))

    def read(
        self, number: int, x: Tensor, before: State | Tensor | None, draws: Draws | None
    ) -> tuple[Tensor, State | Tensor]:
        """As torch's layer `number` reads x (B, T, C), with the dropout of its weights."""
        if draws is None or not self.weight_dropout:
            return self.layers[number](x, before)
        layer = self.layer(number)
        own = layer.get_parameter("weight_hh_l0")
        with _hidden_weight(layer, self.weight_dropouts[number](own.unsqueeze(0), draws)[0]):
            return layer(x, before)


class Bidirectional(Recurrent):
    """A body alone. A layer is two of torch's: number 2 n reads ahead, 2 n + 1 back from each row's own last token.

    On CPUs two fused passes of an LSTM over padded rows take half of the time of torch's packed sequences.
    """

    @staticmethod
    def layers_of(config: RecurrentConfig) -> Iterable[nn.RNNBase]:
        return (config.layer(inputs, width // 2) for inputs, width in pairwise(config.widths) for _ in range(2))

    def initial_state(self, num: int) -> State:
        raise UserError("model.bidirectional: true sees both sides of a token: such a model cannot continue a text")

    def forward(
        self, ids: Tensor, state: State | None = None, draws: Draws | None = None, *, lengths: Tensor | None = None
    ) -> tuple[Tensor, State | None]:
        assert state is None, "what reads back begins at the end"
        x, back = self._embedded(ids, draws), backwards(ids, lengths)
        for number, drop in enumerate(self.dropouts[:-1]):
            x = drop(x, draws)
            ahead, _ = self.read(2 * number, x, None, draws)
            behind, _ = self.read(2 * number + 1, turned(x, back), None, draws)
            x = torch.cat((ahead, turned(behind, back)), dim=-1)
        return only(self.dropouts[-1](x, draws), known_of(lengths, ids.shape[1])), None


@contextmanager
def _hidden_weight(layer: nn.RNNBase, weight: Tensor) -> Iterator[None]:
    """The layer with another hidden-to-hidden weight (G x C, C), through which gradients reach its own.

    It takes the place of its own in the list that torch hands to the fused kernel, for the other ways fail:
    `torch.func.functional_call` lays all weights out anew in a GPU's memory, under the feet of whoever holds them, and
    where the kernel is called by us, torch.compile unrolls it over time, which takes minutes.
    """
    kept = layer._flat_weights
    try:
        layer._flat_weights = [weight if own is layer.weight_hh_l0 else own for own in kept]
        yield
    finally:
        layer._flat_weights = kept
