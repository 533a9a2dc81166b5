"""Recurrent language models: stacks of simple, gated or long short-term memory layers.

Over independent windows, or over a stream whose state is carried from window to window (truncated backpropagation
through time: Zaremba et al. 2014). Dropout of the hidden-to-hidden weights, of words, and with one mask for all time
steps are those of AWD-LSTM (Merity et al. 2018).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from hvdlm.compute.draws import Draws
from hvdlm.models.interface import LanguageModel, OfTraining, State, Vocabulary
from hvdlm.models.stack import Dropout, InitRange, Stack, StackConfig, begin_within


class RecurrentConfig(StackConfig):
    """What the recurrent families share; each says which layer it is made of."""

    weight_dropout: OfTraining[float] = Field(
        0.0, ge=0, lt=1, description="of the hidden-to-hidden weights: the same ones in all of a step"
    )
    init_range: InitRange = None

    carries_state = True
    num_states: ClassVar[int] = 1  # of a layer: its output, and what else it remembers

    @abstractmethod
    def layer(self, inputs: int, width: int) -> nn.RNNBase:
        """Of so many inputs and hidden units, with `batch_first`."""

    @property
    def state_shapes(self) -> list[list[tuple[int, ...]]]:
        return [[(width,)] * self.num_states for width in self.widths[1:]]

    def build(self, vocabulary: Vocabulary) -> LanguageModel:
        return Recurrent(self, vocabulary.size)


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
        model = Recurrent(self, vocabulary.size)
        if self.forget_bias is not None:
            for number, width in enumerate(self.widths[1:]):
                forget = slice(width, 2 * width)  # torch's gates: input, forget, cell, output
                with torch.no_grad():  # torch adds two biases
                    model.layer(number).get_parameter("bias_ih_l0")[forget] = self.forget_bias
                    model.layer(number).get_parameter("bias_hh_l0")[forget] = 0.0
        return model


class Recurrent(Stack):
    """Embedding, layers, head. The state is of each layer its output (B, C), and of an LSTM then its cell."""

    def __init__(self, config: RecurrentConfig, vocab_size: int) -> None:
        pairs = zip(config.widths, config.widths[1:], strict=False)
        super().__init__(config, vocab_size, (config.layer(inputs, width) for inputs, width in pairs))
        if config.init_range is not None:
            begin_within(self, config.init_range)
        self.weight_dropout = config.weight_dropout
        self.weight_dropouts = nn.ModuleList(
            Dropout(config.weight_dropout, 1 + number, of_step=True) for number in range(config.layers)
        )
        self.takes_draws |= config.weight_dropout > 0

    def layer(self, number: int) -> nn.RNNBase:
        layer = self.layers[number]
        assert isinstance(layer, nn.RNNBase)
        return layer

    def run_layer(self, number: int, x: Tensor, past: State, draws: Draws | None) -> tuple[Tensor, State]:
        layer, before = self.layer(number), tuple(part.to(x.dtype).unsqueeze(0) for part in past)  # each (1, B, C)
        weight = None
        if draws is not None and self.weight_dropout:
            own = layer.get_parameter("weight_hh_l0")
            weight = self.weight_dropouts[number](own.unsqueeze(0), draws)[0]
        with _hidden_weight(layer, weight):
            x, after = layer(x, before if len(before) > 1 else before[0])
        return x, tuple(part.squeeze(0) for part in (after if isinstance(after, tuple) else (after,)))


@contextmanager
def _hidden_weight(layer: nn.RNNBase, weight: Tensor | None) -> Iterator[None]:
    """The layer with another hidden-to-hidden weight (G x C, C), through which gradients reach its own.

    It takes the place of its own in the list that torch hands to the fused kernel, for the other ways fail:
    `torch.func.functional_call` lays all weights out anew in a GPU's memory, under the feet of whoever holds them, and
    where the kernel is called by us, torch.compile unrolls it over time, which takes minutes.
    """
    kept = layer._flat_weights
    if weight is not None:
        layer._flat_weights = [weight if own is layer.weight_hh_l0 else own for own in kept]
    try:
        yield
    finally:
        layer._flat_weights = kept
